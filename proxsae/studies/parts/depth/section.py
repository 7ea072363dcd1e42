"""The first question of a depth study: does the error fall with more steps, at equal density, and at what cost?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxsae.report.section import Picture, Section, Table
from proxsae.report.style import band, canvas, house, legend, log_axis, styles
from proxsae.studies.statistics import Interval, by_seed, grouped, holm, paired_p, pick, ratio_over_seeds, ratios
from proxsae.studies.task import Row
from proxsae.studies.words import INTERVAL, STUDENT, TITLES, penalties_of, seeds_of, steps, times

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEYS = ("penalty", "train_depth", "rule", "steps")


@house()
def section(rows: Sequence[Row]) -> Section:
    """The part on reconstruction, from the rows of `studies.depth`."""
    depths = sorted({row["train_depth"] for row in rows})
    first, exact = pick(rows, train_depth=depths[0]), pick(rows, rule="exact")
    said = (
        f"{rows[0]['rows']} held-out rows, {seeds_of(rows)}. For every number of steps lam was set so that codes have "
        "the k non-zeros a row that were asked for; how nearly is in the table of densities."
    )
    shown: list[Picture | Table] = [
        _picture(
            "depth-steps", first, "rule", "steps",
            f"Error against inference depth, of SAEs trained with {steps(depths[0])}, by step rule; {said} {INTERVAL}",
        ),
        _picture(
            "depth-cost", first, "rule", "cost",
            "The same errors against what they cost: products with the dictionary, of which an encoder is one; "
            f"{said} {INTERVAL}",
        ),
    ]  # fmt: skip
    if len(depths) > 1:
        caption = f"Error against inference depth (exact steps), by the number of steps in training; {said} {INTERVAL}"
        shown.append(_picture("depth-training", exact, "train_depth", "steps", caption))
    shown += [_changes(rows), _densities(rows)]
    return Section(
        "depth", "Does the error fall?",
        "An SAE's encoder is one step. Do more steps of the same problem, with the same weights, lower the error of a "
        "code with as many non-zeros, and what do they cost?",
        findings(rows), shown,
    )  # fmt: skip


def findings(rows: Sequence[Row]) -> list[str]:
    """One sentence for each penalty: errors over that of one step, by exact steps, at the last depth and the worst."""
    told = []
    depths = sorted({row["steps"] for row in rows})
    last = depths[-1]
    for penalty in penalties_of(rows):
        parts = []
        for trained in sorted({row["train_depth"] for row in rows}):
            changes = {t: _change(rows, penalty, trained, "exact", t) for t in depths}
            worst = max(changes, key=lambda t: changes[t].mean)
            if changes[last].n:
                said = f"trained with {steps(trained)}: {times(changes[last])}"
                parts.append(said + (f", but {times(changes[worst])} after {worst}" if worst not in (1, last) else ""))
        if parts:
            told.append(f"{TITLES[penalty]}, error after {last} exact steps over that after one: {'; '.join(parts)}.")
    return told


@house()
def curve(rows: Sequence[Row]) -> Figure:
    """Draw the error against the number of exact steps at inference."""
    return _picture("depth-steps", pick(rows, rule="exact"), "train_depth", "steps", "").figure


def _change(rows: Sequence[Row], penalty: str, depth: int, rule: str, last: int) -> Interval:
    which = {"penalty": penalty, "train_depth": depth, "rule": rule}
    return ratio_over_seeds(by_seed(rows, "nmse", steps=last, **which), by_seed(rows, "nmse", steps=1, **which))


def _picture(name: str, rows: Sequence[Row], line: str, across: str, caption: str) -> Picture:
    error, place = grouped(rows, KEYS, "nmse"), grouped(rows, KEYS, across)
    data = [
        dict(zip(KEYS, key, strict=True))
        | {"nmse": e.mean, "low": e.low, "high": e.high, "seeds": e.n}
        | ({} if across in KEYS else {across: place[key].mean})
        for key, e in error.items()
    ]
    return Picture(name, caption, _drawn(data, line, across), data)


def _drawn(data: Sequence[Row], line: str, across: str) -> Figure:
    penalties = penalties_of(data)
    figure, axes = canvas(columns=3, rows=-(-len(penalties) // 3), width=7.0, sharex=True, sharey=True)
    names = {
        value: value if line == "rule" else f"trained with {steps(value)}"
        for value in dict.fromkeys(row[line] for row in data)
    }
    looks = styles(names.values())
    for ax, penalty in zip(axes.flat, penalties, strict=False):
        for value, name in names.items():
            points = pick(data, penalty=penalty, **{line: value})
            if points:
                x, mean, low, high = ([row[key] for row in points] for key in (across, "nmse", "low", "high"))
                band(ax, x, mean, low, high, name, **looks[name])
        ax.set_title(TITLES[penalty])
        log_axis(ax, "x")
        log_axis(ax, "y")
    for ax in axes.flat[len(penalties) :]:
        ax.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("inference steps" if across == "steps" else "encoder products")
    for ax in axes[:, 0]:
        ax.set_ylabel("error (nmse)")
    legend(figure, axes, len(names))
    return figure


def _changes(rows: Sequence[Row]) -> Table:
    """For each SAE and rule: the error at one step and at the most, their ratio, and whether it differs from 1."""
    last = max(row["steps"] for row in rows)
    lines, p_values = [], []
    for penalty, depth, rule in grouped(rows, KEYS[:3], "nmse"):
        same = pick(rows, penalty=penalty, train_depth=depth, rule=rule)
        error, cost = (grouped(same, ("steps",), value) for value in ("nmse", "cost"))
        one, many = (by_seed(same, "nmse", steps=t) for t in (1, last))
        p_values.append(paired_p(ratios(many, one)))
        (least,) = min(error, key=lambda t: error[t].mean)
        lines.append([
            TITLES[penalty], str(depth), rule, str(error[(1,)]), str(error[(last,)]),
            times(ratio_over_seeds(many, one)), str(least), f"{cost[(last,)].mean:.1f}",
        ])  # fmt: skip
    for line, p in zip(lines, holm(p_values), strict=True):
        line.append(f"{p:.2g}")
    headings = [
        "SAE", "steps in training", "rule", "nmse, 1 step", f"nmse, {last} steps", "ratio", "least error at",
        "encoder products", "p (Holm)",
    ]  # fmt: skip
    caption = (
        f"Errors at one step and at {last}, {rows[0]['rows']} held-out rows, {seeds_of(rows)}; brackets are {STUDENT}. "
        f"The ratio is the geometric mean of each seed's own. p is of Student's paired test that the ratio is 1, "
        f"adjusted for all {len(lines)} rows (Holm)."
    )
    return Table("depth-changes", caption, headings, lines)


def _densities(rows: Sequence[Row]) -> Table:
    """How dense the codes really were, and how far lam was moved for it: what makes the comparison fair."""
    lines = []
    for (penalty, depth, rule), density in grouped(rows, KEYS[:3], "l0").items():
        same = pick(rows, penalty=penalty, train_depth=depth, rule=rule)
        l0, factor = [row["l0"] for row in same], [row["lam_factor"] for row in same]
        dead, two = (grouped(same, ("steps",), key)[(1,)].mean for key in ("dead", "two_sided"))
        lines.append([
            TITLES[penalty], str(depth), rule, f"{density.mean:.1f} ({min(l0):.1f} to {max(l0):.1f})",
            f"{min(factor):.2f} to {max(factor):.2f}", f"{dead:.1%}", f"{two:.1%}",
        ])  # fmt: skip
    headings = ["SAE", "steps in training", "rule", "l0 (range)", "factor of lam", "dead, 1 step", "two-sided, 1 step"]
    caption = (
        f"Non-zeros a row, with their range over steps and {seeds_of(rows)}, on {rows[0]['rows']} held-out rows; by "
        "how much lam was multiplied for it; and at one step the share of latents that never fire, and of the others "
        "that fire with both signs."
    )
    return Table("depth-densities", caption, headings, lines)
