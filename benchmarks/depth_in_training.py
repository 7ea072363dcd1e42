"""SAEs trained through T encoder steps, T = 1, 2, 4, 16 and infinity, and their error at each depth of inference.

    python benchmarks/depth_in_training.py --seeds 3 --train-steps 200

On the packaged rows, at k non-zeros a row.  A row of the table is a T in training, a column a T at inference; at
infinity the codes are those of `solve` from 0, in training with the gradient of the least value (thm-envelope), and
W_enc is not used.
"""

from __future__ import annotations

import argparse
import math
import time

import torch

import proxsae as px
from proxsae.studies.statistics import over_seeds

DEPTHS = (1, 2, 4, 16, math.inf)


def trained(depth: float, seed: int, steps: int, k: int, x: torch.Tensor) -> tuple[px.SAE, float]:
    """An AbsTopK SAE trained through that many exact steps, and the seconds that took."""
    torch.manual_seed(seed)
    sae = px.SAE(x.shape[1], 3 * x.shape[1], px.KSparse(k), depth, None if depth == math.inf else px.ExactStep())
    began = time.perf_counter()
    px.train(sae, x, steps, batch_size=256, lr=3e-3, seed=seed, progress=False)
    return sae, time.perf_counter() - began


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train-steps", type=int, default=200)
    parser.add_argument("--k", type=int, default=32)
    given = parser.parse_args()
    train, test = (torch.tensor(rows, dtype=torch.float32) for rows in px.data.packaged())
    test = test[:512]
    print(
        f"nmse of {len(test)} held-out rows, mean over {given.seeds} seeds [95 %]; {given.train_steps} training steps"
    )
    print(" | ".join(["T in training", *(f"T = {t}" for t in DEPTHS), "seconds of training over T = 1"]))
    plain = [0.0] * given.seeds
    for depth in DEPTHS:
        errors: dict[float, list[float]] = {t: [] for t in DEPTHS}
        times = []
        for seed in range(given.seeds):
            sae, seconds = trained(depth, seed, given.train_steps, given.k, train)
            if depth == 1:
                plain[seed] = seconds
            times.append(seconds / plain[seed])
            for t in DEPTHS:
                errors[t].append(px.evaluate(sae.unrolled(t, None if t == math.inf else px.ExactStep()), test)["nmse"])
        found = [over_seeds(errors[t]) for t in DEPTHS]
        cells = [f"{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in found]
        print(" | ".join([f"{depth}", *cells, f"{sum(times) / len(times):.1f}"]), flush=True)


if __name__ == "__main__":
    main()
