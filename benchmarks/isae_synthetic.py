"""What are steps worth on the problem of iSAE, with the true dictionary and with one that is learned?

Rows of norm 1: atoms uniform on the sphere, of a standard normal code the k largest |z|, no noise (ICML 2026).  The
table `oracle` codes rows by the true atoms at the paper's size.  The table `trained` trains signed k-sparse SAEs on a
quarter of it, and judges them on fresh rows; then OMP and five exact steps code the same rows by what they learned.

    python benchmarks/isae_synthetic.py work                   # all that is printed in the README
    python benchmarks/isae_synthetic.py work --tables oracle
    python benchmarks/isae_synthetic.py work --tables trained --seeds 0 --steps 50

Measurements are kept in the folder, and a call goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import proxsae as px
from proxsae import metrics
from proxsae.disk import replace_file


class Size(NamedTuple):
    """Width of rows, atoms, non-zeros."""

    d: int
    P: int
    k: int


FULL, SCALED = Size(768, 4096, 40), Size(192, 1024, 10)
ROWS, HELD, BATCH = 200_000, 2000, 512  # of the scaled problem: to train on, to judge by, of a step
RATE = 6e-3  # three times the default, for short runs
PAPER = {"one step": (0.318, 0.935, 0.487), "S, from I - D^T D / L": (0.001, 0.999, 0.997)}  # at full size
KINDS: dict[str, tuple[float, Any]] = {
    "one step": (1, None), "ExactStep": (5, px.ExactStep()), "S, from I - D^T D / L": (5, px.LISTA()),
    "S, from 0": (5, px.LISTA(start="zero")), "T = inf": (math.inf, None),
}  # fmt: skip


def problem(size: Size, n: int, seed: int, D: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (n, d) of norm 1, the atoms, and the codes."""
    draw = torch.Generator().manual_seed(seed)
    if D is None:
        D = torch.nn.functional.normalize(torch.randn(size.P, size.d, generator=draw), dim=1)
    x, z = torch.empty(n, size.d), torch.zeros(n, size.P)
    for rows, codes in zip(x.split(10_000), z.split(10_000), strict=True):
        dense = torch.randn(codes.shape, generator=draw)
        at = dense.abs().topk(size.k).indices
        codes.scatter_(1, at, dense.gather(1, at))
        norm = (codes @ D).norm(dim=1, keepdim=True)
        codes /= norm
        torch.matmul(codes, D, out=rows)
    return x, D, z


def judged(x: Tensor, z: Tensor, own: Tensor, D: Tensor, truth: Tensor, bias: Tensor | None = None) -> dict[str, float]:
    """Error of codes z by the atoms `own`, and their supports once these are matched with the true ones."""
    xhat = z @ own if bias is None else z @ own + bias
    matched = metrics.match(own, D) if own is not D else metrics.Match(*2 * (torch.arange(len(D)),), torch.ones(len(D)))
    return {"nmse": metrics.nmse(x, xhat), "dcs": float(matched.cosine.abs().mean()),
            "iou": metrics.code_iou(z, truth, matched)}  # fmt: skip


# With the true dictionary


