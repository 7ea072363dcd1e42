"""Dictionary learning proper: codes and atoms in turn, each the best for the other, without a gradient.

    codes  z = the codes of the SAE for its present atoms: solved, by pursuit, or by some steps
    atoms  D = (Z^T Z)^-1 Z^T (X - b) for all rows (MOD, Engan, Aase and Husoy 1999); or a sweep over the atoms by sums
           over batches (Mairal, Bach, Ponce and Sapiro 2010); then at norm 1

It says what a perfect learner reaches with that encoder, and its dictionary is a start for `train`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proxsae.conventions import Error, check_count
from proxsae.metrics import dead_fraction, l0, nmse
from proxsae.pytorch.autocast import outside_autocast
from proxsae.sae import SAE
from proxsae.sae.evaluation import default_batch
from proxsae.sae.model import check_sae
from proxsae.training.recipe import Recipe, Source, begins_at_mean
from proxsae.training.state import tie_encoder
from proxsae.training.terminal import progress_of

RIDGE = 1e-6  # of the mean diagonal of Z^T Z: latents that fire together in all rows have no least squares of their own
SETTLED = 1e-5  # relative change of the dictionary at which learning on all rows is over


def learn_dictionary(
    sae: SAE,
    activations: Any,
    rounds: int = 30,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, float]:
    """Learn the atoms of `sae` in place on rows (n, d_in), codes and atoms in turn; return nmse, l0, dead and rounds.

    sae: its codes are those that it gives as it is: `px.SAE(d, P, px.L1(lam), steps=math.inf)` solves,
    `px.SAE(d, P, px.KSparse(k), steps=k, step=px.OMP())` pursues, any other takes its steps.
    activations: as `train` takes them.
    rounds: how often codes and atoms are worked out, at most; without `batch_size` on all rows, which have to fit into
    memory with their codes, and fewer where the dictionary no longer changes.
    batch_size: on so many rows a round, drawn in shuffled epochs, for rows that do not fit: sums of all batches so far,
    of which late ones weigh more, then update each atom once.
    seed: of the order of the rows, and of which rows take the place of atoms that never fire.
    progress: as in `train`.

    W_enc becomes W_dec^T and b_enc 0 in every round.  b_dec begins at the mean row where it is 0, and stays.  Nothing
    makes the error fall in every round where codes are not optimal, and no global optimum is promised.  Measures are of
    the last rows that were coded, by the atoms that they were coded with.
    Raises `Error` as `train` does for rows, and where W_dec is frozen.

    >>> import math, proxsae as px
    >>> x = px.data.planted(n=300, d_in=12, d_sae=16, k=2).x
    >>> sae = px.SAE(12, 16, px.KSparse(2), steps=2, step=px.OMP())
    >>> px.learn_dictionary(sae, x, rounds=20)["nmse"] < 0.2
    True
    """
    rounds = check_count("rounds", rounds, 1)
    if not check_sae(sae).trained("W_dec"):
        msg = "W_dec is frozen, and it is what learn_dictionary learns: sae.W_dec.requires_grad_(True)"
        raise Error(msg)
    size = None if batch_size is None else check_count("batch_size", batch_size, 1)
    recipe = Recipe(rounds, size or 1, seed=seed).checked(sae, None)
    source = Source(sae, activations, recipe, None)
    mean, _ = source.mean_and_spread()
    if begins_at_mean(sae):
        sae.set_weight("b_dec", mean.to(sae.dtype))
    return _learn(sae, source, rounds, size, recipe.seed, progress)


@torch.no_grad()
@outside_autocast
def _learn(
    sae: SAE, source: Source, rounds: int, size: int | None, seed: int, progress: bool | None
) -> dict[str, float]:
    inner, draw = sae.twin(normalize="none"), torch.Generator().manual_seed(seed)
    rows = source.everything() if size is None else None
    A = B = None
    with progress_of(rounds, 0, progress) as show:
        for number in range(1, rounds + 1):
            x = source.batch(number - 1) if rows is None else rows
            z, xhat = coded(inner, x)
            found = {"nmse": nmse(x, xhat), "l0": l0(z), "dead": dead_fraction(z)}
            show(found)
            before, c = sae.W_dec.double().clone(), (x - sae.b_dec).double()
            ZZ, ZX = z.T.double() @ z.double(), z.T.double() @ c
            if rows is not None:
                D = torch.linalg.solve(ZZ + RIDGE * ZZ.diagonal().mean() * torch.eye(len(ZZ)).to(ZZ), ZX)
            else:
                kept = 1 - 1 / number
                A, B = (ZZ, ZX) if A is None or B is None else (kept * A + ZZ, kept * B + ZX)
                D = _swept(before, A, B)
            D = _alive(D, ZZ.diagonal() if A is None else A.diagonal(), (x - xhat).double(), before, draw)
            _take(sae, D)
            change = float(torch.linalg.vector_norm(D - before) / torch.linalg.vector_norm(before))
            if rows is not None and change < SETTLED:
                break
    return {**found, "rounds": float(number)}


def coded(sae: SAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and reconstructions of rows, some at a time."""
    z = torch.cat([sae.encode(part) for part in x.split(default_batch(sae))])
    return z, sae.decode(z)


def _swept(D: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """Each atom moved once, the others held, to where  1/2 tr(D^T A D) - tr(D^T B)  is least, at norm at most 1."""
    D = D.clone()
    for j in (A.diagonal() > 0).nonzero()[:, 0].tolist():
        atom = D[j] + (B[j] - A[j] @ D) / A[j, j]
        D[j] = atom / torch.linalg.vector_norm(atom).clamp(min=1)
    return D


def _alive(D: Tensor, fired: Tensor, error: Tensor, before: Tensor, draw: torch.Generator) -> Tensor:
    """Atoms at norm 1; one that never fires becomes what is left of a row, drawn by the square of its error."""
    norms = torch.linalg.vector_norm(D, dim=1, keepdim=True)
    D = torch.where(norms > 0, D / torch.where(norms > 0, norms, 1), before)
    (dead,) = ((fired == 0) | (norms[:, 0] == 0)).nonzero(as_tuple=True)
    weights = error.square().sum(dim=1).cpu()
    count = min(len(dead), int((weights > 0).sum()))
    if count:
        rows = torch.multinomial(weights, count, generator=draw).to(D.device)
        D[dead[:count]] = torch.nn.functional.normalize(error[rows], dim=1)
    return D


def _take(sae: SAE, D: Tensor) -> None:
    sae.set_weight("W_dec", D.to(sae.dtype))
    tie_encoder(sae)
