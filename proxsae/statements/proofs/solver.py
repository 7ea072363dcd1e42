"""What a machine proof is, how it is registered, proved over all reals, and how its planted error is refuted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from proxsae.statements.proofs.arithmetic import AtPoint, RealArithmetic

# A case is (hypotheses, conclusion); a conclusion is one formula, or several that are all claimed.
Case = tuple[list[Any], Any]
Goal = Case | list[Case]

WHOLE = "the whole claim, per entry"  # the scope of a proof that leaves nothing of its statement to paper


@dataclass(frozen=True)
class Proof:
    """A claim that z3 proves over all reals, and a false variant of it that z3 refutes.

    name        what is claimed of which operator: "prox-l1-nonneg"
    statement   the label it belongs to
    scope       how much of that statement it proves: `WHOLE`, or the special case, such as "one latent" or "P <= 3"
    claim       one sentence
    goal        hypotheses and conclusion, written in the arithmetic it is given
    wrong_name  the error planted in the false variant
    wrong       the false variant
    """

    name: str
    statement: str
    scope: str
    claim: str
    goal: Callable[[Any], Goal]
    wrong_name: str
    wrong: Callable[[Any], Goal]


PROOFS: dict[str, Proof] = {}


def add(name: str, statement: str, scope: str, claim: str, goal: Any, wrong_name: str, wrong: Any) -> None:
    """Register a proof."""
    assert name not in PROOFS, name
    PROOFS[name] = Proof(name, statement, scope, claim, goal, wrong_name, wrong)


def prove(proof: Proof) -> float:
    """Prove the claim over all reals and return the seconds of processor time.

    Raises AssertionError with a counterexample if the claim is false, with 'unknown' if z3 gives up, and with
    'vacuous' if no numbers fulfil the hypotheses; `Error` if z3 is not installed.
    """
    began = time.process_time()
    point = _search(proof.name, proof.goal, vacuous_is_an_error=True)
    if point is not None:
        msg = f"{proof.name} is refuted by {_shown(point)}: {proof.claim}"
        raise AssertionError(msg)
    return time.process_time() - began


def refute(proof: Proof) -> dict[str, str]:
    """Refute the planted variant: return numbers that violate it, as z3 finds them and NumPy's floats confirm.

    Raises AssertionError if the variant is proved, or if the numbers do not violate it when worked out in floats.
    """
    point = _search(f"{proof.name} ({proof.wrong_name})", proof.wrong)
    if point is None:
        msg = f"{proof.name}: the planted error '{proof.wrong_name}' was proved"
        raise AssertionError(msg)
    if not violated(proof.wrong, point):
        msg = f"{proof.name}: in floats {_shown(point)} does not violate the planted error '{proof.wrong_name}'"
        raise AssertionError(msg)
    return {name: str(value) for name, value in point.items()}


def violated(goal: Callable[[Any], Goal], point: dict[str, Fraction]) -> bool:
    """Whether a case of the goal fails at a point, computed in floats without z3."""
    with np.errstate(all="ignore"):  # in branches not taken
        cases = _cases(goal(AtPoint(point)))
    return any(all(hypotheses) and not all(_parts(conclusion)) for hypotheses, conclusion in cases)


def _search(name: str, goal: Callable[[Any], Goal], vacuous_is_an_error: bool = False) -> dict[str, Fraction] | None:
    """A point at which the goal fails, or None if there is none."""
    o, unknown = RealArithmetic(), False
    for hypotheses, conclusion in _cases(goal(o)):
        if vacuous_is_an_error and o.check(hypotheses)[0] != "sat":
            msg = f"{name} is vacuous: no numbers are known to fulfil its hypotheses"
            raise AssertionError(msg)
        verdict, point = o.counterexample(hypotheses, o.both(*_parts(conclusion)))
        if verdict == "sat":
            return point
        unknown |= verdict == "unknown"
    if unknown:
        msg = f"{name}: unknown, z3 gives up"
        raise AssertionError(msg)
    return None


def _cases(goal: Goal) -> list[Case]:
    return goal if isinstance(goal, list) else [goal]


def _parts(conclusion: Any) -> tuple[Any, ...]:
    return conclusion if isinstance(conclusion, tuple) else (conclusion,)


def _shown(point: dict[str, Fraction]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in point.items())
