"""What an intervention costs a causal language model: cross-entropy of the next token, and KL from the model's own.

    recovered = (H_0 - H) / (H_0 - H_model)

with H the cross-entropy, in nats a token, with the SAE in place, and H_0 that with the activation ablated.  H_0 by
zeros and by the mean are both reported: in a model without biases zeros in the residual stream leave no information at
all (H_0 = ln V), so that the mean is the harder baseline.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from proxsae.conventions import Error, check_seed
from proxsae.models.batches import Batch, each_of, evaluating
from proxsae.models.interventions import chosen, fitting, latent_of, steering, warn_elsewhere
from proxsae.models.places import Change, Place, positions
from proxsae.sae import SAE
from proxsae.sae.model import check_sae

RESAMPLES = 1000  # of the sequences, for intervals


def loss_recovered(
    model: nn.Module, batches: Iterable[Any], module: str, sae: SAE, at: str = "output", skip: int = 0, seed: int = 0
) -> dict[str, Any]:
    """Measure what it costs a model that the activation at a module is replaced by its reconstruction.

    loss, loss_spliced        cross-entropy of the next token, nats a token: of the model itself, and with the SAE
    loss_zero, loss_mean      with zeros, and with the mean activation of these batches, in place of the activation
    recovered_zero            (loss_zero - loss_spliced) / (loss_zero - loss); recovered_mean likewise
    kl                        mean KL divergence from the model's own predictions to those with the SAE, in nats
    nmse                      sum ||x - xhat||^2 / sum ||x - mean||^2 over the activations that are replaced
    tokens, sequences         how many predictions were counted, and of how many rows of tokens

    loss_spliced, recovered_zero, recovered_mean and kl have 95 % intervals, as "kl_low" and "kl_high": sequences are
    resampled whole, 1000 times by `seed`.  Of fewer than two sequences they are None.

    batches: token tensors (batch, tokens), or dicts with "input_ids" and, for padding, "attention_mask".
    skip: the first tokens of each sequence that stay as they are, and whose predictions are not counted: the first
    token of many models is an attention sink of a hundred times the norm of the others.
    The output of the model is logits (batch, tokens, vocabulary), or has them as `.logits`.

    Raises `Error` for no batches, logits that are missing or not finite, and as `splice` does.
    """
    return compare(model, batches, module, {"": sae}, at, skip, seed)[""]


def compare(
    model: nn.Module,
    batches: Iterable[Any],
    module: str,
    saes: Mapping[str, SAE],
    at: str = "output",
    skip: int = 0,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """`loss_recovered` of several SAEs, such as one at several depths; the model's own passes are shared."""
    return Comparison(model, batches, module, at, skip).of(saes, seed)


