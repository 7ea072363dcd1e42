"""Least squares on the support of each row: refits, and gradients by the implicit function theorem.

With S the support of z,  D_S^T (D_S z_S - c) + R'(z_S) = 0  is solved through the Gram matrix D_S^T D_S, one a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proxsae.penalties import Penalty
from proxsae.penalties.base import holds_signs
from proxsae.pytorch.prox import slope
from proxsae.pytorch.topk import top_k
from proxsae.steps import REFIT_RTOL

REFIT_ROWS = 256  # rows whose supports are refitted together: the gather of their atoms is what takes memory


def refit(z: Tensor, c: Tensor, D: Tensor, R: Penalty) -> Tensor:
    """Least squares on each row's support, signs held where R fixes them (thm-refit, prop-refit-recovers).

    Rows of similar support go together: all rows of a piece are padded to its largest support.  Half precision, in
    which a Gram matrix means little, is refitted in float32.
    """
    if z.dtype in (torch.float16, torch.bfloat16):
        return refit(z.float(), c.float(), D.float(), R).to(z.dtype)
    sizes = (z != 0).sum(dim=-1)
    order = sizes.argsort()
    new, start = z, int((sizes == 0).sum())
    while start < len(z):
        stop = min(len(z), start + REFIT_ROWS)
        rows = order[start:stop]
        new = new.index_copy(0, rows, _refit_rows(z[rows], c[rows], D, R, int(sizes[rows[-1]])))
        start = stop
    return new


def _refit_rows(z: Tensor, c: Tensor, D: Tensor, R: Penalty, size: int) -> Tensor:
    indices, atoms, inverse = _support(z, D, size)
    old = z.gather(-1, indices)
    with torch.no_grad():
        delta = -_apply(inverse, _slope_on(old, indices, atoms, z, c, R))
        best = old + delta
    best = _newton(best, indices, atoms, inverse, z, c, R)
    if holds_signs(R):
        delta = delta + (best - best.detach()) - (old - old.detach())  # the same, with its derivative
        flips = (old != 0) & (best.sign() == -old.sign())  # a product of the two could underflow
        at = torch.where(flips, old / torch.where(flips, -delta, 1), torch.inf)
        first = at.amin(dim=-1, keepdim=True)
        fraction = first.clamp(max=1)
        best = torch.where((at == first) & flips, 0, (1 - fraction) * old + fraction * best)
    return torch.zeros_like(z).scatter(-1, indices, torch.where(old != 0, best, 0))


def implicit(z: Tensor, c: Tensor, D: Tensor, R: Penalty) -> Tensor:
    """The same codes, with gradients by the implicit function theorem on their support (thm-implicit-gradient)."""
    if z.dtype in (torch.float16, torch.bfloat16):
        return implicit(z.float(), c.float(), D.float(), R).to(z.dtype)
    starts = range(0, len(z), REFIT_ROWS)
    pieces = [_implicit_rows(z[i : i + REFIT_ROWS], c[i : i + REFIT_ROWS], D, R) for i in starts]
    return torch.cat(pieces) if pieces else z


def _implicit_rows(z: Tensor, c: Tensor, D: Tensor, R: Penalty) -> Tensor:
    size = int((z != 0).sum(dim=-1).max())
    indices, atoms, inverse = _support(z, D, size)
    on_support = _newton(z.gather(-1, indices), indices, atoms, inverse, z, c, R)
    return torch.zeros_like(z).scatter(-1, indices, torch.where(z.gather(-1, indices) != 0, on_support, 0))


def _newton(best: Tensor, indices: Tensor, atoms: Tensor, inverse: Tensor, z: Tensor, c: Tensor, R: Penalty) -> Tensor:
    """`best` again, as one Newton step  best - (D_S^T D_S)^-1 (slope - its value)  that does not move it.

    The slope is affine in the code, so that this solves for the support with the slope held where it is, which is at
    zero: its derivatives, of any order, are those of the solution.
    """
    settled: Tensor = _Newton.apply(_slope_on(best.detach(), indices, atoms, z, c, R), atoms, best.detach(), inverse)
    return settled


class _Newton(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(change: Tensor, atoms: Tensor, best: Tensor, inverse: Tensor) -> Tensor:  # type: ignore[override]
        return best.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
        change, atoms, _, inverse = inputs
        ctx.save_for_backward(change, atoms, inverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:  # type: ignore[override]
        change, atoms, inverse = ctx.saved_tensors
        if not torch.is_grad_enabled():  # the derivative of the inverse multiplies a zero
            return -_apply(inverse, grad), None, None, None
        inverse = _Inverse.apply(_gram(atoms), inverse)
        moved, zero = _apply(inverse, grad), _apply(inverse, change - change.detach())
        to_atoms = [a[..., None] * (b[:, None] @ atoms) for a, b in ((moved, zero), (zero, moved))]
        return -moved, to_atoms[0] + to_atoms[1], None, None


class _Inverse(torch.autograd.Function):
    """The inverse of a Gram matrix, which is given, with its derivative:  d(inverse) = -inverse d(gram) inverse."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gram: Tensor, inverse: Tensor) -> Tensor:  # type: ignore[override]
        return inverse.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (inverse,) = ctx.saved_tensors
        return -inverse @ grad @ inverse, None


