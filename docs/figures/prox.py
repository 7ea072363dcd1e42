"""Draw prox.svg, the scalar prox of every separable family at its steps:  python docs/figures/prox.py

The same code gives the same file: a changed picture is a changed operator.
"""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import proxsae as px

# A panel: title, penalty, steps.  MCP and SCAD take one step from each of their regimes.
PANELS = (
    ("L1(1)", px.L1(1.0), (0.5, 1.0)),
    ("L0(1)", px.L0(1.0), (0.5, 1.0)),
    ("ElasticNet(1, alpha=1)", px.ElasticNet(1.0, 1.0), (0.5, 1.0)),
    ("KSparse(1), the other entry 1.5", px.KSparse(1), (1.0,)),
    ("MCP(1, gamma=2)", px.MCP(1.0, 2.0), (1.0, 2.5)),
    ("SCAD(1, a=3)", px.SCAD(1.0, 3.0), (1.0, 3.0, 4.5)),
)
REACH = 5.0  # the largest |u| drawn
# Okabe-Ito colours; the dash repeats what the colour says, for print in grey.
STYLES = (("#0072B2", "-"), ("#D55E00", (0, (5, 2))), ("#009E73", (0, (1, 1.2))))


def curve(R: px.Penalty, step: float, u: np.ndarray) -> np.ndarray:
    """prox_{step R}(u), entry by entry; a k-sparse code is drawn through its first entry, beside a second of 1.5."""
    if isinstance(R, px.KSparse):
        return R.prox(np.stack([u, np.full_like(u, 1.5)], axis=-1), step)[:, 0]
    return R.prox(u, step)


def draw(points: int) -> Figure:
    """Return the figure, each curve through 2 * points + 1 values of u; a jump is a gap in its line."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    u = np.linspace(-REACH, REACH, 2 * points + 1)
    for ax, (title, R, steps) in zip(figure.subplots(2, 3, sharex=True, sharey=True).flat, PANELS, strict=True):
        ax.plot([-REACH, REACH], [-REACH, REACH], color="#bbbbbb", linewidth=0.8)
        for step, (color, dash) in zip(steps, STYLES, strict=False):
            z = curve(R, step, u)
            # Between two values of u no piece rises by more than a few spacings; a jump rises by much more.
            z[:-1][np.abs(np.diff(z)) > 0.3] = np.nan
            label = "any step" if R.indicator else f"step {step:g}"
            ax.plot(u, z, color=color, linestyle=dash, linewidth=1.8, label=label)
        plain(ax, title)
    figure.supxlabel("u")
    figure.supylabel("prox(u)")
    return figure


def plain(ax: Axes, title: str) -> None:
    """Axes through 0, a title, and the legend in the empty corner."""
    ax.set_title(title, fontsize=10)
    ax.set_aspect("equal")
    ax.set_xlim(-REACH, REACH)
    ax.set_ylim(-REACH, REACH)
    ax.axhline(0, color="#666666", linewidth=0.6)
    ax.axvline(0, color="#666666", linewidth=0.6)
    ax.set_xticks(np.arange(-4, 5, 2))
    ax.set_yticks(np.arange(-4, 5, 2))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9, loc="lower right", handlelength=2.6)


def main(path: Path) -> None:
    """Write the figure."""
    with rc_context({"svg.hashsalt": "proxsae", "svg.fonttype": "path"}):
        draw(500).savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main(Path(__file__).with_suffix(".svg"))
