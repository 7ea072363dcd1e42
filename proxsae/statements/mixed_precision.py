"""Certified mixed precision (docs/theory/mixed_precision.md): statements and their checks.

The reference is NumPy in float64 with the order of summation written out, and exact fractions; it shares no code with
what it is compared with.  The problems need each part of the bound: latents that round down tie with latents that do
not, and win by just less than the bound.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from proxsae.statements.plain import Array, top
from proxsae.statements.registry import Kit, insist, page, plant
from proxsae.testing.compare import assert_same

if TYPE_CHECKING:
    from torch import Tensor

statement = page("mixed_precision", on_paper="vectors of any length")
Problem = tuple[str, Array, Array, Array]  # a name, x (n, d), W (P, d) and bias (P,) in float32
WINS = 2.0**-11 - 2.0**-20  # 1 + WINS rounds down to 1 in float16


def float64_scores(x: Array, W: Array, bias: Array) -> Array:
    """y of the definition, (n, P): products in float64, 128 lanes in order, folded in halves, then the bias."""
    products = x.astype(np.float64)[:, None] * W.astype(np.float64)
    lanes = np.zeros((*products.shape[:2], 128))
    for i in range(x.shape[1]):
        lanes[..., i % 128] += products[..., i]
    for width in (64, 32, 16, 8, 4, 2, 1):
        lanes = lanes[..., :width] + lanes[..., width : 2 * width]
    return lanes[..., 0] + bias.astype(np.float64)


def ranked(x: Array, W: Array, bias: Array, k: int, nonneg: bool) -> tuple[Array, Array]:
    """Indices and values of the top k of all scores, by a stable sort."""
    with np.errstate(over="ignore"):  # to infinity, as the definition says
        s = float64_scores(x, W, bias).astype(np.float32)
    code = np.maximum(s, 0) if nonneg else s
    at = top(np.abs(code), k)
    return at, np.take_along_axis(code, at, axis=-1) + np.float32(0)  # -0.0 is zero


def duel(n: int, fillers: int, k: int, wins_in: str, rng: np.random.Generator) -> Problem:
    """k latents that win by n WINS but round to the score of the fillers, and k that beat the fillers by 7/8 of that.

    The part that rounds, x or W, is parallel to the other one, so that the bound of Cauchy and Schwarz is attained.
    """
    signs = rng.choice([-1.0, 1.0], 2 * n)
    x, first, second = signs.copy(), np.r_[signs[:n], np.zeros(n)], np.r_[np.zeros(n), signs[n:]]
    if wins_in == "x":
        x[:n] *= 1 + WINS
    third = second.copy()
    third[n : n + 7 * n // 16] *= 1 + 2.0**-10
    winner = first * (1 + WINS if wins_in == "W" else 1)
    W = np.vstack([*[second] * fillers, *[third] * k, *[winner] * k, *[0 * x] * 60])
    return f"the winners round down, in {wins_in}", x[None], W, np.zeros(len(W))


def swamped(fillers: int, k: int) -> Problem:
    """k latents whose float32 sum loses small products between 2^24 and -2^24, in any usual order."""
    ones, n = np.ones(256), 256
    x = np.r_[2.0**12, ones, -(2.0**12)]
    rows = [np.r_[0.0, ones * (np.arange(n) < m), 0.0] for m in (n - 4, n - 2)]
    W = np.vstack([*[rows[0]] * fillers, *[rows[1]] * k, *[abs(x)] * k])
    return "the sum swamps the winners", x[None], W, np.zeros(len(W))


def problems(k: int, rng: np.random.Generator) -> Iterator[Problem]:
    """Random, scaled, tied and near-tied problems, and those in which each part of the bound decides."""
    n, P, d = 4, 150, 40
    x, W, bias = rng.normal(size=(n, d)), rng.normal(size=(P, d)), rng.normal(size=P)
    x[1] = 0
    yield "random", x, W, bias
    yield "no bias", x, W, 0 * bias
    yield "tied biases", x, W, 0 * bias + 1
    yield "tiny x, huge W", 1e-30 * x, 1e30 * W, bias
    yield "huge x, tiny W", 1e30 * x, 1e-30 * W, 0 * bias
    yield "subnormal x", 1e-42 * x, W, 0 * bias
    yield "subnormal scores", 1e-20 * x, 1e-22 * W, 0 * bias
    yield "scores that underflow to either zero", 1e-25 * x, 1e-25 * W, 0 * bias
    yield "scores that overflow", 1e20 * x, 1e20 * W, bias
    yield "huge bias", x, W, 1e6 * bias
    yield "bias beyond the range of float16", 1e-25 * x, W, bias
    yield "bias below it", 1e15 * x, 1e15 * W, bias
    yield "mostly negative", x, W, -8 - np.abs(bias)
    yield "all negative", x, W, -1e3 - np.abs(bias)
    yield "heavy tails", rng.standard_cauchy(size=(n, d)), rng.standard_cauchy(size=(P, d)), bias
    yield "norms apart", x, W * 10.0 ** rng.uniform(-6, 6, size=(P, 1)), bias
    yield "duplicates", x, W[rng.integers(0, 3, P)], 0 * bias
    yield "one latent", x, W[np.zeros(P, int)], 0 * bias
    base = W[:1].astype(np.float32) + np.zeros((P, 1), np.float32)
    ulps = base * (1 + 2.0**-23 * rng.integers(-2, 3, size=(P, d)))
    yield "within some units in the last place", x, ulps, 0 * bias
    close = np.ones((P, d)) + np.diag(np.full(d, 2.0**-23))[np.arange(P) % d] * (np.arange(P)[:, None] % 3)
    yield "ties that only float64 can see", 1 + 0 * x, close, 0 * bias
    for where in ("x", "W"):
        yield duel(64, 60, k, where, rng)
    yield swamped(60, k)


def float32(problem: Problem) -> Problem:
    """The same in float32, read-only."""
    arrays = [np.asarray(a).astype(np.float32) for a in problem[1:]]
    for a in arrays:
        a.flags.writeable = False
    return problem[0], arrays[0], arrays[1], arrays[2]


def tensors(*arrays: Array) -> list[Tensor]:
    """Copies as torch tensors."""
    import torch

    return [torch.tensor(a) for a in arrays]


def changed(**make: Callable[[Any], Any]) -> SimpleNamespace:
    """`proxsae.pytorch.certified_topk` with each function `name` of `make` replaced by make[name](function)."""

    def through(name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            module = importlib.import_module("proxsae.pytorch.certified_topk")
            wrong = {key: new(getattr(module, key)) for key, new in make.items()}
            with mock.patch.multiple(module, **wrong):
                return getattr(module, name)(*args)

        return call

    names = ("exact_scores", "round_weights", "half_product", "double_product", "certified_top_k")
    return SimpleNamespace(**{name: through(name) for name in names})


@statement(
    "def-float32-score",
    "The float32 score is fl32 of the float64 sum, in one fixed order, of the exact products x_i W_ji, plus the bias.",
    source="own",
    code=("pytorch.certified_topk.exact_scores",),
    on_paper="a definition",
)
def float32_score(kit: Kit, rng: np.random.Generator) -> None:
    """On sums that cancel, bit-equal to the written-out order: all, some and single scores; and close to fractions."""
    module = kit.certified_topk
    for d in (1, 7, 128, 130, 300):
        x, W, bias = rng.normal(size=(3, d)), 1e-6 * rng.normal(size=(9, d)), 1e-6 * rng.normal(size=9)
        half = d // 2
        W[:, :half] *= 2.0**40
        x[:, half : 2 * half], W[:, half : 2 * half] = x[:, :half], -W[:, :half]  # cancels but for rounding
        _, x, W, bias = float32(("", x, W, bias))
        y = float64_scores(x, W, bias)
        want = y.astype(np.float32)
        assert_same(module.exact_scores(*tensors(x, W, bias)).numpy(), want, "all scores")
        at = np.sort(rng.integers(0, 9, size=(3, 4)), axis=-1)
        some = module.exact_scores(*tensors(x, W, bias, at)).numpy()
        assert_same(some, np.take_along_axis(want, at, axis=-1), "some scores")
        for i, j in ((0, 8), (2, 3)):
            one = module.exact_scores(*tensors(x[i : i + 1], W[j : j + 1], bias[j : j + 1])).numpy()
            assert_same(one, want[i : i + 1, j : j + 1], "one score")
        products = [Fraction(float(a)) * Fraction(float(w)) for a, w in zip(x[0], W[0], strict=True)]
        off = abs(Fraction(float(y[0, 0])) - sum(products) - Fraction(float(bias[0])))
        most = (d + 1) * Fraction(2) ** -53 * (sum(map(abs, products)) + abs(Fraction(float(bias[0]))))
        insist(off <= most * (1 + Fraction(2) ** -30), f"d = {d}: the float64 score is off by {float(off)}")


def _as_a_product(original: Any) -> Any:
    def scores(x: Tensor, W: Tensor, bias: Tensor, indices: Tensor | None = None) -> Tensor:
        s = (x.double() @ W.double().T + bias.double()).float()
        return s if indices is None else s.gather(-1, indices)

    return scores


plant("a float64 product, in whatever order", "def-float32-score", certified_topk=changed(exact_scores=_as_a_product))
plant("lanes of 64", "def-float32-score", certified_topk=changed(LANES=lambda lanes: 64))


@statement(
    "lem-rounded-product",
    "With scaled float16 factors summed in float32 in any order, |u_j - unit y_j| <= bound for every latent j.",
    source="own; the sums as in Higham 2002, chapters 3 and 4",
    code=("pytorch.certified_topk.half_product", "pytorch.certified_topk.double_product"),
)
def rounded_product(kit: Kit, rng: np.random.Generator) -> None:
    """u and the bound against y in exact fractions; the bound is small, and attained where x or W rounds along it."""
    module = kit.certified_topk
    for problem in problems(4, rng):
        name, x, W, bias = float32(problem)
        y = float64_scores(x, W, bias)
        weights = module.round_weights(*tensors(W, bias))
        for product in (module.half_product, module.double_product):
            u, bound, unit = (a.numpy() for a in product(*tensors(x), weights))
            norms = [np.linalg.norm(a.astype(np.float64), axis=-1) for a in (x, W)]
            scale = norms[0] * norms[1].max() + np.abs(bias.astype(np.float64)).max()
            insist(bound <= 2.0**-9 * unit * scale * (1 + 1e-9), f"{name}: the bound {bound} says too little")
            worst = np.argsort(np.abs(u - unit[:, None] * y), axis=-1)[:, -3:]
            for i, j in zip(np.arange(len(y)).repeat(3), worst.ravel(), strict=True):
                off = abs(Fraction(float(u[i, j])) - Fraction(float(unit[i])) * Fraction(float(y[i, j])))
                insist(off <= Fraction(float(bound[i])), f"{name}: off by {float(off)}, above the bound {bound[i]}")


def _bound(wrong: Callable[[Tensor, Any, Tensor, Tensor], Tensor]) -> Callable[[Any], Any]:
    """`half_product` with another bound, made of x, the weights, the right bound and the unit."""

    def make(original: Any) -> Any:
        def product(x: Tensor, weights: Any) -> tuple[Tensor, Tensor, Tensor]:
            u, bound, unit = original(x, weights)
            return u, wrong(x, weights, bound, unit), unit

        return product

    return make


def _without_x(x: Tensor, weights: Any, bound: Tensor, unit: Tensor) -> Tensor:
    exact = x.double() * (unit / weights.scale)[:, None]
    return bound - (exact - exact.half().double()).norm(dim=-1) * weights.norm


def _float32_rounding(x: Tensor, weights: Any, bound: Tensor, unit: Tensor) -> Tensor:
    return 2.0**-23 * unit * (x.double().norm(dim=-1) * weights.norm / weights.scale + weights.bias.abs().amax())


def _no_residual(original: Any) -> Any:
    return lambda W, bias: replace(original(W, bias), residual=0 * original(W, bias).residual)


MISTAKES = {
    "the bound lacks what W loses": changed(round_weights=_no_residual),
    "the bound lacks what x loses": changed(half_product=_bound(_without_x)),
    "half the bound": changed(half_product=_bound(lambda x, weights, bound, unit: bound / 2)),
    "the roundoff of float32 for that of float16": changed(half_product=_bound(_float32_rounding)),
    "no rounding in the sum": changed(accumulation=lambda right: lambda terms: 0.0),
}
for mistake, module in MISTAKES.items():
    plant(mistake, "lem-rounded-product", certified_topk=module)
plant(
    "a bound that says nothing",
    "lem-rounded-product",
    certified_topk=changed(half_product=_bound(lambda x, weights, bound, unit: bound * 1e3)),
)


@statement(
    "thm-certified-topk",
    "certified_top_k returns the top k of the float32 scores, lowest index first among ties, for every finite x.",
    source="own",
    code=("pytorch.certified_topk.certified_top_k",),
)
def certified_topk(kit: Kit, rng: np.random.Generator) -> None:
    """Indices and values, bit for bit, against a stable sort of all scores; both signs, and k from 0 to above P."""
    module = kit.certified_topk
    for k, nonneg in ((4, False), (4, True), (1, False)):
        for problem in problems(k, rng):
            name, x, W, bias = float32(problem)
            got = module.certified_top_k(*tensors(x, W, bias), k, nonneg)
            want = ranked(x, W, bias, k, nonneg)
            assert_same(got[0].numpy(), want[0], f"{name}, k = {k}, nonneg = {nonneg}: indices")
            assert_same(got[1].numpy(), want[1], f"{name}, k = {k}, nonneg = {nonneg}: values")
    _, x, W, bias = float32(("", rng.normal(size=(3, 5)), rng.normal(size=(9, 5)), rng.normal(size=9)))
    for k in (0, 9, 12):
        got, want = module.certified_top_k(*tensors(x, W, bias), k), ranked(x, W, bias, k, False)
        assert_same(got[0].numpy(), want[0], f"k = {k} of 9: indices")
        assert_same(got[1].numpy(), want[1], f"k = {k} of 9: values")


def _highest(original: Any) -> Any:
    return lambda u, k, nonneg=False: u.shape[-1] - 1 - original(u.flip(-1), k, nonneg).flip(-1)


def _proposed(original: Any) -> Any:
    """The top k of the rounded product, not certified, with their exact scores."""

    def top(x: Tensor, W: Tensor, bias: Tensor, k: int, nonneg: bool = False) -> tuple[Tensor, Tensor]:
        certified = importlib.import_module("proxsae.pytorch.certified_topk")
        at = certified.top_k(certified.half_product(x, certified.round_weights(W, bias))[0], k, nonneg)
        s = certified.exact_scores(x, W, bias, at)
        return at, s.clamp(min=0) if nonneg else s

    return top


for mistake, module in MISTAKES.items():
    plant(mistake, "thm-certified-topk", certified_topk=module)
plant("the candidates are cut at k", "thm-certified-topk", certified_topk=changed(certified_top_k=_proposed))
plant("ties go to the highest index", "thm-certified-topk", certified_topk=changed(top_k=_highest))
plant(
    "the scores are a float32 product",
    "thm-certified-topk",
    certified_topk=changed(
        exact_scores=lambda original: (
            lambda x, W, bias, at=None: x @ W.T + bias if at is None else (x @ W.T + bias).gather(-1, at)
        )
    ),
)
