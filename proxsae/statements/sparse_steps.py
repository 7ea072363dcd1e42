"""Steps on supports (docs/theory/sparse_steps.md): statements and their checks.

The reference is dense NumPy, a row at a time, with a stable sort for the supports and complex steps for derivatives; it
shares no code with what it is compared with.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxsae import penalties
from proxsae.conventions import is_torch
from proxsae.statements.dense_encoder import everywhere, first, kept, problem, walk
from proxsae.statements.plain import Array, clipped, top
from proxsae.statements.registry import Kit, insist, page, plant, planted, planted_sae
from proxsae.steps import Backtracking, ExactStep, FixedStep, Lipschitz
from proxsae.testing.compare import assert_close, assert_same

if TYPE_CHECKING:
    from torch import Tensor

statement = page("sparse_steps", on_paper="matrices of any size")
GROUP = 32  # latents in a group
NAMES = ("x", "W_enc", "b_enc", "D", "b")  # x (n, d), W_enc (d, P), b_enc (P,), D (P, d), b (d,)


def by_groups(
    u: Array, k: int, nonneg: bool, size: Any = np.abs, best: Any = np.max, drops: Any = np.less, where: str = "first"
) -> Array:
    """The prox by group maxima, with ways to get it wrong: size, maximum, what the floor drops, order of groups."""
    v = clipped(u, nonneg)
    groups = np.arange(len(u)).reshape(-1, GROUP)
    if where == "interleaved":
        groups = np.arange(len(u)).reshape(GROUP, -1).T
    if where == "last":
        groups = groups[::-1]
    maxima = best(size(v)[groups], axis=1)
    chosen = top(maxima, k)
    near = np.sort(groups[chosen].ravel())
    near = near[~drops(np.abs(v[near]), np.min(maxima[chosen]))]
    z, at = np.zeros_like(u), near[first(v[near], k, False)]
    z[at] = v[at]
    return z + 0.0  # -0.0 is zero


def rows(P: int, k: int, rng: np.random.Generator) -> Array:
    """Rows of P entries: random, tied, clustered, with few positive entries, with infinities, and with NaN."""
    u = rng.normal(size=(14, P))
    u[1:4] = np.sign(u[1:4]) * rng.integers(0, 3, size=(3, P)) + 0.0
    u[4] = 0
    u[5] = -1
    u[6, GROUP : 2 * GROUP] -= 9  # the winners are neighbours
    u[7] = -np.abs(u[7])
    u[7, rng.permutation(P)[: k // 2]] *= -1  # fewer than k are positive
    u[8] = np.repeat(rng.permutation(P // GROUP), GROUP) % 2 * rng.integers(0, 2, size=P)
    u[9] = 0
    u[9, rng.permutation(P)[: k + 1]] = 2.0
    u[10, rng.permutation(P)[: k + 2]] = np.inf
    u[11, rng.permutation(P)[:k]] = -np.inf
    u[12, rng.permutation(P)[: max(1, k - 1)]] = np.nan
    u[13, rng.permutation(P)[: k + 2]] = np.nan
    return u


@statement(
    "lem-group-maxima",
    "The k largest |u_i|, lowest index first among ties, lie in the k groups of neighbours with the largest maxima, "
    "and reach the k-th largest maximum of any groups.",
    source="own proof; the groups' maxima are the delegates of Gaihre et al. 2021",
    code=("pytorch.topk.top_k", "pytorch.topk.top_k_of_blocks"),
    on_paper="rows of any length",
)
def group_maxima(kit: Kit, rng: np.random.Generator) -> None:
    """The codes of long rows, by their prox and by an SAE whose rows of W_enc they are, against a stable sort."""
    import torch

    for k, nonneg in itertools.product((1, 3, 4), (False, True)):
        P = 4 * GROUP * k + GROUP
        u, R = rows(P, k, rng), kit.KSparse(k, nonneg)
        want = kept(u, k, nonneg)
        assert_same(R.prox(torch.tensor(u)).numpy(), want, f"k = {k} of {P}, nonneg = {nonneg}: the prox")
        finite = np.isfinite(u).all(axis=1)
        u, want = u[finite], want[finite]
        at = first(u, k, nonneg)
        sae = kit.SAE(len(u), P, R).double()
        sae.W_enc.data.copy_(torch.tensor(u))
        codes = sae.encode_sparse(torch.eye(len(u), dtype=torch.float64))
        assert_same(codes.indices.numpy(), at, f"k = {k} of {P}, nonneg = {nonneg}: indices")
        assert_same(codes.to_dense().detach().numpy(), want, f"k = {k} of {P}, nonneg = {nonneg}: codes")


def _grouped(**wrong: Any) -> Callable[..., Any]:
    """The constructor of k-sparse penalties whose prox is `by_groups` with one argument replaced."""

    def build(k: int, nonneg: bool = False) -> Any:
        def prox(u: Any, step: float) -> Any:
            found = np.stack([by_groups(row, k, nonneg, **wrong) for row in u.numpy()])
            return u.new_tensor(found) if is_torch(u) else found

        return planted(penalties.KSparse(k, nonneg), prox)

    return build


plant("groups are ranked by u, not |u|", "lem-group-maxima", KSparse=_grouped(size=lambda v: v))
plant("among groups the last one first", "lem-group-maxima", KSparse=_grouped(where="last"))
plant("interleaved groups", "lem-group-maxima", KSparse=_grouped(where="interleaved"))
plant("what equals the floor is dropped", "lem-group-maxima", KSparse=_grouped(drops=np.less_equal))
plant("the maximum drops NaN", "lem-group-maxima", KSparse=_grouped(best=np.fmax.reduce))


@statement(
    "lem-sharded-topk",
    "The first k of the first k of each shard, shards being intervals of a row in their order, are the first k of the "
    "row, ties included.",
    source="own proof; latents are sharded by Gao et al. 2024",
    code=("sae.team.among_all", "sae.team.Team.keep", "sae.shards.split"),
    on_paper="rows of any length",
)
def sharded_topk(kit: Kit, rng: np.random.Generator) -> None:
    """Each shard's own top-k and what is kept of it, put together, against a stable sort of the whole row."""
    import torch

    from proxsae.pytorch import topk

    for shards, k, nonneg in itertools.product((1, 2, 3), (1, 4, 9), (False, True)):
        P = 6 * GROUP
        u = rows(P, k, rng)[:10]  # finite ones: an SAE refuses others
        want = kept(u, k, nonneg)
        parts = torch.tensor(np.maximum(u, 0) if nonneg else u).chunk(shards, dim=1)
        at = [topk.top_k(part, k) for part in parts]
        values = [part.gather(-1, i) for part, i in zip(parts, at, strict=True)]
        masks = kit.among_all([v.abs() for v in values], k)
        found = [
            torch.zeros_like(part).scatter(-1, i, torch.where(mask & (v != 0), v, 0))
            for part, i, v, mask in zip(parts, at, values, masks, strict=True)
        ]
        assert_same(torch.cat(found, dim=1).numpy(), want, f"k = {k} of {P} on {shards} shards, nonneg = {nonneg}")


