"""Signs (docs/theory/signs.md): statements and their checks."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np

from proxsae import penalties
from proxsae.reference import iteration as reference
from proxsae.statements.plain import Array, Numbers, among_largest, clipped, keep_largest, l1_optimum, squared_error
from proxsae.statements.registry import Kit, insist, page, plant, planted, planted_ksparse
from proxsae.testing.compare import assert_close

statement = page("signs", on_paper="any number of latents")


def two_sided(u: Array) -> Array:
    """The vectors (u, -u)."""
    return np.concatenate([u, -u], axis=-1)


def parts(z: Array) -> Array:
    """The vectors (z_+, z_-)."""
    return np.maximum(two_sided(z), 0)


statement(
    "lem-nonneg",
    "R depends on |z| and does not fall in any |z_i|: the prox of R under z >= 0 is that of R at max(u, 0).",
    source="Zhu, Khalili and Zhu 2025, Lemma 1, for l1, l0 and k-sparse; the general form own",
    code=("Penalty.prox",),
    laws=("nonneg",),
    on_paper="any penalty, any size",
)


@statement(
    "prop-abstopk-closer",
    "||u - AbsTopK_k(u)|| <= ||u - TopK_k(u)|| for every u; the squares differ by sum_(i <= k) |u|_(i)² - (u_+)_(i)².",
    source="own; immediate from the larger feasible set",
    code=("abstopk_sae",),
)
def closer(kit: Kit, rng: np.random.Generator) -> None:
    """Both distances against the best support found by enumeration, and their difference against the formula."""
    for P in (1, 2, 5):
        u = np.concatenate([rng.integers(-3, 4, size=(30, P)).astype(float), rng.normal(size=(15, P))])
        u = np.concatenate([u, -np.abs(u[:5]), np.abs(u[:5])])
        masks = np.array(list(itertools.product([0.0, 1.0], repeat=P)))
        for k in (0, 1, 2, P, P + 1):
            few = masks[masks.sum(axis=-1) <= k]
            far = []
            for nonneg in (False, True):
                code = kit.KSparse(k, nonneg).prox(u)
                insist((code != 0).sum(axis=-1) <= k, f"a code of k={k} has more non-zeros")
                insist(code >= (0 if nonneg else -np.inf), "a code of TopK is negative")
                far.append(((u - code) ** 2).sum(axis=-1))
                supported = few * (clipped(u, nonneg))[:, None]
                best = ((u[:, None] - supported) ** 2).sum(axis=-1).min(axis=-1)
                assert_close(far[-1], best, 1e-13, f"the distance for k={k}, nonneg={nonneg}")
            largest, positive = (-np.sort(-v, axis=-1)[:, :k] for v in (np.abs(u), np.maximum(u, 0)))
            insist(far[0] <= far[1] + 1e-12, f"AbsTopK of k={k} is farther than TopK")
            assert_close(far[1] - far[0], (largest**2 - positive**2).sum(axis=-1), 1e-13, "the difference")


def _by_value(u: Array, k: int) -> Array:
    return keep_largest(u, k, u)


def _selects_then_clips(u: Array, k: int) -> Array:
    return np.maximum(keep_largest(u, k), 0)


def _magnitudes(u: Array, k: int) -> Array:
    return np.abs(keep_largest(u, k))


plant("abs-top-k: selects by u, not by |u|", "prop-abstopk-closer", KSparse=planted_ksparse(_by_value))
plant(
    "top-k: selects by |u|, then clips",
    "prop-abstopk-closer",
    KSparse=planted_ksparse(keep_largest, _selects_then_clips),
)
plant("top-k: returns magnitudes", "prop-abstopk-closer", KSparse=planted_ksparse(keep_largest, _magnitudes))
plant("top-k: keeps negative entries", "prop-abstopk-closer", KSparse=planted_ksparse(keep_largest, _by_value))


@statement(
    "prop-splitting-codes",
    "TopK_k((u, -u)) = (z_+, z_-), z = AbsTopK_k(u), unless z keeps u_i < 0 and drops u_j = -u_i, j > i; "
    "for separable R always, L0 with two weights too.",
    source="own; folklore",
    code=("abstopk_sae",),
)
def splits_codes(kit: Kit, rng: np.random.Generator) -> None:
    """All rows of {-2, ..., 2}^4 with every k, so that each pattern of ties is met; then separable penalties."""
    u = np.concatenate([np.array(list(itertools.product(range(-2, 3), repeat=4)), float), rng.normal(size=(20, 4))])
    after = np.triu(np.ones((4, 4), dtype=bool), 1)
    for k in range(6):
        z, w = kit.KSparse(k).prox(u), kit.KSparse(k, True).prox(two_sided(u))
        on = among_largest(np.abs(u), k)
        assert_close(z, np.where(on, u, 0.0), 0.0, f"AbsTopK of k={k}")
        opposite = (u[:, :, None] < 0) & (u[:, :, None] == -u[:, None, :]) & after
        excepted = (opposite & on[:, :, None] & ~on[:, None, :]).any(axis=(1, 2))
        agree = (w == parts(z)).all(axis=-1)
        insist(agree == ~excepted, f"k={k}: wrong at {u[agree == excepted][:1]}")
        insist((w >= 0) & (np.count_nonzero(w, axis=-1) <= k)[:, None], f"k={k}: not a non-negative k-sparse code")
        folded = w[:, :4] - w[:, 4:]
        assert_close(((folded - u) ** 2).sum(-1), ((z - u) ** 2).sum(-1), 1e-14, f"the distance of p - q for k={k}")
    insist(excepted.sum() == 0, "k >= P has no exception")
    lam = np.array([0.5, 0.0, 1.0, 0.125])
    both = np.concatenate([lam, lam])
    for step in (0.5, 1.0, 2.0, 4.0):
        at = np.sqrt(2 * step * lam)
        v = np.concatenate([u, u * step * lam, u * at, u * lam, u * 0.5])
        for family in (
            kit.L1,
            kit.L0,
            lambda lam, nonneg: kit.ElasticNet(lam, 0.75, nonneg),
            lambda lam, nonneg: kit.MCP(lam, 2.0, nonneg),
            lambda lam, nonneg: kit.SCAD(lam, 3.0, nonneg),
        ):
            R, split = family(lam, False), family(both, True)
            assert_close(split.prox(two_sided(v), step), parts(R.prox(v, step)), 0.0, f"{R} at step {step}")
        R, split = kit.L0(lam, lam_minus=lam[::-1]), kit.L0(np.concatenate([lam, lam[::-1]]), True)
        assert_close(split.prox(two_sided(v), step), parts(R.prox(v, step)), 0.0, f"{R} at step {step}")


def _highest(u: Array, k: int) -> Array:
    return keep_largest(np.maximum(u, 0)[..., ::-1], k)[..., ::-1]


def _keeps_ties_when_positive(lam: Numbers, nonneg: bool = False, **more: Any) -> Any:
    right = penalties.L0(lam, nonneg, **more)

    def prox(u: Array, step: float) -> Array:
        return np.where(u >= np.sqrt(2 * step * np.asarray(lam)), np.maximum(u, 0), 0.0)

    return planted(right, prox) if nonneg else right


plant("top-k: ties to the highest index", "prop-splitting-codes", KSparse=planted_ksparse(keep_largest, _highest))
plant("top-k: takes |u| first", "prop-splitting-codes", KSparse=planted_ksparse(keep_largest, _magnitudes))
plant("jump: keeps ties, hard thresholding drops them", "prop-splitting-codes", L0=_keeps_ties_when_positive)
plant(
    "l0: one weight for both sides", "prop-splitting-codes", L0=lambda lam, nonneg=False, **_: penalties.L0(lam, nonneg)
)


@statement(
    "prop-splitting-optima",
    "k-sparse, or R = sum r_i(|z_i|): min F over signed codes of D = min F over non-negative codes of [D, -D]; "
    "p - q and (z_+, z_-) carry minimisers over.",
    source="own; folklore; for the lasso Chen, Donoho and Saunders 1998",
    on_paper="matrices of any size",
)
def same_optima(kit: Kit, rng: np.random.Generator) -> None:
    """Every support of small k-sparse and l0 problems; the lasso by `solve` and by all supports; F of folded codes."""
    from scipy.optimize import nnls

    P, d = 4, 3
    D = rng.normal(size=(P, d))
    D[rng.integers(P)] = rng.choice([-1.0, 0.0, 1.0]) * D[0]  # an opposite atom, a zero atom, a duplicate
    x, bias, lam = 2 * rng.normal(size=d), rng.normal(size=d), rng.uniform(0.05, 0.4, size=P)
    c, E, both = x - bias, np.concatenate([D, -D]), np.concatenate([lam, lam])
    assert_close(np.float64(kit.lipschitz(E)), np.float64(2 * kit.lipschitz(D)), 1e-12, "the norm of [D, -D]")

    def loss(z: Array, atoms: Array) -> Any:
        return 0.5 * squared_error(c, atoms, z)

    pairs = [(kit.KSparse(k), kit.KSparse(k, nonneg=True)) for k in (0, 1, 2)]
    other = rng.permutation(lam)
    sides = kit.L0(lam, lam_minus=other), kit.L0(np.concatenate([lam, other]), nonneg=True)
    for R, split in [*pairs, (kit.L0(lam), kit.L0(both, nonneg=True))]:
        signed, positive = np.zeros((2**P, P)), np.zeros((4**P, 2 * P))
        for code, mask in zip(signed, itertools.product([False, True], repeat=P), strict=True):
            on = np.array(mask)
            code[on] = np.linalg.lstsq(D[on].T, c)[0]
        for code, mask in zip(positive, itertools.product([False, True], repeat=2 * P), strict=True):
            on = np.array(mask)
            if on.any() and on.sum() <= d:  # more than d atoms are never needed
                code[on] = nnls(E[on].T, c)[0]
        F, F2 = loss(signed, D) + R.value(signed), loss(positive, E) + split.value(positive)
        assert_close(F2.min(), F.min(), 1e-9, f"the optimum of {R}")
        best = positive[F2.argmin()]
        folded = best[:P] - best[P:]
        insist(loss(folded, D) + R.value(folded) <= F.min() + 1e-9, f"{R}: p - q is not optimal")
        unfolded = parts(signed[F.argmin()])
        insist(loss(unfolded, E) + split.value(unfolded) <= F2.min() + 1e-9, f"{R}: (z_+, z_-) is not optimal")

    lasso = R, split = kit.L1(lam), kit.L1(both, nonneg=True)
    z, w = kit.solve(x, D, R, tol=1e-9, bias=bias).codes, kit.solve(x, E, split, tol=1e-9, bias=bias).codes
    best = l1_optimum(c, E, both, True)
    for what, value in (
        ("F", loss(z, D) + R.value(z)),
        ("F2", loss(w, E) + split.value(w)),
        ("F of p - q", loss(w[:P] - w[P:], D) + R.value(w[:P] - w[P:])),
        ("F2 of (z_+, z_-)", loss(parts(z), E) + split.value(parts(z))),
    ):
        assert_close(np.float64(value), loss(best, E) + both @ best, 1e-6, f"the lasso: {what}")

    p, q = np.abs(rng.normal(size=(2, 40, P))) * rng.choice([0.0, 0.1, 1.0, 4.0], size=(2, 40, P))
    q[:5] = p[:5]
    z = rng.normal(size=(20, P)) * rng.choice([0.0, 0.1, 4.0], size=(20, P))
    for R, split in (
        lasso,
        sides,
        (kit.L0(lam), kit.L0(both, nonneg=True)),
        (kit.ElasticNet(lam, 0.5), kit.ElasticNet(both, 0.5, nonneg=True)),
        (kit.MCP(lam, 2.0), kit.MCP(both, 2.0, nonneg=True)),
        (kit.SCAD(lam, 3.0), kit.SCAD(both, 3.0, nonneg=True)),
    ):
        apart = split.value(np.concatenate([p, q], axis=1))
        insist(R.value(p - q) <= apart + 1e-12, f"{R} rises where p, q become p - q")
        insist((R.value(p - q) < apart) | ~((p > 0) & (q > 0)).any(axis=1), f"{R} loses nothing on p, q > 0")
        assert_close(split.value(parts(z)), R.value(z), 1e-14, f"{R} of (z_+, z_-)")


def _k_for_each_sign(k: int, nonneg: bool = False) -> Any:
    return penalties.KSparse(2 * k if nonneg else k, nonneg)


def _half_price(lam: Numbers, nonneg: bool = False) -> Any:
    return penalties.L1(lam / 2 if nonneg else lam, nonneg)


def _solve_signed(x: Array, D: Array, R: Any, **options: Any) -> Any:
    return reference.solve(x, D, replace(R, nonneg=False), **options)


def _solve_half_way(x: Array, D: Array, R: Any, **options: Any) -> Any:
    return reference.solve(x, D, R, max_steps=3, **options)


plant("k entries for each sign", "prop-splitting-optima", KSparse=_k_for_each_sign)
plant("l1: half the price for each sign", "prop-splitting-optima", L1=_half_price)
plant("solve: drops the constraint", "prop-splitting-optima", solve=_solve_signed)
plant("solve: stops after three steps", "prop-splitting-optima", solve=_solve_half_way)
