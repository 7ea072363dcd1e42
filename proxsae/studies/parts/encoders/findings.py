"""What the part on encoders finds: the best one within a budget, and the share of a gain that is learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from proxsae.studies.parts.encoders.names import COMPUTED, DEEP, DISTILLED, ENCODERS, GREEDY, LEARNED
from proxsae.studies.statistics import (
    Interval,
    by_seed,
    holm,
    mean_of,
    over_seeds,
    paired_p,
    pick,
    ratio_over_seeds,
    ratios,
)
from proxsae.studies.task import Row
from proxsae.studies.words import (
    SAME_DENSITY,
    counted,
    number_of_seeds,
    penalties_of,
    percent,
    steps,
    times,
    title,
)  # fmt: skip

BUDGETS = (1, 4, 16, 64)  # products with the dictionary
SURE = 0.05
FAMILIES = (COMPUTED, GREEDY, LEARNED, DISTILLED)

Place = tuple[str, int | None]  # of an encoder and its number of steps


class Best(NamedTuple):
    """The encoder of the lowest mean error within a budget.

    places  all that can be afforded, by their error, the best first
    ratio   its error over that of one step, paired by seed
    equals  those of which its error is not told apart, by Student's paired tests adjusted for all (Holm)
    """

    places: list[Place]
    ratio: Interval
    equals: list[Place]


def findings(rows: Sequence[Row]) -> list[str]:
    """Per penalty: the best encoder within each budget, and the share of the gain that is learned."""
    told = []
    for penalty in penalties_of(rows):
        said = [found for budget in BUDGETS if (found := _best_told(rows, penalty, budget))]
        if said:
            told.append(f"{title(penalty)}, the lowest error for a code {'; '.join(said)}.")
        told += _share_told(rows, penalty)
    return told


def place_name(place: Place) -> str:
    """An encoder with its number of steps, where that says something."""
    name, T = place
    way = ENCODERS[name]
    return way.title if len(way.steps) < 2 or T is None else f"{way.title}, {steps(T)}"


# Equal cost ----------------------------------------------------------------------------------------------------------


def errors(rows: Sequence[Row], penalty: str) -> dict[Place, dict[int, float]]:
    """The error of each encoder by seed, of those that all seeds have and whose codes are no denser than one step's."""
    same = pick(rows, penalty=penalty)
    density = mean_of(same, "l0", encoder="one-step").mean
    found = {}
    for name, T in dict.fromkeys((row["encoder"], row["steps"]) for row in same):
        which = {"encoder": name, "steps": T}
        if mean_of(same, "l0", **which).mean <= SAME_DENSITY * density:
            found[name, T] = by_seed(same, "nmse", **which)
    most = max(map(len, found.values()), default=0)
    return {place: each for place, each in found.items() if len(each) == most}


def best(rows: Sequence[Row], penalty: str, budget: float, families: Sequence[str] = FAMILIES) -> Best | None:
    """The best encoder of some families that spends no more than a number of products; None where there is none."""
    found = errors(rows, penalty)
    same = pick(rows, penalty=penalty)
    places = [
        (name, T) for name, T in found
        if ENCODERS[name].family in families and mean_of(same, "cost", encoder=name, steps=T).mean <= budget
    ]  # fmt: skip
    if not places or ("one-step", 1) not in found:
        return None
    places.sort(key=lambda place: ratio_over_seeds(found[place], found["one-step", 1]).mean)
    first, *others = places
    p_values = holm([paired_p(ratios(found[other], found[first])) for other in others])
    equals = [other for other, p in zip(others, p_values, strict=True) if p >= SURE]
    return Best(places, ratio_over_seeds(found[first], found["one-step", 1]), equals)


def _best_told(rows: Sequence[Row], penalty: str, budget: int) -> str:
    found = best(rows, penalty, budget)
    if found is None or len(found.places) < 2:
        return ""
    more = [] if found.places[0] == ("one-step", 1) else [f"{times(found.ratio)} of the error of one step"]
    if number_of_seeds(rows) > 1 and found.equals:
        few = " and ".join(f"«{place_name(place)}»" for place in found.equals[:3])
        few += f" and {len(found.equals) - 3} more" if len(found.equals) > 3 else ""
        every = f"any of the {len(found.equals)} others"
        more.append(f"not told apart from {every if len(found.equals) == len(found.places) - 1 > 3 else few}")
    said = f"of {counted(budget, 'product')} «{place_name(found.places[0])}»"
    return f"{said} ({', '.join(more)})" if more else said


# The share that is learned -------------------------------------------------------------------------------------------


def shares(rows: Sequence[Row], penalty: str, name: str, T: int) -> Interval:
    """The share of the gain of 16 exact steps over one that an encoder has, over seeds; it may lie outside [0, 1]."""
    found = errors(rows, penalty)
    one, deep, mine = (found.get(place, {}) for place in (("one-step", 1), ("exact", DEEP), (name, T)))
    both = [seed for seed in mine if seed in one and seed in deep and one[seed] > deep[seed]]
    return over_seeds((one[seed] - mine[seed]) / (one[seed] - deep[seed]) for seed in both)


def _share_told(rows: Sequence[Row], penalty: str) -> list[str]:
    """What one and two steps learn of the gain, beside what they have without: more training, and untrained steps."""
    said = []
    for T in ENCODERS["distilled"].steps:
        mine = shares(rows, penalty, "distilled", int(T))
        if not mine.n:
            continue
        beside = [
            f"{what} {percent(other)}"
            for what, name in (("the same trained for the error", "tuned"), ("not trained at all", "exact"))
            if (other := shares(rows, penalty, name, int(T))).n
        ]
        said.append(f"{steps(int(T))}: {percent(mine)}" + (f" ({', '.join(beside)})" if beside else ""))
    if not said:
        return []
    return [f"{title(penalty)}: of what {DEEP} exact steps gain over one, an encoder distilled towards their codes has "
            f"with {'; with '.join(said)}."]  # fmt: skip
