"""L1 problems of which some latents are not penalised (lam_j = 0): they are solved for, and the rest is a lasso.

For given codes of the others, the unpenalised ones are least squares, which leaves the residual projected off their
atoms (lem-unpenalised).  So the others minimise

    1/2 ||Q c - Q D z||^2 + sum_j lam_j |z_j|,   Q the projection off the atoms with lam_j = 0,

for which working sets serve.  With `nonneg` least squares would leave the domain, and nothing is done here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from proxsae.certificates import certify
from proxsae.penalties import L1
from proxsae.penalties.base import with_lam
from proxsae.pytorch import lasso_working_sets


def solve(
    c: Tensor, D: Tensor, R: L1, tol: float, max_steps: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `lasso_working_sets.solve`, which it calls: codes, gap, products, `converged`, `at_rounding`, what is left."""
    lam = R.lam.detach() if isinstance(R.lam, Tensor) else torch.tensor(R.lam)
    lam = lam.to(D).expand(len(D))
    free = (lam == 0) & (D != 0).any(dim=1)
    if R.nonneg or not 0 < int(free.sum()) <= min(D.shape[1], len(D) - 1):
        return lasso_working_sets.solve(c, D, R, tol, max_steps, dtype)
    basis = torch.linalg.qr(D[free].T).Q
    rows, others = (a - (a @ basis) @ basis.T for a in (c, D[~free]))
    part, _, taken, _, _, left = lasso_working_sets.solve(
        rows, others, with_lam(R, lam[~free]), tol / 2, max_steps, torch.float64
    )
    codes = c.new_zeros(len(c), len(D))
    codes[:, ~free] = part
    codes[:, free] = torch.linalg.lstsq(D[free].T, (c - part @ D[~free]).T).solution.T
    settled = certify(c, D, codes, codes, R, tol, 1.0)[2]
    codes = codes.to(dtype)
    gap, converged, _ = certify(c, D, codes.double(), codes.double(), R, tol, 1.0)
    at_rounding = ~converged & settled & ~left
    return codes, gap, taken, converged, at_rounding, ~converged & ~at_rounding & (taken < max_steps)