def _support(z: Tensor, D: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices (B, s) of each row's support, its atoms (B, s, d), zero where padded, and their inverse Gram matrix."""
    indices = top_k(z.detach(), size)
    used = z.gather(-1, indices) != 0
    atoms = torch.where(used[..., None], D[indices], 0)
    with torch.no_grad():
        gram = _gram(atoms)
        norms = gram.diagonal(dim1=-2, dim2=-1).sqrt()
        norms = torch.where(norms > 0, norms, 1)  # atoms are compared by direction: a short one is not a dependent one
        scale = norms[:, :, None] * norms[:, None]
        padding = torch.diag_embed((~used).double())
        inverse = _inverse(gram / scale + padding, REFIT_RTOL * torch.finfo(z.dtype).eps) / scale
    return indices, atoms, inverse


def _gram(atoms: Tensor) -> Tensor:
    wide = atoms.double()
    return wide @ wide.mT


def _inverse(gram: Tensor, rtol: float) -> Tensor:
    """Inverses of positive semi-definite matrices (B, s, s) with unit diagonal: by Cholesky, pseudo-inverses where that
    is unsafe.

    The largest eigenvalue is at most s, and the smallest at least 1 / the trace of the inverse.  Pivots would not tell:
    in an unfortunate order of the atoms none of a singular matrix is small.
    """
    factor, failed = torch.linalg.cholesky_ex(gram)
    inverse = torch.cholesky_inverse(torch.where(failed[:, None, None] > 0, torch.eye(gram.shape[-1]).to(gram), factor))
    unsafe = (failed > 0) | ~(inverse.diagonal(dim1=-2, dim2=-1).sum(dim=-1) * gram.shape[-1] * rtol < 1)
    if bool(unsafe.any()):
        inverse[unsafe] = torch.linalg.pinv(gram[unsafe], rtol=rtol, hermitian=True)
    return inverse


def _slope_on(on_support: Tensor, indices: Tensor, atoms: Tensor, z: Tensor, c: Tensor, R: Penalty) -> Tensor:
    """D_S^T (D_S z_S - c) + R'(z_S), shape (B, s), with the signs of z."""
    residual = (on_support[:, None] @ atoms)[:, 0] - c
    return (atoms @ residual[..., None])[..., 0] + slope(R, z).gather(-1, indices)


def _apply(inverse: Tensor, a: Tensor) -> Tensor:
    return (inverse @ a.double()[..., None])[..., 0].to(a.dtype)
