"""The four published SAEs: one class, four choices of penalty (prop-one-step-is-an-sae)."""

from __future__ import annotations

from proxsae.conventions import Error, check_number
from proxsae.penalties import L0, L1, KSparse
from proxsae.sae.model import SAE

START = "{}=float(x.std()) is a start, and px.train(sae, x, l0=32) adjusts it to 32 non-zeros a row"


def relu_sae(d_in: int, d_sae: int, lam: float | None = None) -> SAE:
    """The ReLU SAE: `SAE` with L1(lam, nonneg=True), whose code is max(u - lam, 0).

    lam: the threshold, in the units of the rows.  It has no default, since that unit is not known here; the deviation
    of the rows is a good start, and `train(..., l0=32)` then adjusts lam to 32 non-zeros a row.

    Raises `Error` for no lam, and for lam < 0.

    >>> import proxsae as px
    >>> px.relu_sae(d_in=8, d_sae=32, lam=0.5).penalty
    L1(lam=0.5, nonneg=True)
    """
    if lam is None:
        msg = f"relu_sae needs lam, a threshold in the units of the rows: {START.format('lam')}"
        raise Error(msg)
    return SAE(d_in, d_sae, L1(lam, nonneg=True))


def jumprelu_sae(d_in: int, d_sae: int, threshold: float | None = None, bandwidth: float = 0.1) -> SAE:
    """The JumpReLU SAE: `SAE` with L0(threshold^2 / 2, nonneg=True), whose code is u where u > threshold, else 0.

    threshold: where it starts, in the units of the rows, for which it has no default; it is trained, one per latent.
    bandwidth: of the kernel through which it gets its gradient, in the same units; half of the threshold is usual.

    Raises `Error` for no threshold, threshold < 0 and bandwidth <= 0.

    >>> import proxsae as px
    >>> px.jumprelu_sae(d_in=8, d_sae=32, threshold=0.5, bandwidth=0.25).threshold.shape
    torch.Size([32])
    """
    if threshold is None:
        msg = f"jumprelu_sae needs a threshold in the units of the rows: {START.format('threshold')}"
        raise Error(msg)
    threshold = check_number("threshold", threshold, ">= 0")
    return SAE(d_in, d_sae, L0(threshold**2 / 2, nonneg=True, bandwidth=bandwidth))


def topk_sae(d_in: int, d_sae: int, k: int) -> SAE:
    """The TopK SAE: `SAE` with KSparse(k, nonneg=True), whose code is max(u, 0) on its k largest entries.

    >>> import proxsae as px
    >>> px.topk_sae(d_in=8, d_sae=32, k=4).penalty
    KSparse(k=4, nonneg=True)
    """
    return SAE(d_in, d_sae, KSparse(k, nonneg=True))


def abstopk_sae(d_in: int, d_sae: int, k: int) -> SAE:
    """The AbsTopK SAE: `SAE` with KSparse(k), whose code is u on its k largest magnitudes, with their signs.

    Beside TopK its codes are closer to u (prop-abstopk-closer), and it is a TopK SAE of twice the width with tied
    weights (prop-splitting-codes).

    >>> import proxsae as px
    >>> px.abstopk_sae(d_in=8, d_sae=32, k=4).penalty
    KSparse(k=4, nonneg=False)
    """
    return SAE(d_in, d_sae, KSparse(k))
