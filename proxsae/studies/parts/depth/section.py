"""The first question of a depth study: does the error fall with more steps, at equal density, and at what cost?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from proxsae.report.section import Picture, Section, Table
from proxsae.report.style import band, canvas, house, legend, log_axis, means, styles
from proxsae.studies.statistics import Interval, by_seed, grouped, holm, paired_p, pick, ratio_over_seeds, ratios
from proxsae.studies.task import Row
from proxsae.studies.words import (
    ANEW,
    FAMILIES,
    LOG,
    NAMES,
    RULES,
    STUDENT,
    STYLES,
    bars,
    change,
    densities,
    number_of_seeds,
    penalties_of,
    rows_of,
    seeds_of,
    steps,
    times,
    title,
    trained_with,
    unequal,
)  # fmt: skip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KEYS = ("penalty", "train_depth", "rule", "steps")


@house()
def section(rows: Sequence[Row]) -> Section:
    """The part on reconstruction, from the rows of `measure`."""
    depths = sorted({row["train_depth"] for row in rows})
    first, exact = pick(rows, train_depth=depths[0]), by_exact_steps(rows)
    size = f"{rows_of(rows)}, {seeds_of(rows)}. {bars(rows)}".rstrip()
    shown: list[Picture | Table] = [
        _picture("depth-rules", first, "rule", "steps",
                 f"Error by step rule, of SAEs {trained_with(rows, depths[0])}. {size}"),
        _picture("depth-cost", first, "rule", "cost", f"The same errors against what their codes cost. {size}"),
    ]  # fmt: skip
    if len(depths) > 1:
        caption = f"Error after {taken(exact)}, by the number of steps in training. {size}"
        shown.append(_picture("depth-training", exact, "train_depth", "steps", caption))
    shown += [_changes(rows), _densities(rows)]
    return Section(
        "depth", "Does the error fall?",
        "An SAE's encoder is one step. Do more steps of the same problem, with the same weights, lower the error of a "
        "code with as many non-zeros, and what do they cost?",
        findings(rows), shown,
    )  # fmt: skip


def findings(rows: Sequence[Row]) -> list[str]:
    """One sentence for each penalty: the ratio of the error after the most exact steps to that after the fewest.

    A number of steps between the two whose error is higher than both is named as well.
    """
    told, rows = [], by_exact_steps(rows)
    depths = sorted({row["steps"] for row in rows})
    first, last = depths[0], depths[-1]
    for penalty in penalties_of(rows):
        parts = []
        for trained in sorted({row["train_depth"] for row in rows}):
            changes = {t: error_ratio(rows, penalty, (trained, t), (trained, first)) for t in depths}
            worst = max(changes, key=lambda t: changes[t].mean)
            if changes[last].n and first < last:
                ends = []
                for t in (last, worst):
                    used = ({"penalty": penalty, "train_depth": trained, "steps": s} for s in (first, t))
                    ends.append(times(changes[t]) + unequal(densities(rows, *used)))
                said = f"{trained_with(rows, trained)}: {ends[0]}"
                parts.append(said + (f", but {ends[1]} after {worst}" if worst not in (first, last) else ""))
        if parts:
            before = "one" if first == 1 else first
            told.append(
                f"{title(penalty)}, error after {last} {taken(rows)} over that after {before}: {'; '.join(parts)}."
            )
    return told


def error_ratio(rows: Sequence[Row], penalty: str, after: tuple[int, int], before: tuple[int, int]) -> Interval:
    """The ratio of two errors of a penalty, paired by seed: each by steps in training and steps at inference."""
    late, early = (by_seed(rows, "nmse", penalty=penalty, train_depth=depth, steps=t) for depth, t in (after, before))
    return ratio_over_seeds(late, early)


@house()
def curve(rows: Sequence[Row]) -> Figure:
    """Draw the error of trained SAEs against the number of exact steps at inference: the picture to begin with.

    rows   of the part on depth: `penalty`, `train_depth`, `seed`, `rule`, `steps`, `nmse`, and `lam_factor` where lam
           was set anew; those of the fewest steps in training are drawn

    There is one panel for each family of penalties, and the legend says how far the error falls.  A penalty that is
    none of the study's has a panel of its own, so that the picture also serves one SAE alone.
    """
    rows = curve_rows(rows)
    panels = {family: [name for name in names if pick(rows, penalty=name)] for family, names in FAMILIES.items()}
    panels |= {name: [name] for name in penalties_of(rows) if name not in NAMES}
    panels = {family: names for family, names in panels.items() if names}
    looks = styles(penalties_of(rows), STYLES)
    figure, axes = canvas(columns=len(panels), width=max(3.6, 2.4 * len(panels)), height=3.0, sharex=True, sharey=True)
    for ax, (family, names) in zip(axes[0], panels.items(), strict=True):
        for name in names:
            same = pick(rows, penalty=name)
            found = grouped(same, ("steps",), "nmse")
            ts, depth = [t for (t,) in found], same[0]["train_depth"]
            fall = error_ratio(same, name, (depth, max(ts)), (depth, min(ts)))
            look = looks[name] | {"markerfacecolor": looks[name]["color"]}
            label = f"{NAMES.get(name, name)}  {change(fall._replace(n=1))}"
            means(ax, ts, list(found.values()), label, **look)
        _head(ax, family, pick(rows, penalty=names[0]))
        log_axis(ax, "x")
        ax.set_xlabel("encoder steps" + LOG)
    axes[0, 0].set_ylim(0, None)  # of all panels, which share it: half as high is half the error
    axes[0, 0].set_ylabel("error (nmse)")
    for ax in axes[0]:
        lines, labels = ax.get_legend_handles_labels()
        ax.legend([bars.lines[0] for bars in lines], labels, loc="lower left", borderaxespad=0.2).set_in_layout(False)
    return figure


def curve_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows that `curve` draws: those of the SAEs with the fewest steps in training, by exact steps."""
    return pick(by_exact_steps(rows), train_depth=min(row["train_depth"] for row in rows))


