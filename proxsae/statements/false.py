"""False statements (docs/theory/false.md): tempting claims, each with the counterexample that refutes it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from proxsae.statements.plain import Array, extrapolations, gradient, squared_error
from proxsae.statements.registry import Kit, insist, page, refused
from proxsae.testing.compare import assert_close

statement = page("false", on_paper="a counterexample")
PAIR = np.array([[1.0, 0.0], [0.8, 0.6]])  # two unit-norm atoms, as rows: L = 1.8


def refuted(happens: Any, what: str) -> None:
    """Raise AssertionError unless the counterexample refutes the claim."""
    insist(bool(happens), f"the counterexample no longer refutes the claim: {what}")


def holds(happens: Any, what: str) -> None:
    """Raise AssertionError unless the true statement beside the false one holds."""
    insist(bool(happens), f"the true statement fails: {what}")


def row(*entries: float) -> Array:
    """A row of float64."""
    return np.array(entries, dtype=np.float64)


@statement("false-hard-nonexpansive", "False: hard thresholding and AbsTopK are nonexpansive.", source="own; folklore")
def hard_nonexpansive(kit: Kit, rng: np.random.Generator) -> None:
    """Two inputs 0.01 apart with codes 1.01 apart; two rows 0.0141 apart with codes 1.41 apart."""
    hard, one, soft = kit.L0(0.5), kit.KSparse(1), kit.L1(1.0)
    u, v = row(1.0), row(1.01)
    assert_close(hard.prox(u), row(0.0), 0.0, "the code of 1")
    assert_close(hard.prox(v), row(1.01), 0.0, "the code of 1.01")
    p, q = row(1.0, 0.99), row(0.99, 1.0)
    assert_close(one.prox(p), row(1.0, 0.0), 0.0, "the code of (1, 0.99)")
    assert_close(one.prox(q), row(0.0, 1.0), 0.0, "the code of (0.99, 1)")
    refuted(np.linalg.norm(one.prox(p) - one.prox(q)) > 99 * np.linalg.norm(p - q), "k-sparse moves 100 times as far")
    for a, b in ((u, v), (p, q)):
        holds(np.linalg.norm(soft.prox(a) - soft.prox(b)) <= np.linalg.norm(a - b), "soft thresholding")


@statement("false-topk-odd", "False: TopK(-u) = -TopK(u).", source="own; folklore")
def topk_odd(kit: Kit, rng: np.random.Generator) -> None:
    """k = 1 at (2, -3), for TopK and for AbsTopK; and a tie, where AbsTopK is odd still."""
    top, both, u = kit.KSparse(1, nonneg=True), kit.KSparse(1), row(2.0, -3.0)
    assert_close(top.prox(u), row(2.0, 0.0), 0.0, "TopK(u)")
    assert_close(top.prox(-u), row(0.0, 3.0), 0.0, "TopK(-u)")
    for w in (u, row(2.0, -2.0), row(0.0, 0.0)):
        assert_close(both.prox(-w), -both.prox(w), 0.0, "AbsTopK(-w)")


@statement(
    "false-abstopk-reconstructs-better",
    "False: with the same pre-activations u and dictionary D, AbsTopK reconstructs at least as well as TopK.",
    source="own",
)
def abstopk_reconstructs_better(kit: Kit, rng: np.random.Generator) -> None:
    """Two atoms at cosine -0.8 with k = 2: errors 0.64 and 0; then orthonormal atoms, where the claim is true."""
    D, x = np.array([[1.0, 0.0], [-0.8, 0.6]]), row(1.0, 0.0)
    u = D @ x
    signed, top = (kit.KSparse(2, nonneg).prox(u) for nonneg in (False, True))
    assert_close(signed, row(1.0, -0.8), 1e-15, "AbsTopK(u)")
    assert_close(top, row(1.0, 0.0), 0.0, "TopK(u)")
    holds(np.linalg.norm(u - signed) <= np.linalg.norm(u - top), "AbsTopK is closer to u")
    assert_close(squared_error(x, D, signed), np.float64(0.64), 1e-12, "the error of AbsTopK")
    assert_close(squared_error(x, D, top), np.float64(0.0), 1e-12, "the error of TopK")
    for _ in range(20):
        basis, x = np.linalg.qr(rng.normal(size=(6, 4)))[0].T, rng.normal(size=6)
        errors = [squared_error(x, basis, kit.KSparse(2, nonneg).prox(basis @ x)) for nonneg in (False, True)]
        holds(errors[0] <= errors[1] + 1e-12, "orthonormal atoms")
        atoms = rng.normal(size=(8, 3))
        atoms, x = atoms / np.linalg.norm(atoms, axis=1, keepdims=True), x[:3]
        errors = [squared_error(x, atoms, kit.KSparse(1, nonneg).prox(atoms @ x)) for nonneg in (False, True)]
        holds(errors[0] <= errors[1] + 1e-12, "k = 1 with unit-norm atoms")


@statement(
    "false-splitting-trajectories",
    "False: T steps on the split dictionary [D, -D] with codes >= 0 give the signed codes of T steps on D.",
    source="own",
)
def splitting_trajectories(kit: Kit, rng: np.random.Generator) -> None:
    """One latent at 1/L of each; two latents at one common step, for k-sparse and for l1; and the common optimum."""

    def net(w: Any) -> Any:
        P = len(w) // 2
        return w[:P] - w[P:]

    one, x = np.eye(1), row(1.0)
    split = np.vstack([one, -one])
    assert_close(kit.ista(x, one, kit.L1(0.1), 1).codes, row(0.9), 1e-12, "one signed step at 1/L")
    assert_close(net(kit.ista(x, split, kit.L1(0.1, nonneg=True), 1).codes), row(0.45), 1e-12, "one split step at 1/L")
    long = net(kit.ista(x, split, kit.L1(0.1, nonneg=True), 80).codes)
    holds(np.abs(long - 0.9).max() < 1e-12, "the optima agree")
    x, split, half = row(2.0, -2.0), np.vstack([PAIR, -PAIR]), kit.FixedStep(0.5)
    cases = (
        (kit.KSparse(2), kit.KSparse(2, nonneg=True), row(1.0, 0.2), row(1.42, -0.1), row(1.42, -0.3)),
        (kit.L1(0.0), kit.L1(0.0, nonneg=True), row(1.0, 0.2), row(1.42, -0.1), row(1.42, -0.3)),
        (kit.L1(0.1), kit.L1(0.1, nonneg=True), row(0.95, 0.15), row(1.365, -0.055), row(1.365, -0.205)),
    )
    for R, folded, first, signed, other in cases:
        a, b = kit.ista(x, PAIR, R, 2, half, keep="all").steps, kit.ista(x, split, folded, 2, half, keep="all").steps
        assert_close(a[1], first, 1e-12, f"{R}: the first signed step")
        holds(np.abs(net(b[1]) - first).max() < 1e-12, "the first steps agree")
        assert_close(a[2], signed, 1e-12, f"{R}: the second signed step")
        assert_close(net(b[2]), other, 1e-12, f"{R}: the second split step")


@statement("false-unit-step", "False: with unit-norm atoms a step mu = 1 never raises the objective.", source="own")
def unit_step(kit: Kit, rng: np.random.Generator) -> None:
    """Two atoms, k = 1: F goes 2.5, 2, 2.74; three atoms, lam = 0: F goes 0.5, 0.8192, ...; 1/L descends on both."""
    x = row(1.0, -2.0)
    trace = kit.ista(x, PAIR, kit.KSparse(1), 2, kit.FixedStep(1.0), keep="all")
    assert_close(trace.objective, row(2.5, 2.0, 2.74), 1e-12, "the objective at mu = 1")
    assert_close(trace.steps[2], row(0.0, -1.2), 1e-12, "the second code")
    holds((np.diff(kit.ista(x, PAIR, kit.KSparse(1), 20).objective) <= 1e-14).all(), "steps of 1/L descend")
    D, x, R, z, F = np.vstack([PAIR, [[0.8, -0.6]]]), row(1.0, 0.0), kit.L1(0.0), np.zeros(3), []
    for _ in range(6):
        F.append(0.5 * squared_error(x, D, z))
        z = R.prox(z - gradient(x, D, z), 1.0)
    assert_close(row(*F[:3]), 0.5 * row(1.0, 1.28**2, 1.28**4), 1e-12, "the objective of plain gradient steps")
    refuted((np.diff(F) > 0).all(), "the objective rises at every step")
    assert_close(kit.lipschitz(D), 2.28, 1e-12, "L")
    holds(refused(kit.ista, x, D, R, 1, kit.FixedStep(1.0)), "a step of 2/L or more is refused")
    holds((np.diff(kit.ista(x, D, R, 20).objective) <= 1e-14).all(), "steps of 1/L descend")


@statement(
    "false-fista-monotone",
    "False: the objective of FISTA never rises.",
    source="Beck and Teboulle 2009b, who give a monotone version (MFISTA); the example is our own",
)
def fista_monotone(kit: Kit, rng: np.random.Generator) -> None:
    """Two atoms of lengths 1 and 1/2: F(z_8) is more than four times F(z_7); then a pair of unit-norm atoms."""
    x, D, R = row(0.0, 1.0), np.diag([1.0, 0.5]), kit.L1(0.0)
    F = kit.ista(x, D, R, 100, momentum="fista").objective
    errors, y = [1.0], 1.0  # the recursion of the error 1 - z / 2, by hand
    for beta in itertools.islice(extrapolations(), 8):
        errors.append(0.75 * y)
        y = errors[-1] + beta * (errors[-1] - errors[-2])
    assert_close(F[:9], 0.5 * np.array(errors) ** 2, 1e-12, "the objective of FISTA")
    refuted(F[8] > 4 * F[7], "F(z_8) > 4 F(z_7)")
    steps = np.arange(1, 101)
    holds((F[1:] <= 2 * 4.0 / (steps + 1) ** 2 + 1e-12).all(), "the rate 2 L ||z_0 - z*||^2 / (t+1)^2")
    holds((np.diff(kit.ista(x, D, R, 100).objective) <= 1e-15).all(), "ISTA descends")
    F = kit.ista(x, PAIR, kit.L1(0.1), 20, momentum="fista").objective
    refuted(F[13] > F[10] + 6e-4, "F(z_13) > F(z_10), unit-norm atoms")


@statement(
    "false-preactivations-are-ista",
    "False: refining pre-activations, h <- h + mu D^T(x - Dz), z = prox_{mu R}(h), is proximal gradient.",
    source="own; the iteration is linearised Bregman (Yin, Osher, Goldfarb and Darbon 2008)",
)
def preactivations_are_ista(kit: Kit, rng: np.random.Generator) -> None:
    """One latent, lam = 1/2: the two agree at T = 1, differ at T = 2, and go to 1/2 and to 1."""
    x, D, R, mu = row(1.0), np.eye(1), kit.L1(0.5), 0.5
    trace = kit.ista(x, D, R, 80, kit.FixedStep(mu), keep="all")
    h, z, codes = row(0.0), row(0.0), []
    for _ in range(80):
        h = h + mu * D @ (x - z @ D)
        z = R.prox(h, mu)
        codes.append(float(z[0]))
    assert_close(row(*(float(code[0]) for code in trace.steps[1:4])), row(0.25, 0.375, 0.4375), 1e-12, "ISTA")
    assert_close(row(*codes[:3]), row(0.25, 0.625, 0.8125), 1e-12, "refined pre-activations")
    assert_close(row(codes[-1], float(trace.codes[0])), row(1.0, 0.5), 1e-12, "the limits")
    holds(float(kit.duality_gap(x, D, trace.codes, R)) < 1e-12, "the limit of ISTA is optimal")
    refuted(float(kit.duality_gap(x, D, row(codes[-1]), R)) > 0.1, "the other limit is not")


@statement(
    "false-learned-steps-descend",
    "False: an unrolled encoder with learned step sizes or weights lowers the objective at every layer.",
    source="own",
)
def learned_steps_descend(kit: Kit, rng: np.random.Generator) -> None:
    """One latent, lam = 1/2: trained for the error alone, two layers have F = 1/2, 0.375, 1/2; then a step of 3."""
    x, R = row(1.0), kit.L1(0.5)

    def F(z: Any) -> float:
        return 0.5 * squared_error(x, np.eye(1), z) + float(R.value(z))

    z1 = R.prox(1.0 * x, 1.0)  # a step of 1
    weights = 1.0, 0.5, 0.25  # W1, W2 and the threshold of the second layer, fitted to x
    z2 = R.prox(weights[0] * x + weights[1] * z1, weights[2] / 0.5)
    assert_close(z2, row(1.0), 1e-12, "the second code")
    assert_close(row(F(0 * x), F(z1), F(z2)), row(0.5, 0.375, 0.5), 1e-12, "the objective of the learned layers")
    refuted(abs(z2 - x) < abs(z1 - x) and F(z2) > F(z1), "the error falls, F rises")
    long = R.prox(3.0 * x, 3.0)  # one learned step of 3
    assert_close(row(float(long[0]), F(long)), row(1.5, 0.875), 1e-12, "a learned step of 3")
    holds((np.diff(kit.ista(x, np.eye(1), R, 5, kit.FixedStep(0.7)).objective) <= 0).all(), "ISTA descends")


@statement(
    "false-moreau-tests-a-prox",
    "False: prox_R(u) + prox_{R*}(u) = u tests an implementation, if the second is computed as u - prox_R(u).",
    source="own",
)
def moreau_tests_a_prox(kit: Kit, rng: np.random.Generator) -> None:
    """The map 7 - 3u and a wrong threshold both pass; a clip written on its own rejects both, and the objective too."""
    wrong = {"7 - 3u": lambda u: 7 - 3 * u, "hard at lam": lambda u: u * (np.abs(u) > 0.5)}
    u = row(0.8, -0.25, 2.0, 0.0)
    for name, p in wrong.items():
        dual = u - p(u)
        refuted(np.abs(p(u) + dual - u).max() < 1e-12, f"{name} passes")
        holds(np.abs(p(u) + np.clip(u, -0.5, 0.5) - u).max() > 0.1, f"the projection rejects {name}")
    soft, hard = kit.L1(0.5), kit.L0(0.5)
    holds(np.abs(soft.prox(u) + np.clip(u, -0.5, 0.5) - u).max() < 1e-12, "Moreau's identity for L1")
    kept = float(hard.value(row(0.8)))
    assert_close(row(kept, 0.5 * 0.8**2), row(0.5, 0.32), 1e-12, "the objectives at 0.8 and at 0, lam = 1/2")
    assert_close(hard.prox(row(0.8)), row(0.0), 0.0, "the prox of l0 at 0.8")


@statement(
    "false-stationary-is-optimal",
    "False: a k-sparse code that the step leaves in place is optimal.",
    source="own; Beck and Eldar 2013 prove the converse",
)
def stationary_is_optimal(kit: Kit, rng: np.random.Generator) -> None:
    """Three unit-norm atoms with L = 2, k = 1: (0, 0.9, 0) is fixed with F = 0.5, while (0, 0, 1.34) has F = 0.0072."""
    D, x, R = np.array([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]]), row(1.0, 0.9), kit.KSparse(1)
    assert_close(kit.lipschitz(D), 2.0, 1e-12, "L")
    stuck, best = row(0.0, 0.9, 0.0), row(0.0, 0.0, 1.34)
    assert_close(float(kit.fixed_point_residual(x, D, stuck, R, 0.5)), 0.0, 1e-15, "the residual at 1/L")
    trace = kit.ista(x, D, R, 10, z0=stuck)
    assert_close(trace.codes, stuck, 1e-12, "ten steps of 1/L")
    assert_close(trace.objective[-1], np.float64(0.5), 1e-12, "F of the fixed point")
    assert_close(0.5 * squared_error(x, D, best), np.float64(0.0072), 1e-12, "F of the best code")
    every = [0.5 * squared_error(x, D, (D[j] @ x) * np.eye(3)[j]) for j in range(3)]
    refuted(60 * min(every) < 0.5, "the fixed point is not optimal")
    holds(float(kit.fixed_point_residual(x, D, best, R, 0.5)) < 1e-12, "the best code is a fixed point as well")