class Comparison:
    """A model, a place in it and texts, on which SAEs are compared: what does not depend on them is measured once.

    Arguments and errors are those of `loss_recovered`.
    """

    def __init__(
        self, model: nn.Module, batches: Iterable[Any], module: str, at: str = "output", skip: int = 0
    ) -> None:
        self.place, self.data = Place(model, module, at, skip), _batches(batches, model)
        self.spread = 0.0  # of the activations that count: the sum of squared distances to their mean
        self.same: dict[Any, NDArray[np.float64]] = {}  # losses of the model (None), with zeros and with the mean

    def of(self, saes: Mapping[str, SAE], seed: int = 0) -> dict[str, dict[str, Any]]:
        """`loss_recovered` of each SAE, by its name."""
        place, data = self.place, self.data
        warn_elsewhere([check_sae(sae) for sae in saes.values()], place.module, place.at)
        check_seed(seed)
        errors = dict.fromkeys(saes, 0.0)

        def reconstruct(name: str, sae: SAE) -> Change:
            def change(x: Tensor, which: Tensor | None) -> Tensor:
                rows = fitting(x, sae, place.module)
                xhat = sae(rows)
                missed = (rows - xhat).double().square().sum(dim=-1)
                errors[name] += float((missed if which is None else missed[which]).sum())
                return chosen(xhat.to(x.dtype), x, which)

            return change

        changes: dict[Any, Change] = {("sae", name): reconstruct(name, sae) for name, sae in saes.items()}
        with evaluating(place.model):
            if not self.same:
                mean, self.spread = _mean(place, data)
                changes["zero"] = lambda x, which: chosen(torch.zeros_like(x), x, which)
                changes["mean"] = lambda x, which: chosen(mean.to(x.dtype).expand(x.shape), x, which)
            sums, counts = _run(place, data, changes)
        self.same = self.same or {name: sums[name][0] for name in (None, "zero", "mean")}
        draws = _draws(len(counts), seed)
        loss, zero, mean_loss = (Ratio(self.same[name], counts) for name in (None, "zero", "mean"))
        table = {}
        for name in saes:
            spliced, kl = (Ratio(part, counts) for part in sums["sae", name])
            row: dict[str, Any] = {"loss": loss.value(), "loss_zero": zero.value(), "loss_mean": mean_loss.value()}
            row |= spliced.interval("loss_spliced", draws)
            for key, base in (("recovered_zero", zero), ("recovered_mean", mean_loss)):
                row |= Ratio(base.top - spliced.top, base.top - loss.top).interval(key, draws)
            row |= kl.interval("kl", draws)
            nmse = errors[name] / self.spread if self.spread else 0.0
            table[name] = row | {"nmse": nmse, "tokens": int(counts.sum()), "sequences": len(counts)}
        return table


