"""Write docs/study.md, what a depth study found, and the figures that the docs show, from the folder of a study.

    proxsae depth --budget 20 --out runs/docs
    python scripts/write_study.py runs/docs

Tables but that of claims stay in the report of the study: what is on the page is every sentence that it says.
"""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

from proxsae.report import Table
from proxsae.report.style import image
from proxsae.report.summary import markdown
from proxsae.studies.sections import sections

DOCS = Path(__file__).parent.parent / "docs"
FIGURES = ("depth-steps", "apart-gaps", "recovery-separation", "signs-concepts")
TITLE = "What a depth study found"
OPTIONS = r"--[a-z-]+(?: [\w,./-]+)?(?: --[a-z-]+ [\w,./-]+)*"
COMMAND = re.compile(rf"(proxsae (?:depth {OPTIONS}|statements [a-z-]+)|--parts \w+ --out [\w-]+|--parts(?=\.))")
INTRODUCTION = (
    "Every sentence of the report that the command at the end of this page wrote, and the table of claims. How to read "
    "it is in the guide [Reading a depth study](guides/reading-a-depth-study.md). One small model, one layer, one "
    "kind of text, and minutes of training: it speaks of these SAEs, and takes no side."
)


def main(folder):
    study = json.loads((Path(folder) / "rows.json").read_text(encoding="utf-8"))
    found = sections(study["rows"], study["meta"]["to repeat"])
    for section in found:
        for item in section.shown:
            if item.name in FIGURES:
                (DOCS / "figures" / f"{item.name}.svg").write_bytes(image(item.figure, "svg"))
    kept = [
        replace(section, shown=[item for item in section.shown if isinstance(item, Table) and item.name == "claims"])
        for section in found
    ]
    head, rest = markdown(kept, study["meta"], TITLE).split("\n", 1)
    for elsewhere in (" Data: `tables/claims.csv`.", "Every measurement is in `rows.csv` and in `rows.json`."):
        rest = rest.replace(elsewhere, "")
    rest = COMMAND.sub(r"`\1`", rest)  # as text its dashes would become one
    (DOCS / "study.md").write_text(f"{head}\n\n{INTRODUCTION}\n{rest.rstrip()}\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
