"""Exact float32 top-k codes from a half-precision product: proposed fast, certified by a bound, rescored exactly.

Half-precision units multiply many times faster than float32 ones, and round.  Only the k largest of P scores matter, so
the rounded product may propose candidates, as long as a proof says that no other latent can be among the k largest:

    |unit u_j - y_j| <= bound  for all j                                                    (lem-rounded-product)
    fl32((v + bound) / unit) < k-th largest exact score among the candidates  =>  they hold the top k
                                                                                            (thm-certified-topk)

where v is the least |u_j| of a candidate.  Rows for which this is not proved are redone: with more candidates, from a
float64 product, and at last by scoring every latent exactly.  So the result is right for every input; only its cost
depends on the data.

The proposals are float16 and not bfloat16: both are equally fast, and float16 has three more bits, so that its bound is
eight times smaller.  Its small range is no matter, since x and W are scaled by powers of two, which is exact.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from proxsae.conventions import Error, check_count
from proxsae.pytorch.autocast import outside_autocast
from proxsae.pytorch.codes import full_float32
from proxsae.pytorch.cost_model import has_kernels
from proxsae.pytorch.topk import top_k

LANES = 128  # of the sum in `exact_scores`; a part of its definition
TINY = 2.0**-149  # the least positive float32
WIDEST = 2**20  # d_in, up to which the factor SAFE covers the rounding of the bounds themselves
SAFE = 1 + 2.0**-30
PIECE = 2**27  # scores that are held at a time: 512 MiB of float32


def exact_scores(x: Tensor, W: Tensor, bias: Tensor, indices: Tensor | None = None) -> Tensor:
    """Scores s_j = fl32(y_j), y_j = sum_i x_i W_ji + b_j in float64, in one fixed order (def-float32-score).

    Products of float32 numbers are exact in float64.  Lane l of LANES = 128 adds the products of i = l, l + 128, ... in
    this order, the lanes are folded in halves, 64 + 64, 32 + 32, ... 1 + 1, and b_j comes last.  Only element-wise IEEE
    operations occur, so a pair (x, W_j) has the same score in every batch, on any number of threads and every device.

    x (n, d), W (P, d) with latents as rows and bias (P,), all float32; indices (n, m) give (n, m), none give (n, P).
    """
    if indices is not None and has_kernels(x.device.type):
        kernel: Tensor = importlib.import_module("proxsae.pytorch.kernels.scores").exact_scores(x, W, bias, indices)
        return kernel
    (n, d), m = x.shape, len(W) if indices is None else indices.shape[1]
    scores = x.new_empty(n, m)
    columns = max(1, min(m, _block(x) // max(d, LANES)))
    rows = max(1, _block(x) // (columns * max(d, LANES)))
    for i in range(0, n, rows):
        for j in range(0, m, columns):
            pairs = slice(j, j + columns) if indices is None else indices[i : i + rows, j : j + columns]
            total = _ordered_dot(x[i : i + rows, None].double(), W[pairs])
            scores[i : i + rows, j : j + columns] = total + bias[pairs].double()  # the store rounds to float32
    return scores


def _block(a: Tensor) -> int:
    """How many float64 numbers are made at once: few launches on a GPU, and what a cache holds elsewhere."""
    return 2**26 if a.is_cuda else 2**18


def _ordered_dot(x: Tensor, W: Tensor) -> Tensor:
    lanes = x.new_zeros(*torch.broadcast_shapes(x.shape, W.shape)[:-1], LANES)
    for a, b in zip(x.split(LANES, dim=-1), W.split(LANES, dim=-1), strict=True):
        lanes[..., : a.shape[-1]].addcmul_(a, b.double())  # fused or not: the product is exact
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half].add_(lanes[..., half:])
    return lanes[..., 0]


@dataclass(frozen=True)
class Rounded:
    """What `certified_top_k` needs of W and bias: float16 weights, and the largest norms that its bound is made of.

    `half` (P, d + padding) holds fl16(scale W) and two columns with bias_scale bias = b1 + b2 + residual.  The norms
    are maxima over latents, in the units of `half`, as float64 tensors: `norm` of scale W_j, `half_norm` of its
    rounding, `residual` of the difference; and for the bias `bias_max`, `bias_half`, `bias_residual`.
    """

    W: Tensor  # held so that its address cannot be another's: `stamp` compares addresses
    rows: Tensor
    bias: Tensor
    half: Tensor
    scale: Tensor
    bias_scale: Tensor
    norm: Tensor
    half_norm: Tensor
    residual: Tensor
    bias_max: Tensor
    bias_half: Tensor
    bias_residual: Tensor
    stamp: tuple[object, ...]


@torch.no_grad()
def round_weights(W: Tensor, bias: Tensor) -> Rounded:
    """The `Rounded` of W (P, d), rows = latents, and bias (P,), both float32.

    It costs a few passes over W, small beside a product with a thousand rows or more; keep it while W does not change.
    """
    rows, d = W.detach().contiguous(), W.shape[1]
    smallest, largest = torch.aminmax(rows)
    scale = 2.0**14 / _power_of_two(torch.maximum(-smallest, largest))
    half = torch.zeros(len(W), -(-(d + 2) // 8) * 8, dtype=torch.float16, device=W.device)  # aligned for the units
    norms = []
    block = _block(W) // d + 1
    for part, target in zip(rows.split(block), half.split(block), strict=True):
        exact = part.double() * scale
        target[:, :d] = exact
        rounded = target[:, :d].double()
        norms.append(torch.stack([_norm(exact), _norm(rounded), _norm(exact - rounded)]))
    norm, half_norm, residual = torch.cat(norms, dim=-1).amax(dim=-1)
    bias_scale = 2.0**14 / _power_of_two(bias.detach().abs().amax())
    b = bias.detach().double() * bias_scale
    half[:, d] = b
    half[:, d + 1] = b - half[:, d].double()
    parts = half[:, d : d + 2].double()
    bias_half, bias_residual = parts.abs().sum(dim=-1).amax(), (b - parts.sum(dim=-1)).abs().amax()
    maxima = (norm, half_norm, residual, b.abs().amax(), bias_half, bias_residual)
    return Rounded(W.detach(), rows, bias.detach(), half, scale, bias_scale, *maxima, _stamp(W, bias))


def _stamp(*tensors: Tensor) -> tuple[object, ...]:
    """What changes when a tensor is replaced or written in place, except through `.data` or in inference mode."""
    return tuple((t.data_ptr(), t.shape, t.stride(), None if t.is_inference() else t._version) for t in tensors)


def _power_of_two(size: Tensor) -> Tensor:
    """2^floor(log2 size) in float64, by its exponent bits; at least 2^-149, which no float32 but 0 is below."""
    bits = size.double().clamp(min=TINY).view(torch.int64)
    return (bits & 0x7FF0_0000_0000_0000).view(torch.float64)


def _norm(a: Tensor) -> Tensor:
    return a.square().sum(dim=-1).sqrt()


@outside_autocast
def half_product(x: Tensor, weights: Rounded) -> tuple[Tensor, Tensor, Tensor]:
    """Scores u (n, P) of float16 x and W, summed in float32, with their scale and error (lem-rounded-product).

    Returns (u, bound, unit), the latter (n,) in float64:  |u_j - unit y_j| <= bound  for every latent j, where y_j is
    the float64 score before `exact_scores` rounds it to float32.  A bound that is not finite says nothing.
    """
    exact = x.double()
    most = 2.0**15 * weights.bias_scale / weights.scale  # so that `one` below is at most 2^15
    scale = torch.minimum(2.0**14 / _power_of_two(x.abs().amax(dim=-1)), most)
    exact = exact * scale[:, None]
    one = scale * weights.scale / weights.bias_scale  # what multiplies the bias columns: a power of two
    half = torch.zeros(len(x), weights.half.shape[1], dtype=torch.float16, device=x.device)
    d = x.shape[1]
    half[:, :d] = exact
    half[:, d : d + 2] = one[:, None]
    rounded = half[:, :d].double()
    size, off = _norm(rounded), _norm(exact - rounded)
    kept = half[:, d].double() == one  # else one < 2^-24 has become 0
    bound = off * weights.norm + size * weights.residual
    bound = bound + one * torch.where(kept, weights.bias_residual, weights.bias_max)
    bound = bound + accumulation(d + 2) * (size * weights.half_norm + one * weights.bias_half)
    bound = bound + double_rounding(d) * ((size + off) * weights.norm + one * weights.bias_max)
    return _product(half, weights.half), SAFE * bound, scale * weights.scale


def accumulation(terms: int) -> float:
    """(1 + 2^-23)^(n - 1) - 1: the error of a float32 sum of n products in any order, over the sum of magnitudes."""
    return math.expm1((terms - 1) * math.log1p(2.0**-23))


def double_rounding(d: int) -> float:
    """More than (1 + 2^-53)^(d + 1) - 1, the same for a float64 score with its bias."""
    return (d + 2) * 2.0**-52


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b^T of float16 matrices, exact products summed in float32; TF32 too keeps every float16 number."""
    return torch.mm(a, b.T, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float().T


def _sums_in_float32(x: Tensor) -> bool:
    """False where the user lets torch sum float16 products in float16 (CUDA), or round float32 factors (CPU)."""
    if x.is_cuda:
        return not torch.backends.cuda.matmul.allow_fp16_accumulation
    return full_float32()


def double_product(x: Tensor, weights: Rounded) -> tuple[Tensor, Tensor, Tensor]:
    """The same from a float64 product, whose error is far below the rounding to float32 (lem-rounded-product)."""
    exact, bias = x.double(), weights.bias.double()
    u = torch.empty(len(x), len(bias), dtype=torch.float64, device=x.device)
    start = 0
    for part in weights.rows.split(32 * _block(x) // x.shape[1] + 1):
        u[:, start : start + len(part)] = exact @ part.double().T + bias[start : start + len(part)]
        start += len(part)
    most = _norm(exact) * (weights.norm / weights.scale) + weights.bias_max / weights.bias_scale
    return u, SAFE * 4 * double_rounding(x.shape[1]) * most, torch.ones_like(most)


@dataclass(frozen=True)
class Redone:
    """How many rows of a call were not certified at once, and had to be redone.

    wide    with more candidates
    double  of those, from a float64 product
    exact   of those, by scoring every latent
    """

    wide: int
    double: int
    exact: int


@torch.no_grad()
def certified_top_k(
    x: Tensor, W: Tensor, bias: Tensor, k: int, nonneg: bool = False, rounded: Rounded | None = None
) -> tuple[Tensor, Tensor, Redone]:
    """The codes of KSparse(k) for the float32 scores of x: indices (n, k), ascending, values (n, k), and `Redone`.

    The scores are s = `exact_scores(x, W, bias)`; the code is s, or max(s, 0) with `nonneg`, on its k largest
    magnitudes, the lowest index first among ties: bit for bit what `top_k` of all scores gives (thm-certified-topk).
    k > P is taken as P.

    x (n, d), W (P, d) with latents as rows (W_enc.T will do) and bias (P,) are float32 and x is finite; where scores
    are not, the conventions of `top_k` hold.  `rounded` is `round_weights(W, bias)`, made anew here by default.
    Nothing is differentiated: the indices are constants, and the derivatives of the values are those of u = W x + b.

    Raises `Error` for other dtypes and shapes, k < 0, d above 2^20, and for a `rounded` of which W or bias has been
    replaced or changed in place since (a change through `.data` goes unseen).
    """
    _check(x, W, bias)
    weights = round_weights(W, bias) if rounded is None else rounded
    if weights.stamp != _stamp(W, bias):
        msg = "rounded belongs to other weights, or W or bias has changed since: call round_weights(W, bias) again"
        raise Error(msg)
    n, P = len(x), len(W)
    k = min(check_count("k", k, 0), P)
    indices = torch.empty(n, k, dtype=torch.int64, device=x.device)
    values = x.new_empty(n, k)
    left, counts = torch.arange(n if k else 0, device=x.device), [0, 0, 0]

    def settle(product: tuple[Tensor, Tensor, Tensor], rows: Tensor, width: int) -> Tensor:
        """Write those of `rows` that are certified, and return a mask of the others."""
        found, code, sure = _certify(*product, x[rows], weights, k, width, nonneg)
        indices[rows[sure]], values[rows[sure]] = found[sure], code[sure]
        return ~sure

    narrow = k + max(k // 2, 8)
    wide = min(4 * narrow, P - 1)
    if narrow < P and len(left):
        if _sums_in_float32(x):
            parts = []
            for rows in left.split(max(1, PIECE // P)):
                u, bound, unit = half_product(x[rows], weights)
                again = settle((u, bound, unit), rows, narrow)
                open_rows = rows[again]
                if len(open_rows):
                    open_rows = open_rows[settle((u[again], bound[again], unit[again]), open_rows, wide)]
                counts[0] += int(again.sum())
                parts.append(open_rows)
            left = torch.cat(parts)
        counts[1] = len(left)
        parts = [rows[settle(double_product(x[rows], weights), rows, wide)] for rows in left.split(1024) if len(rows)]
        left = torch.cat([left[:0], *parts])
    counts[2] = len(left)
    for rows in left.split(max(1, PIECE // P)):
        code = _code(exact_scores(x[rows], weights.rows, weights.bias), nonneg)
        indices[rows] = top_k(code, k)
        values[rows] = code.gather(-1, indices[rows])
    return indices, values, Redone(*counts)


def _certify(
    u: Tensor, bound: Tensor, unit: Tensor, x: Tensor, weights: Rounded, k: int, width: int, nonneg: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The top k among `width` < P candidates by exact score: indices and values (n, k), and a mask of proved rows.

    A NaN makes each comparison false, so that its row is not proved.
    """
    near = top_k(u, width, nonneg)
    edge = u.gather(-1, near) if nonneg else u.gather(-1, near).abs()
    few = edge.amin(dim=-1) <= 0
    if nonneg and bool(few.any()):  # fewer than `width` positive ones: the next are those nearest to 0
        near[few] = u[few].topk(width, dim=-1).indices.sort(dim=-1).values
        edge = u.gather(-1, near)
    edge = edge.amin(dim=-1).double()  # no other latent is above
    code = _code(exact_scores(x, weights.rows, weights.bias, near), nonneg)
    kept = top_k(code, k)  # `near` ascends, so the first position is the lowest index
    indices, values = near.gather(-1, kept), code.gather(-1, kept)
    least = values.abs().amin(dim=-1)
    others = ((edge + bound + edge.abs() * 2.0**-50) / unit).float()  # rounded as their scores are
    nothing = (others <= 0) & (least == 0)  # all other codes are 0, and one of lower index may belong to the top k
    if bool(nothing.any()):
        dense = code.new_zeros(int(nothing.sum()), u.shape[1]).scatter(-1, near[nothing], code[nothing])
        indices[nothing] = top_k(dense, k)
        values[nothing] = dense.gather(-1, indices[nothing])
    return indices, values, (others < least) | nothing


def _code(scores: Tensor, nonneg: bool) -> Tensor:
    scores = torch.relu(scores) if nonneg else scores
    return torch.where(scores != 0, scores, 0)  # -0.0 is zero


def _check(x: Tensor, W: Tensor, bias: Tensor) -> None:
    for name, a, ndim in (("x", x, 2), ("W", W, 2), ("bias", bias, 1)):
        if not isinstance(a, Tensor) or a.dtype != torch.float32 or a.ndim != ndim or a.device != x.device:
            given = f"{a.dtype} {tuple(a.shape)} on {a.device}" if isinstance(a, Tensor) else type(a).__name__
            msg = f"{name} is {given}, but certified codes need float32 x (n, d), W (P, d), bias (P,) on one device"
            raise Error(msg)
    if x.shape[1] != W.shape[1] or len(bias) != len(W) or not 1 <= x.shape[1] <= WIDEST or not len(W):
        given = f"x {tuple(x.shape)}, W {tuple(W.shape)} and bias {tuple(bias.shape)}"
        msg = f"{given} do not fit together: (n, d), (P, d) and (P,) with P >= 1 and 1 <= d <= 2^20"
        raise Error(msg)
