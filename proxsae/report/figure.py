"""The figure of a depth study, and its bytes as PNG or SVG."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from proxsae.conventions import Error
from proxsae.report.rows import Row, groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe-Ito colours; marker and dash repeat what the colour says, for print in grey.
_STYLES = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-."),
           ("#CC79A7", "D", ":"), ("#E69F00", "v", "-"), ("#000000", "X", "--"))  # fmt: skip


def figure(rows: Sequence[Row], meta: Row) -> Figure:
    """Return a figure of nmse against steps (top) and against cost (bottom), with one panel per autoencoder.

    The bottom row is there because one step may cost several of another rule: fair is equal cost.

    Raises `Error` when matplotlib is missing, or there are no rows.
    """
    if not rows:
        msg = "there are no rows, but a figure needs at least one measurement"
        raise Error(msg)
    drawn = figure_class()(figsize=(12, 7), layout="constrained")
    saes = list(dict.fromkeys(row["sae"] for row in rows))
    axes = drawn.subplots(2, len(saes), sharex="row", sharey="row", squeeze=False)
    # A rule keeps its style in every report, also in one where the other rules were not run.
    rules = dict.fromkeys(["lipschitz", "exact", "refit", *(row["rule"] for row in rows)])
    styles = dict(zip(rules, cycle(_STYLES), strict=False))
    legend = {}
    for group in groups(rows):
        nmse = np.array([row["nmse"] for row in group], dtype=float)  # None becomes NaN, a gap in the line
        rule = group[0]["rule"]
        color, marker, dash = styles[rule]
        for ax, key in zip(axes[:, saes.index(group[0]["sae"])], ("steps", "cost"), strict=True):
            (legend[rule],) = ax.plot(
                [row[key] for row in group], nmse, color=color, marker=marker, linestyle=dash,
                linewidth=1.8, markerfacecolor="white", markeredgewidth=1.6)  # fmt: skip
    for (top, bottom), sae in zip(axes.T, saes, strict=True):
        top.set_title(sae, fontweight="bold", parse_math=False)
        top.set_xlabel("steps")
        bottom.set_xlabel("cost (encoder products)")
    for ax in axes.flat:
        _log_axes(ax)
    for ax in axes[:, 0]:
        ax.set_ylabel("nmse (share of the squared norm)")
    # The built-in font lacks most of Unicode, and a missing glyph is a warning and a blank box.
    data = str(meta.get("data", "not named")).encode("ascii", "replace").decode()
    title = "Reconstruction error of unrolled encoders against depth (top) and against its cost (bottom)"
    drawn.suptitle(f"{title}\n{textwrap.shorten(f'data: {data}', 110)}", parse_math=False)
    drawn.legend(legend.values(), legend.keys(), title="step rule", ncols=len(legend), frameon=False,
                 loc="outside lower center", handlelength=4)  # fmt: skip
    return drawn


def figure_class() -> type[Figure]:
    """Return matplotlib's Figure; raise `Error` when matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        msg = "matplotlib is missing: pip install 'proxsae[study]'"
        raise Error(msg) from error
    return Figure


def _log_axes(ax: Axes) -> None:
    from matplotlib import ticker

    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(ticker.LogLocator(base=2))
    if math.isfinite(ax.yaxis.get_minpos()):  # without one positive number a log axis cannot be drawn
        ax.set_yscale("log", nonpositive="mask")
        low, high = ax.get_ylim()
        # Powers of ten alone would leave the axis bare within one decade, and sparse within three.
        decades = ticker.LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,))
        ax.yaxis.set_major_locator(ticker.AutoLocator() if high < 10 * low else decades)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(ticker.NullLocator())
    ax.grid(color="#dddddd", linewidth=0.7)
    ax.spines[["top", "right"]].set_visible(False)


def image(drawn: Figure, kind: str) -> bytes:
    """Return the figure as a file; the same rows give the same SVG: a changed file is a changed result."""
    from matplotlib import rc_context

    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "proxsae", "svg.fonttype": "path"}):
        drawn.savefig(content, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {})
    return content.getvalue()