@torch.no_grad()
def oracle(seed: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Errors and supports by the true atoms at full size."""
    x, D, z = problem(FULL, 200, seed)
    k = FULL.k
    for nonneg in (False, True):
        R = px.KSparse(k, nonneg=nonneg)
        one = R.prox(x @ D.T, step=1.0)
        yield f"one step, mu = 1{', TopK' if nonneg else ''}", judged(x, one, D, D, z)
    R = px.KSparse(k)

    def codes(T: int, rule: Any) -> Tensor:
        return px.Unrolled(D, R, T, rule)(x)

    def fixed(T: int, mu: float) -> Tensor:
        point = torch.zeros_like(z)
        for _ in range(T):
            point = R.prox(point - mu * (point @ D - x) @ D.T, step=mu)
        return point

    plans: dict[str, Callable[[], Tensor]] = {}
    for T in (1, 2, 3, 5):
        plans[f"ExactStep, T = {T}"] = lambda T=T: codes(T, px.ExactStep())
    for T in (1, 2):
        plans[f"Refit, T = {T}"] = lambda T=T: codes(T, px.Refit())
    for mu in (0.5, 0.3):
        for T in (1, 3, 5):
            plans[f"step {mu}, T = {T}"] = lambda T=T, mu=mu: fixed(T, mu)
    plans["OMP"] = lambda: codes(k, px.OMP())
    plans["T = inf"] = lambda: px.solve(x, D, R).codes
    for name, make in plans.items():
        began = time.process_time()
        yield name, judged(x, make(), D, D, z) | {"seconds": time.process_time() - began}


# With a dictionary that is learned


def trained(name: str, seed: int, steps: int) -> Iterator[tuple[str, dict[str, float]]]:
    """One SAE on rows of the scaled problem; its own codes of fresh rows, and better ones by what it learned."""
    T, rule = KINDS[name]
    x, D, _ = problem(SCALED, ROWS, seed)
    R = px.KSparse(SCALED.k)
    torch.manual_seed(1000 + seed)  # not that of the problem, or the atoms would start as the true ones
    sae, began = px.SAE(SCALED.d, SCALED.P, R, T, rule), time.process_time()
    px.train(sae, x, steps, BATCH, RATE, seed, progress=False)
    cost = {"seconds": time.process_time() - began}
    x, _, z = problem(SCALED, HELD, 10_000 + seed, D)
    with torch.no_grad():
        W, bias = sae.W_dec.detach(), sae.b_dec.detach()
        yield name, judged(x, sae.encode(x), W, D, z, bias) | cost
        for other, more, step in (("ExactStep", 5, px.ExactStep()), ("OMP", SCALED.k, px.OMP())):
            better = px.Unrolled(W, R, more, step)(x - bias)
            yield f"{name}: its atoms by {other}", judged(x, better, W, D, z, bias)


def main() -> None:
    """Measure what is not in the journal, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", help="the folder of the journal")
    parser.add_argument("--tables", nargs="+", choices=("oracle", "trained"), default=["oracle", "trained"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=500, help="of every training")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    journal = Path(given.work) / "isae_synthetic.json"
    journal.parent.mkdir(parents=True, exist_ok=True)
    done: dict[str, dict[str, dict[str, float]]] = json.loads(journal.read_text()) if journal.exists() else {}
    plans: dict[str, dict[str, Callable[[], Iterator[tuple[str, dict[str, float]]]]]] = {t: {} for t in given.tables}
    for seed in given.seeds:
        if "oracle" in plans:
            plans["oracle"][f"oracle seed={seed}"] = partial(oracle, seed)
        for name in given.kinds if "trained" in plans else ():
            key = f"trained {name} steps={given.steps} seed={seed}"
            plans["trained"][key] = partial(trained, name, seed, given.steps)
    for table, some in plans.items():
        for key, plan in some.items():
            if key not in done:
                done[key] = dict(plan())
                replace_file(journal, json.dumps(done, indent=1).encode())
                print(key, flush=True)
        show(table, [done[key] for key in some])


def show(table: str, found: list[dict[str, dict[str, float]]]) -> None:
    """Means with the least and the largest over seeds, beside the paper."""
    rows: dict[str, list[dict[str, float]]] = {}
    for name, measures in (item for part in found for item in part.items()):
        rows.setdefault(name, []).append(measures)
    names = ["NMSE", "IoU"] if table == "oracle" else ["NMSE", "DCS", "IoU"]
    head = [table, *names, "seconds", *(["paper: MSE, DCS, IoU"] if table == "trained" else [])]
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name, some in rows.items():
        cells = [name, *(spread([row[key.lower()] for row in some]) for key in names)]
        cells.append(f"{np.mean([row['seconds'] for row in some]):.3g}" if "seconds" in some[0] else "")
        if table == "trained":
            cells.append(", ".join(f"{a:.3f}" for a in PAPER.get(name, ())))
        print(f"| {' | '.join(cells)} |")


def spread(values: list[float]) -> str:
    """A mean, and the least and the largest of the seeds where they differ."""
    mean, low, high = (f"{v:.3f}" if v >= 1e-3 else f"{v:.0e}" for v in (np.mean(values), min(values), max(values)))
    return mean + (f" ({low} to {high})" if low != high else "")


if __name__ == "__main__":
    main()
