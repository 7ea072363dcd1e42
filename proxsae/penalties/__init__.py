"""The ground floor, NumPy only: one family a file, which is its definition: formula, domain, flags, value, prox."""

from proxsae.penalties.base import Penalty
from proxsae.penalties.ksparse import KSparse
from proxsae.penalties.l0 import L0
from proxsae.penalties.l1 import L1

__all__ = ["L0", "L1", "KSparse", "Penalty"]
