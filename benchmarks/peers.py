"""The peers of the encoder: plain torch as SAE libraries write it, torch.compile of it, and libraries if installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


def dense_encode(x: Tensor, W: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """AbsTopK with torch's own top-k, which has no tie rule: indices and values (n, k)."""
    u = x @ W + b
    indices = u.abs().topk(k, dim=-1, sorted=False).indices
    return indices, u.gather(-1, indices)


def dense_loss(x: Tensor, weights: tuple[Tensor, ...], k: int) -> Tensor:
    """The loss of an AbsTopK SAE by dense products and autograd."""
    W_enc, b_enc, W_dec, b_dec = weights
    indices, values = dense_encode(x - b_dec, W_enc, b_enc, k)
    z = values.new_zeros(len(x), len(W_dec)).scatter(-1, indices, values)
    return 0.5 * (z @ W_dec + b_dec - x).square().sum(dim=1).mean()


def bag_loss(x: Tensor, weights: tuple[Tensor, ...], k: int) -> Tensor:
    """The same loss with torch's embedding_bag as decoder, and autograd."""
    W_enc, b_enc, W_dec, b_dec = weights
    indices, values = dense_encode(x - b_dec, W_enc, b_enc, k)
    decoded = embedding_bag(indices, W_dec, per_sample_weights=values, mode="sum")
    return 0.5 * (decoded + b_dec - x).square().sum(dim=1).mean()


def dense_step(x: Tensor, z: Tensor, D: Tensor, mu: float, k: int) -> Tensor:
    """One further step on dense codes z (n, P): two products, then torch's top-k."""
    u = z - mu * ((z @ D - x) @ D.T)
    indices = u.abs().topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(u).scatter_(-1, indices, u.gather(-1, indices))


def compiled(call: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile of a call; where no compiler works, that is said once and the plain call is timed."""
    made = torch.compile(call)
    try:
        made()
    except Exception as problem:  # whatever the compiler lacks
        print(f"torch.compile does not work here ({type(problem).__name__}): the plain call stands in its place")
        return call
    return made


def installed_encoders(x: Tensor, d_sae: int, k: int) -> dict[str, Callable[[], object]]:
    """Encoders of other SAE libraries that are installed; the others are named."""
    found: dict[str, Callable[[], object]] = {}
    if importlib.util.find_spec("sparsify"):
        from sparsify import SparseCoder, SparseCoderConfig  # type: ignore[import-not-found]

        coder = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=d_sae, k=k), device=x.device, dtype=x.dtype)
        found["sparsify TopK"] = lambda: coder.encode(x)
    if importlib.util.find_spec("sae_lens"):
        from sae_lens import TopKSAE, TopKSAEConfig  # type: ignore[import-not-found]

        lens = TopKSAE(TopKSAEConfig(d_in=x.shape[1], d_sae=d_sae, k=k, device=str(x.device)))
        found["SAELens TopK"] = lambda: lens.encode(x)
    missing = {"sparsify", "sae_lens"} - {name for name in ("sparsify", "sae_lens") if importlib.util.find_spec(name)}
    if missing:
        print(f"not installed: {', '.join(sorted(missing))}")
    return found
