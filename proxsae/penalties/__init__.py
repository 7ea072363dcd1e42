"""Penalties, in NumPy only.  Each file defines its family: formula, domain of the parameters, flags, value, prox."""

from proxsae.penalties.base import Penalty
from proxsae.penalties.elastic import ElasticNet
from proxsae.penalties.group import GroupL2, SortedL1
from proxsae.penalties.ksparse import BatchKSparse, KSparse
from proxsae.penalties.l0 import L0
from proxsae.penalties.l1 import L1
from proxsae.penalties.nonconvex import MCP, SCAD
from proxsae.penalties.scalar import Separable

FAMILIES = {family.__name__: family for family in (
    L1, L0, KSparse, ElasticNet, MCP, SCAD, GroupL2, SortedL1, BatchKSparse
)}  # fmt: skip

__all__ = [  # noqa: RUF022  (in the order of the docs)
    "L1", "L0", "KSparse", "ElasticNet", "MCP", "SCAD", "GroupL2", "SortedL1", "BatchKSparse",
    "FAMILIES", "Penalty", "Separable",
]  # fmt: skip
