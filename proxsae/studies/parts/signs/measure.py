"""Signs: whether a signed latent carries a concept and its opposite, by signs of codes, contrast pairs and steering.

AbsTopK with P latents is a TopK with 2P latents whose atoms come in pairs d, -d (prop-splitting-codes).  So it is
compared with TopK of P and of 2P latents, and with JumpReLU, whose codes are not k-sparse.  Labels need no judge: the
two sentences of a pair differ in one word.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxsae import metrics
from proxsae.data import Contrast, contrasts
from proxsae.sae import SAE
from proxsae.steps import ExactStep
from proxsae.studies.density import matched, sample
from proxsae.studies.parts.depth.measure import BATCH, LR, penalties
from proxsae.studies.parts.signs.concepts import (
    Array,
    Pairs,
    Reading,
    balanced_accuracy,
    best_latent,
    by_words,
    difference_in_means,
    most_opposite,
    opposite,
    pseudo_values,
    reading,
    sides,
    sign_flip_p,
    wins,
)
from proxsae.studies.parts.signs.steering import clamped, ridge, steered
from proxsae.studies.statistics import holm
from proxsae.studies.task import Row, Setting, Task
from proxsae.training import train
from proxsae.training.recipe import mean_and_spread

FACTORS = {"abstopk": 1.0, "topk": 1.0, "topk2": 2.0, "jumprelu": 1.5}  # time of a training step, in AbsTopK's
PEERS = ("topk", "topk2", "jumprelu")
DEPTH = 16  # exact steps of "abstopk16", the same SAE as "abstopk"
OFTEN = 10  # firings above which the balance of a latent's signs is more than chance
TWO_SIDED = 0.1  # a live latent with at least this sign balance is two-sided
ROWS = 4096  # encoded together
OPPOSED = -0.9  # two atoms with a smaller cosine count as one direction in two parts


def tasks(setting: Setting) -> list[Task]:
    """One task for each SAE and seed, and one that compares all of them; concepts only on the packaged rows.

    SAEs are trained with one step on the rows of the setting and on both sides of the training-side contrast pairs,
    without their labels.  No training row has a held-out word.  Codes have k non-zeros a row, those of JumpReLU on
    average over held-out rows.
    """
    pairs = contrasts() if setting.packaged else ()
    found = []
    for seed in setting.seeds:
        for name, factor in FACTORS.items():
            run = partial(sae_rows, setting, pairs, name, seed)
            measuring = 1 + len(pairs) * (0.4 if name == "abstopk" else 0.1)
            seconds = measuring + factor * setting.seconds * setting.train_steps
            found.append(Task(f"signs {name} seed {seed}", seconds, run))
    if pairs:
        seconds = len(pairs) * (0.4 + 0.6 * len(setting.seeds))
        found.append(Task("signs comparison", seconds, partial(comparison_rows, setting, pairs)))
    return found


def sae_rows(setting: Setting, pairs: Sequence[Contrast], name: str, seed: int) -> list[Row]:
    """Train and save one SAE; measure its latents, the best latent of every concept, and steering with that latent."""
    rows = training_rows(setting.train, pairs)
    width = 2 * setting.d_sae if name == "topk2" else setting.d_sae
    torch.manual_seed(seed)
    R = penalties(setting.k, mean_and_spread(rows)[1])[name.removesuffix("2")]
    sae = SAE(rows.shape[1], width, R).to(rows.device)
    train(sae, rows, setting.train_steps, batch_size=BATCH, lr=LR, seed=seed, l0=setting.k, progress=False)
    sae, _ = matched(sae, sample(setting.test), setting.k)  # training brings JumpReLU only near k
    setting.keep(sae, f"signs-{name}-seed{seed}")
    about: Row = {"part": "signs", "sae": name, "seed": seed}
    found = [{**about, "kind": "latents", **latents(sae, setting.test)}]
    for title, deep in _depths(sae, name).items():
        found += ({**about, "kind": "concept", "sae": title, **concept(deep, pair)} for pair in pairs)
    return found + [{**about, "kind": "steering", **row} for row in steering(sae, pairs, name)]


def training_rows(rows: Tensor, pairs: Sequence[Contrast]) -> Tensor:
    """The rows (n, d), and both sides of the training-side pairs."""
    more = [side[~pair.held_out] for pair in pairs for side in (pair.positive, pair.negative)]
    return torch.cat([rows, *(torch.tensor(side).to(rows) for side in more)])


def _depths(sae: SAE, name: str) -> dict[str, SAE]:
    """The SAE, and for AbsTopK the same weights with more encoder steps too."""
    return {name: sae} | ({f"{name}{DEPTH}": sae.unrolled(DEPTH, ExactStep())} if name == "abstopk" else {})


@torch.no_grad()
def latents(sae: SAE, rows: Tensor) -> Row:
    """Signs of the codes of rows (n, d), and directions that two opposite latents share.

    live, dead      number of latents that fire on some row, and share of those that do not
    balance         mean over live latents of min(p+, p-) / max(p+, p-), counts of positive and negative firings; and
                    its quantiles balance_q10 ... balance_q90
    two_sided       share of live latents with balance >= TWO_SIDED
    often           number of latents that fire OFTEN times or more; often_two_sided the share that is two-sided of them
    fragments       number of live latents whose atom has a live partner with cosine < OPPOSED; fragmented is their
                    share.  fragments_all, fragmented_all: the same over all latents
    opposed         mean over all atoms of their most negative cosine
    nmse, l0        on the rows, to compare SAEs at
    """
    up, down = torch.zeros(2, sae.d_sae, device=rows.device, dtype=torch.long)
    error = total = fired = 0.0
    for x in rows.split(ROWS):
        z = sae.encode(x)
        up, down = up + (z > 0).sum(dim=0), down + (z < 0).sum(dim=0)
        error, total = error + float((x - sae.decode(z)).square().sum()), total + float(x.square().sum())
        fired += float((z != 0).sum())
    live = (up + down) > 0
    of_each = torch.minimum(up, down) / torch.maximum(up, down).clamp(min=1)
    balance, often = of_each[live].double().cpu().numpy(), of_each[(up + down) >= OFTEN]
    some = len(balance) > 0
    quantiles = {f"balance_q{q}": float(np.quantile(balance, q / 100)) if some else None for q in (10, 25, 50, 75, 90)}
    alive, every = (fragments(sae.W_dec[mask]) for mask in (live, torch.ones_like(live)))
    return {
        "latents": sae.d_sae, "live": len(balance), "dead": 1 - len(balance) / sae.d_sae,
        "balance": float(balance.mean()) if some else None, **quantiles,
        "two_sided": float((balance >= TWO_SIDED).mean()) if some else None, "often": len(often),
        "often_two_sided": float((often >= TWO_SIDED).double().mean()) if len(often) else None,
        "fragments": alive[0], "fragmented": alive[0] / len(balance) if some else None,
        "fragments_all": every[0], "fragmented_all": every[0] / sae.d_sae, "opposed": every[1],
        "nmse": error / total, "l0": fired / len(rows), "rows": len(rows),
    }  # fmt: skip


def fragments(atoms: Tensor) -> tuple[int, float | None]:
    """How many atoms (n, d) have a partner with cosine < OPPOSED, and the mean of their most negative cosines."""
    if len(atoms) < 2:
        return 0, None
    unit = metrics.unit_rows(atoms)
    least = torch.cat([(some @ unit.T).amin(dim=1) for some in unit.split(ROWS)])
    return int((least < OPPOSED).sum()), float(least.mean())


def concept(sae: SAE, pair: Contrast) -> Row:
    """The latent that separates the two sides best on the training side, measured on the held-out words.

    opposite        share of held-out pairs on whose two sides this latent has opposite signs
    opposite_best   the same for the latent that has opposite signs in the most training-side pairs
    both            mean number of latents that fire on both sides of a held-out pair
    both_opposite   the same for latents that fire with opposite signs
    """
    z, learn, held = _codes(sae, pair), ~pair.held_out, pair.held_out
    j, scores, how = _chosen(z, pair)
    found = by_words(wins(*scores), scores.words)
    i, sign = most_opposite(z.positive[learn], z.negative[learn])
    signs = np.sign(z.positive[held]) * np.sign(z.negative[held])
    return {
        **_named(pair), "latent": j, "auc": found.mean, "low": found.low, "high": found.high,
        "accuracy": balanced_accuracy(scores.positive, scores.negative, how),
        **sides(scores.positive, scores.negative),
        "opposite": float(opposite(scores.positive, scores.negative)),
        "opposite_best": float(opposite(sign * z.positive[held, i], sign * z.negative[held, i])),
        "both": float((signs != 0).sum(axis=1).mean()),
        "both_opposite": float((signs < 0).sum(axis=1).mean()),
    }  # fmt: skip


def _named(pair: Contrast) -> Row:
    n, words = int(pair.held_out.sum()), len(np.unique(pair.words[pair.held_out]))
    return {"concept": pair.name, "two_sided": int(pair.two_sided), "pairs": n, "words": words}


def _chosen(z: Pairs, pair: Contrast) -> tuple[int, Pairs, Reading]:
    """The best of the latents z (n, P), its held-out codes with the positive side up, and their reading."""
    learn, held = ~pair.held_out, pair.held_out
    j, sign = best_latent(z.positive[learn], z.negative[learn])
    up, down = sign * z.positive[:, j], sign * z.negative[:, j]
    return j, Pairs(up[held], down[held], pair.words[held]), reading(up[learn], down[learn])


@torch.no_grad()
def _codes(sae: SAE, pair: Contrast) -> Pairs:
    up, down = (sae.encode(sae.rows(side)).double().cpu().numpy() for side in (pair.positive, pair.negative))
    return Pairs(up, down, pair.words)


def steering(sae: SAE, pairs: Sequence[Contrast], name: str) -> list[Row]:
    """Clamp the latent of every two-sided concept to +q and to -q on its held-out rows, and move rows by DiM as far.

    x' = x + (c - z_j) d_j, so that the residual of the SAE stays.  q is the mean |z_j| over the training-side rows
    where z_j fires.  DiM moves the same rows along the difference in means, by the same norms.
    """
    probes = {pair.name: ridge(*_double(pair, ~pair.held_out)) for pair in pairs}
    found = []
    for pair in (pair for pair in pairs if pair.two_sided):
        z = _codes(sae, pair)
        learn, held = ~pair.held_out, pair.held_out
        j, sign = best_latent(z.positive[learn], z.negative[learn])
        seen = np.concatenate([z.positive[learn, j], z.negative[learn, j]])
        level = float(np.abs(seen[seen != 0]).mean()) if seen.any() else 0.0
        atom = sae.W_dec[j].detach().double().cpu().numpy()
        dim = difference_in_means(*_double(pair, learn))
        along = dim * (sign * float(np.linalg.norm(atom)) / float(np.linalg.norm(dim)))
        others = [probe for title, probe in probes.items() if title != pair.name]
        score = np.concatenate([z.positive[held, j], z.negative[held, j]])
        for direction, change in clamped(score, level, sae.penalty.nonneg, sign).items():
            for by, step in (("latent", atom), ("dim", along)):
                about = {"concept": pair.name, "two_sided": 1, "sae": name, "by": by, "direction": direction}
                found.append({**about, **steered(change, step, probes[pair.name], others)})
    return found


def _double(pair: Contrast, mask: Any) -> tuple[Array, Array]:
    return pair.positive[mask].astype(np.float64), pair.negative[mask].astype(np.float64)


def comparison_rows(setting: Setting, pairs: Sequence[Contrast]) -> list[Row]:
    """Held-out AUCs as means over seeds, with intervals over words; AbsTopK minus each peer, with p-values.

    The references need labels and have no seed: "dim" is the difference in means, "ridge" the probe that steering uses.
    p-values are those of `sign_flip_p`, and `p_holm` are Holm's over all comparisons of this task.
    """
    names = ("abstopk", f"abstopk{DEPTH}", *PEERS)
    held: dict[tuple[str, str], list[Pairs]] = {(name, pair.name): [] for name in names for pair in pairs}
    for seed in setting.seeds:
        for name in FACTORS:
            for title, sae in _depths(setting.kept(f"signs-{name}-seed{seed}"), name).items():
                for pair in pairs:
                    held[title, pair.name].append(_chosen(_codes(sae, pair), pair)[1])
    found, compared = [], []
    for pair in pairs:
        same: Row = {"part": "signs", "seed": None, "seeds": len(setting.seeds), **_named(pair)}
        found += [{**same, "kind": "mean", **row} for row in references(pair)]
        tables = {name: np.mean([wins(*scores) for scores in held[name, pair.name]], axis=0) for name in names}
        words = held["abstopk", pair.name][0].words
        for name, table in tables.items():
            mean, low, high, _ = by_words(table, words)
            found.append({**same, "kind": "mean", "sae": name, "auc": mean, "low": low, "high": high})
        for peer in PEERS:
            less = tables["abstopk"] - tables[peer]
            mean, low, high, _ = by_words(less, words)
            p = sign_flip_p(pseudo_values(less, words))
            compared.append({**same, "kind": "comparison", "sae": "abstopk", "peer": peer,
                             "difference": mean, "low": low, "high": high, "p": p})  # fmt: skip
    adjusted = holm([row["p"] for row in compared])
    return found + [{**row, "p_holm": p} for row, p in zip(compared, adjusted, strict=True)]


def references(pair: Contrast) -> list[Row]:
    """AUC and accuracy of directions that were fitted with labels, on the held-out words: the same for every seed."""
    learn, held = _double(pair, ~pair.held_out), _double(pair, pair.held_out)
    found = []
    for name, weights in (("dim", difference_in_means(*learn)), ("ridge", ridge(*learn).weights)):
        scores = Pairs(held[0] @ weights, held[1] @ weights, pair.words[pair.held_out])
        how = reading(learn[0] @ weights, learn[1] @ weights)
        mean, low, high, _ = by_words(wins(*scores), scores.words)
        accuracy = balanced_accuracy(scores.positive, scores.negative, how)
        found.append({"sae": name, "auc": mean, "low": low, "high": high, "accuracy": accuracy})
    return found
