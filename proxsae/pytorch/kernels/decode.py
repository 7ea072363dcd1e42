"""Sparse decode and its adjoint: k gathered rows of the dictionary a code, and never a dense product.

Column blocks of the dictionary are the outer loop of the grid, so that the block in use, P x BLOCK numbers, stays in
cache while all rows gather from it, and the dictionary is read from memory once.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-incomplete-defs=False
# (the arguments of kernels are Triton's)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from proxsae.pytorch.kernels.launch import check_dtype, check_together, codes_of, indices_of, on, rows_of

# bytes a number of W: columns a block (512 bytes, 16 a thread of one warp) and gathered rows in flight
BLOCKS = {2: 256, 4: 128}
GATHER = 8
REGISTERS = 128  # the budget a thread: at least 16 programs of one warp share a multiprocessor


def decode(indices: Tensor, values: Tensor, W: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    """sum_j values_j W[indices_j]: codes (n, k) and W (P, d) give (n, d).

    Sums in float32 in one fixed order, rounded once to `out_dtype`, by default that of W.  Indices must lie in [0, P):
    no check is made on the device.  Raises `Error` for other shapes and dtypes, and for tensors on several devices.
    """
    check_dtype("W", W)
    W = rows_of("W", W)
    indices, values = codes_of(indices, values)
    (n, k), d = indices.shape, W.shape[1]
    check_together(indices, values, W)
    out = torch.empty(n, d, dtype=out_dtype or W.dtype, device=W.device)
    block = BLOCKS[W.element_size()]
    if out.numel():
        with on(W):
            _decode[(n * triton.cdiv(d, block),)](
                indices, values, W, out, n, d, k, W.stride(0), GATHER=GATHER, BLOCK=block, num_warps=1
            )  # fmt: skip
    return out


def gather_dot(indices: Tensor, W: Tensor, g: Tensor) -> Tensor:
    """<W[indices_j], g> for each index: indices (n, k), W (P, d) and g (n, d) give (n, k) in float32.

    The adjoint of `decode` in the values.  Sums in float32.  Raises `Error` for other shapes and dtypes, and for
    tensors on several devices.
    """
    check_dtype("W", W)
    check_dtype("g", g)
    W = rows_of("W", W)
    indices = indices_of(indices)
    n, k = indices.shape
    g = rows_of("g", g, W.shape[1], n)
    check_together(indices, W, g)
    out = torch.empty(n, k, dtype=torch.float32, device=W.device)
    if out.numel():
        with on(W):
            _gather_dot[(n * triton.cdiv(k, GATHER),)](
                indices, W, g, out, W.shape[1], k, W.stride(0), g.stride(0),
                GATHER=GATHER, BLOCK=BLOCKS[W.element_size()], num_warps=1,
            )  # fmt: skip
    return out


@triton.jit
def _decode(indices, values, W, out, n, d, k, W_stride, GATHER: tl.constexpr, BLOCK: tl.constexpr):
    """One row and one block of columns a program."""
    row = (tl.program_id(0) % n).to(tl.int64)
    column = tl.program_id(0) // n * BLOCK + tl.arange(0, BLOCK)
    slot = tl.arange(0, GATHER)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, k, GATHER):
        there = start + slot < k
        atom = tl.load(indices + row * k + start + slot, mask=there, other=0)
        value = tl.load(values + row * k + start + slot, mask=there, other=0.0).to(tl.float32)
        at = atom[:, None] * W_stride + column[None, :]
        part = tl.load(W + at, mask=there[:, None] & (column < d)[None, :], other=0.0).to(tl.float32)
        total += tl.sum(value[:, None] * part, axis=0)
    tl.store(out + row * d + column, total, mask=column < d)


@triton.jit
def _gather_dot(indices, W, g, out, d, k, W_stride, g_stride, GATHER: tl.constexpr, BLOCK: tl.constexpr):
    """One row and GATHER of its atoms a program."""
    parts = tl.cdiv(k, GATHER)
    row = (tl.program_id(0) // parts).to(tl.int64)
    slot = tl.program_id(0) % parts * GATHER + tl.arange(0, GATHER)
    atom = tl.load(indices + row * k + slot, mask=slot < k, other=0)
    total = tl.zeros((GATHER, BLOCK), tl.float32)
    for start in range(0, d, BLOCK):
        column = start + tl.arange(0, BLOCK)
        at = atom[:, None] * W_stride + column[None, :]
        part = tl.load(W + at, mask=(slot < k)[:, None] & (column < d)[None, :], other=0.0).to(tl.float32)
        total += part * tl.load(g + row * g_stride + column, mask=column < d, other=0.0).to(tl.float32)[None, :]
    tl.store(out + row * k + slot, tl.sum(total, axis=1), mask=slot < k)
