"""The training loop: Adam with warm-up and decay, unit-norm atoms, dead-latent revival.

    min over weights of  E[ 1/2 ||x - xhat||^2 + R(z) ] + 1/32 E[ 1/2 ||e - ehat||^2 ]

The last term (AuxK, Gao et al. 2024) lets latents that have not fired for a while reconstruct the error e = x - xhat.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from proxsae.conventions import Error, check_count, check_seed
from proxsae.functional import count_above, k_sparse, prox
from proxsae.penalties import L0, KSparse
from proxsae.sae import SAE

WARM_UP, DECAY = 0.05, 0.2  # shares of the run in which the learning rate rises from 0, and falls to 0
AUX_SHARE = 1 / 32
DEAD_AFTER = 0.1  # share of the run without firing after which a latent counts as dead
SPARSITY_GAIN = 0.03  # how fast lam follows a wrong L0, per step


def train(
    sae: SAE,
    activations: Any,
    steps: int = 1000,
    batch_size: int = 512,
    lr: float = 3e-3,
    seed: int = 0,
    l0: float | None = None,
    progress: bool | None = None,
) -> dict[str, float]:
    """Train `sae` in place on rows (n, d_in) and return the means of the last tenth of the run: loss, nmse, l0, dead.

    Rows are drawn in shuffled epochs from `seed`; the same call on the same machine gives the same weights.  `lr` is
    Adam's rate in units where the rows' mean squared deviation is d_in; the SAE itself stays in the units of the data.
    For L0 lam starts as given and the threshold is trained; any other R is added to the loss itself (an indicator adds
    nothing).  `l0` asks for that many non-zeros per row: lam, where R has one, is then adjusted during training.
    `progress` shows a bar; by default on a terminal.

    Raises `Error` for rows that are not finite or do not fit, and for a loss that is no longer finite.
    """
    steps, batch_size = check_count("steps", steps, 1), check_count("batch_size", batch_size, 1)
    check_seed(seed)
    for name, value in (("lr", lr), ("l0", 1.0 if l0 is None else l0)):
        if not 0 < value < math.inf:
            msg = f"{name}={value} must be finite and > 0"
            raise Error(msg)
    x = sae.rows(activations)
    mean = x.mean(dim=0)
    spread = float((x - mean).square().sum(dim=1).mean() / sae.d_in) ** 0.5
    if not 0 < spread < math.inf:
        msg = f"the {len(x)} rows of activations are equal, or too large for {x.dtype}: they deviate by {spread}"
        raise Error(msg)
    if l0 is not None and hasattr(sae.penalty, "lam") and not _mean_lam(sae):
        msg = f"l0={l0} cannot be reached from lam=0: lam is adjusted by factors, so the penalty needs one > 0"
        raise Error(msg)
    if not bool(sae.b_dec.any()):
        sae.b_dec.data.copy_(mean)
    sae.rescale(1 / spread)
    try:
        return _loop(sae, x, 1 / spread, steps, batch_size, lr, seed, l0, progress)
    finally:  # also after Ctrl-C the SAE is in the units of the data
        sae.rescale(spread)


def _loop(
    sae: SAE,
    x: Tensor,
    unit: float,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    l0: float | None,
    progress: bool | None,
) -> dict[str, float]:
    lam, device, generator = _mean_lam(sae), x.device, torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(sae.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda t: _rate(t, steps))
    quiet = torch.zeros(sae.d_sae, device=device)  # steps since each latent fired
    history: list[Tensor] = []
    order = torch.empty(0, dtype=torch.int64)
    for step in _bar(range(steps), progress):
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(x), generator=generator)])
        batch, order = x[order[:batch_size].to(device)] * unit, order[batch_size:]
        dead = quiet > DEAD_AFTER * steps
        loss, error, fired = _loss(sae, batch, lam, dead)
        if not bool(loss.isfinite()):
            msg = f"the loss is {loss.item()} at step {step}: lr={lr:g} is too high, or the rows have an outlier"
            raise Error(msg)
        optimiser.zero_grad()
        loss.backward()
        _keep_unit_norm_gradient(sae)
        optimiser.step()
        schedule.step()
        sae.W_dec.data = normalize(sae.W_dec.data, dim=1)
        quiet = torch.where(fired > 0, 0, quiet + 1)
        density = float(fired.sum()) / batch_size
        if l0 is not None:
            lam = _adjust(sae, lam, density / l0)
        unexplained = error.square().sum() / batch.square().sum()
        history.append(torch.stack([loss.detach(), unexplained, loss.new_tensor(density), dead.float().mean()]))
    tail = torch.stack(history[-max(1, steps // 10) :]).mean(dim=0)
    return dict(zip(("loss", "nmse", "l0", "dead"), tail.tolist(), strict=True))


def _loss(sae: SAE, batch: Tensor, lam: float, dead: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The training loss of a batch; its error xhat - x, without gradient; and how often each latent fired."""
    R, penalty = sae.penalty, batch.new_zeros(())
    if isinstance(R, KSparse):
        xhat, codes = sae.reconstruct(batch)
        error = xhat - batch
        fired = torch.bincount(codes.indices[codes.values != 0], minlength=sae.d_sae)
    else:
        u = sae.pre_activations(batch)
        z = sae.refine(batch, prox(R, u))
        error, fired = sae.decode(z) - batch, (z != 0).sum(dim=0)
        if isinstance(R, L0):
            signed = torch.relu(u) if R.nonneg else u
            penalty = lam * count_above(signed, sae.threshold, R.bandwidth).mean()
        elif not R.indicator:
            penalty = R.value(z).mean()
    revival = AUX_SHARE * _revival(sae, batch, error.detach(), dead)
    return 0.5 * error.square().sum(dim=1).mean() + revival + penalty, error.detach(), fired


