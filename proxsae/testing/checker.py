"""The public checker: every law whose hypotheses an operator states, on the lattice of its thresholds, at all scales.

It takes any operator, an object with `value(z)` and `prox(u, step)` on rows (..., P).  It needs NumPy only, and torch
where the operator does; neither pytest nor Hypothesis.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from proxsae.conventions import (
    Error,
    as_reals,
    check_choice,
    check_count,
    check_number,
    check_seed,
    did_you_mean,
    is_torch,
    shown,
)
from proxsae.penalties import FAMILIES, Penalty
from proxsae.testing import lattice
from proxsae.testing.compare import numpy_of
from proxsae.testing.laws import (
    LAWS,
    NUMPY,
    Backend,
    Law,
    applied,
    assert_agrees,
    flag,
    judged,
    ours,
    rowwise,
    torch_backends,
    values,
)
from proxsae.testing.operators import backends_of, check_operator, label

ROW_BY_ROW = 25  # the oracle asks for some 400 values a row, which is as many calls where rows come one by one
INDICATOR = 1e-5  # what the value of an indicator allows for rounding: sums of larger entries have more in float32


class Better(NamedTuple):
    """A point with a lower objective than the operator's answer, and both objectives."""

    point: Any
    objective: float
    objective_of_got: float


class LawViolation(AssertionError):
    """A law that an operator breaks.

    law      its name
    backend  the name of the backend
    input    the row that shows it (the batch, where only a batch does)
    step     the step
    got      what prox returned
    better   a `Better`, or None where nothing better was found
    """

    def __init__(
        self, R: Any, law: Law, backend: Backend, u: Any, step: float, detail: str, got: Any, better: Better | None
    ) -> None:
        self.law, self.backend, self.input, self.step = law.name, backend.name, u, step
        self.got, self.better, self.operator = got, better, label(R)
        known = f"R = px.{R!r}" if type(R) in FAMILIES.values() else "# R is your operator"
        lines = [
            f"{label(R)} breaks the law '{law.name}' ({law.claim}) in {backend.name}: {detail}",
            "",
            "import numpy as np, proxsae as px",
            known.replace("=array(", "=np.array("),
            f"u = np.array({np.asarray(u).tolist()}, dtype=np.{np.asarray(u).dtype})".replace("nan", "np.nan").replace(
                "inf", "np.inf"
            ),
            f"# R.prox(u, {step}) is {None if got is None else numpy_of(got).tolist()}",
        ]
        if better is not None:
            lines.append(
                f"# z = {np.asarray(better.point).tolist()} has step R(z) + 1/2 ||z - u||^2 = {better.objective:.9g}, "
                f"the operator's answer {better.objective_of_got:.9g}"
            )
        lines.append(f"px.testing.check_law({law.name!r}, R, u, step={step}, backend={backend.name!r})  # raises")
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class Result:
    """One law on one operator in one backend: `violation` is None where it holds, `expected` a reason if given.

    `rows` is how many rows it was tried on.
    """

    law: str
    operator: str
    backend: str
    violation: LawViolation | None
    rows: int
    expected: str | None = None

    @property
    def problem(self) -> str | None:
        """The message of the violation, or None."""
        return None if self.violation is None else str(self.violation)


