"""Row-wise |.|-top-k in one read of the input: exact, deterministic, without atomics or lists that can overflow.

Order the entries of a row by (|u| descending, index ascending), cut the row into contiguous groups, and order these by
(largest |u| descending, index ascending).  Every one of the k first entries lies in one of the k first groups, else the
largest entries of k other groups would come before it.  So one pass keeps the largest key of each group, the k best
groups are selected among these, and the k best entries among theirs; ties need no care beyond the order.

A key is the bit pattern of |u| as an integer: it orders as |u| does, -0.0 is 0, and NaN lies above infinity, where all
its payloads are made one.  Keys are compared as integers because float maxima drop NaN.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-incomplete-defs=False
# (the arguments of kernels are Triton's)

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from proxsae.conventions import Error
from proxsae.pytorch.kernels.launch import FLOATS, on, rows_of

GROUPS = (8, 16, 32, 64, 128)  # entries a group
CHUNKS = {2: 8192, 4: 4096}  # bytes an entry: entries that one step of the pass holds, 64 or more bytes a thread
TILES = {1024: (4, 72), 2048: (8, 72), 4096: (8, 128), 8192: (16, 128)}  # entries that one selection holds: warps, and
# the budget of registers a thread: seven, three, two and one rows share a multiprocessor


@dataclass(frozen=True)
class Plan:
    """How one size is selected: entries a group, entries that a selection holds, warps a row."""

    group: int
    tile: int
    warps: int


@cache
def plan(P: int, k: int) -> Plan | None:
    """The plan with the smallest tile that holds both the ceil(P / group) maxima and k groups; None if none does."""
    wide = triton.next_power_of_2(k)
    sizes = [(max(triton.next_power_of_2(-(-P // g)), wide * g), g) for g in GROUPS if k <= -(-P // g)]
    fits = [(tile, -(-P // g), g) for need, g in sizes for tile in TILES if need <= tile]
    if not fits:
        return None
    tile, _, g = min(fits)  # of the groups that need the same tile, the largest: the fewest maxima
    return Plan(g, tile, TILES[tile][0])


def unsupported(u: Tensor, k: int) -> str:
    """Why `top_k(u, k)` has no kernel, in words; "" if it has one."""
    if u.dtype not in FLOATS:
        return f"u has dtype {u.dtype}, and the kernels take float32, bfloat16 and float16"
    if k < 1 or k > -(-u.shape[-1] // GROUPS[0]):
        return f"k={k} of P={u.shape[-1]}: groups of {GROUPS[0]} entries save work only for 1 <= k <= P/{GROUPS[0]}"
    if plan(u.shape[-1], k) is None:
        return f"k={k} of P={u.shape[-1]}: no group size keeps both P / group and k group within {max(TILES)} registers"
    return ""


def supports(u: Tensor, k: int) -> bool:
    """Whether `top_k(u, k)` has a kernel: three dtypes, 1 <= k <= P/8, and a `plan`, which huge P and k have not."""
    return not unsupported(u, k)


def top_k(u: Tensor, k: int, *, positive: bool = False) -> Tensor:
    """Indices (n, k), int64, ascending, of the k largest |u| in each row of u (n, P).

    Ties go to the lowest index, NaN ranks above infinity.  With `positive` the entries are those of max(u, 0): entries
    <= 0 all tie at 0.  `proxsae.pytorch.topk.top_k` has the same contract, for every k and dtype.  Raises `Error` where
    `supports` is false.
    """
    u = rows_of("u", u)
    if why := unsupported(u, k):
        raise Error(why)
    chosen = plan(u.shape[1], k)
    assert chosen is not None  # `unsupported` said so
    n, P = u.shape
    dtype = torch.int16 if u.dtype == torch.bfloat16 else torch.int32  # of keys
    maxima = torch.empty(n, -(-P // chosen.group), dtype=dtype, device=u.device)
    groups = torch.empty(n, k, dtype=torch.int32, device=u.device)
    indices = torch.empty(n, k, dtype=torch.int64, device=u.device)
    if n:
        with on(u):
            _top_k[(n,)](
                u, maxima, groups, indices, P, k, u.stride(0), maxima.stride(0), POSITIVE=positive,
                GROUP=chosen.group, TILE=chosen.tile, CHUNK=CHUNKS[u.element_size()], num_warps=chosen.warps,
            )  # fmt: skip
    return indices


@triton.jit
def bits_of(u, POSITIVE: tl.constexpr):
    """Bit patterns of |u|, or of max(u, 0), in float32 (exact); the bits of different NaNs still differ."""
    u = u.to(tl.float32)
    if POSITIVE:
        u = tl.maximum(u, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return u.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def keys_of(bits, dtype: tl.constexpr):
    """Keys for the bits of entries, or of a group's largest: one NaN, and no bits that are 0 for all of `dtype`."""
    if dtype == tl.bfloat16:
        keys = tl.minimum(bits, 0x7F810000) >> 16
    elif dtype == tl.float16:
        keys = tl.minimum(bits, 0x7F802000) >> 13
    else:
        keys = tl.minimum(bits, 0x7F800001)
    return keys


