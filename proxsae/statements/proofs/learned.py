"""Learned layers, in one entry or one latent: ALISTA's rate, coupled weights, leave-one-out, gradients at a gap."""

from __future__ import annotations

from typing import Any

from proxsae.penalties import L0, L1
from proxsae.statements.proofs.identities import half_square
from proxsae.statements.proofs.prox import positive_part
from proxsae.statements.proofs.solver import Goal, add


def alista_entry(o: Any, wrong: bool = False) -> Goal:
    """|soft(v, h) - z*| <= |v - z*| + h, and soft is 0 where |v| <= h; for z >= 0 the same, of z* >= 0."""
    v, best, h = o.reals("v best h")
    cases: list[Any] = []
    for nonneg in (False, True):
        p = L1.entry_prox(o, positive_part(o, v) if nonneg else v, 1, h)
        moved = o.abs(v - best) + (0 if wrong else h)
        cases.append(([h >= 0, *([best >= 0] if nonneg else [])], o.abs(p - best) <= moved))
        cases.append(([h >= 0, v <= h, *([] if nonneg else [v >= -h])], p == 0))
    return cases


def alista_falls(o: Any, wrong: bool = False) -> Goal:
    """With s = m (2k - 1), q = |1 - mu| + mu s < 1 iff s < 1 and mu (1 + s) < 2, and then q is least at mu = 1."""
    mu, m, k = o.reals("mu m k")
    spread = m * (2 * k - (0 if wrong else 1))
    q = o.abs(1 - mu) + mu * m * (2 * k - 1)
    given = [mu > 0, m >= 0, k >= 1]
    both = o.both(spread < 1, mu * (1 + spread) < 2)
    return [
        ([*given, q < 1], both),
        ([*given, both], q < 1),
        ([*given, spread < 1], m * (2 * k - 1) <= q),
    ]


def coupling(o: Any, wrong: bool = False) -> Goal:
    """Codes B and B/2 found within a < B/2, from within e: |s + w - 1| B <= 4 eta, h <= 3 eta, eta = a + |s| e."""
    s, w, h, B, a, e, e1, e2 = o.reals("s w h B a e e1 e2")
    eta, close = a + o.abs(s) * e, [B > 0, h >= 0, 2 * a < B]
    for true, off in ((B, e1), (B / 2, e2)):
        code = L1.entry_prox(o, s * (true + off) + w * true, 1, h)
        close += [o.abs(off) <= e, o.abs(code - true) <= a]
    return close, (o.abs(s + w - 1) * B <= (3 if wrong else 4) * eta, h <= 3 * eta)


def leave_one_out(o: Any, wrong: bool = False) -> Goal:
    """The error without latent j changes by z (2p - d^2 z); and the prox of L0(h^2/2) keeps p iff |p| > h."""
    r, d, z, h = o.reals("r d z h")
    p = d * r + d * d * z
    change = (r + z * d) * (r + z * d) - r * r
    kept = L0.entry_prox(o, p, 1, h * h / 2, h * h / 2) != 0
    return [
        ([], o.equal(change, z * ((1 if wrong else 2) * p - d * d * z))),
        ([z * p <= 0], change <= 0),
        ([h >= 0, kept], o.abs(p) > h),
        ([h >= 0, o.abs(p) > h], kept),
    ]


def gap_bounds_gradient(o: Any, wrong: bool = False) -> Goal:
    """For the minimiser z* of L1, (r - r*)^2 <= 2 (F(z) - F(z*)), r = c - d z."""
    c, d, z, best, lam = o.reals("c d z best lam")
    cases: list[Any] = []
    for nonneg in (False, True):
        v = best - d * (d * best - c)
        stays = best == L1.entry_prox(o, positive_part(o, v) if nonneg else v, 1, lam)
        gap = half_square(c - d * z) + lam * o.abs(z) - half_square(c - d * best) - lam * o.abs(best)
        signs = [z >= 0] if nonneg else []
        moved = d * (z - best)
        cases.append(([lam >= 0, stays, *signs], moved * moved <= (1 if wrong else 2) * gap))
    return cases


for _name, _label, _scope, _sentence, _goal, _error in (
    ("alista-entry", "thm-alista-rate", "one entry",
     "soft(v, h) is at most h further from z* than v, and 0 where |v| <= h; signed, and for z* >= 0.",
     alista_entry, "no further than v"),
    ("alista-falls", "thm-alista-rate", "when it falls",
     "q < 1 iff m (2k - 1) < 1 and mu < 2 / (1 + m (2k - 1)), and then no mu has a smaller q than mu = 1.",
     alista_falls, "2k in place of 2k - 1"),
    ("coupling", "thm-coupling-is-necessary", "one latent, soft",
     "A layer that finds B and B/2 within a < B/2 has |s + w - 1| B <= 4 eta and theta <= 3 eta.",
     coupling, "3 eta in place of 4 eta"),
    ("leave-one-out", "prop-leave-one-out", "one latent",
     "Leaving a latent out changes the error by z (2p - d^2 z), and L0(tau^2 / 2) keeps p iff |p| > tau.",
     leave_one_out, "z (p - d^2 z)"),
    ("gradient-at-a-gap", "prop-gradient-at-infinity", "(2) in b, one latent",
     "L1: the residual of any z is within sqrt(2 gap) of that of the minimiser; signed, and for z >= 0.",
     gap_bounds_gradient, "sqrt(gap)"),
):  # fmt: skip
    add(_name, _label, _scope, _sentence, _goal, _error, lambda o, goal=_goal: goal(o, wrong=True))
