"""The iteration, its step sizes, certificates and fixed points, with one latent: F(z) = 1/2 (x - d z)^2 + R(z).

b is part of x.  With one latent L = d^2, so the constants of the theorems show.  Where R is any penalty, the proof
knows its values R_z, R_p, ... at the points named and that p minimises; where a family is named, p is its entry_prox.
"""

from __future__ import annotations

from typing import Any

from proxsae.penalties import L0, L1, ElasticNet
from proxsae.statements.proofs.inequalities import optimal
from proxsae.statements.proofs.prox import given, positive_part
from proxsae.statements.proofs.solver import Goal, add


def half_square(r: Any) -> Any:
    """1/2 r^2."""
    return r * r / 2


def step(o: Any, convex: bool) -> tuple[list[Any], Any, Any, Any, Any]:
    """A step from z to p for any R, or any convex R: its hypotheses, then mu, d, p - z and F(z) - F(p)."""
    x, d, z, p, R_z, R_p, mu = o.reals("x d z p R_z R_p mu")
    u = z - mu * d * (d * z - x)
    known = mu * (R_z - R_p) >= (u - p) * (z - p) if convex else optimal(mu, u, p, R_p, z, R_z)
    return [mu > 0, known], mu, d, p - z, half_square(x - d * z) + R_z - half_square(x - d * p) - R_p


def descent(o: Any, wrong: bool = False) -> Goal:
    """Any R: F(z) - F(p) >= 1/2 (1/mu - L) (p - z)^2; convex R: >= (1/mu - L/2) (p - z)^2."""
    cases: list[Any] = []
    for convex in (False, True):
        known, mu, d, dz, gain = step(o, convex)
        slope = 1 / mu - d * d / 2 if convex or wrong else (1 / mu - d * d) / 2
        cases.append((known, gain >= slope * dz * dz))
    return cases


def descent_of(R: Any, longest: Any) -> Any:
    """One step of the code never raises F, for mu L up to `longest`, signed and non-negative."""

    def goal(o: Any) -> Goal:
        x, d, z = o.reals("x d z")
        mu, parameters, domain = given(o, R)
        u, cases = z - mu * d * (d * z - x), []
        for nonneg in (False, True):
            p = R.entry_prox(o, positive_part(o, u) if nonneg else u, mu, *parameters)
            before, after = (half_square(x - d * w) + R.entry_value(o, w, *parameters) for w in (z, p))
            cases.append(([*domain, mu * d * d <= longest, *([z >= 0] if nonneg else [])], after <= before))
        return cases

    return goal


def backtracking(o: Any, wrong: bool = False) -> Goal:
    """F(z) - F(p) >= (dz^2 - mu (d dz)^2) / (2 mu)."""
    known, mu, d, dz, gain = step(o, convex=False)
    return known, gain >= (dz * dz - mu * d * dz * d * dz) / (mu if wrong else 2 * mu)


def rate(o: Any, wrong: bool = False) -> Goal:
    """F(p) - F(w) <= ((z - w)^2 - (p - w)^2) / (2 mu) for convex R, mu L <= 1 and any w."""
    x, d, z, p, w, R_p, R_w, mu = o.reals("x d z p w R_p R_w mu")
    u = z - mu * d * (d * z - x)
    gap = half_square(x - d * p) + R_p - half_square(x - d * w) - R_w
    known = [mu > 0, mu * (R_w - R_p) >= (u - p) * (w - p), mu * d * d <= (2 if wrong else 1)]
    return known, gap <= ((z - w) * (z - w) - (p - w) * (p - w)) / (2 * mu)


def momentum(o: Any, wrong: bool = False) -> Goal:
    """t' = (1 + sqrt(1 + 4 t^2)) / 2 has t'^2 - t' = t^2 and t' >= t + 1/2."""
    (t,) = o.reals("t")
    after = (1 + o.sqrt(1 + (2 if wrong else 4) * t * t)) / 2
    return [t >= 1], (o.equal(after * after - after, t * t), after >= t + 0.5)


def linear_phase(o: Any, wrong: bool = False) -> Goal:
    """Where z* is fixed and z, p, z* have one sign, p - z* = (1 - mu L)(z - z*)."""
    x, d, z, best = o.reals("x d z best")
    mu, (lam,), domain = given(o, L1)
    p, stays = (L1.entry_prox(o, w - mu * d * (d * w - x), mu, lam) for w in (z, best))
    signs = [] if wrong else [p > 0]
    return [*domain, stays == best, best > 0, z > 0, *signs], o.equal(p - best, (1 - mu * d * d) * (z - best))