@triton.jit
def _count(flags):
    return tl.sum(flags.to(tl.int32), axis=0)


@triton.jit
def _kth(keys, k, low):
    """The k-th largest of `keys`, or a number between the (k+1)-th and it, and how many keys are >= it.

    Invariant: at least k keys are >= low >= 0 and fewer than k are >= high.  Far from k the interval is halved; with
    at most NEAR keys too many, low moves up to the next key, which is soon at the end if low was a good guess.
    """
    NEAR: tl.constexpr = 4
    high = tl.max(keys, axis=0) + 1
    count = _count(keys >= low)
    while (count > k) & (high - low > 1):
        near = count - k <= NEAR
        middle = tl.min(tl.where(keys > low, keys, high), axis=0) if near else low + (high - low) // 2
        above = _count(keys >= middle)
        enough = above >= k
        high = tl.where(enough, high, tl.where(near, low + 1, middle))
        low = tl.where(enough, middle, low)
        count = tl.where(enough, above, count)
    return low, count


@triton.jit
def _first(keys, k, low):
    """A mask of the k first entries by (key descending, position ascending), and a lower bound of their keys.

    At least k keys are >= low >= 0.
    """
    low, count = _kth(keys, k, low)
    chosen = keys >= low
    if count > k:  # keys equal to low: the first of them only
        tied = keys == low
        chosen = (keys > low) | (tied & (tl.cumsum(tied.to(tl.int32), axis=0) <= k - count + _count(tied)))
    return chosen, low


@triton.jit
def _top_k(
    u, maxima, groups, indices, P, k, u_stride, maxima_stride,
    POSITIVE: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One row a program."""
    row = tl.program_id(0).to(tl.int64)
    u += row * u_stride
    maxima += row * maxima_stride
    groups += row * k
    indices += row * k
    dtype: tl.constexpr = u.dtype.element_ty
    count = tl.cdiv(P, GROUP)
    part = tl.arange(0, CHUNK // GROUP)
    inside = part[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    for start in range(0, P, CHUNK):
        entries = tl.load(u + start + inside, mask=start + inside < P, other=0.0)
        largest = keys_of(tl.max(bits_of(entries, POSITIVE), axis=1), dtype)
        tl.store(maxima + start // GROUP + part, largest, mask=start // GROUP + part < count)
    tl.debug_barrier()  # the maxima were stored by other threads of this row
    slot = tl.arange(0, TILE)
    keys = tl.load(maxima + slot, mask=slot < count, other=-1).to(tl.int32)
    first, low = _first(keys, k, tl.min(tl.where(keys < 0, 0x7FFFFFFF, keys), axis=0))
    tl.store(groups + tl.cumsum(first.to(tl.int32), axis=0) - 1, slot, mask=first)
    tl.debug_barrier()
    at = slot // GROUP
    at = tl.load(groups + at, mask=at < k, other=count) * GROUP + slot % GROUP
    keys = keys_of(bits_of(tl.load(u + at, mask=at < P, other=0.0), POSITIVE), dtype)
    first, low = _first(keys, k, low)  # the k groups' maxima are >= low; what is not there is 0 and comes last
    tl.store(indices + tl.cumsum(first.to(tl.int32), axis=0) - 1, at.to(tl.int64), mask=first)
