"""Laws that an operator must obey, as a registry: what is claimed, for which operators, and the check.

A law gets an operator (flags, `value`, `prox`), a backend and rows (n, P), and raises AssertionError.  The oracle of
optimality is global: every support of k-sparse problems, a refined grid in each coordinate of separable ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from proxsae.penalties import L1, KSparse, Penalty
from proxsae.testing.compare import assert_close, assert_same, numpy_of

Array = np.ndarray[Any, Any]
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
    """A claim with its check.  `specials` says that it is also checked on NaN and infinities."""

    name: str
    claim: str
    applies: Callable[[Any, Backend], bool]
    check: Check
    specials: bool = False


LAWS: list[Law] = []


def law(
    name: str, claim: str, applies: Callable[[Any, Backend], bool] | None = None, specials: bool = False
) -> Callable[[Check], Check]:
    """Register the function below as a law."""

    def register(check: Check) -> Check:
        LAWS.append(Law(name, claim, applies or (lambda R, backend: True), check, specials))
        return check

    return register


def flag(R: Any, name: str) -> bool:
    """A flag of an operator, False where a third party's has none."""
    return bool(getattr(R, name, False))


def in_registry(R: Any, backend: Backend) -> bool:
    """True for the families of this package, whose ties and special values are named."""
    return isinstance(getattr(R, "R", R), Penalty)


@law("form", "type, shape, dtype and device are kept, the input is not written, zeros are +0.0", specials=True)
def form(R: Any, backend: Backend, u: Array, step: float) -> None:
    given = backend.make(u)
    out = R.prox(given, step)
    assert_same(given, backend.make(u), "the input")
    zeros = numpy_of(out) == 0
    assert_same(
        backend.make(np.where(zeros, numpy_of(out), 0).astype(u.dtype)), backend.make(np.zeros_like(u)), "zeros"
    )
    assert_same(out, backend.make(numpy_of(out).astype(u.dtype)), "the form of the output")


@law("value", "R(z) is the formula, summed entry by entry", in_registry)
def value(R: Any, backend: Backend, u: Array, step: float) -> None:
    for row in u[::5]:
        z = row.astype(np.float64)
        assert_close(np.float64(numpy_of(R.value(backend.make(row)))), np.float64(plain_value(R, z)), 1e-6, "R(z)")


@law("optimal", "no point has a lower  step R(z) + 1/2 ||z - u||^2  (global oracle)")
def optimal(R: Any, backend: Backend, u: Array, step: float) -> None:
    out = numpy_of(R.prox(backend.make(u), step)).astype(np.float64)
    eps = np.finfo(u.dtype).eps
    for row, z in zip(u.astype(np.float64), out, strict=True):
        reached = objective(R, z[None], row, step)[0]
        better, best = global_minimum(R, z, row, step)
        slack = 64 * eps * (1 + row @ row)
        if not reached <= best + slack:
            msg = f"optimal: prox({row}, step={step}) = {z} has objective {reached}, but {better} has {best}"
            raise AssertionError(msg)


@law("convention", "ties, NaN, infinities and signed zeros come out as named, bit for bit", in_registry, specials=True)
def convention(R: Any, backend: Backend, u: Array, step: float) -> None:
    want = np.array([plain_prox(R, row, step) for row in u], dtype=u.dtype).reshape(u.shape)
    assert_same(R.prox(backend.make(u), step), backend.make(want), f"prox at step {step}")


@law("rows", "rows do not see each other, and memory layout does not matter")
def rows_alone(R: Any, backend: Backend, u: Array, step: float) -> None:
    together = R.prox(backend.make(u), step)
    for i in range(0, len(u), 7):
        assert_same(R.prox(backend.make(u[i]), step), together[i], f"row {i} alone")
    strided = backend.make(np.repeat(u, 2, axis=1))[:, ::2]
    assert_same(R.prox(strided, step), together, "strided rows")


@law("firm", "||p - q||^2 <= <p - q, u - v>  (thm-firmly-nonexpansive)", lambda R, _: flag(R, "convex"))
def firm(R: Any, backend: Backend, u: Array, step: float) -> None:
    p = numpy_of(R.prox(backend.make(u), step)).astype(np.float64)
    dp, du = p - p[::-1], u.astype(np.float64) - u[::-1].astype(np.float64)
    excess = (dp * dp).sum(-1) - (dp * du).sum(-1)
    slack = 64 * np.finfo(u.dtype).eps * (1 + (du * du).sum(-1))
    if not (excess <= slack).all():
        msg = f"firm: ||p - q||^2 exceeds <p - q, u - v> by {(excess - slack).max()}"
        raise AssertionError(msg)


@law("moreau", "u = prox_{mu R}(u) + (projection onto the dual box)  (thm-moreau)", lambda R, _: _is_l1(R))
def moreau(R: Any, backend: Backend, u: Array, step: float) -> None:
    bound = (step * np.asarray(R.lam)).astype(u.dtype)
    dual = np.minimum(u, bound) if R.nonneg else np.clip(u, -bound, bound)
    out = numpy_of(R.prox(backend.make(u), step))
    assert_close(out + dual, u, 4 * float(np.finfo(u.dtype).eps), "prox + dual part")


@law("odd", "prox(-u) = -prox(u) for a penalty that is even", lambda R, _: not flag(R, "nonneg"))
def odd(R: Any, backend: Backend, u: Array, step: float) -> None:
    plus, minus = (numpy_of(R.prox(backend.make(s * u), step)) for s in (u.dtype.type(1), u.dtype.type(-1)))
    assert_close(minus, -plus, 0.0, "prox(-u)")


