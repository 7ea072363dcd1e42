"""Draw rates.svg, the rates study against its bounds, as `proxsae rates` does:  python docs/figures/rates.py

A changed picture is a changed iteration, but for rounding, which differs between machines.
"""

from pathlib import Path

from proxsae.report.style import image
from proxsae.studies.rates.figure import rates_figure
from proxsae.studies.rates.measure import rates

if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_bytes(image(rates_figure(rates()), "svg"))
