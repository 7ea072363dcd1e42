"""Penalties that couple entries, for two latents: GroupL2 and SortedL1 (thm-prox-group, thm-prox-sorted).

Their NumPy code takes norms without overflow, and sorts; neither runs on symbols.  Here stand the formulas that it
implements, and the tests compare the two.  The objective knows mu and lam only through t = mu lam.
"""

from __future__ import annotations

from typing import Any

from proxsae.statements.proofs.prox import positive_part
from proxsae.statements.proofs.solver import Goal, add


def group_value(o: Any, z: Any, t: Any) -> Any:
    """t ||z||."""
    return t * o.sqrt(square(z))


def group_prox(o: Any, u: Any, t: Any) -> Any:
    """u (1 - t / ||u||), and 0 where ||u|| <= t."""
    norm = o.sqrt(square(u))
    return [o.where(norm <= t, 0, ui * (1 - t / norm)) for ui in u]


def sorted_value(o: Any, z: Any, t: Any) -> Any:
    """t_1 times the larger magnitude and t_2 times the smaller."""
    a, b = o.abs(z[0]), o.abs(z[1])
    return o.where(a > b, t[0] * a + t[1] * b, t[0] * b + t[1] * a)


def sorted_prox(o: Any, u: Any, t: Any) -> Any:
    """Shrink the larger magnitude by t_1 and the smaller by t_2; where that swaps them, both become their mean."""
    a, b = o.abs(u[0]), o.abs(u[1])
    first = a >= b
    large, small = o.where(first, a, b) - t[0], o.where(first, b, a) - t[1]
    pooled = [o.where(large < small, (large + small) / 2, v) for v in (large, small)]
    large, small = (positive_part(o, v) for v in pooled)
    return with_signs(o, (o.where(first, large, small), o.where(first, small, large)), u)


def square(z: Any) -> Any:
    """||z||^2."""
    return sum(zi * zi for zi in z)


def minus(z: Any, u: Any) -> Any:
    """z - u."""
    return [zi - ui for zi, ui in zip(z, u, strict=True)]


def with_signs(o: Any, sizes: Any, u: Any) -> Any:
    """`sizes` with the signs of u."""
    return [o.where(ui > 0, size, -size) for size, ui in zip(sizes, u, strict=True)]


def minimises(value: Any, prox: Any, weights: str, nonneg: bool = False) -> Any:
    """No other pair z, or pair z >= 0, has a lower objective than the prox."""

    def goal(o: Any) -> Goal:
        ts, u, z = o.reals(weights), o.reals("u1 u2"), o.reals("z1 z2")
        t = ts if len(ts) > 1 else ts[0]
        p = prox(o, [positive_part(o, ui) for ui in u] if nonneg else u, t)
        best = value(o, p, t) + square(minus(p, u)) / 2 <= value(o, z, t) + square(minus(z, u)) / 2
        domain = [ts[-1] >= 0, ts[0] >= ts[-1]]
        return ([*domain, z[0] >= 0, z[1] >= 0], (p[0] >= 0, p[1] >= 0, best)) if nonneg else (domain, best)

    return goal


def in_radii(o: Any) -> Goal:
    """With r = ||z||, n = ||u||: the best r; ||z - u|| >= |r - n|; and the prox has the best r, with equality."""
    (t, r, n), u, z = o.reals("t r n"), o.reals("u1 u2"), o.reals("z1 z2")
    best, p = positive_part(o, n - t), group_prox(o, u, t)
    return [
        ([t >= 0, r >= 0, n >= 0], t * best + (best - n) * (best - n) / 2 <= t * r + (r - n) * (r - n) / 2),
        ([r >= 0, r * r == square(z), n >= 0, n * n == square(u)], square(minus(z, u)) >= (r - n) * (r - n)),
        ([t >= 0, n >= 0, n * n == square(u)],
         (square(p) == best * best, square(minus(p, u)) == (best - n) * (best - n))),
    ]  # fmt: skip


def in_magnitudes(o: Any) -> Goal:
    """Signs of u on z bring it closer to u, the prox has them, and its magnitudes are optimal for |u| among |z|."""
    t, u, z = o.reals("t1 t2"), o.reals("u1 u2"), o.reals("z1 z2")
    domain, sizes = [t[1] >= 0, t[0] >= t[1]], [o.abs(zi) for zi in z]
    p, of_sizes = sorted_prox(o, u, t), sorted_prox(o, [o.abs(ui) for ui in u], t)
    best = minimises(sorted_value, sorted_prox, "t1 t2", nonneg=True)(o)
    return [
        (domain, square(minus(with_signs(o, sizes, u), u)) <= square(minus(z, u))),
        *((domain, pi == qi) for pi, qi in zip(p, with_signs(o, of_sizes, u), strict=True)),
        best if isinstance(best, tuple) else best[0],
    ]


def entrywise(o: Any, u: Any, t: Any) -> Any:
    """Soft thresholding of each entry by itself."""
    return [o.soft(ui, t) for ui in u]


def without_pooling(o: Any, u: Any, t: Any) -> Any:
    """The larger magnitude shrunk by t_1 and the smaller by t_2, in whatever order that leaves them."""
    first = o.abs(u[0]) >= o.abs(u[1])
    return [o.soft(u[0], o.where(first, t[0], t[1])), o.soft(u[1], o.where(first, t[1], t[0]))]


def larger_first(o: Any, u: Any, t: Any) -> Any:
    """The weights taken in the order of the entries."""
    return [o.soft(ui, ti) for ui, ti in zip(u, t, strict=True)]


add(
    "prox-groupl2", "thm-prox-group", "a group of two",
    "The prox of GroupL2 for a pair has the best radius for t r + 1/2 (r - n)^2, and no direction is better than u's.",
    in_radii, "every entry is thresholded by itself", minimises(group_value, entrywise, "t"),
)  # fmt: skip
add(
    "prox-sortedl1", "thm-prox-sorted", "P = 2",
    "The prox of SortedL1 for a pair, pooled where shrinking turns the magnitudes around, is a minimiser.",
    in_magnitudes, "no pooling", minimises(sorted_value, without_pooling, "t1 t2"),
)  # fmt: skip
add(
    "prox-sortedl1-nonneg", "lem-nonneg", "SortedL1, P = 2",
    "The prox of SortedL1 for a pair at max(u, 0) is a minimiser among z >= 0.",
    minimises(sorted_value, sorted_prox, "t1 t2", nonneg=True),
    "the weights follow the entries, not their magnitudes",
    minimises(sorted_value, larger_first, "t1 t2", nonneg=True),
)  # fmt: skip
