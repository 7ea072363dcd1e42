"""How well one score of a row separates the two sides of a concept, with intervals and tests over words.

Every choice (a latent, its sign, a direction, a threshold) is made on the training side.  The held-out words are only
measured, once, so that no choice biases their numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from proxsae.studies.statistics import Interval, bootstrap

Array = NDArray[np.float64]
FLIPS = 20000  # draws of signs in a permutation test: p-values are at least 1 / (FLIPS + 1)


class Pairs(NamedTuple):
    """Scores of the marked word in pairs of sentences: positive, negative (n, ...) and the words (n,) of each pair."""

    positive: Array
    negative: Array
    words: NDArray[np.int64]


class Reading(NamedTuple):
    """A rule for a score: the concept is on its positive side where sign * score > threshold."""

    sign: float
    threshold: float


def auc(positive: Array, negative: Array) -> Array:
    """P(s+ > s-) + P(s+ = s-) / 2 over all pairs of a positive and a negative row: (n, ...), (m, ...) -> (...).

    The Mann-Whitney statistic over n m, from mid-ranks: 1/2 for a score that is independent of the side, or constant.
    """
    n, m = len(positive), len(negative)
    ranks = rankdata(np.concatenate([positive, negative]), axis=0)[:n].sum(axis=0)
    return np.asarray((ranks - n * (n + 1) / 2) / (n * m))


def best_latent(positive: Array, negative: Array) -> tuple[int, float]:
    """The latent with the largest |AUC - 1/2| of codes (n, P), and the sign that puts the positive side up.

    A latent, signed or not, may be larger on either side of a concept.  Ties take the lowest index.
    """
    found = auc(positive, negative) - 0.5
    j = int(np.argmax(np.abs(found)))
    return j, -1.0 if found[j] < 0 else 1.0


def reading(positive: Array, negative: Array, sign: float = 1.0) -> Reading:
    """The threshold with the best balanced accuracy on these scores (n,), half-way between two of them."""
    up, down = sign * positive, sign * negative
    values = np.unique(np.concatenate([up, down]))
    cuts = (values[:-1] + values[1:]) / 2 if len(values) > 1 else values
    return Reading(sign, float(max(cuts, key=lambda cut: float(_balanced(up, down, cut)))))


def balanced_accuracy(positive: Array, negative: Array, how: Reading) -> float:
    """(P(s > threshold | positive) + P(s <= threshold | negative)) / 2, s the score times its sign."""
    return _balanced(how.sign * positive, how.sign * negative, how.threshold)


def _balanced(up: Array, down: Array, cut: float) -> float:
    return float(((up > cut).mean() + (down <= cut).mean()) / 2)


def difference_in_means(positive: Array, negative: Array) -> Array:
    """DiM: the mean of the positive rows (n, d) minus that of the negative ones, a direction (d,) that needs labels."""
    return np.asarray(positive.mean(axis=0) - negative.mean(axis=0))


def opposite(positive: Array, negative: Array) -> Array:
    """The share of pairs with s+ > 0 and s- < 0: (n, ...), (n, ...) -> (...)."""
    return np.asarray(((positive > 0) & (negative < 0)).mean(axis=0))


def most_opposite(positive: Array, negative: Array) -> tuple[int, float]:
    """The latent with opposite signs in the most pairs of codes (n, P), and the sign that puts the positive side up."""
    found = np.stack([opposite(positive, negative), opposite(negative, positive)])
    j = int(np.argmax(found.max(axis=0)))
    return j, -1.0 if found[1, j] > found[0, j] else 1.0


def sides(positive: Array, negative: Array) -> dict[str, float]:
    """Shares of scores (n,) above, at and below zero on each side.

    The claim about a two-sided concept is that its sides have scores above and below zero.  For a one-sided concept
    `negative_zero` is the share of negative rows on which the score is absent.
    """
    return {
        f"{side}_{name}": float(where.mean())
        for side, score in (("positive", positive), ("negative", negative))
        for name, where in (("up", score > 0), ("zero", score == 0), ("down", score < 0))
    }


def wins(positive: Array, negative: Array, words: NDArray[np.int64]) -> Array:
    """The terms of the AUC by word, (W, W): its sum is n^2 AUC, and entry (v, w) has positives of v, negatives of w."""
    kernel = (np.sign(positive[:, None] - negative[None, :]) + 1) / 2
    of = (np.unique(words)[:, None] == words).astype(float)
    return np.asarray(of @ kernel @ of.T)


def by_words(table: Array, words: NDArray[np.int64]) -> Interval:
    """An AUC, or a difference of two, from its `wins`; its 95 % bootstrap interval over words, and their number."""
    sizes = np.unique(words, return_counts=True)[1]
    every = np.arange(len(sizes))

    def statistic(drawn: NDArray[np.int64]) -> float:
        times = np.bincount(drawn, minlength=len(sizes))
        return float(times @ table @ times / (times @ sizes) ** 2)

    return Interval(statistic(every), *bootstrap(every, statistic), len(sizes))


def pseudo_values(table: Array, words: NDArray[np.int64]) -> Array:
    """The jackknife's W theta - (W - 1) theta_(-w), theta an AUC or a difference of two, from its `wins`: (W,).

    Their sum is W theta up to its bias, and their spread estimates that of theta over words: all rows of a word, on
    both sides, are left out together.
    """
    sizes = np.unique(words, return_counts=True)[1]
    n, number = sizes.sum(), len(sizes)
    left = table.sum() - table.sum(axis=0) - table.sum(axis=1) + np.diag(table)
    return np.asarray(number * table.sum() / n**2 - (number - 1) * left / (n - sizes) ** 2)


def sign_flip_p(values: Array) -> float:
    """Two-sided p-value of sum_w v_w, were every sign a fair coin: (1 + #{|sum s_w v_w| >= |sum v_w|}) / (1 + FLIPS).

    Exact for independent v that are symmetric about 0; for `pseudo_values` an approximation, without a normal
    distribution: one outlying word alone never makes it small.  It is about other words, not about other seeds.
    """
    signs = np.random.default_rng(0).choice(np.array([-1.0, 1.0]), (FLIPS, len(values)))
    as_far = np.abs(signs @ values) >= abs(values.sum()) - 1e-9 * np.abs(values).sum()
    return float((1 + as_far.sum()) / (1 + FLIPS))
