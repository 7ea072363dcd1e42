"""Public checks for proximal operators: laws, the inputs they are tried on, and wrong operators that they must catch.

Needs NumPy only; torch, pytest, Hypothesis and z3 are each imported when something asks for them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from proxsae.penalties import L0, L1, MCP, SCAD, BatchKSparse, ElasticNet, GroupL2, KSparse, SortedL1
from proxsae.testing import lattice
from proxsae.testing.checker import (
    Better,
    LawViolation,
    Result,
    check_backend,
    check_law,
    check_prox,
    parametrize_with_laws,
    results,
    violation,
)
from proxsae.testing.compare import assert_close, assert_same, numpy_of
from proxsae.testing.laws import LAWS, NUMPY, Backend, Law, torch_backends
from proxsae.testing.mutants import MUTANTS, Mutant
from proxsae.testing.operators import Operator, operator

if TYPE_CHECKING:
    from proxsae.testing import strategies

__all__ = [  # noqa: RUF022  (grouped by what they are)
    # check an operator
    "check_prox", "check_law", "check_backend", "operator", "Operator", "parametrize_with_laws", "strategies",
    "LawViolation", "Better", "Result",
    # laws and what they run on
    "LAWS", "Law", "Backend", "NUMPY", "torch_backends", "OPERATORS", "lattice", "results", "violation",
    # the laws can fail
    "MUTANTS", "Mutant", "killers",
    # comparing arrays
    "assert_same", "assert_close", "numpy_of",
]  # fmt: skip

# Loaded when asked for; the last two live beside `testing`, and keep the names by which they were published.
_ELSEWHERE = {
    "strategies": "proxsae.testing.strategies",
    "statements": "proxsae.statements",
    "proofs": "proxsae.statements.proofs",
}

_PER_LATENT = np.array([0.5, 0.0, 2.0, np.inf, 0.5])  # the fourth latent is switched off
_FALLING = np.array([2.0, 0.5, 0.5, 0.125, 0.0])

OPERATORS: dict[str, Any] = {
    f"{family}{' nonneg' if nonneg else ''}": make(nonneg)
    for family, make in {
        "L1": lambda nonneg: L1(0.5, nonneg),
        "L1 per latent": lambda nonneg: L1(_PER_LATENT, nonneg),
        "L0": lambda nonneg: L0(0.5, nonneg),
        "L0 per latent": lambda nonneg: L0(_PER_LATENT, nonneg),
        "KSparse k=2": lambda nonneg: KSparse(2, nonneg),
        "KSparse k=0": lambda nonneg: KSparse(0, nonneg),
        "KSparse k=9": lambda nonneg: KSparse(9, nonneg),
        "ElasticNet": lambda nonneg: ElasticNet(0.5, 0.75, nonneg),
        "ElasticNet per latent": lambda nonneg: ElasticNet(_PER_LATENT, 0.75, nonneg),
        "MCP": lambda nonneg: MCP(0.5, 1.5, nonneg),
        "MCP per latent": lambda nonneg: MCP(_PER_LATENT, 2.0, nonneg),  # one of the steps is gamma itself
        "SCAD": lambda nonneg: SCAD(0.5, 2.5, nonneg),
        "SCAD per latent": lambda nonneg: SCAD(_PER_LATENT, 3.0, nonneg),  # one of the steps is a - 1
        "SCAD a=4": lambda nonneg: SCAD(0.5, 4.0, nonneg),  # one of the steps is a + 1
        "GroupL2 size=2": lambda nonneg: GroupL2(0.5, 2, nonneg),
        "GroupL2 off": lambda nonneg: GroupL2(np.inf, 2, nonneg),
        "SortedL1": lambda nonneg: SortedL1(_FALLING, nonneg),
        "SortedL1 one lam": lambda nonneg: SortedL1(0.5, nonneg),
        "SortedL1 off": lambda nonneg: SortedL1(np.array([np.inf, 2.0, 0.5]), nonneg),
        "BatchKSparse k=1": lambda nonneg: BatchKSparse(1, nonneg),
    }.items()
    for nonneg in (False, True)
} | {
    "L0 two weights": L0(0.5, lam_minus=2.0),
    "L0 two weights per latent": L0(_PER_LATENT, lam_minus=_PER_LATENT[::-1].copy()),
    "L0 negative off": L0(0.5, lam_minus=np.inf),
    "L0 positive off": L0(np.inf, lam_minus=0.5),
}


def killers(mutant: Mutant, device: str = "cpu") -> list[str]:
    """The names of all laws that reject a mutant."""
    backends = torch_backends(device) if mutant.torch else NUMPY
    return list(dict.fromkeys(result.law for result in results(mutant, backends) if result.violation))


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        return importlib.import_module(_ELSEWHERE[name])
    msg = f"module 'proxsae.testing' has no attribute {name!r}"
    raise AttributeError(msg)
