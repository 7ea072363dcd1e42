"""Draw encoders-products.svg from the folder of a study with the part encoders, as its report does.

proxsae depth --parts encoders --seeds 3 --train-steps 150 --train-depths 1 --out runs/encoders
python docs/figures/encoders.py runs/encoders
"""

import json
import sys
from pathlib import Path

from proxsae.report.style import image
from proxsae.studies.parts.encoders.section import picture
from proxsae.studies.statistics import pick


def main(folder: str) -> None:
    """Write the figure."""
    rows = json.loads((Path(folder) / "rows.json").read_text(encoding="utf-8"))["rows"]
    drawn = picture(pick(rows, part="encoders")).figure
    (Path(__file__).parent / "encoders-products.svg").write_bytes(image(drawn, "svg"))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
