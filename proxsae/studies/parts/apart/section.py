"""Dictionary or inference: which of the two keeps the error of an SAE up, and how sure one can be about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from proxsae.report.section import Picture, Section, Table
from proxsae.report.style import STYLES, canvas, house, legend, log_axis, means, styles
from proxsae.studies.parts.apart.measure import STEPS
from proxsae.studies.statistics import Interval, by_seed, grouped, mean_of, over_seeds, pick, ratio_over_seeds
from proxsae.studies.task import Row
from proxsae.studies.words import INTERVAL, TITLES, penalties_of, percent, seeds_of, steps, times

if TYPE_CHECKING:
    pass

CONVEX = ("relu", "soft")
SAME_DENSITY = 1.05  # ratio of l0 up to which errors are compared
LEAST = 1e-6  # of the gain that is possible: smaller gaps are drawn at the edge
MANY = 16
# Inference, from what an SAE does by itself to the best that is known: name, method, number of steps.
INFERENCE = (("one step", "encoder", 1), ("as trained", "trained", None), (f"{MANY} steps", "encoder", MANY),
             ("best", "best", None))  # fmt: skip
SEARCHES = (("1", "zero", 1), ("4", "zero", 4), ("16", "zero", 16), ("64", "zero", 64), ("4 refits", "refit", 4),
            ("OMP", "omp", None), ("best known", "best", None))  # fmt: skip


@house()
def section(rows: Sequence[Row]) -> Section:
    """The part on dictionary and inference, from the rows of `studies.apart`."""
    frozen, small = pick(rows, kind="frozen"), pick(rows, kind="small")
    shown: list[Picture | Table] = []
    if frozen:
        shown += [_gaps(frozen), _gap_table(frozen), _decomposition(frozen), _two_by_two(frozen)]
    if small:
        shown.append(_small(small))
    return Section(
        "apart", "Dictionary or inference",
        "How much of the error is left by an encoder that stops early, and would go with a better code of the same "
        "dictionary, and how much by the dictionary itself?",
        findings(rows), shown,
    )  # fmt: skip


def findings(rows: Sequence[Row]) -> list[str]:
    """What encoders leave, whether that or the dictionary is more, and how good the codes are that this rests on."""
    frozen, small = pick(rows, kind="frozen"), pick(rows, kind="small")
    return [*_gap_findings(frozen), *_bottleneck(frozen), *_small_findings(small)]


# Gaps ----------------------------------------------------------------------------------------------------------------


def _gap_findings(rows: Sequence[Row]) -> list[str]:
    told, depth = [], min((row["train_depth"] for row in rows), default=1)
    for penalty in penalties_of(rows):
        which = {"penalty": penalty, "train_depth": depth}
        one, many = (mean_of(rows, "share", method="encoder", steps=t, **which) for t in (1, MANY))
        if one.n and many.n:
            said = "" if penalty in CONVEX else "at least "
            told.append(
                f"{TITLES[penalty]}, trained with {steps(depth)}: of what a code of its dictionary can lower the "
                f"objective by, the learned encoder leaves {said}{percent(one)}, and {steps(MANY)} leave "
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
        line[0].set_ylabel("share of the gain left")
    for ax in axes[-1]:
        ax.set_xlabel("steps")
    legend(figure, axes, 3)
    caption = (
        f"Amortisation gap F(z_T) - F(best), as a share of F(0) - F(best), against the number of steps; {_size(rows)}. "
        f"For L1 the best code is optimal, up to a certificate; for the others it is the best known, so that the true "
        f"gap is at least what is drawn. Shares below {LEAST:g} are drawn there. {INTERVAL}"
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
        f"Share of F(0) - F(best), all that a code of the dictionary is known to gain, that is left after some steps; "
        f"{_size(rows)}; 95 % intervals over seeds."
    )
    return Table("apart-gaps-table", caption, headings, lines)


# Dictionary x inference ----------------------------------------------------------------------------------------------


def _bottleneck(rows: Sequence[Row]) -> list[str]:
    """Per penalty: what a better code does to the error, what the dictionary of deeper training, and which more."""
    depths = sorted({row["train_depth"] for row in rows})
    if len(depths) < 2:
        return []
    first, last = depths[0], depths[-1]
    told = []
    for penalty in penalties_of(rows):
        one, best, other, deep = (
            _cell(rows, penalty, depth, name)
            for depth, name in ((first, "one step"), (first, "best"), (last, "best"), (last, "as trained"))
        )
        shared = sorted(s for s in set(one) & set(best) & set(other) if min(one[s], best[s], other[s]) > 0)
        if not shared:
            continue
        # log of inference's ratio, best / one, less that of the dictionary's, other / best
        difference = over_seeds(math.log(best[s] ** 2 / (one[s] * other[s])) for s in shared)
        l0 = [
            over_seeds(_cell(rows, penalty, depth, name, "l0").values()).mean
            for depth, name in ((first, "one step"), (first, "best"), (last, "best"))
        ]
        if max(l0) <= SAME_DENSITY * min(l0):
            verdict = _verdict(difference)
        else:
            verdict = f"but their densities differ (l0 {', '.join(f'{n:.1f}' for n in l0)}), and errors with them"
        told.append(
            f"{TITLES[penalty]}, dictionary trained with {steps(first)}: its best code has "
            f"{times(ratio_over_seeds(best, one))} the error of its learned encoder; the dictionary trained with "
            f"{steps(last)} has {times(ratio_over_seeds(other, best))}, best code against best code; {verdict}. "
            f"As they were trained, the SAE of {steps(last)} has {times(ratio_over_seeds(deep, one))} the error of "
            f"that of {steps(first)}."
        )
    return told


def _verdict(difference: Interval) -> str:
    """What the interval of log(inference's ratio) - log(dictionary's ratio) says about which of them lowers more."""
    if difference.n < 2:
        return "one seed does not tell which of the two is more"
    if difference.high < 0:
        return "a better code lowers the error more than the other dictionary"
    if difference.low > 0:
        return "the other dictionary lowers the error more than a better code"
    return f"{difference.n} seeds do not tell which of the two lowers the error more"


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
        f"fall inference does; {_size(rows)}. The best code has the lowest objective, which for L1 and L0 is not the "
        f"lowest error. {INTERVAL}"
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
    return Table("apart-two", caption, ["SAE", "steps in training", *(name for name, _, _ in INFERENCE)], lines)


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
    return [f"How good the best known code is shows where the optimum is known, on small random problems: "
            f"{', and '.join(told)}. Gaps against it may be too small by as much."]  # fmt: skip


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
        f"Searches for the best k-sparse code where it is known, by trying all supports: what they leave of F(0) - F* "
        f"on average, and in how many problems they reach F*. 200 problems a seed, {seeds_of(rows)}, 3 of 16 random "
        f"atoms in 8 dimensions, with noise. Bars are 95 % Student intervals of the mean over seeds, of all that is "
        "random."
    )
    return Picture("apart-small", caption, figure, data)


# Parts of figures ----------------------------------------------------------------------------------------------------


def _pairs(rows: Sequence[Row]) -> list[tuple[str, int]]:
    depths = sorted({row["train_depth"] for row in rows})
    have = {(row["penalty"], row["train_depth"]) for row in rows}
    return [(penalty, depth) for penalty in TITLES for depth in depths if (penalty, depth) in have]


def _size(rows: Sequence[Row]) -> str:
    return f"{rows[0]['rows']} held-out rows, {seeds_of(rows)}"
