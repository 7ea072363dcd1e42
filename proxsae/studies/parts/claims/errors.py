"""What each part of a study says about what is claimed: the claim, who says or asks it, the measurement, the verdict.

Two SAEs are compared only where their densities are; a lower bound on a gap can support a claim and never refute it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from proxsae.studies.statistics import Interval, by_seed, mean_of, over_seeds, pick, ratio_over_seeds
from proxsae.studies.task import Row
from proxsae.studies.words import percent

PAPER, ISAE, STOP, ASKED = "the founding paper", "Nelson et al.", "Barin-Pacela et al.", "asked here"
YES, NO, OPEN, CANNOT = "holds", "does not hold", "undecided here", "cannot be tested here"
SAME_DENSITY = 1.05  # ratio of l0 up to which errors are compared
NAMES = {"abstopk": "AbsTopK", "topk": "TopK", "topk2": "TopK of twice the width", "jumprelu": "JumpReLU",
         "relu": "ReLU"}  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """One row of the table: what is said, by whom, what was measured, whether it holds, and which part shows it."""

    text: str
    source: str
    measured: str
    verdict: str
    part: str


def verdict(found: Interval, claimed_below: float | None = None, claimed_above: float | None = None) -> str:
    """Whether all of an interval lies below, or above, what is claimed; undecided without an interval."""
    if math.isnan(found.low):
        return OPEN
    if claimed_below is not None:
        return YES if found.high < claimed_below else NO if found.low >= claimed_below else OPEN
    assert claimed_above is not None
    return YES if found.low > claimed_above else NO if found.high <= claimed_above else OPEN


# Errors --------------------------------------------------------------------------------------------------------------


def _lower(
    rows: Sequence[Row], text: str, source: str, after: dict[str, Any], before: dict[str, Any], what: str
) -> Iterator[Claim]:
    """The claim that one error is below another, withheld where the densities of the two differ."""
    error = [by_seed(rows, "nmse", **which) for which in (after, before)]
    ratio = ratio_over_seeds(*error)
    if not ratio.n:
        return
    unfair = densities(rows, after, before)
    yield Claim(text, source, f"{what}: {ratio}{unfair}", OPEN if unfair else verdict(ratio, claimed_below=1), "depth")


def densities(rows: Sequence[Row], *which: dict[str, Any]) -> str:
    """What is said of codes whose densities differ too much for their errors to be compared; nothing of others."""
    l0 = [over_seeds(by_seed(rows, "l0", **each).values()).mean for each in which]
    return "" if max(l0) <= SAME_DENSITY * min(l0) else f", at l0 {' against '.join(f'{n:.1f}' for n in l0)}"


def _abstopk_against_others(rows: Sequence[Row]) -> Iterator[Claim]:
    last = max(row["steps"] for row in rows)
    sources = {"topk": f"{PAPER}; not so for {ISAE}", "jumprelu": PAPER, "relu": "asked by reviewer 1"}
    for peer, source in sources.items():
        yield from _lower(
            rows, f"AbsTopK reconstructs better than {NAMES[peer]}, at equal width and density", source,
            _error("abstopk", 1, 1), _error(peer, 1, 1), f"nmse of AbsTopK over that of {NAMES[peer]}, one step",
        )  # fmt: skip
    yield from _lower(
        rows, f"With {last} steps of the same weights, AbsTopK reconstructs better than TopK", ASKED,
        _error("abstopk", 1, last), _error("topk", 1, last), f"nmse of AbsTopK over that of TopK, {last} exact steps",
    )  # fmt: skip


def _more_steps(rows: Sequence[Row]) -> Iterator[Claim]:
    last, most = max(row["steps"] for row in rows), max(row["train_depth"] for row in rows)
    for penalty in ("abstopk", "topk", "relu", "jumprelu"):
        yield from _lower(
            rows, f"More steps lower the error of {NAMES[penalty]} SAEs trained with one, at equal density",
            f"{ASKED}, after section 2.2 of {PAPER}", _error(penalty, 1, last), _error(penalty, 1, 1),
            f"nmse after {last} exact steps over that after one",
        )  # fmt: skip
    if most > 1:
        yield from _lower(
            rows, f"AbsTopK trained and used with {most} steps reconstructs better than trained and used with one",
            ISAE, _error("abstopk", most, most), _error("abstopk", 1, 1), "ratio of nmse",
        )  # fmt: skip
        yield from _lower(
            rows, f"With {last} steps at inference, AbsTopK is better trained with {most} steps than with one", ASKED,
            _error("abstopk", most, last), _error("abstopk", 1, last), "ratio of nmse",
        )  # fmt: skip


def _error(penalty: str, train_depth: int, steps: int) -> dict[str, Any]:
    return {"penalty": penalty, "train_depth": train_depth, "steps": steps, "rule": "exact"}


# Dictionary and inference --------------------------------------------------------------------------------------------


def _amortisation(rows: Sequence[Row]) -> Iterator[Claim]:
    frozen = pick(rows, kind="frozen", train_depth=1)
    for penalty, bound in (("relu", "certified"), ("abstopk", "at least")):
        share = mean_of(frozen, "share", penalty=penalty, method="encoder", steps=1)
        if share.n:
            judged = verdict(share, claimed_above=0.01)
            yield Claim(
                f"The learned encoder of {NAMES[penalty]} SAEs leaves a gap to the best code, above 1 % of what one "
                "can gain", "O'Neill et al.: above 0", f"gap as a share of F(0) - F*, {bound}: {percent(share)}",
                OPEN if judged == NO and penalty != "relu" else judged, "apart",
            )  # fmt: skip
    most = max((row["train_depth"] for row in pick(rows, kind="frozen")), default=1)
    if most == 1 or not frozen:
        return
    for penalty in ("abstopk", "topk"):
        error = {
            (depth, method): by_seed(
                pick(rows, kind="frozen"), "nmse", penalty=penalty, train_depth=depth, method=method, steps=steps
            )
            for depth in (1, most)
            for method, steps in (("encoder", 1), ("best", None))
        }
        coded = ratio_over_seeds(error[1, "best"], error[1, "encoder"])
        learned = ratio_over_seeds(error[most, "best"], error[1, "best"])
        shared = [s for s in error[1, "best"] if all(s in other and other[s] > 0 for other in error.values())]
        more = over_seeds(
            math.log(error[most, "best"][s] * error[1, "encoder"][s] / error[1, "best"][s] ** 2) for s in shared
        )
        here = {"kind": "frozen", "penalty": penalty}
        unfair = densities(
            rows, *({**here, "train_depth": depth, "method": method, "steps": steps} for depth, method, steps in
                    ((1, "encoder", 1), (1, "best", None), (most, "best", None)))
        )  # fmt: skip
        yield Claim(
            f"A dictionary learned with {most} steps lowers the error of {NAMES[penalty]} more than the best code does",
            f"{ASKED}, after {STOP}",
            f"with the best code known, over the encoder's, one dictionary: {coded}; with the dictionary learned with "
            f"{most} steps, both with the best code: {learned}{unfair}",
            OPEN if unfair else verdict(more, claimed_below=0), "apart",
        )  # fmt: skip


def _planted(rows: Sequence[Row]) -> Iterator[Claim]:
    apart = pick(rows, kind="separation")
    kept = [row for row in apart if row["theory"] is not None]
    if kept:
        good = sum(row["measured"] >= row["theory"] for row in kept)
        widest = pick(apart, k=max(row["k"] for row in apart), range=max(row["range"] for row in apart), method="exact")
        most = max(row["steps"] for row in widest)
        one, many = (next(row["measured"] for row in widest if row["steps"] == steps) for steps in (1, most))
        yield Claim(
            f"One step finds every support where it is promised; past that it fails, and {most} steps do better",
            "thm-one-step-support; Tropp",
            f"{good} of {len(kept)} promises kept (one step and OMP); at range {widest[0]['range']:g} and k = "
            f"{widest[0]['k']} one step finds {one:.0%} of supports, {most} steps {many:.0%}",
            YES if good == len(kept) and many > one else NO, "recovery",
        )  # fmt: skip
    learned = pick(rows, kind="learned", data="flat", signs="signed", range=10.0, sae="abstopk")
    if not learned:
        return

    def best(dictionary: str, train_depth: int | None) -> dict[int, float]:
        ways = ({"method": "exact", "steps": 16}, {"method": "omp"})
        here = pick(learned, dictionary=dictionary, train_depth=train_depth)
        found = [by_seed(here, "f1", **way) for way in ways]
        return {seed: max(each.get(seed, 0.0) for each in found) for seed in found[0]}

    one = by_seed(learned, "f1", dictionary="learned", train_depth=1, method="exact", steps=1)
    coded, true = best("learned", 1), best("true", None)
    inference = over_seeds(coded[seed] - one[seed] for seed in one)
    dictionary = over_seeds(true[seed] - coded[seed] for seed in coded)
    more = over_seeds((true[seed] - coded[seed]) - (coded[seed] - one[seed]) for seed in coded)
    yield Claim(
        "The dictionary, not the inference, holds back the supports that are found (planted, flat, signed)", STOP,
        f"support F1 gained by the best inference on the learned dictionary: {inference}; by the true dictionary "
        f"beyond that: {dictionary}", verdict(more, claimed_above=0), "recovery",
    )  # fmt: skip


# Seeds ---------------------------------------------------------------------------------------------------------------


def _stability(rows: Sequence[Row]) -> Iterator[Claim]:
    most, last = (max(row[key] for row in rows) for key in ("train_depth", "steps"))
    ways = {f"used with {last} steps, trained with one": ((1, last), ASKED)}
    if most > 1:
        ways[f"trained with {most} steps and used with {last}"] = ((most, last), ISAE)
    for how, (after, source) in ways.items():
        found = [
            {(row["seed"], row["other"]): row["iou"] for row in pick(rows, penalty="abstopk", train_depth=d, steps=t)}
            for d, t in (after, (1, 1))
        ]
        changes = [found[0][pair] - found[1][pair] for pair in found[1] if pair in found[0]]
        if not changes:
            continue
        agree = max(changes) < 0 or min(changes) > 0
        sure = agree and len(changes) >= PAIRS
        yield Claim(
            f"AbsTopK codes are less alike across seeds when {how}, than trained and used with one", source,
            f"change of the IoU of matched codes: {sum(changes) / len(changes):+.3f}, from {min(changes):+.3f} to "
            f"{max(changes):+.3f} over {len(changes)} pairs of seeds",
            OPEN if not sure else YES if max(changes) < 0 else NO, "stability",
        )  # fmt: skip


PAIRS = 10  # of 5 seeds: fewer that agree, and are not independent, are no verdict


# Theory --------------------------------------------------------------------------------------------------------------


def _rates(rows: Sequence[Row]) -> Iterator[Claim]:
    kept = [row["holds"] for row in rows]
    yield Claim(
        "No measurement breaks a proved rate", "the theory pages", f"{sum(map(bool, kept))} of {len(kept)} hold",
        YES if all(kept) else NO, "bounds",
    )  # fmt: skip


TESTED: dict[str, tuple[Callable[[Sequence[Row]], Iterator[Claim]], ...]] = {
    "depth": (_abstopk_against_others, _more_steps),
    "apart": (_amortisation,),
    "recovery": (_planted,),
    "stability": (_stability,),
    "bounds": (_rates,),
}
