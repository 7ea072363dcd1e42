"""Stability: whether SAEs of different seeds learn the same latents and fire them on the same rows."""

from __future__ import annotations

from functools import partial
from itertools import combinations, product

import torch

from proxsae import metrics
from proxsae.steps import ExactStep
from proxsae.studies.density import matched, sample
from proxsae.studies.parts.depth.measure import TRAINING, name_of
from proxsae.studies.task import Row, Setting, Task

STEPS = (1, 16)
ROWS = 512  # held-out ones on which codes are compared
CODES = {"topk": 15, "abstopk": 15}  # time of the codes of one SAE at all `STEPS`, in training steps
MATCHED = 100  # the same, where the density is matched
PAIR = 0.2  # seconds to match two dictionaries of 1152 latents; at most cubic in that number


def tasks(setting: Setting) -> list[Task]:
    """One task for each penalty and training depth, on SAEs that the part depth has saved; none for one seed."""
    seeds = len(setting.seeds)
    if seeds < 2:
        return []
    pairs = PAIR * (setting.d_sae / 1152) ** 3 * seeds * (seeds - 1) / 2
    return [
        Task(
            f"stability {penalty}-train{T}",
            CODES.get(penalty, MATCHED) * setting.seconds * seeds + pairs,
            partial(stability, setting, penalty, T),
        )
        for penalty, T in product(TRAINING, setting.train_depths)
    ]


@torch.no_grad()
def stability(setting: Setting, penalty: str, T: int) -> list[Row]:
    """Similarity of atoms and codes, for every pair of seeds and number of encoder steps.

    Atoms are matched one to one so that the sum of |cosine| is largest (of cosines for non-negative codes).  Latents
    that are dead on the rows are matched too.

    cosine   mean |cosine| (or cosine) of the matched atoms, over pairs with at least one live latent: training does not
             move dead atoms, so that pairs of two say nothing
    live     share of the matched pairs of which at least one latent is live
    iou      mean over rows of |S and S'| / |S or S'|, the supports of the codes after matching

    Codes are those of `ExactStep`, on the first `ROWS` held-out rows, at a lam that gives every code k non-zeros.
    """
    x = setting.test[:ROWS]
    saes = {seed: setting.kept(name_of(penalty, T, seed)) for seed in setting.seeds}
    codes = {
        (seed, steps): matched(sae.unrolled(steps, ExactStep()), sample(x), setting.k)[0].encode(x)
        for (seed, sae), steps in product(saes.items(), STEPS)
    }
    rows = []
    for one, other in combinations(setting.seeds, 2):
        signed = not saes[one].penalty.nonneg
        pairs = metrics.match(saes[one].W_dec, saes[other].W_dec, signed)
        cosines = pairs.cosine.abs() if signed else pairs.cosine
        for steps in STEPS:
            z, w = codes[one, steps], codes[other, steps]
            live = (z != 0).any(dim=0)[pairs.own] | (w != 0).any(dim=0)[pairs.true]
            rows.append({
                "part": "stability", "penalty": penalty, "train_depth": T, "steps": steps, "seed": one, "other": other,
                "cosine": float(cosines[live].mean()) if bool(live.any()) else None,
                "live": float(live.double().mean()),
                "iou": metrics.code_iou(z, w, pairs), "rows": len(x), "l0": (metrics.l0(z) + metrics.l0(w)) / 2,
            })  # fmt: skip
    return rows
