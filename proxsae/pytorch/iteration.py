"""The unrolled iteration in torch: batched, on CPU and CUDA, differentiable in x, D, z0, bias and a tensor lam.

    z+ = prox_{mu R}(z - mu g),   g = D^T (D z + b - x)                                              (def-ista)

The formulas are those of `reference/iteration.py`.  Here all rows run together, and no product is worked out twice.
Supports are held constant in the backward pass, since their derivative is zero almost everywhere, and by choice so are
step sizes that a rule works out from the data.  Those that are given as a tensor carry gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor

from proxsae.certificates import centred, certify, lengths, lipschitz, squared_norm
from proxsae.conventions import Error, check_count, check_problem, may_look
from proxsae.penalties import L1, KSparse, Penalty
from proxsae.penalties.base import runs
from proxsae.pytorch import lasso_unpenalised
from proxsae.pytorch.arithmetic import seeing
from proxsae.pytorch.autocast import outside_autocast
from proxsae.pytorch.codes import accumulator, fulfils, sparse_decode, sparsify, squares
from proxsae.pytorch.cost_model import gather_cost, kind_of
from proxsae.pytorch.prox import has_kernel, in_kernel, prox, slope, value
from proxsae.pytorch.refit import implicit, refit
from proxsae.steps import (
    FIRST_TRIAL,
    REACHES,
    RIDGE,
    WINDOW,
    Backtracking,
    ExactStep,
    GivenStep,
    Lipschitz,
    Momentum,
    Refit,
    Solution,
    StepRule,
    Trace,
    as_rule,
    check_reached,
    check_rule,
    check_tol,
    how_to_solve,
    step_dtype,
)

LEFT_ENTRIES = 2**24  # entries of codes that are iterated together where working sets fail: 128 MiB a copy
CHECK_EVERY = 5  # steps of `solve` between certificates, each of which costs about one step


@outside_autocast
def ista(
    x: Tensor,
    D: Tensor,
    R: Penalty,
    steps: int,
    step: Any = Lipschitz(),  # noqa: B008  (a frozen value without state)
    momentum: str | None = None,
    z0: Tensor | None = None,
    bias: Tensor | None = None,
    keep: str = "last",
) -> Trace:
    """Proximal gradient on tensors; what `proxsae.ista` calls, and where its arguments are explained."""
    c, D, z0, lead = check_problem(x, D, z0, bias, R)
    kept, objective, products = [], [], []
    with seeing("ista", c):
        steps, (least, L), rule = check_count("steps", steps, 0), squared_norm(D), as_rule(step, c)
        check_rule(rule, momentum, keep, R, least, steps)
        rows = c.reshape(-1, c.shape[-1])
        z = rows.new_zeros(len(rows), len(D)) if z0 is None else z0.reshape(-1, len(D))
        for _, point in zip(range(steps + 1), iterate(rows, D, R, rule, momentum, z, L), strict=False):
            codes = point.z.reshape(*lead, len(D))
            if keep == "all":
                kept.append(codes)
            objective.append(point.objective(R).reshape(lead))
            products.append(point.spent.reshape(lead))
    check_reached(codes.detach())
    return Trace(codes, torch.stack(objective), torch.stack(products), tuple(kept) if keep == "all" else None)


@outside_autocast
def solve(
    x: Tensor, D: Tensor, R: Penalty, tol: float = 1e-6, max_steps: int = 10_000, bias: Tensor | None = None
) -> Solution:
    """Iterate to a certificate on tensors; what `proxsae.solve` calls, and where its arguments are explained."""
    c, D, _, lead = check_problem(x, D, None, bias, R)
    tol, max_steps = check_tol(tol), check_count("max_steps", max_steps, 0)
    with torch.no_grad(), seeing("solve", c):
        rows = centred(x, bias).reshape(-1, c.shape[-1])
        codes, *told = _solve(rows, D.double(), R, tol, max_steps, x.dtype)
    lam = getattr(R, "lam", None)
    if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in (x, D, bias, lam)):
        if not R.affine:
            msg = f"gradients of solve are for L1, L0 and KSparse, not {R!r}: detach its inputs (thm-implicit-gradient)"
            raise Error(msg)
        codes = implicit(codes, c.reshape(rows.shape), D, R)
    return Solution(codes.reshape(*lead, len(D)), *(a.reshape(lead) for a in told))


def _solve(
    c: Tensor, D: Tensor, R: Penalty, tol: float, max_steps: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if not runs(R, L1):
        return _iterate_to_certificate(c, D, R, tol, max_steps, dtype)
    codes, gap, taken, converged, at_rounding, left = lasso_unpenalised.solve(c, D, R, tol, max_steps, dtype)
    # rows that are too degenerate for working sets start anew by FISTA; a step costs one product with D in both
    for rows in left.nonzero()[:, 0].split(max(1, LEFT_ENTRIES // len(D))):
        if not len(rows):
            break
        used = int(taken[rows].max())
        other, its, more, good, rounding = _iterate_to_certificate(c[rows], D, R, tol, max_steps - used, dtype)
        taken[rows] += more
        at_rounding[rows] = rounding
        better = good | (its < gap[rows])
        rows = rows[better]
        codes[rows], gap[rows], converged[rows] = other[better], its[better], good[better]
    return codes, gap, taken, converged, at_rounding


def _iterate_to_certificate(
    c: Tensor, D: Tensor, R: Penalty, tol: float, max_steps: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    every = CHECK_EVERY if runs(R, L1) or not (R.convex or R.affine) else 1
    L, norm = lipschitz(D), lengths(D)
    codes = c.new_full((len(c), len(D)), torch.inf)
    before = codes.clone()
    taken = torch.zeros(len(c), dtype=torch.int64, device=c.device)
    open_rows = torch.ones(len(c), dtype=torch.bool, device=c.device)
    for t, z in enumerate(_codes(c, D, R, L)):
        if t % every == 0 or t == max_steps:
            some, rounded = z[open_rows], z[open_rows].to(dtype).double()  # the certificate is of codes as returned
            _, good, settled = certify(c[open_rows], D, rounded, before[open_rows], R, tol, L, norm)
            if dtype != torch.float64:
                settled = certify(c[open_rows], D, some, before[open_rows], R, tol, L, norm)[2]
            codes[open_rows], taken[open_rows] = some, t
            open_rows[open_rows.clone()] = ~(good | settled)
        if t == max_steps or not bool(open_rows.any()):
            break
        before = z
    rounded = codes.to(dtype).double()
    gap, good, _ = certify(c, D, rounded, codes, R, tol, L, norm)
    return rounded.to(dtype), gap, taken, good & ~open_rows, ~good & ~open_rows


def _codes(c: Tensor, D: Tensor, R: Penalty, L: float) -> Iterator[Tensor]:
    """Yield the codes from 0 on by which `solve` goes; with leaps as in the reference where R is not convex."""
    rule, momentum = how_to_solve(R)
    z, window = c.new_zeros(len(c), len(D)), None if R.convex or R.affine else WINDOW + 1
    yield z
    while True:
        path = [z]
        for point in islice(iterate(c, D, R, rule, momentum, z, L), 1, window):
            yield point.z
            if window:
                path.append(point.z)
        z = _leap(path, point, R)


def _leap(path: list[Tensor], point: Point, R: Penalty) -> Tensor:
    """The code of lowest F: the last of the path, where Anderson acceleration leads, or further along the last move."""
    z, D, r = point.z, point.D, point.residual()
    codes = torch.stack(path)
    moves = codes.diff(dim=0).transpose(0, 1)
    gram = moves @ moves.mT
    gram = gram / gram.diagonal(dim1=1, dim2=2).sum(dim=1).clamp(min=torch.finfo(gram.dtype).tiny)[:, None, None]
    gram.diagonal(dim1=1, dim2=2).add_(RIDGE)
    weights = torch.linalg.solve(gram, gram.new_ones(len(z), WINDOW))
    weights = weights / weights.sum(dim=1, keepdim=True)
    guess = torch.where(z != 0, torch.einsum("nk,knp->np", weights, codes[1:]), 0)
    guess = torch.where((guess.sign() == z.sign()).all(dim=1, keepdim=True), guess, z)
    move = torch.where(z != 0, z - path[-2], 0)
    ends = torch.where(z * move < 0, -z / torch.where(move != 0, move, 1), torch.inf)
    first = ends.amin(dim=1, keepdim=True)
    far = torch.stack([first.clamp(max=reach) for reach in REACHES])
    trials = torch.cat([torch.stack([z, guess]), torch.where(far < ends, z + far * move, 0)])
    residuals = torch.cat([torch.stack([r, guess @ D - point.c]), r + far * (move @ D)])
    objective = 0.5 * residuals.square().sum(dim=-1) + value(R, trials)
    return trials.gather(0, objective.argmin(dim=0)[None, :, None].expand(1, *z.shape))[0]


class Point:
    """One iterate: the code z (B, P), the products spent per row, and its residual D z - c, computed when first used.

    `width` is the largest number of non-zeros in a row, if the penalty bounds it; `tilt` (P,) adds the linear term
    -<tilt, z> to the objective.  `felt` (B, P) marks entries that have gradients though they may be 0.
    """

    def __init__(
        self,
        z: Tensor,
        c: Tensor,
        D: Tensor,
        spent: Tensor,
        residual: Tensor | None = None,
        width: int | None = None,
        tilt: Tensor | None = None,
        felt: Tensor | None = None,
    ) -> None:
        self.z, self.c, self.D, self.spent, self.felt = z, c, D, spent, felt
        self._residual, self._width, self._tilt = residual, width, tilt
        self.device = z.device

    @outside_autocast
    def residual(self) -> Tensor:
        """D z - c, shape (B, d)."""
        if self._residual is None:
            self._residual = _times(self.z, self.D, self._width) - self.c
        return self._residual

    @outside_autocast
    def objective(self, R: Penalty) -> Tensor:
        """F(z) per row, shape (B,), in the dtype of the codes."""
        smooth = (0.5 * _square(self.residual())).to(self.z.dtype)
        return (smooth if self._tilt is None else smooth - self.z @ self._tilt) + value(R, self.z)

    @outside_autocast
    def compared(self, R: Penalty) -> Tensor:
        """The same in float64, to compare by: the F of other dtypes may be infinite, or rounded to the same number."""
        wide = accumulator(self.z.dtype)
        z, smooth = self.z.detach().to(wide), 0.5 * squares(self.residual())
        return (smooth if self._tilt is None else smooth - z @ self._tilt.detach().to(wide)) + value(R, z)


def iterate(
    c: Tensor,
    D: Tensor,
    R: Penalty,
    rule: StepRule,
    momentum: str | None,
    z: Tensor,
    L: float,
    spent: float = 0.0,
    tilt: Tensor | None = None,
) -> Iterator[Point]:
    """Yield the points z_0, z_1, z_2, ... for centred rows c (B, d), without end.

    With `tilt` (P,) the objective has the further term -<tilt, z>, so that g = D^T (D z - c) - tilt: the quadratic
    part, which the step rules are about, stays as it is.  Where R couples rows the batch is one vector, with one mu.
    A row's count of products starts at `spent` and follows the reference: 1 for each gradient, 1 for the residual
    before it unless z = 0 or a trial has already paid for it, and 1 for each trial.
    """
    largest = 1 / L
    if not isinstance(rule, GivenStep):
        largest = FIRST_TRIAL / float(D.detach().double().square().sum(dim=1).max())  # as in the reference
    products = torch.full((len(c),), spent, dtype=torch.float64, device=c.device)
    width = R.k if runs(R, KSparse) else None
    zero = may_look(z) and not bool(z.any())
    point = Point(z, c, D, products, -c if zero else None, tilt=tilt)  # of any number of non-zeros
    owed = (z != 0).any(dim=-1).double()
    mu = torch.full_like(products, largest)
    t = torch.ones_like(products)
    y, r = z, point.residual()
    yield point
    for n in count():
        g = r @ D.T if tilt is None else r @ D.T - tilt
        products = products + owed + 1
        owed, residual, felt = torch.ones_like(owed), None, None
        if isinstance(rule, GivenStep):
            step = rule.size(n, L)
            u = y - _scaled(step, g, L)
            new = prox(R, u, step)
            felt = in_kernel(R, u, step) if has_kernel(R) else None
        else:
            if isinstance(rule, ExactStep):
                new, residual, mu, tried, owed = _exact_step(y, r, g, D, R, largest, L)
            else:
                start = mu if isinstance(rule, Backtracking) else torch.full_like(mu, largest)
                new, residual, mu, tried, owed = _safe_step(y, r, g, D, R, start, L)
            products = products + tried
            felt = in_kernel(R, y - _scaled(mu[:, None], g, L), mu) if has_kernel(R) else None
            if isinstance(rule, Refit):
                size = (new != 0).sum(dim=-1).double()
                products, owed = products + owed + size * (size + 2) / len(D), torch.zeros_like(owed)
                new, residual = refit(new, c, D, R), None
        previous, before, point = point, y, Point(new, c, D, products, residual, width, tilt, felt)
        yield point
        y, r = new, point.residual()
        if momentum is not None:
            change = new - previous.z
            if momentum == Momentum.RESTART:  # where the momentum points uphill
                t = torch.where(((before - new) * change).sum(dim=-1) > 0, 1.0, t)
            after = (1 + (1 + 4 * t * t).sqrt()) / 2
            beta = ((t - 1) / after)[:, None].to(c.dtype)
            y, r, t = new + beta * change, r + beta * (r - previous.residual()), after


def _safe_step(
    z: Tensor,
    r: Tensor,
    g: Tensor,
    D: Tensor,
    R: Penalty,
    mu: Tensor,
    L: float,
    line: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Halve mu per row, down to 1/L, until  mu ||D dz||^2 <= ||dz||^2  (lem-backtracking).

    Returns the codes, their residuals, mu, the products tried and those owed.  `line` is the face, D h, and where mu is
    exact: if a trial has the signs of the face there (for L0 and KSparse its support), dz is known to be -mu h and
    safe, and D dz costs nothing (thm-exact-step).
    """
    rows = torch.arange(len(z), device=z.device)
    new, move = torch.zeros_like(z), torch.zeros_like(r)
    tried, owed = torch.zeros_like(mu), torch.zeros_like(mu)
    while len(rows):
        step = mu[rows]
        trial = prox(R, z[rows] - _scaled(step[:, None], g[rows], L), step)
        dz = trial - z[rows]
        same = torch.zeros_like(step, dtype=torch.bool)
        if line is not None:
            face, face_move, exact = line
            kept = trial.sign() == face[rows].sign() if R.convex else (trial != 0) == (face[rows] != 0)
            same = exact[rows] & (kept.all(dim=-1) if R.rowwise else kept.all().expand(len(kept)))
            along = -_scaled(step[:, None], face_move[rows], L)
            dr = along if bool(same.all()) else torch.where(same[:, None], along, dz @ D)
        else:
            dr = dz @ D
        floor = step <= 1 / L
        tried[rows] += (~same & ~floor).double()
        owed[rows] = (~same & floor).double()
        lhs, rhs = step * _over(R, squares(dr)), _over(R, squares(dz))
        safe = same | floor | fulfils(lhs, rhs, _over(R, dz.any(dim=-1)) != 0)
        new, move = new.index_copy(0, rows, trial), move.index_copy(0, rows, dr)
        rows = rows[~safe]
        mu = mu.index_copy(0, rows, (mu[rows] / 2).clamp(min=1 / L))
    return new, r + move, mu, tried, owed


