"""How fast is a whole training run beside the trainers of SAELens and of dictionary_learning, and how good is its SAE?

All train a TopK SAE on the same rows with the same width, batch, number of steps and rate, each with its own trainer
and its own other defaults; rounds differ by the seed of weights and of rows.  Printed are steps a second over those of
proxsae in the same round, and the error on held-out rows.

    pip install sae-lens dictionary-learning
    python benchmarks/training_run.py --rows 1024 --d-in 768 --d-sae 16384 --k 32 --steps 50 --rounds 3 --threads 2
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from timing import begin, parser
from torch import Tensor

import proxsae as px
from proxsae.metrics import nmse

LR = 5e-4
Decode = Callable[[Tensor], Tensor]


def main() -> None:
    """Train each in turn, round by round, and print the ratios."""
    given = parser(__doc__, rows=1024, d_in=768, d_sae=16384, k=32, steps=50).parse_args()
    begin(given)
    seconds, errors = (np.zeros((given.rounds, len(TRAINERS))) for _ in range(2))
    for seed in range(given.rounds):
        x, held = data(given, seed)
        for i, train in enumerate(TRAINERS.values()):
            torch.manual_seed(seed)
            start = time.perf_counter()
            reconstruct = train(x, given, seed)
            seconds[seed, i] = time.perf_counter() - start
            with torch.no_grad():
                errors[seed, i] = nmse(held, reconstruct(held))
    rate = np.quantile(seconds / seconds[:, :1], (0.5, 0.25, 0.75), axis=0)
    print(f"proxsae: {given.steps / np.median(seconds[:, 0]):.2f} steps a second")
    for i, name in enumerate(TRAINERS):
        median, low, high = rate[:, i]
        told = ", ".join(f"{error:.3f}" for error in errors[:, i])
        print(f"  {name:44} {median:6.2f} times as long ({low:.2f} to {high:.2f}), held-out nmse {told}")


def data(given: argparse.Namespace, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on and 2048 others, of planted atoms, with mean squared norm d_in."""
    D, parts = None, []
    for i in range(given.steps * given.rows // 2048 + 2):
        drawn = px.data.planted(
            2048, given.d_in, 4096, given.k, dynamic_range=10.0, noise=0.02, seed=1000 * seed + i, D=D
        )
        D = drawn.D
        parts.append(torch.tensor(drawn.x, dtype=torch.float32))
    x = torch.cat(parts)
    x = x * (given.d_in / x.square().sum(dim=1).mean()).sqrt()
    return x[2048:], x[:2048]


def ours(x: Tensor, given: argparse.Namespace, seed: int) -> Decode:
    """`px.train`."""
    sae = px.topk_sae(given.d_in, given.d_sae, given.k)
    px.train(sae, x, given.steps, given.rows, LR, seed, progress=False)
    return sae


def sae_lens(x: Tensor, given: argparse.Namespace, seed: int) -> Decode:
    """SAELens' `SAETrainer` and `TopKTrainingSAE`."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig  # type: ignore[import-not-found]
    from sae_lens.config import SAETrainerConfig  # type: ignore[import-not-found]
    from sae_lens.training.sae_trainer import SAETrainer  # type: ignore[import-not-found]

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=given.d_in, d_sae=given.d_sae, k=given.k))
    config = SAETrainerConfig(given.steps * given.rows, given.rows, lr=LR, lr_end=LR)
    SAETrainer(config, sae, batches(x, given, seed)).fit()
    return sae


def dictionary_learning(x: Tensor, given: argparse.Namespace, seed: int) -> Decode:
    """dictionary_learning's `trainSAE` and `TopKTrainer`; its warm-up is 1000 steps, here a twentieth of the run."""
    from dictionary_learning.trainers.top_k import TopKTrainer  # type: ignore[import-not-found]
    from dictionary_learning.training import trainSAE  # type: ignore[import-not-found]

    made = []

    def trainer(**config: object) -> object:
        made.append(TopKTrainer(**config))
        return made[0]

    config = {
        "trainer": trainer, "steps": given.steps, "activation_dim": given.d_in, "dict_size": given.d_sae, "k": given.k,
        "layer": 0, "lm_name": "none", "lr": LR, "warmup_steps": given.steps // 20, "device": "cpu", "seed": seed,
    }  # fmt: skip
    trainSAE(batches(x, given, seed), [config], given.steps, device="cpu")
    return made[0].ae


def batches(x: Tensor, given: argparse.Namespace, seed: int) -> Iterator[Tensor]:
    """Rows in shuffled epochs without end, as the other trainers want them."""
    order = torch.Generator().manual_seed(seed)
    while True:
        for some in torch.randperm(len(x), generator=order).split(given.rows):
            yield x[some]


TRAINERS: dict[str, Callable[[Tensor, argparse.Namespace, int], Decode]] = {
    "proxsae": ours,
    "SAELens": sae_lens,
    "dictionary_learning": dictionary_learning,
}

if __name__ == "__main__":
    main()
