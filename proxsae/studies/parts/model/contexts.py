"""Whether the two signs of a latent mean two things: contexts told apart, and the model moved to either side.

A latent fires with z > 0 in some contexts and with z < 0 in others.  Two judges, neither of which is a model: a probe
that learns the difference on one half of the texts and is tested on the other, and the model's own likelihood of what
came after the tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from proxsae.models.interventions import steer
from proxsae.models.losses import log_probabilities
from proxsae.models.places import positions
from proxsae.sae import SAE
from proxsae.studies.loop import Loop, States
from proxsae.studies.parts.signs.concepts import auc
from proxsae.studies.task import Row

HALF = 5  # contexts of each sign in each half of the texts
TOLD = 0.9  # AUC from which five contexts and five count as told apart: 1.6 % of latents reach it by chance
LATENTS = 12  # that are steered, of each SAE
PROMPTS = (4, 32)  # rows, and their first tokens, on which they are


class Sides(NamedTuple):
    """Of one latent the numbers of the tokens with its strongest codes, and the mean |z| of them.

    rows (2, 2, HALF)   of either half of the texts, with z > 0 and with z < 0
    """

    latent: int
    rows: Tensor
    value: float


def two_sides(z: Tensor, sequence: Tensor) -> list[Sides]:
    """The latents of codes z (n, P) that fire `HALF` times with either sign in either half of the texts."""
    late = sequence > sequence.median()
    values, rows = [], []
    for within in (~late, late):
        where = within.nonzero()[:, 0]
        if len(where) < HALF:
            return []
        for sign in (1, -1):
            strongest, at = (sign * z[where]).topk(HALF, dim=0)
            values.append(strongest)
            rows.append(where[at])
    size, numbers = torch.stack(values), torch.stack(rows).reshape(2, 2, HALF, z.shape[1])
    enough = (size[:, -1] > 0).all(dim=0).nonzero()[:, 0]
    return [Sides(j, numbers[..., j], float(size[..., j].mean())) for j in enough.tolist()]


def apart(rows: Tensor) -> float:
    """The AUC of the difference in means on rows (2, 2, m, d), of which the first half is learned from.

    w = mean(learn+) - mean(learn-), and the AUC is that of w . x on the others.
    """
    learn, test = rows.double()
    score = test @ (learn[0].mean(dim=0) - learn[1].mean(dim=0))
    return float(auc(score[0].numpy(), score[1].numpy()))


def contexts(states: States, sides: list[Sides]) -> Row:
    """How many latents have contexts of either sign, and of how many these are told apart.

    latents       that fire `HALF` times with either sign in either half of the texts
    by_probe      share of them told apart, by the difference in means of the activations at the input of the module,
                  each coordinate divided by its standard deviation; None without such activations
    by_tokens     the same by the tokens alone: the difference in means of one-hot vectors
    auc_probe, auc_tokens   means over latents; `TOLD` is the AUC that counts as told apart
    shared        mean share of the tokens of either side that are tokens of the other too, |A and B| / |A or B|

    Half of the texts are learned from, the other half is judged.
    """
    if not sides:
        return {"kind": "contexts", "latents": 0, **dict.fromkeys(("by_probe", "by_tokens"))}
    below = states.below
    if below.shape[1]:
        spread = below.float().std(dim=0)
        below = below / torch.where(spread > 0, spread, torch.inf)
    found: dict[str, list[float]] = {"probe": [], "tokens": []}
    shared = []
    for one in sides:
        if below.shape[1]:
            found["probe"].append(apart(below[one.rows]))
        ids = states.token[one.rows]
        found["tokens"].append(apart(ids[..., None] == ids.unique()))
        up, down = (set(ids[:, side].flatten().tolist()) for side in (0, 1))
        shared.append(len(up & down) / len(up | down))
    row: Row = {"kind": "contexts", "latents": len(sides), "shared": float(np.mean(shared))}
    for name, values in found.items():
        row[f"by_{name}"] = float(np.mean([value >= TOLD for value in values])) if values else None
        row[f"auc_{name}"] = float(np.mean(values)) if values else None
    return row


def steering(loop: Loop, sae: SAE, sides: list[Sides], seed: int) -> Row:
    """Whether +v and -v in a latent move the model towards what follows on its own positive and negative contexts.

    For `LATENTS` latents, drawn by `seed`: z_j is set to +v and to -v, v its mean |z|, on the beginnings of a few
    texts.  With l(y) = mean log p(y | +v) - mean log p(y | -v), means over their tokens, the effect is the mean of l
    over the tokens that follow on positive contexts, less that over those that follow on negative ones.

    latents               that were steered
    steered               share of them with an effect > 0
    steered_other         the same with the contexts of another latent, which say what chance gives
    effect, effect_other  their means, in nats
    """
    drawn = np.random.default_rng(seed).permutation(len(sides))[:LATENTS]
    chosen = [one for one in (sides[i] for i in drawn) if all(len(after) for after in _following(loop, one))]
    if len(chosen) < 2:
        return {"kind": "steering", "latents": 0, **dict.fromkeys(("steered", "steered_other"))}
    own: list[float] = []
    other: list[float] = []
    for number, one in enumerate(chosen):
        up, down = (_mean_log_probabilities(loop, sae, {one.latent: sign * one.value}) for sign in (1, -1))
        for effects, whose in ((own, one), (other, chosen[number - 1])):
            positive, negative = ((up - down)[after].mean() for after in _following(loop, whose))
            effects.append(float(positive - negative))
    return {
        "kind": "steering", "latents": len(chosen),
        "steered": float(np.mean([e > 0 for e in own])), "effect": float(np.mean(own)),
        "steered_other": float(np.mean([e > 0 for e in other])), "effect_other": float(np.mean(other)),
    }  # fmt: skip


def _following(loop: Loop, one: Sides) -> list[Tensor]:
    """The ids of the tokens that follow on the positive contexts of a latent, and on the negative ones."""
    after = (loop.states.next[one.rows[:, side]].flatten() for side in (0, 1))
    return [ids[ids >= 0] for ids in after]


def _mean_log_probabilities(loop: Loop, sae: SAE, latents: dict[int, float]) -> Tensor:
    """log p(y) of every token y (V,), with the latents set, mean over the tokens of the prompts that count."""
    batch = loop.prompts(*PROMPTS)
    with steer(loop.model, loop.module, sae, latents, loop.at, loop.skip):
        found = log_probabilities(batch.run(loop.model), batch, 0)
    which = positions(batch.real, batch.ids[..., None], loop.skip)
    counted = (batch.real if which is None else which & batch.real)[:, :-1]
    return found[counted].mean(dim=0).cpu()
