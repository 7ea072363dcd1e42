"""What a training step minimises, and what it keeps of the batch.

    mean over levels of  1/2 ||x - xhat_level||^2   +   R(z)   +   1/32 * 1/2 ||e - ehat||^2

The first level is the SAE itself; Matryoshka levels decode a prefix of the latents, or the k' largest of the k codes.
The last term (AuxK, Gao et al. 2024) lets latents that have not fired for a while reconstruct the error e = x - xhat;
b_dec, which is for the rows and not for their errors, has no gradient there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxsae.penalties import L0, BatchKSparse, KSparse
from proxsae.pytorch.codes import SparseCodes, sparse_decode
from proxsae.pytorch.prox import count_above, k_sparse, prox
from proxsae.pytorch.topk import top_k
from proxsae.sae import SAE
from proxsae.sae.team import Team, among_all

AUX_SHARE = 1 / 32


@dataclass(frozen=True)
class Outcome:
    """The loss; and without gradient the error xhat - x (n, d), firings a latent (P,), and for a `BatchKSparse` the
    smallest |z| kept, inf if none is.
    """

    loss: Tensor
    error: Tensor
    fired: Tensor
    least: Tensor


def outcome(
    sae: SAE,
    x: Tensor,
    lam: float,
    dead: Tensor,
    widths: tuple[int, ...] = (),
    ks: tuple[int, ...] = (),
    team: Team | None = None,
) -> Outcome:
    """The loss of rows x (n, d) that are in the SAE's own units, and what else a step needs to know of them."""
    R: Any = sae.penalty
    x, wide = x.to(sae.dtype), x
    penalty = wide.new_zeros(())
    if isinstance(R, KSparse):
        if widths or ks:
            codes = sae.encode_sparse(x)
            parts = [sparse_decode(level, sae.W_dec) for level in _levels(codes, widths, ks, team)]
            decoded = [(part if team is None else team.total(part)) + sae.b_dec for part in parts]
        else:
            xhat, codes = _reconstructed(sae, x)
            decoded = [xhat]
        live = codes.values.detach()
        fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=x.device)
        fired.index_add_(0, codes.indices.reshape(-1), (live != 0).long().reshape(-1))
    else:
        z, u = _dense_codes(sae, x, envelope=not widths)
        decoded = [sae.decode(z), *(z[:, :w] @ sae.W_dec[:w] + sae.b_dec for w in widths)]
        live, fired = z.detach(), (z != 0).sum(dim=0)
        if isinstance(R, L0):  # whose threshold is trained by the first step
            signed = torch.relu(u) if R.nonneg else u
            penalty = lam * count_above(signed.to(wide.dtype), sae.threshold.to(wide.dtype), R.bandwidth).mean()
        elif not R.indicator:
            penalty = R.value(z.to(wide.dtype)).mean()
    errors = [xhat.to(wide.dtype) - wide for xhat in decoded]
    fit = torch.stack([0.5 * e.square().sum(dim=1).mean() for e in errors]).mean()
    error = errors[0].detach()
    loss = fit + AUX_SHARE * _revival(sae, x, error, dead, team) + penalty
    sizes = live.abs()
    couples = isinstance(R, BatchKSparse)
    least = torch.where(sizes > 0, sizes, torch.inf).amin() if couples else sizes.new_zeros(())
    return Outcome(loss, error, fired, least)


def _reconstructed(sae: SAE, x: Tensor) -> tuple[Tensor, SparseCodes]:
    """Reconstructions and k-sparse codes; codes that are solved for are held (thm-envelope)."""
    if not sae.encoding.endless:
        return sae.reconstruct(x)
    with torch.no_grad():
        codes = sae.encode_sparse(x)
    return sae.decode(codes), codes


def _dense_codes(sae: SAE, x: Tensor, envelope: bool) -> tuple[Tensor, Tensor]:
    """Dense codes and pre-activations.  Codes that are solved for are held where the loss is what they minimise."""
    if sae.encoding.encodes:
        u = sae.pre_activations(x)
        return sae.refine(x, prox(sae.penalty, u)), u
    with torch.set_grad_enabled(torch.is_grad_enabled() and not envelope):
        z = sae.encode(x)
    return z, z


def _levels(
    codes: SparseCodes, widths: tuple[int, ...], ks: tuple[int, ...], team: Team | None
) -> Iterator[SparseCodes]:
    """The codes, those of latents below each of `widths`, and the largest of each of `ks` (lem-nested)."""
    yield codes
    masks = [codes.indices < w for w in widths]
    for k in ks:
        size = codes.values.detach().abs()
        masks += [among_all([size], k)[0] if team is None else team.keep(size, k) > 0]
    for mask in masks:
        yield SparseCodes(codes.indices, torch.where(mask, codes.values, 0), codes.d_sae)


def _revival(sae: SAE, x: Tensor, error: Tensor, dead: Tensor, team: Team | None) -> Tensor:
    """AuxK: 1/2 ||e - ehat||^2, ehat made of the largest pre-activations of dead latents, by magnitude if signed."""
    (latents,) = dead.nonzero(as_tuple=True)
    everywhere = len(latents) if team is None else int(team.total(torch.tensor([len(latents)], device=x.device)))
    if not everywhere:
        return error.new_zeros(())
    k = max(1, sae.d_in // 2)
    c = x - sae.b_dec.detach()
    u = c @ sae.W_enc[:, latents] + sae.b_enc[latents] if sae.encoding.encodes else c @ sae.W_dec[latents].T
    u = torch.relu(u) if sae.common.penalty.nonneg else u
    if team is None or team.shards == 1:
        ehat = k_sparse(u, k) @ sae.W_dec[latents]
    else:  # as many candidates from every shard, in the order of their latents
        width = min(k, everywhere)
        z = k_sparse(u, k)
        at = top_k(z, width)
        values = torch.nn.functional.pad(z.gather(-1, at), (0, width - at.shape[1]))
        kept = team.keep(values, k)[:, : at.shape[1]]
        ehat = team.total(torch.zeros_like(z).scatter(-1, at, kept) @ sae.W_dec[latents])
    return 0.5 * (ehat.to(error.dtype) + error).square().sum(dim=1).mean()  # `error` is xhat - x


def mean_lam(sae: SAE) -> float:
    """The mean of lam over latents that are not switched off, 0 where R has none."""
    lam = getattr(sae.penalty, "lam", 0.0)
    finite = torch.as_tensor(np.array(lam) if not isinstance(lam, Tensor) else lam.detach())
    finite = finite[finite < torch.inf]
    return float(finite.mean()) if finite.numel() else 0.0
