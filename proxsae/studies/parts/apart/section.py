"""Dictionary or inference: which of the two keeps the error of an SAE up, and how sure one can be about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from proxsae.report.section import Picture, Section, Table
from proxsae.report.style import canvas, house, legend, log_axis, means, styles
from proxsae.studies.parts.apart.measure import STEPS
from proxsae.studies.statistics import Interval, by_seed, grouped, mean_of, over_seeds, pick, ratio_over_seeds
from proxsae.studies.task import Row
from proxsae.studies.words import (
    INTERVAL,
    LOG,
    STYLES,
    TITLES,
    densities,
    penalties_of,
    percent,
    seeds_of,
    steps,
    times,
)  # fmt: skip

CONVEX = ("relu", "soft")
LEAST = 1e-6  # of the gain that is possible: smaller gaps are drawn at the edge
MANY = 16
# Inference, from what an SAE does by itself to the best that is known: name, method, number of steps.
INFERENCE = (("one step", "encoder", 1), ("as trained", "trained", None), (f"{MANY} steps", "encoder", MANY),
             ("best", "best", None))  # fmt: skip
SEARCHES = (("1", "zero", 1), ("4", "zero", 4), ("16", "zero", 16), ("64", "zero", 64), ("4 refits", "refit", 4),
            ("OMP", "omp", None), ("best known", "best", None))  # fmt: skip


@house()
def section(rows: Sequence[Row]) -> Section:
    """The part on dictionary and inference, from the rows of `measure`."""
    frozen, small = pick(rows, kind="frozen"), pick(rows, kind="small")
    shown: list[Picture | Table] = []
    if frozen:
        shown += [_gaps(frozen), _gap_table(frozen), _decomposition(frozen), _two_by_two(frozen)]
    if small:
        shown.append(_small(small))
    return Section(
        "apart", "Dictionary or inference",
        "How much of the error would a better code of the same dictionary remove, and how much is due to the "
        "dictionary itself?",
        findings(rows), shown,
    )  # fmt: skip


def findings(rows: Sequence[Row]) -> list[str]:
    """What encoders leave, whether that or the dictionary is more, and how good the codes are that this rests on."""
    frozen, small = pick(rows, kind="frozen"), pick(rows, kind="small")
    return [*_gap_findings(frozen), *_bottlenecks(frozen), *_small_findings(small)]


# Gaps ----------------------------------------------------------------------------------------------------------------


def _gap_findings(rows: Sequence[Row]) -> list[str]:
    told, depth = [], min((row["train_depth"] for row in rows), default=1)
    for penalty in penalties_of(rows):
        which = {"penalty": penalty, "train_depth": depth}
        one, many = (mean_of(rows, "share", method="encoder", steps=t, **which) for t in (1, MANY))
        if one.n and many.n:
            said = "" if penalty in CONVEX else "at least "
            told.append(
                f"{TITLES[penalty]}, trained with {steps(depth)}: of the gain that a code of its dictionary can reach "
                f"in the objective, the learned encoder leaves {said}{percent(one)}, and {steps(MANY)} leave "
                f"{said}{percent(many)}; {_worth(rows, which)}."
            )
    return told


def _worth(rows: Sequence[Row], which: dict[str, Any]) -> str:
    """How many steps from zero reach the objective of the learned encoder, by the means over seeds."""
    encoder = mean_of(rows, "objective", method="encoder", steps=1, **which).mean
    zero = {t: mean_of(rows, "objective", method="zero", steps=t, **which).mean for t in STEPS}
    less = [t for t in STEPS if zero[t] > encoder]
    if not less:
        return "one step from zero is as good as the encoder"
    if less[-1] == STEPS[-1]:
        return f"{STEPS[-1]} steps from zero do not reach what the encoder reaches at once"
    return f"the encoder is worth more than {steps(less[-1])} from zero, and no more than {STEPS[len(less)]}"


def _gaps(rows: Sequence[Row]) -> Picture:
    keys = ("penalty", "train_depth", "method", "steps")
    walks = [row for row in rows if row["method"] in ("encoder", "zero") and row["steps"] in STEPS]
    found = grouped(walks, keys, "share")
    data = [
        dict(zip(keys, key, strict=True)) | {"share": i.mean, "low": i.low, "high": i.high, "seeds": i.n}
        for key, i in found.items()
    ]
    depths = sorted({row["train_depth"] for row in rows})
    depths = depths[:1] + depths[1:][-1:]
    figure, axes = canvas(columns=2, rows=len(depths), width=7.0, sharex=True, sharey=True)
    for line, depth in zip(axes, depths, strict=True):
        for ax, method in zip(line, ("encoder", "zero"), strict=True):
            for penalty in penalties_of(rows):
                chosen = {key[3]: i for key, i in found.items() if key[:3] == (penalty, depth, method)}
                clipped = [
                    Interval(max(i.mean, LEAST), max(i.low, LEAST), max(i.high, LEAST), i.n) for i in chosen.values()
                ]
                means(ax, chosen, clipped, TITLES[penalty], **STYLES[penalty])
            start = "learned encoder first" if method == "encoder" else "from z = 0"
            ax.set_title(f"{start}, trained with {steps(depth)}")
            log_axis(ax, "x")
            log_axis(ax, "y")
        line[0].set_ylabel("share of the gain left" + LOG)
    for ax in axes[-1]:
        ax.set_xlabel("steps" + LOG)
    legend(figure, axes, 3)
    caption = (
        f"Amortisation gap F(z_T) - F(best), as a share of F(0) - F(best); {_size(rows)}. For L1 the best code is "
        f"certified to be optimal; for the others it is the best known, and the true gap is at least the one drawn. "
        f"Smaller shares than {LEAST:g} are drawn at {LEAST:g}. {INTERVAL}"
    )
    return Picture("apart-gaps", caption, figure, data)


def _gap_table(rows: Sequence[Row]) -> Table:
    asked = [(method, t) for method in ("encoder", "zero") for t in (1, MANY, 64)]
    lines = []
    for penalty, depth in _pairs(rows):
        which = {"penalty": penalty, "train_depth": depth}
        shares = [mean_of(rows, "share", method=method, steps=t, **which) for method, t in asked]
        best = pick(rows, method="best", **which)
        doubts = [row["certificate"] / row["objective"] for row in best if row["certificate"] is not None]
        against = f"the optimum, known up to {max(doubts):.1e} of F" if doubts else "the best code known"
        lines.append([TITLES[penalty], str(depth), *(percent(i) if i.n else "-" for i in shares), against])
    starts = {"encoder": "encoder first", "zero": "from zero"}
    headings = ["SAE", "steps in training", *(f"{steps(t)}, {starts[m]}" for m, t in asked), "compared to"]
    caption = (
        f"Share of F(0) - F(best), the largest gain known for a code of the dictionary, that is left after some steps; "
        f"{_size(rows)}; 95 % intervals over seeds."
    )
    return Table("apart-gaps-table", caption, headings, lines, folded=True)


# Dictionary x inference ----------------------------------------------------------------------------------------------


class Bottleneck(NamedTuple):
    """Errors of an SAE over its learned encoder's, or over its best code's, and which change is the larger.

    code         the best code known over the learned encoder's, on one dictionary
    dictionary   the dictionary of deeper training over this one, best code against best code
    trained      the SAE of deeper training over this one, both as they were trained
    difference   log(dictionary) - log(code), paired by seed: below 0 the dictionary lowers the error more
    unfair       the densities of the three codes, where they differ too much for their errors to be compared
    """

    code: Interval
    dictionary: Interval
    trained: Interval
    difference: Interval
    unfair: list[float]

    @property
    def verdict(self) -> str:
        """Which of the two lowers the error more."""
        found = self.difference
        if self.unfair:
            return f"but their densities differ (l0 {', '.join(f'{n:.1f}' for n in self.unfair)}), and errors with them"
        if found.n < 2:
            return "one seed does not tell which of the two is more"
        if found.low > 0:
            return "a better code lowers the error more than the other dictionary"
        if found.high < 0:
            return "the other dictionary lowers the error more than a better code"
        return f"{found.n} seeds do not tell which of the two lowers the error more"


def bottleneck(rows: Sequence[Row], penalty: str, first: int, last: int) -> Bottleneck | None:
    """Compare a better code with a dictionary of `last` steps in training, for an SAE of `first`; None without rows."""
    same = pick(rows, kind="frozen", penalty=penalty)
    one, best, other, deep = (
        _cell(same, penalty, depth, name)
        for depth, name in ((first, "one step"), (first, "best"), (last, "best"), (last, "as trained"))
    )
    shared = sorted(s for s in set(one) & set(best) & set(other) if min(one[s], best[s], other[s]) > 0)
    if not shared or first == last:
        return None
    codes: list[dict[str, Any]] = [
        {"train_depth": first, "method": "encoder", "steps": 1},
        {"train_depth": first, "method": "best"},
        {"train_depth": last, "method": "best"},
    ]
    return Bottleneck(
        ratio_over_seeds(best, one), ratio_over_seeds(other, best), ratio_over_seeds(deep, one),
        over_seeds(math.log(other[s] * one[s] / best[s] ** 2) for s in shared), densities(same, *codes),
    )  # fmt: skip


def _bottlenecks(rows: Sequence[Row]) -> list[str]:
    """Per penalty: what a better code does to the error, what the dictionary of deeper training, and which more."""
    depths = sorted({row["train_depth"] for row in rows})
    told = []
    for penalty in penalties_of(rows):
        found = bottleneck(rows, penalty, depths[0], depths[-1])
        if found is not None:
            told.append(
                f"{TITLES[penalty]}, dictionary trained with {steps(depths[0])}: its best code has {times(found.code)} "
                f"the error of its learned encoder; the dictionary trained with {steps(depths[-1])} has "
                f"{times(found.dictionary)}, best code against best code; {found.verdict}. As they were trained, the "
                f"SAE of {steps(depths[-1])} has {times(found.trained)} the error of that of {steps(depths[0])}."
            )
    return told


def _cell(rows: Sequence[Row], penalty: str, depth: int, inference: str, value: str = "nmse") -> dict[int, float]:
    ((method, steps),) = [(m, t) for name, m, t in INFERENCE if name == inference]
    which = {"penalty": penalty, "train_depth": depth, "method": method} | ({"steps": steps} if steps else {})
    return by_seed(rows, value, **which)


def _decomposition(rows: Sequence[Row]) -> Picture:
    depths, penalties = sorted({row["train_depth"] for row in rows}), penalties_of(rows)
    names = {depth: f"dictionary trained with {steps(depth)}" for depth in depths}
    looks = styles(names.values())
    figure, axes = canvas(columns=3, rows=-(-len(penalties) // 3), width=7.0, sharex=True)
    data = []
    for ax, penalty in zip(axes.flat, penalties, strict=False):
        for depth in depths:
            found = [over_seeds(_cell(rows, penalty, depth, name).values()) for name, _, _ in INFERENCE]
            means(ax, range(len(INFERENCE)), found, names[depth], **looks[names[depth]])
            data += [
                {"penalty": penalty, "train_depth": depth, "inference": name, "nmse": i.mean, "low": i.low,
                 "high": i.high, "seeds": i.n}
                for (name, _, _), i in zip(INFERENCE, found, strict=True) if i.n
            ]  # fmt: skip
        ax.set_title(TITLES[penalty])
        ax.set_xticks(range(len(INFERENCE)), [name for name, _, _ in INFERENCE], rotation=30)
    for ax in axes.flat[len(penalties) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("nmse")
    legend(figure, axes, len(names))
    caption = (
        f"Error by dictionary (lines) and inference (across): where lines lie apart the dictionary matters, where they "
        f"fall inference does; {_size(rows)}. For L1 and L0 the code of the lowest objective has not the lowest error. "
        f"{INTERVAL}"
    )
    return Picture("apart-decomposition", caption, figure, data)


def _two_by_two(rows: Sequence[Row]) -> Table:
    lines = []
    for penalty, depth in _pairs(rows):
        line = [TITLES[penalty], str(depth)]
        for name, _, _ in INFERENCE:
            error, l0 = (over_seeds(_cell(rows, penalty, depth, name, value).values()) for value in ("nmse", "l0"))
            line.append(f"{error} (l0 {l0.mean:.1f})" if error.n else "-")
        lines.append(line)
    caption = f"nmse by dictionary and inference, with 95 % intervals over seeds, and the mean l0; {_size(rows)}."
    return Table(
        "apart-two", caption, ["SAE", "steps in training", *(name for name, _, _ in INFERENCE)], lines, folded=True
    )


# Small problems ------------------------------------------------------------------------------------------------------


def _small_findings(rows: Sequence[Row]) -> list[str]:
    told = []
    for penalty in penalties_of(rows):
        share, reached = (mean_of(rows, key, penalty=penalty, method="best") for key in ("share", "reached"))
        if share.n:
            told.append(
                f"for {TITLES[penalty]} it is optimal in {percent(reached)} of the problems and misses "
                f"{percent(share)} of the gain on average"
            )
    if not told:
        return []
    return [f"The best known code was compared with the optimum on small random problems: {', and '.join(told)}. Gaps "
            "to the best known code may be too small by as much."]  # fmt: skip


def _small(rows: Sequence[Row]) -> Picture:
    figure, axes = canvas(columns=2, width=7.0)
    data = []
    for penalty in penalties_of(rows):
        for ax, key in zip(axes.flat, ("share", "reached"), strict=True):
            found = []
            for name, method, number in SEARCHES:
                i = mean_of(rows, key, penalty=penalty, method=method, steps=number)
                found.append(i)
                data.append({"penalty": penalty, "search": name, "measure": key, "mean": i.mean, "low": i.low,
                             "high": i.high, "seeds": i.n})  # fmt: skip
            means(ax, range(len(SEARCHES)), found, TITLES[penalty], **STYLES[penalty] | {"linestyle": "none"})
    for ax, label in zip(axes.flat, ("share of the gain left", "share of problems solved"), strict=True):
        ax.set_xticks(range(len(SEARCHES)), [name for name, _, _ in SEARCHES], rotation=30)
        ax.set_xlabel("exact steps from z = 0, or another search")
        ax.set_ylabel(label)
    legend(figure, axes, 2)
    caption = (
        "Searches for the best k-sparse code on problems so small that all supports were tried: the share of F(0) - F* "
        f"that they leave, and the share of problems in which they reach F*. 200 problems a seed, {seeds_of(rows)}, 3 "
        f"of 16 random atoms in 8 dimensions, with noise. {INTERVAL}"
    )
    return Picture("apart-small", caption, figure, data)


# Parts of figures ----------------------------------------------------------------------------------------------------


def _pairs(rows: Sequence[Row]) -> list[tuple[str, int]]:
    depths = sorted({row["train_depth"] for row in rows})
    have = {(row["penalty"], row["train_depth"]) for row in rows}
    return [(penalty, depth) for penalty in TITLES for depth in depths if (penalty, depth) in have]


def _size(rows: Sequence[Row]) -> str:
    return f"{rows[0]['rows']} held-out rows, {seeds_of(rows)}"
