"""Proximal operators (docs/theory/proximal.md): statements and their checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from proxsae import penalties
from proxsae.statements.plain import Array, Numbers, clipped, keep_largest
from proxsae.statements.registry import Kit, insist, page, plant, planted, planted_ksparse
from proxsae.testing.compare import assert_close

statement = page("proximal", on_paper="any number of latents")

BECK = "Beck 2017"


def tied_rows(rng: np.random.Generator, P: int) -> Array:
    """Rows of width P: zeros, all equal, all equal but for signs, small integers with many ties, and normal draws."""
    signs = rng.choice([-1.0, 1.0], size=(2, P))
    return np.concatenate(
        [np.zeros((1, P)), np.ones((1, P)), signs, rng.integers(-2, 3, size=(12, P)), rng.normal(size=(6, P))]
    )


statement(
    "def-prox",
    "R proper, lower semicontinuous and bounded below, mu > 0: argmin_z mu R(z) + ½||z - u||² is never empty; "
    "prox is a named member of it.",
    source=f"Moreau 1965; {BECK}, Theorem 6.4; the names at ties: own",
    code=("Penalty.prox",),
    laws=("optimal",),
    on_paper="a definition",
)


@statement(
    "lem-separable",
    "If R is a sum over blocks of entries, each with its own step, the minimisers are those of every block.",
    source=f"{BECK}, Theorem 6.6",
    code=("penalties.Separable",),
    on_paper="any number of blocks",
)
def splits(kit: Kit, rng: np.random.Generator) -> None:
    """The joint minimum over a grid of the plane, with one lam per latent; then latents, groups and rows one by one."""
    grid = np.linspace(-3, 3, 61)
    plane = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    families: list[tuple[Any, Any]] = [(kit.L1, np.abs), (kit.L0, lambda z: (z != 0).astype(float))]
    for family, size in families:
        for lam in (np.array([0.5, 0.0]), np.array([0.125, 2.0])):
            R = family(lam)
            for step in (1.0, 0.5):
                at = np.array([step * lam, -np.sqrt(2 * step * lam), [0.0, -0.0]])
                u = np.concatenate([at, rng.uniform(-2.5, 2.5, size=(5, 2))])
                z = R.prox(u, step)
                reached = step * size(z) @ lam + 0.5 * ((z - u) ** 2).sum(axis=-1)
                best = step * size(plane) @ lam + 0.5 * ((plane - u[:, None]) ** 2).sum(axis=-1)
                insist(reached <= best.min(axis=-1) + 1e-12, f"{R}: prox({u}) = {z} is above the joint minimum")
                alone = [family(float(lam[i])).prox(u[:, i : i + 1], step) for i in range(2)]
                assert_close(z, np.concatenate(alone, axis=1), 0.0, "one latent at a time")
    u, steps = rng.normal(size=(5, 6)), np.array([1.0, 0.5, 2.0, 0.1, 1.0])
    lam, falling = rng.uniform(0, 1, size=6), np.array([1.0, 0.7, 0.7, 0.4, 0.0, 0.0])
    group = kit.GroupL2(0.75, 3)
    assert_close(group.prox(u), np.concatenate([group.prox(u[:, :3]), group.prox(u[:, 3:])], axis=1), 0.0, "groups")
    for R in (kit.L1(lam), kit.L0(lam), group, kit.SortedL1(falling), kit.KSparse(2)):
        together = R.prox(u, steps)
        assert_close(together, np.stack([R.prox(a, float(s)) for a, s in zip(u, steps, strict=True)]), 0.0, "rows")


def _strided_groups(lam: Numbers, size: int) -> Any:
    right = penalties.GroupL2(lam, size)

    def prox(u: Array, step: Numbers) -> Array:
        turn = np.arange(u.shape[-1]).reshape(size, -1).T.reshape(-1)
        out = np.empty_like(u)
        out[..., turn] = right.prox(u[..., turn], step)
        return out

    return planted(right, prox)


def _first_step_for_all(lam: Numbers) -> Any:
    right = penalties.L1(lam)
    return planted(right, lambda u, step: right.prox(u, float(np.ravel(step)[0])))


plant("l1: lam in the wrong order", "lem-separable", L1=lambda lam: penalties.L1(np.ravel(lam)[::-1]))
plant("l0: the mean lam for all latents", "lem-separable", L0=lambda lam: penalties.L0(float(np.mean(lam))))
plant("groups of strided latents", "lem-separable", GroupL2=_strided_groups)
plant("l1: the step of the first row for all", "lem-separable", L1=_first_step_for_all)

statement(
    "lem-prox-monotone",
    "Any R: <p - q, u - v> >= 0 for p in Prox(u), q in Prox(v); and R(prox) does not rise as the step grows.",
    source="folklore; Rockafellar and Wets 1998, chapter 12",
    laws=("monotone", "step"),
    on_paper="any penalty, any size",
)

statement(
    "lem-shrinks",
    "R does not fall as an entry of z moves away from 0: every minimiser has p_i between 0 and u_i.",
    source="own; folklore",
    laws=("shrinks",),
    on_paper="any penalty, any size",
)

statement(
    "thm-prox-l1",
    "R = sum lam_i |z_i|, lam_i >= 0: the prox is unique, sign(u_i) max(|u_i| - mu lam_i, 0).",
    source=f"{BECK}, Example 6.8; Zhu, Khalili and Zhu 2025, Lemma 1",
    code=("L1",),
    laws=("optimal", "convention", "value"),
)

statement(
    "thm-prox-l0",
    "R = sum lam_i 1[z_i > 0] + lam_minus_i 1[z_i < 0], weights >= 0: the prox keeps u_i > sqrt(2 mu lam_i) and "
    "u_i < -sqrt(2 mu lam_minus_i); at equality 0 and u_i tie.",
    source=f"{BECK}, Example 6.10, and Zhu, Khalili and Zhu 2025, Lemma 1, for lam_minus = lam; two weights own",
    code=("L0",),
    laws=("optimal", "convention", "value"),
)

statement(
    "thm-prox-ksparse",
    "R = 0 if ||z||_0 <= k, else infinity: the minimisers keep k largest |u_i|, for every mu; named: the lowest index.",
    source="Beck and Eldar 2013, section 2; Zhu, Khalili and Zhu 2025, Lemma 1",
    code=("KSparse",),
    laws=("optimal", "convention", "value", "projection"),
)

statement(
    "thm-prox-elastic",
    "R = sum lam_i |z_i| + alpha/2 ||z||², lam_i, alpha >= 0: the prox is soft(u_i, mu lam_i) / (1 + mu alpha).",
    source=f"Zou and Hastie 2005; {BECK}, Theorem 6.13 with Example 6.8",
    code=("ElasticNet",),
    laws=("optimal", "convention", "value"),
)

statement(
    "thm-prox-mcp",
    "MCP, gamma > 0: firm thresholding for mu < gamma, hard thresholding at lam sqrt(gamma mu) for mu >= gamma.",
    source="Zhang 2010; Gao and Bruce 1997 for mu < gamma; mu >= gamma own",
    code=("MCP",),
    laws=("optimal", "convention", "value"),
)

statement(
    "thm-prox-scad",
    "SCAD, a > 2: three pieces for mu < a - 1, a jump at lam (a + 1 + mu)/2 for mu < a + 1, "
    "then hard at lam sqrt((a + 1) mu).",
    source="Fan and Li 2001 for mu = 1; the other steps own",
    code=("SCAD",),
    laws=("optimal", "convention", "value"),
)

statement(
    "thm-prox-group",
    "R = sum_g lam ||z_g||_2: the prox is unique, u_g max(0, 1 - mu lam / ||u_g||), and 0 for u_g = 0.",
    source=f"Yuan and Lin 2006; {BECK}, Example 6.19",
    code=("GroupL2",),
    laws=("optimal", "value"),
    on_paper="groups of any size",
)

statement(
    "thm-prox-sorted",
    "R = sum lam_i |z|_(i), lam non-increasing: sort |u|, subtract mu lam, isotonic regression, clip at 0, undo.",
    source="Bogdan, van den Berg, Sabatti, Su and Candes 2015; the clip: Nemeth and Nemeth 2012",
    code=("SortedL1",),
    laws=("optimal", "value"),
)

statement(
    "thm-prox-batch",
    "R = 0 if a batch of B rows has at most k B non-zeros, else infinity, one step: its k B largest |u| are kept.",
    source="Bussmann, Leask and Nanda 2024 (the operator)",
    code=("BatchKSparse",),
    laws=("optimal", "value", "projection"),
    on_paper="batches of any size",
)

statement(
    "thm-firmly-nonexpansive",
    "Convex R: the prox is unique, ||p - q||² <= <p - q, u - v>, and so ||p - q|| <= ||u - v||.",
    source=f"Moreau 1965; {BECK}, Theorem 6.42",
    code=("Penalty",),
    laws=("firm",),
    on_paper="any convex penalty, any size",
)


@statement(
    "thm-moreau",
    "R the support function of a closed convex C with 0 in C, as L1, GroupL2, SortedL1: "
    "u = prox_{mu R}(u) + proj_{mu C}(u).",
    source=f"Moreau 1965; {BECK}, Theorems 6.44 and 6.46",
    laws=("moreau",),
    on_paper="any closed convex set",
)
def moreau_decomposition(kit: Kit, rng: np.random.Generator) -> None:
    """GroupL2 against the projection on balls; SortedL1: the rest lies in its dual set, and touches it at the prox."""
    falling = np.array([[1.0, 0.75, 0.75, 0.25, 0, 0], [2.0, 0, 0, 0, 0, 0], [0.5] * 6, [0.0] * 6])
    u = tied_rows(rng, 6) * rng.choice([0.5, 1.0, 3.0], size=(22, 1))
    for step in (1.0, 0.5, 2.0):
        for size, lam in ((1, 0.5), (2, 1.0), (3, 0.0), (6, 1.5)):
            groups = u.reshape(len(u), -1, size)
            norms = np.linalg.norm(groups, axis=-1, keepdims=True)
            ball = groups * np.minimum(1, step * lam / np.where(norms > 0, norms, 1))
            got = kit.GroupL2(lam, size).prox(u, step) + ball.reshape(u.shape)
            assert_close(got, u, 1e-13, "prox + projection on the balls")
        for weights in falling:
            p = kit.SortedL1(weights).prox(u, step)
            rest = u - p
            largest, bound = np.cumsum(-np.sort(-np.abs(rest), axis=-1), axis=-1), step * np.cumsum(weights)
            insist(largest <= bound + 1e-12, "u - prox(u) leaves the dual set")
            value = step * (-np.sort(-np.abs(p), axis=-1) @ weights)
            assert_close((rest * p).sum(axis=-1), value, 1e-12, "<u - prox(u), prox(u)>")


def _sorted_l1(fit: Callable[[Array], Array]) -> Callable[[Array], Any]:
    def make(lam: Array) -> Any:
        def prox(u: Array, step: Numbers) -> Array:
            order = np.argsort(-np.abs(u), axis=-1, kind="stable")
            out = np.empty_like(u)
            np.put_along_axis(out, order, fit(np.take_along_axis(np.abs(u), order, axis=-1) - step * lam), axis=-1)
            return np.sign(u) * out

        return planted(penalties.SortedL1(lam), prox)

    return make


def _isotonic(w: Array) -> Array:
    from scipy.optimize import isotonic_regression

    return np.stack([isotonic_regression(row, increasing=False).x for row in w])


plant("sorted l1: no isotonic regression", "thm-moreau", SortedL1=_sorted_l1(lambda w: np.maximum(w, 0)))
plant("sorted l1: clips before it fits", "thm-moreau", SortedL1=_sorted_l1(lambda w: _isotonic(np.maximum(w, 0))))
plant("sorted l1: does not clip", "thm-moreau", SortedL1=_sorted_l1(_isotonic))
plant("groups: shrinks entries, not norms", "thm-moreau", GroupL2=lambda lam, size: penalties.L1(lam))

statement(
    "prop-lam-monotone",
    "L1, L0, ElasticNet, MCP, SCAD, GroupL2, SortedL1: |prox(u)_i| does not grow with lam, nor with the step.",
    source="own; monotone comparative statics, Topkis 1978",
    laws=("lam",),
    on_paper="penalties as functions",
)


@statement(
    "prop-symmetries",
    "Even R: prox(s u) = s prox(u), and L0 with its weights swapped where s_i = -1. "
    "Symmetric R: prox commutes with permutations, but for ties. "
    "R'(cz) = c² R(z): prox_{R'}(cu) = c prox_R(u).",
    source=f"own; folklore; {BECK}, Theorem 6.12 on scaling",
    laws=("odd", "permutation"),
    on_paper="any penalty, any size",
)
def scales(kit: Kit, rng: np.random.Generator) -> None:
    """prox_{R'}(cu) = c prox_R(u) for every family, at powers of two, where rounding breaks no tie."""
    lam, falling = np.array([0.5, 0.0, 2.0, 0.125, 0.5, 1.0]), np.array([2.0, 1.0, 0.5, 0.5, 0.125, 0.0])
    grid = np.array([0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    for step in (0.5, 1.0, 2.0, 4.0):
        points = np.concatenate([grid, np.sqrt(2 * step * lam), lam * np.sqrt(2 * step), lam * np.sqrt(4 * step)])
        u = rng.choice(points, size=(40, 6)) * rng.choice([-1.0, 1.0], size=(40, 6))
        u[30:] = rng.normal(size=(10, 6))
        for c in (0.25, 2.0, 8.0):
            for R, scaled in (
                (kit.L1(lam), kit.L1(c * lam)),
                (kit.L0(lam), kit.L0(c * c * lam)),
                (kit.L0(lam, lam_minus=lam[::-1]), kit.L0(c * c * lam, lam_minus=c * c * lam[::-1])),
                (kit.ElasticNet(lam, 0.75), kit.ElasticNet(c * lam, 0.75)),
                (kit.MCP(lam, 2.0), kit.MCP(c * lam, 2.0)),
                (kit.SCAD(lam, 3.0), kit.SCAD(c * lam, 3.0)),
                (kit.GroupL2(0.5, 2), kit.GroupL2(0.5 * c, 2)),
                (kit.SortedL1(falling), kit.SortedL1(c * falling)),
                (kit.KSparse(2), kit.KSparse(2)),
                (kit.BatchKSparse(2), kit.BatchKSparse(2)),
            ):
                assert_close(scaled.prox(c * u, step), c * R.prox(u, step), 1e-14, f"{R} at step {step}, scaled by {c}")


def _flat_from_gamma(lam: Numbers, gamma: float) -> Any:
    right = penalties.MCP(lam, gamma)
    return planted(right, lambda u, step: np.where(np.abs(u) >= gamma, u, right.prox(u, step)))


def _threshold_lam(lam: Numbers, **more: Any) -> Any:
    return planted(penalties.L0(lam, **more), lambda u, step: np.where(np.abs(u) > step * lam, u, 0.0))


def _above_one(k: int) -> Any:
    right = penalties.KSparse(k)
    return planted(right, lambda u, step: np.where(np.abs(u) > 0.5, right.prox(u), 0.0))


plant("l0: threshold mu lam", "prop-symmetries", L0=_threshold_lam)
plant("mcp: flat from gamma, not from gamma lam", "prop-symmetries", MCP=_flat_from_gamma)
plant("k-sparse: drops small entries as well", "prop-symmetries", KSparse=_above_one)


@statement(
    "lem-ksparse-error",
    "k-sparse H: ||u||² = ||Hu||² + ||u - Hu||², ||Hu||² >= min(k, P)/P ||u||², ||u - Hu||_2 <= ||u||_1 / (2 sqrt k).",
    source="folklore; the third: Foucart and Rauhut 2013, Theorem 2.5 (number not verified)",
    code=("KSparse",),
)
def keeps_enough(kit: Kit, rng: np.random.Generator) -> None:
    """The three relations on rows with ties, both signs, k from 0 beyond P; then where they are equalities."""
    for P in (1, 2, 5, 6):
        u = tied_rows(rng, P)
        for k in (0, 1, 2, 3, P, P + 2):
            for nonneg in (False, True):
                code, seen = kit.KSparse(k, nonneg).prox(u), clipped(u, nonneg)
                for a in (u, seen):
                    parts = (code**2).sum(axis=-1) + ((a - code) ** 2).sum(axis=-1)
                    assert_close(parts, (a**2).sum(axis=-1), 1e-14, "Pythagoras")
                share = min(k, P) / P * (seen**2).sum(axis=-1)
                insist((code**2).sum(axis=-1) >= share - 1e-12, f"k={k} of {P} keep too little")
                if k:
                    error, bound = np.linalg.norm(seen - code, axis=-1), np.abs(seen).sum(axis=-1) / (2 * np.sqrt(k))
                    insist(error <= bound + 1e-12, f"k={k} of {P}: the error {error} exceeds {bound}")
    for k in (1, 2, 3):
        row = rng.choice([-1.0, 1.0], size=2 * k)
        error = np.linalg.norm(row - kit.KSparse(k).prox(row))
        assert_close(error, np.float64(np.abs(row).sum() / (2 * np.sqrt(k))), 1e-14, "the error of 2k equal magnitudes")


plant(
    "k-sparse: selects by u, not by |u|",
    "lem-ksparse-error",
    KSparse=planted_ksparse(lambda u, k: keep_largest(u, k, u)),
)
plant(
    "k-sparse: shrinks survivors", "lem-ksparse-error", KSparse=planted_ksparse(lambda u, k: 0.9 * keep_largest(u, k))
)
plant(
    "k-sparse: keeps one fewer",
    "lem-ksparse-error",
    KSparse=planted_ksparse(lambda u, k: keep_largest(u, max(0, k - 1))),
)


@statement(
    "lem-nested",
    "k <= k', ties to the lowest index: H_k u is H_k' u on a smaller support, and H_k H_k' u = H_k' H_k u = H_k u.",
    source="own; folklore",
    code=("KSparse",),
)
def nested(kit: Kit, rng: np.random.Generator) -> None:
    """All pairs k <= k' on rows with many ties: supports, values, and both compositions."""
    for P in (1, 3, 7):
        u = np.concatenate([tied_rows(rng, P), rng.integers(-1, 2, size=(12, P)).astype(float)])
        for nonneg in (False, True):
            operators = [kit.KSparse(k, nonneg) for k in range(P + 2)]
            codes = [R.prox(u) for R in operators]
            for k, small in enumerate(codes):
                for more, large in enumerate(codes[k:], start=k):
                    on = small != 0
                    insist(large[on] == small[on], f"k={k} and k={more} differ where both should not")
                    assert_close(operators[k].prox(large), small, 0.0, f"H_{k} H_{more} u")
                    assert_close(operators[more].prox(small), small, 0.0, f"H_{more} H_{k} u")


def _ties_at_random(u: Array, k: int) -> Array:
    order = np.random.default_rng(k).permutation(u.shape[-1])
    out = np.empty_like(u)
    out[..., order] = keep_largest(u[..., order], k)
    return out


def _same_energy(u: Array, k: int) -> Array:
    code = keep_largest(u, k)
    kept = np.linalg.norm(code, axis=-1, keepdims=True)
    return code * np.linalg.norm(u, axis=-1, keepdims=True) / np.where(kept > 0, kept, 1)


plant("k-sparse: ties at random", "lem-nested", KSparse=planted_ksparse(_ties_at_random))
plant("k-sparse: rescales to the energy of u", "lem-nested", KSparse=planted_ksparse(_same_energy))
