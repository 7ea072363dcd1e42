"""What is reported of codes and reconstructions.  A latent fires where z != 0, whatever the sign."""

from __future__ import annotations

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from proxsae.conventions import check_count
from proxsae.sae import SAE


def nmse(x: Tensor, xhat: Tensor) -> float:
    """sum ||x - xhat||^2 / sum ||x||^2 over all rows, in float64; x, xhat (..., d)."""
    x = x.double()
    return ratio((x - xhat.double()).square().sum(), x.square().sum())


def explained_variance(x: Tensor, xhat: Tensor) -> float:
    """1 - sum ||x - xhat||^2 / sum ||x - mean||^2: a ratio of sums, the mean taken over the rows of x (..., d)."""
    rows = x.reshape(-1, x.shape[-1]).double()
    return 1 - ratio(
        (rows - xhat.reshape(rows.shape).double()).square().sum(), (rows - rows.mean(dim=0)).square().sum()
    )


def cosine(x: Tensor, xhat: Tensor) -> float:
    """The mean cosine between the rows of x and xhat (..., d)."""
    return float(torch.nn.functional.cosine_similarity(x.double(), xhat.double(), dim=-1).mean())


def l0(z: Tensor) -> float:
    """The mean number of non-zeros per row of z (..., P)."""
    return ratio((z != 0).sum(), torch.tensor(z.shape[:-1].numel()))


def dead_fraction(z: Tensor) -> float:
    """The share of latents that fire on no row of z (..., P)."""
    return 1 - float((z != 0).reshape(-1, z.shape[-1]).any(dim=0).float().mean())


def sign_balance(z: Tensor) -> Tensor:
    """Per latent, min(p+, p-) / max(p+, p-) with p+, p- its counts of positive and negative firings: (..., P) -> (P,).

    0 for a latent of one sign and for a dead one; 1 for one that fires equally often with both.
    """
    rows = z.reshape(-1, z.shape[-1])
    up, down = (rows > 0).sum(dim=0), (rows < 0).sum(dim=0)
    return torch.minimum(up, down) / torch.maximum(up, down).clamp(min=1)


def support_change(before: Tensor, after: Tensor) -> float:
    """The mean Jaccard distance 1 - |S and S'| / |S or S'| of the supports of two codes (..., P); 0 for empty ones."""
    one, other = before != 0, after != 0
    union = (one | other).sum(dim=-1)
    shared = (one & other).sum(dim=-1)
    return float((1 - torch.where(union > 0, shared / union.clamp(min=1), 1.0)).mean())


@torch.no_grad()
def evaluate(sae: SAE, activations: Any, batch_size: int = 4096) -> dict[str, float]:
    """Measure an SAE on rows (n, d_in): nmse, explained_variance, cosine, l0, dead, two_sided (share of live latents
    that fire with both signs) and sign_balance (their mean over live latents).

    NumPy rows are converted; raises `Error` for no rows, NaN or infinite rows and a width that does not fit.
    """
    x = sae.rows(activations)
    check_count("batch_size", batch_size, 1)
    batches = x.split(batch_size)
    codes = [sae.encode(batch) for batch in batches]
    xhat = torch.cat([sae.decode(z, like=batch) for z, batch in zip(codes, batches, strict=True)])
    z = torch.cat(codes)
    live = (z != 0).any(dim=0)
    balance = sign_balance(z)[live]
    return {
        "nmse": nmse(x, xhat),
        "explained_variance": explained_variance(x, xhat),
        "cosine": cosine(x, xhat),
        "l0": l0(z),
        "dead": dead_fraction(z),
        "two_sided": ratio((balance > 0).sum(), live.sum()),
        "sign_balance": ratio(balance.sum(), live.sum()),
    }


def ratio(part: Tensor, whole: Tensor) -> float:
    """Part / whole, and 0 where both are 0."""
    if float(whole) == 0:
        return 0.0 if float(part) == 0 else float("inf")
    return float(part) / float(whole)


def recovery(D: Tensor, truth: Tensor) -> float:
    """The mean |cosine| between the atoms of D (P, d) and of `truth` (P', d), matched one to one to make it largest."""
    unit = [torch.nn.functional.normalize(W.detach().double(), dim=1) for W in (D, truth)]
    similarity = (unit[0] @ unit[1].T).abs().cpu().numpy()
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    return float(similarity[rows, columns].mean())
