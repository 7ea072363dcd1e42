"""The k-sparse encoder on supports: T steps with one product each, and a backward pass without anything B x P.

    u_1 = (x - b_dec) W_enc + b_enc,      z_t = prox_R(u_t)                           (prop-one-step-is-an-sae)
    u_t = z_{t-1} - mu_t D^T r_{t-1},     r_t = D z_t + b_dec - x                                   (def-ista)

Codes are kept as (indices, values); D z gathers k atoms, and only D^T r is a dense product, in a work area that holds
the pre-activations of some rows and, on a CPU, of some latents at a time.

Backward (thm-sparse-gradient).  With S_t the support of z_t and v_t = dloss/dz_t on it, supports and steps constant:

    dD[S_t] += -mu_t v_t (x) r_{t-1},     e = -mu_t D v_t
    dD[S_{t-1}] += z_{t-1} (x) e,         v_{t-1} = v_t on S_t and S_{t-1} + D^T e on S_{t-1}

so k numbers and k indices a row and step are all that is saved: residuals are decoded again.  Where the gradients are
to be differentiated themselves, `held_supports` works them out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from proxsae.conventions import Error
from proxsae.penalties import KSparse
from proxsae.pytorch import held_supports
from proxsae.pytorch.codes import BLOCK, Pages, accumulator, decode, decode_dense, dots, fulfils, outer, squares
from proxsae.pytorch.cost_model import Plan
from proxsae.pytorch.held_supports import carried
from proxsae.pytorch.topk import largest, top_k_of_blocks
from proxsae.steps import FIRST_TRIAL, Backtracking, ExactStep, FixedStep, GivenStep, Lipschitz, StepRule, step_dtype

RULES = (Lipschitz, FixedStep, Backtracking, ExactStep)  # the others need more than the support


@dataclass(frozen=True)
class Steps:
    """What the encoder does: `steps` k-sparse steps by `rule`, L an upper bound on ||D||^2, carried out as `plan` says.

    It decodes as well if `decode`, and keeps what the backward pass needs if `keep`; `pages` is where that writes large
    gradients.  `gram` is D^T D where the plan asks for it and earlier rows have made it (`gram_blocks`).
    `shards` stands for the other ranks where each holds some of the latents; L is then that of all of them.
    """

    penalty: KSparse
    steps: int
    rule: StepRule
    L: float
    plan: Plan
    decode: bool
    keep: bool
    pages: Pages | None = None
    shards: Shards | None = None
    gram: Gram | None = None


class Shards(Protocol):
    """The other ranks that hold latents of the same SAE: what a rank must ask of them."""

    def keep(self, values: Tensor, k: int) -> Tensor:
        """Candidates (n, s) of this rank, latents ascending, with 0 where they are not among the k largest of all."""

    def total(self, a: Tensor) -> Tensor:
        """The sum of all ranks' `a`."""


