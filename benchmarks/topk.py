"""What does the tie rule cost?  `top_k` (lowest index first) against torch.topk alone and against a full stable sort.

All peers run interleaved in one process on the same rows; printed are ratios to torch.topk, medians with quartiles.
Rows of small integers tie at nearly every boundary: the worst case for the correction.

    python benchmarks/topk.py --rows 1024 --width 16384 --k 32 --threads 2
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from proxsae.pytorch.topk import top_k

PEERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "torch.topk": lambda u, k: u.abs().topk(k).indices,
    "top_k": top_k,
    "stable sort": lambda u, k: u.abs().sort(dim=-1, descending=True, stable=True).indices[..., :k],
}


def seconds(call: Callable[[], Tensor]) -> float:
    """Wall-clock time of one call, the device's queue included."""
    start = time.perf_counter()
    if call().is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Time every peer on every kind of row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rows", 1024), ("width", 16384), ("k", 32), ("threads", 2), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    shape = (given.rows, given.width)
    kinds = {
        "Gaussian float32": torch.randn(shape),
        "Gaussian bfloat16": torch.randn(shape).bfloat16(),
        "many ties": torch.randint(-9, 10, shape).float(),
    }
    print(f"{given.rows} rows of {given.width}, k = {given.k}, {given.threads} threads, torch {torch.__version__}")
    for kind, rows in kinds.items():
        u = rows.to(given.device)
        calls = [partial(call, u, given.k) for call in PEERS.values()]
        for call in calls:
            call()
        times = np.array([[seconds(call) for call in calls] for _ in range(given.rounds)])
        ratios = np.quantile(times / times[:, :1], (0.5, 0.25, 0.75), axis=0)
        cells = [f"{name} x{m:.2f} ({lo:.2f} to {hi:.2f})" for name, (m, lo, hi) in zip(PEERS, ratios.T, strict=True)]
        print(f"{kind:18}" + "   ".join(cells))


if __name__ == "__main__":
    main()
