"""What the laws judge by: the objective, a global search for a better point, and every operator in plain Python.

The search sees only `value`.  Separable penalties: each entry on a refined grid.  Others: every support (most rows are
short), scaled and moved, then a pattern search; for a convex R that search is global, for k-sparse the supports are.
The plain operators are written from the definitions, one number at a time, and share no code with `penalties/`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from proxsae.penalties import L0, L1, MCP, BatchKSparse, ElasticNet, GroupL2, KSparse, SortedL1

Array = np.ndarray[Any, Any]
Value = Callable[[Array], Array]

LARGEST_SEARCH = 2**22  # numbers in one call of `value`
LARGEST_SUPPORT = 10  # entries of rows all of whose supports are tried


def objectives(value: Value, z: Array, u: Array, step: float) -> Array:
    """step R(z) + 1/2 ||z - u||^2 in float64, for candidates z (..., n, P) of rows u (n, P): shape (..., n)."""
    return step * np.asarray(value(z), dtype=np.float64) + 0.5 * ((z - u) ** 2).sum(axis=-1)


def search(value: Value, z: Array, u: Array, step: float, separable: bool) -> Array:
    """For each row of u (n, P) the best point found, starting from the answers z (n, P)."""
    width = u.shape[1]
    supports = 2**width if width <= LARGEST_SUPPORT else 2 * width
    each = 124 * width * width if separable else 8 * supports * width
    some = max(1, LARGEST_SEARCH // max(1, each))  # rows at a time, for memory
    parts = [slice(i, i + some) for i in range(0, max(1, len(u)), some)]
    one = _search_entries if separable else _search_rows
    return np.concatenate([one(value, z[p], u[p], step) for p in parts])


def _search_entries(value: Value, z: Array, u: Array, step: float) -> Array:
    width = u.shape[1]
    alone = np.eye(width, dtype=bool)[:, None, None, :]  # one entry at a time, the others as they are in z

    def best_of(tries: Array) -> Array:
        at = np.where(alone, np.moveaxis(tries, -1, 0)[..., None], z)  # (P, T, n, P)
        cost = step * np.asarray(value(at), dtype=np.float64) + 0.5 * (np.moveaxis(tries - u, -1, 0)) ** 2
        return np.take_along_axis(tries, np.moveaxis(cost.argmin(axis=1), 0, -1)[None], axis=0)[0]

    if not width:
        return z
    reach = 1.5 * np.abs(u)
    found = best_of(np.concatenate([[np.zeros_like(u), u, z], np.linspace(-1, 1, 121)[:, None, None] * reach]))
    for zoom in (60.0, 1200.0, 24000.0):
        found = best_of(np.concatenate([[found], found + np.linspace(-1, 1, 41)[:, None, None] * reach / zoom]))
    return found


def _search_rows(value: Value, z: Array, u: Array, step: float) -> Array:
    rng, width = np.random.default_rng(0), u.shape[1]
    if not width or not len(u):
        return z

    def best_of(tries: Array) -> Array:
        with np.errstate(invalid="ignore"):
            cost = objectives(value, tries, u, step)
        return tries[np.where(np.isnan(cost), np.inf, cost).argmin(axis=0), np.arange(len(u))]

    masks = _supports(u)
    scaled = [s * masks * part for s in (1.0, 0.75, 0.5, 0.25) for part in (u, np.maximum(u, 0))]
    found = best_of(np.concatenate([z[None], *scaled]))
    size = 1 + np.abs(u).max(axis=-1, keepdims=True)
    for reach in (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4):
        moves = np.concatenate([np.eye(width), -np.eye(width), rng.standard_normal((12, width))])[:, None]
        along = [found + reach * (u - found), (1 - reach) * found]
        found = best_of(np.concatenate([found[None], found + reach * size * moves, *[a[None] for a in along]]))
    return found


def _supports(u: Array) -> Array:
    """All supports of short rows; of wide ones those of the largest entries and of the largest magnitudes."""
    width = u.shape[1]
    if width <= LARGEST_SUPPORT:
        return np.array(list(itertools.product([0.0, 1.0], repeat=width)))[:, None]
    ranks = [(-key).argsort(axis=-1, kind="stable").argsort(axis=-1) for key in (u, np.abs(u))]
    return np.concatenate([rank < np.arange(1, width + 1)[:, None, None] for rank in ranks]).astype(np.float64)


def plain_value(R: Any, z: Array) -> float:
    """R(z) of one row, in plain Python, from the definition."""
    if R.nonneg and any(v < 0 for v in z):
        return math.inf
    if isinstance(R, (KSparse, BatchKSparse)):
        return 0.0 if sum(v != 0 for v in z) <= R.k else math.inf
    if isinstance(R, GroupL2):
        return sum(_times(float(R.lam), math.hypot(*z[i : i + R.size])) for i in range(0, len(z), R.size))
    lams = _lams(R, z)
    if isinstance(R, SortedL1):
        sizes = sorted((abs(float(v)) for v in z), reverse=True)
        return float(sum(_times(float(lam), v) for lam, v in zip(lams, sizes, strict=True)))
    return float(sum(_entry_value(R, abs(float(v)), float(lam)) for v, lam in zip(z, lams, strict=True)))


def _lams(R: Any, row: Array) -> list[float]:
    """The weight of each entry: lam, or that of negative codes for an L0 that has one."""
    plus = np.broadcast_to(np.asarray(R.lam, dtype=np.float64), row.shape).tolist()
    if not isinstance(R, L0) or R.lam_minus is None:
        return plus
    minus = np.broadcast_to(np.asarray(R.lam_minus, dtype=np.float64), row.shape).tolist()
    return [a if v > 0 else b for v, a, b in zip(row, plus, minus, strict=True)]


def _times(lam: float, v: float) -> float:
    """What an infinite weight makes of 0 is 0: R is a supremum over finite ones."""
    return lam * v if v else 0.0


def _entry_value(R: Any, v: float, lam: float) -> float:
    if math.isinf(lam):
        return _times(lam, v)
    if isinstance(R, L0):
        return lam if v else 0.0
    if isinstance(R, L1):
        return lam * v
    if isinstance(R, ElasticNet):
        return lam * v + 0.5 * R.alpha * v * v
    # MCP and SCAD are integrals of their slopes, which are what their authors define
    if isinstance(R, MCP):
        end = min(v, R.gamma * lam)
        return lam * end - end * end / (2 * R.gamma)
    middle, end = min(v, lam), min(v, R.a * lam)
    falling = ((R.a * lam - middle) ** 2 - (R.a * lam - end) ** 2) / (2 * (R.a - 1))
    return lam * middle + falling


def plain_prox(R: Any, rows: Array, step: float) -> Array:
    """prox_{step R} of rows (n, P), in plain Python, from the definitions and the conventions."""
    kind = rows.dtype.type
    if not rows.size:
        return rows.copy()
    if R.nonneg:
        rows = np.array([[v if v > 0 or math.isnan(v) else kind(0) for v in row] for row in rows], rows.dtype)
    if isinstance(R, BatchKSparse):
        return np.array(_largest(rows.ravel(), R.k * len(rows)), rows.dtype).reshape(rows.shape)
    if isinstance(R, KSparse):
        return np.array([_largest(row, R.k) for row in rows], rows.dtype)
    one = _plain_group if isinstance(R, GroupL2) else _plain_sorted if isinstance(R, SortedL1) else _plain_entries
    return np.array([one(R, row, step) for row in rows], rows.dtype).reshape(rows.shape)


def _largest(u: Array, k: int) -> list[Any]:
    rank = sorted(
        range(len(u)), key=lambda i: (not math.isnan(u[i]), 0.0 if math.isnan(u[i]) else -abs(float(u[i])), i)
    )
    kept = set(rank[:k])
    return [v if i in kept and v != 0 else u.dtype.type(0) for i, v in enumerate(u)]


def _plain_group(R: Any, u: Array, step: float) -> list[Any]:
    out: list[Any] = []
    for start in range(0, len(u), R.size):
        group = [float(v) for v in u[start : start + R.size]]
        norm = math.nan if any(map(math.isnan, group)) else math.hypot(*group)
        t = float(u.dtype.type(step * float(R.lam)))
        out += [0.0] * R.size if norm <= t else [v if math.isinf(norm) else v * (1 - t / norm) for v in group]
    return out


def _plain_sorted(R: Any, u: Array, step: float) -> list[Any]:
    if any(map(math.isnan, u)):
        return [math.nan] * len(u)
    lams = np.broadcast_to(np.asarray(R.lam, dtype=np.float64), u.shape)
    if math.isinf(lams[0]):
        return [0.0] * len(u)
    order = sorted(range(len(u)), key=lambda i: -abs(float(u[i])))
    v = [abs(float(u[i])) - step * float(lam) for i, lam in zip(order, lams, strict=True)]
    out = [0.0] * len(u)
    for place, i in enumerate(order):  # isotonic regression by its min-max formula
        means = [
            [math.fsum(v[j : k + 1]) / (k + 1 - j) if math.isfinite(sum(v[j : k + 1])) else math.inf
             for k in range(place, len(v))]
            for j in range(place + 1)
        ]  # fmt: skip
        out[i] = math.copysign(max(min(max(row) for row in means), 0.0), u[i]) + 0.0
    return out


def _plain_entries(R: Any, u: Array, step: float) -> list[Any]:
    with np.errstate(all="ignore"):
        return [_plain_entry(R, v, step, lam) for v, lam in zip(u, _lams(R, u), strict=True)]


def _plain_entry(R: Any, v: Any, step: float, lam: float) -> Any:
    kind, size = type(v), abs(v)
    if math.isnan(v):
        return v
    if isinstance(R, L0):
        size = kind(0) if size <= kind(math.sqrt(2 * (step * lam))) else size
    elif isinstance(R, (L1, ElasticNet)):
        t = kind(step * lam)
        size = kind(0) if size <= t else size - t
        if isinstance(R, ElasticNet):
            size = kind(float(size) / (1 + step * R.alpha))
    elif isinstance(R, MCP):
        if step >= R.gamma:
            size = kind(0) if size <= kind(lam * math.sqrt(R.gamma * step)) else size
        elif size <= kind(step * lam):
            size = kind(0)
        else:
            size = min(size, kind(R.gamma / (R.gamma - step) * float(size - kind(step * lam))))
    elif step >= R.a + 1:
        size = kind(0) if size <= kind(lam * math.sqrt(step * (R.a + 1))) else size
    elif size <= kind(step * lam):
        size = kind(0)
    elif step >= R.a - 1:
        size = size - kind(step * lam) if size <= kind(lam * (R.a + 1 + step) / 2) else size
    else:
        steep = kind((R.a - 1) / (R.a - 1 - step) * float(size - kind(step * lam * R.a / (R.a - 1))))
        size = max(size - kind(step * lam), min(size, steep))
    return (size if v > 0 else -size) + kind(0)
