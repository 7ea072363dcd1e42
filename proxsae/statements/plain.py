"""The textbook in plain NumPy: the formulas by which the checks of statements judge the library.

It imports nothing of proxsae, so that no check compares the library with itself; the checks share it, so that a formula
stands once.  Atoms are the rows of D (P, d), and D z of the pages is `z @ D`; c is x - b, and the last axis of z
(..., P) is the code.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Numbers = Array | float
SHORT = 1 - 2.0**-12  # backtracking starts at SHORT / max_j ||d_j||^2


def clipped(u: Array, nonneg: bool) -> Array:
    """max(u, 0) if `nonneg`, else u."""
    return np.maximum(u, 0) if nonneg else u


def soft(u: Array, t: Numbers) -> Array:
    """sign(u) max(|u| - t, 0)."""
    return np.sign(u) * np.maximum(np.abs(u) - t, 0)


def hard(u: Array, t: Numbers) -> Array:
    """u where |u| > t, and 0 elsewhere, where |u| = t too."""
    return np.where(np.abs(u) > t, u, 0.0)


def top(key: Any, k: int) -> NDArray[np.intp]:
    """The indices, ascending, of the k largest keys of each row: NaN above all, the lowest index first among ties."""
    nan = np.isnan(key)
    return np.sort(np.lexsort((np.where(nan, 0, -key), ~nan), axis=-1)[..., :k], axis=-1)


def among_largest(key: Array, k: int) -> NDArray[np.bool_]:
    """The mask of `top`."""
    mask = np.zeros(key.shape, dtype=bool)
    np.put_along_axis(mask, top(key, k), True, axis=-1)
    return mask


def keep_largest(u: Array, k: int, key: Array | None = None) -> Array:
    """u where `key`, by default |u|, is among the k largest of its row, and 0 elsewhere; -0.0 becomes 0."""
    return np.where(among_largest(np.abs(u) if key is None else key, k), u, 0.0) + 0.0


def squared_norm(D: Array) -> float:
    """L = ||D||_2^2, the square of the largest singular value."""
    return float(np.linalg.norm(D, 2)) ** 2


def longest(D: Array) -> float:
    """max_j ||d_j||^2."""
    return float((D**2).sum(axis=1).max())


def restricted_lipschitz(D: Array, s: int) -> float:
    """L_s = max ||D_S||_2^2 over |S| <= s, over all supports S."""
    supports = np.array(list(itertools.combinations(range(len(D)), min(s, len(D)))))
    return float(np.linalg.norm(D[supports], 2, axis=(1, 2)).max() ** 2)


def cosines(D: Array) -> Array:
    """<d_i, d_j> / (||d_i|| ||d_j||) of the pairs i < j, 0 where an atom is 0."""
    norms = np.linalg.norm(D, axis=1, keepdims=True)
    U = D / np.where(norms > 0, norms, 1)
    return (U @ U.T)[np.triu_indices(len(D), 1)]


def unit(D: Array) -> Array:
    """The atoms divided by their norms."""
    return D / np.linalg.norm(D, axis=1, keepdims=True)


def squared_error(c: Array, D: Array, z: Array) -> Any:
    """||c - D z||^2, row by row."""
    return ((c - z @ D) ** 2).sum(axis=-1)


def gradient(c: Array, D: Array, z: Array) -> Array:
    """D^T (D z - c), the gradient of 1/2 ||c - D z||^2, row by row."""
    return (z @ D - c) @ D.T


def l1_objective(c: Array, D: Array, z: Array, lam: Numbers) -> Any:
    """F(z) = 1/2 ||c - D z||^2 + sum_j lam_j |z_j|, row by row."""
    return 0.5 * squared_error(c, D, z) + (lam * np.abs(z)).sum(axis=-1)


def extrapolations() -> Iterator[float]:
    """(tau_k - 1) / tau_(k+1) for k = 1, 2, ..., where tau_1 = 1 and tau_(k+1) = (1 + sqrt(1 + 4 tau_k^2)) / 2."""
    tau = 1.0
    while True:
        after = (1 + np.sqrt(1 + 4 * tau**2)) / 2
        yield (tau - 1) / after
        tau = after


@dataclass(frozen=True)
class Case:
    """A penalty under test, `R`, beside its formulas.

    "L1"       sum lam_j |z_j| + alpha/2 ||z||^2, the elastic net where alpha > 0
    "L0"       sum lam_j 1[z_j != 0]
    "KSparse"  0 if ||z||_0 <= k, else infinity
    """

    R: Any
    family: str
    lam: Numbers
    k: int
    nonneg: bool
    alpha: float = 0.0

    @property
    def name(self) -> str:
        """The family and its sign, for messages."""
        return type(self.R).__name__ + (" nonneg" if self.nonneg else "")

    @property
    def convex(self) -> bool:
        """Whether R is convex."""
        return self.family == "L1"

    def prox(self, u: Array, mu: float) -> Array:
        """soft(u, mu lam) / (1 + mu alpha), hard(u, sqrt(2 mu lam)), or the k largest |u|; nonneg: of max(u, 0)."""
        u = clipped(u, self.nonneg)
        if self.family == "L1":
            return soft(u, mu * self.lam) / (1 + mu * self.alpha)
        return hard(u, np.sqrt(2 * mu * self.lam)) if self.family == "L0" else keep_largest(u, self.k)

    def value(self, z: Array) -> float:
        """R(z) of one row, infinite outside the domain."""
        if (self.nonneg and (z < 0).any()) or (self.family == "KSparse" and np.count_nonzero(z) > self.k):
            return np.inf
        weight = {"L1": np.abs(z), "L0": 1.0 * (z != 0), "KSparse": 0 * z}[self.family]
        return float(np.sum(self.lam * weight) + self.alpha / 2 * np.sum(z**2))

    def objective(self, c: Array, D: Array, z: Array) -> float:
        """F(z) = 1/2 ||c - D z||^2 + R(z) of one row."""
        return float(0.5 * squared_error(c, D, z)) + self.value(z)

    def slope(self, z: Array) -> Array:
        """The derivative of R on the support of z, with the signs of z."""
        return self.lam * np.sign(z) if self.family == "L1" else 0 * z


def cases(kit: Any, lam: Numbers, k: int) -> Iterator[Case]:
    """L1, L0 and KSparse of the kit, signed and nonneg."""
    for nonneg in (False, True):
        yield Case(kit.L1(lam, nonneg), "L1", lam, k, nonneg)
        yield Case(kit.L0(lam, nonneg), "L0", lam, k, nonneg)
        yield Case(kit.KSparse(k, nonneg), "KSparse", lam, k, nonneg)


def independent(D: Array, most: int) -> Iterator[tuple[list[int], Array]]:
    """The supports S of at most `most` latents whose atoms D_S have full rank, and D_S: some optimum has such a one."""
    for size in range(1, min(most, *D.shape) + 1):
        for S in map(list, itertools.combinations(range(len(D)), size)):
            if np.linalg.matrix_rank(D[S]) == size:
                yield S, D[S]


def l1_optimum(c: Array, D: Array, lam: Numbers, nonneg: bool) -> Array:
    """A minimiser of 1/2 ||c - D z||^2 + sum_j lam_j |z_j|: the best over all supports of full rank and all signs."""
    P, best, least = len(D), np.zeros(len(D)), 0.5 * float(c @ c)
    lam = np.broadcast_to(lam, P)
    for S, A in independent(D, P):
        signs = np.array(list(itertools.product([1.0] if nonneg else [1.0, -1.0], repeat=len(S))))
        codes = np.linalg.solve(A @ A.T, (A @ c)[:, None] - (lam[S] * signs).T).T
        for z in codes[(codes * signs > 0).all(axis=1)]:
            value = float(l1_objective(c, A, z, lam[S]))
            if value < least:
                best, least = np.zeros(P), value
                best[S] = z
    return best


def hard_optimum(c: Array, D: Array, lam: Numbers, k: int, nonneg: bool) -> Array:
    """A minimiser of 1/2 ||c - D z||^2 + sum lam_j 1[z_j != 0] over ||z||_0 <= k: least squares on every support."""
    P, best, least = len(D), np.zeros(len(D)), 0.5 * float(c @ c)
    lam = np.broadcast_to(lam, P)
    for S, A in independent(D, k):
        z = np.linalg.lstsq(A.T, c, rcond=None)[0]
        value = float(0.5 * squared_error(c, A, z) + np.sum(lam[S]))
        if value < least and (not nonneg or (z > 0).all()):
            best, least = np.zeros(P), value
            best[S] = z
    return best


def degenerate(D: Array) -> Array:
    """The atoms D with the last three replaced: a duplicate of the first, the negated second, and 0."""
    return np.concatenate([D[:-3], [D[0], -D[1], 0 * D[0]]])


def dictionaries(rng: np.random.Generator, P: int, d: int) -> Iterator[Array]:
    """Yield P random atoms in R^d, then degenerate ones, then atoms in R^(P + 2), which are independent."""
    yield rng.normal(size=(P, d))
    yield degenerate(rng.normal(size=(P, d)))
    yield rng.normal(size=(P, P + 2))
