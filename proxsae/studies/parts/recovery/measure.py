"""Recovery: whether more encoder steps find the true support, with a known D and with one learned from planted rows.

"separation" knows D and measures only the support, beside the range that theory guarantees.  "learned" trains SAEs on
planted rows; on fresh rows it compares dictionary and codes with those that the rows were made of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import hadamard
from torch import Tensor

from proxsae import metrics, theory
from proxsae.certificates import coherence
from proxsae.data import Planted, planted
from proxsae.data.planted import KINDS
from proxsae.penalties import KSparse
from proxsae.pytorch.iteration import ista
from proxsae.reference.pursuit import omp
from proxsae.sae import SAE
from proxsae.steps import ExactStep, Refit
from proxsae.studies.task import Row, Setting, Task
from proxsae.training import train

# Separation
WIDTH = 256
SPARSITIES = (2, 4, 8)
RANGES = tuple(np.geomspace(1, 1000, 10).tolist())
ROWS = 200
WALKS = (("exact", ExactStep(), (1, 4, 16)), ("refit", Refit(), (2, 4)))

# Learned
D_IN, D_SAE, K = 64, 256, 4
TRAIN_ROWS, FRESH_ROWS = 16_384, 1_000
COST, FURTHER = 0.2, 0.8  # of a training step, in those of the setting; of a further encoder step, in first ones
LEAST = 0.003  # seconds of a training step that are overhead
SEPARATION, KNOWN, OVERHEAD = 3.0, 1.0, 1.0  # seconds of the other tasks, and of drawing rows and measuring
BATCH, LR = 256, 1e-2  # of 3e-3, 1e-2 and 2e-2 this rate is best or nearly so for one and four steps, signed and not
MOST_SEEDS = 3
INFERENCE = (1, 4, 16)


class Problem(NamedTuple):
    """A distribution of planted rows, and the SAE that is trained on them."""

    data: str
    signed: bool
    dynamic_range: float
    sae: str

    @property
    def name(self) -> str:
        """The name of the problem in its tasks."""
        sign = "signed" if self.signed else "nonneg"
        return f"{self.data}-{sign}-range{self.dynamic_range:g}-{self.sae}"

    @property
    def penalty(self) -> KSparse:
        """The penalty of the SAE."""
        return KSparse(K, nonneg=self.sae == "topk")

    @property
    def row(self) -> Row:
        """The keys of a row that name the problem."""
        signs = "signed" if self.signed else "non-negative"
        return {"data": self.data, "signs": signs, "range": self.dynamic_range, "sae": self.sae}


_FIT = {True: "abstopk", False: "topk"}
PROBLEMS = (
    *(Problem(kind, signed, 10.0, _FIT[signed]) for kind, signed in product(KINDS, _FIT)),
    *(Problem("flat", signed, 10.0, _FIT[not signed]) for signed in _FIT),  # the SAE with the wrong signs
    *(Problem("flat", signed, spread, _FIT[signed]) for signed, spread in product(_FIT, (1.0, 100.0))),
)


def tasks(setting: Setting) -> list[Task]:
    """Supports with a known D, one task a sparsity; then every problem, with a learned D and with the true one.

    Each seed draws its own dictionary, rows, weights and batches; at most `MOST_SEEDS` seeds are used.
    """
    seeds = setting.seeds[:MOST_SEEDS]
    a_step = max(COST * setting.seconds, LEAST)
    found = [Task(f"recovery-separation-k{k}", SEPARATION, partial(separation, k)) for k in SPARSITIES]
    for problem in PROBLEMS:
        found.append(Task(f"recovery-known-{problem.name}", KNOWN * len(seeds), partial(known, problem, seeds)))
        for T, seed in product(sorted({1, max(setting.train_depths)}), seeds):
            seconds = OVERHEAD + setting.train_steps * a_step * (1 + FURTHER * (T - 1))
            name = f"recovery-learned-{problem.name}-train{T}-seed{seed}"
            found.append(Task(name, seconds, partial(learned, problem, T, seed, setting.train_steps)))
    return found


# Known dictionary


def spikes_and_waves(d: int) -> np.ndarray:
    """The 2d atoms of D = [I, H / sqrt(d)], H a Hadamard matrix: coherence 1 / sqrt(d)."""
    return np.concatenate([np.eye(d), hadamard(d) / math.sqrt(d)])


def separation(k: int) -> list[Row]:
    """The share of `ROWS` rows with the exact support, for every dynamic range and method, one row each.

    Rows are x = D z with D = `spikes_and_waves(WIDTH)`, k non-zeros of fair sign, and magnitudes from 1 to the range:
    each row has both ends, its other magnitudes are log-uniform between them.
    `theory` is 1 where a theorem guarantees every support, else None: one step with range < 1 / (m (2k - 1))
    (thm-one-step-support), OMP with k < (1 + 1/m) / 2 (Tropp 2004).  `edge` is the range where the guarantee of one
    step ends, None for other methods.
    """
    D = spikes_and_waves(WIDTH)
    m, rows = coherence(D), []
    for spread in RANGES:
        z = _stretched(planted(ROWS, WIDTH, len(D), k, dynamic_range=math.e, D=D).z, k, spread)
        for method, steps, codes in _supports(z @ D, D, k):
            right = ((codes != 0) == (z != 0)).all(axis=1).mean()
            one_step, pursuit = method == "exact" and steps == 1, method == "omp"
            promised = (one_step and k < theory.one_step_sparsity(m, spread)) or (pursuit and k < (1 + 1 / m) / 2)
            rows.append({
                "part": "recovery", "kind": "separation", "k": k, "range": spread, "method": method, "steps": steps,
                "measured": float(right), "f1": metrics.support_f1(torch.tensor(codes), torch.tensor(z)),
                "theory": 1.0 if promised else None, "side": "lower" if promised else None,
                "edge": 1 / (m * (2 * k - 1)) if one_step else None,
                "statement": "thm-one-step-support" if one_step else None, "rows": ROWS,
            })  # fmt: skip
    return rows


def holds(row: Row) -> bool:
    """Whether a row of `separation` agrees with theory: every support is exact where that is guaranteed."""
    return row["theory"] is None or row["measured"] >= row["theory"]


def _stretched(z: np.ndarray, k: int, spread: float) -> np.ndarray:
    """The same supports, signs and order of magnitudes; in each row the smallest is 1 and the largest `spread`."""
    fires = z != 0
    logs = np.log(np.abs(z[fires])).reshape(-1, k)
    least, most = (end(axis=1, keepdims=True) for end in (logs.min, logs.max))
    stretched = np.zeros_like(z)
    stretched[fires] = np.sign(z[fires]) * spread ** ((logs - least) / (most - least)).ravel()
    return stretched


def _supports(x: np.ndarray, D: np.ndarray, k: int) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """Every method, its number of steps, and its codes.  For any mu a first step from 0 selects among D^T x."""
    for method, rule, depths in WALKS:
        steps = ista(torch.tensor(x), torch.tensor(D), KSparse(k), depths[-1], rule, keep="all").steps
        assert steps is not None
        yield from ((method, T, steps[T].numpy()) for T in depths)
    yield "omp", None, omp(x, D, k)


# Learned dictionary


def _drawn(problem: Problem, seed: int) -> tuple[Planted, Planted]:
    """Rows for training, and fresh rows of the same atoms."""
    draw = partial(
        planted, d_in=D_IN, d_sae=D_SAE, k=K, signed=problem.signed, dynamic_range=problem.dynamic_range,
        kind=problem.data,
    )  # fmt: skip
    data = draw(TRAIN_ROWS, seed=2 * seed)
    return data, draw(FRESH_ROWS, seed=2 * seed + 1, D=data.D)


def learned(problem: Problem, T: int, seed: int, steps: int) -> list[Row]:
    """Train one SAE with T encoder steps on planted rows; measure it on fresh rows, at every depth and with OMP."""
    data, fresh = _drawn(problem, seed)
    torch.manual_seed(seed)
    sae = SAE(D_IN, D_SAE, problem.penalty, steps=T, step=ExactStep())
    train(sae, data.x.astype(np.float32), steps, batch_size=BATCH, lr=LR, seed=seed, progress=False)
    x, D, bias = sae.rows(fresh.x), sae.W_dec.detach(), sae.b_dec.detach()
    matched = metrics.match(D, torch.tensor(fresh.D).to(D))
    with torch.no_grad():
        points = enumerate(sae.unrolled(INFERENCE[-1], ExactStep()).walk(x), start=1)
        codes = {("exact", t): point.z for t, point in points if t in INFERENCE}
    same = problem.row | {"dictionary": "learned", "train_depth": T, "seed": seed}
    return [same | row for row in _measured(problem, fresh, x - bias, D, matched, codes)]


def known(problem: Problem, seeds: tuple[int, ...]) -> list[Row]:
    """The same measurements with the true D, from the zero code: these errors are not errors of the dictionary."""
    rows = []
    for seed in seeds:
        fresh = _drawn(problem, seed)[1]
        x, D = torch.tensor(fresh.x), torch.tensor(fresh.D)
        steps = ista(x, D, problem.penalty, INFERENCE[-1], ExactStep(), keep="all").steps
        assert steps is not None
        codes = {("exact", t): steps[t] for t in INFERENCE}
        same = problem.row | {"dictionary": "true", "train_depth": None, "seed": seed}
        rows += [same | row for row in _measured(problem, fresh, x, D, metrics.match(D, D), codes)]
    return rows


def _measured(
    problem: Problem, fresh: Planted, c: Tensor, D: Tensor, matched: metrics.Match, codes: dict[tuple[str, int], Tensor]
) -> Iterator[Row]:
    """One row for each method to find codes of c = x - b with the atoms D: those given, and OMP."""
    pursued = omp(c.numpy(), D.numpy(), K, nonneg=problem.penalty.nonneg)
    truth, x = torch.tensor(fresh.z), torch.tensor(fresh.x)
    for (method, steps), z in [*codes.items(), (("omp", None), torch.tensor(pursued))]:
        moved = metrics.aligned(z, matched, D_SAE)
        error = (c - z @ D).double().square().sum()  # that of x - b is that of x
        yield {
            "part": "recovery", "kind": "learned", "method": method, "steps": steps, "rows": len(x),
            "nmse": metrics.ratio(error, x.square().sum()), "f1": metrics.support_f1(moved, truth),
            "cosine": float(matched.cosine.abs().mean()), "error": metrics.coefficient_error(moved, truth),
        }  # fmt: skip
