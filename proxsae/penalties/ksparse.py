"""The k-sparse constraint: keep the k largest magnitudes.  It is the AbsTopK SAE, and with `nonneg` the TopK SAE.

    R(z) = 0 if ||z||_0 <= k, else infinity
    prox_{mu R}(u) = u on the k largest |u_i|, 0 elsewhere, for every mu                    (thm-prox-ksparse)

Where magnitudes tie at the boundary every choice is a minimiser; the lowest index is the one named here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from proxsae.conventions import check_count
from proxsae.penalties.base import Floats, Penalty


@dataclass(frozen=True, eq=False)
class KSparse(Penalty):
    """At most k non-zeros: the projection keeps the k largest |u|: AbsTopK, and with `nonneg` TopK.

    k: a whole number >= 0.  k >= P keeps everything; with `nonneg`, fewer than k positive entries keep only those.
    Statement: thm-prox-ksparse (Beck and Eldar 2013, section 2; Zhu, Khalili and Zhu 2025, Lemma 1).

    >>> KSparse(k=2).prox(np.array([1.0, -3.0, 2.0, -2.0]))
    array([ 0., -3.,  2.,  0.])
    """

    k: int
    nonneg: bool = False

    convex = False
    separable = False
    indicator = True
    statement = "thm-prox-ksparse"

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", check_count("KSparse: k", self.k, 0))

    def _value(self, z: Floats) -> Floats:
        return np.where((z != 0).sum(axis=-1) <= self.k, 0.0, np.inf)

    def _prox(self, u: Floats, step: float | Floats) -> Floats:
        # A stable sort by (NaN first, magnitude descending) leaves ties in index order: the tie rule, read off.
        order = np.lexsort((-np.abs(u), ~np.isnan(u)), axis=-1)
        kept = np.zeros(u.shape, dtype=bool)
        np.put_along_axis(kept, order[..., : self.k], True, axis=-1)
        return np.where(kept & (u != 0), u, u.dtype.type(0))
