"""The k-sparse encoder on dense rows, in NumPy: what the checks of docs/theory/sparse_steps.md compare proxsae with.

Of proxsae it knows the step rules, which are values, and no arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxsae.statements.plain import SHORT, Array, clipped, gradient, keep_largest, longest, top
from proxsae.steps import ExactStep, FixedStep, Lipschitz


def first(u: Array, k: int, nonneg: bool) -> NDArray[np.intp]:
    """The indices, ascending, of the k largest |u|, or max(u, 0) if `nonneg`, of a row."""
    return top(np.maximum(u, 0) if nonneg else np.abs(u), k)


def kept(u: Array, k: int, nonneg: bool) -> Array:
    """The prox of k-sparse at u."""
    return keep_largest(clipped(u, nonneg), k)


@dataclass(frozen=True)
class Walk:
    """T codes of n rows (T, n, P), the step sizes that led to them (T, n), and how often one was halved.

    `decided` (n,) is False for rows with an exact tie between two step sizes, which rounding breaks: a test for descent
    that is an equality, or an optimal face, whose gradient is rounding.
    """

    codes: Array
    mu: Array
    halved: int
    decided: NDArray[np.bool_]


def slope(z: Array, c: Array, D: Array, b: Array) -> Array:
    """The gradient of 1/2 ||c - D z||^2 at one row; a planted error may use b."""
    return gradient(c, D, z)


def everywhere(z: Array, g: Array, k: int, nonneg: bool) -> NDArray[np.bool_]:
    """Where a step may put non-zeros: everywhere."""
    return np.ones(len(z), dtype=bool)


def walk(
    weights: list[Array],
    R: Any,
    T: int,
    rule: Any,
    L: float,
    slope: Callable[..., Array] = slope,
    candidates: Callable[..., Any] = everywhere,
    opened: Callable[..., Array] = kept,
) -> Walk:
    """T steps of the encoder on dense rows, as the docs write them; planted errors replace the last three arguments."""
    x, W_enc, b_enc, D, b = weights
    k, nonneg, halved = R.k, R.nonneg, 0
    largest = SHORT / longest(D)
    codes, sizes = np.zeros((T, len(x), len(D))), np.ones((T, len(x)))
    decided = np.ones(len(x), dtype=bool)
    for i, c in enumerate(x - b):
        codes[0, i], mu = kept(c @ W_enc + b_enc, k, nonneg), largest
        for t in range(1, T):
            z = codes[t - 1, i]
            g = slope(z, c, D, b)
            mask, face = candidates(z, g, k, nonneg), z != 0
            if isinstance(rule, (Lipschitz, FixedStep)):
                mu = rule.mu if isinstance(rule, FixedStep) else 1 / L
            if isinstance(rule, ExactStep):
                face = face if face.any() else opened(-g, k, nonneg) != 0
                h = np.where(face, g, 0)
                move = np.sum((h @ D) ** 2)
                mu = max(np.sum(h**2) / move, 1 / L) if move > 0 else largest
                decided[i] &= np.sum(h**2) > 1e-20 * np.sum(g**2) or not g.any()
            while True:
                new = kept(np.where(mask, z - mu * g, 0), k, nonneg)
                same = isinstance(rule, ExactStep) and np.array_equal(new != 0, face)
                if isinstance(rule, (Lipschitz, FixedStep)) or mu <= 1 / L or same:
                    break
                bent, moved = mu * np.sum(((new - z) @ D) ** 2), np.sum((new - z) ** 2)
                decided[i] &= abs(bent - moved) > 1e-9 * moved or moved == 0
                if bent <= moved:
                    break
                mu, halved = max(mu / 2, 1 / L), halved + 1
            codes[t, i], sizes[t, i] = new, mu
    return Walk(codes, sizes, halved, decided)


def problem(
    rng: np.random.Generator, n: int = 5, d: int = 6, P: int = 20, alike: float = 0.0, bias: float = 0.0
) -> list[Array]:
    """x, W_enc, b_enc, D and b, with atoms of several norms that share a direction if `alike` > 0."""
    D = rng.normal(size=(P, d)) + alike * rng.normal(size=d)
    D *= rng.uniform(0.7, 1.4, size=(P, 1)) / np.linalg.norm(D, axis=1, keepdims=True)
    W_enc = D.T + 0.2 * rng.normal(size=(d, P))
    return [2 * rng.normal(size=(n, d)), W_enc, 0.3 * rng.normal(size=P) + bias, D, rng.normal(size=d)]
