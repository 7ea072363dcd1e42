"""The k-sparse encoder with its supports and step sizes given: a smooth function, for derivatives of any order.

    z_1 = (x - b_dec) W_enc + b_enc  on S_1,      z_t = z_{t-1} - mu_t D^T r_{t-1}  on S_t      (thm-sparse-gradient)

`ksparse_encoder` finds S_t and mu_t, and has a backward pass of its own, which is faster but cannot be differentiated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from proxsae.pytorch.codes import SparseCodes, accumulator, sparse_decode, sparse_dots


def encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, D: Tensor, b_dec: Tensor, indices: Tensor, used: Tensor, mu: Tensor
) -> tuple[Tensor, Tensor]:
    """Values (n, k) of z_T and D z_T + b_dec (n, d); indices (T, n, k), entries `used`, the others 0, and mu (T, n)."""
    c, at = x - b_dec, indices[0]
    z = torch.where(used[0], sparse_dots(at, W_enc.T, c) + b_enc[at], 0)
    for now, kept, step in zip(indices[1:], used[1:], mu[1:], strict=True):
        down = sparse_dots(now, D, c - sparse_decode(SparseCodes(at, z, len(D)), D))  # -g
        z = torch.where(kept, carried(z, at, now) + step[:, None].to(z.dtype) * down, 0)
        at = now
    return z, sparse_decode(SparseCodes(at, z, len(D)), D) + b_dec


def gradients(
    inputs: tuple[Tensor, ...], indices: Tensor, used: Tensor, mu: Tensor, to_outputs: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients of `encode` in its five tensors for those of its outputs, as functions that have gradients."""
    wide = accumulator(inputs[0].dtype)
    own = [a.view_as(a) for a in inputs]  # a weight may be a function of another one, and each counts for itself
    x, W_enc, b_enc, D, b_dec = (a.to(wide) for a in own)
    found = encode(x, W_enc, b_enc, D, b_dec, indices, used, mu)
    pairs = [(a, to.to(wide)) for a, to in zip(found, to_outputs, strict=True) if to is not None]
    outputs, given = zip(*pairs, strict=True)
    wanted = [a for a in own if a.requires_grad]
    got = iter(torch.autograd.grad(outputs, wanted, given, create_graph=True, allow_unused=True))
    return tuple(next(got) if a.requires_grad else None for a in own)


def carried(v: Tensor, at: Tensor, now: Tensor) -> Tensor:
    """v on the entries of `now` that are also in `at`, 0 on the others; indices (n, k) ascend."""
    if not v.numel():
        return v
    place = torch.searchsorted(at, now).clamp_(max=at.shape[1] - 1)
    return torch.where(at.gather(-1, place) == now, v.gather(-1, place), 0)
