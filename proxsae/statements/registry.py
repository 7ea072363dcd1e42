"""The registry of statements: label, claim, what implements it, what checks it, and errors that the check must see.

A statement about an operator is checked by the laws it names.  One about the iteration or a certificate brings a check
of its own, which draws random and adversarial problems and runs the functions of a `Kit`: the package itself, or the
package with one function replaced by a planted error.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Check = Callable[["Kit", np.random.Generator], None]


class Kit:
    """The functions under test: the public names of proxsae and those of `proxsae.theory`, some replaced."""

    def __init__(self, **planted: Any) -> None:
        self.__dict__.update(planted)

    def __getattr__(self, name: str) -> Any:
        theory = importlib.import_module("proxsae.theory")
        return getattr(theory if hasattr(theory, name) else importlib.import_module("proxsae"), name)


@dataclass(frozen=True)
class Statement:
    """One citable statement.

    label    permanent, never renamed; its prefix says what it is: def, lem, prop, thm, or false
    claim    hypotheses and claim in one sentence
    page     the page under docs/theory that proves it
    source   where it stands in the literature, or "own"
    code     what implements it: dotted names below proxsae
    laws     the operator laws that check it
    check    a check of its own; raises AssertionError
    on_paper why no solver proves it: what makes it more than a scalar claim
    no_check why nothing checks it, where nothing does
    """

    label: str
    claim: str
    page: str
    source: str
    code: tuple[str, ...] = ()
    laws: tuple[str, ...] = ()
    check: Check | None = None
    on_paper: str = ""
    no_check: str = ""


@dataclass(frozen=True)
class Planted:
    """An error that the check of a statement must see: some functions of the kit, replaced."""

    name: str
    killed_by: str
    functions: dict[str, Any]


STATEMENTS: dict[str, Statement] = {}
PLANTED: list[Planted] = []


def statement(label: str, claim: str, **details: Any) -> Callable[[Check], Check]:
    """Register a statement; used as a decorator, the function below becomes its check."""
    assert label not in STATEMENTS, label
    STATEMENTS[label] = Statement(label, claim, **details)

    def attach(check: Check) -> Check:
        STATEMENTS[label] = replace(STATEMENTS[label], check=check)
        return check

    return attach


def plant(name: str, killed_by: str, **functions: Any) -> None:
    """Register a planted error for the check of the statement `killed_by`."""
    PLANTED.append(Planted(name, killed_by, functions))


def insist(holds: Any, message: str) -> None:
    """Raise AssertionError with a message unless all of `holds` is true."""
    if not np.all(holds):
        raise AssertionError(message)


def planted(R: Any, prox: Callable[..., Any]) -> Any:
    """A copy of the penalty R whose `prox(u, step)` is another function."""
    wrong = replace(R)
    object.__setattr__(wrong, "prox", prox)
    return wrong


def problem(label: str, planted: dict[str, Any] | None = None, seed: int = 0) -> str | None:
    """What the check of a statement says, with some functions replaced: None where it passes."""
    try:
        run(label, Kit(**(planted or {})), seed)
    except AssertionError as broken:
        return str(broken) or "it fails"
    return None


def run(label: str, kit: Kit | None = None, seed: int = 0) -> None:
    """Run the check of a statement; raises AssertionError where it fails."""
    check = STATEMENTS[label].check
    assert check is not None, f"{label} has no check of its own"
    check(kit or Kit(), np.random.default_rng(seed))
