"""Which encoder is best at equal cost, and how much of what many steps gain a shallow encoder can learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from proxsae.report.section import Picture, Section, Table
from proxsae.report.style import canvas, house, log_axis, look
from proxsae.studies.parts.depth.measure import penalties
from proxsae.studies.parts.encoders.findings import BUDGETS, best, errors, findings, place_name, shares
from proxsae.studies.parts.encoders.names import COMPUTED, DEEP, DISTILLED, ENCODERS, GREEDY, LEARNED, misfit
from proxsae.studies.statistics import grouped, pick
from proxsae.studies.task import Row
from proxsae.studies.words import (
    LOG,
    NAMES,
    bars,
    number_of_seeds,
    penalties_of,
    percent,
    rows_of,
    seeds_of,
    times,
    title,
)  # fmt: skip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KEYS = ("penalty", "encoder", "steps")
# A colour a family and a marker an encoder, so that both can be told without colour.
COLOURS = {COMPUTED: "#0072B2", GREEDY: "#009E73", LEARNED: "#D55E00", DISTILLED: "#CC79A7"}
MARKERS = "osD^vPX*<>hdp8H"
LEFT, APART = 5, 0.045  # room for names left of the points, and between two names as a share of the height


@house()
def section(rows: Sequence[Row]) -> Section:
    """The part on encoders, from the rows of `measure`."""
    return Section(
        "encoders", "Which encoder at equal cost?",
        "On one frozen dictionary, at one density: which encoder has the lowest error for what its codes cost, and how "
        "much of the gain of many steps can an encoder of one or two learn?",
        findings(rows), [picture(rows), _table(rows), _budgets(rows)], notes(rows),
    )  # fmt: skip


def points(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The mean error and cost of each encoder, and whether none is both cheaper and better (`front`)."""
    error, cost = grouped(rows, KEYS, "nmse"), grouped(rows, KEYS, "cost")
    found = [
        dict(zip(KEYS, key, strict=True))
        | {"cost": cost[key].mean, "nmse": e.mean, "low": e.low, "high": e.high, "seeds": e.n}
        for key, e in error.items()
    ]
    fair = {(penalty, *place) for penalty in penalties_of(rows) for place in errors(rows, penalty)}
    for point in found:
        beaten = any(
            other["penalty"] == point["penalty"]
            and other["cost"] <= point["cost"]
            and other["nmse"] < point["nmse"]
            and tuple(other[key] for key in KEYS) in fair
            for other in found
        )
        point["front"] = int(not beaten and tuple(point[key] for key in KEYS) in fair)
    return found


