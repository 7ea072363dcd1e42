"""One step is an SAE (docs/theory/one_step.md): statements and their checks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from proxsae import penalties
from proxsae.reference.iteration import ista
from proxsae.statements.plain import Numbers, clipped, hard, keep_largest, longest, soft, squared_norm, unit
from proxsae.statements.registry import Kit, insist, page, plant, planted, planted_ksparse, planted_sae, refused
from proxsae.testing.compare import assert_close, numpy_of

statement = page("one_step", on_paper="matrices of any size")


@statement(
    "prop-one-step-is-an-sae",
    "From z = 0 with mu = 1 a proximal gradient step is the encoder prox_R((x - b) W_enc), W_enc = W_dec^T, b_enc = 0.",
    source="Zhu, Khalili and Zhu 2025, Lemma 1",
    code=("SAE",),
)
def one_step_is_an_sae(kit: Kit, rng: np.random.Generator) -> None:
    """Six SAEs, and L0 with two weights, against the step of `ista` and their formulas; then other W_enc and b_enc."""
    import torch

    P, d, theta, k = 7, 4, 0.5, 3
    lam = theta**2 / 2
    families: list[tuple[Any, Any]] = [
        (kit.L1(0.25), lambda u: soft(u, 0.25)),
        (kit.L1(0.25, nonneg=True), lambda u: np.maximum(u - 0.25, 0)),
        (kit.L0(lam), lambda u: hard(u, theta)),
        (kit.L0(lam, nonneg=True), lambda u: hard(np.maximum(u, 0), theta)),
        (kit.L0(lam, lam_minus=4 * lam), lambda u: hard(np.maximum(u, 0), theta) - hard(np.maximum(-u, 0), 2 * theta)),
        (kit.KSparse(k), lambda u: keep_largest(u, k)),
        (kit.KSparse(k, nonneg=True), lambda u: keep_largest(np.maximum(u, 0), k)),
    ]
    x, b, D = rng.normal(size=(6, d)), rng.normal(size=d), rng.normal(size=(P, d))
    D /= np.linalg.norm(D, 2)  # so that mu = 1 is a step that `ista` accepts
    x[0] = b  # u = 0
    D[:3], x[1] = 0, b
    D[0, 0] = D[1, 1] = D[2, 1] = 0.5
    x[1, :2] += [1.0, -1.0]  # u = (theta, -theta, -theta, ...): at the threshold, and tied
    W, shift = rng.normal(size=(d, P)), rng.normal(size=P)
    for R, formula in families:
        sae = kit.SAE(d, P, R).double()
        parts = {"W_dec": D, "W_enc": D.T, "b_dec": b, "b_enc": np.zeros(P)}
        for name, a in parts.items():
            getattr(sae, name).data = torch.tensor(a)
        want = formula((x - b) @ D.T)
        assert_close(numpy_of(sae.encode(torch.tensor(x))), want, 1e-12, "the encoder")
        assert_close(kit.ista(x, D, R, 1, kit.FixedStep(1.0), bias=b).codes, want, 1e-12, "the step")
        assert_close(numpy_of(sae(torch.tensor(x))), want @ D + b, 1e-12, "the reconstruction")
        sae.W_enc.data, sae.b_enc.data = torch.tensor(W), torch.tensor(shift)
        want = formula(x @ W + (shift - b @ W))  # the encoder x W + b_e of the paper
        assert_close(numpy_of(sae.encode(torch.tensor(x))), want, 1e-12, "the trained encoder")


WRONG_INPUTS: dict[str, Callable[[Any, Any], Any]] = {
    "b_dec is not subtracted": lambda sae, x: x @ sae.W_enc + sae.b_enc,
    "b_enc is forgotten": lambda sae, x: (x - sae.b_dec) @ sae.W_enc,
    "W_dec in place of W_enc": lambda sae, x: (x - sae.b_dec) @ sae.W_dec.T + sae.b_enc,
}
for mistake, wrong in WRONG_INPUTS.items():
    plant(mistake, "prop-one-step-is-an-sae", SAE=planted_sae(_pre_activations=wrong))
plant(
    "the step is 1/L, not 1",
    "prop-one-step-is-an-sae",
    ista=lambda x, D, R, steps, step, bias=None: ista(x, D, R, steps, bias=bias),
)


@statement(
    "prop-step-scaling",
    "From z = 0 a step mu gives mu times the code of mu = 1 if R(cz) = c R(z) for c > 0; with l0, that of lam/mu.",
    source="own; folklore",
    code=("FixedStep",),
    on_paper="a substitution, for every R",
)
def step_scaling(kit: Kit, rng: np.random.Generator) -> None:
    """One step of `ista` from 0 at mu, of every family, against mu times the formula at step 1 with R(mu z) / mu."""
    P, d = 6, 4
    x, D = rng.normal(size=(5, d)), rng.normal(size=(P, d))
    D[1], D[2] = D[0], 0.0  # a tie in every row, and a zero atom
    D /= np.linalg.norm(D, 2)
    lam = np.append(rng.uniform(0.05, 0.3, P - 1), 0.0)
    u = x @ D.T
    for mu, nonneg in itertools.product((0.25, 1.0, 1.5), (False, True)):
        v = clipped(u, nonneg)
        norms = np.repeat(np.linalg.norm(v.reshape(len(v), -1, 2), axis=-1), 2, axis=-1)
        group = v * np.maximum(0, 1 - 0.2 / np.maximum(norms, 1e-300))
        cases = [
            (kit.L1(lam, nonneg), mu * soft(v, lam)),
            (kit.KSparse(3, nonneg), mu * keep_largest(v, 3)),
            (kit.KSparse(P + 1, nonneg), mu * v),
            (kit.L0(lam, nonneg), mu * hard(v, np.sqrt(2 * lam / mu))),
            (kit.ElasticNet(lam, 0.7, nonneg), mu * soft(v, lam) / (1 + mu * 0.7)),
            (kit.GroupL2(0.2, 2, nonneg), mu * group),
        ]
        for R, want in cases:
            assert_close(kit.ista(x, D, R, 1, kit.FixedStep(mu)).codes, want, 1e-12, f"{R} at mu = {mu}")
        sorted_l1 = kit.SortedL1(np.sort(lam)[::-1], nonneg)
        mcp, scaled = kit.MCP(0.2, 3.0, nonneg), kit.MCP(0.2, 3.0 / mu, nonneg)
        for R, at_one in ((sorted_l1, sorted_l1), (mcp, scaled)):
            got, one = (kit.ista(x, D, A, 1, kit.FixedStep(m)).codes for A, m in ((R, mu), (at_one, 1.0)))
            assert_close(got, mu * one, 1e-12, f"{R} at mu = {mu}")


def _l1_without_step(lam: Numbers, nonneg: bool = False) -> Any:
    return planted(penalties.L1(lam, nonneg), lambda u, step: soft(clipped(u, nonneg), lam))


def _l0_without_step(lam: Numbers, nonneg: bool = False) -> Any:
    return planted(penalties.L0(lam, nonneg), lambda u, step: hard(clipped(u, nonneg), np.sqrt(2 * lam)))


def _l0_step_times_threshold(lam: Numbers, nonneg: bool = False) -> Any:
    return planted(penalties.L0(lam, nonneg), lambda u, step: hard(clipped(u, nonneg), step * np.sqrt(2 * lam)))


plant("l1: the threshold ignores the step", "prop-step-scaling", L1=_l1_without_step)
plant("l0: the threshold ignores the step", "prop-step-scaling", L0=_l0_without_step)
plant("l0: the threshold is mu theta, as if mu did not matter", "prop-step-scaling", L0=_l0_step_times_threshold)


@statement(
    "def-lipschitz",
    "L = ||D||_2^2, the largest eigenvalue of either Gram matrix, is the least Lipschitz constant of D^T(Dz + b - x).",
    source="standard; Beck 2017, section 5.1 (number not verified)",
    code=("lipschitz",),
    on_paper="a definition",
)
def lipschitz_constant(kit: Kit, rng: np.random.Generator) -> None:
    """Singular values, known cases, a pair of codes that attains L, and random pairs that do not pass it."""
    shapes = ((3, 7), (7, 3), (5, 5), (1, 4), (4, 1))
    dictionaries = [rng.normal(size=shape) for shape in shapes]
    dictionaries[1][4:] = dictionaries[1][:3]  # duplicates
    dictionaries[2][2] = 0.0
    for D in dictionaries:
        L = kit.lipschitz(D)
        assert_close(np.float64(L), np.float64(squared_norm(D)), 1e-11, "L against singular values")
        for z in rng.normal(size=(20, len(D))):
            most = L * np.linalg.norm(z) * (1 + 1e-12)
            insist(np.linalg.norm(D @ (z @ D)) <= most, f"two gradients are more than L = {L} times as far as codes")
        z = np.linalg.svd(D)[0][:, 0]
        insist(np.linalg.norm(D @ (z @ D)) >= L * (1 - 1e-11), f"the first singular vector does not attain L = {L}")
    exact = [(np.diag([1.0, -3.0, 2.0]), 9.0), (np.ones((5, 1)), 5.0), (np.eye(2, 6) / 4, 1 / 16)]
    for D, true in exact:
        L = kit.lipschitz(D)
        insist(true <= L <= true * (1 + 1e-12), f"L = {L}, but must be {true}, or above it by rounding alone")


plant("L is the Frobenius norm", "def-lipschitz", lipschitz=lambda D: float((D**2).sum()))
plant("L is the norm, not its square", "def-lipschitz", lipschitz=lambda D: float(np.linalg.norm(D, 2)))
plant("L is the largest atom", "def-lipschitz", lipschitz=longest)


@statement(
    "prop-lipschitz-floor",
    "L >= max(1, P/d) for unit-norm atoms, = P/d exactly for tight frames; so mu = 1 is never below 2/L once P >= 2d.",
    source="trace of the Gram matrix; folklore",
    code=("theory.lipschitz_floor",),
)
def floor(kit: Kit, rng: np.random.Generator) -> None:
    """Random dictionaries lie above the floor, tight frames on it, and `ista` refuses more than 1 where P >= 2d."""
    for d, P in ((3, 2), (4, 4), (4, 9), (5, 20)):
        L, least = kit.lipschitz(unit(rng.normal(size=(P, d)))), kit.lipschitz_floor(d, P)
        insist(least * (1 + 1e-9) < L, f"d = {d}, P = {P}: L = {L} is not above the floor {least}")
    few = np.linalg.qr(rng.normal(size=(4, 2)))[0].T  # P < d: orthonormal atoms reach it
    assert_close(np.float64(kit.lipschitz_floor(4, 2)), np.float64(kit.lipschitz(few)), 1e-12, "L of two atoms")
    angles = np.pi * np.arange(5) / 5
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    hadamard = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    tight = (
        np.stack([np.cos(angles), np.sin(angles)], axis=1),
        np.vstack([np.eye(4), hadamard]),
        np.vstack([np.eye(4), -np.eye(4), rotation, np.eye(4)]),
    )
    for D in tight:
        P, d = D.shape
        least = kit.lipschitz_floor(d, P)
        assert_close(np.float64(kit.lipschitz(D)), np.float64(least), 1e-12, "L of a tight frame")
        bent = unit(D + 0.05 * rng.normal(size=D.shape))
        insist(kit.lipschitz(bent) > least * (1 + 1e-6), f"d = {d}, P = {P}: a frame that is not tight has the floor")
        if 2 * d <= P:
            # above 1 by what rounding cannot hide: at P = 2d, 2/L is 1 but for the rounding of D
            long = refused(kit.ista, np.ones(d), D, kit.L1(0.1), 1, kit.FixedStep(1 + 1e-12))
            insist(long, f"d = {d}, P = {P}: a step above 1 was taken, though 2/L <= 1")


plant("L is the Frobenius norm", "prop-lipschitz-floor", lipschitz=lambda D: float((D**2).sum()))
plant("the floor is P/d for P < d too", "prop-lipschitz-floor", lipschitz_floor=lambda d_in, d_sae: d_sae / d_in)
plant("the floor is d/P", "prop-lipschitz-floor", lipschitz_floor=lambda d_in, d_sae: d_in / d_sae)
plant("the floor is its root", "prop-lipschitz-floor", lipschitz_floor=lambda d_in, d_sae: (d_sae / d_in) ** 0.5)
plant(
    "too long a step is shortened in silence",
    "prop-lipschitz-floor",
    ista=lambda x, D, R, steps, step: ista(x, D, R, steps),
)


@statement(
    "prop-one-step-orthonormal",
    "If D^T D = a I, one step mu = 1/a from any z is a global minimiser of F, for every R: there one step is enough.",
    source="own; folklore (thresholding in an orthonormal basis)",
    code=("ista",),
)
def orthonormal(kit: Kit, rng: np.random.Generator) -> None:
    """One step from a random z0 against competitors: every support with its least squares, and points all around."""
    P, d = 4, 6
    lam = np.append(rng.uniform(0.1, 0.6, P - 1), 0.0)
    for a, nonneg in itertools.product((1.0, 2.5), (False, True)):
        D = np.sqrt(a) * np.linalg.qr(rng.normal(size=(d, P)))[0].T
        b, u = rng.normal(size=d), 1.5 * rng.normal(size=P)
        u[1], u[2] = -u[0], -1.3 * np.sqrt(2 * lam[2] / a)  # a tie, and an entry that l0 keeps by little
        e = rng.normal(size=d)
        x = b + u @ D + e - D.T @ (D @ e) / a  # D^T (x - b) / a = u
        families = (
            kit.L1(lam, nonneg),
            kit.L0(lam, nonneg),
            kit.KSparse(2, nonneg),
            kit.ElasticNet(lam, 0.5, nonneg),
            kit.MCP(lam, 3.0, nonneg),
            kit.SCAD(lam, 3.7, nonneg),
            kit.GroupL2(0.4, 2, nonneg),
            kit.SortedL1(np.sort(lam)[::-1], nonneg),
        )
        masks = np.array(list(itertools.product([0.0, 1.0], repeat=P)))
        for R in families:
            trace = kit.ista(x, D, R, 1, kit.FixedStep(1 / a), z0=rng.normal(size=P), bias=b)
            z = trace.codes
            moves = rng.normal(size=(200, P)) * (rng.random((200, P)) < 0.5)
            near = z + moves / 10.0 ** rng.integers(0, 5, size=(200, 1))
            tries = np.concatenate([masks * u, near, rng.uniform(0, 1, (100, P)) * u, [z]])
            tries = clipped(tries, nonneg)
            values = 0.5 * ((x - b - tries @ D) ** 2).sum(axis=1) + R.value(tries)
            best = tries[values.argmin()]
            insist(
                values[-1] <= values.min() + 1e-12 * (1 + x @ x), f"{R}: F = {values[-1]}, but {values.min()} at {best}"
            )
            assert_close(np.float64(trace.objective[-1]), np.float64(values[-1]), 1e-12, "the objective")


plant(
    "half the step",
    "prop-one-step-orthonormal",
    ista=lambda x, D, R, steps, step, **given: ista(x, D, R, steps, type(step)(step.mu / 2), **given),
)
plant(
    "the gradient is taken at z = 0",
    "prop-one-step-orthonormal",
    ista=lambda x, D, R, steps, step, z0, bias: ista(x - z0 @ D, D, R, steps, step, z0=z0, bias=bias),
)
plant(
    "k-sparse: the largest, not the largest magnitudes",
    "prop-one-step-orthonormal",
    KSparse=planted_ksparse(lambda u, k: np.where(u >= np.sort(u)[..., -k, None], u, 0)),
)
plant("l0: the threshold of mu = 1", "prop-one-step-orthonormal", L0=_l0_without_step)
