"""The k-sparse constraint: keep the largest magnitudes, of each row or of the whole batch.

    KSparse       R(z) = 0 if ||z||_0 <= k, else infinity
                  prox_{mu R}(u) = u on the k largest |u_i|, 0 elsewhere, for every mu           (thm-prox-ksparse)
    BatchKSparse  R(Z) = 0 if all B rows together have at most k B non-zeros, else infinity
                  prox_{mu R}(U) = U on its k B largest magnitudes, 0 elsewhere                  (thm-prox-batch)

Where magnitudes tie at the boundary every choice is a minimiser; by convention the lowest index is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from proxsae.penalties.base import Floats, Penalty


@dataclass(frozen=True, eq=False)
class KSparse(Penalty):
    """At most k non-zeros: the projection keeps the k largest |u|: AbsTopK, and with `nonneg` TopK.

    k: a whole number >= 0.  k >= P keeps everything; with `nonneg`, fewer than k positive entries keep only those.
    Statement: thm-prox-ksparse (Beck and Eldar 2013, section 2; Zhu, Khalili and Zhu 2025, Lemma 1); how far it moves
    a code: lem-ksparse-error, lem-hard-factor-two; its supports nest: lem-nested; longer steps: thm-restricted-descent.

    >>> KSparse(k=2).prox(np.array([1.0, -3.0, 2.0, -2.0]))
    array([ 0., -3.,  2.,  0.])
    """

    k: int
    nonneg: bool = False

    convex = False
    separable = False
    indicator = True
    affine = True
    statement = "thm-prox-ksparse"
    domain: ClassVar = {"k": "whole >= 0"}

    def _value(self, z: Floats) -> Floats:
        return np.where((z != 0).sum(axis=-1) <= self.k, 0.0, np.inf)

    def _prox(self, u: Floats, step: float | Floats) -> Floats:
        return keep_largest(u, self.k)


@dataclass(frozen=True, eq=False)
class BatchKSparse(Penalty):
    """At most k non-zeros per row on average over the batch: the projection behind BatchTopK (Bussmann et al. 2024).

    All leading axes are the batch of B rows, and its k B largest |u| are kept; the lowest flat index among ties.  The
    value is 0 for every row, or infinity for every row.  It couples rows, so `ista` and `solve` refuse it; an SAE takes
    the batch as one vector, with one step size.
    k: a whole number >= 0.  Statement: thm-prox-batch.

    >>> BatchKSparse(k=1).prox(np.array([[1.0, -3.0], [0.5, 2.0], [0.5, -4.0]]))
    array([[ 0., -3.], [ 0., 2.], [ 0., -4.]])
    >>> BatchKSparse(k=1).prox(np.array([[5.0, -3.0], [0.5, 2.0]]))
    array([[ 5., -3.], [ 0., 0.]])
    """

    k: int
    nonneg: bool = False

    convex = False
    separable = False
    indicator = True
    affine = True
    rowwise = False
    statement = "thm-prox-batch"
    domain: ClassVar = {"k": "whole >= 0"}

    def _value(self, z: Floats) -> Floats:
        rows = int(np.prod(z.shape[:-1]))
        return np.full(z.shape[:-1], 0.0 if np.count_nonzero(z) <= self.k * rows else np.inf)

    def _prox(self, u: Floats, step: float | Floats) -> Floats:
        rows = int(np.prod(u.shape[:-1]))
        return keep_largest(u.reshape(-1), self.k * rows).reshape(u.shape)


def keep_largest(u: Floats, k: int) -> Floats:
    """u on its k largest magnitudes along the last axis, 0 elsewhere.

    NaN counts as larger than any number.  Ties at the boundary are kept from the lowest index on.
    """
    width = u.shape[-1]
    if not 0 < k < width or u.size == 0:
        return np.where(u != 0, u, u.dtype.type(0)) if k else np.zeros_like(u)
    size = np.abs(u)
    if (no := np.isnan(u)).any():
        order = np.lexsort((-size, ~no), axis=-1)  # stable: ties stay in the order of their indices
        kept = np.zeros(u.shape, dtype=bool)
        np.put_along_axis(kept, order[..., :k], True, axis=-1)
    else:
        least = np.partition(size, width - k, axis=-1)[..., width - k, None]
        kept, tied = size > least, size == least
        if np.count_nonzero(kept | tied) > k * (u.size // width):
            tied &= np.cumsum(tied, axis=-1) <= k - np.count_nonzero(kept, axis=-1, keepdims=True)
        kept |= tied
    return np.where(kept & (u != 0), u, u.dtype.type(0))
