"""The statistics that claims rest on, and what makes a verdict of one.

A statistic takes the rows of a part as its last argument and gives what was measured, in words, and an interval.  The
verdict is "holds" or "does not hold" only where all of a 95 % interval lies on one side of the claim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from proxsae.studies.parts.apart.section import bottleneck
from proxsae.studies.parts.signs.findings import selectivity
from proxsae.studies.statistics import Interval, by_seed, mean_of, over_seeds, pick, ratio_over_seeds
from proxsae.studies.task import Row
from proxsae.studies.words import densities, percent

YES, NO, OPEN, CANNOT = "holds", "does not hold", "undecided here", "cannot be tested here"
PAIRS = 10  # of 5 seeds: pairs share their seeds, so that fewer that agree are no verdict


class Found(NamedTuple):
    """What a statistic measured, the interval that is judged, and whether the rows allow a verdict at all."""

    measured: str
    interval: Interval
    fair: bool = True


Rows = Sequence[Row]
Statistic = Callable[[Rows], Found | None]  # None: the rows do not have what the claim is about


def verdict(
    found: Interval, claimed_below: float | None = None, claimed_above: float | None = None, refutable: bool = True
) -> str:
    """Whether all of an interval lies below, or above, what is claimed; undecided without an interval.

    A claim is not refutable where what was measured is only a lower bound.
    """
    if math.isnan(found.low):
        return OPEN
    if claimed_below is not None:
        return YES if found.high < claimed_below else NO if found.low >= claimed_below else OPEN
    assert claimed_above is not None
    return YES if found.low > claimed_above else NO if found.high <= claimed_above and refutable else OPEN


def _certain(holds: bool) -> Interval:
    """A theorem holds in every single case, or it does not: 1 or 0, without a doubt."""
    return Interval(holds, holds, holds, 1)


# Errors --------------------------------------------------------------------------------------------------------------


def errors(what: str, after: dict[str, Any], before: dict[str, Any], rows: Rows) -> Found | None:
    """The ratio of two errors, paired by seed; without a verdict where the densities of the two differ.

    `steps` and `train_depth` may be "last" and "most": the most steps of the rows at inference, and in training.
    """
    named = longest(rows)
    late, early = ({key: named.get(value, value) for key, value in which.items()} for which in (after, before))
    ratio = ratio_over_seeds(by_seed(rows, "nmse", **late), by_seed(rows, "nmse", **early))
    if not ratio.n or late == early:
        return None
    unfair = densities(rows, late, early)
    return Found(f"{what.format(**named)}: {ratio}{_at(unfair)}", ratio, not unfair)


def longest(rows: Rows) -> dict[str, int]:
    """The most steps of the rows at inference, "last", and in training, "most"."""
    return {name: max((row.get(key) or 1 for row in rows), default=1)
            for name, key in (("last", "steps"), ("most", "train_depth"))}  # fmt: skip


def _at(unfair: list[float]) -> str:
    return f", at l0 {' against '.join(f'{n:.1f}' for n in unfair)}" if unfair else ""


def dictionary_or_code(penalty: str, rows: Rows) -> Found | None:
    """The gain of a dictionary of deeper training, against that of a better code of the same dictionary."""
    most = longest(pick(rows, kind="frozen"))["most"]
    both = bottleneck(rows, penalty, 1, most)
    if both is None:
        return None
    measured = (
        f"with the best code known, over the encoder's, one dictionary: {both.code}; with the dictionary learned "
        f"with {most} steps, both with the best code: {both.dictionary}{_at(both.unfair)}"
    )
    return Found(measured, both.difference, not both.unfair)


# Means over seeds ----------------------------------------------------------------------------------------------------


def mean(what: str, value: str, also: tuple[str, str] | None, rows: Rows, **which: Any) -> Found | None:
    """The mean of a share over seeds; `also` is a second share that is told with it: what, and its name."""
    share = mean_of(rows, value, **which)
    second = f"; {also[0]}: {percent(mean_of(rows, also[1], **which))}" if also else ""
    return Found(f"{what}: {percent(share)}{second}", share) if share.n else None


def _difference(rows: Rows, value: str, one: str, other: str, **which: Any) -> Interval:
    """Mean difference of two SAEs' value, paired by seed."""
    seeds = dict.fromkeys(row["seed"] for row in pick(rows, sae=one, **which))
    pairs = ((mean_of(rows, value, sae=name, seed=seed, **which).mean for name in (one, other)) for seed in seeds)
    return over_seeds(a - b for a, b in pairs)


def opposite_partners(rows: Rows) -> Found | None:
    """The share of TopK latents with an opposite partner, less that of AbsTopK."""
    cut = _difference(rows, "fragmented", "topk", "abstopk", kind="latents")
    share = percent(mean_of(rows, "fragmented", kind="latents", sae="topk"))
    return None if math.isnan(cut.mean) else Found(f"share in TopK {share}, less that in AbsTopK {cut}", cut)


def auc(peer: str, two_sided: int, rows: Rows) -> Found | None:
    """The AUC of the best AbsTopK latent less that of a peer; on two-sided concepts Holm's test must agree."""
    compared = pick(rows, kind="comparison", peer=peer, two_sided=two_sided)
    if not pick(rows, kind="comparison"):
        return None
    up, down = (sum(s * row["difference"] > 0 and row["p_holm"] < 0.05 for row in compared) for s in (1, -1))
    less = _difference(rows, "auc", "abstopk", peer, kind="concept", two_sided=two_sided)
    measured = f"mean difference of AUC on held-out words {less}; beyond chance over words (Holm) higher for {up}, "
    measured += f"lower for {down} of {len(compared)}"
    agrees = (up and less.low > 0) or (down and less.high < 0)
    return None if math.isnan(less.mean) else Found(measured, less, bool(agrees or not two_sided))


