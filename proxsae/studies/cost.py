"""What the k-sparse encoder costs on this machine, beside what the cost model of `pytorch/cost_model.py` says.

Every time is divided by that of the product x W_enc of the same round; the model counts flops and bytes and knows
nothing of caches, page faults or launches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from proxsae.penalties import KSparse
from proxsae.pytorch.cost_model import RHO_S, gather_cost, kind_of, look_cost
from proxsae.sae import SAE
from proxsae.sae.evaluation import evaluate
from proxsae.steps import ExactStep
from proxsae.training.state import latents_in_rows

STREAM = 10**6  # rows that share one Gram matrix


@dataclass(frozen=True)
class Cost:
    """One row: what was timed, the median and quartiles of its ratio to the product, and the model's ratio."""

    name: str
    median: float
    low: float
    high: float
    model: float


def cost(
    d_in: int, d_sae: int, k: int, rows: int, steps: int, device: str = "cpu", rounds: int = 9, seed: int = 0
) -> Iterator[Cost]:
    """Encoding, a training step, evaluation and further steps of an AbsTopK SAE in float32, over `rounds` rounds."""
    torch.manual_seed(seed)
    x = torch.randn(rows, d_in, device=device)
    sae = SAE(d_in, d_sae, KSparse(k)).to(device)
    deep = {"": sae.unrolled(steps), ", ExactStep": sae.unrolled(steps, ExactStep())}
    if steps > 1 and (frozen := deep[""].frozen(STREAM)).plan(rows).product == "gram":
        deep[", D^T D made for a stream"] = frozen

    def train() -> None:
        sae.zero_grad()
        with torch.enable_grad():
            (sae(x) - x).square().sum().backward()

    def encode(sae: SAE) -> None:
        with torch.no_grad():
            sae.encode_sparse(x)

    with latents_in_rows(sae):  # as `train` holds them
        W = sae.W_enc.detach()
        calls: list[Callable[[], object]] = [lambda: x @ W, lambda: encode(sae), train, lambda: evaluate(sae, x)]
        if steps > 1:
            calls += [partial(encode, each) for each in deep.values()]
        for call in calls:
            call()
        times = np.array([[_seconds(call, device) for call in calls] for _ in range(rounds)])
    ratios = times / times[:, :1]
    kind = kind_of(x.device.type, x.element_size())
    gather, write = gather_cost(k, d_sae, kind), RHO_S[kind] / rows
    look = look_cost(d_in, kind)
    encoding = 1 + look
    yield _row("encode: product and top-k", ratios[:, 1], encoding)
    gathers = 4 * gather + 2 * write  # decode, its transpose, two gradients
    yield _row("training step: forward, backward, four gradients", ratios[:, 2], encoding + gathers)
    yield _row("evaluate: encode, decode, and every measure", ratios[:, 3], encoding + gather)
    for i, name in enumerate(deep if steps > 1 else ()):
        further = (ratios[:, 4 + i] - ratios[:, 1]) / (steps - 1)
        stream = 1 / (steps - 1) + RHO_S[kind] * (k + 3) / d_in  # D^T x once, then Gram rows
        yield _row(
            f"a further step{name}", further, stream if "stream" in name else 1 + look + (5 if name else 1) * gather
        )


def _row(name: str, ratios: np.ndarray, model: float) -> Cost:
    median, low, high = np.quantile(ratios, (0.5, 0.25, 0.75))
    return Cost(name, float(median), float(low), float(high), model)


def _seconds(call: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
