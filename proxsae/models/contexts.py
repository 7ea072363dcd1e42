"""In which contexts latents fire most, of either sign: the tokens around the largest codes, and around the smallest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from proxsae.conventions import check_count
from proxsae.models.batches import each_of, evaluating
from proxsae.models.interventions import fitting, warn_elsewhere
from proxsae.models.places import Place
from proxsae.sae import SAE

AROUND = 12  # tokens before the one that fires, and half as many after it


@dataclass(frozen=True)
class Context:
    """A code z_j, the ids of the tokens around it, and which of them it belongs to."""

    value: float
    ids: tuple[int, ...]
    at: int


@dataclass(frozen=True)
class Contexts:
    """Of one latent: how many of the tokens it fires on with either sign, and its strongest contexts of either sign."""

    latent: int
    up: int
    down: int
    positive: tuple[Context, ...]
    negative: tuple[Context, ...]


def strongest(
    model: nn.Module,
    batches: Iterable[Any],
    module: str,
    sae: SAE,
    count: int = 10,
    at: str = "output",
    skip: int = 0,
) -> tuple[list[Contexts], int]:
    """The `count` strongest contexts of every latent and sign, and how many tokens were looked at.

    The other arguments and errors are those of `loss_recovered`.  Memory: 4 `count` numbers a latent, the ids of
    all tokens, and dense codes of one batch.
    """
    check_count("count", count, 1)
    place = Place(model, module, at, skip)
    warn_elsewhere([sae], module, at)
    best = torch.zeros(2, count, sae.d_sae)  # the magnitudes of either sign, largest first
    where = torch.zeros(2, count, sae.d_sae, dtype=torch.int64)
    fires = torch.zeros(2, sae.d_sae, dtype=torch.int64)
    rows: list[Tensor] = []  # of token ids, without padding
    row_of: list[Tensor] = []
    seen = 0
    with evaluating(model):
        for batch in each_of(batches, model):
            x, which = place.read(partial(batch.run, model))
            batch.check_tokens(x, "a context")
            which = torch.ones(x.shape[:2], dtype=torch.bool) if which is None else which.cpu()
            z = sae.encode(fitting(x, sae, module)[which.to(x.device)]).float().cpu()
            first = len(rows)
            rows += [ids[real] for ids, real in zip(batch.ids.cpu(), batch.real.cpu(), strict=True)]
            column = batch.real.cpu().cumsum(dim=1) - 1
            row = torch.arange(first, len(rows))[:, None].expand(which.shape)
            row_of.append(torch.stack([row[which], column[which]], dim=1))
            for side, signed in enumerate((z, -z)):
                strength = signed.clamp(min=0)
                fires[side] += (strength > 0).sum(dim=0)
                values, at_row = strength.topk(min(count, len(z)), dim=0)
                merged = torch.cat([best[side], values])
                places = torch.cat([where[side], at_row + seen])
                best[side], order = merged.topk(count, dim=0)
                where[side] = places.gather(0, order)
            seen += len(z)
    spots = torch.cat(row_of) if row_of else torch.zeros(0, 2, dtype=torch.int64)

    def contexts(latent: int, side: int) -> tuple[Context, ...]:
        found = []
        for value, spot in zip(best[side, :, latent].tolist(), where[side, :, latent].tolist(), strict=True):
            if value > 0:
                row, column = spots[spot].tolist()
                start = max(0, column - AROUND)
                ids = tuple(rows[row][start : column + AROUND // 2 + 1].tolist())
                found.append(Context(value if side == 0 else -value, ids, column - start))
        return tuple(found)

    table = [Contexts(j, int(fires[0, j]), int(fires[1, j]), contexts(j, 0), contexts(j, 1)) for j in range(sae.d_sae)]
    return table, seen
