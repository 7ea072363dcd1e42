"""What the benchmarks share: peers run interleaved in one process, and what is printed are ratios with quartiles."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

Calls = Mapping[str, Callable[[], object]]


def parser(doc: str, **defaults: int) -> argparse.ArgumentParser:
    """Command line of a benchmark: its sizes, and --threads, --rounds, --device, --dtype."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name, default in (defaults | {"threads": 2, "rounds": 15}).items():
        made.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    made.add_argument("--device", default="cpu")
    made.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    return made


def begin(given: argparse.Namespace) -> None:
    """Fix threads and seed, and say what runs where."""
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    where = torch.cuda.get_device_name() if given.device.startswith("cuda") else f"{given.threads} threads"
    sizes = ", ".join(f"{k} {v}" for k, v in vars(given).items() if k not in ("device", "threads"))
    print(f"{sizes}; {where}, torch {torch.__version__}")


def rows(kind: str, n: int, d: int, given: argparse.Namespace) -> Tensor:
    """Rows (n, d): Gaussian, or heavy-tailed (Student's t with 3 degrees of freedom)."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((n, d)) if kind == "Gaussian" else draw.standard_t(3, (n, d))
    return torch.tensor(x, dtype=getattr(torch, given.dtype), device=given.device)


def seconds(call: Callable[[], object], device: str) -> float:
    """Wall-clock time of one call, the device's queue included."""
    start = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratios(calls: Calls, given: argparse.Namespace) -> dict[str, np.ndarray]:
    """Per peer the median and quartiles of its time over that of the first peer, round by round."""
    for call in calls.values():
        seconds(call, given.device)
    times = np.array([[seconds(call, given.device) for call in calls.values()] for _ in range(given.rounds)])
    found = np.quantile(times / times[:, :1], (0.5, 0.25, 0.75), axis=0)
    return dict(zip(calls, found.T, strict=True))


def show(title: str, table: Mapping[str, np.ndarray]) -> None:
    """Print one line a peer: median (first to third quartile)."""
    print(title)
    for name, (median, low, high) in table.items():
        print(f"  {name:44} {median:7.2f}  ({low:.2f} to {high:.2f})")
