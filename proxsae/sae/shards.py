"""The part of an SAE that one rank of a team holds: some of the latents, with codes that all shards agree on."""

from __future__ import annotations

from torch import Tensor
from torch.nn.utils import parametrize

from proxsae.conventions import Error
from proxsae.penalties import KSparse
from proxsae.sae.model import SAE
from proxsae.sae.team import Team
from proxsae.steps import FixedStep, Lipschitz

DIMENSION = {"W_enc": 1, "W_dec": 0, "b_enc": 0, "threshold": 0, "threshold_minus": 0}  # along which latents lie


def part_of(team: Team, name: str, a: Tensor) -> Tensor:
    """A shard's part of the weight of that name, or of anything of its shape, in memory of its own."""
    if name not in DIMENSION:
        return a.clone()
    part = team.part(a, DIMENSION[name])
    return part.T.contiguous().clone().T if name == "W_enc" else part.contiguous().clone()


def check_split(sae: SAE, team: Team) -> None:
    """Raise `Error` for what `split` cannot split."""
    R = sae.penalty
    if parametrize.is_parametrized(sae):
        msg = "an SAE with parametrised weights cannot be split over shards: shards=1 trains it"
        raise Error(msg)
    simple = sae.steps == 1 or (isinstance(sae.step, (Lipschitz, FixedStep)) and sae.on_supports)
    if not isinstance(R, KSparse) or not simple or sae.d_sae % team.shards:
        msg = f"{type(R).__name__}, {sae.d_sae} latents and {sae.step!r} cannot go to {team.shards} shards:"
        msg += " KSparse with steps of one size can, and latents that divide"
        raise Error(msg)


def split(sae: SAE, team: Team) -> SAE:
    """The part of a `KSparse` SAE that this rank holds, copied: its codes, its gradients, whole reconstructions.

    Codes of it are of its own latents, 0 where others are larger (lem-sharded-topk).  Raises `Error` for another
    penalty, for steps that look at several step sizes, and where latents do not divide.
    """
    check_split(sae, team)
    weights = {name: part_of(team, name, a.detach()) for name, a in sae.named_parameters()}
    return sae.twin(team=team, weights=weights)