def free_bytes(device: torch.device) -> float:
    """Memory that can be had on the device, with what a cache would give back; 0 where no system says."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + reserve)
    try:
        told = Path("/proc/meminfo").read_text(encoding="ascii")
        return 1024.0 * int(told.split("MemAvailable:")[1].split()[0])
    except (OSError, ValueError, IndexError):
        pass  # not Linux
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return 0.0


class Encode(torch.autograd.Function):
    """x (n, d) -> the indices and values (n, k) of z_T and, if asked for, the reconstruction (n, d)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, how: Steps
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """All T steps, one piece of rows after the other."""
        n, k = len(x), min(how.penalty.k, len(W_dec))
        kept = how.steps if how.keep else 1
        indices = torch.empty(kept, n, k, dtype=torch.int64, device=x.device)
        values = torch.empty(kept, n, k, dtype=x.dtype, device=x.device)
        mu = torch.empty(kept, n, dtype=torch.float64, device=x.device)
        xhat = torch.empty_like(x) if how.decode else None
        area = x.new_empty(min(n, how.plan.rows) * how.plan.columns)
        gram = how.gram
        if gram is None and how.plan.product == "gram":
            gram = gram_blocks(W_dec, how.plan.columns)
        for start in range(0, n, max(1, how.plan.rows)):
            piece = slice(start, start + how.plan.rows)
            c = x[piece] - b_dec
            for t, (at, z, step, _) in enumerate(_walk(c, W_enc, b_enc, W_dec, how, area, gram)):
                here = t if how.keep else 0
                indices[here, piece], values[here, piece], mu[here, piece] = at, z, step
            if xhat is not None:
                xhat[piece] = _decoder(how)(at, z, W_dec) + b_dec
        ctx.how = how
        ctx.save_for_backward(x, W_enc, b_enc, W_dec, b_dec, indices, values, mu)
        last = indices[-1].clone() if kept > 1 else indices[-1]
        ctx.mark_non_differentiable(last)
        ctx.set_materialize_grads(False)
        return last, values[-1].clone() if how.keep else values[-1], xhat

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, _: None, to_values: Tensor | None, to_xhat: Tensor | None
    ) -> tuple[Any, ...]:
        """The formulas at the head of this file, from the last step to the first."""
        x, W_enc, b_enc, W_dec, b_dec, indices, values, mu = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            check_first(ctx.how.shards)
            inputs = (x, W_enc, b_enc, W_dec, b_dec)
            return *held_supports.gradients(inputs, indices, values != 0, mu, (to_values, to_xhat)), None
        wide, P, pages = accumulator(x.dtype), len(W_dec), ctx.how.pages
        times = partial(_total, ctx.how, decode)
        wants_x, wants_enc, wants_b_enc, wants_dec, wants_b_dec = ctx.needs_input_grad[:5]
        to_x = torch.zeros(x.shape, dtype=wide, device=x.device) if wants_x else None
        to_b_dec = torch.zeros(b_dec.shape, dtype=wide, device=x.device)
        to_dec: Tensor | None = None
        v = torch.zeros(values.shape[1:], dtype=wide, device=x.device)
        v = v if to_values is None else v + to_values
        if to_xhat is not None:
            v = v + dots(indices[-1], W_dec, to_xhat)
            to_b_dec += to_xhat.sum(dim=0, dtype=wide)
            if wants_dec:
                to_dec = outer(indices[-1], values[-1], to_xhat, P, pages=pages)
        for t in range(len(values) - 1, 0, -1):
            v = torch.where(values[t] != 0, v, 0)
            moved = -mu[t][:, None].to(wide) * v
            if wants_dec:
                residual = times(indices[t - 1], values[t - 1], W_dec).add_(b_dec).sub_(x)
                to_dec = outer(indices[t], moved, residual, P, to_dec, pages)
                del residual
            e = times(indices[t], moved, W_dec)
            if wants_dec:
                to_dec = outer(indices[t - 1], values[t - 1], e, P, to_dec, pages)
            v = carried(v, indices[t], indices[t - 1]) + dots(indices[t - 1], W_dec, e)
            to_b_dec += e.sum(dim=0)
            to_x = None if to_x is None else to_x.sub_(e)
            del e
        v = torch.where(values[0] != 0, v, 0)
        to_enc = to_b_enc = None
        if wants_enc:
            to_enc = outer(indices[0], v, x - b_dec, P, pages=pages, turned=W_enc.is_contiguous()).to(x.dtype).T
        if wants_b_enc or wants_b_dec:
            summed = outer(indices[0], v, v.new_ones(len(x), 1), P)
            to_b_enc = summed[:, 0].to(x.dtype) if wants_b_enc else None
            moved = summed.T @ W_enc.T.to(wide)  # the sum over rows of W_enc v: no gather, and d numbers to share
            to_b_dec -= (moved if ctx.how.shards is None else ctx.how.shards.total(moved))[0]
        if to_x is not None:
            at, latents = _latents(W_enc, indices[0])
            to_x = to_x.add_(times(at, v, latents)).to(x.dtype)
        if wants_dec:
            to_dec = torch.zeros_like(W_dec) if to_dec is None else to_dec.to(x.dtype)
        return to_x, to_enc, to_b_enc, to_dec, to_b_dec.to(x.dtype) if wants_b_dec else None, None


