"""How every figure of a report looks: sizes for a two-column paper, and styles told apart without colour too."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from proxsae.conventions import library

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_THIN = 0.6
_HOUSE: dict[str, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.labelsize": 8.5,
    "figure.titlesize": 9,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 3,  # long enough to see the dashes
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.linewidth": _THIN,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "grid.linewidth": _THIN,
    "xtick.major.width": _THIN,
    "ytick.major.width": _THIN,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2,
}


def look(color: str, marker: str, linestyle: Any) -> dict[str, Any]:
    """Return a style for `band` and `means`."""
    return {"color": color, "marker": marker, "linestyle": linestyle}


# Okabe-Ito colours; marker and dash repeat what the colour says, for print in grey.
_CYCLE = (
    look("#0072B2", "o", "--"), look("#000000", "d", "-"), look("#D55E00", "s", ":"), look("#009E73", "^", "-"),
    look("#CC79A7", "D", "-."), look("#E69F00", "v", "-"), look("#56B4E9", "P", "--"),
)  # fmt: skip


def styles(names: Iterable[str], own: Mapping[str, dict[str, Any]] = MappingProxyType({})) -> dict[str, dict[str, Any]]:
    """Return the style of each name: its own, so that it is the same in every figure, or the next of a cycle."""
    others = cycle(_CYCLE)
    return {name: own.get(name) or next(others) for name in dict.fromkeys(names)}


def figure_class() -> type[Figure]:
    """Return matplotlib's Figure; raise `Error` when matplotlib is missing."""
    found: type[Figure] = library("matplotlib.figure", "study").Figure
    return found


@contextmanager
def house() -> Iterator[None]:
    """Draw with the report's own matplotlib settings, and restore the user's afterwards.

    Also a decorator.  Titles, legends and texts take matplotlib's settings when they are made, so what draws on a
    canvas stands inside.  Raises `Error` when matplotlib is missing.
    """
    figure_class()
    from matplotlib import style

    with style.context(["default", _HOUSE]):
        yield


def canvas(
    columns: int = 1, rows: int = 1, width: float = 7.0, height: float | None = None, **subplots: Any
) -> tuple[Figure, np.ndarray]:
    """Return a figure `width` inches wide (7.0: the page, 3.4: a column) and its axes, an array (rows, columns).

    `subplots` goes to `Figure.subplots`.  Raises `Error` when matplotlib is missing.
    """
    panel = min(max(0.75 * width / columns, 1.9), 2.8)
    with house():
        figure = figure_class()(figsize=(width, panel * rows if height is None else height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **subplots)
        for ax in axes.flat:  # how many ticks there is room for is asked when they are drawn, maybe outside of `house`
            ax.tick_params(labelsize=_HOUSE["xtick.labelsize"])
    return figure, axes


def band(
    ax: Axes,
    x: Sequence[float],
    mean: Sequence[float | None],
    low: Sequence[float | None],
    high: Sequence[float | None],
    label: str,
    **style: Any,
) -> None:
    """Draw a line through `mean` with the intervals [low, high] as error bars; `style` is made by `look`.

    None, NaN and infinity are gaps: a mean without an interval is drawn alone.
    """
    middle, least, most = (np.array(values, dtype=float) for values in (mean, low, high))
    for values in (middle, least, most):
        values[~np.isfinite(values)] = np.nan
    error = np.maximum([middle - least, most - middle], 0)  # rounding alone puts a mean outside of its interval
    look: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 1.1, "elinewidth": 0.9} | style
    ax.errorbar(np.array(x, dtype=float), middle, yerr=error, label=label, **look)


def means(ax: Axes, x: Iterable[float], found: Sequence[tuple[float | None, ...]], label: str, **style: Any) -> None:
    """`band` of intervals (mean, low, high), of which there may be none."""
    mean, low, high = ([each[end] for each in found] for end in range(3))
    band(ax, list(x), mean, low, high, label, **style)


def legend(figure: Figure, axes: np.ndarray, columns: int, **options: Any) -> None:
    """One legend below the figure, of all that its axes name, each once."""
    named = {label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(list(named.values()), list(named), ncols=columns, loc="outside lower center", **options)


def log_axis(ax: Axes, which: Literal["x", "y"]) -> None:
    """Make the axis logarithmic, with ticks in plain numbers: powers of two on an x axis of steps, else round ones.

    What is not positive is drawn at the lower edge; an axis without one positive number stays as it is.
    """
    from matplotlib import ticker

    class Ticks(ticker.LogLocator):
        def tick_values(self, vmin: float, vmax: float) -> Any:
            if which == "x" and vmin >= 1 / 4 and 2 < vmax < 2**13:
                self.set_params(base=2.0, subs=(1,))
                return super().tick_values(vmin, vmax)
            # Powers of ten alone would leave the axis bare within one decade, and sparse within three.
            spread = ((1, 2, 3, 5, 7), 20), ((1, 2, 5), 1e3), ((1,), np.inf)
            subs = next(subs for subs, ratio in spread if vmax < ratio * vmin)
            self.set_params(base=10.0, subs=subs)
            return super().tick_values(vmin, vmax)

        def nonsingular(self, vmin: float, vmax: float) -> tuple[float, float]:
            return super().nonsingular(vmin, vmax) if vmax > 0 else (1, 10)  # matplotlib warns, and does the same

    axis = ax.xaxis if which == "x" else ax.yaxis
    if ax.has_data() and not np.isfinite(axis.get_minpos()):
        return
    ax.set(**{f"{which}scale": "log"})
    axis.set_major_locator(Ticks())
    axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(ticker.NullLocator())


# In the dark a reader gets light text and lines on what lies behind, and pale lines for the grid; what takes no style
# sheet (a printer, a TeX document) shows the figure as it was drawn.
_DARK = """@media (prefers-color-scheme: dark) {
  svg { fill: #e6e6e6 }
  [style*="stroke: #000000"] { stroke: #e6e6e6 !important } [style*="fill: #000000"] { fill: #e6e6e6 !important }
  [style*="stroke: #dddddd"] { stroke: #444444 !important } [style*="fill: #ffffff"] { fill: #131416 !important }
}"""


def image(drawn: Figure, kind: str) -> bytes:
    """Return the figure as a file; the same figure gives the same SVG: a changed file is a changed result.

    An SVG has no background and follows the reader's light or dark; a PNG is white.
    """
    from matplotlib import rc_context

    content, svg = io.BytesIO(), kind == "svg"
    # No version and no date: only what is drawn.
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type")) if svg else {}
    with rc_context({"svg.hashsalt": "proxsae", "svg.fonttype": "path"}):
        drawn.savefig(content, format=kind, dpi=150, metadata=metadata, transparent=svg)
    written = content.getvalue()
    return written.replace(b"</style>", f"{_DARK}</style>".encode(), 1) if svg else written
