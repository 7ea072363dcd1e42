"""What is claimed of signed codes, held against the part on signs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from proxsae.studies.parts.claims.errors import ASKED, NAMES, NO, OPEN, PAPER, YES, Claim, densities, verdict
from proxsae.studies.parts.signs.findings import selectivity
from proxsae.studies.parts.signs.measure import OFTEN
from proxsae.studies.statistics import Interval, by_seed, mean_of, over_seeds, pick, ratio_over_seeds
from proxsae.studies.task import Row
from proxsae.studies.words import percent


def _difference(rows: Sequence[Row], value: str, one: str, other: str, **which: Any) -> Interval:
    """Mean difference of two SAEs' value, paired by seed."""
    seeds = dict.fromkeys(row["seed"] for row in pick(rows, sae=one, **which))
    pairs = ((mean_of(rows, value, sae=name, seed=seed, **which).mean for name in (one, other)) for seed in seeds)
    return over_seeds(a - b for a, b in pairs)


def _signs_of_codes(rows: Sequence[Row]) -> Iterator[Claim]:
    same = pick(rows, kind="latents")
    ratio = ratio_over_seeds(by_seed(same, "nmse", sae="abstopk"), by_seed(same, "nmse", sae="topk2"))
    unfair = densities(same, {"sae": "abstopk"}, {"sae": "topk2"})
    yield Claim(
        "AbsTopK reconstructs as well, to 5 %, as a TopK of twice the width, of which it is a tied one "
        "(prop-splitting-codes)", ASKED, f"nmse of AbsTopK over that of TopK (2P): {ratio}{unfair}",
        OPEN if unfair else verdict(ratio, claimed_below=1.05), "signs",
    )  # fmt: skip
    two = mean_of(rows, "often_two_sided", kind="latents", sae="abstopk")
    if two.n:
        yield Claim(
            "Most AbsTopK latents that fire often do so with both signs, whatever these mean", ASKED,
            f"share of latents with {OFTEN} firings or more whose rarer sign fires at least a tenth as often: "
            f"{percent(two)}", verdict(two, claimed_above=0.5), "signs",
        )  # fmt: skip
    cut = _difference(rows, "fragmented", "topk", "abstopk", kind="latents")
    if not math.isnan(cut.mean):
        yield Claim(
            "TopK cuts directions in two: more of its latents have an opposite partner (cosine below -0.9)", PAPER,
            f"share in TopK {percent(mean_of(rows, 'fragmented', kind='latents', sae='topk'))}, less that in AbsTopK "
            f"{cut}", verdict(cut, claimed_above=0), "signs",
        )  # fmt: skip


def _concepts(rows: Sequence[Row]) -> Iterator[Claim]:
    compared = pick(rows, kind="comparison")
    if not compared:
        return
    for peer, source in (("topk", PAPER), ("topk2", ASKED), ("jumprelu", PAPER)):
        for sides in (1, 0):
            found = pick(compared, peer=peer, two_sided=sides)
            up, down = (sum(s * row["difference"] > 0 and row["p_holm"] < 0.05 for row in found) for s in (1, -1))
            mean = _difference(rows, "auc", "abstopk", peer, kind="concept", two_sided=sides)
            name = NAMES[peer]
            if sides:
                text = f"The best AbsTopK latent tells a two-sided concept apart better than the best one of {name}"
                judged = YES if up and mean.low > 0 else NO if down and mean.high < 0 else OPEN
            else:
                text = f"Signed codes cost one-sided topics no more than 0.02 of AUC, against {name}"
                judged = verdict(mean, claimed_above=-0.02)
            yield Claim(
                text, source if sides else "asked by reviewers 2 and 3",
                f"mean difference of AUC on held-out words {mean}; beyond chance over words (Holm) higher for {up}, "
                f"lower for {down} of {len(found)}", judged, "signs",
            )  # fmt: skip
    best = {"kind": "concept", "sae": "abstopk"}
    opposite = mean_of(rows, "opposite", two_sided=1, **best)
    chosen = mean_of(rows, "opposite_best", two_sided=1, **best)
    yield Claim(
        "The AbsTopK latent that best tells the sides of a concept apart has opposite signs on them, in most pairs",
        f"{ASKED}, after {PAPER} and reviewer 3",
        f"share of held-out pairs with z > 0 on one side and z < 0 on the other: {percent(opposite)}; of the latent "
        f"chosen for that: {percent(chosen)}", verdict(opposite, claimed_above=0.5), "signs",
    )  # fmt: skip
    zero, down_ = (mean_of(rows, key, two_sided=0, **best) for key in ("negative_zero", "negative_down"))
    yield Claim(
        "Off a topic that has no opposite, its AbsTopK latent is 0 rather than negative", "asked by reviewer 4",
        f"share of rows off the topic with z = 0: {percent(zero)}; with z < 0: {percent(down_)}",
        verdict(zero, claimed_above=0.5), "signs",
    )  # fmt: skip


def _steering(rows: Sequence[Row]) -> Iterator[Claim]:
    steered = pick(rows, kind="steering")
    if not steered:
        return
    seeds = list(dict.fromkeys(row["seed"] for row in steered))
    latent, dim = (
        {seed: selectivity(steered, sae="abstopk", by=by, seed=seed).mean for seed in seeds} for by in ("latent", "dim")
    )
    ratio = ratio_over_seeds(latent, dim)
    yield Claim(
        "Clamping one AbsTopK latent steers as selectively, to 5 %, as the supervised difference in means",
        f"{ASKED}; {PAPER} says so of MMLU and HarmBench",
        f"shift of the concept's probe over that of others', AbsTopK over difference in means: {ratio}",
        verdict(ratio, claimed_above=0.95), "signs",
    )  # fmt: skip
    weaker = {
        name: {seed: _both_ways(pick(steered, sae=name, by="latent", seed=seed)) for seed in seeds}
        for name in ("abstopk", "topk")
    }
    more = over_seeds(weaker["abstopk"][seed] - weaker["topk"][seed] for seed in seeds)
    yield Claim(
        "One AbsTopK latent steers further than a TopK latent to the side that it steers to less",
        f"{ASKED}, after {PAPER}",
        "the weaker of the two shifts of a concept, mean over concepts: AbsTopK "
        f"{over_seeds(weaker['abstopk'].values())}, TopK {over_seeds(weaker['topk'].values())}, difference {more}",
        verdict(more, claimed_above=0), "signs",
    )  # fmt: skip


def _both_ways(rows: Sequence[Row]) -> float:
    """How far a concept is moved to the side that it is moved to less, mean over concepts; < 0 for the wrong one."""
    moved = [
        min(
            sign * row["shift"]
            for sign, way in ((1, "+"), (-1, "-"))
            for row in pick(rows, concept=name, direction=way)
        )
        for name in dict.fromkeys(row["concept"] for row in rows)
    ]
    return sum(moved) / len(moved)


SIGNS = (_signs_of_codes, _concepts, _steering)