# Planted problems, seeds, theory -------------------------------------------------------------------------------------


def promises(rows: Rows) -> Found | None:
    """Whether every support is found where that is promised, and more steps find more where it is not."""
    apart = pick(rows, kind="separation")
    kept = [row for row in apart if row["theory"] is not None]
    if not kept:
        return None
    good = sum(row["measured"] >= row["theory"] for row in kept)
    widest = pick(apart, k=max(row["k"] for row in apart), range=max(row["range"] for row in apart), method="exact")
    most = max(row["steps"] for row in widest)
    one, many = (next(row["measured"] for row in widest if row["steps"] == steps) for steps in (1, most))
    measured = (
        f"{good} of {len(kept)} promises kept (one step and OMP); at range {widest[0]['range']:g} and k = "
        f"{widest[0]['k']} one step finds {one:.0%} of supports, {most} steps {many:.0%}"
    )
    return Found(measured, _certain(good == len(kept) and many > one))


def planted(rows: Rows) -> Found | None:
    """The F1 that the true dictionary adds to the best inference, less what that adds to one step."""
    learned = pick(rows, kind="learned", data="flat", signs="signed", range=10.0, sae="abstopk")
    if not learned:
        return None

    def best(dictionary: str, train_depth: int | None) -> dict[int, float]:
        ways = ({"method": "exact", "steps": 16}, {"method": "omp"})
        here = pick(learned, dictionary=dictionary, train_depth=train_depth)
        found = [by_seed(here, "f1", **way) for way in ways]
        return {seed: max(each.get(seed, 0.0) for each in found) for seed in found[0]}

    one = by_seed(learned, "f1", dictionary="learned", train_depth=1, method="exact", steps=1)
    coded, true = best("learned", 1), best("true", None)
    inference = over_seeds(coded[seed] - one[seed] for seed in one)
    dictionary = over_seeds(true[seed] - coded[seed] for seed in coded)
    measured = f"support F1 gained by the best inference on the learned dictionary: {inference}; by the true "
    measured += f"dictionary beyond that: {dictionary}"
    return Found(measured, over_seeds((true[seed] - coded[seed]) - (coded[seed] - one[seed]) for seed in coded))


def overlap(deep: bool, rows: Rows) -> Found | None:
    """The change of the IoU of matched codes from one step to the most, at inference and, if deep, in training too.

    A verdict needs that all pairs of five seeds agree.
    """
    named = longest(rows)
    depth = named["most"] if deep else 1
    late, early = (
        {(row["seed"], row["other"]): row["iou"] for row in pick(rows, penalty="abstopk", train_depth=d, steps=t)}
        for d, t in ((depth, named["last"]), (1, 1))
    )
    changes = [late[pair] - early[pair] for pair in early if pair in late]
    if not changes or (deep and depth == 1):
        return None
    middle, least, largest = sum(changes) / len(changes), min(changes), max(changes)
    measured = f"change of the IoU of matched codes: {middle:+.3f}, from {least:+.3f} to {largest:+.3f} over "
    measured += f"{len(changes)} pairs of seeds"
    agree = largest < 0 or least > 0
    return Found(measured, Interval(middle, least, largest, len(changes)), agree and len(changes) >= PAIRS)


def rates(rows: Rows) -> Found:
    """Whether every measurement obeys its theorem."""
    kept = sum(row["holds"] for row in rows)
    return Found(f"{kept} of {len(rows)} hold", _certain(kept == len(rows)))


# Steering ------------------------------------------------------------------------------------------------------------


def steering_selectivity(rows: Rows) -> Found | None:
    """The selectivity of clamping one AbsTopK latent, over that of the difference in means."""
    latent, dim = (_steered(rows, lambda own: selectivity(own).mean, sae="abstopk", by=by) for by in ("latent", "dim"))
    ratio = ratio_over_seeds(latent, dim)
    measured = f"shift of the concept's probe over that of others', AbsTopK over difference in means: {ratio}"
    return Found(measured, ratio) if ratio.n else None


def steering_weaker_side(rows: Rows) -> Found | None:
    """How far one AbsTopK latent steers to the side that it steers to less, less the same of TopK."""
    abstopk, topk = (_steered(rows, _both_ways, sae=name, by="latent") for name in ("abstopk", "topk"))
    more = over_seeds(abstopk[seed] - topk[seed] for seed in abstopk if seed in topk)
    measured = (
        "the weaker of the two shifts of a concept, mean over concepts: AbsTopK "
        f"{over_seeds(abstopk.values())}, TopK {over_seeds(topk.values())}, difference {more}"
    )
    return Found(measured, more) if more.n else None


def _steered(rows: Rows, value: Callable[[Rows], float], **which: Any) -> dict[int, float]:
    """A value of the steering rows of each seed that has some."""
    steered = pick(rows, kind="steering", **which)
    return {seed: value(pick(steered, seed=seed)) for seed in dict.fromkeys(row["seed"] for row in steered)}


def _both_ways(rows: Rows) -> float:
    """How far a concept is moved to the side that it is moved to less, mean over concepts; < 0 for the wrong one."""
    moved = [
        min(sign * row["shift"] for sign, way in ((1, "+"), (-1, "-"))
            for row in pick(rows, concept=name, direction=way))
        for name in dict.fromkeys(row["concept"] for row in rows)
    ]  # fmt: skip
    return sum(moved) / len(moved)