def _latents(W_enc: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Indices `at` and the latents of W_enc (d, P), one a row; where `at` names few, those only, and their places."""
    if W_enc.T.is_contiguous() or at.numel() >= W_enc.shape[1]:
        return at, W_enc.T.contiguous()
    latents, place = at.unique(return_inverse=True)
    return place, W_enc[:, latents].T.contiguous()


def _decoder(how: Steps) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return partial(_total, how, decode if how.plan.decode == "sparse" else decode_dense)


def _total(how: Steps, times: Callable[..., Tensor], at: Tensor, z: Tensor, W: Tensor) -> Tensor:
    here = times(at, z, W)
    return here if how.shards is None else how.shards.total(here)


def check_first(shards: object) -> None:
    """Raise `Error` where a gradient on a shard is to be differentiated: it is that of the shard's own latents."""
    if shards is not None and torch.is_grad_enabled():
        msg = "create_graph=True needs the whole SAE, but this is one shard of it: px.load the folder that train wrote"
        msg += " (thm-sparse-gradient)"
        raise Error(msg)


def walk(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, how: Steps
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (indices, values, products spent so far) of z_1 ... z_T for as many rows x (n, d) as are taken together."""
    area = x.new_empty(len(x) * how.plan.columns)
    for at, z, _, spent in _walk(x - b_dec, W_enc, b_enc, W_dec, how, area, None):
        yield at, z, spent


def _walk(
    c: Tensor, W_enc: Tensor, b_enc: Tensor, D: Tensor, how: Steps, area: Tensor, gram: Gram | None
) -> Iterator[tuple[Tensor, Tensor, float | Tensor, Tensor]]:
    """Yield (indices, values, mu, products spent) of z_1 ... z_T for centred rows c (n, d), pre-activations in `area`.

    A row's products are counted as in `iteration.iterate`, whatever is gathered in their place.
    """
    R, rule, L, times, columns = how.penalty, how.rule, how.L, _decoder(how), how.plan.columns
    at, z = _pick((u for _, u in _product(c, W_enc.T, area, columns, b_enc)), len(D), R, how.shards)
    mu: float | Tensor = rule.size(0, L) if isinstance(rule, GivenStep) else 1 / L
    spent = torch.ones(len(c), dtype=torch.float64, device=c.device)
    owed = (z != 0).any(dim=-1).double()
    yield at, z, mu, spent
    if how.steps == 1:
        return
    if isinstance(rule, GivenStep):  # one mu for all steps
        base = (mu * c) @ D.T if gram is not None else None
        for _ in range(how.steps - 1):
            if not has_room(L, D.dtype):
                blocks = _scaled(mu, _product((c - times(at, z, D)).to(c.dtype), D, area, columns), L)
            elif gram is None or base is None:
                blocks = _product((mu * (c - times(at, z, D))).to(c.dtype), D, area, columns)
            else:
                blocks = _gram_product(at, mu * z, base, gram, area)
            at, z = _pick(_plus_codes(blocks, at, z), len(D), R, how.shards)
            spent, owed = spent + owed + 1, torch.ones_like(owed)
            yield at, z, mu, spent
        return
    parts = D.split(max(1, BLOCK // D.shape[1]))  # so that no float64 copy of D is made
    norms = torch.stack([torch.linalg.vector_norm(part, dim=1, dtype=torch.float64).amax() for part in parts])
    top = FIRST_TRIAL / float(norms.max()) ** 2  # as in the reference
    mu = torch.full((len(c),), top, dtype=torch.float64, device=c.device)
    for _ in range(how.steps - 1):
        down = _product((c - times(at, z, D)).to(c.dtype), D, area, columns)  # -g
        at, z, mu, tried, left = _safe_step(at, z, down, D, R, rule, mu, top, L)
        spent, owed = spent + owed + 1 + tried, left
        yield at, z, mu, spent


Blocks = Iterator[tuple[int, Tensor]]  # columns of (n, P) from left to right: the first one's index, and they
Gram = list[list[Tensor]]  # D^T D by blocks of columns, each cut into pieces (P, width)
GRAM_PIECE = 2**22  # entries of a piece, from which all rows gather while it lies in the cache


def gram_blocks(D: Tensor, columns: int) -> Gram:
    """D^T D for atoms D (P, d), cut as `_gram_product` reads it."""
    width = max(1, GRAM_PIECE // len(D))
    return [[D @ piece.T for piece in block.split(width)] for block in D.split(columns)]


def _gram_product(at: Tensor, z: Tensor, base: Tensor, gram: Gram, area: Tensor) -> Blocks:
    """base - D^T D z for base (n, P) and codes z at `at`, each block in the same work area (prop-gram-step)."""
    start = 0
    for pieces in gram:
        widths = [piece.shape[1] for piece in pieces]
        block = area[: len(z) * sum(widths)].view(len(z), -1)
        outs, parts = block.split(widths, dim=1), base[:, start : start + sum(widths)].split(widths, dim=1)
        for piece, part, out in zip(pieces, parts, outs, strict=True):
            torch.sub(part, decode(at, z, piece), out=out)
        yield start, block
        start += sum(widths)


def _product(a: Tensor, W: Tensor, area: Tensor, columns: int, bias: Tensor | None = None) -> Blocks:
    """a W^T + bias for a (n, d), W (P, d) and bias (P,), each block in the same work area."""
    for start in range(0, len(W), columns):
        part = W[start : start + columns]
        block = area[: len(a) * len(part)].view(len(a), len(part))
        if bias is None:
            torch.mm(a, part.T, out=block)
        else:
            torch.addmm(bias[start : start + columns], a, part.T, out=block)
        yield start, block


def _scaled(mu: float | Tensor, blocks: Blocks, L: float) -> Blocks:
    """The blocks times mu, which may itself be no number of their dtype."""
    for start, block in blocks:
        yield start, block.copy_(mu * block.to(step_dtype(L, block)))


def has_room(L: float, dtype: torch.dtype) -> bool:
    """Whether mu = 1/L times a residual, and the Gram matrix, stay in the range of the dtype as their factors do."""
    return 1 <= L <= 2.0**14 if dtype == torch.float16 else 2.0**-100 < L < 2.0**100


def _here(at: Tensor, start: int, block: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the indices `at` (n, k) lie in a block, and their columns in it (for the others, the nearest one)."""
    last = block.shape[1] - 1
    column = at - start
    return (column >= 0) & (column <= last), column.clamp(0, last)


def _plus_codes(blocks: Blocks, at: Tensor, z: Tensor) -> Iterator[Tensor]:
    """The blocks, with the codes added."""
    for start, block in blocks:
        here, column = _here(at, start, block)
        yield block.scatter_add_(-1, column, torch.where(here, z, 0))


def _off_support(blocks: Blocks, at: Tensor, on: Tensor, P: int) -> Iterator[Tensor]:
    """The blocks, with 0 at the support; what was there goes to `on` (n, k)."""
    for start, block in blocks:
        here, column = _here(at, start, block)
        on.copy_(torch.where(here, block.gather(-1, column), on))
        if block.shape[1] == P:  # all are here, so that nothing has to be looked for
            block.scatter_(-1, at, 0)
        else:
            row, slot = here.nonzero(as_tuple=True)
            block[row, column[row, slot]] = 0
        yield block


def _pick(blocks: Iterator[Tensor], P: int, R: KSparse, shards: Shards | None = None) -> tuple[Tensor, Tensor]:
    """The prox of pre-activations (n, P) by its support: indices and values (n, k)."""
    at, u = top_k_of_blocks(blocks, P, R.k, R.nonneg)
    z = _value(u, R)
    return at, z if shards is None else shards.keep(z, R.k)


def _value(u: Tensor, R: KSparse) -> Tensor:
    return torch.relu(u) if R.nonneg else torch.where(u != 0, u, 0)


def _safe_step(
    at: Tensor, z: Tensor, down: Blocks, D: Tensor, R: KSparse, rule: StepRule, mu: Tensor, top: float, L: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A `Backtracking` or `ExactStep` step from codes (at, z) along the blocks of -g, `down`, which are overwritten.

    Returns the codes, mu, and by row the products that trials stand for and those owed for the next residual.

    Off the support every step leaves the order of |g| as it is, so that the k largest there and the support itself are
    all that any trial can keep: 2k candidates a row, and a halved step costs no further look at the gradient
    (lem-step-candidates; where two different |g| round to one mu |g|, a dense step may keep the other).
    """
    k = z.shape[1]
    on = torch.empty_like(z)
    off_at, off = _pick(_off_support(down, at, on, len(D)), len(D), R)
    face = torch.cat([z != 0, torch.zeros_like(off, dtype=torch.bool)], dim=-1)
    candidates, order = torch.cat([at, off_at], dim=-1).sort(dim=-1, stable=True)
    along, start, face = (
        a.gather(-1, order) for a in (torch.cat([on, off], -1), torch.cat([z, torch.zeros_like(z)], -1), face)
    )
    again = torch.zeros_like(face)
    again[:, 1:] = candidates[:, 1:] == candidates[:, :-1]  # a 0 that pads `off`, and is in `at` already
    empty = ~face.any(dim=-1)
    if bool(empty.any()):  # from z = 0, the face is the support that a step opens: it may hold indices that pad z
        opened = largest(torch.where(again, -1, torch.relu(along) if R.nonneg else along.abs()), k)
        opens = torch.zeros_like(along).scatter_(-1, opened, _value(along.gather(-1, opened), R)) != 0
        face = torch.where(empty[:, None], opens, face)
    exact = None
    if isinstance(rule, ExactStep):
        h = torch.where(face, along, 0)
        face_move = decode(candidates, h, D)
        size, moved = squares(h), squares(face_move)
        known = (moved > torch.finfo(face_move.dtype).tiny ** 2) & (moved < torch.inf)  # as in `iteration`
        exact = known | (size == 0)
        mu = torch.where(known, size / moved, top).clamp(min=1 / L)  # at least 1/L, but for rounding
    mu = mu.clone()
    tried, owed = torch.full_like(mu, float(exact is not None)), torch.zeros_like(mu)
    new_at, new_z = torch.empty_like(at), torch.empty_like(z)
    rows, wide = torch.arange(len(z), device=z.device), step_dtype(L, z)
    while len(rows):
        step = mu[rows]
        u = start[rows] + (step[:, None].to(wide) * along[rows].to(wide)).to(z.dtype)
        kept = largest(torch.where(again[rows], -1, torch.relu(u) if R.nonneg else u.abs()), k)
        values = _value(u.gather(-1, kept), R)
        trial = torch.zeros_like(u).scatter_(-1, kept, values)
        floor = safe = step <= 1 / L
        same = torch.zeros_like(floor)
        if exact is not None:
            same = exact[rows] & ((trial != 0) == face[rows]).all(dim=-1)
            safe = floor | same
        tried[rows] += (~same & ~floor).double()
        owed[rows] = (~same & floor).double()
        new_at[rows], new_z[rows] = candidates[rows].gather(-1, kept), values
        doubtful = (~safe).nonzero()[:, 0]
        if not len(doubtful):
            break
        rows, dz = rows[doubtful], (trial - start[rows])[doubtful]
        lhs = step[doubtful] * squares(decode(candidates[rows], dz, D))
        rows = rows[~fulfils(lhs, squares(dz), (dz != 0).any(dim=-1))]
        mu[rows] = (mu[rows] / 2).clamp(min=1 / L)
    return new_at, new_z, mu, tried, owed
