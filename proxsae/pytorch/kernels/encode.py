"""Encode: the product u = x W^T + b whose last step also keeps the largest key of each group, for `topk.select`.

The pre-activations are written once and not read again, but for k groups a row.  Whether that beats the library's
product followed by `topk.top_k` depends on d, for one pass over u costs rho s / d of the product.  A measured table
must say; until there is one, the encoder does not call this file, and `benchmarks/encode.py` measures it on a GPU.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-incomplete-defs=False
# (the arguments of kernels are Triton's)

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from proxsae.conventions import Error
from proxsae.pytorch.kernels import topk
from proxsae.pytorch.kernels.launch import FLOATS, check_together, on, rows_of

GROUP = 32  # entries a group


@dataclass(frozen=True)
class Tile:
    """One tile of u (rows x columns), in steps of `inner` along d, by `warps` with `stages` loads in flight.

    `registers` is the budget a thread; one tile of the first kind fills a multiprocessor.
    """

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int
    registers: int


# bytes a number: tiles by how many rows there are, the first whose `least` rows are given
TILES = {
    2: ((256, Tile(128, 256, 64, 8, 3, 240)), (0, Tile(64, 128, 64, 4, 4, 128))),
    4: ((0, Tile(64, 128, 16, 8, 3, 240)),),  # without tensor cores: TF32 would round the operands
}


def tile_of(n: int, size: int) -> Tile:
    """The tile for n rows of numbers of `size` bytes."""
    return next(tile for least, tile in TILES[size] if n >= least)


def unsupported(x: Tensor, W: Tensor, k: int) -> str:
    """Why `encode(x, W, ..., k)` has no kernel, in words; "" if it has one."""
    P, d = W.shape
    if x.dtype not in FLOATS or W.dtype != x.dtype:
        return f"x is {x.dtype} and W {W.dtype}, and the kernels hold float32, bfloat16 and float16, both alike"
    if P % 256 or d == 0 or d * x.element_size() % 16:
        return f"W is {P} x {d}, and tiles need P a multiple of 256 and rows of a multiple of 16 bytes"
    if topk.plan(P, k, GROUP) is None:
        return f"k={k} of P={P}: no selection holds this in groups of {GROUP}"
    return ""


def supports(x: Tensor, W: Tensor, k: int) -> bool:
    """Whether `encode` has a kernel for x (n, d), W (P, d) and k: see `unsupported`."""
    return not unsupported(x, W, k)


def encode(x: Tensor, W: Tensor, bias: Tensor, k: int, *, positive: bool = False) -> tuple[Tensor, Tensor]:
    """u = x W^T + bias (n, P) in the dtype of x, and `topk.top_k(u, k)`: indices (n, k), int64, ascending.

    x (n, d), W (P, d) with latents as rows, also as a transposed view of W_enc (d, P), and bias (P,).  Sums in float32
    without TF32, rounds once; the selection is that of the rounded u.  Raises `Error` where `supports` says no.
    """
    P, d = W.shape
    x = rows_of("x", x, d)
    if why := unsupported(x, W, k):
        raise Error(why)
    if bias.shape != (P,):
        msg = f"bias has shape {tuple(bias.shape)}, but the kernel needs ({P},)"
        raise Error(msg)
    check_together(x, W, bias)
    n = len(x)
    transposed = W.stride(0) == 1 and W.stride(1) >= P
    held = W.T if transposed else rows_of("W", W)
    x, held = aligned(x), aligned(held)
    u = torch.empty(n, P, dtype=x.dtype, device=x.device)
    maxima = topk.maxima_for(u, GROUP)
    if n:
        tile = tile_of(n, x.element_size())
        count = triton.cdiv(n, tile.rows) * (P // tile.columns)
        programs = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2
        inner = [tile.inner, tile.columns] if transposed else [tile.columns, tile.inner]
        with on(x):
            _encode[(min(count, programs),)](
                TensorDescriptor.from_tensor(x, [tile.rows, tile.inner]), TensorDescriptor.from_tensor(held, inner),
                bias.contiguous(), TensorDescriptor.from_tensor(u, [tile.rows, tile.columns]), maxima, n, P, d,
                POSITIVE=positive, TRANSPOSED=transposed, ROWS=tile.rows, COLUMNS=tile.columns, INNER=tile.inner,
                GROUP=GROUP, num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
    return u, topk.select(u, maxima, k, GROUP, positive=positive)


def aligned(a: Tensor) -> Tensor:
    """`a` with its rows apart and at multiples of 16 bytes, as the copy engine needs; copied only if they are not."""
    apart = a.stride(0) >= a.shape[1] and a.stride(0) * a.element_size() % 16 == 0
    return a if apart and a.data_ptr() % 16 == 0 else a.clone(memory_format=torch.contiguous_format)


@triton.jit
def _encode(
    x, W, bias, u, maxima, n, P, d, POSITIVE: tl.constexpr, TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """As many programs as multiprocessors, each a tile at a time; tiles that run together share columns of W."""
    SHARE: tl.constexpr = 8  # tiles of rows that are taken before the next tile of columns
    row_tiles = tl.cdiv(n, ROWS)
    tiles = row_tiles * (P // COLUMNS)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        band = tile // (SHARE * (P // COLUMNS))
        height = tl.minimum(row_tiles - band * SHARE, SHARE)
        inside = tile % (SHARE * (P // COLUMNS))
        row = (band * SHARE + inside % height) * ROWS
        column = inside // height * COLUMNS
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, d, INNER):
            left = x.load([row, start])
            right = W.load([start, column]) if TRANSPOSED else W.load([column, start]).T
            total = tl.dot(left, right, total, input_precision="ieee")
        shift = tl.load(bias + column + tl.arange(0, COLUMNS)).to(tl.float32)
        rounded = (total + shift[None, :]).to(u.dtype)
        u.store([row, column], rounded)
        bits = topk.bits_of(rounded, POSITIVE)
        largest = tl.max(tl.reshape(bits, (ROWS, COLUMNS // GROUP, GROUP)), axis=2)
        at = row + tl.arange(0, ROWS)
        part = column // GROUP + tl.arange(0, COLUMNS // GROUP)
        to = maxima + at.to(tl.int64)[:, None] * (P // GROUP) + part[None, :]
        tl.store(to, topk.keys_of(largest, u.dtype), mask=(at < n)[:, None])