def exact_step(o: Any, wrong: bool = False) -> Goal:
    """With h the gradient of a face of two latents, mu = ||h||^2 / ||D h||^2 is the best of all steps t."""
    r, d, e, s, v, t, mu = o.reals("r d e s v t mu")  # residual, atoms, slopes of R along the face
    h = (s - d * r, (0 if wrong else v) - e * r)
    squared, Dh = h[0] * h[0] + h[1] * h[1], d * h[0] + e * h[1]

    def change(t: Any) -> Any:
        return half_square(r + t * Dh) - half_square(r) - t * (s * h[0] + v * h[1])

    return [Dh != 0, o.equal(mu * Dh * Dh, squared)], (
        change(mu) <= change(t), o.equal(change(mu), -mu * squared / 2), o.equal(mu * mu * Dh * Dh, mu * squared)
    )  # fmt: skip


def step_scaling(o: Any, wrong: bool = False) -> Goal:
    """prox at mu u: L1 mu prox_1(u); ElasticNet mu prox_1(u) with mu alpha; L0 mu prox_1(u) with lam / mu."""
    (u,) = o.reals("u")
    mu, (lam, alpha), domain = given(o, ElasticNet)
    _, sides, both = given(o, L0)
    return [
        (domain, o.equal(L1.entry_prox(o, mu * u, mu, lam), mu * L1.entry_prox(o, u, 1, lam))),
        (domain, o.equal(ElasticNet.entry_prox(o, mu * u, mu, lam, alpha),
                         mu * ElasticNet.entry_prox(o, u, 1, lam, mu * alpha))),
        (both, o.equal(L0.entry_prox(o, mu * u, mu, *sides),
                       mu * L0.entry_prox(o, u, 1, *(lam if wrong else lam / mu for lam in sides)))),
    ]  # fmt: skip


def encoders(o: Any, wrong: bool = False) -> Goal:
    """At mu = 1: L1 is max(u - lam, 0); L0 with lam = theta^2 / 2 is u where u > theta, or where u < -theta_minus."""
    u, lam, theta, minus = o.reals("u lam theta minus")
    top, weight, other = positive_part(o, u), theta if wrong else theta * theta / 2, minus * minus / 2
    relu, jump, sides = L1.entry_prox(o, top, 1, lam), *(L0.entry_prox(o, v, 1, weight, other) for v in (top, u))
    return [
        ([lam >= 0], o.equal(relu, positive_part(o, u - lam))),
        ([theta >= 0], o.equal(jump, o.where(u > theta, u, 0))),
        ([theta >= 0, minus >= 0], o.equal(sides, o.where(u > theta, u, o.where(u < -minus, u, 0)))),
    ]


def orthonormal(o: Any, wrong: bool = False) -> Goal:
    """If d^2 = a, the step 1/a goes from any z to the same minimiser of F: L1 and L0."""
    x, d, z, w = o.reals("x d z w")
    cases: list[Any] = []
    for R in (L1, L0):
        mu, parameters, domain = given(o, R)
        p = R.entry_prox(o, z - mu * d * (d * z - x), mu, *parameters)
        best, other = (half_square(x - d * v) + R.entry_value(o, v, *parameters) for v in (p, w))
        cases.append(([*domain, mu * d * d < 1 if wrong else mu * d * d == 1], best <= other))
    return cases


def optimality(o: Any, wrong: bool = False) -> Goal:
    """z = T(z) iff g = -lam sign(z), or |g| <= lam at z = 0; and then F(z) <= F(w) for all w, g the gradient of F."""
    x, d, g, z, w = o.reals("x d g z w")
    mu, (lam,), domain = given(o, L1)
    stays = L1.entry_prox(o, z - mu * g, mu, lam) == z
    zero = o.both(z == 0, -lam < g, g < lam) if wrong else o.both(z == 0, -lam <= g, g <= lam)
    kkt = o.either(zero, o.both(z > 0, g == -lam), o.both(z < 0, g == lam))
    best = half_square(x - d * z) + lam * o.abs(z) <= half_square(x - d * w) + lam * o.abs(w)
    of_F = g == d * (d * z - x)
    return [([*domain, stays], kkt), ([*domain, kkt], stays), ([*domain, kkt, of_F], best)]


