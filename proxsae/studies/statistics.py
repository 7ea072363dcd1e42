"""Statistics of measurements: intervals over seeds and over clusters of examples, tests, and rows by their keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from proxsae.studies.task import Row

RESAMPLES = 2000
# Quantities that lie in [0, 1]: their intervals are cut to [0, 1].
SHARES = frozenset((
    "accuracy", "auc", "balance", "by_probe", "by_tokens", "cosine", "dead", "f1", "fragmented", "iou",
    "negative_down", "negative_up", "negative_zero", "often_two_sided", "opposite", "opposite_best", "positive_down",
    "positive_up", "positive_zero", "reached", "share", "shared", "steered", "steered_other", "two_sided",
))  # fmt: skip


class Interval(NamedTuple):
    """A mean, the ends of its 95 % interval (NaN for a single value, which has none), and the number of values."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        mean, low, high = (f"{a:#.3g}".rstrip(".") for a in self[:3])
        return mean if math.isnan(self.low) else f"{mean} [{low}, {high}]"


def over_seeds(values: Iterable[float], share: bool = False) -> Interval:
    """Student's 95 % interval of a mean over seeds, mean +- t_(0.975, n-1) s / sqrt(n), cut to [0, 1] for a share.

    It is exact for normal values.  It covers what a seed changes, initial weights and batches, and not the choice of
    data.
    """
    a = np.array(list(values), dtype=float)
    if len(a) < 2:
        return Interval(float(a.mean()) if len(a) else math.nan, math.nan, math.nan, len(a))
    half = float(stats.t.ppf(0.975, len(a) - 1) * a.std(ddof=1) / math.sqrt(len(a)))
    low, high = float(a.mean()) - half, float(a.mean()) + half
    if share:
        low, high = max(low, 0.0), min(high, 1.0)
    return Interval(float(a.mean()), low, high, len(a))


def paired_p(differences: Iterable[float]) -> float:
    """Two-sided p-value of Student's test that paired differences, one a seed, have mean 0; 1 for fewer than two."""
    a = np.array(list(differences), dtype=float)
    if len(a) < 2 or not a.any():
        return 1.0
    if a.std(ddof=1) == 0:
        return 0.0
    return float(stats.ttest_1samp(a, 0.0).pvalue)


def bootstrap(clusters: NDArray[np.int64], statistic: Callable[[NDArray[np.int64]], float]) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of `statistic`, given indices of examples, over clusters drawn with replacement.

    clusters (m,) names the cluster of each example.  Examples of one cluster are not independent: resampling them one
    by one would count the same word in five sentences as five words.
    """
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(clusters == name) for name in np.unique(clusters)]
    found = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(len(members), size=len(members))
        found.append(statistic(np.concatenate([members[i] for i in drawn])))
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: rejecting those below 0.05 errs with probability at most 5 %.

    adjusted_(i) = max_{j <= i} min(1, (m - j + 1) p_(j)),  p_(1) <= ... <= p_(m)  (Holm 1979).
    """
    m, largest = len(p_values), 0.0
    adjusted = [0.0] * m
    for rank, i in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def grouped(rows: Iterable[Row], keys: Sequence[str], value: str) -> dict[tuple[Any, ...], Interval]:
    """`over_seeds` of `value` for each combination of `keys`, in the order of the rows that have it."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if row.get(value) is not None:
            found.setdefault(tuple(row[key] for key in keys), []).append(row[value])
    return {key: over_seeds(values, value in SHARES) for key, values in found.items()}


def pick(rows: Iterable[Row], **which: Any) -> list[Row]:
    """The rows for which all of `which` holds."""
    return [row for row in rows if all(row.get(key) == value for key, value in which.items())]


def mean_of(rows: Iterable[Row], value: str, **which: Any) -> Interval:
    """`over_seeds` of each seed's mean of `value`, over the rows that have one and for which all of `which` holds."""
    seeds: dict[Any, list[float]] = {}
    for row in pick(rows, **which):
        if row.get(value) is not None:
            seeds.setdefault(row["seed"], []).append(row[value])
    return over_seeds((float(np.mean(values)) for values in seeds.values()), value in SHARES)


def by_seed(rows: Iterable[Row], value: str, **which: Any) -> dict[int, float]:
    """`value` of the rows for which all of `which` holds, by seed."""
    return {row["seed"]: row[value] for row in pick(rows, **which)}


def ratios(after: dict[int, float], before: dict[int, float]) -> list[float]:
    """log(after / before) for each seed that both have: paired, since a seed is one SAE."""
    return [math.log(after[seed] / before[seed]) for seed in before if seed in after and before[seed] and after[seed]]


def ratio_over_seeds(after: dict[int, float], before: dict[int, float]) -> Interval:
    """The geometric mean of after / before over seeds, with its 95 % interval, computed in logarithms."""
    mean, low, high, n = over_seeds(ratios(after, before))
    return Interval(math.exp(mean), math.exp(low), math.exp(high), n)
