"""Weight gradients of k-sparse codes by sorted segments: each atom's list is summed in a fixed order, stored once.

The entries (row, slot) are sorted by their atom, stably, so that an atom's entries stand in the order of rows; one
program sums one block of columns of one atom.  No atomics: two runs give the same bits.  A dense latent may own every
row, so lists longer than SPLIT are cut into pieces that are summed first, side by side, and then added in order.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-incomplete-defs=False
# (the arguments of kernels are Triton's)

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from proxsae.conventions import Error
from proxsae.pytorch.kernels.launch import check_dtype, check_together, codes_of, on, rows_of

# bytes a number of the sources: columns a block (512 bytes, 16 a thread of one warp) and gathered rows in flight
BLOCKS = {2: 256, 4: 128}
GATHER = 8
REGISTERS = 128  # the budget a thread: at least 16 programs of one warp share a multiprocessor
SPLIT = 512  # entries that one program sums


def weight_gradient(
    indices: Tensor | Sequence[Tensor],
    coefs: Tensor | Sequence[Tensor],
    sources: Tensor | Sequence[Tensor],
    d_sae: int,
    into: Tensor | None = None,
) -> Tensor:
    """G[j] = sum of coefs[row, slot] sources[row] over the entries with indices[row, slot] = j: (d_sae, d), float32.

    Indices (n, k), coefs (n, k) and sources (n, d), or one of each a step of an unrolled encoder, all with the same k
    and d: their sums are added.  With `into` (d_sae, d), float32, the sum is added there, and no second gradient made.
    Sums in float32 in one fixed order, whatever the device does in parallel.  Indices must lie in [0, d_sae): no check
    is made on the device.  Raises `Error` for other shapes and dtypes, and for tensors on several devices.
    """
    index, coef, source = (a if isinstance(a, Tensor) else torch.cat(list(a)) for a in (indices, coefs, sources))
    check_dtype("sources", source)
    index, coef = codes_of(index, coef)
    n, k = index.shape
    source = rows_of("sources", source, None, n)
    d = source.shape[1]
    if index.numel() >= 2**31 or d_sae >= 2**31:
        msg = f"{index.numel()} entries for {d_sae} latents, but keys and positions are 32 bits wide: less than 2^31"
        raise Error(msg)
    if into is None:
        out = torch.zeros(d_sae, d, dtype=torch.float32, device=source.device)
    elif into.dtype != torch.float32 or into.shape != (d_sae, d) or not into.is_contiguous():
        msg = f"into is {into.dtype} {tuple(into.shape)}, but the kernel adds to contiguous float32 ({d_sae}, {d})"
        raise Error(msg)
    else:
        out = into
    check_together(index, coef, source, out)
    if not index.numel() or not out.numel():
        return out
    keys, order = index.reshape(-1).to(torch.int32).sort(stable=True)
    ends = torch.searchsorted(keys, torch.arange(d_sae + 1, dtype=torch.int32, device=keys.device), out_int32=True)
    pieces = ends.diff()
    pieces = torch.where(pieces > SPLIT, (pieces + SPLIT - 1) // SPLIT, 0)
    first = torch.nn.functional.pad(pieces.cumsum(0, dtype=torch.int32), (1, 0))
    most = 2 * (index.numel() // SPLIT)  # a list longer than SPLIT has fewer than 2 length / SPLIT pieces
    partial = torch.empty(most, d, dtype=torch.float32, device=out.device)
    owner = torch.searchsorted(first, torch.arange(most, dtype=torch.int32, device=out.device), right=True) - 1
    block = BLOCKS[source.element_size()]
    columns = triton.cdiv(d, block)
    fixed = {"GATHER": GATHER, "BLOCK": block, "SPLIT": SPLIT, "num_warps": 1}
    with on(out):
        if most:
            _sum_pieces[(most * columns,)](
                order, coef, source, ends, first, owner, partial, most, d_sae, d, k, source.stride(0), **fixed
            )
        _sum_atoms[(d_sae * columns,)](
            order, coef, source, ends, first, partial, out, d_sae, d, k, source.stride(0), ADD=into is not None, **fixed
        )
    return out


@triton.jit
def _segment(order, coefs, sources, begin, end, column, d, k, stride, GATHER: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of coefs sources over the sorted entries begin ... end - 1, at these columns."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(begin, end, GATHER):
        slot = start + tl.arange(0, GATHER)
        entry = tl.load(order + slot, mask=slot < end, other=0)
        coef = tl.load(coefs + entry, mask=slot < end, other=0.0).to(tl.float32)
        row = (entry.to(tl.int32) // k).to(tl.int64)
        there = (slot < end)[:, None] & (column < d)[None, :]
        part = tl.load(sources + row[:, None] * stride + column[None, :], mask=there, other=0.0).to(tl.float32)
        total += tl.sum(coef[:, None] * part, axis=0)
    return total


@triton.jit
def _sum_pieces(
    order, coefs, sources, ends, first, owner, partial, most, P, d, k, stride,
    GATHER: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One piece of a long list and one block of columns a program; pieces that no list needs are left."""
    piece = tl.program_id(0) % most
    column = tl.program_id(0) // most * BLOCK + tl.arange(0, BLOCK)
    atom = tl.load(owner + piece)
    if atom < P:
        begin = tl.load(ends + atom) + (piece - tl.load(first + atom)) * SPLIT
        end = tl.minimum(begin + SPLIT, tl.load(ends + atom + 1))
        total = _segment(order, coefs, sources, begin, end, column, d, k, stride, GATHER, BLOCK)
        tl.store(partial + piece.to(tl.int64) * d + column, total, mask=column < d)


@triton.jit
def _sum_atoms(
    order, coefs, sources, ends, first, partial, out, P, d, k, stride,
    ADD: tl.constexpr, GATHER: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One atom and one block of columns a program: its short list, or the pieces of its long one, in order."""
    atom = tl.program_id(0) % P
    column = tl.program_id(0) // P * BLOCK + tl.arange(0, BLOCK)
    begin, end = tl.load(ends + atom), tl.load(ends + atom + 1)
    if end - begin <= SPLIT:
        total = _segment(order, coefs, sources, begin, end, column, d, k, stride, GATHER, BLOCK)
    else:
        total = tl.zeros((BLOCK,), tl.float32)
        for piece in range(tl.load(first + atom), tl.load(first + atom + 1)):
            total += tl.load(partial + tl.cast(piece, tl.int64) * d + column, mask=column < d, other=0.0)
    to = out + atom.to(tl.int64) * d + column
    if ADD:
        total += tl.load(to, mask=column < d, other=0.0)
    tl.store(to, total, mask=column < d)