def zero_is_best(o: Any, wrong: bool = False) -> Goal:
    """z = 0 is optimal iff lam >= |d x|, for the non-negative problem iff lam >= d x."""
    x, d, w = o.reals("x d w")
    mu, (lam,), domain = given(o, L1)
    cases: list[Any] = []
    for nonneg in (False, True):
        peak = d * x if nonneg or wrong else o.abs(d * x)
        u = mu * d * x
        stays = L1.entry_prox(o, positive_part(o, u) if nonneg else u, mu, lam) == 0
        best = half_square(x) <= half_square(x - d * w) + lam * o.abs(w)
        cases.append(([*domain, peak <= lam, *([w >= 0] if nonneg else [])], best))
        cases.append(([*domain, stays], peak <= lam))
    return cases


def duality_gap(o: Any, wrong: bool = False) -> Goal:
    """gap = 1/2 (r - theta)^2 + (lam |z| - z d theta), both >= 0, and >= F(z) - F(w) for all w; theta = s r."""
    x, d, z, w, lam, s = o.reals("x d z w lam s")
    r = x - d * z
    theta, cases = r if wrong else s * r, []
    for nonneg in (False, True):
        steep = d * theta if nonneg else o.abs(d * theta)
        known = [lam >= 0, s >= 0, s <= 1, *([] if wrong else [steep <= lam]), *([z >= 0, w >= 0] if nonneg else [])]
        term = lam * o.abs(z) - z * d * theta
        gap = half_square(r - theta) + term
        F, at_w = (half_square(x - d * v) + lam * o.abs(v) for v in (z, w))
        dual = half_square(x) - half_square(theta - x)
        cases.append((known, (o.equal(gap, F - dual), term >= 0, gap >= F - at_w)))
    return cases


def l0_fixed_points(o: Any, wrong: bool = False) -> Goal:
    """z = T(z), ties to 0, iff g = 0 and z^2 > 2 mu lam, or z = 0 and mu g^2 <= 2 lam; lam of the side of z or -g."""
    z, g = o.reals("z g")
    mu, sides, domain = given(o, L0)
    stays = L0.entry_prox(o, z - mu * g, mu, *sides) == z
    alive = z * z > 0 if wrong else z * z > 2 * mu * o.by_sign(z, *sides)
    means = o.either(o.both(z != 0, g == 0, alive), o.both(z == 0, mu * g * g <= 2 * o.by_sign(-g, *sides)))
    return [([*domain, stays], means), ([*domain, means], stays)]


def support_changes(o: Any, wrong: bool = False) -> Goal:
    """Two codes of L0, one 0 and the other not, are sqrt(2 mu lam) apart; so F drops by (1 - mu L) lam."""
    x, d, u = o.reals("x d u")
    mu, sides, domain = given(o, L0)
    z = L0.entry_prox(o, u, mu, *sides)
    p = L0.entry_prox(o, z - mu * d * (d * z - x), mu, *sides)
    before, after = (half_square(x - d * w) + L0.entry_value(o, w, *sides) for w in (z, p))
    lam = o.by_sign(z + p, *sides)  # of the one that is not 0
    drop = lam if wrong else (1 - mu * d * d) * lam
    changed = o.either(o.both(z == 0, p != 0), o.both(z != 0, p == 0))
    return [*domain, mu * d * d < 1, changed], ((p - z) * (p - z) >= 2 * mu * lam, before - after >= drop)


def stationary(o: Any, wrong: bool = False) -> Goal:
    """If F(z) <= F(y) and mu L <= 1, then z is no worse than y for the prox of the step."""
    x, d, z, y, R_z, R_y, mu = o.reals("x d z y R_z R_y mu")
    best = half_square(x - d * z) + R_z <= half_square(x - d * y) + R_y
    known = [mu > 0, best, mu * d * d <= (2 if wrong else 1)]
    return known, optimal(mu, z - mu * d * (d * z - x), z, R_z, y, R_y)


