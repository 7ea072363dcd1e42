"""More steps (docs/theory/more_steps.md): statements and their checks."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np

from proxsae import penalties
from proxsae import steps as step_rules
from proxsae.certificates import duality_gap
from proxsae.reference.iteration import ista
from proxsae.statements.plain import (
    Array,
    Case,
    cosines,
    gradient,
    hard_optimum,
    l1_optimum,
    squared_error,
    squared_norm,
    unit,
)
from proxsae.statements.registry import Kit, insist, page, plant
from proxsae.testing.compare import assert_close

statement = page("more_steps", on_paper="matrices of any size")


def two_bases(d: int) -> Array:
    """Atoms as rows: the standard basis of R^d, and a Hadamard basis; d is a power of 2."""
    hadamard = np.ones((1, 1))
    while len(hadamard) < d:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    return np.vstack([np.eye(d), hadamard / np.sqrt(d)])


def simplex(k: int, m: float) -> Array:
    """Unit-norm atoms: k at inner products -m, one more at +m with each of them, and three orthogonal to all."""
    signs = np.append(np.ones(k), -1.0)
    D = np.eye(k + 4)
    D[: k + 1, : k + 1] = np.linalg.cholesky((1 + m) * np.eye(k + 1) - m * np.outer(signs, signs))
    return D


def support_of(z: Array) -> set[int]:
    """The indices of the non-zeros."""
    return set(np.flatnonzero(z).tolist())


@statement(
    "thm-one-step-support",
    "Unit-norm atoms, coherence m, x - b = Dz, ||z||_0 = k < (1 + |z|_min/(m |z|_max))/2: one step finds the support.",
    source="Tropp 2004 and Elad 2010 for thresholding (numbers not verified)",
    code=("theory.one_step_sparsity",),
)
def one_step_support(kit: Kit, rng: np.random.Generator) -> None:
    """Codes just inside the bound, of worst signs; and simplices, on which the bound is sharp for equal magnitudes."""

    def found(D: Array, z: Array, nonneg: bool = False) -> bool:
        b = rng.normal(size=D.shape[1])
        R = kit.KSparse(int(np.count_nonzero(z)), nonneg)
        one = kit.ista(z @ D + b, D, R, 1, bias=b).codes
        return support_of(one) == support_of(z) and bool((np.sign(one) == np.sign(z)).all())

    dictionaries = [two_bases(16), two_bases(64)[::-1].copy(), np.linalg.qr(rng.normal(size=(9, 9)))[0][:6]]
    dictionaries[2] = unit(dictionaries[2] + 0.04 * rng.normal(size=(6, 9)))
    for D, spread in itertools.product(dictionaries, (1.0, 1.3, 2.5)):
        bound = kit.one_step_sparsity(kit.coherence(D), spread)
        k = min(int(np.ceil(bound)) - 1, 5)
        for nonneg in (False, True) if k else ():
            z = np.zeros(len(D))
            S = rng.choice(len(D), k, replace=False)
            z[S] = np.append(rng.uniform(1, spread, k - 1), 1.0) if k > 1 else 1.0
            z[S[0]] = spread if k > 1 else 1.0
            z[S] *= 1 if nonneg else rng.choice([-1, 1], k)
            insist(found(D, z, nonneg), f"k = {k} < {bound}, but one step misses the support {sorted(S.tolist())}")
    for k, spread in itertools.product((1, 2, 3, 5), (1.0, 4.0)):
        z = np.append(np.full(k, spread), np.zeros(4))
        z[0] = 1.0
        for m in np.linspace(0.02, 0.999 / k, 12):
            D = simplex(k, m)
            bound = kit.one_step_sparsity(kit.coherence(D), spread if k > 1 else 1.0)
            hit, sharp = found(D, z), spread == 1 or k == 1
            insist(hit or k >= bound, f"k = {k} < {bound}, but one step misses the support of {z} at coherence {m}")
            insist(not (hit and sharp and k > bound), f"k = {k} > {bound}, but one step succeeds at coherence {m}")


plant(
    "the bound without its half",
    "thm-one-step-support",
    one_step_sparsity=lambda coherence, dynamic_range: 1 + 1 / (coherence * dynamic_range),
)
plant(
    "the bound of matching pursuit, without the range",
    "thm-one-step-support",
    one_step_sparsity=lambda coherence, dynamic_range: 0.5 * (1 + 1 / coherence),
)
plant("the mean coherence", "thm-one-step-support", coherence=lambda D: abs(cosines(D)).mean())
plant(
    "selects the largest, not the largest magnitudes",
    "thm-one-step-support",
    KSparse=lambda k, nonneg=False: penalties.KSparse(k, nonneg=True),
)


@statement(
    "prop-dynamic-range",
    "D = [I, H/sqrt d], z = e_1 + eps e_2, d >= 12, m = d^-1/2: one step fails iff |eps| < m/(1-m), two refits never.",
    source="own; the two bounds on k are those of Tropp 2004 (number not verified)",
    code=("Refit",),
    on_paper="dictionaries of any size",
)
def dynamic_range(kit: Kit, rng: np.random.Generator) -> None:
    """Both sides of the edge, both signs; the code after one refit; the exact code after two, and after plain steps."""
    for d, sign in itertools.product((16, 64), (1.0, -1.0)):
        D, m = two_bases(d), 1 / np.sqrt(d)
        edge, R = m / (1 - m), kit.KSparse(2)
        insist(0.5 * (1 + 1 / kit.coherence(D)) > 2, f"d = {d}: coherence {kit.coherence(D)} is not as claimed")
        insist(abs(kit.lipschitz(D) - 2) < 1e-9, f"d = {d}: L = {kit.lipschitz(D)} is not 2")
        for share in (0.01, 0.6, 0.99, 1.01, 2.0):
            eps = sign * share * edge
            z = np.append([1.0, eps], np.zeros(2 * d - 2))
            x = z @ D
            for mu in (0.3, 0.9):
                one = kit.ista(x, D, R, 1, kit.FixedStep(mu)).codes
                hit = support_of(one) == {0, 1}
                insist(hit == (share > 1), f"d = {d}, eps = {eps}, mu = {mu}: one step has {support_of(one)}")
            steps = kit.ista(x, D, R, 3, kit.Refit(), keep="all").steps
            if share < 1:
                h = next(j for j in range(d, 2 * d) if D[j, 0] * D[j, 1] * sign > 0)
                want = np.zeros(2 * d)
                want[0] = 1 - abs(eps) * m * m / (1 - m * m)
                want[h] = np.sign(D[h, 0]) * abs(eps) * m / (1 - m * m)
                assert_close(steps[1], want, 1e-12, "the code after one refit")
            for t in (2, 3):
                assert_close(steps[t], z, 1e-12, f"the code after {t} refits")
        if d == 16:
            z[1] = 0.2 * sign
            trace = kit.ista(z @ D, D, R, 60, keep="all")
            found = [support_of(code) == {0, 1} for code in trace.steps]
            insist(found == [False] * 6 + [True] * 55, f"eps = {z[1]}: steps {np.flatnonzero(found)} have the support")
            assert_close(trace.codes, z, 1e-12, "the code after 60 plain steps")


plant("Refit without the refit", "prop-dynamic-range", Refit=step_rules.Backtracking)
plant(
    "the selection is of the largest, not the largest magnitudes",
    "prop-dynamic-range",
    KSparse=lambda k: penalties.KSparse(k, nonneg=True),
)


def _frozen(x: Array, D: Array, R: Any, steps: int, *rule: Any, **given: Any) -> Any:
    S = np.flatnonzero(ista(x, D, R, 1, *rule).codes)
    trace = ista(x, D[S], R, steps, *rule, **given)

    def widen(z: Array) -> Array:
        full = np.zeros(len(D))
        full[S] = z
        return full

    return replace(trace, codes=widen(trace.codes), steps=tuple(map(widen, trace.steps)) if trace.steps else None)


plant("the support of the first step is kept for ever", "prop-dynamic-range", ista=_frozen)


def pursuit(c: Array, D: Array, k: int) -> Array:
    """Orthogonal matching pursuit: k atoms, each the one closest to the residual, then least squares."""
    S: list[int] = []
    z = np.zeros(len(D))
    for _ in range(k):
        slope = np.abs(gradient(c, D, z))
        slope[S] = -1
        S.append(int(slope.argmax()))
        z = np.zeros(len(D))
        z[S] = np.linalg.lstsq(D[S].T, c, rcond=None)[0]
    return z


@statement(
    "prop-amortisation-gap",
    "For mu <= 1/L the gap F(z_T) - F* of a row, for BatchKSparse of a batch, is >= 0 and never grows; the duality gap "
    "bounds it above (L1), any code below.",
    source="own, from thm-ista-descent and thm-duality-gap; the word is O'Neill, Gumran and Klindt's (2025)",
    code=("SAE.unrolled", "duality_gap"),
    on_paper="matrices of any size; the best k-sparse code is NP-hard to find",
)
def amortisation_gap(kit: Kit, rng: np.random.Generator) -> None:
    """Objectives of `ista` and of an unrolled SAE against minima over all supports, the duality gap, and a pursuit."""
    import torch

    D, c = rng.normal(size=(6, 3)), 2 * rng.normal(size=3)
    D[5] = D[0]
    lam = np.array([0.4, 0.2, 0.3, 0.5, 0.1, 0.4])
    families = [
        (Case(kit.L1(lam, nonneg), "L1", lam, 6, nonneg), l1_optimum(c, D, lam, nonneg)) for nonneg in (False, True)
    ]
    families.append((Case(kit.KSparse(2), "KSparse", 0.0, 2, False), hard_optimum(c, D, 0.0, 2, False)))
    families.append((Case(kit.L0(0.3), "L0", 0.3, 6, False), hard_optimum(c, D, 0.3, 6, False)))
    for case, best in families:
        R, least = case.R, case.objective(c, D, best)
        for z0 in (None, np.abs(rng.normal(size=6)) * (np.arange(6) < 2)):
            trace = kit.ista(c, D, R, 30, z0=z0, keep="all")
            gap = trace.objective - least
            insist(gap >= -1e-12, f"{R}: the gap {gap.min()} is negative")
            insist(np.diff(gap) <= 1e-12 * (1 + gap[0]), f"{R}: the gap grows by {np.diff(gap).max()}")
            if isinstance(R, penalties.L1):
                bounds = [kit.duality_gap(c, D, z, R) for z in trace.steps]
                insist(gap <= np.array(bounds) + 1e-12, f"{R}: a gap of {gap} exceeds its bound {bounds}")
    pair, y = np.array([[1.0, 0.0], [0.8, 0.6]]), np.array([1.0, -2.0])
    F = kit.ista(y, pair, kit.KSparse(1), 8).objective
    insist(np.diff(F) <= 1e-12, "the gap grows on the example of false-unit-step")
    for _ in range(20):
        c, k = 2 * rng.normal(size=3), 2
        known, least = (0.5 * squared_error(c, D, z) for z in (pursuit(c, D, k), hard_optimum(c, D, 0.0, k, False)))
        last = kit.ista(c, D, kit.KSparse(k), 8).objective[-1]
        insist(last - known <= last - least + 1e-12, f"{last - known}, from a pursuit, exceeds the gap {last - least}")
    sae = kit.SAE(4, 12, kit.KSparse(3)).double()
    x = torch.tensor(rng.normal(size=(20, 4)))
    with torch.no_grad():
        sae.b_enc += torch.tensor(0.3 * rng.normal(size=12))
        codes = [sae.unrolled(T).encode(x) for T in (1, 2, 4, 8)]
        errors = torch.stack([((sae.decode(z) - x) ** 2).sum(dim=-1) for z in codes]).numpy()
    insist(np.diff(errors, axis=0) <= 1e-12 * (1 + errors[0]), f"errors grow with the steps: {errors.sum(axis=1)}")
    atoms = torch.tensor([[-0.5, 0], [0, -0.5], [-0.5, 0.5]]).double()
    rows = torch.tensor([[2.0, 0], [0, -2]]).double()  # in the third step the second row takes an entry from the first
    of_batch = kit.SAE(2, 3, kit.BatchKSparse(1)).double()
    with torch.no_grad():
        of_batch.W_enc.copy_(atoms.T), of_batch.W_dec.copy_(atoms)
        codes = [of_batch.unrolled(T).encode(rows) for T in (1, 2, 3)]
        errors = torch.stack([((of_batch.decode(z) - rows) ** 2).sum(dim=-1) for z in codes]).numpy()
    insist((np.diff(errors, axis=0) > 0.1).any(), "no row of a batch got worse: the example shows nothing")
    insist(np.diff(errors.sum(axis=1)) <= 1e-12, f"errors of a batch grow: {errors.sum(axis=1)}")


def _long_steps(x: Array, D: Array, R: Any, steps: int, **given: Any) -> Any:
    return ista(x, D, R, steps, step_rules.FixedStep(1.99 / squared_norm(D)), **given)


def _unscaled_gap(x: Array, D: Array, z: Array, R: Any) -> Any:
    r = x - z @ D  # as if it were dual feasible
    return 0.5 * (r @ r) + R.value(z) - 0.5 * (x @ x) + 0.5 * ((r - x) @ (r - x))


plant("steps of nearly 2/L", "prop-amortisation-gap", ista=_long_steps)
plant("the dual point is not scaled to be feasible", "prop-amortisation-gap", duality_gap=_unscaled_gap)
plant("half the duality gap", "prop-amortisation-gap", duality_gap=lambda *a: 0.5 * duality_gap(*a))


@statement(
    "prop-refit-recovers",
    "If x - b = Dz and the step finds a support S of independent atoms, supp z in S, one Refit step gives z exactly.",
    source="own; folklore (debiasing)",
    code=("Refit", "pytorch.refit.refit"),
)
def refit_recovers(kit: Kit, rng: np.random.Generator) -> None:
    """One refit without noise and with it; what one plain step leaves, in formula; orthonormal atoms, where it is 0."""
    D = two_bases(64)
    k = 4
    for R, nonneg in ((kit.KSparse(k), False), (kit.KSparse(k, nonneg=True), True), (kit.L0(0.02), False)):
        z, b = np.zeros(128), rng.normal(size=64)
        S = np.append(rng.choice(64, 2, replace=False), 64 + rng.choice(64, 2, replace=False))
        z[S] = rng.uniform(1, 1.1, k) * (1 if nonneg else rng.choice([-1, 1], k))
        x = z @ D + b
        one = kit.ista(x, D, R, 1, kit.Refit(), bias=b)
        assert_close(one.codes, z, 1e-12, f"{R}: one refit")
        assert_close(float(one.objective[-1]), float(R.value(z)), 1e-12, f"{R}: the objective")
        e = 0.02 * rng.normal(size=64)
        noisy = kit.ista(x + e, D, R, 1, kit.Refit(), bias=b).codes
        if support_of(noisy) == support_of(z):
            assert_close((noisy - z)[S], np.linalg.pinv(D[S].T) @ e, 1e-11, f"{R}: the error of a refit")
        for mu in (0.5, 0.9) if not isinstance(R, penalties.L0) else ():
            plain = kit.ista(x, D, R, 1, kit.FixedStep(mu), bias=b).codes
            assert_close(plain[S], mu * (D[S] @ D[S].T) @ z[S], 1e-12, f"{R}: one plain step")
            insist(np.abs(plain - z).max() > 0.05, f"{R}: a step of {mu} is exact, though atoms are not orthonormal")
    wide = np.zeros(128)
    wide[[3, 70]] = 1.0, -1.0  # two latents, but k = 4: the support found is larger
    steps = kit.ista(wide @ D, D, kit.KSparse(k), 1, kit.Refit())
    assert_close(steps.codes, wide, 1e-12, "one refit on a larger support")
    A = np.vstack([np.eye(3, 4), [[0, 0, 0, 0.5]]])
    z = np.array([2.0, -1.0, 0, 0])
    assert_close(
        kit.ista(z @ A, A, kit.KSparse(2), 1, kit.FixedStep(1.0)).codes, z, 1e-12, "one step, orthonormal atoms"
    )


def _everywhere(x: Array, D: Array, R: Any, steps: int, rule: Any, bias: Array | None = None) -> Any:
    trace = ista(x, D, R, steps, rule, bias=bias)
    if not isinstance(rule, step_rules.Refit):
        return trace
    return replace(trace, codes=np.linalg.lstsq(D.T, x if bias is None else x - bias, rcond=None)[0])


plant("Refit without the refit", "prop-refit-recovers", Refit=step_rules.Backtracking)
plant("a line search in place of least squares", "prop-refit-recovers", Refit=step_rules.ExactStep)
plant("least squares on all latents", "prop-refit-recovers", ista=_everywhere)