def _exact_step(
    z: Tensor, r: Tensor, g: Tensor, D: Tensor, R: Penalty, largest: float, L: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The exact line step on the support: mu = ||h||^2 / ||D h||^2, then safe (thm-exact-step)."""
    empty = ~(z != 0).any(dim=-1) if R.rowwise else ~(z != 0).any().expand(len(z))
    face = z
    if bool(empty.any()):  # at z = 0, the support that a step would open
        face = torch.where(empty[:, None], prox(R, z - _scaled(largest, g, L), largest), z)
    h = torch.where(face != 0, g + slope(R, face), 0)
    face_move = h @ D
    with torch.no_grad():
        size, along = _over(R, squares(h)), _over(R, squares(face_move))
        # what leaves the range of the dtype says nothing: the step is then a `Backtracking` one
        known = (along > torch.finfo(face_move.dtype).tiny ** 2) & (along < torch.inf)
        exact = known | (size == 0)
        mu = torch.where(known, size / along, largest).clamp(min=1 / L)  # >= 1/L, but for rounding
    new, residual, mu, tried, owed = _safe_step(z, r, g, D, R, mu, L, (face.detach(), face_move, exact))
    return new, residual, mu, tried + 1, owed


def _scaled(mu: Any, g: Tensor, L: float) -> Tensor:
    """mu g, where mu itself may be no number of the dtype of g; a tensor mu is a column, or 0-d."""
    wide = step_dtype(L, g)
    return ((mu.to(wide) if isinstance(mu, Tensor) and mu.ndim else mu) * g.to(wide)).to(g.dtype)


def _times(z: Tensor, D: Tensor, width: int | None) -> Tensor:
    """D z, by its support where no row has more than `width` non-zeros and gathering is cheaper."""
    if width is None or gather_cost(width, len(D), kind_of(D.device.type, D.element_size())) >= 1:
        return z @ D
    return sparse_decode(sparsify(z, width), D)


def _over(R: Penalty, squares: Tensor) -> Tensor:
    """Squares (B,) of rows as they are, or of the whole batch where R couples its rows."""
    return squares if R.rowwise else squares.sum().expand(len(squares))


def _square(a: Tensor) -> Tensor:
    wide = a.float() if a.dtype in (torch.float16, torch.bfloat16) else a
    return (wide * wide).sum(dim=-1)
