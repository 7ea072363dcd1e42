"""Write docs/study.md, what a depth study found, and the figures that the docs show, from the folder of a study.

    proxsae depth --budget 20 --out runs/docs
    python docs/write_study.py runs/docs

The page has the answer with its picture and table, every sentence of the report, folded by part, and the table of
claims; the other pictures and tables stay in the report of the study.
"""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

from proxsae.report.style import image
from proxsae.report.summary import markdown
from proxsae.studies.sections import sections

DOCS = Path(__file__).parent
FIGURES = ("depth-steps", "apart-gaps", "recovery-separation", "signs-concepts")
TITLE = "What a depth study found"
COMMAND = re.compile(r"proxsae depth(?: --[a-z-]+ [\w,./-]+)+")
INTRODUCTION = (
    "The answer, the findings of each part and the table of claims, of the command at the end of this page. How to "
    "read them is in the guide [Reading a depth study](guides/reading-a-depth-study.md). The run has one small "
    "model, one layer, one kind of text and minutes of training: these results hold for these SAEs only."
)


def main(folder):
    """Write the page and the figures."""
    study = json.loads((Path(folder) / "rows.json").read_text(encoding="utf-8"))
    trained = f"The SAEs were trained for {study['meta']['training steps']} steps."
    answer, *parts = sections(study["rows"], study["meta"]["to repeat"], remarks=[trained])
    for item in [item for section in (answer, *parts) for item in section.shown]:
        if item.name in FIGURES:
            (DOCS / "figures" / f"{item.name}.svg").write_bytes(image(item.figure, "svg"))
    kept = [replace(part, shown=[item for item in part.shown if item.name == "claims"]) for part in parts]
    head, rest = markdown([answer, *kept], study["meta"], TITLE).split("\n", 1)
    rest = re.sub(r" Data: `[\w/.-]+`\.", "", rest)  # what lies beside the report, not beside this page
    rest = rest.replace("Every measurement is in `rows.csv` and in `rows.json`.", "")
    rest = COMMAND.sub(r"`\g<0>`", rest)  # as text its dashes would become one
    (DOCS / "study.md").write_text(f"{head}\n\n{INTRODUCTION}\n{rest.rstrip()}\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
