"""What the part on signs found, in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from proxsae.studies.parts.signs.measure import DEPTH, OPPOSED, PEERS
from proxsae.studies.statistics import Interval, mean_of, over_seeds, pick
from proxsae.studies.task import Row
from proxsae.studies.words import NAMES, percent

TITLES = {
    "abstopk": NAMES["abstopk"], f"abstopk{DEPTH}": f"AbsTopK ({DEPTH} steps)", "topk": NAMES["topk"],
    "topk2": "TopK (2P)", "jumprelu": NAMES["jumprelu"], "dim": "difference in means", "ridge": "ridge probe",
}  # fmt: skip
SAES = ("abstopk", "topk", "topk2", "jumprelu")


def findings(rows: Sequence[Row]) -> list[str]:
    """What the rows say, in sentences; nothing for what was not measured."""
    said = _about_latents(rows)
    if not pick(rows, kind="concept"):
        return [*said, "The contrast pairs are states of the packaged model, so that concepts and steering cannot be "
                       "measured on other data."]  # fmt: skip
    return said + _about_concepts(rows) + _about_comparisons(rows) + _about_sides(rows) + _about_steering(rows)


def _about_latents(rows: Sequence[Row]) -> list[str]:
    said = []
    for name in names_of(rows):
        of = {"kind": "latents", "sae": name}
        if not pick(rows, **of):
            continue
        two, balance, dead = (mean_of(rows, key, **of) for key in ("two_sided", "balance", "dead"))
        signs = f"{percent(two)} of the live latents are two-sided, with a mean sign balance of {balance}; "
        opposite = f"{percent(mean_of(rows, 'fragmented', **of))} have a live partner of the opposite direction "
        said.append(
            f"{TITLES[name]}: {signs if two.n and two.mean else ''}{opposite}(cosine below {OPPOSED:g}); "
            f"the mean over atoms of the most negative cosine is {mean_of(rows, 'opposed', **of)}; "
            f"{percent(dead)} of all latents are dead, and a held-out row has {mean_of(rows, 'l0', **of)} non-zeros."
        )
    return said


def _about_concepts(rows: Sequence[Row]) -> list[str]:
    said = []
    for sides, what in ((1, "two-sided concepts"), (0, "one-sided controls")):
        of: dict[str, Any] = {"kind": "concept", "two_sided": sides}
        names = names_of(pick(rows, **of), TITLES)
        parts = [f"{TITLES[name]} {mean_of(rows, 'auc', sae=name, **of)}" for name in names]
        number = len({row["concept"] for row in pick(rows, **of)})
        for name in ("dim", "ridge"):
            known = [row["auc"] for row in pick(rows, kind="mean", sae=name, two_sided=sides)]
            parts += [f"{TITLES[name]} (supervised) {np.mean(known):.3g}"] if known else []
        if names:
            said.append(
                f"Mean AUC of the best single latent on held-out words, over {number} {what}: {', '.join(parts)}."
            )
    return said


def _about_comparisons(rows: Sequence[Row]) -> list[str]:
    said = []
    for peer in PEERS:
        found = pick(rows, kind="comparison", peer=peer)
        if not found:
            continue
        sure = [row for row in found if row["p_holm"] < 0.05]
        above, below = ([row["concept"] for row in sure if sign * row["difference"] > 0] for sign in (1, -1))
        two = pick(found, two_sided=1)
        higher, lower = (sum(sign * row["difference"] > 0 for row in two) for sign in (1, -1))
        said.append(
            f"AbsTopK compared with {TITLES[peer]}: its AUC is higher on {higher} of {len(two)} two-sided concepts and "
            f"lower on {lower}. Beyond chance, by Holm's correction over all {len(pick(rows, kind='comparison'))} "
            f"comparisons (with controls), it is higher for {_list(above)} and lower for {_list(below)}."
        )
    return said


def _about_sides(rows: Sequence[Row]) -> list[str]:
    said = []
    of: dict[str, Any] = {"kind": "concept", "sae": "abstopk"}
    if two := pick(rows, two_sided=1, **of):
        each = {name: mean_of(two, "opposite", concept=name).mean for name in dict.fromkeys(r["concept"] for r in two)}
        most = [name for name, share in each.items() if share > 0.5]
        said.append(
            f"The best AbsTopK latent has opposite signs on the two sides of {percent(mean_of(two, 'opposite'))} of "
            f"the held-out pairs of two-sided concepts, and of more than half of them for {_list(most)}; it is zero "
            f"on {percent(mean_of(two, 'positive_zero'))} of the positive rows and on "
            f"{percent(mean_of(two, 'negative_zero'))} of the negative ones. A latent that is chosen for opposite "
            f"signs, instead of for its AUC, has them in {percent(mean_of(two, 'opposite_best'))} of the held-out "
            "pairs."
        )
    if one := pick(rows, two_sided=0, **of):
        said.append(
            "The other side of the one-sided controls is words of mixed other topics: the best AbsTopK latent is "
            f"negative on {percent(mean_of(one, 'negative_down'))} of their rows, zero on "
            f"{percent(mean_of(one, 'negative_zero'))} and positive on {percent(mean_of(one, 'negative_up'))}; on "
            f"rows of the topic it is positive on {percent(mean_of(one, 'positive_up'))}."
        )
    for found, what in ((two, "two-sided concept"), (one, "control")):
        if found:
            said.append(
                f"On the two sides of a pair of a {what}, {mean_of(found, 'both')} AbsTopK latents fire on both, and "
                f"{mean_of(found, 'both_opposite')} of them with opposite signs."
            )
    return said


def _about_steering(rows: Sequence[Row]) -> list[str]:
    said = []
    for name in names_of(pick(rows, kind="steering")):
        of: dict[str, Any] = {"kind": "steering", "sae": name, "by": "latent"}
        up, down = (mean_of(rows, "shift", direction=sign, **of) for sign in "+-")
        own, dim = (selectivity(rows, sae=name, by=by) for by in ("latent", "dim"))
        said.append(
            f"Steering by {TITLES[name]}: mean shift {up} towards + and {down} towards -, in units of the distance "
            f"between the sides; |shift| over the damage to other concepts is {own}, and {dim} for the difference in "
            "means with steps of the same norm."
        )
    return said


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def selectivity(rows: Sequence[Row], **which: Any) -> Interval:
    """Sum of |shift| over sum of damage, over the concepts of a seed; then over seeds."""
    found = pick(rows, kind="steering", **which)
    ratios = []
    for seed in dict.fromkeys(row["seed"] for row in found):
        mine = pick(found, seed=seed)
        damage = sum(row["damage"] for row in mine)
        ratios += [sum(abs(row["shift"]) for row in mine) / damage] if damage else []
    return over_seeds(ratios)


def names_of(rows: Sequence[Row], names: Iterable[str] = SAES) -> list[str]:
    """Those of the names, in their order, that have rows."""
    return [name for name in names if pick(rows, sae=name)]