def by_exact_steps(rows: Sequence[Row]) -> list[Row]:
    """The rows of exact line steps, or of another rule where the penalty of an SAE has no such steps."""
    return pick(rows, rule="exact") or pick(rows, rule=rows[0]["rule"])


def taken(rows: Sequence[Row]) -> str:
    """What the steps of these rows are called."""
    rule = rows[0]["rule"]
    return "exact steps" if rule == "exact" else f"steps ({RULES.get(rule, rule)})"


def _head(ax: Axes, name: str, rows: Sequence[Row]) -> None:
    """The title of a panel, and that lam was set anew where it was: this is why an error rises from one step to two."""
    anew = any(row.get("lam_factor", 1.0) != 1.0 for row in rows)
    ax.set_title(name, pad=15 if anew else None)
    if anew:
        ax.text(0.5, 1.03, ANEW, transform=ax.transAxes, ha="center", va="bottom", fontsize=8)


def points(rows: Sequence[Row], across: str = "steps") -> list[dict[str, Any]]:
    """The means of the error that figures draw, with their intervals, and the mean of `across`."""
    error, place = grouped(rows, KEYS, "nmse"), grouped(rows, KEYS, across)
    return [
        dict(zip(KEYS, key, strict=True))
        | {"nmse": e.mean, "low": e.low, "high": e.high, "seeds": e.n}
        | ({} if across in KEYS else {across: place[key].mean})
        for key, e in error.items()
    ]


