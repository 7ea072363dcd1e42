"""What a study returns: its rows, and the curve, the table and the report of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from proxsae.conventions import Error
from proxsae.report import write_report
from proxsae.report.section import Section
from proxsae.studies.parts.depth.section import curve
from proxsae.studies.sections import TITLE, sections
from proxsae.studies.statistics import by_seed, grouped, pick, ratio_over_seeds
from proxsae.studies.task import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADINGS = ("SAE", "trained with", "rule", "steps", "error (nmse)", "over the first", "l0", "products")


@dataclass(frozen=True)
class Study:
    """A depth study, or what there is of it.

    rows     the measurements, a dict each (guide *Reading a depth study*)
    about    what the run was: data, sizes, seeds, machine, versions, the command that repeats it
    done     how many tasks have ended, and how many there are
    packaged whether the rows of data are the packaged ones
    hint     how to get the whole study, where this is less
    repeat   the command that repeats one part with --parts PART added to it, where there is one
    notes    on the SAE and the data: what was taken differently from how it was given
    """

    rows: list[Row] = field(repr=False)
    about: dict[str, Any]
    done: tuple[int, int]
    packaged: bool = False
    hint: str = ""
    repeat: str = ""
    notes: Sequence[str] = ()

    def plot(self) -> Figure:
        """Draw the error against the number of exact steps: a matplotlib figure; `Error` without rows of that part."""
        return curve(self._depth())

    def table(self) -> str:
        """Return the errors as text, a line for each SAE, rule and number of steps, with 95 % intervals over seeds.

        "over the first" is the ratio to the error of the same SAE after the fewest steps, "products" the cost in
        products with the dictionary, of which an encoder is one.  Raises `Error` without rows of the part on depth.
        """
        lines: list[Sequence[str]] = [HEADINGS]
        rows = self._depth()
        for (penalty, trained, rule), _ in grouped(rows, ("penalty", "train_depth", "rule"), "nmse").items():
            same = pick(rows, penalty=penalty, train_depth=trained, rule=rule)
            first = min(row["steps"] for row in same)
            error, l0, cost = (grouped(same, ("steps",), value) for value in ("nmse", "l0", "cost"))
            for (t,), found in error.items():
                ratio = ratio_over_seeds(by_seed(same, "nmse", steps=t), by_seed(same, "nmse", steps=first))
                density, price = f"{l0[(t,)].mean:.1f}", f"{cost[(t,)].mean:.1f}"
                lines.append((penalty, str(trained), rule, str(t), str(found), str(ratio), density, price))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

    def report(self, path: str | os.PathLike[str]) -> list[str]:
        """Write report.html, summary.md, rows, figures and tables into a folder; return the names of the files.

        Raises `Error` where the folder cannot be written or matplotlib is missing.
        """
        return write_report(self.sections(), self.about, self.rows, path, TITLE)

    def sections(self) -> list[Section]:
        """The sections of the report: what was found, in sentences, pictures and tables."""
        return sections(self.rows, self.repeat, self.packaged, self.done, self.notes)

    def _depth(self) -> list[Row]:
        rows = pick(self.rows, part="depth")
        if not rows:
            msg = "this study has no rows of the part depth, which curve and table are of: do it with that part"
            raise Error(msg)
        return rows
