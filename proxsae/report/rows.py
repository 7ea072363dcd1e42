"""What a row of measurements holds, and how it reads as text: a table for the terminal, findings as sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, groupby
from typing import Any, NamedTuple

import numpy as np

Row = Mapping[str, Any]


class Column(NamedTuple):
    """One measured quantity: its key in a row, heading, unit, and a line for who meets it first."""

    key: str
    heading: str
    unit: str
    meaning: str


COLUMNS = (
    Column("sae", "sae", "", "the autoencoder, named by its activation: the proximal map of its penalty R"),
    Column("rule", "rule", "", "the step size mu: lipschitz is 1/L with L the squared norm of D, exact is "
           "the line minimum on the support, refit adds least squares on the support that a step has found"),
    Column("steps", "steps", "", "how many proximal-gradient steps the encoder is unrolled to"),
    Column("nmse", "nmse", "", "squared error as a share of the squared norm of the data: 0 is perfect"),
    Column("explained_variance", "ev", "share", "explained variance, as a share of the data's: 1 is perfect"),
    Column("l0", "l0", "latents", "mean number of nonzero latents in a code: compare nmse at similar l0"),
    Column("objective", "objective", "", "what the steps minimise, half the squared error plus the penalty "
           "R: as R differs between autoencoders, compare it within one only"),
    Column("fixed_point_residual", "residual", "", "how far one more step of size 1/L would move the codes, as a "
           "share of their norms: 0 at a fixed point"),
    Column("support_change", "support", "Jaccard", "mean Jaccard distance between the supports here and in "
           "the line above: 0 is the same support, 1 is disjoint, and the first line of a group has none"),
    Column("dead", "dead", "share", "share of the latents that are zero in every code"),
    Column("cost", "cost", "products", "multiplications by the dictionary, in units of one encoder product"),
    Column("seconds", "time", "s", "wall-clock seconds, which depend on the machine; cost does not"),
)  # fmt: skip


def groups(rows: Iterable[Row]) -> list[list[Row]]:
    """Return the rows of each (sae, rule), in order."""
    return [list(group) for _, group in groupby(rows, lambda row: (row["sae"], row["rule"]))]


def cell(value: Any, digits: int = 4) -> str:
    """Return `value` for a table: floats to `digits` significant digits, scientific at either end."""
    if value is None:
        return "-"
    if not isinstance(value, float | np.floating):
        return str(value)
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    # "#" keeps trailing zeros, so that digits line up; the exponent loses its padding to stay narrow.
    in_full = -3 <= int(exponent) < digits
    return f"{value:#.{digits}g}".rstrip(".") if in_full else f"{mantissa}e{int(exponent)}"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as an aligned table for a terminal, at most 110 columns wide, without a last newline.

    Two heading lines (name, unit), four significant digits, a blank line between (sae, rule) groups.  Where
    extreme numbers would not fit, first the gaps and then the digits shrink.
    """
    text = ""
    for digits, gap in ((4, "  "), (4, " "), (3, " "), (2, " ")):
        blocks = [[[c.heading for c in COLUMNS], [c.unit for c in COLUMNS]]]
        for group in groups(rows):
            blocks.append([[cell(row.get(c.key), digits) for c in COLUMNS] for row in group])
        widths = [max(map(len, cells)) for cells in zip(*chain(*blocks), strict=True)]
        # Names to the left; numbers to the right, so that their digits line up.
        pads = [f"{'<' if i < 2 else '>'}{width}" for i, width in enumerate(widths)]
        lines = [[gap.join(map(format, line, pads)).rstrip() for line in block] for block in blocks]
        text = "\n\n".join(map("\n".join, lines))
        if max(map(len, text.splitlines())) <= 110:
            break
    return text


def findings(rows: Sequence[Row]) -> list[str]:
    """Return one sentence per autoencoder: how nmse differs between the fewest and the most steps of a rule.

    It takes no side: it says falls, rises or stays, names a depth in between that beats both ends, and gives
    the l0 that moved along, because a lower error with more latents is not a better code.
    """
    told: dict[str, list[str]] = {}
    for group in groups(rows):
        told.setdefault(group[0]["sae"], []).append(_change(sorted(group, key=lambda row: row["steps"])))
    return [f"{sae}: {'; '.join(changes)}." for sae, changes in told.items()]


def _change(group: Sequence[Row]) -> str:
    def error(row: Row) -> float:  # missing or NaN means diverged: worse than every number
        return math.inf if row["nmse"] is None or math.isnan(row["nmse"]) else float(row["nmse"])

    first, last, best = group[0], group[-1], min(group, key=error)
    before, after, lowest = (cell(error(row)) for row in (first, last, best))
    if first is last:
        return f"{first['rule']} was measured at one depth only, nmse {before} at steps={first['steps']}"
    moved = f"rises from {before} to" if error(last) > error(first) else f"falls from {before} to"
    notes = [f"{cell(last['cost'])} encoder products"]
    if 0 < error(first) < math.inf and error(last) < math.inf:
        notes.insert(0, f"x{error(last) / error(first):.3g}")
    if lowest not in (before, after):
        notes.append(f"lowest {lowest} at steps={best['steps']}")
    if cell(first["l0"]) != cell(last["l0"]):
        notes.append(f"l0 from {cell(first['l0'])} to {cell(last['l0'])}")
    return (f"from {first['steps']} to {last['steps']} {last['rule']} steps nmse "
            f"{'stays at' if before == after else moved} {after} ({', '.join(notes)})")  # fmt: skip
