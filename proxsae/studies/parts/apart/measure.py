"""Dictionary or inference: how much a better code of the same dictionary would gain, with certificates.

The amortisation gap of a code is F(z) - F* (prop-amortisation-gap).  For L1 the optimum is computed and certified by
its duality gap.  For L0 and KSparse no method finds the optimum: the best code that many searches find replaces it, and
gaps are lower bounds.  Small problems with known optimum measure how good these searches are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from proxsae.certificates import lipschitz
from proxsae.data.planted import planted
from proxsae.penalties import L1, KSparse, Penalty
from proxsae.pytorch.iteration import Point, iterate, solve
from proxsae.reference.pursuit import best_k_sparse, omp
from proxsae.sae import SAE
from proxsae.steps import ExactStep, Lipschitz, Refit, StepRule
from proxsae.studies.parts.depth.measure import TRAINING, name_of
from proxsae.studies.task import Row, Setting, Task

ROWS = 64
STEPS = (1, 2, 4, 8, 16, 64)
LONG = 128  # steps of a search for better codes of non-convex penalties
REFITS = 4  # steps after which a support rarely changes
TOL = 1e-6  # of the duality gap, relative to the objective
SMALL_K = 3
REACHED = 1e-6  # of F(0): a code within that of F* is an optimum, up to rounding


def tasks(setting: Setting) -> list[Task]:
    """One task for each trained SAE that the part depth has saved, and one of small problems for each seed."""
    return [
        Task(
            f"apart {name_of(penalty, depth, seed)}",
            setting.seconds * (35 if penalty in ("relu", "soft") else 90),
            partial(frozen, setting, penalty, depth, seed),
        )
        for penalty in TRAINING
        for depth in setting.train_depths
        for seed in setting.seeds
    ] + [Task(f"apart small seed {seed}", 2.0, partial(small, seed)) for seed in setting.seeds]


@dataclass(frozen=True)
class Problem:
    """min_z 1/2 ||c - D z||^2 + R(z) for centred rows c (n, d), atoms D (P, d)."""

    c: Tensor
    D: Tensor
    R: Penalty

    def objective(self, z: Tensor) -> Tensor:
        """F(z) per row, in float64 for codes of any dtype."""
        error = (self.c.double() - z.double() @ self.D.double()).square().sum(dim=-1)
        return 0.5 * error + self.R.value(z.double())

    def from_zero(self, steps: Iterable[int], rule: StepRule) -> dict[int, Tensor]:
        """Codes after each of these numbers of steps from z = 0."""
        return self.onwards(self.c.new_zeros(len(self.c), len(self.D)), steps, rule)

    def onwards(self, z: Tensor, steps: Iterable[int], rule: StepRule) -> dict[int, Tensor]:
        """Codes after each of these numbers of steps from z."""
        return _at(enumerate(iterate(self.c, self.D, self.R, rule, None, z, lipschitz(self.D))), steps)

    def matching_pursuit(self) -> Tensor:
        """Codes by OMP, for KSparse."""
        assert isinstance(self.R, KSparse)
        c, D = (a.double().cpu().numpy() for a in (self.c, self.D))
        return torch.as_tensor(omp(c, D, self.R.k, self.R.nonneg), device=self.c.device).to(self.c.dtype)

    def searched(self, codes: Iterable[Tensor]) -> Tensor:
        """The best code known for each row: one of `codes`, a refit of one, that of OMP, or a refit of that."""
        pool = list(codes)
        pool += [self.onwards(z, [1], Refit())[1] for z in pool]
        if isinstance(self.R, KSparse):
            greedy = self.matching_pursuit()
            pool += [greedy, self.onwards(greedy, [REFITS], Refit())[REFITS]]
        best = torch.stack([self.objective(z) for z in pool]).argmin(dim=0)
        return torch.stack(pool)[best, torch.arange(len(best), device=best.device)]


def _at(points: Iterator[tuple[int, Point]], steps: Iterable[int]) -> dict[int, Tensor]:
    wanted = set(steps)
    found = {}
    for t, point in points:
        if t in wanted:
            found[t] = point.z
        if t >= max(wanted):
            break
    return found


# Trained SAEs --------------------------------------------------------------------------------------------------------


def frozen(setting: Setting, penalty: str, train_depth: int, seed: int) -> list[Row]:
    """Rows of one trained SAE with its dictionary fixed: codes by several methods, and the gap of each."""
    sae = setting.kept(name_of(penalty, train_depth, seed))
    same = {"part": "apart", "kind": "frozen", "penalty": penalty, "train_depth": train_depth, "seed": seed}
    x = setting.test[:ROWS]
    return [same | {"rows": len(x)} | row for row in gaps(sae, x)]


@torch.no_grad()
def gaps(sae: SAE, x: Tensor) -> list[Row]:
    """Measure codes of rows x (n, d_in) by several methods, all for the dictionary of one SAE.

    method      "trained": the SAE as it was trained; "encoder": the learned encoder, then exact steps with the
                dictionary (1/L where R is not affine); "zero": the same steps from z = 0, without the encoder;
                "omp", for KSparse; "best": the optimum, or the best code known
    steps       number of steps, None for methods without steps
    objective   mean F(z), in the units that the encoder sees
    nmse, l0    of these rows
    gap         mean F(z) - F(best)
    share       gap as a share of mean F(0) - F(best), the most that codes of this dictionary are known to gain
    certificate for L1 the mean duality gap of the best code: the true gap is between `gap` and `gap + certificate`.
                None for L0 and KSparse, where the true gap is at least `gap` and nothing more is known

    Statements: prop-amortisation-gap, thm-duality-gap.
    """
    problem = Problem(sae.normalized(x).rows - sae.b_dec, sae.W_dec, sae.penalty)
    convex = isinstance(problem.R, L1)
    long = [] if convex else [LONG]
    rule = ExactStep() if problem.R.affine else Lipschitz()
    deep = sae.unrolled(max(*STEPS, *long), rule)
    codes: dict[tuple[str, int | None], Tensor] = {("trained", sae.steps): sae.encode(x)}
    codes |= {("encoder", t): z for t, z in _at(enumerate(deep.walk(x), start=1), [*STEPS, *long]).items()}
    codes |= {("zero", t): z for t, z in problem.from_zero([0, *STEPS, *long], rule).items()}
    certificate = None
    if convex:
        solution = solve(problem.c.double(), problem.D.double(), problem.R, tol=TOL)
        best, certificate = solution.codes, float(solution.gap.mean())
    else:
        if isinstance(problem.R, KSparse):
            codes["omp", None] = problem.matching_pursuit()
        best = problem.searched(z for (_, t), z in codes.items() if t in (None, max(STEPS), LONG))
    codes["best", None] = best
    least, most = problem.objective(best).mean(), problem.objective(codes["zero", 0]).mean()
    rows: list[Row] = []
    for (method, steps), z in codes.items():
        objective = problem.objective(z).mean()
        rows.append({
            "method": method,
            "steps": steps,
            "objective": float(objective),
            "nmse": float((x - sae.decode(z.to(x.dtype), like=x)).square().sum() / x.square().sum()),
            "l0": float((z != 0).sum(dim=-1).double().mean()),
            "gap": float(objective - least),
            "share": float((objective - least) / (most - least)) if most > least else 0.0,
            "certificate": certificate,
        })  # fmt: skip
    return rows


# Small problems ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def small(seed: int) -> list[Row]:
    """Rows of k-sparse problems so small that their optimum is known: the gap of each search.

    gap      mean excess of the objective over the optimum
    share    gap as a share of mean F(0) - F*
    reached  share of the problems whose optimum is found, up to 1e-6 of F(0)

    Signed and non-negative codes of 3 latents among 16 random unit-norm atoms in 8 dimensions, with noise.
    """
    rows: list[Row] = []
    for penalty, nonneg in (("topk", True), ("abstopk", False)):
        data = planted(200, 8, 16, SMALL_K, signed=not nonneg, noise=0.1, seed=seed)
        problem = Problem(torch.tensor(data.x), torch.tensor(data.D), KSparse(SMALL_K, nonneg=nonneg))
        exact = torch.tensor(best_k_sparse(data.x, data.D, SMALL_K, nonneg))
        walk = problem.from_zero([*STEPS, LONG], ExactStep())
        refits = problem.from_zero([1, REFITS], Refit())
        codes: dict[tuple[str, int | None], Tensor] = {("zero", t): z for t, z in walk.items()}
        codes |= {("refit", t): z for t, z in refits.items()}
        codes["omp", None] = problem.matching_pursuit()
        codes["best", None] = problem.searched([walk[LONG]])
        least, most = problem.objective(exact), problem.objective(torch.zeros_like(exact))
        for (method, steps), z in codes.items():
            excess = problem.objective(z) - least
            rows.append({
                "part": "apart", "kind": "small", "penalty": penalty, "seed": seed, "method": method, "steps": steps,
                "objective": float(problem.objective(z).mean()), "gap": float(excess.mean()),
                "share": float(excess.mean() / (most - least).mean()),
                "reached": float((excess <= REACHED * most).double().mean()),
            })  # fmt: skip
    return rows
