"""Keeping the k largest magnitudes, for P <= 3: the prox of the k-sparse constraint, and what such codes keep.

The code sorts, which symbols cannot; here entry i is kept if P - k entries come after it, where j comes after i if
u_j^2 < u_i^2, or if they are equal and j > i.  The tests compare this formula with the code.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

from proxsae.statements.proofs.groups import minus, square
from proxsae.statements.proofs.prox import positive_part
from proxsae.statements.proofs.solver import Goal, add

SIZES = ((2, 1), (3, 1), (3, 2))  # (P, k)


def symbols(o: Any, letter: str, count: int) -> list[Any]:
    """The symbols letter1, letter2, ..."""
    return o.reals(" ".join(f"{letter}{i + 1}" for i in range(count)))


def keep(o: Any, u: Any, k: int, signed: bool = False, all_ties: bool = False) -> list[Any]:
    """AbsTopK: u on its k largest magnitudes, 0 elsewhere.  Planted errors: ranks by u itself, or keeps all ties."""
    ranks, kept = [v if signed else v * v for v in u], []
    for i, v in enumerate(u):
        after = [
            ranks[j] < ranks[i] if j < i and not all_ties else ranks[j] <= ranks[i] for j in range(len(u)) if j != i
        ]
        kept.append(o.where(o.either(*(o.both(*last) for last in combinations(after, len(u) - k))), v, 0))
    return kept


def keep_positive(o: Any, u: Any, k: int) -> list[Any]:
    """TopK: max(u, 0) on its k largest entries."""
    return keep(o, [positive_part(o, v) for v in u], k, signed=True)


def sparse(o: Any, z: Any, k: int) -> Any:
    """z has at most k entries that are not 0."""
    return o.either(*(o.both(*(v == 0 for v in rest)) for rest in combinations(z, len(z) - k)))


def projects(o: Any, prox: Any, nonneg: bool = False) -> Goal:
    """The prox is k-sparse, and no k-sparse z, or none that is >= 0, is closer to u."""
    cases: list[Any] = []
    for P, k in SIZES:
        u, z = symbols(o, "u", P), symbols(o, "z", P)
        p = prox(o, u, k)
        closest = square(minus(p, u)) <= square(minus(z, u))
        signs = [[v >= 0 for v in w] if nonneg else [] for w in (z, p)]
        cases.append(([sparse(o, z, k), *signs[0]], (sparse(o, p, k), *signs[1], closest)))
    return cases


def error(o: Any, quarter: Any = 4) -> Goal:
    """The three claims of lem-ksparse-error, squared."""
    cases: list[Any] = []
    for P, k in SIZES:
        u = symbols(o, "u", P)
        p, norm = keep(o, u, k), sum(o.abs(v) for v in u)
        rest = square(minus(u, p))
        cases.append(([], (square(u) == square(p) + rest, P * square(p) >= k * square(u))))
        cases.append(([], quarter * k * rest <= norm * norm))
    return cases


def nested(o: Any, all_ties: bool = False) -> Goal:
    """H_1 u is 0 or H_2 u in each entry, and H_1 H_2 u = H_2 H_1 u = H_1 u."""
    u = symbols(o, "u", 3)
    one, two = keep(o, u, 1), keep(o, u, 2, all_ties=all_ties)
    both = (keep(o, two, 1), keep(o, one, 2))
    inside = [o.either(a == 0, a == b) for a, b in zip(one, two, strict=True)]
    return [
        ([], (*inside, *(v == w for order in both for v, w in zip(order, one, strict=True)))),
        ([], sparse(o, two, 2)),
    ]


def symmetries(o: Any, prox: Any) -> Goal:
    """H(c u) = c H(u) for c > 0, and H(-u) = -H(u)."""
    (c,), cases = o.reals("c"), []
    for P, k in SIZES:
        u = symbols(o, "u", P)
        p, scaled, mirrored = prox(o, u, k), prox(o, [c * v for v in u], k), prox(o, [-v for v in u], k)
        cases.append(([c > 0], tuple(o.equal(q, c * v) for q, v in zip(scaled, p, strict=True))))
        cases.append(([], tuple(o.equal(q, -v) for q, v in zip(mirrored, p, strict=True))))
    return cases


def closer(o: Any, wrong: bool = False) -> Goal:
    """AbsTopK(u) is at most as far from u as TopK(u)."""
    cases: list[Any] = []
    for P, k in SIZES:
        u = symbols(o, "u", P)
        signed, positive = (square(minus(prox(o, u, k), u)) for prox in (keep, keep_positive))
        cases.append(([], signed < positive if wrong else signed <= positive))
    return cases


def splits(o: Any, ties: bool = False) -> Goal:
    """TopK((u, -u)) = (z_+, z_-) with z = AbsTopK(u), but for i < j with u_i = -u_j < 0, z_i kept and z_j not."""
    cases: list[Any] = []
    for P, k in SIZES[:2]:
        u = symbols(o, "u", P)
        z, split = keep(o, u, k), keep_positive(o, [*u, *(-v for v in u)], k)
        parts = [positive_part(o, v) for v in (*z, *(-v for v in z))]
        pairs = list(combinations(range(P), 2))
        regular = [o.either(u[i] >= 0, u[i] != -u[j], z[i] == 0, z[j] != 0) for i, j in pairs]
        exception = o.either(*(o.both(u[i] < 0, u[i] == -u[j], z[i] != 0, z[j] == 0) for i, j in pairs))
        cases.append(([] if ties else regular, tuple(a == b for a, b in zip(split, parts, strict=True))))
        cases.append(([exception], o.either(*(a != b for a, b in zip(split, parts, strict=True)))))
    return cases


def factor(o: Any, best: float | None = None) -> Goal:
    """||H b - x|| <= c ||b - x|| for k-sparse x: c = 2, and for P = 2 the golden ratio c = (1 + sqrt 5) / 2."""
    cases: list[Any] = []
    for (P, k), c in (*((size, 2) for size in SIZES), (SIZES[0], best or (1 + o.sqrt(5)) / 2)):
        b, x = symbols(o, "b", P), symbols(o, "x", P)
        cases.append(([sparse(o, x, k)], square(minus(keep(o, b, k), x)) <= c * c * square(minus(b, x))))
    return cases


def fixed(o: Any, wrong: bool = False) -> Goal:
    """For P = 2, k = 1 and gradient g: z = (z1, 0) with z1 != 0, and z = 0."""
    mu, z, *g = o.reals("mu z g1 g2")
    p, at_0 = keep(o, [z - mu * g[0], -mu * g[1]], 1), keep(o, [-mu * v for v in g], 1)
    stays = o.both(p[0] == z, p[1] == 0)
    given = [mu > 0, z != 0]
    flat, bound = g[0] == 0, o.abs(g[1]) if wrong else mu * o.abs(g[1])
    return [
        ([*given, stays], (flat, bound <= o.abs(z))),
        ([*given, flat, bound < o.abs(z)], stays),
        ([mu > 0, at_0[0] == 0, at_0[1] == 0], (g[0] == 0, g[1] == 0)),
    ]


for _name, _label, _scope, _sentence, _goal, _error, _wrong in (
    ("prox-ksparse", "thm-prox-ksparse", "P <= 3",
     "u on its k largest magnitudes is a closest k-sparse point, for P <= 3.",
     lambda o: projects(o, keep),
     "ranks by u, not by |u|", lambda o: projects(o, lambda o, u, k: keep(o, u, k, signed=True))),
    ("prox-ksparse-nonneg", "lem-nonneg", "KSparse, P <= 3",
     "max(u, 0) on its k largest entries is a closest k-sparse z >= 0, P <= 3.",
     lambda o: projects(o, keep_positive, nonneg=True),
     "takes |u| first",
     lambda o: projects(o, lambda o, u, k: keep(o, [o.abs(v) for v in u], k), nonneg=True)),
    ("ksparse-error", "lem-ksparse-error", "P <= 3",
     "||u||^2 = ||Hu||^2 + ||u - Hu||^2, P ||Hu||^2 >= k ||u||^2 and 4k ||u - Hu||^2 <= ||u||_1^2, for P <= 3.",
     error, "the constant 5 in place of 4", lambda o: error(o, 5)),
    ("ksparse-nested", "lem-nested", "P = 3, k = 1, k' = 2",
     "H_1 u lies in H_2 u, and H_1 H_2 u = H_2 H_1 u = H_1 u, for P = 3.",
     nested, "H_2 keeps all ties", lambda o: nested(o, all_ties=True)),
    ("ksparse-symmetries", "prop-symmetries", "KSparse, P <= 3",
     "H(c u) = c H(u) for c > 0 and H(-u) = -H(u), for P <= 3, with ties.",
     lambda o: symmetries(o, keep), "TopK is odd as well", lambda o: symmetries(o, keep_positive)),
    ("ksparse-closer", "prop-abstopk-closer", "P <= 3, the inequality",
     "||u - AbsTopK(u)|| <= ||u - TopK(u)||, for P <= 3.",
     closer, "< in place of <=", lambda o: closer(o, wrong=True)),
    ("ksparse-splits", "prop-splitting-codes", "P <= 3, k = 1",
     "TopK((u, -u)) = (z_+, z_-) with z = AbsTopK(u), but for the named ties and only for them; k = 1, P <= 3.",
     splits, "ties as well", lambda o: splits(o, ties=True)),
    ("ksparse-factor", "lem-hard-factor-two", "P <= 3; the best factor for P = 2",
     "||H b - x|| <= 2 ||b - x|| for k-sparse x and P <= 3, and the golden ratio in place of 2 for P = 2.",
     factor, "3/2 in place of the golden ratio", lambda o: factor(o, 1.5)),
    ("ksparse-fixed", "thm-ksparse-fixed-points", "P = 2, k = 1, signed",
     "For P = 2, k = 1: the fixed points have g_S = 0 and mu |g_j| <= |z| off S, or g = 0 where z = 0.",
     fixed, "|g_j| <= |z| without mu", lambda o: fixed(o, wrong=True)),
):  # fmt: skip
    add(_name, _label, _scope, _sentence, _goal, _error, _wrong)
