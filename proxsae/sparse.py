"""k-sparse codes as indices and values, and the three products with them; nothing of size B x P is made.

    decode      sum_j z_j w_j                        gathers k rows a code
    dots        <w_j, g> for j in the support         its transpose
    outer       sum of z_j g over the codes with j    the gradient of w_j: codes sorted by latent

W holds one latent a row, (P, d).  Half precision accumulates in float32.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from proxsae.kernels.dispatch import has_kernels
from proxsae.selection import top_k

BLOCK = 2**20  # entries of the weights' gradient that are summed before they are added


@dataclass(frozen=True)
class SparseCodes:
    """Codes of `d_sae` latents by their support: `indices` (..., s) int64, ascending, and `values` (..., s).

    A row with fewer than s non-zeros is padded with latents whose value is 0; no index occurs twice in a row.
    """

    indices: Tensor
    values: Tensor
    d_sae: int

    def to_dense(self) -> Tensor:
        """The same codes as (..., d_sae)."""
        dense = self.values.new_zeros(*self.values.shape[:-1], self.d_sae)
        return dense.scatter(-1, self.indices, self.values)


def sparsify(z: Tensor, width: int | None = None) -> SparseCodes:
    """Dense codes (..., P) as `SparseCodes` with `width` entries a row, by default the largest support in the batch."""
    if width is None:
        width = int((z != 0).sum(dim=-1).max()) if z.numel() else 0
    indices = top_k(z, width)
    return SparseCodes(indices, z.gather(-1, indices), z.shape[-1])


def sparse_decode(codes: SparseCodes, W_dec: Tensor) -> Tensor:
    """D z, that is sum_j z_j d_j: codes with s entries and W_dec (P, d) give (..., d).

    Differentiable once, in the values and in W_dec (thm-sparse-gradient).
    """
    lead, s = codes.values.shape[:-1], codes.values.shape[-1]
    flat = (lead.numel(), s)
    decoded = _Decode.apply(codes.values.reshape(flat), W_dec, codes.indices.reshape(flat))
    return decoded.reshape(*lead, W_dec.shape[1]).to(W_dec.dtype)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(values, W, indices)
        return decode(indices, values, W)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        values, W, indices = ctx.saved_tensors
        to_values = to_W = None
        if ctx.needs_input_grad[0]:
            to_values = dots(indices, W, grad).to(values.dtype)
        if ctx.needs_input_grad[1]:
            to_W = outer(indices, values, grad, len(W)).to(W.dtype)
        return to_values, to_W, None


def _kernels(name: str, a: Tensor) -> Any:
    """The module of Triton kernels of that name where they run on `a`, else None."""
    if a.dtype == torch.float64 or not has_kernels(a.device.type):
        return None
    return importlib.import_module(f"proxsae.kernels.{name}")


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums of `dtype` are kept."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def decode(indices: Tensor, values: Tensor, W: Tensor) -> Tensor:
    """sum_j values_j W[indices_j]: indices and values (n, s), W (P, d) -> (n, d), in the accumulator's dtype."""
    wide = accumulator(W.dtype)
    if not values.numel():
        return torch.zeros(len(values), W.shape[1], dtype=wide, device=W.device)
    if (kernels := _kernels("decode", W)) is not None:
        gathered: Tensor = kernels.decode(indices, values, W, out_dtype=wide)
        return gathered
    return embedding_bag(indices, W.to(wide), per_sample_weights=values.to(wide), mode="sum")


def decode_dense(indices: Tensor, values: Tensor, W: Tensor) -> Tensor:
    """`decode` as a product of dense codes (n, P), for codes that are hardly sparse."""
    dense = SparseCodes(indices, values, len(W)).to_dense()
    return (dense @ W).to(accumulator(W.dtype))


def dots(indices: Tensor, W: Tensor, g: Tensor) -> Tensor:
    """<W[indices_j], g>: indices (n, s), W (P, d), g (n, d) -> (n, s), in the accumulator's dtype.

    It is the derivative of `decode` in the values, and torch's own, for on a CPU that is the one gathered product which
    makes no copy of the rows.
    """
    wide = accumulator(W.dtype)
    if not indices.numel():
        return torch.zeros(indices.shape, dtype=wide, device=W.device)
    if (kernels := _kernels("decode", W)) is not None:
        found: Tensor = kernels.gather_dot(indices, W, g)
        return found
    with torch.enable_grad():
        values = torch.ones(indices.shape, dtype=wide, device=W.device, requires_grad=True)
        decoded = embedding_bag(indices, W.detach().to(wide), per_sample_weights=values, mode="sum")
        return torch.autograd.grad(decoded, values, g.to(wide))[0]


def outer(indices: Tensor, values: Tensor, g: Tensor, P: int) -> Tensor:
    """The gradient (P, d) of P latents: row j sums values_bj g_b over the rows b with j in their support; g (n, d).

    Codes are sorted by latent, stably, and the rows of g that belong to a latent are summed in one order: no atomics,
    so the same result every time.
    """
    if not values.numel():
        return torch.zeros(P, g.shape[1], dtype=accumulator(g.dtype), device=g.device)
    if (kernels := _kernels("gradients", g)) is not None:
        summed: Tensor = kernels.weight_gradient(indices, values, g, P)
        return summed
    rows, weights, edges, source = _by_latent(indices, values, g, P)
    return embedding_bag(rows, source, edges, mode="sum", per_sample_weights=weights, include_last_offset=True)


def add_outer(out: Tensor, indices: Tensor, values: Tensor, g: Tensor) -> None:
    """Add `outer` to out (P, d), a block of latents at a time, so that no second gradient is in memory."""
    if not values.numel():
        return
    P, d = out.shape
    rows, weights, edges, source = _by_latent(indices, values, g, P)
    block = max(1, BLOCK // d)
    for start in range(0, P, block):
        ends = edges[start : start + block + 1]
        part = slice(int(ends[0]), int(ends[-1]))
        if part.start < part.stop:
            out[start : start + block] += embedding_bag(
                rows[part],
                source,
                ends - part.start,
                mode="sum",
                per_sample_weights=weights[part],
                include_last_offset=True,
            )


def _by_latent(indices: Tensor, values: Tensor, g: Tensor, P: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The codes sorted by latent: their rows, their values, where each latent's begin (P + 1,), and g, wide."""
    wide = accumulator(g.dtype)
    latents, order = indices.reshape(-1).sort(stable=True)
    edges = torch.searchsorted(latents, torch.arange(P + 1, device=g.device))
    return order // indices.shape[1], values.reshape(-1)[order].to(wide), edges, g.to(wide)
