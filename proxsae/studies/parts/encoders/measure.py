"""Encoders on one frozen dictionary, at one density: error, products, and the numbers that each adds.

The SAEs are those of the part depth, trained with the fewest encoder steps.  Computed and greedy encoders use what is
there.  Learned ones are trained on the same rows for as many steps as the SAE was, with W_dec and b_dec held: towards
the error, or towards the codes of 16 exact steps (`distill`).  "tuned" is what more training alone does to the encoder
of the SAE: what learned layers gain has to be more than that.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from proxsae import metrics
from proxsae.certificates import lipschitz
from proxsae.learned import LearnedRule
from proxsae.penalties import KSparse
from proxsae.pytorch.iteration import Point, iterate
from proxsae.sae import SAE
from proxsae.sae.encoders import PRODUCTS_A_STEP
from proxsae.steps import ExactStep, Momentum, Refit
from proxsae.studies.density import matched, sample
from proxsae.studies.parts.depth.measure import BATCH, name_of, penalties
from proxsae.studies.parts.encoders.names import DEEP, ENCODERS, GREEDY, LEARNED, asked, misfit
from proxsae.studies.task import Row, Setting, Task
from proxsae.training import distill

FIRST, OTHERS = "abstopk", ("topk", "relu")
MUCH = 200  # training steps from which on there is time for `OTHERS`
LR = 3e-4  # a tenth of that of the SAEs: their encoders are trained already
REFITS = 4  # steps of which the price of one is the mean
SOLVED_ROWS = 128  # rows on which the density of codes that are solved for is matched
# Time in one-step k-sparse training steps: of a trained step and layer, and of measuring 1024 rows.
A_LAYER = {"distilled": 1.2, "tuned": 1.2, "slista": 1.0}
AIMS = 250  # the codes of all rows that "distilled" learns
DENSE = 3  # times as much for codes that are not worked out on supports
MEASURING = {"inf": 150, "omp": 100, "refit": 150, "exact": 60, "mp": 30}
MATCHING = 5  # times what measuring costs: encodings of 512 rows, until a density is matched


def tasks(setting: Setting) -> list[Task]:
    """One task for every seed, SAE and encoder; all of a seed come before the next."""
    return [
        Task(
            f"encoders {name} {name_of(penalty, _trained_depth(setting), seed)}",
            setting.seconds * _price(setting, penalty, name),
            partial(_measured, setting, penalty, name, seed),
        )
        for seed in setting.seeds
        for penalty in _saes(setting)
        for name in asked(setting.encoders)
        if not misfit(name, penalties(setting.k, 1.0)[penalty])
    ]


def _saes(setting: Setting) -> tuple[str, ...]:
    """The SAEs that are measured: all three where encoders are named, or where the study is a long one."""
    return (FIRST, *OTHERS) if setting.encoders or setting.train_steps >= MUCH else (FIRST,)


def _trained_depth(setting: Setting) -> int:
    return min(setting.train_depths)


def depths(setting: Setting, name: str) -> tuple[float, ...]:
    """The numbers of steps of an encoder that are measured: learned layers by the most where they are named."""
    way = ENCODERS[name]
    if way.family == GREEDY:
        return (setting.k,)
    return way.steps if name in setting.encoders or way.family != LEARNED else way.steps[:1]


def _price(setting: Setting, penalty: str, name: str) -> float:
    """The cost of a task in one-step training steps."""
    way, share = ENCODERS[name], len(setting.test) / 1024
    wanted = depths(setting, name)
    cost = MEASURING.get(name, 15) * share * (1 if "topk" in penalty else MATCHING)
    if way.towards:
        cost += sum(A_LAYER.get(name, 1.4) * (2 * T - 1) for T in wanted) * setting.train_steps
    return cost + (0 if way.towards != "codes" else AIMS if "topk" in penalty else DENSE * AIMS) + 20


def _measured(setting: Setting, penalty: str, name: str, seed: int) -> list[Row]:
    depth = _trained_depth(setting)
    sae = setting.kept(name_of(penalty, depth, seed))
    same = {"part": "encoders", "penalty": penalty, "train_depth": depth, "seed": seed, "encoder": name}
    return [
        same | row
        for T in depths(setting, name)
        for row in [measured(sae, name, T, setting.train, setting.test, setting.k, setting.train_steps, seed)]
    ]


def measured(sae: SAE, name: str, T: float, train: Tensor, test: Tensor, k: float, steps: int, seed: int) -> Row:
    """The measurements of one encoder of T steps on the dictionary of an SAE, which stays as it is.

    train, test  rows: those that encoders are trained on, and those that are measured
    k            non-zeros a row, to which lam is matched where there is one
    steps, seed  of training, where anything is trained
    """
    way, began = ENCODERS[name], time.perf_counter()
    rule = None if T == 1 else way.rule
    one = sae.unrolled(T, rule)
    added = 0
    if way.towards:
        one = copy.deepcopy(one)
        deep = one.unrolled(DEEP, ExactStep()) if one.penalty.affine else one.unrolled(DEEP)
        distill(one, deep, train, steps, BATCH, LR, seed, way.towards, progress=False)
        if isinstance(rule, LearnedRule):
            shapes = rule.shapes(int(T) - 1, one.d_sae, one.d_in, hasattr(one.penalty, "lam"), True)
            added = sum(math.prod(shape) for weight, shape in shapes.items() if weight not in rule.fixed)
    trained = time.perf_counter() - began
    rows = sample(test)[:SOLVED_ROWS] if math.isinf(T) else sample(test)
    with torch.no_grad():
        one, factor = matched(one, rows, k, codes=partial(_codes, name))
        began = time.perf_counter()
        point = _last(walk(name, one, test))
        if test.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        z, xhat = point.z, one.decode(point.z, like=test)
    cost = float(point.spent.mean())
    if math.isinf(T) and isinstance(one.penalty, KSparse):
        cost *= refit_price(one, test[:SOLVED_ROWS]) / PRODUCTS_A_STEP
    return {
        "steps": None if math.isinf(T) else int(T),
        "nmse": metrics.nmse(test, xhat),
        "l0": metrics.l0(z),
        "lam_factor": factor,
        "cost": cost,
        "parameters": added,
        "rows": len(test),
        "seconds": seconds,
        "train_seconds": trained,
    }


@torch.no_grad()
def refit_price(sae: SAE, x: Tensor) -> float:
    """Products that a refit step of k-sparse codes costs, of which `solve` counts the residual and its correlations."""
    first, *_, last = (float(point.spent.mean()) for point in sae.unrolled(REFITS, Refit()).walk(x))
    return (last - first) / (REFITS - 1)


def walk(name: str, sae: SAE, x: Tensor) -> Iterator[Point]:
    """The points of an encoder; FISTA is the one that an SAE has not: the encoder's code, then steps with momentum."""
    if name != "fista":
        return sae.walk(x)
    c, D = sae.normalized(x).rows - sae.b_dec, sae.W_dec
    first = sae.unrolled(1).encode(x)
    steps = iterate(c, D, sae.penalty, ENCODERS[name].rule, Momentum.FISTA, first, lipschitz(D), spent=1.0)  # type: ignore[arg-type]
    return islice(steps, int(sae.steps))


def _codes(name: str, sae: SAE, x: Tensor) -> Tensor:
    return _last(walk(name, sae, x)).z if name == "fista" else sae.encode(x)


def _last(points: Iterator[Point]) -> Point:
    for point in points:  # noqa: B007  (only the last is kept in memory)
        pass
    return point
