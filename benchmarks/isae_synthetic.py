"""What are steps worth on the problem of iSAE, with the true dictionary and with one that is learned?

Rows of norm 1: atoms uniform on the sphere, of a standard normal code the k largest |z|, no noise (ICML 2026).  The
table `oracle` codes rows by the true atoms at the paper's size.  The table `trained` trains signed k-sparse SAEs on a
quarter of it, and judges them on fresh rows; then OMP and five exact steps code the same rows by what they learned.

    python benchmarks/isae_synthetic.py work                   # all that is printed in the README
    python benchmarks/isae_synthetic.py work --tables oracle
    python benchmarks/isae_synthetic.py work --tables trained --seeds 1 --minutes 1

Measurements are kept in the folder, and a call goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
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
ROWS, HELD, BATCH, STEPS = 200_000, 2000, 512, 10_000  # of the scaled problem; so many steps at most
TIMED = 3  # steps by whose time the length of a run is chosen
PAPER = {"one step": (0.318, 0.935, 0.487), "S, from I - D^T D / L": (0.001, 0.999, 0.997)}  # at full size
KINDS: dict[str, tuple[float, Any]] = {
    "one step": (1, None), "S, from 0": (5, px.LISTA(start="zero")), "S, from I - D^T D / L": (5, px.LISTA()),
    "ExactStep": (5, px.ExactStep()), "T = inf": (math.inf, None),
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


def steps_in(make: Callable[[], px.SAE], x: Tensor, minutes: float) -> int:
    """How many steps of training take so many minutes of a processor."""
    sae = make()
    px.train(sae, x, 1, BATCH, progress=False)
    began = time.process_time()
    px.train(sae, x, TIMED, BATCH, progress=False)
    each = (time.process_time() - began) / TIMED
    return max(10, min(STEPS, int(60 * minutes / each)))


def trained(name: str, seed: int, minutes: float, so_many: int | None) -> Iterator[tuple[str, dict[str, float]]]:
    """One SAE on rows of the scaled problem; its own codes of fresh rows, and better ones by what it learned."""
    T, rule = KINDS[name]
    x, D, _ = problem(SCALED, ROWS, seed)
    R = px.KSparse(SCALED.k)

    def make() -> px.SAE:
        torch.manual_seed(1000 + seed)
        return px.SAE(SCALED.d, SCALED.P, R, T, rule)

    steps = so_many or steps_in(make, x[:20_000], minutes)
    sae, began = make(), time.process_time()
    px.train(sae, x, steps, BATCH, seed=seed, progress=False)
    cost = {"steps": steps, "seconds": time.process_time() - began}
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
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=10.0, help="of one processor, that a training may take")
    parser.add_argument("--steps", type=int, help="of a training, instead of minutes")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    journal = Path(given.work) / "isae_synthetic.json"
    journal.parent.mkdir(parents=True, exist_ok=True)
    done: dict[str, dict[str, dict[str, float]]] = json.loads(journal.read_text()) if journal.exists() else {}
    length = f"steps={given.steps}" if given.steps else f"minutes={given.minutes:g}"
    for seed in range(given.seeds):
        plans: dict[str, Callable[[], Iterator[tuple[str, dict[str, float]]]]] = {}
        if "oracle" in given.tables:
            plans[f"oracle seed={seed}"] = lambda seed=seed: oracle(seed)
        for name in given.kinds if "trained" in given.tables else ():
            key = f"trained {name} {length} seed={seed}"
            plans[key] = lambda name=name, seed=seed: trained(name, seed, given.minutes, given.steps)
        for key, plan in plans.items():
            if key not in done:
                done[key] = dict(plan())
                replace_file(journal, json.dumps(done, indent=1).encode())
                print(key, flush=True)
    for table in given.tables:
        show(table, [found for key, found in done.items() if key.startswith(table)])


def show(table: str, found: list[dict[str, dict[str, float]]]) -> None:
    """Means over seeds with the spread of seeds, beside the paper."""
    rows: dict[str, list[dict[str, float]]] = {}
    for name, measures in (item for part in found for item in part.items()):
        rows.setdefault(name, []).append(measures)
    print(f"\n| {table} | NMSE | DCS | IoU | steps | seconds | paper: MSE, DCS, IoU |\n|---|---|---|---|---|---|---|")
    for name, some in rows.items():
        cells = [spread(row[key] for row in some) for key in ("nmse", "dcs", "iou")]
        cost = [f"{np.mean([row[key] for row in some]):.4g}" if key in some[0] else "" for key in ("steps", "seconds")]
        paper = ", ".join(f"{a:.3f}" for a in PAPER[name]) if table == "trained" and name in PAPER else ""
        print(f"| {name} | {' | '.join([*cells, *cost, paper])} |")


def spread(values: Iterator[float]) -> str:
    """A mean, and the least and largest of the seeds."""
    a = list(values)
    return f"{np.mean(a):.4f}" + (f" ({min(a):.4f} to {max(a):.4f})" if len(a) > 1 else "")


if __name__ == "__main__":
    main()
