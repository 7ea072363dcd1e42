"""What is reported of codes and reconstructions.  A latent fires where z != 0, whatever the sign."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from proxsae.conventions import Error, check_finite
from proxsae.pytorch.arithmetic import as_tensor


def _pair(wide: bool = True, **given: Tensor) -> tuple[Tensor, Tensor]:
    """Two arrays of one shape; `Error` for other shapes, which would broadcast to the measure of something else."""
    (one, a), (other, b) = ((name, as_tensor(name, a)) for name, a in given.items())
    if a.shape != b.shape:
        msg = f"{one} has shape {tuple(a.shape)}, but {other} has {tuple(b.shape)}: both need one shape, row by row"
        raise Error(msg)
    return (a.double(), b.double()) if wide else (a, b)


def power_of_two(size: Tensor) -> Tensor:
    """The power of two that each size is 1 to 2 times as large as, and 1 for 0: a division by it rounds nothing.

    Squares of what is divided by it neither overflow nor vanish, so that no measure hangs on the unit of x.
    """
    power = size / (2 * torch.frexp(size).mantissa)
    return torch.where(power.isfinite() & (power > 0), power, 1.0)


def _in_unit_of(x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    unit = power_of_two(x.abs().max()) if x.numel() else 1.0
    return x / unit, other / unit


def unit_rows(a: Tensor) -> Tensor:
    """The rows of a (..., d) in float64 at length 1, whatever their scale; rows of zeros stay."""
    a = a.detach().double()
    return torch.nn.functional.normalize(a / power_of_two(a.abs().amax(dim=-1, keepdim=True)), dim=-1)


def nmse(x: Tensor, xhat: Tensor) -> float:
    """sum ||x - xhat||^2 / sum ||x||^2 over all rows, in float64; x, xhat (..., d)."""
    x, xhat = _in_unit_of(*_pair(x=x, xhat=xhat))
    return ratio((x - xhat).square().sum(), x.square().sum())


def explained_variance(x: Tensor, xhat: Tensor) -> float:
    """1 - sum ||x - xhat||^2 / sum ||x - mean||^2: a ratio of sums, the mean taken over the rows of x (..., d)."""
    x, xhat = _in_unit_of(*_pair(x=x, xhat=xhat))
    rows = x.reshape(-1, x.shape[-1])
    return 1 - ratio((rows - xhat.reshape(rows.shape)).square().sum(), (rows - rows.mean(dim=0)).square().sum())


def cosine(x: Tensor, xhat: Tensor) -> float:
    """The mean cosine between the rows of x and xhat (..., d), which is 0 for a row of zeros."""
    return float(cosines(x, xhat).mean())


def cosines(x: Tensor, xhat: Tensor) -> Tensor:
    """The cosine between each row of x and that of xhat (..., d), in float64: shape (...)."""
    one, other = (a / power_of_two(a.abs().amax(dim=-1, keepdim=True)) for a in _pair(x=x, xhat=xhat))
    return torch.cosine_similarity(one, other, dim=-1)


def shrinkage(x: Tensor, xhat: Tensor) -> float:
    """The mean of ||xhat|| / ||x|| over the rows of x and xhat (..., d), but for rows of zeros of x.

    Below 1 where an L1 penalty pulls codes to 0.  Source: SynthSAEBench.
    """
    x, xhat = _in_unit_of(*_pair(x=x, xhat=xhat))
    sizes, kept = x.norm(dim=-1), (x != 0).any(dim=-1)
    return float((xhat.norm(dim=-1)[kept] / sizes[kept]).mean())


def l0(z: Tensor) -> float:
    """The mean number of non-zeros per row of z (..., P)."""
    z = as_tensor("z", z)
    return ratio((z != 0).sum(), torch.tensor(z.shape[:-1].numel()))


def dead_fraction(z: Tensor) -> float:
    """The share of latents that fire on no row of z (..., P)."""
    z = as_tensor("z", z)
    return 1 - float((z != 0).reshape(-1, z.shape[-1]).any(dim=0).float().mean())


def sign_balance(z: Tensor) -> Tensor:
    """Per latent, min(p+, p-) / max(p+, p-) with p+, p- its counts of positive and negative firings: (..., P) -> (P,).

    0 for a latent of one sign and for a dead one; 1 for one that fires equally often with both.
    """
    z = as_tensor("z", z)
    rows = z.reshape(-1, z.shape[-1])
    up, down = (rows > 0).sum(dim=0), (rows < 0).sum(dim=0)
    return torch.minimum(up, down) / torch.maximum(up, down).clamp(min=1)


def support_change(before: Tensor, after: Tensor) -> float:
    """The mean Jaccard distance 1 - |S and S'| / |S or S'| of the supports of two codes (..., P); 0 for empty ones."""
    before, after = _pair(False, before=before, after=after)
    one, other = before != 0, after != 0
    return mean_jaccard((one & other).sum(dim=-1), (one | other).sum(dim=-1))


def mean_jaccard(shared: Tensor, union: Tensor) -> float:
    """The mean of 1 - shared / union over rows of counts (...), 0 for an empty union."""
    return float((1 - torch.where(union > 0, shared / union.clamp(min=1), 1.0)).mean())


def ratio(part: Tensor, whole: Tensor) -> float:
    """Part / whole, and 0 where both are 0."""
    if float(whole) == 0:
        return 0.0 if float(part) == 0 else float("inf")
    return float(part) / float(whole)


class Match(NamedTuple):
    """Atoms matched one to one: atom own[i] of D with atom true[i] of the other, which have the cosine cosine[i]."""

    own: Tensor
    true: Tensor
    cosine: Tensor


def _atom_cosines(D: Tensor, truth: Tensor) -> Tensor:
    """The cosines (P, P') between the atoms of D (P, d) and of `truth` (P', d), in float64."""
    D, truth = as_tensor("D", D), as_tensor("truth", truth)
    for name, W in (("D", D), ("truth", truth)):
        if W.ndim != 2 or W.shape[1] != D.shape[-1]:
            msg = f"{name} has shape {tuple(W.shape)}, but D and truth need (P, d) and (P', d), of one width"
            raise Error(msg)
        check_finite(name, W)
    return unit_rows(D) @ unit_rows(truth).T


def match(D: Tensor, truth: Tensor, signed: bool = True) -> Match:
    """Match the atoms of D (P, d) and of `truth` (P', d) one to one, so that the sum of their |cosine| is largest.

    Not `signed`, it is the sum of the cosines.  min(P, P') pairs, in the order of D; cosines keep their signs.
    """
    cosines = _atom_cosines(D, truth)
    found = linear_sum_assignment((cosines.abs() if signed else cosines).cpu().numpy(), maximize=True)
    own, true = (torch.as_tensor(indices, device=cosines.device) for indices in found)
    return Match(own, true, cosines[own, true])


def recovery(D: Tensor, truth: Tensor) -> float:
    """The mean |cosine| between the atoms of D (P, d) and of `truth` (P', d), matched one to one to make it largest.

    SynthSAEBench calls it MCC.
    """
    return float(match(D, truth).cosine.abs().mean())


def _nearest(D: Tensor, truth: Tensor) -> Tensor:
    """The index of the atom of `truth` that is nearest to each atom of D, by |cosine|."""
    cosines = _atom_cosines(D, truth)
    if not cosines.numel():
        msg = f"D has {len(cosines)} atoms and truth {cosines.shape[1]}, but nearest ones need 1 or more of each"
        raise Error(msg)
    return cosines.abs().argmax(dim=1)


def uniqueness(D: Tensor, truth: Tensor) -> float:
    """The number of atoms of `truth` (P', d) that are nearest to some atom of D (P, d), by |cosine|, over P.

    1 where no two atoms of D are nearest to the same one.  Source: SynthSAEBench.
    """
    nearest = _nearest(D, truth)
    return len(nearest.unique()) / len(nearest)


def latent_f1(z: Tensor, truth: Tensor, D: Tensor, true_D: Tensor) -> float:
    """The mean over latents of F1 = 2 hits / (firings of the latent + firings of the true latent that it is for).

    That one has the atom of true_D (P', d) that is nearest to the latent's of D (P, d), by |cosine|; a hit is a row of
    z (..., P) and of truth (..., P') where both fire.  A latent is 0 that fires on no row.  Source: SynthSAEBench.
    """
    z, truth = as_tensor("z", z), as_tensor("truth", truth)
    nearest = _nearest(D, true_D)
    if z.shape[:-1] != truth.shape[:-1] or (z.shape[-1], truth.shape[-1]) != (len(D), len(true_D)):
        msg = f"z has shape {tuple(z.shape)} and truth {tuple(truth.shape)}, but both need the same rows, and as many"
        msg += f" latents as D and true_D have atoms: {len(D)} and {len(true_D)}"
        raise Error(msg)
    one, other = (codes.reshape(-1, codes.shape[-1]) != 0 for codes in (z, truth))
    other = other[:, nearest]
    hits, firings = (one & other).sum(dim=0), one.sum(dim=0) + other.sum(dim=0)
    return float((2 * hits / firings.clamp(min=1)).mean())


def code_correlation(z: Tensor, truth: Tensor) -> float:
    """The mean |Pearson correlation| of latents of z (..., P) and of `truth` (..., P') that are matched one to one to
    make it largest.  Latents of `truth` that are constant over the rows are left out; one of z correlates with none.

    Papers on identifiability call it MCC.  Raises `Error` where rows differ in number, and where no latent varies.
    """
    rows = [codes.reshape(-1, codes.shape[-1]).double() for codes in (as_tensor("z", z), as_tensor("truth", truth))]
    if len(rows[0]) != len(rows[1]):
        msg = f"z has {len(rows[0])} rows, but truth has {len(rows[1])}: both need the same rows"
        raise Error(msg)
    own, true = (codes[:, (codes != codes[:1]).any(dim=0)] for codes in rows)
    if not true.numel():
        msg = "truth has no latent that varies over the rows, and a correlation needs one"
        raise Error(msg)
    own, true = (unit_rows((codes - codes.mean(dim=0)).T) for codes in (own, true))
    sizes = (own @ true.T).abs()
    found = linear_sum_assignment(sizes.cpu().numpy(), maximize=True)
    return float(sizes[found].sum()) / min(rows[0].shape[1], len(true))


def aligned(z: Tensor, matched: Match, d_sae: int) -> Tensor:
    """Codes z (..., P) in the latents (..., d_sae) that theirs are matched with, negated where the cosine is negative.

    Raises `Error` where a latent of z has no match, since what it adds would be lost.
    """
    if len(matched.own) < z.shape[-1]:
        msg = f"z has {z.shape[-1]} latents, but {len(matched.own)} matches: each needs one, or its firings are lost"
        raise Error(msg)
    moved = z.new_zeros(*z.shape[:-1], d_sae)
    moved[..., matched.true] = z[..., matched.own] * matched.cosine.sign().to(z.dtype)
    return moved


def support_f1(z: Tensor, truth: Tensor) -> float:
    """2 hits / (entries of z + entries of truth) over all rows (..., P): a hit is non-zero in both, with one sign."""
    z, truth = _pair(False, z=z, truth=truth)
    hits = (z.sign() * truth.sign() > 0).sum()
    return ratio(2 * hits, (z != 0).sum() + (truth != 0).sum())


def coefficient_error(z: Tensor, truth: Tensor) -> float:
    """||z - truth|| / ||truth|| over all entries of (..., P), in float64.  The codes must belong to unit-norm atoms."""
    truth, z = _in_unit_of(*_pair(truth=truth, z=z))
    return ratio((z - truth).norm(), truth.norm())


def code_iou(z: Tensor, other: Tensor, matched: Match) -> float:
    """The mean of |S and S'| / |S or S'| over the rows of z (..., P), once aligned, and of `other` (..., P').

    1 where both are empty.  Signs do not count.  Raises `Error` as `aligned`.
    """
    return 1 - support_change(aligned(z, matched, other.shape[-1]), other)
