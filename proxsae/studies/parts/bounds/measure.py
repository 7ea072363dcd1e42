"""Bounds: measured rates, certificates, linear phase and stationarity on trained SAEs, beside the proved ones.

The study of rates has problems that are made for the theorems; here dictionaries are trained and rows are real.  Each
row of measurements is about many rows of data: means, the largest ratio measured / theory, and whether all bounds hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from proxsae import theory
from proxsae.certificates import duality_gap, lipschitz
from proxsae.penalties import Penalty
from proxsae.pytorch.iteration import Point, iterate, solve
from proxsae.pytorch.refit import refit
from proxsae.steps import ExactStep, FixedStep, Lipschitz, StepRule
from proxsae.studies.parts.depth.measure import name_of
from proxsae.studies.rates.measure import IHT_STEP, SLACK, TIMES, holds, rates
from proxsae.studies.task import Row, Setting, Task

ROWS = 32
PHASE_ROWS = 16
PHASE_STEPS = 1024
PHASE_TAIL = 64  # steps at the end over which the factor of the linear phase is measured
ROUNDING = 1e-12  # of a float64 objective, after sums of some thousand terms
FAINT = 1e-6  # of ||z*||: smaller errors are rounding


def tasks(setting: Setting) -> list[Task]:
    """One task for each theorem, on the SAEs of the first seed and training depth, and one for the study of rates."""
    depth, seed = min(setting.train_depths), setting.seeds[0]
    convex = [
        Task(f"bounds {penalty}", 130 * setting.seconds, partial(convex_bounds, setting, penalty, depth, seed))
        for penalty in ("relu", "soft")
    ]
    return [
        *convex,
        Task("bounds abstopk", 35 * setting.seconds, partial(stationarity, setting, "abstopk", depth, seed)),
        Task("bounds rates", 4.0, partial(made_problems, seed)),
    ]


def made_problems(seed: int) -> list[Row]:
    """The rows of the study of rates."""
    return [
        {"part": "bounds", "source": "rates", "problem": row.problem, "method": row.method, "statement": row.statement,
         "steps": row.t, "measured": row.measured, "theory": row.theory, "kind": row.kind, "holds": holds(row),
         "largest": row.measured / row.theory, "n": 1}
        for row in rates(seed)
    ]  # fmt: skip


@torch.no_grad()
def convex_bounds(setting: Setting, penalty: str, train_depth: int, seed: int) -> list[Row]:
    """Rates of ISTA and FISTA from z = 0, duality gaps of their iterates, and the linear phase, of an SAE with L1.

    thm-ista-rate, thm-fista-rate   measured F(z_t) - F* plus the certificate of F*; theory with the
                                    row's own ||z_0 - z*||
    thm-duality-gap                 measured F(z_t) - F*, theory the duality gap of z_t, also from the learned encoder
    thm-linear-phase                measured the factor of the error in a step, over the last steps in which signs stay
    """
    sae = setting.kept(name_of(penalty, train_depth, seed)).double()
    x = setting.test[:ROWS].double()
    R, D = sae.penalty, sae.W_dec
    c = sae.normalized(x).rows - sae.b_dec
    solution, L, start = solve(c, D, R, tol=1e-9), lipschitz(D), c.new_zeros(len(c), len(D))
    best = refit(solution.codes, c, D, R)  # on the support found the optimum has a closed form
    certificate = duality_gap(c, D, best, R)
    least = Point(best, c, D, start[:, 0]).objective(R)
    distance = best.norm(dim=-1)
    same = {"part": "bounds", "source": "sae", "problem": penalty, "seed": seed, "kind": "upper"}
    rows: list[Row] = []
    walks: dict[str, tuple[StepRule, str | None, Tensor, Callable[[float, float, int], float] | None]] = {
        "ISTA": (Lipschitz(), None, start, theory.ista_rate),
        "FISTA": (Lipschitz(), "fista", start, theory.fista_rate),
        "encoder": (ExactStep(), None, sae.unrolled(1).encode(x), None),
    }
    for method, (rule, momentum, z, rate) in walks.items():
        first = 1 if rate is None else 0  # the encoder is a step
        for t, point in enumerate(iterate(c, D, R, rule, momentum, z, L), start=first):
            if t in TIMES:
                excess = point.objective(R) - least
                what = same | {"method": method, "steps": t}
                if rate is not None:
                    bound = distance.square() * rate(L, 1.0, t)
                    rows.append(
                        what
                        | {"statement": f"thm-{method.lower()}-rate"}
                        | judged(excess + certificate, bound, least.abs())
                    )
                gap = duality_gap(c, D, point.z, R)
                rows.append(what | {"statement": "thm-duality-gap"} | judged(excess, gap, least.abs()))
            if t == max(TIMES):
                break
    few = slice(PHASE_ROWS)
    return rows + [same | row for row in _linear_phase(c[few], D, R, best[few], L)]


def _linear_phase(c: Tensor, D: Tensor, R: Penalty, best: Tensor, L: float) -> Iterator[Row]:
    """The measured factor of the error in a step beside that of the support, for rows whose signs no longer change."""
    settled = torch.zeros(len(c), dtype=torch.int64, device=c.device)  # the first step from which signs stay
    errors = []
    for t, point in enumerate(iterate(c, D, R, Lipschitz(), None, torch.zeros_like(best), L)):
        wrong = (point.z.sign() != best.sign()).any(dim=-1)
        settled[wrong] = t + 1
        errors.append((point.z - best).norm(dim=-1))
        if t == PHASE_STEPS:
            break
    e = torch.stack(errors)
    last = (e > FAINT * best.norm(dim=-1)).sum(dim=0) - 1  # errors fall, so that this is the last that is seen
    seen = last - settled >= PHASE_TAIL
    measured, bound = [], []
    for i in seen.nonzero()[:, 0].tolist():
        end = int(last[i])
        measured.append((e[end, i] / e[end - PHASE_TAIL, i]) ** (1 / PHASE_TAIL))
        A = D[best[i] != 0]
        values = torch.linalg.eigvalsh(A @ A.T)
        bound.append(theory.linear_phase_rate(1 / L, float(values[0]), float(values[-1])))
    what = {"method": "ISTA", "statement": "thm-linear-phase", "steps": PHASE_STEPS}
    if measured:
        yield (
            what
            | judged(torch.stack(measured), torch.tensor(bound, dtype=e.dtype, device=e.device))
            | {"settled": float(settled[seen].double().mean())}
        )


@torch.no_grad()
def stationarity(setting: Setting, penalty: str, train_depth: int, seed: int) -> list[Row]:
    """The shortest step of IHT from z = 0 with mu = 0.9 / L, beside its bound (thm-stationarity-rate)."""
    sae = setting.kept(name_of(penalty, train_depth, seed)).double()
    R, D = sae.penalty, sae.W_dec
    c = sae.normalized(setting.test[:ROWS].double()).rows - sae.b_dec
    L, before, rows = lipschitz(D), c.new_zeros(len(c), len(D)), []
    step, at_zero = IHT_STEP / L, 0.5 * c.square().sum(dim=-1)
    shortest = at_zero.new_full(at_zero.shape, torch.inf)
    for t, point in enumerate(iterate(c, D, R, FixedStep(step), None, before, L)):
        if t:
            shortest = torch.minimum(shortest, (point.z - before).square().sum(dim=-1))
        before = point.z
        if t in TIMES:
            bound = (at_zero - point.objective(R)) * theory.stationarity_rate(L, step, 1.0, t)
            rows.append(
                {"part": "bounds", "source": "sae", "problem": penalty, "seed": seed, "kind": "upper", "method": "IHT",
                 "statement": "thm-stationarity-rate", "steps": t} | judged(shortest, bound)
            )  # fmt: skip
        if t == max(TIMES):
            break
    return rows


def judged(measured: Tensor, bound: Tensor, scale: Tensor | None = None) -> Row:
    """Means of measurements (n,) and of their upper bounds, ratios of the two, and whether all bounds hold.

    A bound holds up to 1e-9 of itself and 1e-12 of `scale`, the size of the numbers whose difference was measured.  The
    largest and the median ratio are over measurements above that rounding, None where there are none.
    """
    rounding = 0 * bound if scale is None else ROUNDING * scale
    seen = (measured > rounding) & (bound > 0)
    ratios = measured[seen] / bound[seen]
    return {
        "measured": float(measured.mean()), "theory": float(bound.mean()), "n": len(measured),
        "largest": float(ratios.max()) if len(ratios) else None,
        "median": float(ratios.median()) if len(ratios) else None,
        "holds": bool((measured <= bound + SLACK * bound.abs() + rounding).all()),
    }  # fmt: skip
