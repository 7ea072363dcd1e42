"""The four published SAEs: one class, four choices of penalty (prop-one-step-is-an-sae); names in `PUBLISHED`."""

from __future__ import annotations

from proxsae.conventions import Error
from proxsae.penalties import L0, L1, KSparse
from proxsae.penalties.published import PUBLISHED, Published, published_as
from proxsae.sae.model import SAE

__all__ = ["PUBLISHED", "Published", "abstopk_sae", "jumprelu_sae", "published_as", "relu_sae", "topk_sae"]


def relu_sae(d_in: int, d_sae: int, lam: float) -> SAE:
    """The ReLU SAE: `SAE` with L1(lam, nonneg=True), whose code is max(u - lam, 0)."""
    return SAE(d_in, d_sae, L1(lam, nonneg=True))


def jumprelu_sae(d_in: int, d_sae: int, threshold: float, bandwidth: float = 0.1) -> SAE:
    """The JumpReLU SAE: `SAE` with L0(threshold^2 / 2, nonneg=True), whose code is u where u > threshold, else 0."""
    if threshold < 0:
        msg = f"threshold={threshold} must be >= 0"
        raise Error(msg)
    return SAE(d_in, d_sae, L0(threshold**2 / 2, nonneg=True, bandwidth=bandwidth))


def topk_sae(d_in: int, d_sae: int, k: int) -> SAE:
    """The TopK SAE: `SAE` with KSparse(k, nonneg=True), whose code is max(u, 0) on its k largest entries."""
    return SAE(d_in, d_sae, KSparse(k, nonneg=True))


def abstopk_sae(d_in: int, d_sae: int, k: int) -> SAE:
    """The AbsTopK SAE: `SAE` with KSparse(k), whose code is u on its k largest magnitudes, with their signs.

    Beside TopK its codes are closer to u (prop-abstopk-closer), and it is a TopK SAE of twice the width with tied
    weights (prop-splitting-codes).
    """
    return SAE(d_in, d_sae, KSparse(k))
