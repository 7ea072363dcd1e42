"""What a study of rates found: a table for the terminal, and a picture of every measurement with its bound."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from proxsae.disk import write_files
from proxsae.report.rows import as_csv, cell
from proxsae.report.style import figure_class, image
from proxsae.studies.rates.measure import Rate, holds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"))
_GAP = r"$(F(z_t) - F^\star)\ /\ (\frac{1}{2} L\, \|z_0 - z^\star\|^2)$"
_PANELS = {  # statement: title and what is drawn
    "thm-ista-rate": ("ISTA, bound $1/t$", _GAP),
    "thm-fista-rate": ("FISTA, bound $4/(t+1)^2$", _GAP),
    "thm-stationarity-rate": ("IHT, bound $1/t$", r"shortest $\|z_{s+1} - z_s\|^2$ / its bound at $t = 1$"),
    "thm-linear-phase": ("Linear phase, bound $\\rho^t$", r"$\|e_t\|\ /\ \|e_0\|$"),
}
# Every problem of a panel is scaled so that its bound becomes one function of t; a linear phase has its own rate.
_SHAPES: dict[tuple[str, str], Callable[[int], float]] = {
    ("thm-ista-rate", "upper"): lambda t: 1 / t,
    ("thm-fista-rate", "upper"): lambda t: 4 / (t + 1) ** 2,
    ("thm-fista-rate", "lower"): lambda t: 3 / (16 * (t + 1) ** 2),
    ("thm-stationarity-rate", "upper"): lambda t: 1 / t,
}

LINE = "{:18}{:14}{:>4}{:>12}{:>12}{:>17}  {:7}{:9}{}"


def verdict(row: Rate) -> str:
    """Whether a measurement obeys its theorem, in a word."""
    return "ok" if holds(row) else "BROKEN"


def rates_table(rows: list[Rate]) -> str:
    """The measurements as lines of text, with a blank line between statements."""
    names = ("problem", "method", "t", "measured", "theory", "measured/theory", "kind", "verdict", "statement")
    lines = [LINE.format(*names)]
    for before, row in pairwise([rows[0], *rows]):
        numbers = (cell(number) for number in (row.measured, row.theory, row.measured / row.theory))
        lines += [""] if before.statement != row.statement else []
        lines.append(LINE.format(row.problem, row.method, row.t, *numbers, row.kind, verdict(row), row.statement))
    return "\n".join(lines)


def rates_figure(rows: list[Rate]) -> Figure:
    """The picture, not yet drawn to a file."""
    figure: Figure = figure_class()(figsize=(11, 8.5), layout="constrained")
    draw(rows, figure)
    return figure


def write_rates(rows: list[Rate], folder: str | os.PathLike[str]) -> list[str]:
    """Write rates.csv, rates.png and rates.svg into `folder`, all or none; return their names.

    Raises `Error` when the folder cannot be written or matplotlib is missing.
    """
    drawn, table = rates_figure(rows), [asdict(row) | {"verdict": verdict(row)} for row in rows]
    files = {"rates.csv": as_csv(table), "rates.png": image(drawn, "png"), "rates.svg": image(drawn, "svg")}
    write_files(files, folder)
    return list(files)


def draw(rows: list[Rate], figure: Figure) -> None:
    """Draw measurements (markers) with their upper bounds (dashed) and floors (dotted), one panel a theorem."""
    from matplotlib import ticker

    figure.suptitle(
        "Measured (markers) and proved (dashed); each problem is scaled so that its bound is that of the panel"
    )
    for (statement, (title, label)), ax in zip(_PANELS.items(), figure.subplots(2, 2).flat, strict=True):
        drawn = [row for row in rows if row.statement == statement]
        if statement != "thm-linear-phase":  # tight rows repeat what the upper bound is drawn with
            drawn = [row for row in drawn if row.kind != "tight"]
        problems = list(dict.fromkeys(row.problem for row in drawn))
        named: dict[str, Any] = {}
        for (problem, kind), group in groupby(drawn, lambda row: (row.problem, row.kind)):
            points = list(group)
            shape = _SHAPES.get((statement, kind))
            t = np.array([row.t for row in points])
            bound = np.array([row.theory if shape is None else shape(row.t) for row in points])
            ratio = np.array([row.measured / row.theory for row in points])
            color, marker = _STYLES[problems.index(problem)]
            size = 9 - problems.index(problem)  # so that markers which coincide are all seen
            (dashes,) = ax.plot(t, bound, color="black", linestyle=":" if kind == "lower" else "--", zorder=3)
            named["floor" if kind == "lower" else "bound"] = dashes
            (named[problem],) = ax.plot(
                t, np.where(ratio > 0, bound * ratio, np.nan), color=color, marker=marker, markersize=size,
                linewidth=1.8, markerfacecolor="white", markeredgewidth=1.6)  # fmt: skip
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ticks = sorted({row.t for row in drawn})
        ax.set_xticks(ticks, [f"{t}" for t in ticks])
        ax.yaxis.set_major_locator(ticker.LogLocator(numticks=6))
        ax.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        ax.minorticks_off()
        ax.set_ylim(max(ax.get_ylim()[0], 3e-8), 2)
        ax.set_title(title, fontweight="bold")
        ax.set_xlabel(f"steps t, log scale  ({statement})")
        ax.set_ylabel(f"{label}  (log scale)")
        ax.grid(color="#dddddd", linewidth=0.7)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend([named[name] for name in sorted(named, key=["bound", "floor", *problems].index)],
                  sorted(named, key=["bound", "floor", *problems].index), frameon=False, loc="lower left",
                  fontsize="small", handlelength=3)  # fmt: skip