def _last_shard_first(sizes: list[Tensor], k: int) -> list[Tensor]:
    from proxsae.sae.team import among_all

    return among_all(sizes[::-1], k)[::-1]


def _a_share_of_k(sizes: list[Tensor], k: int) -> list[Tensor]:
    from proxsae.sae.team import among_all

    return [among_all([size], -(-k // len(sizes)))[0] for size in sizes]


plant("among shards the last one first", "lem-sharded-topk", among_all=_last_shard_first)
plant("each shard keeps its share of k", "lem-sharded-topk", among_all=_a_share_of_k)
plant("shards are not compared", "lem-sharded-topk", among_all=lambda sizes, k: [size >= 0 for size in sizes])


def load(sae: Any, weights: list[Array]) -> Any:
    """The SAE in float64 with these weights."""
    import torch

    sae = sae.double()
    for name, a in zip(("W_enc", "b_enc", "W_dec", "b_dec"), weights[1:], strict=True):
        getattr(sae, name).data.copy_(torch.tensor(a))
    return sae


def weights_of(sae: Any, x: Tensor) -> list[Array]:
    """x and the weights of an SAE as arrays."""
    return [a.detach().numpy() for a in (x, sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)]


def _walks(**wrong: Any) -> Callable[..., Any]:
    """The constructor of SAEs whose sparse codes are those of `walk` with one argument replaced."""

    def encode_sparse(self: Any, x: Tensor) -> Any:
        from proxsae.certificates import lipschitz
        from proxsae.pytorch.codes import sparsify

        L = float(lipschitz(self.W_dec))
        found = walk(weights_of(self, x), self.penalty, self.steps, self.step, L, **wrong)
        return sparsify(x.new_tensor(found.codes[-1]))

    return planted_sae(encode_sparse=encode_sparse)


@statement(
    "lem-step-candidates",
    "For every mu > 0 the k largest |z - mu g| lie in the support of z and the k indices off it with the largest |g|.",
    source="own; folklore",
    code=("SAE.encode_sparse",),
    on_paper="codes of any length",
)
def step_candidates(kit: Kit, rng: np.random.Generator) -> None:
    """Two to four safeguarded steps against dense ones: steps that are halved, codes of zero, k >= P, exact ties."""
    import torch

    halved, decided = 0, np.zeros(0, dtype=bool)
    for nonneg, rule in itertools.product((False, True), (kit.ExactStep(), kit.Backtracking())):
        silent = problem(rng)
        silent[1:3] = 0 * silent[1], 0 * silent[2]  # z_1 = 0, and the first step opens a support
        at_bias = problem(rng)
        at_bias[0][1], at_bias[2] = at_bias[4], 0 * at_bias[2]  # x = b in one row: every code is 0
        threes = [np.round(2 * a) for a in problem(rng, n=12, P=6)]  # integers: ties are exact
        threes[1:4] = np.repeat(threes[1], 3, axis=1), np.repeat(threes[2], 3), np.repeat(threes[3], 3, axis=0)
        cases = [
            (problem(rng), 3, 4), (problem(rng, alike=2.0), 3, 4), (problem(rng, alike=2.0), 2, 3),
            (problem(rng, bias=-2.0), 6, 3), (problem(rng, P=7), 9, 3), (silent, 3, 3), (at_bias, 3, 3), (threes, 2, 2),
            (threes, 4, 2),
        ]  # fmt: skip
        for case, (weights, k, T) in enumerate(cases):
            R, (x, _, _, D, _) = kit.KSparse(k, nonneg), weights
            sae = load(kit.SAE(x.shape[1], len(D), R, steps=T, step=rule), weights)
            want = walk(weights, R, T, rule, kit.lipschitz(D))
            got = sae.encode_sparse(torch.tensor(x)).to_dense().detach().numpy()
            clear = want.decided
            assert_close(got[clear], want.codes[-1][clear], 1e-10, f"case {case}, {rule}, nonneg = {nonneg}: codes")
            halved, decided = halved + want.halved, np.append(decided, clear)
    insist(halved > 20, f"only {halved} steps were halved: the problems are too easy")
    insist(np.mean(decided) > 0.8, "rounding decides too many step sizes")
    z, g = np.zeros(2), np.array([1.5 + 2.0**-51, 1.5 + 3 * 2.0**-52])  # the example of the page: rounding makes a tie
    insist(g[0] < g[1] and first(g, 1, False) == [1] and first(z - 1.5 * g, 1, False) == [0], "not a tie by rounding")


def _support_only(z: Array, g: Array, k: int, nonneg: bool) -> NDArray[np.bool_]:
    return z != 0 if z.any() else everywhere(z, g, k, nonneg)


def _by_size(z: Array, g: Array, k: int, nonneg: bool) -> NDArray[np.bool_]:
    mask = z != 0
    mask[first(np.where(mask, 0, g), k, False)] = True
    return mask


def _of_all(z: Array, g: Array, k: int, nonneg: bool) -> NDArray[np.bool_]:
    mask = z != 0
    mask[first(-g, k, nonneg)] = True
    return mask


def _not_padded(u: Array, k: int, nonneg: bool) -> Array:
    return kept(np.where(np.arange(len(u)) < k, 0, u), k, nonneg)


def _highest(z: Array, g: Array, k: int, nonneg: bool) -> NDArray[np.bool_]:
    mask = z != 0
    mask[len(z) - 1 - first(np.where(mask, 0, -g)[::-1], k, nonneg)] = True
    return mask


plant("the support never changes", "lem-step-candidates", SAE=_walks(candidates=_support_only))
plant("nonneg: candidates by |g|", "lem-step-candidates", SAE=_walks(candidates=_by_size))
plant("the k largest |g| of all, not off the support", "lem-step-candidates", SAE=_walks(candidates=_of_all))
plant("a code of 0 cannot open the latents that pad it", "lem-step-candidates", SAE=_walks(opened=_not_padded))
plant("among ties the highest index", "lem-step-candidates", SAE=_walks(candidates=_highest))


def by_way(SAE: Any, way: str) -> Any:
    """A subclass of SAE whose plan is to take two rows at a time, and their products in one way."""
    right = SAE.plan

    def plan(self: Any, rows: int, frozen: bool = True) -> Any:
        return replace(right(self, rows, frozen), rows=2, columns=self.d_sae, decode="sparse", product=way)

    return type("SAE", (SAE,), {"plan": plan})


@statement(
    "prop-gram-step",
    "With G = D^T D and a = D^T (x - b), z - mu D^T (Dz + b - x) = z + mu a - mu sum of z_j G_j over the support.",
    source="own; folklore (covariance updates, Friedman, Hastie and Tibshirani 2010)",
    code=("SAE.encode_sparse", "pytorch.cost_model.plan"),
)
def gram_step(kit: Kit, rng: np.random.Generator) -> None:
    """Codes by Gram rows, by residuals, and dense; then what `plan` chooses against times from counted bytes."""
    import torch

    from proxsae.pytorch.cost_model import RHO_S as MOVES

    for nonneg, T, k in itertools.product((False, True), (2, 4), (3, 30)):
        weights = problem(rng)
        x, D, R = weights[0], weights[3], kit.KSparse(k, nonneg)
        L = kit.lipschitz(D)
        for rule in (kit.Lipschitz(), kit.FixedStep(1.5 / L)):
            shape, found = (x.shape[1], len(D), R), {}
            for way in ("gram", "residual"):
                sae = load(by_way(type(kit.SAE(*shape)), way)(*shape, steps=T, step=rule), weights)
                with torch.no_grad():
                    found[way] = sae.encode_sparse(torch.tensor(x)).to_dense().numpy()
            want = walk(weights, R, T, rule, L).codes[-1]
            assert_close(found["residual"], want, 1e-12, f"k = {k}, {rule}, nonneg = {nonneg}: by residuals")
            assert_close(found["gram"], found["residual"], 1e-12, f"k = {k}, {rule}, nonneg = {nonneg}: by Gram rows")
    chosen = []
    for n, d, P, k in itertools.product((256, 65536), (768, 4096), (2048, 16384), (8, 64)):
        for steps, kind, size, free in itertools.product((2, 16), MOVES, (2, 4, 8), (1e9, 6e9, 1e12)):
            given = {"kind": kind, "bytes_per_number": size, "free_bytes": free}
            product, number = P * d, MOVES[kind]  # times of a row, in multiply-adds of a product
            residual = (steps - 1) * (product + min(product, k * d * number))
            gram = product + P * P * d / n + (steps - 1) * (k * P + 3 * P) * number
            want = "gram" if gram < residual and P * P * size <= free / 4 and size > 2 else "residual"
            got = kit.plan(n, d, P, k, steps, **given).product
            insist(got == want, f"n = {n}, d = {d}, P = {P}, k = {k}, {steps} steps, {given}: {got}, not {want}")
            chosen.append(want)
            for held in ({"frozen": False}, {"constant_step": False}):
                insist(kit.plan(n, d, P, k, steps, **given, **held).product == "residual", f"gram though {held}")
    insist(0.1 < np.mean([c == "gram" for c in chosen]) < 0.9, "the grid of shapes is one-sided")


def _uncentred(z: Array, c: Array, D: Array, b: Array) -> Array:
    return z @ (D @ D.T) - D @ (c + b)


def _unit_atoms(z: Array, c: Array, D: Array, b: Array) -> Array:
    G = D @ D.T
    np.fill_diagonal(G, 1)
    return z @ G - D @ c


def _on_support(z: Array, c: Array, D: Array, b: Array) -> Array:
    return (z @ (D @ D.T)) * (z != 0) - D @ c


def _plans(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """The plan of the package for other arguments."""

    def plan(rows: int, d: int, P: int, k: int, steps: int, **given: Any) -> Any:
        told = change({"rows": rows, "d_in": d, "d_sae": P, "k": k, "steps": steps, **given})
        return importlib.import_module("proxsae.pytorch.cost_model").plan(**told)

    return plan


plant("x is not centred", "prop-gram-step", SAE=_walks(slope=_uncentred))
plant("atoms are taken to have norm 1", "prop-gram-step", SAE=_walks(slope=_unit_atoms))
plant("Gram rows are read on the support only", "prop-gram-step", SAE=_walks(slope=_on_support))
plant("building D^T D is free", "prop-gram-step", plan=_plans(lambda told: {**told, "rows": 10**9}))
plant("numbers have 4 bytes", "prop-gram-step", plan=_plans(lambda told: {**told, "bytes_per_number": 4}))
plant("memory is not asked for", "prop-gram-step", plan=_plans(lambda told: {**told, "free_bytes": 1e30}))


def frozen(weights: list[Array], masks: Array, mu: Array) -> Array:
    """The code with supports and step sizes held: sums and products only, so that weights may be complex."""
    x, W_enc, b_enc, D, b = weights
    c = x - b
    z = masks[0] * (c @ W_enc + b_enc)
    for mask, step in zip(masks[1:], mu[1:], strict=True):
        z = mask * (z - step[:, None] * ((z @ D - c) @ D.T))
    return z


def loss_of(z: Array, weights: list[Array], to_code: Array, to_xhat: Array) -> Any:
    """A loss that is linear in the code and in the reconstruction."""
    return np.sum(to_code * z) + np.sum(to_xhat * (z @ weights[3] + weights[4]))


def along(weights: list[Array], i: int, move: Array) -> list[Array]:
    """The weights, with `move` added to the i-th."""
    return [a + move if j == i else a for j, a in enumerate(weights)]


def gradients(
    sae: Any, weights: list[Array], to_code: Array, to_xhat: Array, whole: bool = True
) -> tuple[list[Array], int]:
    """Gradients of `loss_of` in x and the four weights, and how many numbers the forward pass saved for them.

    By `reconstruct` if `whole`, else by `encode_sparse` and `decode`.
    """
    import torch

    x, saved = torch.tensor(weights[0], requires_grad=True), {}

    def pack(a: Tensor) -> Tensor:
        saved[a.data_ptr()] = a
        return a

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda a: a):
        xhat, codes = sae.reconstruct(x) if whole else (None, sae.encode_sparse(x))
    xhat = sae.decode(codes) if xhat is None else xhat
    values = codes.values * torch.tensor(to_code).gather(-1, codes.indices)
    loss = (xhat * torch.tensor(to_xhat)).sum() + values.sum()
    inputs = (x, sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    arrays = [np.zeros_like(a) if g is None else g.numpy() for a, g in zip(weights, found, strict=True)]
    return arrays, sum(a.numel() for a in saved.values())


@statement(
    "thm-sparse-gradient",
    "With supports and steps held, the gradient of T k-sparse steps needs k numbers and k indices a row and step.",
    source="own; for T = 1 as in the kernels of Gao et al. 2024 and of sparsify",
    code=("SAE.encode_sparse", "SAE.reconstruct", "pytorch.codes.sparse_decode"),
)
def sparse_gradient(kit: Kit, rng: np.random.Generator) -> None:
    """All five gradients against complex steps with supports held, and against differences; memory; equal bits."""
    moved = short = 0
    plans = [(1, Lipschitz()), (2, Lipschitz()), (4, Lipschitz()), (4, None), (3, Backtracking()), (4, ExactStep())]
    for nonneg, (T, given) in itertools.product((False, True), plans):
        n, k = 5, 6
        weights = problem(rng, n, alike=0.7, bias=-0.8)
        P, R, L = len(weights[3]), kit.KSparse(k, nonneg), kit.lipschitz(weights[3])
        rule = given or FixedStep(1.5 / L)
        weights[0] = weights[0][walk(weights, R, T, rule, L).decided]
        n, path = len(weights[0]), walk(weights, R, T, rule, L)
        sae = load(kit.SAE(weights[0].shape[1], P, R), weights).unrolled(T, rule)
        masks = path.codes != 0
        moved += np.sum(masks[1:] != masks[:-1])
        short += np.sum(masks[:-1].sum(axis=-1) < k)
        to_code, to_xhat = rng.normal(size=(n, P)), rng.normal(size=weights[0].shape)
        whole, _ = gradients(sae, weights, to_code, to_xhat)
        parts, _ = gradients(sae, weights, to_code, to_xhat, whole=False)
        for i, name in enumerate(NAMES):
            what = f"T = {T}, {rule}, nonneg = {nonneg}: the gradient in {name}"
            move = rng.normal(size=weights[i].shape)
            tilted = along(weights, i, 1e-30j * move)
            want = loss_of(frozen(tilted, masks, path.mu), tilted, to_code, to_xhat).imag / 1e-30
            assert_close(np.sum(whole[i] * move), want, 1e-10, what)
            assert_close(parts[i], whole[i], 1e-12, f"{what}, in two parts")
            if isinstance(rule, FixedStep) or T == 1 or (T < 4 and name != "D"):  # elsewhere the step size moves, too
                ends = [along(weights, i, sign * 1e-7 * move) for sign in (1, -1)]
                codes = [walk(end, R, T, rule, L).codes[-1] for end in ends]
                up, down = (loss_of(z, end, to_code, to_xhat) for z, end in zip(codes, ends, strict=True))
                assert_close(np.sum(whole[i] * move), (up - down) / 2e-7, 1e-5, f"{what}, supports free")
    insist(moved > 20, "supports hardly move: the problems are too easy")
    insist(short > 5, "too few rows have fewer than k non-zeros")
    n, T, k, weights = 60, 3, 2, problem(rng, n=60, d=3)
    sae = load(kit.SAE(3, 20, kit.KSparse(k)), weights).unrolled(T)
    once, saved = gradients(sae, weights, np.ones((n, 20)), np.ones((n, 3)))
    twice, _ = gradients(sae, weights, np.ones((n, 20)), np.ones((n, 3)))
    for name, one, other in zip(NAMES, once, twice, strict=True):
        assert_same(other, one, f"the gradient in {name}, once more")
    most = T * n * (2 * k + 1) + sum(a.size for a in weights)
    insist(saved <= most, f"{saved} numbers are saved, but {most} would do, the inputs among them")


class Point(NamedTuple):
    """A step from u on the support `before` to one on `after`, in dense torch: supports are masks (n, P)."""

    u: Tensor
    before: Tensor
    after: Tensor
    c: Tensor
    D: Tensor
    mu: Tensor
    rule: object

    @property
    def z(self) -> Tensor:
        """The code before the step."""
        return self.u * self.before

    @property
    def gradient(self) -> Tensor:
        """The gradient at z."""
        return (self.z @ self.D - self.c) @ self.D.T


def _dense(step: Callable[[Point], Tensor], shuffled: bool = False) -> Callable[..., Any]:
    """The constructor of SAEs with the gradients of dense torch, supports and step sizes held, by this `step`."""
    turn = itertools.count()

    def reconstruct(self: Any, x: Tensor) -> Any:
        import torch

        from proxsae.certificates import lipschitz
        from proxsae.pytorch.codes import sparsify

        R, weights = self.penalty, weights_of(self, x)
        path = walk(weights, R, self.steps, self.step, float(lipschitz(self.W_dec)))
        order = torch.arange(len(x)).roll(next(turn) if shuffled else 0)
        masks, mu = torch.tensor(path.codes != 0)[:, order], torch.tensor(path.mu)[:, order, None]
        c, D, b = x[order] - self.b_dec, self.W_dec, self.b_dec
        u = c @ self.W_enc + self.b_enc
        for t in range(1, self.steps):
            u = step(Point(u, masks[t - 1], masks[t], c, D, mu[t], self.step))
        z = torch.where(masks[-1], u, 0)[order.argsort()]
        return z @ D + b, sparsify(z, R.k)

    return planted_sae(reconstruct=reconstruct, encode_sparse=lambda self, x: self.reconstruct(x)[1])


def _through(value: Tensor, gradient: Tensor) -> Tensor:
    """`value`, with the derivative of `gradient`."""
    return gradient + (value - gradient).detach()


def _right(p: Point) -> Tensor:
    return p.z - p.mu * p.gradient


def _moving_step(p: Point) -> Tensor:
    h = p.gradient * p.before
    exact = (h * h).sum(-1, keepdim=True) / ((h @ p.D) ** 2).sum(-1, keepdim=True).clamp(min=1e-300)
    return p.z - (p.mu * exact / exact.detach() if isinstance(p.rule, ExactStep) else p.mu) * p.gradient


def _clipped_too(p: Point) -> Tensor:
    padded = 0 * p.z.detach()
    padded.scatter_(-1, p.z.abs().argsort(-1, descending=True)[:, :6], 1)
    return _through(p.z, p.u * padded) - p.mu * ((_through(p.z, p.u * padded) @ p.D - p.c) @ p.D.T)


WRONG_STEPS: dict[str, Callable[[Point], Tensor]] = {
    "only the last step is differentiated": lambda p: _right(p._replace(u=p.u.detach())),
    "the dictionary is felt in D^T r, not in r": lambda p: (
        p.z - p.mu * ((_through(p.z @ p.D, p.z @ p.D.detach()) - p.c) @ p.D.T)
    ),
    "the dictionary is felt in r, not in D^T r": lambda p: p.z - p.mu * ((p.z @ p.D - p.c) @ p.D.detach().T),
    "v is not carried to the step before": lambda p: p.z.detach() - p.mu * p.gradient,
    "v is carried to latents that were not in the earlier support": lambda p: (
        _through(p.z, p.u * (p.before | p.after)) - p.mu * p.gradient
    ),
    "the sign of mu": lambda p: p.z + _through(-p.mu * p.gradient, p.mu * p.gradient),
    "x and b are felt in the first step only": lambda p: _right(p._replace(c=p.c.detach())),
    "the exact step is differentiated too": _moving_step,
    "latents that pad a support get a gradient": _clipped_too,
}
for mistake, wrong_step in WRONG_STEPS.items():
    plant(mistake, "thm-sparse-gradient", SAE=_dense(wrong_step))
plant("right gradients that keep every dense code", "thm-sparse-gradient", SAE=_dense(_right))
plant("rows are summed in another order each time", "thm-sparse-gradient", SAE=_dense(_right, shuffled=True))