@house()
def curve(rows: Sequence[Row]) -> Figure:
    """Draw error against products, a panel for each SAE, with the front of those that none beats at their cost."""
    data, names = points(rows), penalties_of(rows)
    figure, axes = canvas(columns=len(names), width=max(7.0, 3.4 * len(names)), height=4.6)
    looks = _looks(row["encoder"] for row in rows)
    for ax, penalty in zip(axes[0], names, strict=True):
        mine = pick(data, penalty=penalty)
        for name, style in looks.items():
            _draw(ax, name, pick(mine, encoder=name), style)
        front = sorted(pick(mine, front=1), key=lambda point: point["cost"])
        ax.step([p["cost"] for p in front], [p["nmse"] for p in front], where="post", color="#000000", linewidth=0.8,
                zorder=1, label="lowest error for its cost")  # fmt: skip
        _label(ax, front, max(p["nmse"] for p in mine) - min(p["nmse"] for p in mine))
        ax.set_title(title(penalty))
        log_axis(ax, "x")
        ax.set_xlabel("encoder products" + LOG)
        ax.set_xlim(left=min(p["cost"] for p in mine) / LEFT)
        ax.margins(y=0.1)
    axes[0, 0].set_ylabel("error (nmse)")
    named = {label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(list(named.values()), list(named), ncols=4, loc="outside lower center", fontsize=7.5)
    return figure


def _label(ax: Axes, front: Sequence[dict[str, Any]], height: float) -> None:
    """Name the points of the front: below and left of them there is nothing, since nothing beats them."""
    below = math.inf
    for point in front:
        below = min(point["nmse"] - 0.01 * height, below - APART * height)
        said = place_name((point["encoder"], point["steps"]))
        ax.text(point["cost"] / 1.05, below, said, ha="right", va="top", fontsize=7)


def _looks(names: Any) -> dict[str, dict[str, Any]]:
    there = set(names)
    return {
        name: look(COLOURS[way.family], MARKERS[i % len(MARKERS)], "-")
        for i, (name, way) in enumerate(ENCODERS.items())
        if name in there
    }


def _draw(ax: Axes, name: str, found: Sequence[dict[str, Any]], style: dict[str, Any]) -> None:
    if not found:
        return
    x, y = [p["cost"] for p in found], [p["nmse"] for p in found]
    bar = [[max(p["nmse"] - p["low"], 0) if p["seeds"] > 1 else 0 for p in found],
           [max(p["high"] - p["nmse"], 0) if p["seeds"] > 1 else 0 for p in found]]  # fmt: skip
    shown = style | {"linewidth": 0.8, "alpha": 0.85, "markerfacecolor": "white", "markeredgewidth": 1.1}
    ax.errorbar(x, y, yerr=bar, elinewidth=0.8, label=ENCODERS[name].title, **shown)


def picture(rows: Sequence[Row]) -> Picture:
    """The picture with its caption and its numbers."""
    caption = (
        "Error against the products with the dictionary that a code costs, all encoders on the dictionary of one SAE "
        f"a seed; {rows_of(rows)}, {seeds_of(rows)}. {bars(rows)} The line joins the encoders that none beats at their "
        "cost or below."
    )
    return Picture("encoders-products", " ".join(caption.split()), curve(rows), points(rows))


def _table(rows: Sequence[Row]) -> Table:
    lines = []
    for (penalty, name, T), error in sorted(grouped(rows, KEYS, "nmse").items(), key=_order(rows)):
        same = pick(rows, penalty=penalty, encoder=name, steps=T)
        l0, cost, added = (grouped(same, (), key)[()].mean for key in ("l0", "cost", "parameters"))
        share = shares(rows, penalty, name, T)
        lines.append([
            NAMES.get(penalty, penalty), place_name((name, T)), ENCODERS[name].family, str(error),
            percent(share) if share.n else "-", f"{l0:.1f}", f"{cost:.1f}", f"{added:,.0f}",
        ])  # fmt: skip
    headings = ["SAE", "encoder", "kind", "nmse", f"share of the gain of {DEEP} exact steps", "l0", "encoder products",
                "numbers added"]  # fmt: skip
    caption = (
        f"Every encoder on the same dictionaries, by its cost; {rows_of(rows)}, {seeds_of(rows)}. {bars(rows)} Numbers "
        "added are those that it learned beside the weights of the SAE."
    )
    return Table("encoders-table", " ".join(caption.split()), headings, lines)


def _order(rows: Sequence[Row]) -> Any:
    cost, order = grouped(rows, KEYS, "cost"), penalties_of(rows)
    return lambda item: (order.index(item[0][0]), cost[item[0]].mean)


def notes(rows: Sequence[Row]) -> list[str]:
    """What was left out, and why."""
    there, told = {row["encoder"] for row in rows}, []
    kinds = penalties(1, 1.0)
    for penalty in penalties_of(rows):
        for name in ENCODERS:
            why = misfit(name, kinds[penalty])
            if why and (name in there or not _named(there)):
                told.append(f"«{ENCODERS[name].title}» {why}")
    left = dict.fromkeys(told)
    made = [f"Left out where it does not fit: {'; '.join(left)}."] if left else []
    if "alista" not in there:
        made.append("ALISTA solves for its weights for about a minute a dictionary: name it in --encoders to have it.")
    return made


def _named(there: set[str]) -> bool:
    """Whether the encoders were named, as far as rows tell."""
    return not {"exact", "lipschitz", "inf"} <= there


def _budgets(rows: Sequence[Row]) -> Table:
    lines = []
    for penalty in penalties_of(rows):
        for budget in BUDGETS:
            found = best(rows, penalty, budget)
            if found is None:
                continue
            equals = "; ".join(map(place_name, found.equals)) or "none"
            lines.append([NAMES.get(penalty, penalty), str(budget), place_name(found.places[0]), times(found.ratio),
                          str(len(found.places)), equals if number_of_seeds(rows) > 1 else "one seed"])  # fmt: skip
    caption = (
        f"The lowest mean error within a budget of products with the dictionary a code, {rows_of(rows)}, "
        f"{seeds_of(rows)}. Its error is over that of one step, the geometric mean of each seed's ratio. Not told "
        "apart: Student's paired test over seeds, adjusted for all that the budget can afford (Holm), leaves 5 % or "
        "more. The best of many is a little better here than on other seeds, for it was chosen on these."
    )
    headings = ["SAE", "products", "best encoder", "its error", "of how many", "not told apart from it"]
    return Table("encoders-budgets", caption, headings, lines)
