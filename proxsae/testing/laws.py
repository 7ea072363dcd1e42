"""Laws of proximal operators, as a registry: what is claimed, for which operators, and the check.

A law gets an operator (flags, `value`, `prox`), a backend and rows (n, P), and raises AssertionError.  Flags choose the
laws; the answers are judged by `oracles.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from proxsae.penalties import FAMILIES, L1, GroupL2, Separable, SortedL1
from proxsae.penalties.base import lams, runs, with_lams
from proxsae.testing import oracles
from proxsae.testing.compare import assert_close, assert_same, numpy_of
from proxsae.testing.oracles import Array

LARGEST_BATCH = 4  # entries of the batches that are searched, which takes a call of `value` per candidate

Check = Callable[[Any, "Backend", Array, float], None]


@dataclass(frozen=True)
class Backend:
    """A library, a dtype and a device: `make` turns NumPy rows into its arrays."""

    name: str
    dtype: Any
    make: Callable[[Array], Any]


NUMPY = tuple(Backend(f"numpy-{dtype.__name__}", dtype, np.array) for dtype in (np.float32, np.float64))


def torch_backends(device: str = "cpu") -> tuple[Backend, ...]:
    """Torch in float32 and float64 on one device; this is where torch is imported."""
    import torch

    def make(u: Array) -> Any:
        return torch.tensor(u, device=device)

    return tuple(Backend(f"torch-{device}-{d.__name__}", d, make) for d in (np.float32, np.float64))


@dataclass(frozen=True)
class Law:
    """A claim with its check.  `specials`: for penalties of this package it is also checked on NaN and infinities."""

    name: str
    claim: str
    applies: Callable[[Any, Backend], bool]
    check: Check
    specials: bool = False


LAWS: list[Law] = []


def law(
    name: str, claim: str, applies: Callable[[Any], bool] | None = None, specials: bool = False, torch: bool = False
) -> Callable[[Check], Check]:
    """Register the function below as a law, for operators that `applies`; `torch`: where gradients are."""

    def register(check: Check) -> Check:
        def both(R: Any, backend: Backend) -> bool:
            return (applies is None or applies(R)) and (not torch or backend.name.startswith("torch"))

        LAWS.append(Law(name, claim, both, check, specials))
        return check

    return register


def flag(R: Any, name: str) -> bool:
    """A flag of an operator, False where the operator has none."""
    return bool(getattr(R, name, False))


def ours(R: Any) -> Any:
    """The penalty behind R (a planted error stands before one) if its formulas are of this package, else None."""
    inner = getattr(R, "R", R)
    return inner if any(runs(inner, family) for family in FAMILIES.values()) else None


def rowwise(R: Any) -> bool:
    """Rows do not see each other."""
    return bool(getattr(R, "rowwise", True))


def rises(R: Any) -> bool:
    """R does not fall as an entry moves away from 0 on its side: true of all penalties here, before `nonneg`."""
    return ours(R) is not None or isinstance(R, Separable) or flag(R, "even")


def even(R: Any) -> bool:
    """R depends on |z| only, and rises: not where negative codes have a weight of their own."""
    return rises(R) and "lam_minus" not in lams(R)


def sums(R: Any) -> bool:
    """The prox adds entries up, so that backends agree to rounding, and not bit for bit."""
    return isinstance(ours(R), (GroupL2, SortedL1))


def symmetric(R: Any) -> bool:
    """Entries may change places: one lam for all, and no groups."""
    mine = ours(R)
    if mine is None:
        return flag(R, "symmetric")
    return rowwise(R) and not isinstance(mine, GroupL2) and all(np.ndim(w) == 0 for w in lams(mine).values())


def values(R: Any, backend: Backend) -> Callable[[Array], Array]:
    """R.value from NumPy to NumPy, in float64."""

    def value(z: Array) -> Array:
        z = np.asarray(z, dtype=np.float64)
        try:
            total = R.value(backend.make(z))
        except Exception:  # a module whose parameters are float32
            total = R.value(backend.make(z.astype(backend.dtype)))
        total = numpy_of(total).astype(np.float64)
        if total.shape != z.shape[:-1]:
            msg = f"value of rows {z.shape} has shape {total.shape}, but must have one number a row: {z.shape[:-1]}"
            raise AssertionError(msg)
        return total

    return value


def applied(R: Any, backend: Backend, u: Array, step: float) -> Array:
    """prox_{step R}(u) in float64."""
    return numpy_of(R.prox(backend.make(u), step)).astype(np.float64)


def assert_agrees(R: Any, backend: Backend, out: Any, want: Array, u: Array, what: str) -> None:
    """Fail unless rows `out` of a backend are the NumPy rows `want`: bit for bit, or to 16 eps of u where R adds up."""
    if not sums(R):
        assert_same(out, backend.make(want), what)
        return
    lost, got = np.isnan(want), numpy_of(out)
    assert_same(np.isnan(got), lost, f"the NaN entries of {what}")
    for a, b, row in zip(np.where(lost, 0, got), np.where(lost, 0, want), u, strict=True):
        assert_close(a, b, 16 * _rounding(b, row), what)


def _equal(R: Any, got: Any, want: Any, u: Array, what: str) -> None:
    """Bit for bit for penalties of this package; for others to the rounding of u, as sums may run in any order."""
    if ours(R) is not None:
        assert_same(got, want, what)
        return
    for a, b, row in zip(got, want, u, strict=True) if want.ndim > 1 else [(got, want, u)]:
        assert_close(a, b, 64 * _rounding(numpy_of(b), row), what)


def _rounding(want: Array, u: Array) -> float:
    """The eps of `want`, and more where it is a difference of larger numbers of u: what `assert_close` multiplies."""
    size, of_input = (1 + float(np.abs(a[np.isfinite(a)]).max(initial=0)) for a in (want, u))
    return float(np.finfo(want.dtype).eps) * max(1, of_input / size)


@law("form", "type, shape, dtype and device are kept, the input is not written; our zeros are +0.0", specials=True)
def form(R: Any, backend: Backend, u: Array, step: float) -> None:
    given = backend.make(u)
    out = R.prox(given, step)
    assert_same(given, backend.make(u), "the input")
    assert_same(out, backend.make(numpy_of(out).astype(u.dtype).reshape(u.shape)), "the form of the output")
    if ours(R) is not None:
        zeros = np.where(numpy_of(out) == 0, numpy_of(out), 0).astype(u.dtype)
        assert_same(zeros, np.zeros_like(u), "zeros")


@law("value", "R(z) is the formula, summed entry by entry", ours)
def value(R: Any, backend: Backend, u: Array, step: float) -> None:
    for row in u[::5]:
        want = np.float64(oracles.plain_value(ours(R), row.astype(np.float64)))
        assert_close(np.float64(numpy_of(R.value(backend.make(row)))), want, 1e-6, f"R({row})")


@law("optimal", "no point has a lower  step R(z) + 1/2 ||z - u||^2  (global oracle)")
def optimal(R: Any, backend: Backend, u: Array, step: float) -> None:
    if not rowwise(R):
        if u.shape[1] <= oracles.LARGEST_SUPPORT:
            _optimal_batches(R, backend, u, step)
    elif u.size:
        z, wide, value = applied(R, backend, u, step), u.astype(np.float64), values(R, backend)
        _none_better(R, value, z, wide, step, u.dtype)


def _optimal_batches(R: Any, backend: Backend, u: Array, step: float) -> None:
    """A batch is one problem: a few small batches, each as a single long row."""
    few = max(1, LARGEST_BATCH // max(1, u.shape[1]))
    for start in range(0, min(len(u), 2 * few) if u.size else 0, few):
        batch = u[start : start + few]

        def value(candidates: Array, shape: tuple[int, ...] = batch.shape) -> Array:
            costs = [values(R, backend)(a).sum() for a in candidates.reshape(-1, *shape)]
            return np.array(costs).reshape(candidates.shape[:-1])

        z, wide = applied(R, backend, batch, step).reshape(1, -1), batch.astype(np.float64).reshape(1, -1)
        _none_better(R, value, z, wide, step, u.dtype)


def judged(R: Any, value: oracles.Value, z: Array, u: Array, step: float, dtype: Any) -> tuple[Array, ...]:
    """Which answers z to rows u in `dtype` are wrong; the best points found; the objectives of z and of those."""
    eps = np.finfo(dtype).eps
    better = oracles.search(value, z, u, step, flag(R, "separable"))
    reached, best = (oracles.objectives(value, a, u, step) for a in (z, better))
    allowed, slack = reached, 64 * eps * (1 + (u**2).sum(axis=-1))
    if ours(R) is None:
        # A rounded answer may lie a hair outside of a domain, or past a steep kink: its neighbours count as well.
        hair, gap = 8 * eps * (1 + np.abs(z).max(axis=-1, keepdims=True)), better - z
        towards = z + gap * np.minimum(1, hair / np.maximum(np.abs(gap).max(axis=-1, keepdims=True), 1e-300))
        for neighbour in (towards, z * (1 - hair)):
            allowed = np.fmin(allowed, oracles.objectives(value, neighbour, u, step))
        slack = slack + 64 * eps * np.where(np.isfinite(best), np.abs(best), 0)
        if flag(R, "indicator"):  # whose value needs room for rounding, up to 1e-5, which the search then uses
            slack = slack + 2e-5 * (1 + np.abs(z).sum(axis=-1)) * np.abs(z - u).sum(axis=-1)
    wrong = ~(allowed <= best + slack) | ~np.isfinite(allowed)  # an answer outside of the domain
    return wrong, better, reached, best


def _none_better(R: Any, value: oracles.Value, z: Array, u: Array, step: float, dtype: Any) -> None:
    wrong, better, reached, best = judged(R, value, z, u, step, dtype)
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        msg = f"prox({u[i]}, step={step}) = {z[i]} has objective {reached[i]}, but {better[i]} has {best[i]}"
        raise AssertionError(msg)


@law("convention", "ties, NaN, infinities and signed zeros follow the conventions, bit for bit", ours, specials=True)
def convention(R: Any, backend: Backend, u: Array, step: float) -> None:
    want = oracles.plain_prox(ours(R), u, step)
    assert_agrees(R, backend, R.prox(backend.make(u), step), want, u, f"prox at step {step}")


@law("rows", "rows do not see each other, however a batch is shaped or lies in memory", rowwise)
def rows_alone(R: Any, backend: Backend, u: Array, step: float) -> None:
    together = R.prox(backend.make(u), step)
    for i in range(0, len(u), 7):
        _equal(R, R.prox(backend.make(u[i]), step), together[i], u[i], f"row {i} alone")
    strided = backend.make(np.repeat(u, 2, axis=1))[:, ::2]
    _equal(R, R.prox(strided, step), together, u, "strided rows")
    some = u[::4]
    for shape in ((2, *some.shape), (2, len(some), 1, u.shape[1])):
        for half in R.prox(backend.make(np.stack([some, some]).reshape(shape)), step).reshape(2, *some.shape):
            _equal(R, half, together[::4], some, f"a batch of shape {shape}")


@law("nan", "a NaN is seen where the answer depends on its entry, and if R is separable only there", rowwise)
def nan_is_seen(R: Any, backend: Backend, u: Array, step: float) -> None:
    rows = u[np.isfinite(u).all(axis=-1)][::9]
    one = np.eye(u.shape[1], dtype=bool)[:, None]  # one entry at a time, the others as they are

    def answers(entry: float) -> Array:
        tries = np.where(one, entry, rows).astype(u.dtype)
        return numpy_of(R.prox(backend.make(tries.reshape(-1, u.shape[1])), step)).reshape(tries.shape)

    try:
        with np.errstate(all="ignore"):
            got = answers(np.nan)
    except Exception:
        return  # it refuses NaN
    far = 3 * float(np.abs(rows).max(initial=step + 1))
    at, above, below = (answers(entry) for entry in (0.0, far, -far))
    lost = ((at != above) | (at != below)).any(axis=-1) & ~np.isnan(got).any(axis=-1)
    if lost.any():
        entry, row = np.argwhere(lost)[0]
        msg = f"a NaN in entry {entry} of {rows[row]} is lost: the answer is {got[entry, row]}"
        raise AssertionError(msg)
    if flag(R, "separable"):
        beside, want = (np.where(one, 0, a).reshape(-1, u.shape[1]) for a in (got, at))
        _equal(R, beside, want, want, "the entries beside a NaN")


@law("firm", "||p - q||^2 <= <p - q, u - v>  (thm-firmly-nonexpansive)", lambda R: flag(R, "convex") and rowwise(R))
def firm(R: Any, backend: Backend, u: Array, step: float) -> None:
    p, wide = applied(R, backend, u, step), u.astype(np.float64)
    dp, du = p - p[::-1], wide - wide[::-1]
    excess = (dp * dp).sum(-1) - (dp * du).sum(-1)
    _none_above(excess, "||p - q||^2 exceeds <p - q, u - v>", u, u[::-1])


@law("monotone", "<p - q, u - v> >= 0, whatever R is  (lem-prox-monotone)", rowwise)
def monotone(R: Any, backend: Backend, u: Array, step: float) -> None:
    p, wide = applied(R, backend, u, step), u.astype(np.float64)
    for other in (np.arange(len(u))[::-1], np.arange(len(u)) - 1):
        inner = ((p - p[other]) * (wide - wide[other])).sum(-1)
        _none_above(-inner, "-<p - q, u - v> is positive", u, u[other])


@law("step", "R(prox) does not rise as the step grows  (lem-prox-monotone)", rowwise)
def longer_step(R: Any, backend: Backend, u: Array, step: float) -> None:
    value = values(R, backend)
    short, long = (value(applied(R, backend, u, s)) for s in (step, 1.5 * step))
    with np.errstate(invalid="ignore"):
        _none_above(np.where(np.isfinite(short), long - short, 0), "R rises with the step", u)


@law("shrinks", "|prox(u)| <= |u|, with the sign of u  (lem-shrinks)", rises)
def shrinks(R: Any, backend: Backend, u: Array, step: float) -> None:
    p, wide = applied(R, backend, u, step), u.astype(np.float64)
    room = 4 * np.finfo(u.dtype).eps * np.abs(wide).max(axis=-1, keepdims=True, initial=0)
    wrong = ~((np.abs(p) <= np.abs(wide) + room) & (p * np.sign(wide) >= -room))
    if wrong.any():
        row, entry = np.argwhere(wrong)[0]
        msg = f"shrinks: the entry {wide[row, entry]} of {u[row]} became {p[row, entry]}"
        raise AssertionError(msg)


@law("lam", "|prox| does not grow with lam  (prop-lam-monotone)", lambda R: hasattr(ours(R), "lam"))
def heavier(R: Any, backend: Backend, u: Array, step: float) -> None:
    more = with_lams(ours(R), lambda w: 1.5 * w)
    more = dataclasses.replace(R, R=more) if R is not ours(R) else more
    light, heavy = (np.abs(applied(S, backend, u, step)) for S in (R, more))
    rise = (heavy - light).max(axis=-1, initial=0)
    _none_above(rise, "|prox| grows with lam", u)


@law("moreau", "u = prox_{mu R}(u) + (projection onto the dual box)  (thm-moreau)", lambda R: isinstance(ours(R), L1))
def moreau(R: Any, backend: Backend, u: Array, step: float) -> None:
    bound = (step * np.asarray(R.lam)).astype(u.dtype)
    dual = np.minimum(u, bound) if R.nonneg else np.clip(u, -bound, bound)
    out = numpy_of(R.prox(backend.make(u), step))
    assert_close(out + dual, u, 4 * float(np.finfo(u.dtype).eps), "prox + dual part")


@law("odd", "prox(-u) = -prox(u) for a penalty that is even", lambda R: even(R) and not flag(R, "nonneg"))
def odd(R: Any, backend: Backend, u: Array, step: float) -> None:
    plus, minus = (numpy_of(R.prox(backend.make(s * u), step)) for s in (u.dtype.type(1), u.dtype.type(-1)))
    assert_close(minus, -plus, 0.0, "prox(-u)")


@law("nonneg", "codes are >= 0, and prox(u) = prox(max(u, 0)) where R rises  (lem-nonneg)", lambda R: flag(R, "nonneg"))
def nonneg(R: Any, backend: Backend, u: Array, step: float) -> None:
    out = R.prox(backend.make(u), step)
    if not (numpy_of(out) >= 0).all():
        msg = f"nonneg: a code has the entry {numpy_of(out).min()}"
        raise AssertionError(msg)
    if rises(R):
        _equal(R, R.prox(backend.make(np.maximum(u, 0) + 0), step), out, u, "prox(max(u, 0))")


@law("projection", "prox is idempotent and free of the step for an indicator", lambda R: flag(R, "indicator"))
def projection(R: Any, backend: Backend, u: Array, step: float) -> None:
    once = R.prox(backend.make(u), step)
    _equal(R, R.prox(once, step), once, u, "prox(prox(u))")
    _equal(R, R.prox(backend.make(u), 3 * step), once, u, "prox at three times the step")


@law("permutation", "prox(P u) = P prox(u) where magnitudes differ, for a symmetric R  (prop-symmetries)", symmetric)
def permutation(R: Any, backend: Backend, u: Array, step: float) -> None:
    order = np.arange(u.shape[1])[::-1].copy()
    distinct = np.array([len(set(np.abs(row))) == len(row) for row in u], dtype=bool)
    straight = numpy_of(R.prox(backend.make(u[distinct]), step))
    turned = numpy_of(R.prox(backend.make(np.ascontiguousarray(u[distinct][:, order])), step))
    _equal(R, turned, straight[:, order], u[distinct], "prox of the reversed row")


@law("gradient", "that of finite differences off the kinks, and 0 where a code is 0  (thm-prox-gradient)", torch=True)
def gradient(R: Any, backend: Backend, u: Array, step: float) -> None:
    weight = np.linspace(1.0, 2.0, max(1, u.shape[1]))[: u.shape[1]]
    given = backend.make(u).requires_grad_()
    out = R.prox(given, step)
    if ours(R) is None and not out.requires_grad:
        return  # an operator without a backward
    (out * backend.make(np.broadcast_to(weight, u.shape).astype(u.dtype))).sum().backward()
    slope, wide = numpy_of(given.grad).astype(np.float64), u.astype(np.float64)
    if not np.isfinite(slope).all():
        msg = f"gradient: it is {slope[~np.isfinite(slope)][0]} at a finite input"
        raise AssertionError(msg)
    if ours(R) is not None and not sums(R) and (flag(R, "separable") or flag(R, "indicator")):
        at_zero = np.where(numpy_of(out) == 0, np.abs(slope), 0)
        assert_same(at_zero, np.zeros_like(at_zero), "the gradient where the code is 0")
    if not rowwise(R):
        return
    try:
        applied(R, backend, wide[:1], step)
    except Exception:
        if ours(R) is None:
            return  # for float32 only, and differences in float32 are too coarse to judge by
        raise
    scale, h = float(np.abs(weight).sum()), 1e-6 + 8 * float(np.finfo(u.dtype).eps) * np.abs(wide)
    for i in range(u.shape[1]):
        nudge = h * np.eye(u.shape[1])[i]  # past the rounding of a threshold to the dtype of u
        below, at, above = (applied(R, backend, wide + s * nudge, step) @ weight for s in (-1, 0, 1))
        left, right = (at - below) / h[:, i], (above - at) / h[:, i]
        smooth = (np.abs(left - right) <= 1e-4 * scale) & (u[:, i] != 0)  # elsewhere a kink is near, or u is 0
        far = smooth & (np.abs(slope[:, i] - (left + right) / 2) > 2e-3 * scale)
        if far.any():
            row = int(np.flatnonzero(far)[0])
            msg = f"gradient: at {u[row]}, entry {i}, it is {slope[row, i]}, but differences give {right[row]}"
            raise AssertionError(msg)


def _none_above(excess: Array, what: str, *rows: Array) -> None:
    """Fail unless each excess is at most 0, to the rounding of the rows that it is made of."""
    sizes = [(u.astype(np.float64) ** 2).sum(axis=-1) for u in rows]
    slack = 64 * np.finfo(rows[0].dtype).eps * (1 + np.maximum.reduce(sizes))
    if not (excess <= slack).all():
        msg = f"{what}, by {excess.max()}"
        raise AssertionError(msg)