def _mean_lam(sae: SAE) -> float:
    lam = getattr(sae.penalty, "lam", 0.0)
    return float(torch.as_tensor(np.array(lam) if not isinstance(lam, Tensor) else lam.detach()).mean())


def _adjust(sae: SAE, lam: float, ratio: float) -> float:
    """Lam, a little larger where codes are too dense by `ratio`, a little smaller where too sparse."""
    factor = float(np.exp(SPARSITY_GAIN * np.clip(ratio - 1, -1, 1)))
    sae.scale_lam(factor)
    return lam * factor


def _revival(sae: SAE, batch: Tensor, error: Tensor, dead: Tensor) -> Tensor:
    """AuxK: 1/2 ||e - ehat||^2, ehat made of the largest pre-activations of dead latents, by magnitude if signed."""
    (latents,) = dead.nonzero(as_tuple=True)
    if not len(latents):
        return error.new_zeros(())
    u = (batch - sae.b_dec) @ sae.W_enc[:, latents] + sae.b_enc[latents]
    ehat = k_sparse(torch.relu(u) if sae.penalty.nonneg else u, max(1, sae.d_in // 2)) @ sae.W_dec[latents]
    return 0.5 * (ehat + error).square().sum(dim=1).mean()  # `error` is xhat - x


def _keep_unit_norm_gradient(sae: SAE) -> None:
    """Take out of the atoms' gradients what would only change their norms."""
    W, grad = sae.W_dec, sae.W_dec.grad
    if grad is not None:
        grad -= (grad * W.data).sum(dim=1, keepdim=True) * W.data


def _rate(t: int, steps: int) -> float:
    """Share of lr at step t: linear warm-up, then constant, then linear decay."""
    return min(1.0, (t + 1) / max(1, WARM_UP * steps), (steps - t) / max(1, DECAY * steps))


def _bar(steps: Iterable[int], progress: bool | None) -> Iterable[int]:
    if not (sys.stderr.isatty() if progress is None else progress):
        return steps
    try:
        from tqdm import tqdm
    except ImportError:
        if progress is None:
            return steps
        msg = "tqdm is missing: pip install 'proxsae[study]'"
        raise Error(msg) from None
    return tqdm(steps, desc="train", unit="step", leave=False)