def check_prox(
    op: Any,
    *,
    laws: Iterable[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    n: int = 200,
    seed: int = 0,
    on_fail: str = "raise",
    backends: Sequence[Backend] | None = None,
) -> list[Result]:
    """Check the laws whose hypotheses `op` states, on rows of its threshold lattice and of all scales.

    Returns a `Result` for each law and backend.

    op has `value(z)` (..., P) -> (...) and `prox(u, step)` (..., P) -> (..., P), in NumPy or in torch, and flags as in
    `operator` (False where absent).  laws: names, default all that apply.  expected_failures: {law: reason}, strict: a
    law that holds after all is a failure.  n: rows per width at each of four steps; wider rows, other scales and other
    steps get fewer, and an operator with batched=False, which is called row by row, a 25th of all: `Result.rows` says
    how many it were.  backends: default NumPy in float32 and float64, or torch on the CPU for an operator that
    refuses NumPy arrays.

    Raises `LawViolation` (an AssertionError) at the first failure, or with on_fail="collect" returns all results.

    >>> from proxsae import L1
    >>> len(check_prox(L1(0.5), n=20)) > 10
    True
    """
    check_operator(op)
    expected = dict(expected_failures or {})
    n, seed = check_count("n", n, 1), check_seed(seed)
    laws = [laws] if isinstance(laws, str) else laws
    if laws is not None and not isinstance(laws, (list, tuple, set, dict)):
        msg = f"laws={shown(laws)} must be names of laws, such as ['odd', 'optimal']"
        raise Error(msg)
    laws = None if laws is None else list(laws)
    backends = (backends,) if isinstance(backends, Backend) else backends
    if backends is not None and (not backends or not all(isinstance(b, Backend) for b in backends)):
        msg = f"backends={backends!r} must be some of px.testing.NUMPY or px.testing.torch_backends(device)"
        raise Error(msg)
    if isinstance(op, Penalty):
        for backend in backends or ():  # refuse a backend for which the penalty has no formula
            op.prox(backend.make(np.zeros((1, max(lattice.widths(op))), backend.dtype)))
    check_choice("on_fail", on_fail, ("raise", "collect"))
    done = []
    for result in results(op, backends, n=n, seed=seed, laws=laws, also=expected):
        found = result
        if result.law in expected:
            found = dataclasses.replace(result, expected=expected[result.law])
        elif result.violation is not None and on_fail == "raise":
            raise result.violation
        done.append(found)
    reached = {result.law for result in done}
    idle = [name for name in (*(laws or ()), *expected) if name not in reached]
    if idle or not done:
        msg = f"nothing was checked for {', '.join(idle) or 'laws=[]'}: {label(op)} does not claim what that law needs"
        raise Error(msg)
    for name, reason in expected.items():
        if not any(r.law == name and r.violation is not None for r in done):
            msg = f"{label(op)}: the law {name!r} was expected to fail ({reason}), but it holds"
            raise AssertionError(msg)
    return done


def results(
    R: Any,
    backends: Sequence[Backend] | None = None,
    n: int = 20,
    seed: int = 0,
    laws: Iterable[str] | None = None,
    also: Iterable[str] = (),
) -> Iterator[Result]:
    """Check law by law, and yield one `Result` for each law and backend that applies."""
    wanted = [_law(name) for name in laws] if laws is not None else LAWS
    wanted = [*wanted, *(law for law in map(_law, also) if law not in wanted)]
    prepared = functools.cache(lambda backend, specials: list(_inputs(R, backend, n, seed, specials)))
    for law in wanted:
        for backend in backends_of(R) if backends is None else backends:
            if law.applies(R, backend):
                found, tried = _try(law, R, backend, prepared(backend, law.specials))
                yield Result(law.name, label(R), backend.name, found, tried)


def violation(law: Law, R: Any, backend: Backend, n: int = 20, seed: int = 0) -> LawViolation | None:
    """The first violation of a law on the inputs of R, or None."""
    return _try(law, R, backend, _inputs(R, backend, n, seed, law.specials))[0]


def _inputs(R: Any, backend: Backend, n: int, seed: int, specials: bool) -> Iterator[tuple[float, Any]]:
    """Steps and rows: as many as one asks for of a function of rows, of a function of one row fewer."""
    few = n if getattr(R, "batched", True) else max(1, n // ROW_BY_ROW)
    if ours(R) is not None:
        yield from lattice.inputs(R, backend.dtype, few, seed, specials)
        return
    exact = INDICATOR / float(np.finfo(backend.dtype).eps) if flag(R, "indicator") else np.inf
    for step, u in lattice.inputs(R, backend.dtype, few, seed, apply=lambda u, step: applied(R, backend, u, step)):
        reach = exact / max(1, u.shape[1])
        yield step, u.clip(-reach, reach)


def _try(law: Law, R: Any, backend: Backend, inputs: Iterable[tuple[float, Any]]) -> tuple[LawViolation | None, int]:
    """The first violation of a law on inputs, or None, and on how many rows it was tried."""
    tried = 0
    for step, u in inputs:
        tried += len(u)
        found = _broken(law, R, backend, u, step)
        if found is not None:
            return found, tried
    return None, tried


def check_law(name: str, R: Any, u: Any, step: float = 1.0, backend: str | Backend = "numpy-float64") -> None:
    """Check one law on one row (P,) or on rows (n, P); raise `LawViolation` where it fails.  What a message replays.

    >>> from proxsae import L1
    >>> check_law("optimal", L1(0.5), np.array([1.0, -0.5]), step=2.0)
    """
    if isinstance(backend, str):
        library, *device = backend.split("-")
        known = {b.name: b for b in (torch_backends("-".join(device[:-1])) if library == "torch" else NUMPY)}
        if backend not in known:
            msg = f"backend={backend!r} must be one of {', '.join(known)}"
            raise Error(msg)
        backend = known[backend]
    if not isinstance(backend, Backend):
        msg = f"backend={shown(backend)} must be the name of a backend, such as 'numpy-float64', or a Backend"
        raise Error(msg)
    rows = numpy_of(as_reals("u", u.detach() if is_torch(u) else u)).astype(backend.dtype)
    step = check_number("step", step, "> 0")
    if not rows.ndim or not _law(name).applies(R, backend):
        msg = f"the law {name!r} cannot be checked on {label(R)} with u {rows.shape}: it must apply, and u be rows"
        raise Error(msg)
    found = _broken(_law(name), R, backend, rows if rows.ndim > 1 else rows[None], step)
    if found is not None:
        raise found


def check_backend(op: Any, backend: Backend, *, reference: Any = None, n: int = 200, seed: int = 0) -> None:
    """Check that `op` on a backend equals `reference` (default: itself) on NumPy, NaN and infinity included.

    Bit for bit, but to 16 eps for operators that add entries up (GroupL2, SortedL1).  Raises AssertionError.
    """
    check_operator(op)
    reference = op if reference is None else reference
    for step, u in lattice.inputs(reference, backend.dtype, n, seed, specials=True):
        what = f"prox of {label(op)} at step {step} in {backend.name}"
        assert_agrees(reference, backend, op.prox(backend.make(u), step), reference.prox(u, step), u, what)


def parametrize_with_laws(ops: Iterable[Any], n: int = 50, seed: int = 0) -> Any:
    """A pytest mark that gives a test one argument `check` per operator, law and backend; the test calls `check()`.

    Ids are made of the operator's text, name or type, the same in every run.

    @parametrize_with_laws([MyOperator()])
    def test_my_operator(check):
        check()
    """
    import pytest

    def one(law: Law, R: Any, backend: Backend) -> Callable[[], None]:
        def check() -> None:
            found = violation(law, R, backend, n, seed)
            if found is not None:
                raise found

        return check

    ops = list(ops)
    names = [label(R) for R in ops]
    names = [f"{name} {names[: i + 1].count(name)}" if names.count(name) > 1 else name for i, name in enumerate(names)]
    cases = [
        pytest.param(one(law, R, backend), id=f"{name}-{law.name}-{backend.name}")
        for R, name in zip(ops, names, strict=True)
        for law in LAWS
        for backend in backends_of(R)
        if law.applies(R, backend)
    ]
    return pytest.mark.parametrize("check", cases)


def _broken(law: Law, R: Any, backend: Backend, u: Any, step: float) -> LawViolation | None:
    """Check rows, and if they break the law, the first row that does so alone."""
    detail = _detail(law, R, backend, u, step)
    if detail is None:
        return None
    for row in u if rowwise(R) else ():
        alone = _detail(law, R, backend, row[None], step)
        if alone is not None:
            u, detail = row[None], alone
            break
    single, got, better = len(u) == 1, None, None
    with suppress(Exception):  # where the operator itself raises, `detail` says so
        got = R.prox(backend.make(u), step)
        better = _better(R, backend, u, step, numpy_of(got).astype(np.float64)) if single and rowwise(R) else None
        got = got[0] if single else got
    return LawViolation(R, law, backend, u[0] if single else u, step, detail, got, better)


def _detail(law: Law, R: Any, backend: Backend, u: Any, step: float) -> str | None:
    try:
        law.check(R, backend, u, step)
    except AssertionError as broken:
        return str(broken)
    except MemoryError:
        raise
    except Exception as problem:
        return f"it raised {type(problem).__name__}: {problem}"
    return None


def _better(R: Any, backend: Backend, u: Any, step: float, z: Any) -> Better | None:
    if not np.isfinite(u).all():
        return None
    value, wide = values(R, backend), u.astype(np.float64)
    wrong, better, reached, best = judged(R, value, np.nan_to_num(z), wide, step, u.dtype)
    return Better(better[0], float(best[0]), float(reached[0])) if wrong[0] else None


def _law(name: str) -> Law:
    known = {law.name: law for law in LAWS}
    if not isinstance(name, str):
        msg = f"{shown(name)} is no name of a law: laws are {', '.join(known)}"
        raise Error(msg)
    if name not in known:
        msg = f"no law is called {name!r}{did_you_mean(name, known) or ':'} laws are {', '.join(known)}"
        raise Error(msg)
    return known[name]
