"""The k largest magnitudes of a row: exact, with the tie rule, and with little more than one look at the row."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from proxsae.conventions import may_look
from proxsae.pytorch.cost_model import GROUP, has_kernels

CACHED = 2**19  # numbers that a core's cache holds


@torch.no_grad()
def top_k(u: Tensor, k: int, nonneg: bool = False) -> Tensor:
    """Indices (..., min(k, P)) of the k largest |u|, of the k largest max(u, 0) if `nonneg`, ascending: u (..., P).

    Ties go to the lowest index; NaN ranks above everything.  Long rows are first reduced to the maxima of groups of
    neighbours: the k groups with the largest maxima, lowest first among ties, hold the k largest entries, since an
    entry outside them has k better ones, one in each (lem-group-maxima).  On CUDA a Triton kernel does the same in one
    read, where Triton is installed.
    """
    P = u.shape[-1]
    if k >= P or k == 0:
        return torch.arange(min(k, P), device=u.device).expand(*u.shape[:-1], -1)
    if not may_look(u):  # a sort knows the rule, and takes longer
        return _size(u, nonneg).sort(dim=-1, descending=True, stable=True).indices[..., :k].sort(dim=-1).values
    rows = u.reshape(-1, P)
    if has_kernels(u.device.type) and _kernel().supports(rows, k):
        indices = _kernel().top_k(rows, k, positive=nonneg)
    elif P % GROUP == 0 and 4 * k * GROUP <= P:
        indices = _by_groups(rows, k, nonneg)
    else:
        indices = largest(_size(rows, nonneg), k)
    return indices.reshape(*u.shape[:-1], k)


def _kernel() -> Any:
    return importlib.import_module("proxsae.pytorch.kernels.topk")


def _size(u: Tensor, nonneg: bool) -> Tensor:
    return torch.relu(u) if nonneg else u.abs()


def _by_groups(u: Tensor, k: int, nonneg: bool) -> Tensor:
    n, P = u.shape
    grouped = u.contiguous().view(n, P // GROUP, GROUP)
    groups = largest(_maxima(grouped, nonneg), k)
    start = torch.arange(0, n * grouped.shape[1], grouped.shape[1], device=u.device)[:, None]
    near = grouped.view(-1, GROUP).index_select(0, (groups + start).view(-1)).view(n, k * GROUP)
    column = largest(_size(near, nonneg), k)  # groups ascend, so columns are in the order of their indices
    return groups.gather(-1, column // GROUP) * GROUP + column % GROUP


def _maxima(grouped: Tensor, nonneg: bool) -> Tensor:
    """max |u| of each group, or max(u, 0): grouped (n, groups, GROUP) -> (n, groups)."""
    if nonneg:
        return torch.relu(grouped.amax(dim=-1))
    best = grouped.new_empty(grouped.shape[:-1])
    pieces = 1 if grouped.is_cuda else -(-grouped.numel() // CACHED)  # |u| of a piece stays in the cache
    rows = max(1, len(grouped) // max(1, pieces))
    size = torch.empty_like(grouped[:rows])
    for part, out in zip(grouped.split(rows), best.split(rows), strict=True):
        torch.amax(torch.abs(part, out=size[: len(part)]), dim=-1, out=out)
    return best


@torch.no_grad()
def top_k_of_blocks(blocks: Iterator[Tensor], P: int, k: int, nonneg: bool = False) -> tuple[Tensor, Tensor]:
    """`top_k` of rows (n, P) that come in blocks of columns, left to right, and the entries there: both (n, min(k, P)).

    A block may lie where the one before it lay.  The k largest maxima of groups so far set a bar that k entries reach,
    so that nothing below it is among the k first; what reaches it is kept, about k entries a row each time the number
    of columns doubles (lem-group-maxima).  Blocks hold whole groups, the first one of several k of them or more.
    """
    u = next(blocks)
    if u.shape[1] == P:
        indices = top_k(u, k, nonneg)
        return indices, u.gather(-1, indices)
    n, left = len(u), 0
    filled = torch.zeros(n, dtype=torch.int64, device=u.device)
    best: list[Tensor] = []
    found = []
    for count, block in enumerate(itertools.chain([u], blocks)):
        maxima = _maxima(block.view(n, block.shape[1] // GROUP, GROUP), nonneg)
        best.append(maxima)
        if count & (count - 1) == 0:  # the first block, the second, third, fifth, ninth ...
            best = [torch.cat(best, dim=-1).topk(k, dim=-1).values]
        row, column, value = _reaching(block, maxima, best[0][:, -1:], k, nonneg)
        each = torch.bincount(row, minlength=n)
        found.append((row, filled[row] + place_in_row(row, each), left + column, value))
        filled += each
        left += block.shape[1]
    row, place, column, value = (torch.cat(parts) for parts in zip(*found, strict=True))
    width = int(filled.max()) if n else k
    flat = row * width + place
    size = value.new_full((n * width,), -1).scatter_(0, flat, _size(value, nonneg)).view(n, width)
    entry = torch.zeros_like(size, dtype=torch.int64).view(-1)
    entry = entry.scatter_(0, flat, torch.arange(len(row), device=u.device)).view(n, width)
    kept = entry.gather(-1, largest(size, k))  # entries of a row stand in the order of their indices
    return column[kept], value[kept]


def _reaching(u: Tensor, maxima: Tensor, bar: Tensor, k: int, nonneg: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and value of the entries of u (n, C) that reach bar (n, 1); of a row with many of them the k first.

    They come row by row, columns ascending.  What is not below the bar reaches it, so that NaN does.
    """
    passes = ~(maxima < bar)
    many = passes.sum(dim=-1) > 2 * k
    row, group = (passes & ~many[:, None]).nonzero(as_tuple=True)
    near = u.view(-1, GROUP).index_select(0, row * maxima.shape[1] + group)
    at, column = (~(_size(near, nonneg) < bar[row])).nonzero(as_tuple=True)
    many |= torch.bincount(row[at], minlength=len(u)) > 4 * k
    if not bool(many.any()):
        return row[at], group[at] * GROUP + column, near[at, column]
    few = ~many[row[at]]
    at, column, crowded = at[few], column[few], many.nonzero()[:, 0]
    first = top_k(u[crowded], k, nonneg)
    rows = torch.cat([row[at], crowded.repeat_interleave(first.shape[1])])
    columns = torch.cat([group[at] * GROUP + column, first.view(-1)])
    rows, order = rows.sort(stable=True)
    return rows, columns[order], u[rows, columns[order]]