for _name, _label, _scope, _sentence, _goal, _error in (
    ("descent-any", "thm-ista-descent", "one latent",
     "F falls by 1/2 (1/mu - L)(p - z)^2 or more for any R, by (1/mu - L/2)(p - z)^2 for convex R.",
     descent, "the bound for convex R, for any R"),
    ("backtracking", "lem-backtracking", "one latent",
     "Any R, any step: F(z) - F(p) >= ((p - z)^2 - mu (d (p - z))^2) / (2 mu).",
     backtracking, "without the factor 2"),
    ("three-points", "thm-ista-rate", "one latent, one step",
     "Convex R, mu L <= 1, any w: F(p) - F(w) <= ((z - w)^2 - (p - w)^2) / (2 mu).",
     rate, "for mu L <= 2"),
    ("momentum", "thm-fista-rate", "the recursion of t only",
     "t' = (1 + sqrt(1 + 4 t^2)) / 2 has t'^2 - t' = t^2 and t' >= t + 1/2, for t >= 1.",
     momentum, "2 t^2 under the root"),
    ("linear-phase", "thm-linear-phase", "L1, one latent",
     "L1, one sign throughout, z* fixed: p - z* = (1 - mu L)(z - z*).",
     linear_phase, "p may have another sign"),
    ("exact-step", "thm-exact-step", "a face of two latents, one residual",
     "On a face of two latents ||h||^2 / ||Dh||^2 is the best step along h, and F falls by ||h||^4 / (2 ||Dh||^2).",
     exact_step, "the slope of R is left out of one entry of h"),
    ("step-scaling", "prop-step-scaling", "L1, ElasticNet and L0, per entry",
     "A step mu from 0 gives mu times the code of mu = 1: L1; ElasticNet with mu alpha; L0 with lam / mu.",
     step_scaling, "L0 with lam as it is"),
    ("encoders", "prop-one-step-is-an-sae", "ReLU and JumpReLU, per entry",
     "At mu = 1 L1 for z >= 0 is the ReLU of u - lam; L0 with lam = theta^2 / 2 is the JumpReLU, also of two sides.",
     encoders, "lam = theta"),
    ("orthonormal", "prop-one-step-orthonormal", "L1 and L0, one latent",
     "If d^2 = a, the step 1/a of L1 and of L0 reaches a global minimum of F from any z.",
     orthonormal, "a shorter step"),
    ("l1-optimality", "thm-l1-optimality", "signed; optimality for one latent",
     "L1: z = T(z) iff the KKT conditions hold, whatever mu, and then F(z) <= F(w) for all w.",
     optimality, "strict conditions at 0"),
    ("lambda-max", "prop-lambda-max", "one latent",
     "L1: z = 0 is a minimiser iff |d x| <= lam, and among z >= 0 iff d x <= lam.",
     zero_is_best, "signed codes, without |.|"),
    ("duality-gap", "thm-duality-gap", "one latent, theta feasible",
     "The gap is a sum of terms >= 0, is F(z) - dual(theta), and bounds F(z) - F(w) for all w; both signs.",
     duality_gap, "theta is not scaled into the box"),
    ("l0-fixed", "thm-l0-fixed-points", "signed, ties to 0, per entry",
     "L0, ties to 0: z = T(z) iff g = 0 and z^2 > 2 mu lam, or z = 0 and mu g^2 <= 2 lam; both sides.",
     l0_fixed_points, "any z with g = 0"),
    ("support-changes", "thm-support-changes", "one latent",
     "L0, both sides, mu L < 1: what enters or leaves moves sqrt(2 mu lam), F falls by (1 - mu L) lam, or more.",
     support_changes, "F falls by lam"),
    ("stationary", "thm-optimal-is-stationary", "one latent",
     "Any R, mu L <= 1: a minimiser of F minimises the objective of the step's prox.",
     stationary, "for mu L <= 2"),
):  # fmt: skip
    add(_name, _label, _scope, _sentence, _goal, _error, lambda o, goal=_goal: goal(o, wrong=True))

for _R, _longest, _error in ((L1, 2, "mu L <= 3"), (L0, 1, "mu L <= 2, as for convex R")):
    add(
        f"descent-{_R.__name__.lower()}", "thm-ista-descent", f"{_R.__name__}, one latent",
        f"A step of {_R.__name__} never raises F for mu L <= {_longest}, signed and non-negative.",
        descent_of(_R, _longest), _error, descent_of(_R, _longest + 1),
    )  # fmt: skip
