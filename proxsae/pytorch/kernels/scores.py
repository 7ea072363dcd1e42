"""Exact scores of chosen latents in one pass over their weights: the bits of `certified_topk.exact_scores`.

Products of float32 numbers are exact in float64, so that a fused multiply-add changes nothing; lane l of 128 adds the
products l, l + 128, ... in order, the lanes are folded in halves, and the bias comes last.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from proxsae.pytorch.kernels.launch import check_together, indices_of, on

LATENTS, WARPS = 8, 4  # latents a program, and its warps
REGISTERS = 128  # a thread: four programs share a multiprocessor


def exact_scores(x: Tensor, W: Tensor, bias: Tensor, indices: Tensor) -> Tensor:
    """fl32(<x, W[indices_j]> + bias[indices_j]): x (n, d), W (P, d), bias (P,), indices (n, m) -> (n, m); float32."""
    (n, m), d = indices.shape, x.shape[1]
    x, W, bias, indices = x.contiguous(), W.contiguous(), bias.contiguous(), indices_of(indices)
    check_together(x, W, bias, indices)
    out = torch.empty(n, m, dtype=torch.float32, device=x.device)
    if n and m:
        with on(x):
            grid = (n * triton.cdiv(m, LATENTS),)
            _scores[grid](x, W, bias, indices, out, m, d, LATENTS=LATENTS, num_warps=WARPS)
    return out


@triton.jit
def _fold(a, LATENTS: tl.constexpr, LANES: tl.constexpr):
    low, high = tl.split(tl.permute(tl.reshape(a, (LATENTS, 2, LANES // 2)), (0, 2, 1)))
    return low + high


@triton.jit
def _scores(x, W, bias, indices, out, m, d, LATENTS: tl.constexpr):
    parts = tl.cdiv(m, LATENTS)
    row = (tl.program_id(0) // parts).to(tl.int64)
    slot = tl.program_id(0) % parts * LATENTS + tl.arange(0, LATENTS)
    real = slot < m
    latent = tl.load(indices + row * m + slot, mask=real, other=0)
    lane = tl.arange(0, 128)
    total = tl.zeros((LATENTS, 128), tl.float64)
    for start in range(0, d, 128):
        at = start + lane
        a = tl.load(x + row * d + at, mask=at < d, other=0.0).to(tl.float64)
        w = tl.load(W + latent[:, None] * d + at[None, :], mask=(at < d)[None, :], other=0.0).to(tl.float64)
        total += a[None, :] * w
    total = _fold(total, LATENTS, 128)
    total = _fold(total, LATENTS, 64)
    total = _fold(total, LATENTS, 32)
    total = _fold(total, LATENTS, 16)
    total = _fold(total, LATENTS, 8)
    total = _fold(total, LATENTS, 4)
    total = tl.reshape(_fold(total, LATENTS, 2), (LATENTS,))
    score = total + tl.load(bias + latent, mask=real, other=0.0).to(tl.float64)
    tl.store(out + row * m + slot, score.to(tl.float32), mask=real)
