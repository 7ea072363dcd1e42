"""Planted codes as in SynthSAEBench: Zipf firing, trees of latents, exclusive children, correlated supports.

`planted(kind="synthsae")` says what is drawn.  The constants are those of the second version of the benchmark, as
sae-lens 6.54 makes it, where 16,384 latents have 128 trees and 34.5 non-zeros a row.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from proxsae.conventions import Error

Floats = NDArray[np.float64]

ROOT_SHARE, BRANCHES, DEPTH = 128, 4, 3  # one tree for so many latents, children a parent, levels below the root
EXPONENT, COMMONEST, RAREST = 0.5, 0.4, 5e-4  # of the probabilities that a latent fires
FIRST, LAST = 5.0, 4.0  # mean magnitudes, linear in the index of the latent
SPREAD = 0.5  # of the deviations |N(0.5, 0.5^2)| of the magnitudes
RANK, STRENGTH = 25, 0.1  # of the factors that correlate supports
BIAS = 0.5  # its norm
ROUNDS, RATE = 100, 3e-4  # steps of Adam that make atoms more orthogonal, and their rate


class Synthetic:
    """A distribution of codes (d_sae,) with k non-zeros on average, and the bias (d_in,) of the rows.

    asked: the probabilities that latents are drawn with, before parents and siblings switch some off.
    Raises `Error` where k needs a probability above 1.
    """

    def __init__(self, d_in: int, d_sae: int, k: int) -> None:
        rng = np.random.default_rng([d_in, d_sae])  # by the sizes alone: rows of every seed are of one problem
        self.means = np.linspace(FIRST, LAST, d_sae)
        self.deviations = np.abs(SPREAD + SPREAD * rng.standard_normal(d_sae))
        self.loadings = STRENGTH * rng.standard_normal((d_sae, RANK))
        shared = (self.loadings**2).sum(axis=1, keepdims=True)
        self.loadings *= np.sqrt(np.minimum(1, 0.99 / shared))
        self.own = np.sqrt(1 - (self.loadings**2).sum(axis=1))
        bias = rng.standard_normal(d_in)
        self.bias = BIAS * bias / np.linalg.norm(bias)
        self.levels = _levels(d_sae)
        often = zipf(d_sae) / COMMONEST
        self.asked = self._compensated(often)
        most = float(self.expected().sum())
        if k > most:
            msg = f"k={k} must be at most {most:.4g} where d_sae={d_sae}: the commonest latent then fires in every row"
            raise Error(msg)
        for free in (self.levels[0], slice(self.levels[-1].stop, d_sae)):  # the others fire with their parents
            self.asked[free] *= k / most

    def _compensated(self, wanted: Floats) -> Floats:
        """The probabilities to draw with, at most 1, so that about `wanted` is left by parents and by siblings."""
        asked = wanted.copy()
        for parents, children in itertools.pairwise(self.levels):
            siblings = _families(wanted, children)
            given_parent = siblings / wanted[parents][: len(siblings), None]
            competitors = given_parent.sum(axis=-1, keepdims=True) - given_parent
            asked[children] = _flat(given_parent * (1 + competitors), children)
        return np.minimum(asked, 1)

    def expected(self) -> Floats:
        """How often each latent fires, (d_sae,): exact, but for correlations.

        Of N exclusive siblings that were drawn beside a child it survives with probability 1 / (1 + N), whose mean
        is the integral over t in (0, 1) of the product of 1 - q + q t over the other siblings' probabilities q.
        """
        fires: Floats = self.asked * ndtr(self.means / self.deviations)  # a magnitude <= 0 is none
        nodes, weights = np.polynomial.legendre.leggauss(BRANCHES)
        t = (nodes[:, None, None] + 1) / 2
        for parents, children in itertools.pairwise(self.levels):
            q = _families(fires, children)
            factors = 1 - q + q * t
            survives = [weights / 2 @ np.delete(factors, i, axis=-1).prod(axis=-1) for i in range(BRANCHES)]
            alive = fires[parents][: len(q), None] * q * np.stack(survives, axis=-1)
            fires[children] = _flat(alive, children)
        return fires

    def codes(self, rng: np.random.Generator, n: int) -> Floats:
        """n codes (n, d_sae), non-negative."""
        scores = rng.standard_normal((n, RANK)) @ self.loadings.T
        scores += self.own * rng.standard_normal(scores.shape)
        rows, latents = np.nonzero(scores > -ndtri(self.asked))
        z = np.zeros_like(scores)
        drawn = self.means[latents] + self.deviations[latents] * rng.standard_normal(len(latents))
        z[rows, latents] = np.maximum(drawn, 0)
        for parents, children in itertools.pairwise(self.levels):
            family = _families(z, children)
            family *= (z[:, parents] / self.means[parents])[:, : family.shape[1], None]
            lots = np.where(family > 0, rng.random(family.shape), 0)
            family *= lots == lots.max(axis=-1, keepdims=True)
            z[:, children] = _flat(family, children)
        return z


def zipf(d_sae: int) -> Floats:
    """Firing probabilities (d_sae,): a power law of the index, stretched so that it begins and ends as given above."""
    law: Floats = np.arange(1.0, d_sae + 1) ** -EXPONENT
    if d_sae == 1:
        return np.array([COMMONEST])
    falling: Floats = (law - law[-1]) / (law[0] - law[-1])
    return RAREST + (COMMONEST - RAREST) * falling


def _levels(d_sae: int) -> list[slice]:
    """The latents of the roots, of their children, and so on: level by level, as far as there are latents."""
    levels, start, size = [], 0, max(1, d_sae // ROOT_SHARE)
    for _ in range(DEPTH + 1):
        levels.append(slice(min(start, d_sae), min(start + size, d_sae)))
        start, size = start + size, size * BRANCHES
    return levels


def _families(a: Floats, children: slice) -> Floats:
    """A copy of a's entries at `children`, siblings together: (..., parents that have some, BRANCHES), 0 where none."""
    count = children.stop - children.start
    parents = -(-count // BRANCHES)
    families = np.zeros((*a.shape[:-1], parents * BRANCHES))
    families[..., :count] = a[..., children]
    return families.reshape(*a.shape[:-1], parents, BRANCHES)


def _flat(families: Floats, children: slice) -> Floats:
    """The entries of `_families`, side by side."""
    *rows, parents, _ = families.shape
    return families.reshape(*rows, parents * BRANCHES)[..., : children.stop - children.start]


def spread_atoms(D: Floats) -> Floats:
    """The atoms D (d_sae, d_in) of norm 1 after some steps of Adam that make them more orthogonal.

    Adam lowers  sum_{i != j} <d_i, d_j>^2 + d_sae sum_i (|d_i|^2 - 1)^2;  at the end the atoms have norm 1 again.
    """
    mean, square, one = np.zeros_like(D), np.zeros_like(D), np.eye(len(D))
    for t in range(1, ROUNDS + 1):
        excess = D @ D.T - one
        gradient = 4 * (excess @ D + (len(D) - 1) * np.diagonal(excess)[:, None] * D)
        mean += 0.1 * (gradient - mean)
        square += 0.001 * (gradient**2 - square)
        D = D - RATE * (mean / (1 - 0.9**t)) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
    return D / np.linalg.norm(D, axis=1, keepdims=True)