def place_in_row(row: Tensor, count: Tensor) -> Tensor:
    """The place of each entry within its row, for entries that come row by row, `count` of each."""
    return torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]


@torch.no_grad()
def largest(size: Tensor, k: int) -> Tensor:
    """Indices (n, k), ascending, of the k largest of size (n, P), k <= P; ties to the lowest index, NaN on top.

    torch.topk has no tie rule, but its values are right, and so are all indices above the boundary value.  So the k+1
    largest are asked for, and only where the k-th and (k+1)-th value are equal are those at the boundary chosen anew.
    """
    if k in (0, size.shape[-1]):
        return torch.arange(k, device=size.device).expand(len(size), k)
    best, indices = size.topk(k + 1, dim=-1)
    best, next_one, indices = best[:, :k], best[:, k], indices[:, :k]
    boundary = best[:, -1]
    tied = (boundary == next_one) | next_one.isnan()  # NaN sorts first, so a NaN at k+1 means NaN at k too
    rows = tied.nonzero()[:, 0]
    if len(rows):
        indices[rows] = _lowest_first(size[rows], best[rows], indices[rows])
    return indices.sort(dim=-1).values


def _lowest_first(size: Tensor, best: Tensor, indices: Tensor) -> Tensor:
    """`indices` (n, k) with those at the boundary value, the last ones, replaced by the first columns that have it."""
    edge = best[:, -1:]
    at, wanted = size == edge, best == edge
    if bool(edge.isnan().any()):
        at, wanted = at | (size.isnan() & edge.isnan()), wanted | (best.isnan() & edge.isnan())
    row, column = at.nonzero(as_tuple=True)  # in the order of rows, and of columns within a row
    count, need = at.sum(dim=-1), wanted.sum(dim=-1)
    rank = place_in_row(row, count)
    first = (rank < need[row]).nonzero()[:, 0]
    row, column, rank = row[first], column[first], rank[first]
    indices[row, indices.shape[1] - need[row] + rank] = column
    return indices
