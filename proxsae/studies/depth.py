"""The unrolling-depth study: train the four published SAEs with one encoder step, then take more steps, and measure.

Nothing is retrained: the rows of one SAE and rule differ only in the number of encoder steps (`SAE.unrolled`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxsae import metrics
from proxsae.certificates import fixed_point_residual, lipschitz
from proxsae.conventions import Error, check_finite, check_seed
from proxsae.iteration import ExactStep, Lipschitz, Refit, StepRule
from proxsae.penalties import L1
from proxsae.sae import SAE, abstopk_sae, jumprelu_sae, relu_sae, topk_sae
from proxsae.training import train

STEPS = (1, 2, 4, 8, 16)
LR = 3e-3  # higher than the default of `train`, since runs are short
RULES: dict[str, StepRule] = {"lipschitz": Lipschitz(), "exact": ExactStep(), "refit": Refit()}


def published(d_in: int, d_sae: int, k: int, scale: float) -> dict[str, Callable[[], SAE]]:
    """The four published SAEs; thresholds start at `scale`, the deviation of a coordinate, and adapt in training."""
    return {
        "relu": lambda: relu_sae(d_in, d_sae, scale),
        "jumprelu": lambda: jumprelu_sae(d_in, d_sae, scale, bandwidth=scale / 2),
        "topk": lambda: topk_sae(d_in, d_sae, k),
        "abstopk": lambda: abstopk_sae(d_in, d_sae, k),
    }


def depth(
    train_rows: Any,
    test_rows: Any,
    *,
    d_sae: int,
    k: int,
    train_steps: int,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Rows of measurements: SAE x step rule x number of encoder steps, on held-out rows (n, d_in).

    All four SAEs are asked for k non-zeros a row: k itself for TopK and AbsTopK, an adjusted lam for ReLU and JumpReLU.
    `report` is told what is going on.  Raises `Error` for a k above d_sae, and as `train` does.
    """
    check_seed(seed)
    if not 1 <= k <= d_sae:
        msg = f"k={k} must be between 1 and d_sae={d_sae}"
        raise Error(msg)
    x_train, x_test = (torch.tensor(np.asarray(a), dtype=torch.float32, device=device) for a in (train_rows, test_rows))
    check_finite("the training rows, in float32,", x_train)
    check_finite("the held-out rows, in float32,", x_test)
    scale = float((x_train - x_train.mean(dim=0)).square().mean()) ** 0.5
    rows: list[dict[str, Any]] = []
    for name, make in published(x_train.shape[1], d_sae, k, scale).items():
        report(f"{name}: training {train_steps} steps")
        torch.manual_seed(seed)
        sae = make().to(device)
        train(sae, x_train, train_steps, lr=LR, seed=seed, l0=k, progress=progress)
        for rule_name, rule in RULES.items():
            if rule_name == "refit" and isinstance(sae.penalty, L1):
                continue  # early l1 codes are dense here, and a least-squares fit of each is no cheap step
            report(f"{name}: unrolling with {rule_name} steps")
            rows += ({"sae": name, "rule": rule_name, **row} for row in _unroll(sae, rule, x_test))
    return rows


@torch.no_grad()
def _unroll(sae: SAE, rule: StepRule, x: Tensor) -> Iterator[dict[str, Any]]:
    """Measurements of one SAE under one rule, for every number of steps, from one walk; only the walk is timed."""
    L, R, before, seconds = lipschitz(sae.W_dec), sae.penalty, None, 0.0
    sae.encode(x)  # so that no rule pays for waking the machine up
    walk = sae.unrolled(STEPS[-1], rule).walk(x)
    for steps in range(1, STEPS[-1] + 1):
        started = time.perf_counter()
        point = next(walk)
        if x.is_cuda:
            torch.cuda.synchronize()
        seconds += time.perf_counter() - started
        if steps not in STEPS:
            continue
        z, xhat = point.z, sae.decode(point.z, like=x)
        residual = fixed_point_residual(x, sae.W_dec, z, R, 1 / L, sae.b_dec)
        yield {
            "steps": steps,
            "nmse": metrics.nmse(x, xhat),
            "explained_variance": metrics.explained_variance(x, xhat),
            "l0": metrics.l0(z),
            "objective": float((0.5 * (x - xhat).square().sum(dim=-1) + R.value(z)).mean()),
            "fixed_point_residual": metrics.ratio(residual.sum(), z.norm(dim=-1).sum()),
            "support_change": None if before is None else metrics.support_change(before, z),
            "dead": metrics.dead_fraction(z),
            "cost": float(point.spent.mean()),
            "seconds": seconds,
        }
        before = z