def _picture(name: str, rows: Sequence[Row], line: str, across: str, caption: str) -> Picture:
    """One panel for each penalty, and in it one line for each value of `line`."""
    data, penalties = points(rows, across), penalties_of(rows)
    figure, axes = canvas(columns=3, rows=-(-len(penalties) // 3), width=7.0, sharex=True, sharey=True)
    names: Mapping[Any, str] = {
        value: RULES.get(value, value) if line == "rule" else f"trained with {steps(value)}"
        for value in dict.fromkeys(row[line] for row in data)
    }
    looks = styles(names.values(), STYLES)
    for ax, penalty in zip(axes.flat, penalties, strict=False):
        for value, label in names.items():
            of = pick(data, penalty=penalty, **{line: value})
            if of:
                x, mean, low, high = ([row[key] for row in of] for key in (across, "nmse", "low", "high"))
                band(ax, x, mean, low, high, label, **looks[label])
        _head(ax, title(penalty), pick(rows, penalty=penalty))
        log_axis(ax, "x")
        log_axis(ax, "y")
    for ax in axes.flat[len(penalties) :]:
        ax.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel(("inference steps" if across == "steps" else "encoder products") + LOG)
    for ax in axes[:, 0]:
        ax.set_ylabel("nmse" + LOG)
    legend(figure, axes, len(names))
    return Picture(name, caption, figure, data)


def _changes(rows: Sequence[Row]) -> Table:
    """For each SAE and rule: errors at the fewest and the most steps, their ratio, and whether it differs from 1."""
    first, last = (end(row["steps"] for row in rows) for end in (min, max))
    lines, p_values = [], []
    for penalty, depth, rule in grouped(rows, KEYS[:3], "nmse"):
        same = pick(rows, penalty=penalty, train_depth=depth, rule=rule)
        error, cost = (grouped(same, ("steps",), value) for value in ("nmse", "cost"))
        few, many = (by_seed(same, "nmse", steps=t) for t in (first, last))
        p_values.append(paired_p(ratios(many, few)))
        (least,) = min(error, key=lambda t: error[t].mean)
        lines.append([
            title(penalty), str(depth), RULES.get(rule, rule), str(error[(first,)]), str(error[(last,)]),
            times(ratio_over_seeds(many, few)), str(least), f"{cost[(last,)].mean:.1f}",
        ])  # fmt: skip
    headings = [
        "SAE", "steps in training", "step rule", f"nmse, {steps(first)}", f"nmse, {last} steps", "ratio",
        "least error at", "encoder products",
    ]  # fmt: skip
    caption = f"Errors at {steps(first)} and at {last}, {rows_of(rows)}, {seeds_of(rows)}."
    if number_of_seeds(rows) > 1:
        headings.append("p (Holm)")
        for line, p in zip(lines, holm(p_values), strict=True):
            line.append(f"{p:.2g}")
        caption += (
            f" Brackets are {STUDENT}. The ratio is the geometric mean of each seed's own. p: Student's paired test "
            f"that it is 1, adjusted for all {len(lines)} rows (Holm)."
        )
    return Table("depth-changes", caption, headings, lines, folded=True)


def _densities(rows: Sequence[Row]) -> Table:
    """How dense the codes really were, and how far lam was moved for it: what makes the comparison fair."""
    lines, first = [], min(row["steps"] for row in rows)
    for (penalty, depth, rule), density in grouped(rows, KEYS[:3], "l0").items():
        same = pick(rows, penalty=penalty, train_depth=depth, rule=rule)
        l0, factor = [row["l0"] for row in same], [row["lam_factor"] for row in same]
        dead, two = (grouped(same, ("steps",), key)[(first,)].mean for key in ("dead", "two_sided"))
        lines.append([
            title(penalty), str(depth), RULES.get(rule, rule), f"{density.mean:.1f} ({min(l0):.1f} to {max(l0):.1f})",
            f"{min(factor):.2f} to {max(factor):.2f}", f"{dead:.1%}", f"{two:.1%}",
        ])  # fmt: skip
    headings = ["SAE", "steps in training", "step rule", "l0 (range)", "λ multiplied by", f"dead, {steps(first)}",
                f"two-sided, {steps(first)}"]  # fmt: skip
    caption = (
        f"Non-zeros a row, with their range over steps and {seeds_of(rows)}, on {rows_of(rows)}; the "
        f"factor of λ that keeps them; at {steps(first)} the share of latents that never fire, and of the others the "
        "share that fires with both signs."
    )
    return Table("depth-densities", caption, headings, lines, folded=True)
