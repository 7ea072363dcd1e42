"""Do more encoder steps raise explained variance and lower F1, as matching pursuit does?  A sixteenth of SynthSAEBench.

Rows are `px.data.planted(kind="synthsae")` with 1024 latents of width 192 and 8 non-zeros a row; SAEs have 256 latents
and 6 non-zeros, about what the 256 commonest true latents have (at full size: 34.5 and 25).

    python benchmarks/synthsae.py work                        # all that is printed in the README
    python benchmarks/synthsae.py work --seeds 1 --samples 100000

Measurements are kept in the folder, and a call goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import proxsae as px
from proxsae import metrics
from proxsae.disk import replace_file
from proxsae.studies.density import matched
from proxsae.studies.statistics import over_seeds

FEATURES, WIDTH, DENSITY = 1024, 192, 8
LATENTS, K = 256, 6
ROWS, HELD, BATCH = 240_000, 20_000, 256  # distinct rows to train on; rows to measure on
DEPTHS = (1, 2, 4, 16)
MEASURES = ("F1", "MCC", "uniqueness", "EV", "shrinkage", "L0", "dead")
SHARES = ("F1", "MCC", "uniqueness", "dead")
PAPER = {  # F1, MCC, uniqueness, EV at full size, L0 = 25
    "BatchTopK": (0.7316, 0.7574, 0.9837, 0.7923), "JumpReLU": (0.7317, 0.7527, 0.9885, 0.7951),
    "MP": (0.4464, 0.6930, 0.8281, 0.8351), "ReLU": (0.5562, 0.6039, 0.8976, 0.7654),
}  # fmt: skip


class Rows(NamedTuple):
    """Rows to train on; held-out rows with their true codes; the true atoms."""

    x: Tensor
    held: Tensor
    z: Tensor
    D: Tensor


def rows(seed: int) -> Rows:
    """A problem, drawn piece by piece."""
    D, parts = None, []
    for i in range((ROWS + HELD) // 4000):
        drawn = px.data.planted(4000, WIDTH, FEATURES, DENSITY, kind="synthsae", seed=1000 * seed + i, D=D)
        D = drawn.D
        parts.append((drawn.x.astype(np.float32), drawn.z.astype(np.float32) if i < HELD // 4000 else None))
    x = torch.tensor(np.concatenate([part for part, _ in parts]))
    z = torch.tensor(np.concatenate([codes for _, codes in parts if codes is not None]))
    return Rows(x[HELD:], x[:HELD], z, torch.tensor(D))


@torch.no_grad()
def measured(sae: px.SAE, data: Rows) -> dict[str, float]:
    """The measures of the benchmark, on held-out rows."""
    z = torch.cat([sae.encode(part) for part in data.held.split(BATCH)])
    xhat = sae.decode(z)
    return {
        "F1": metrics.latent_f1(z, data.z, sae.W_dec, data.D),
        "MCC": metrics.recovery(sae.W_dec, data.D),
        "uniqueness": metrics.uniqueness(sae.W_dec, data.D),
        "EV": metrics.explained_variance(data.held, xhat),
        "shrinkage": metrics.shrinkage(data.held, xhat),
        "L0": metrics.l0(z),
        "dead": metrics.dead_fraction(z),
    }


def topk(steps: int = 1) -> px.SAE:
    """A TopK SAE that is trained with so many exact steps."""
    return px.SAE(WIDTH, LATENTS, px.KSparse(K, nonneg=True), steps, px.ExactStep())


KINDS: dict[str, Callable[[float], px.SAE]] = {  # by the deviation of the rows, where thresholds start
    "TopK": lambda theta: topk(),
    "BatchTopK": lambda theta: px.SAE(WIDTH, LATENTS, px.BatchKSparse(K, nonneg=True)),
    "JumpReLU": lambda theta: px.jumprelu_sae(WIDTH, LATENTS, theta, theta / 2),
    "ReLU": lambda theta: px.relu_sae(WIDTH, LATENTS, theta),
    "MP": lambda theta: px.SAE(WIDTH, LATENTS, px.KSparse(K, nonneg=True), K, px.MatchingPursuit()),
    "TopK trained at T=2": lambda theta: topk(2),
    "TopK trained at T=4": lambda theta: topk(4),
    "TopK trained at T=16": lambda theta: topk(16),
}


def at_depths(kind: str, sae: px.SAE, data: Rows) -> Iterator[tuple[str, px.SAE]]:
    """The SAE as it was trained; those of one step also with more, at the same density; TopK also by pursuit."""
    if kind == "BatchTopK":
        sae = sae.thresholded()
    yield kind, matched(sae, data.x[:4096], K)[0]
    if sae.steps == 1:
        for T in DEPTHS[1:]:
            yield f"{kind}, T={T}", matched(sae.unrolled(T, px.ExactStep()), data.x[:4096], K)[0]
    if kind == "TopK":
        yield "TopK, pursuit", sae.unrolled(K, px.MatchingPursuit())


def main() -> None:
    """Measure what is not in the journal, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", help="the folder of the journal")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=500_000, help="rows that an SAE is trained on")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    journal = Path(given.work) / "synthsae.json"
    journal.parent.mkdir(parents=True, exist_ok=True)
    done: dict[str, dict[str, dict[str, float]]] = json.loads(journal.read_text()) if journal.exists() else {}
    for seed in range(given.seeds):
        data = None
        for kind in given.kinds:
            key = f"{kind} seed={seed} samples={given.samples}"
            if key in done:
                continue
            data = data or rows(seed)
            torch.manual_seed(seed)
            sae = KINDS[kind](float(data.x.std()))
            l0 = K if hasattr(sae.penalty, "lam") else None
            px.train(sae, data.x, given.samples // BATCH, BATCH, seed=seed, l0=l0, progress=False)
            done[key] = {name: measured(deep, data) for name, deep in at_depths(kind, sae, data)}
            replace_file(journal, json.dumps(done, indent=1).encode())
            print(key, flush=True)
    show([row for key, row in done.items() if key.endswith(f"samples={given.samples}")])


def show(found: list[dict[str, dict[str, float]]]) -> None:
    """Means with 95 % intervals over seeds, beside the figures at full size; and what depth changes, seed by seed."""
    by_name: dict[str, list[dict[str, float]]] = {}
    for name, measures in (item for part in found for item in part.items()):
        by_name.setdefault(name, []).append(measures)
    print(f"| SAE | {' | '.join(MEASURES)} |\n|---|{'---|' * len(MEASURES)}")
    for name, some in by_name.items():
        cells = [interval([row[key] for row in some], share=key in SHARES) for key in MEASURES]
        print(f"| {name} | {' | '.join(cells)} |")
        if name in PAPER:
            print(f"| full size, published | {' | '.join(f'{a:.3f}' for a in PAPER[name])} | | | |")
    print("\n| against one step of the same kind, or of TopK | F1 | EV |\n|---|---|---|")
    for name, some in by_name.items():
        first = name.partition(",")[0].partition(" trained")[0]
        base = by_name["TopK" if name == "MP" else first]
        if base is not some and len(base) == len(some):
            gains = [[row[key] - one[key] for row, one in zip(some, base, strict=True)] for key in ("F1", "EV")]
            print(f"| {name} | {' | '.join(map(interval, gains))} |")


def interval(values: list[float], share: bool = False) -> str:
    """A mean with its 95 % interval over seeds."""
    found = over_seeds(values, share)
    return f"{found.mean:.3f}" + (f" ({found.low:.3f} to {found.high:.3f})" if found.n > 1 else "")


if __name__ == "__main__":
    main()
