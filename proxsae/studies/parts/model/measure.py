"""What SAEs in the place that the rows come from cost the model, by the number of encoder steps, at equal density.

The SAEs are those of the part on depth.  Whether a lower error helps the model is a question to the model: its loss and
its predictions are measured with the reconstruction in place, on texts.
"""

from __future__ import annotations

from functools import partial
from math import prod

import torch

from proxsae import metrics
from proxsae.models.batches import evaluating
from proxsae.models.probing import probe
from proxsae.studies.density import sample
from proxsae.studies.loop import Loop
from proxsae.studies.parts.depth.measure import FURTHER, MEASURING, RULES, STEPS, at_density, name_of
from proxsae.studies.parts.model.contexts import LATENTS, PROMPTS, contexts, steering, two_sides
from proxsae.studies.task import Row, Setting, Task

PENALTIES = ("abstopk", "topk", "jumprelu", "relu")  # the published SAEs
SIGNED = ("abstopk",)  # whose two signs are looked at
PROBED = (1, 4, 16)  # latents of a probe
BASELINES = 2.5  # passes that the first comparison takes beyond those of the others


def tasks(setting: Setting) -> list[Task]:
    """One task for each SAE, on SAEs that the part depth has saved; none without a model in the loop."""
    loop = setting.loop
    found: list[Task] = []
    if loop is None:
        return []
    for seed in setting.seeds:
        for penalty in PENALTIES:
            for depth in setting.train_depths:
                passes = 1 + len(STEPS) + (0 if found else BASELINES)
                if signs := penalty in SIGNED and depth == min(setting.train_depths):
                    passes += 2 * LATENTS * prod(PROMPTS) / loop.tokens
                codes = MEASURING[penalty] + FURTHER[penalty] * sum(STEPS) * loop.tokens / 256
                run = partial(rows, setting, loop, penalty, depth, seed, signs)
                seconds = passes * loop.seconds + codes * setting.seconds
                found.append(Task(f"model {name_of(penalty, depth, seed)}", seconds, run))
    return found


@torch.no_grad()
def rows(setting: Setting, loop: Loop, penalty: str, depth: int, seed: int, signs: bool) -> list[Row]:
    """What one SAE does to the model: a row for each number of exact steps, and where `signs`, rows on its two signs.

    loss, loss_mean, loss_zero, loss_spliced, recovered_mean, recovered_zero, kl
                    as `px.models.loss_recovered` has them, without intervals over texts: those here are over seeds
    excess          loss_spliced - loss: what the SAE costs
    unexplained     its nmse: the squared error on the texts over that of the mean
    l0, lam_factor  of the held-out rows: all steps at equal density

    With labelled texts also rows of `px.models.probe`, for each number of steps and of latents: auc, accuracy, f1.
    """
    sae = setting.kept(name_of(penalty, depth, seed))
    found: list[Row] = []
    same: Row = {"part": "model", "penalty": penalty, "train_depth": depth, "seed": seed, "rule": "exact"}
    deeper = {steps: (deep, factor) for steps, deep, factor in
              at_density(sae, RULES["exact"], setting.test, setting.k, STEPS)}  # fmt: skip
    measured = loop.comparison.of({str(steps): deep for steps, (deep, _) in deeper.items()})
    for steps, (deep, factor) in deeper.items():
        row = measured[str(steps)]
        kept = {name: value for name, value in row.items() if not name.endswith(("_low", "_high", "nmse"))}
        about = {"kind": "loss", "steps": steps, "l0": metrics.l0(deep.encode(sample(setting.test)))}
        found.append({**same, **about, "lam_factor": factor, **kept, "unexplained": row["nmse"]})
        found[-1]["excess"] = row["loss_spliced"] - row["loss"]
    if loop.labels is not None:
        x, labels = loop.labelled
        for steps, (deep, _) in deeper.items():
            l0 = metrics.l0(deep.encode(sample(setting.test)))
            for one in probe(deep, x, labels, ks=[k for k in PROBED if k <= deep.d_sae]):
                told = {name: one[name] for name in ("k", "auc", "accuracy", "f1")}
                found.append({**same, "kind": "probe", "steps": steps, "l0": l0, **told})
    if signs:
        with evaluating(loop.model):
            for steps in (min(STEPS), max(STEPS)):
                deep, _ = deeper[steps]
                states = loop.states
                z = torch.cat([deep.encode(x.to(deep.W_dec)).cpu() for x in states.x.split(4096)])
                sides = two_sides(z, states.sequence)
                found.append({**same, "steps": steps, **contexts(states, sides)})
                if steps == min(STEPS):
                    found.append({**same, "steps": steps, **steering(loop, deep, sides, seed)})
    return found
