"""A language model in the loop of a study: the model, the place that the rows come from, and texts to run it on."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from proxsae.conventions import Error
from proxsae.models.batches import Batch, each_of, evaluating
from proxsae.models.collecting import about, last_tokens
from proxsae.models.losses import Comparison
from proxsae.models.places import Place
from proxsae.models.probing import split

PASSES = 3.5  # forward passes of a comparison without SAEs: the mean needs those up to the module only
TIMED = 64  # tokens of one sequence, by which a pass is timed
LENGTH = 128  # tokens of a labelled text, the last ones
ROWS = 8  # texts that are run together


class States(NamedTuple):
    """What the model computes on the tokens that count, a row a token, on the CPU.

    x (n, d), below (n, d')   the activations at the place, and those at the input of its module, d' = 0 where it has
                              none that differ
    token, next (n,)          the id of the token, and of the one after it, -1 where there is none
    sequence (n,)             the number of its row of text
    """

    x: Tensor
    below: Tensor
    token: Tensor
    next: Tensor
    sequence: Tensor


@dataclass(frozen=True)
class Loop:
    """A model, a place in it as `px.models` names it, and batches of tokens, `tokens` of them.

    seconds   that a forward pass of all of them takes on this machine
    labels    batches of labelled texts, and a label for each of their rows, of two classes, where there are any
    """

    model: nn.Module
    module: str
    batches: list[Any]
    at: str
    skip: int
    tokens: int
    seconds: float
    labels: tuple[list[Any], list[Any]] | None = None

    @cached_property
    def comparison(self) -> Comparison:
        """What measures an SAE in the place: the model itself and the baselines are measured once in a run."""
        return Comparison(self.model, self.batches, self.module, self.at, self.skip)

    @cached_property
    def states(self) -> States:
        """What the model computes on the texts, measured once in a run."""
        parts: list[list[Tensor]] = []
        before = 0
        with evaluating(self.model):
            for batch in each_of(self.batches, self.model):
                run = partial(batch.run, self.model)
                x, which = Place(self.model, self.module, self.at, self.skip).read(run)
                batch.check_tokens(x, "a study of contexts")
                which = batch.real if which is None else which
                under = self._below(run, which)
                after = torch.where(batch.real, batch.ids, -1).roll(-1, dims=1)
                after[:, -1] = -1
                row = torch.arange(before, before + len(which), device=which.device)[:, None].expand(which.shape)
                before += len(which)
                parts.append([a.cpu() for a in (x[which], under, batch.ids[which], after[which], row[which])])
        return States(*(torch.cat(column) for column in zip(*parts, strict=True)))

    @cached_property
    def labelled(self) -> tuple[Tensor, Any]:
        """The activations at the last token of labelled texts (n, d_in), measured once in a run, and the labels."""
        assert self.labels is not None
        batches, labels = self.labels
        return last_tokens(self.model, self.module, batches, self.at, self.skip), labels

    def _below(self, run: Callable[[], Any], which: Tensor) -> Tensor:
        """The activations at the input of the module, (n, d'), and (n, 0) where it has none that differ."""
        with suppress(Error):  # an embedding takes whole numbers
            if self.at == "output":
                under, _ = Place(self.model, self.module, "input").read(run)
                if under.shape[:-1] == which.shape:
                    return under[which]
        return torch.zeros(int(which.sum()), 0)

    def prompts(self, rows: int, length: int) -> Batch:
        """The beginnings of the longest rows of one batch."""
        return Batch(_beginnings(self.batches, self.model, rows, length), self.model, 0)

    def _digest(self, batches: list[Any], labels: Iterable[Any] = ()) -> str:
        digest = hashlib.sha256(repr([str(label) for label in labels]).encode())
        for batch in each_of(batches, self.model):
            digest.update(batch.ids.cpu().numpy().tobytes() + batch.real.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def what(self) -> dict[str, Any]:
        """What tells one loop from another, for a journal."""
        batches, labels = self.labels or ([], [])
        return {
            "the model": about(self.model)["weights"], "the texts": self._digest(self.batches),
            "the labelled texts": self._digest(batches, labels),
            "--module": self.module, "--at": self.at, "--skip": self.skip,
        }  # fmt: skip


def opened(
    model: Any, module: str, text: Iterable[Any], at: str, skip: int, tokens: int, device: str, d_in: int, labels: Any
) -> Loop:
    """The loop of a model and of about so many tokens of texts, both from files or both as torch knows them.

    Raises `Error` where the activations at the place are not as wide as the rows, `d_in`, and where the model has no
    loss: all of this before anything is trained.
    """
    if isinstance(model, (str, os.PathLike)):
        from proxsae.models.huggingface import labelled_texts, open_model, texts, token_batches

        model, tokenizer = open_model(os.fspath(model))
        model.to(device)
        text = list(token_batches(texts(map(os.fspath, text)), tokenizer, tokens=tokens))
        if labels is not None:
            found = labelled_texts(os.fspath(labels), tokenizer, LENGTH, ROWS, skip)
            of_row = dict(zip(found.places, found.labels, strict=True))
            labels = found.batches, [of_row[row] for row in range(len(of_row))]
    if labels is not None:
        split(labels[1])  # refuses what is not two classes, and texts too few
        count = sum(len(batch.ids) for batch in each_of(labels[0], model))
        if count != len(labels[1]):
            msg = f"--labels has {len(labels[1])} labels for {count} rows of tokens, but needs one for each"
            raise Error(msg)
    place = Place(model, module, at, skip)
    taken = list(_up_to(tokens, text, model))
    one = _beginnings(taken, model, 1, TIMED)
    with evaluating(model):
        x, _ = place.read(partial(Batch(one, model, 0).run, model))
    if x.shape[-1] != d_in:
        msg = f"{module} has activations of width {x.shape[-1]}, but the rows have {d_in}: "
        msg += "collect rows of that module (proxsae lm collect)"
        raise Error(msg)
    started = time.perf_counter()
    Comparison(model, [one], module, at, skip).of({})
    a_token = (time.perf_counter() - started) / PASSES / Batch(one, model, 0).ids.numel()
    count = sum(int(batch.real.sum()) for batch in each_of(taken, model))
    return Loop(model, module, taken, at, skip, count, a_token * count, labels)


def _up_to(tokens: int, batches: Iterable[Any], model: nn.Module) -> Iterator[Any]:
    """The batches, until there are so many tokens."""
    count = 0
    for number, given in enumerate(batches):
        if count >= tokens:
            return
        count += int(Batch(given, model, number).real.sum())
        yield given


def _beginnings(batches: list[Any], model: nn.Module, rows: int, length: int) -> Any:
    """Of the widest batch the rows with the most tokens, and of these the first tokens, as a batch."""
    found = [Batch(given, model, number) for number, given in enumerate(batches)]
    widest = max(range(len(found)), key=lambda i: found[i].ids.shape[1])
    given, shape = batches[widest], found[widest].ids.shape
    which = found[widest].real.sum(dim=1).argsort(descending=True, stable=True)[:rows].cpu()
    if isinstance(given, Tensor):
        return given[which.to(given.device), :length]
    return {
        name: a[which.to(a.device), :length] if isinstance(a, Tensor) and a.shape[:2] == shape else a
        for name, a in given.items()
    }
