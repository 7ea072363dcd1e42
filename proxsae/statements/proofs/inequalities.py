"""What holds of every scalar prox, family by family: the inequalities of the pages on proximal operators and signs.

The proofs for "any R" know of R only its values at the points that the hypotheses name.
"""

from __future__ import annotations

from typing import Any

from proxsae.penalties import L0, L1
from proxsae.penalties.domain import LAMS
from proxsae.statements.proofs.prox import SEPARABLE, given, positive_part
from proxsae.statements.proofs.solver import Goal, add


def swapped(R: Any, parameters: list[Any]) -> list[Any]:
    """The parameters of z -> r(-z): the same, but for the weights of the two sides where a family has two."""
    others = {"lam": "lam_minus", "lam_minus": "lam"} if "lam_minus" in R.domain else {}
    by_name = dict(zip(R.domain, parameters, strict=True))
    return [by_name[others.get(name, name)] for name in R.domain]


def penalty(o: Any, R: Any, wrong: bool = False) -> Goal:
    """r(0) = 0, r(-z) = r(z) for the weights of the other sides, and r does not fall as z moves away from 0."""
    z, w = o.reals("z w")
    _, parameters, domain = given(o, R)
    at_z, at_w, at_0 = (R.entry_value(o, v, *parameters) for v in (z, w, 0 * z))
    at_minus_z = R.entry_value(o, -z, *swapped(R, parameters))
    grows = z <= w if wrong else o.both(o.abs(z) <= o.abs(w), z * w >= 0)
    return [(domain, (at_0 == 0, at_z == at_minus_z)), ([*domain, grows], at_z <= at_w)]


def shrinks(o: Any, R: Any, wrong: bool = False) -> Goal:
    """|p| <= |u|, and p has the sign of u or is 0."""
    (u,) = o.reals("u")
    mu, parameters, domain = given(o, R)
    p = R.entry_prox(o, u, mu, *parameters)
    return [*domain, u != 0], (p * u > 0 if wrong else p * u >= 0, o.abs(p) <= o.abs(u))


def monotone(o: Any, R: Any, wrong: bool = False) -> Goal:
    """p does not fall as u grows."""
    u, v = o.reals("u v")
    mu, parameters, domain = given(o, R)
    p, q = (R.entry_prox(o, w, mu, *parameters) for w in (u, v))
    return [*domain, u < v], p < q if wrong else p <= q


def odd(o: Any, R: Any, wrong: bool = False) -> Goal:
    """prox(-u) = -prox(u), with the weights of the other sides."""
    (u,) = o.reals("u")
    mu, parameters, domain = given(o, R)
    sides = ((u, parameters), (-u, swapped(R, parameters)))
    p, q = (R.entry_prox(o, positive_part(o, w) if wrong else w, mu, *weights) for w, weights in sides)
    return domain, o.equal(q, -p)


def scales(o: Any, R: Any, wrong: bool = False) -> Goal:
    """prox(c u) with c lam is c prox(u) with lam; for l0 with c^2 lam."""
    c, u = o.reals("c u")
    mu, parameters, domain = given(o, R)
    power = c if (R is L0) == wrong else c * c
    scaled = [power * a if name in LAMS else a for name, a in zip(R.domain, parameters, strict=True)]
    p, q = R.entry_prox(o, u, mu, *parameters), R.entry_prox(o, c * u, mu, *scaled)
    return [*domain, c > 0], o.equal(q, c * p)


def falls(o: Any, R: Any, wrong: bool = False) -> Goal:
    """|p| grows neither with the step nor with a parameter: for u >= 0, and |prox(-u)| = |prox(u)|, sides swapped."""
    u, more = o.reals("u more")
    mu, parameters, domain = given(o, R)
    weights = [mu, *parameters]
    size, mirrored = o.abs(R.entry_prox(o, u, *weights)), o.abs(R.entry_prox(o, -u, mu, *swapped(R, parameters)))
    cases: list[Any] = [(domain, o.equal(mirrored, size))]
    for i in range(len(weights)):
        heavier = o.abs(R.entry_prox(o, u, *(w + more if i == j else w for j, w in enumerate(weights))))
        cases.append(([*domain, u >= 0, more >= 0], size <= heavier if wrong else heavier <= size))
    return cases


