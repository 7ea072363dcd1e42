"""k-sparse codes as indices and values, and their decoder: nothing of size B x P is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from proxsae.functional import top_k


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

    Differentiable in the values and in W_dec.  Half precision accumulates in float32.
    """
    values, W = codes.values, W_dec
    if W.dtype in (torch.float16, torch.bfloat16):
        values, W = values.float(), W.float()
    if values.shape[-1] == 0 or values.numel() == 0:
        return W_dec.new_zeros(*values.shape[:-1], W_dec.shape[1])
    flat = (codes.indices.reshape(-1, values.shape[-1]), values.reshape(-1, values.shape[-1]))
    decoded = embedding_bag(flat[0], W, per_sample_weights=flat[1], mode="sum")
    return decoded.reshape(*values.shape[:-1], W_dec.shape[1]).to(W_dec.dtype)
