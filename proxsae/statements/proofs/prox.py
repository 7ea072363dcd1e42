"""Every prox is the minimiser of smallest magnitude: thm-prox-l1 to thm-prox-sorted, and lem-nonneg for each.

prox_{mu R}(u) = argmin_z mu R(z) + 1/2 ||z - u||^2, and among z >= 0 the minimiser is prox_{mu R}(max(u, 0)).
"""

from __future__ import annotations

from typing import Any

from proxsae.conventions import within
from proxsae.penalties import FAMILIES, L0, L1, MCP, SCAD, ElasticNet, Separable
from proxsae.penalties.scalar import larger, signed, smaller
from proxsae.statements.proofs.solver import WHOLE, Goal, add

SEPARABLE = {name.lower(): R for name, R in FAMILIES.items() if issubclass(R, Separable)}


def given(o: Any, R: Any) -> tuple[Any, list[Any], list[Any]]:
    """The step mu and the parameters of R as symbols, and what they must fulfil: the domain that R checks."""
    mu, *parameters = o.reals(" ".join(("mu", *R.domain)))
    domain = [within(allowed, p) for allowed, p in zip(R.domain.values(), parameters, strict=True)]
    return mu, parameters, [mu > 0, *domain]


def positive_part(o: Any, u: Any) -> Any:
    """max(u, 0)."""
    return o.where(u > 0, u, 0)


def minimises(R: Any, nonneg: bool, prox: Any = None) -> Any:
    """No z, or no z >= 0, has a lower objective than the prox, nor the same objective and a smaller magnitude."""

    def goal(o: Any) -> Goal:
        u, z = o.reals("u z")
        mu, parameters, domain = given(o, R)
        p = (prox or R.entry_prox)(o, positive_part(o, u) if nonneg else u, mu, *parameters)

        def objective(w: Any) -> Any:
            return mu * R.entry_value(o, w, *parameters) + (w - u) * (w - u) / 2

        gain = objective(z) - objective(p)
        best = (gain >= 0, o.either(gain > 0, o.abs(p) <= o.abs(z)))
        return ([*domain, z >= 0], (p >= 0, *best)) if nonneg else (domain, best)

    return goal


def wrongly(formula: Any) -> Any:
    """A prox with a planted error, from its formula in the magnitude |u|: signs are put back."""
    return lambda o, u, mu, *parameters: signed(o, formula(o, o.abs(u), mu, *parameters), u)


def hard(o: Any, size: Any, threshold: Any) -> Any:
    """Hard thresholding of a magnitude."""
    return o.where(size <= threshold, 0, size)


def firm_always(o: Any, size: Any, mu: Any, lam: Any, gamma: Any) -> Any:
    """MCP's formula for mu < gamma, at every mu."""
    return o.where(size <= mu * lam, 0, smaller(o, gamma / (gamma - mu) * (size - mu * lam), size))


def scad_of_small_steps(o: Any, size: Any, mu: Any, lam: Any, a: Any) -> Any:
    """SCAD's formula for mu < a - 1, at every mu."""
    steep = (a - 1) / (a - 1 - mu) * (size - mu * lam * a / (a - 1))
    return o.where(size <= mu * lam, 0, larger(o, size - mu * lam, smaller(o, steep, size)))


def scad_of_middle_steps(o: Any, size: Any, mu: Any, lam: Any, a: Any) -> Any:
    """SCAD's formula for a - 1 <= mu < a + 1, at every mu."""
    return o.where(size <= mu * lam, 0, o.where(size <= lam * (a + 1 + mu) / 2, size - mu * lam, size))


# Two planted errors a family: in the signed prox, in the non-negative one.
ERRORS: dict[Any, list[tuple[str, Any]]] = {
    L1: [
        ("the threshold is lam, without mu", lambda o, u, mu, lam: o.soft(u, lam)),
        ("what is kept is not shrunk", wrongly(lambda o, size, mu, lam: hard(o, size, mu * lam))),
    ],
    L0: [
        ("the weight of positive codes for both sides", lambda o, u, mu, lam, _: L0.entry_prox(o, u, mu, lam, lam)),
        ("the threshold is mu lam, not sqrt(2 mu lam)", wrongly(lambda o, size, mu, lam, _: hard(o, size, mu * lam))),
    ],
    ElasticNet: [
        ("divides by 1 + alpha, without mu", lambda o, u, mu, lam, alpha: o.soft(u, mu * lam) / (1 + alpha)),
        ("divides before it shrinks", lambda o, u, mu, lam, alpha: o.soft(u / (1 + mu * alpha), mu * lam)),
    ],
    MCP: [
        ("firm thresholding past mu = gamma", wrongly(firm_always)),
        ("the larger piece, not the smaller", wrongly(
            lambda o, size, mu, lam, gamma: o.where(
                size <= mu * lam, 0, larger(o, gamma / (gamma - mu) * (size - mu * lam), size)))),
    ],
    SCAD: [
        ("the formula for mu < a - 1 at every mu", wrongly(scad_of_small_steps)),
        ("the formula for mu < a + 1 past it", wrongly(scad_of_middle_steps)),
    ],
}  # fmt: skip

for _name, _R in SEPARABLE.items():
    _planted = ERRORS[_R]
    add(
        f"prox-{_name}", _R.statement, WHOLE,
        f"The prox of {_R.__name__} is the minimiser of smallest magnitude, for every u, step and parameter.",
        minimises(_R, False), _planted[0][0], minimises(_R, False, _planted[0][1]),
    )  # fmt: skip
    add(
        f"prox-{_name}-nonneg", "lem-nonneg", f"{_R.__name__}, per entry",
        f"The prox of {_R.__name__} at max(u, 0) is the minimiser of smallest magnitude among z >= 0.",
        minimises(_R, True), _planted[1][0], minimises(_R, True, _planted[1][1]),
    )  # fmt: skip