def ablate(
    model: nn.Module,
    batches: Iterable[Any],
    module: str,
    sae: SAE,
    latent: int,
    at: str = "output",
    skip: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure what one latent is worth to the model: its part z_j d_j is taken out of the activation, and no more.

    loss, loss_ablated    cross-entropy of the next token, nats a token
    effect                loss_ablated - loss, with a 95 % interval over sequences
    kl                    mean KL divergence from the model's own predictions to those without the latent
    fires                 share of the counted positions where the latent fires

    The arguments and errors are those of `loss_recovered`.
    """
    place, data = Place(model, module, at, skip), _batches(batches, model)
    latent = latent_of(check_sae(sae), latent)
    warn_elsewhere([sae], module, at)
    remove, fired = steering(sae, {latent: "*0"}, module), [0, 0]
    check_seed(seed)

    def change(x: Tensor, which: Tensor | None) -> Tensor | None:
        z = sae.encode(fitting(x, sae, module))[..., latent] != 0
        z = z if which is None else z[which]
        fired[0], fired[1] = fired[0] + int(z.sum()), fired[1] + z.numel()
        return remove(x, which)

    with evaluating(model):
        sums, counts = _run(place, data, {"ablated": change})
    draws = _draws(len(counts), seed)
    loss, ablated, kl = (Ratio(part, counts) for part in (sums[None][0], *sums["ablated"]))
    return {
        "loss": loss.value(), "loss_ablated": ablated.value(),
        **Ratio(ablated.top - loss.top, counts).interval("effect", draws), **kl.interval("kl", draws),
        "fires": fired[0] / max(1, fired[1]), "tokens": int(counts.sum()), "sequences": len(counts),
    }  # fmt: skip


class Ratio:
    """A ratio of sums over sequences: their tops and bottoms, (sequences,)."""

    def __init__(self, top: NDArray[np.float64], bottom: NDArray[np.float64]) -> None:
        self.top, self.bottom = top, bottom

    def value(self) -> float:
        """sum top / sum bottom."""
        return float(self.top.sum() / self.bottom.sum())

    def interval(self, name: str, draws: NDArray[np.int64] | None) -> dict[str, float | None]:
        """The value, and the 2.5th and 97.5th percentile where sequences are drawn anew."""
        low = high = None
        if draws is not None:
            low, high = np.percentile(
                self.top[draws].sum(axis=1) / self.bottom[draws].sum(axis=1), (2.5, 97.5)
            ).tolist()
        return {name: self.value(), f"{name}_low": low, f"{name}_high": high}


def _draws(sequences: int, seed: int) -> NDArray[np.int64] | None:
    if sequences < 2:
        return None
    return np.random.default_rng(seed).integers(sequences, size=(RESAMPLES, sequences))


def _batches(batches: Iterable[Any], model: nn.Module) -> list[Batch]:
    data = list(each_of(batches, model))
    if not data:
        msg = "batches is empty, but a loss needs tokens: a list of token tensors (batch, tokens), for example"
        raise Error(msg)
    return data


def _mean(place: Place, data: list[Batch]) -> tuple[Tensor, float]:
    """The mean of the activations that count, in float64, and the sum of squared distances to it."""
    total, squares, count = torch.zeros(()), 0.0, 0
    for batch in data:
        x, which = place.read(partial(batch.run, place.model))
        rows = (x.reshape(-1, x.shape[-1]) if which is None else x[which]).double()
        total, squares, count = (
            total.to(rows) + rows.sum(dim=0),
            squares + float(rows.square().sum()),
            count + len(rows),
        )
    mean = total / max(1, count)
    return mean, squares - count * float(mean.square().sum())


def _run(
    place: Place, data: list[Batch], changes: Mapping[Any, Change]
) -> tuple[dict[Any, tuple[NDArray[np.float64], NDArray[np.float64]]], NDArray[np.float64]]:
    """Per sequence the sums of losses and of KL, of the model (None) and of each change; and how many predictions."""
    sums: dict[Any, list[tuple[Tensor, Tensor]]] = {name: [] for name in (None, *changes)}
    counts = []
    for number, batch in enumerate(data):
        which = positions(batch.real, batch.ids[..., None], place.skip)
        valid = batch.real[:, 1:] & (batch.real if which is None else which)[:, :-1]
        own = log_probabilities(batch.run(place.model), batch, number)
        counts.append(valid.sum(dim=1))
        sums[None].append((_loss(own, batch, valid), torch.zeros(len(valid))))
        for name, change in changes.items():
            with place.changed(change):
                other = log_probabilities(batch.run(place.model), batch, number)
            kl = (own.exp() * (own - other)).sum(dim=-1).double()
            sums[name].append((_loss(other, batch, valid), (kl * valid).sum(dim=1)))
    kept = torch.cat(counts) > 0
    if not bool(kept.any()):
        msg = f"no token of {len(kept)} sequences has a next one to predict: give longer texts, or a smaller skip"
        raise Error(msg)

    def joined(parts: Iterable[Tensor]) -> NDArray[np.float64]:
        return torch.cat([part.cpu() for part in parts])[kept.cpu()].double().numpy()

    return {name: (joined(a for a, _ in of), joined(b for _, b in of)) for name, of in sums.items()}, joined(counts)


def log_probabilities(output: Any, batch: Batch, number: int) -> Tensor:
    """Log probabilities (batch, tokens - 1, vocabulary) of the next tokens, float32, from a model's output."""
    logits = getattr(output, "logits", output[0] if isinstance(output, (tuple, list)) and output else output)
    if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != batch.ids.shape:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        msg = f"the model's output is {shape}, but a loss needs logits (batch, tokens, vocabulary): use a causal model"
        raise Error(msg)
    if not bool(logits.isfinite().all()):
        msg = f"the model's logits for batch {number} are not finite: run it in float32 or bfloat16"
        raise Error(msg)
    return logits[:, :-1].float().log_softmax(dim=-1)


def _loss(log_probabilities: Tensor, batch: Batch, valid: Tensor) -> Tensor:
    """The sum of -log p(next token) per sequence, float64."""
    picked = log_probabilities.gather(-1, batch.ids[:, 1:, None])[..., 0]
    return -(picked.double() * valid).sum(dim=1)
