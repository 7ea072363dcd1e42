"""The statistics of claims about a language model with an SAE in place: its loss, and its predictions."""

from __future__ import annotations

from typing import Any

from proxsae.studies.parts.claims.statistics import Found, Rows, longest
from proxsae.studies.parts.model.section import costs, given_back, share
from proxsae.studies.statistics import Interval, by_seed, mean_of, over_seeds, pick, ratio_over_seeds
from proxsae.studies.words import densities


def keeps_more(one: dict[str, Any], other: dict[str, Any], rows: Rows) -> Found | None:
    """The loss recovered (mean ablation) of one SAE less that of another, paired by seed.

    `steps` and `train_depth` may be "last" and "most", as in `statistics.errors`.
    """
    rows = pick(rows, kind="loss")
    one, other = ({key: longest(rows).get(value, value) for key, value in which.items()} for which in (one, other))
    more, less = (by_seed(rows, "recovered_mean", **which) for which in (one, other))
    found = over_seeds(more[seed] - less[seed] for seed in more if seed in less)
    if not found.n or one == other:
        return None
    means = " and ".join(f"{over_seeds(each.values()).mean:.3f}" for each in (more, less))
    return _fair(f"loss recovered {means}, difference {found}", found, rows, one, other)


def gives_back(penalty: str, least: float, rows: Rows) -> Found | None:
    """The loss that is not given back at the most steps, beyond all but the share `least` of what the SAE costs.

    Below 0 where more than that share comes back, whatever the sign of the cost.
    """
    rows = pick(rows, kind="loss")
    pairs = costs(rows, penalty, 1)
    back = given_back(rows, penalty, 1)
    if not pairs or longest(rows)["last"] == 1:
        return None
    before, after = (over_seeds(each) for each in zip(*pairs, strict=True))
    measured = f"the SAE costs {before} nats after one step and {after} after {longest(rows)['last']}: "
    measured += f"{share(back)} comes back" if back.n else "it costs nothing"
    found = over_seeds(after - (1 - least) * before for before, after in pairs)
    ends = ({"penalty": penalty, "train_depth": 1, "steps": t} for t in (1, longest(rows)["last"]))
    return _fair(measured, found, rows, *ends)


def predicts(penalty: str, rows: Rows) -> Found | None:
    """The ratio of the KL divergence after the most steps to that after one, paired by seed."""
    rows = pick(rows, kind="loss")
    ends = [{"penalty": penalty, "train_depth": 1, "steps": t} for t in (longest(rows)["last"], 1)]
    late, early = (by_seed(rows, "kl", **which) for which in ends)
    ratio = ratio_over_seeds(late, early)
    if not ratio.n or ends[0] == ends[1]:
        return None
    return _fair(f"ratio of KL: {ratio}", ratio, rows, *ends)


def probes(one: dict[str, Any], other: dict[str, Any], rows: Rows) -> Found | None:
    """The F1 of k-sparse probes on one SAE less that on another, mean over k, paired by seed."""
    rows = pick(rows, kind="probe")
    named = longest(rows)
    one, other = ({key: named.get(value, value) for key, value in which.items()} for which in (one, other))
    seeds = dict.fromkeys(row["seed"] for row in rows)
    pairs = [[mean_of(rows, "f1", seed=seed, **which).mean for which in (one, other)] for seed in seeds]
    found = over_seeds(a - b for a, b in pairs if a == a and b == b)
    if not found.n or one == other:
        return None
    means = " and ".join(f"{mean_of(rows, 'f1', **which).mean:.3f}" for which in (one, other))
    sizes = ", ".join(str(k) for k in dict.fromkeys(row["k"] for row in rows))
    return _fair(f"F1 with {sizes} latents {means}, difference {found}", found, rows, one, other)


def _fair(measured: str, found: Interval, rows: Rows, *which: dict[str, Any]) -> Found:
    unfair = densities(rows, *which)
    said = f", at l0 {' against '.join(f'{n:.1f}' for n in unfair)}" if unfair else ""
    return Found(measured + said, found, not unfair)