CLAIMS = {
    "penalty": ("lem-shrinks", "r(0) = 0, r(-z) = r(z) (L0: sides swapped), r does not fall away from 0", penalty,
                "r does not fall as z grows"),
    "shrinks": ("lem-shrinks", "|p| <= |u|, and p has the sign of u or is 0", shrinks, "p is never 0"),
    "monotone": ("lem-prox-monotone", "u < v gives prox(u) <= prox(v)", monotone, "prox(u) < prox(v)"),
    "odd": ("prop-symmetries", "prox(-u) = -prox(u) (L0: sides swapped)", odd, "the same of the non-negative prox"),
    "scales": ("prop-symmetries", "c u has the prox c p for lam times c (L0: c^2), c > 0", scales,
               "lam times c^2 (L0: c)"),
    "falls": ("prop-lam-monotone", "|prox(u)| grows neither with the step nor with a parameter", falls,
              "|prox(u)| falls with none of them"),
}  # fmt: skip

for _claim, (_label, _sentence, _goal, _error) in CLAIMS.items():
    for _name, _R in SEPARABLE.items():
        add(
            f"{_claim}-{_name}", _label, f"{_R.__name__}, per entry",
            f"{_R.__name__}: {_sentence}, for all reals and parameters.",
            lambda o, R=_R, goal=_goal: goal(o, R), _error, lambda o, R=_R, goal=_goal: goal(o, R, wrong=True),
        )  # fmt: skip


def firmly(o: Any, R: Any, nonneg: bool, wrong: bool = False) -> Goal:
    """(p - q)^2 <= (p - q) (u - v)."""
    u, v = o.reals("u v")
    mu, parameters, domain = given(o, R)
    prox: Any = (lambda o, u, mu, lam, *others: L0.entry_prox(o, u, mu, lam, lam)) if wrong else R.entry_prox
    p, q = (prox(o, positive_part(o, w) if nonneg else w, mu, *parameters) for w in (u, v))
    return domain, (p - q) * (p - q) <= (p - q) * (u - v)


def moreau(o: Any, nonneg: bool, wrong: bool = False) -> Goal:
    """u - prox(u) is the point nearest to u in mu C: C = [-lam, lam], and C = (-infinity, lam] for z >= 0."""
    u, y = o.reals("u y")
    mu, (lam,), domain = given(o, L1)
    bound = lam if wrong else mu * lam
    q = u - L1.entry_prox(o, positive_part(o, u) if nonneg else u, mu, lam)

    def inside(w: Any) -> Any:
        return w <= bound if nonneg else o.both(-bound <= w, w <= bound)

    return [*domain, inside(y)], (inside(q), (q - u) * (q - u) <= (y - u) * (y - u))


for _nonneg, _sign in ((False, ""), (True, "-nonneg")):
    for _name, _R in SEPARABLE.items():
        if _R.convex:
            add(
                f"firm-{_name}{_sign}", "thm-firmly-nonexpansive", f"{_R.__name__}, per entry",
                f"{_R.__name__}, {'non-negative' if _nonneg else 'signed'}: (p - q)^2 <= (p - q)(u - v) for all u, v.",
                lambda o, R=_R, nonneg=_nonneg: firmly(o, R, nonneg),
                "hard thresholding instead", lambda o, R=_R, nonneg=_nonneg: firmly(o, R, nonneg, wrong=True),
            )  # fmt: skip
    add(
        f"moreau-l1{_sign}", "thm-moreau", "L1, per entry",
        f"L1, {'non-negative' if _nonneg else 'signed'}: u - prox(u) is the point of mu C nearest to u.",
        lambda o, nonneg=_nonneg: moreau(o, nonneg),
        "C is not scaled by mu", lambda o, nonneg=_nonneg: moreau(o, nonneg, wrong=True),
    )  # fmt: skip


