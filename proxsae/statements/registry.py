"""The registry of statements: label, claim, what implements it, what checks it, and errors that the check must catch.

A statement about an operator is checked by the laws it names.  One about the iteration or a certificate brings a check
of its own, which draws random and adversarial problems and runs the functions of a `Kit`: those of the package, or the
same with some of them replaced by planted errors.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from proxsae import theory
from proxsae.conventions import Error
from proxsae.penalties import KSparse
from proxsae.statements.plain import Array, clipped

Check = Callable[["Kit", np.random.Generator], None]


class Kit(SimpleNamespace):
    """What a check tests: the public names of proxsae and the functions of `proxsae.theory`, with some replaced.

    It also has `plan`, `among_all` and `certified_topk`, which statements are about and which proxsae does not export.
    Raises `Error` for other names.

    >>> import proxsae
    >>> Kit(lipschitz=len).lipschitz is len, Kit(lipschitz=len).coherence is proxsae.coherence
    (True, True)
    """

    def __init__(self, **replaced: Any) -> None:
        package = importlib.import_module("proxsae")
        certified_topk = importlib.import_module("proxsae.pytorch.certified_topk")
        names = {name: getattr(package, name) for name in package.__all__}
        names |= {name: f for name, f in vars(theory).items() if callable(f)}
        names |= {"plan": importlib.import_module("proxsae.pytorch.cost_model").plan}
        names |= {"among_all": importlib.import_module("proxsae.sae.team").among_all, "certified_topk": certified_topk}
        if unknown := sorted(replaced.keys() - names):
            msg = f"no check uses {', '.join(unknown)}: a planted error replaces a public name of proxsae"
            raise Error(msg)
        super().__init__(**names | replaced)


@dataclass(frozen=True)
class Statement:
    """One citable statement.

    label     permanent, never renamed; its prefix says what it is: def, lem, prop, thm, or false
    claim     hypotheses and claim in one sentence
    page      the page under docs/theory that proves it
    source    where it stands in the literature, or "own"
    code      what implements it: dotted names below proxsae
    laws      the operator laws that check it
    check     a check of its own; raises AssertionError
    on_paper  why no solver proves it: what makes it more than a scalar claim
    no_check  why nothing checks it, for a statement without law and check
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
    """An error that the check of a statement must catch: functions that replace those of the kit."""

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


def page(name: str, **details: Any) -> Callable[..., Callable[[Check], Check]]:
    """The decorator `statement` for the statements of one page of docs/theory, which share `details`."""
    return partial(statement, page=name, **details)


def plant(name: str, killed_by: str, **functions: Any) -> None:
    """Register a planted error for the check of the statement `killed_by`."""
    PLANTED.append(Planted(name, killed_by, functions))


def insist(holds: Any, message: str) -> None:
    """Raise AssertionError with a message unless all of `holds` is true."""
    if not np.all(holds):
        raise AssertionError(message)


def refused(function: Callable[..., Any], *args: Any) -> bool:
    """Whether function(*args) raises `Error`."""
    try:
        function(*args)
    except Error:
        return True
    return False


def planted(R: Any, prox: Callable[..., Any]) -> Any:
    """A copy of the penalty R whose `prox(u, step)` is another function."""
    wrong = replace(R)
    object.__setattr__(wrong, "prox", lambda u, step=1.0: prox(u, step))
    return wrong


def planted_ksparse(
    signed: Callable[[Array, int], Array], positive: Callable[[Array, int], Array] | None = None
) -> Callable[..., Any]:
    """The constructor of k-sparse penalties with another prox: signed(u, k), and positive(u, k) where nonneg.

    Where only `signed` is given, it is applied to max(u, 0) where nonneg.
    """

    def make(k: int, nonneg: bool = False) -> Any:
        def prox(u: Array, step: float) -> Array:
            return positive(u, k) if nonneg and positive else signed(clipped(u, nonneg), k)

        return planted(KSparse(k, nonneg), prox)

    return make


def planted_sae(**methods: Callable[..., Any]) -> Callable[..., Any]:
    """The constructor of SAEs with other methods."""

    def make(*args: Any, **given: Any) -> Any:
        base = importlib.import_module("proxsae.sae").SAE
        return type("SAE", (base,), methods)(*args, **given)

    return make


def problem(label: str, planted: dict[str, Any] | None = None, seed: int = 0) -> str | None:
    """Run a check with some functions replaced: what it says of the first failure, or None if it passes."""
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
