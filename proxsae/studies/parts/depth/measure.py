"""Depth: the error of SAEs at equal density, by training depth, inference depth, step rule, penalty and seed.

Six SAEs are trained, with one encoder step and with more.  Then nothing is retrained: the rows of one SAE and rule
differ only in the number of encoder steps (`SAE.unrolled`) and, where the penalty has a lam, in that lam.  It is set
anew for every number of steps, so that all codes have k non-zeros a row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from proxsae import metrics
from proxsae.penalties import KSparse, Penalty
from proxsae.penalties.published import PUBLISHED
from proxsae.sae import SAE
from proxsae.steps import ExactStep, Lipschitz, Refit, StepRule
from proxsae.studies.density import matched, sample
from proxsae.studies.task import SIX, Row, Setting, Task
from proxsae.training import train
from proxsae.training.recipe import mean_and_spread

STEPS = (1, 2, 4, 8, 16)
LR = 3e-3  # higher than the default of `train`, since runs are short
BATCH = 256
RULES: dict[str, StepRule] = {"lipschitz": Lipschitz(), "exact": ExactStep(), "refit": Refit()}
# Time of a training step, of each further encoder step in it, and of measuring, in one-step k-sparse training steps.
# In the order of the tasks: a report that grows has the k-sparse SAEs first.
TRAINING = {"abstopk": 1.0, "topk": 1.0, "jumprelu": 1.2, "relu": 1.1, "jumprelu2": 1.2, "soft": 1.1}
FURTHER = {"relu": 0.8, "soft": 0.8, "jumprelu": 1.2, "jumprelu2": 1.0, "topk": 1.3, "abstopk": 1.1}
MEASURING = {"relu": 280, "soft": 280, "jumprelu": 260, "jumprelu2": 260, "topk": 370, "abstopk": 370}


def penalties(k: int, scale: float) -> dict[str, Penalty]:
    """The six penalties, by the name of their SAE; thresholds start at `scale` and adapt in training."""
    return {name: PUBLISHED[name].penalty(k, scale) for name in SIX}


def rules(R: Penalty) -> dict[str, StepRule]:
    """The rules that are measured: exact where R is affine, refit for k-sparse codes only (that of others is dense)."""
    fits = {"lipschitz": True, "exact": R.affine, "refit": isinstance(R, KSparse)}
    return {name: rule for name, rule in RULES.items() if fits[name]}


def kind_of(R: Penalty) -> str:
    """The name of the SAE with that penalty, where it is one of the six, and else that of its class."""
    six = penalties(1, 1.0).items()
    return next((name for name, one in six if (type(one), one.nonneg) == (type(R), R.nonneg)), type(R).__name__)


def name_of(penalty: str, train_depth: int, seed: int) -> str:
    """The name under which an SAE of this part is saved."""
    return f"{penalty}-train{train_depth}-seed{seed}"


def tasks(setting: Setting) -> list[Task]:
    """One task for every SAE: train, save, measure on the held-out rows.  All SAEs of a seed come before the next."""
    made = []
    for seed in setting.seeds:
        for penalty in TRAINING:
            for depth in setting.train_depths:
                a_step = TRAINING[penalty] + FURTHER[penalty] * (depth - 1)
                share, matching = len(setting.test) / 1024, len(sample(setting.test)) / 512
                measuring = MEASURING[penalty] * (share if "topk" in penalty else (share + matching) / 2)
                seconds = setting.seconds * (a_step * setting.train_steps + measuring)
                run = partial(_train_and_measure, setting, penalty, depth, seed)
                made.append(Task(f"depth {name_of(penalty, depth, seed)}", seconds, run))
    return made


def _train_and_measure(setting: Setting, penalty: str, depth: int, seed: int) -> list[Row]:
    x = setting.train
    R = penalties(setting.k, mean_and_spread(x)[1])[penalty]
    rule = ExactStep() if isinstance(R, KSparse) else Lipschitz()  # steps of 1/L seldom change a k-sparse support
    torch.manual_seed(seed)
    sae = SAE(x.shape[1], setting.d_sae, R, depth, rule).to(x.device)
    began = time.perf_counter()
    train(sae, x, setting.train_steps, BATCH, LR, seed, l0=setting.k, progress=False)
    trained = time.perf_counter() - began
    setting.keep(sae, name_of(penalty, depth, seed))
    same = {"part": "depth", "penalty": penalty, "train_depth": depth, "seed": seed, "train_seconds": trained}
    return [same | row for row in errors(sae, setting.test, setting.k, STEPS)]


def errors(sae: SAE, x: Tensor, k: float, steps: Sequence[int]) -> Iterator[Row]:
    """Measurements of one SAE on rows x (n, d_in), for every rule and number of steps, at k non-zeros a row."""
    for name, rule in rules(sae.penalty).items():
        yield from _unroll(sae, name, rule, x, k, steps)


def at_density(
    sae: SAE, rule: StepRule, x: Tensor, k: float, wanted: Sequence[int]
) -> Iterator[tuple[int, SAE, float]]:
    """Each number of steps, the same weights with them, at the lam that gives k non-zeros a row, and its factor."""
    factor = 1.0
    for steps in wanted:
        deep, factor = matched(sae.unrolled(steps, rule), sample(x), k, factor)
        yield steps, deep, factor


@torch.no_grad()
def _unroll(sae: SAE, name: str, rule: StepRule, x: Tensor, k: float, wanted: Sequence[int]) -> Iterator[Row]:
    """Measurements of one SAE under one rule, for every number of steps, each at its own lam."""
    before = None
    for steps, deep, factor in at_density(sae, rule, x, k, wanted):
        started = time.perf_counter()
        for point in deep.walk(x):  # noqa: B007  (only the last is kept in memory)
            pass
        if x.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        z, xhat = point.z, deep.decode(point.z, like=x)
        live = (z != 0).any(dim=0)
        balance = metrics.sign_balance(z)[live]
        yield {
            "rule": name,
            "steps": steps,
            "nmse": metrics.nmse(x, xhat),
            "explained_variance": metrics.explained_variance(x, xhat),
            "cosine": metrics.cosine(x, xhat),
            "l0": metrics.l0(z),
            "lam_factor": factor,
            "support_change": None if before is None else metrics.support_change(before, z),
            "rows": len(x),
            "dead": metrics.dead_fraction(z),
            "two_sided": metrics.ratio((balance > 0).sum(), live.sum()),
            "cost": float(point.spent.mean()),
            "seconds": seconds,
        }
        before = z