def optimal(mu: Any, u: Any, p: Any, R_p: Any, z: Any, R_z: Any) -> Any:
    """p is no worse than z as the prox at u."""
    return mu * R_p + (p - u) * (p - u) / 2 <= mu * R_z + (z - u) * (z - u) / 2


def any_monotone(o: Any, wrong: bool = False) -> Goal:
    """For minimisers p at u and q at v; and for p at the step mu and q at a longer step nu."""
    u, v, p, q, R_p, R_q, mu, nu = o.reals("u v p q R_p R_q mu nu")
    at_one_step = [mu > 0, optimal(mu, u, p, R_p, q, R_q), optimal(mu, v, q, R_q, p, R_p)]
    at_one_point = [mu > 0, nu > mu, optimal(mu, u, p, R_p, q, R_q), optimal(nu, u, q, R_q, p, R_p)]
    product = (p - q) * (u - v)
    return [(at_one_step, product >= (p - q) * (p - q) if wrong else product >= 0), (at_one_point, R_q <= R_p)]


def any_shrinks(o: Any, wrong: bool = False) -> Goal:
    """p is no worse than u and than 0, where R(0) <= R(p); and R(u) <= R(p) if u is between 0 and p."""
    u, p, R_u, R_p, R_0, mu = o.reals("u p R_u R_p R_0 mu")
    rises = [] if wrong else [o.either(o.abs(u) > o.abs(p), u * p < 0, R_u <= R_p)]
    given_p = [mu > 0, R_p >= R_0, *rises, optimal(mu, u, p, R_p, u, R_u), optimal(mu, u, p, R_p, 0 * u, R_0)]
    return given_p, (p * u >= 0, o.abs(p) <= o.abs(u))


def any_nonneg(o: Any, wrong: bool = False) -> Goal:
    """p is no worse than z at max(u, 0), and lies between 0 and it (lem-shrinks); then it is no worse at u."""
    u, z, p, R_z, R_p, mu = o.reals("u z p R_z R_p mu")
    top = positive_part(o, u)
    given_p = [mu > 0, *([] if wrong else [z >= 0]), p >= 0, p <= top, optimal(mu, top, p, R_p, z, R_z)]
    return given_p, optimal(mu, u, p, R_p, z, R_z)


def any_convex(o: Any, wrong: bool = False) -> Goal:
    """(u - p) / mu is a subgradient at p, and (v - q) / mu at q."""
    u, v, p, q, R_p, R_q, mu = o.reals("u v p q R_p R_q mu")
    subgradients = [mu * (R_q - R_p) >= (u - p) * (q - p), mu * (R_p - R_q) >= (v - q) * (p - q)]
    return [mu > 0, *(subgradients[:1] if wrong else subgradients)], (p - q) * (p - q) <= (p - q) * (u - v)


for _name, _label, _sentence, _general, _error in (
    ("monotone-any", "lem-prox-monotone",
     "Any R: minimisers p at u and q at v have (p - q)(u - v) >= 0, and R(p) does not rise with the step.",
     any_monotone, "(p - q)^2 <= (p - q)(u - v), as for convex R"),
    ("shrinks-any", "lem-shrinks",
     "Any R that does not fall away from 0: every minimiser p lies between 0 and u.",
     any_shrinks, "R may fall"),
    ("nonneg-any", "lem-nonneg",
     "Any R of that kind: a minimiser at max(u, 0) is a minimiser at u among z >= 0.",
     any_nonneg, "among all z"),
    ("firm-any", "thm-firmly-nonexpansive",
     "Any convex R: (p - q)^2 <= (p - q)(u - v) follows from the subgradient inequalities at p and q.",
     any_convex, "convexity used at p only"),
):  # fmt: skip
    add(_name, _label, "one entry of any R", _sentence, _general, _error, lambda o, goal=_general: goal(o, wrong=True))
