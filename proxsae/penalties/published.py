"""The SAEs that have a name, once: the family of R, the sign of the codes, and the title (prop-one-step-is-an-sae).

It stands with the penalties since it is all that an SAE of that name is; no torch is needed to list them.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxsae.penalties.base import Penalty, lams
from proxsae.penalties.ksparse import BatchKSparse, KSparse
from proxsae.penalties.l0 import L0
from proxsae.penalties.l1 import L1

PROBLEMS: dict[type[Penalty], str] = {L1: "l1", L0: "l0", KSparse: "k-sparse", BatchKSparse: "k-sparse over a batch"}


@dataclass(frozen=True)
class Published:
    """One SAE: the family of its penalty, whether codes are non-negative, and what it is called."""

    family: type[Penalty]
    nonneg: bool
    title: str

    @property
    def long(self) -> str:
        """The title with what it stands for, such as "TopK (k-sparse, z ≥ 0)"."""
        return f"{self.title} ({PROBLEMS[self.family]}{', z ≥ 0' if self.nonneg else ''})"

    def penalty(self, k: int, scale: float) -> Penalty:
        """R for a training that starts: k, or a threshold of `scale`, the deviation of a coordinate of the rows."""
        if self.family is L1:
            return L1(scale, nonneg=self.nonneg)
        if self.family is L0:
            return L0(scale**2 / 2, nonneg=self.nonneg, bandwidth=scale / 2)
        return (KSparse if self.family is KSparse else BatchKSparse)(k, nonneg=self.nonneg)


PUBLISHED = {
    "relu": Published(L1, True, "ReLU"),
    "soft": Published(L1, False, "soft threshold"),
    "jumprelu": Published(L0, True, "JumpReLU"),
    "jumprelu2": Published(L0, False, "two-sided JumpReLU"),
    "topk": Published(KSparse, True, "TopK"),
    "abstopk": Published(KSparse, False, "AbsTopK"),
    "batchtopk": Published(BatchKSparse, True, "BatchTopK"),
    "batchabstopk": Published(BatchKSparse, False, "BatchAbsTopK"),
}


def published_as(R: Penalty) -> Published | None:
    """The entry whose family and sign R has, or None, as for an L0 with two weights."""
    one_weight = "lam_minus" not in lams(R)
    fits = (one for one in PUBLISHED.values() if one_weight and one.family is type(R) and one.nonneg == R.nonneg)
    return next(fits, None)
