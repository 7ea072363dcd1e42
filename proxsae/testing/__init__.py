"""Public checks for proximal operators: laws, the inputs they are tried on, and wrong operators that they must catch.

Needs NumPy only; torch is imported when a torch backend is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from proxsae.penalties import L0, L1, KSparse
from proxsae.testing import lattice
from proxsae.testing.compare import assert_close, assert_same, numpy_of
from proxsae.testing.laws import LAWS, NUMPY, Backend, Law, torch_backends
from proxsae.testing.mutants import MUTANTS, Mutant

__all__ = [
    "LAWS",
    "MUTANTS",
    "NUMPY",
    "OPERATORS",
    "Backend",
    "Law",
    "Mutant",
    "Result",
    "assert_close",
    "assert_same",
    "check_law",
    "check_prox",
    "killers",
    "numpy_of",
    "results",
    "torch_backends",
]

_PER_LATENT = np.array([0.5, 0.0, 2.0, 0.125, 0.5])

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
    }.items()
    for nonneg in (False, True)
}


@dataclass(frozen=True)
class Result:
    """One law on one operator in one backend: `problem` is None where it holds."""

    law: str
    operator: str
    backend: str
    problem: str | None


def check_law(law: Law, R: Any, backend: Backend, n: int = 20, seed: int = 0) -> None:
    """Check one law on rows of the operator's threshold lattice; raise AssertionError where it fails."""
    for step in lattice.STEPS:
        for u in lattice.rows(R, step, backend.dtype, n, seed, law.specials):
            law.check(R, backend, u, step)


def results(R: Any, backends: Sequence[Backend] = NUMPY, n: int = 20, seed: int = 0) -> Iterator[Result]:
    """Check every law whose hypotheses R states, and yield one `Result` for each law and backend."""
    for law, backend in _applicable(R, backends):
        try:
            check_law(law, R, backend, n, seed)
            problem = None
        except AssertionError as violation:
            problem = f"{R} breaks the law '{law.name}' ({law.claim}) in {backend.name}: {violation}"
        yield Result(law.name, str(R), backend.name, problem)


def check_prox(R: Any, backends: Sequence[Backend] = NUMPY, n: int = 20, seed: int = 0) -> list[Result]:
    """Check every law whose hypotheses R states on the lattice of its thresholds; return what was checked.

    R has `value(z)` and `prox(u, step)` for rows (..., P), and flags `convex`, `separable`, `indicator`, `nonneg`
    (False where absent).  Raises AssertionError at the first violation, with the law, the input and a better point.

    >>> len(check_prox(L1(0.5))) > 10
    True
    """
    done = []
    for result in results(R, backends, n, seed):
        if result.problem:
            raise AssertionError(result.problem)
        done.append(result)
    return done


def killers(mutant: Mutant, device: str = "cpu") -> list[str]:
    """The names of all laws that reject a mutant."""
    backends = torch_backends(device) if mutant.torch else NUMPY
    return list(dict.fromkeys(result.law for result in results(mutant, backends) if result.problem))


def _applicable(R: Any, backends: Sequence[Backend]) -> Iterator[tuple[Law, Backend]]:
    return ((law, backend) for law in LAWS for backend in backends if law.applies(R, backend))