@law("nonneg", "codes are >= 0, and prox(u) = prox(max(u, 0))  (lem-nonneg)", lambda R, _: flag(R, "nonneg"))
def nonneg(R: Any, backend: Backend, u: Array, step: float) -> None:
    out = R.prox(backend.make(u), step)
    if not (numpy_of(out) >= 0).all():
        msg = f"nonneg: a code has the entry {numpy_of(out).min()}"
        raise AssertionError(msg)
    assert_same(R.prox(backend.make(np.maximum(u, 0) + 0), step), out, "prox(max(u, 0))")


@law("projection", "prox is idempotent and free of the step for an indicator", lambda R, _: flag(R, "indicator"))
def projection(R: Any, backend: Backend, u: Array, step: float) -> None:
    once = R.prox(backend.make(u), step)
    assert_same(R.prox(once, step), once, "prox(prox(u))")
    assert_same(R.prox(backend.make(u), 3 * step), once, "prox at three times the step")


@law("permutation", "prox(P u) = P prox(u) where magnitudes differ and lam is one number", lambda R, _: _symmetric(R))
def permutation(R: Any, backend: Backend, u: Array, step: float) -> None:
    order = np.arange(u.shape[1])[::-1].copy()
    distinct = np.array([len(set(np.abs(row))) == len(row) for row in u], dtype=bool)
    straight = numpy_of(R.prox(backend.make(u[distinct]), step))
    turned = numpy_of(R.prox(backend.make(np.ascontiguousarray(u[distinct][:, order])), step))
    assert_same(turned, straight[:, order], "prox of the reversed row")


@law("gradient", "the derivative is 1 on the support and 0 elsewhere", lambda R, b: b.name.startswith("torch"))
def gradient(R: Any, backend: Backend, u: Array, step: float) -> None:
    given = backend.make(u).requires_grad_()
    out = R.prox(given, step)
    out.sum().backward()
    support = (numpy_of(out) != 0).astype(u.dtype)
    assert_same(given.grad, backend.make(support), "the gradient")


def objective(R: Any, z: Array, u: Array, step: float) -> Array:
    """step R(z) + 1/2 ||z - u||^2 for rows z (n, P) against one u (P,), in float64."""
    return step * np.asarray(R.value(z), dtype=np.float64) + 0.5 * ((z - u) ** 2).sum(axis=-1)


def global_minimum(R: Any, z: Array, u: Array, step: float) -> tuple[Array, float]:
    """The best point found by brute force, and its objective.

    Separable: each coordinate on a grid of [-1.5 |u|, 1.5 |u|], on 0 and u, and close around the answer z.  Otherwise
    every support with u or its positive part on it, and every coordinate of z moved.
    """
    if flag(R, "separable"):
        best = np.zeros_like(u)
        for i, ui in enumerate(u):
            near = z[i] + np.array([-1e-2, -1e-3, 1e-3, 1e-2])
            tries = np.concatenate([[0, ui, z[i]], near, np.linspace(-1.5, 1.5, 121) * abs(ui)])
            candidates = np.zeros((len(tries), len(u)))
            candidates[:, i] = tries
            best[i] = tries[np.argmin(objective(R, candidates, np.where(np.arange(len(u)) == i, u, 0), step))]
        return best, float(objective(R, best[None], u, step)[0])
    masks = np.array(list(itertools.product([0.0, 1.0], repeat=len(u))))
    moves = [z + s * e for e in np.eye(len(u)) for s in (-1e-2, 1e-2)]
    candidates = np.concatenate([masks * u, masks * np.maximum(u, 0), np.array(moves).reshape(len(moves), len(u))])
    scores = objective(R, candidates, u, step)
    return candidates[np.argmin(scores)], float(scores.min())


def plain_value(R: Any, z: Array) -> float:
    """R(z) of one row in plain Python, from the definition."""
    R = getattr(R, "R", R)
    if R.nonneg and any(v < 0 for v in z):
        return math.inf
    if isinstance(R, KSparse):
        return 0.0 if sum(v != 0 for v in z) <= R.k else math.inf
    lams = np.broadcast_to(np.asarray(R.lam, dtype=np.float64), z.shape)
    return float(sum(lam * (abs(v) if isinstance(R, L1) else v != 0) for lam, v in zip(lams, z, strict=True)))


def plain_prox(R: Any, u: Array, step: float) -> list[Any]:
    """prox_{step R}(u) of one row in plain Python, from the definition and the conventions."""
    R = getattr(R, "R", R)
    kind = u.dtype.type
    if R.nonneg:
        u = np.array([v if v > 0 or math.isnan(v) else kind(0) for v in u], dtype=u.dtype)
    if isinstance(R, KSparse):
        rank = sorted(
            range(len(u)), key=lambda i: (not math.isnan(u[i]), 0.0 if math.isnan(u[i]) else -abs(float(u[i])), i)
        )
        kept = set(rank[: R.k])
        return [v if i in kept and v != 0 else kind(0) for i, v in enumerate(u)]
    lams = np.broadcast_to(np.asarray(R.lam, dtype=np.float64), u.shape)
    out = []
    for v, lam in zip(u, lams, strict=True):
        t = kind(step * lam if isinstance(R, L1) else math.sqrt(2 * (step * lam)))
        if math.isnan(v):
            out.append(v)
        elif abs(v) <= t:
            out.append(kind(0))
        elif isinstance(R, L1):
            out.append(v - t if v > 0 else v + t)
        else:
            out.append(v)
    return out


def _is_l1(R: Any) -> bool:
    return isinstance(getattr(R, "R", R), L1)


def _symmetric(R: Any) -> bool:
    return np.ndim(getattr(R, "lam", 0.0)) == 0
