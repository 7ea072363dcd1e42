"""Batches of tokens, as a model takes them: token tensors (batch, tokens), or dicts of keyword arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from proxsae.conventions import Error, shown


class Batch:
    """One batch: how the model is called with it, its token ids (batch, tokens), and which of them are no padding.

    Raises `Error` for what is neither a tensor of whole numbers nor a dict with "input_ids", for no tokens, and for
    more tokens than the context of the model has.
    """

    def __init__(self, given: Any, model: nn.Module, number: int) -> None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.keywords: dict[str, Any] | None = None
        ids = given
        if isinstance(given, Mapping):
            moved = {name: a.to(device) if isinstance(a, Tensor) else a for name, a in given.items()}
            self.keywords = {name: a for name, a in moved.items() if name != "labels"}
            ids = moved.get("input_ids")
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.ndim != 2:
            shape = f" of shape {tuple(ids.shape)} and {ids.dtype}" if isinstance(ids, Tensor) else ""
            msg = (
                f"batch {number} holds {type(ids).__name__}{shape}, but a batch is a tensor of token ids "
                "(batch, tokens) or a dict with one as 'input_ids'"
            )
            raise Error(msg)
        if not ids.numel():
            msg = f"batch {number} has no tokens: leave out empty texts"
            raise Error(msg)
        most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        if isinstance(most, int) and ids.shape[1] > most:
            msg = f"batch {number} has {ids.shape[1]} tokens a row, but the model's context is {most}: cut the texts"
            raise Error(msg)
        self.ids = ids.to(device)
        mask = (self.keywords or {}).get("attention_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.shape != ids.shape):
            what = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            msg = f"attention_mask of batch {number} is {what}, but says which of {tuple(ids.shape)} token ids count"
            raise Error(msg)
        self.real = torch.ones_like(self.ids, dtype=torch.bool) if mask is None else mask != 0

    def check_tokens(self, x: Tensor, what: str) -> None:
        """Raise `Error` where activations x are not (batch, tokens, d), as `what` needs to find the token of a row."""
        if x.shape[:-1] != self.ids.shape:
            msg = f"activations have shape {tuple(x.shape)}, but {what} needs a row for each of {tuple(self.ids.shape)}"
            raise Error(msg + " token ids")

    def run(self, model: nn.Module) -> Any:
        """The output of the model."""
        return model(self.ids) if self.keywords is None else model(**self.keywords)


def each_of(batches: Iterable[Any], model: nn.Module) -> Iterator[Batch]:
    """The batches, one at a time."""
    try:
        found = enumerate(batches)
    except TypeError:  # a number, None
        msg = f"batches={shown(batches)} must be a list, or what else gives batches one after another"
        raise Error(msg) from None
    return (Batch(given, model, number) for number, given in found)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout and without gradients; modules that were in training are so again afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
