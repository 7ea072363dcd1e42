"""A place in a model: the input or output of a module, read or replaced as one tensor while a context is open.

What a module takes or gives may be a tensor, a tuple, or a dict-like output; the activation is the first floating
tensor in it.  Hooks are gone when the context ends, after an exception too.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proxsae.conventions import Error, check_choice, check_count, did_you_mean, shown

Change = Callable[[Tensor, "Tensor | None"], "Tensor | None"]


class _Reached(Exception):
    """Ends a forward pass once the activation is known: what comes after it is not needed."""


@dataclass(frozen=True)
class Place:
    """A module of a model by its dotted name, its input or output, and the first tokens that are left alone there.

    Raises `Error` for a name that the model does not have, and names the nearest.
    """

    model: nn.Module
    module: str
    at: str = "output"
    skip: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            msg = f"model={shown(self.model)} must be a torch.nn.Module"
            raise Error(msg)
        names = dict(self.model.named_modules())
        if not isinstance(self.module, str) or self.module not in names:
            near = did_you_mean(self.module, names, 3) if isinstance(self.module, str) else ""
            some = f"its modules are {', '.join(list(names)[1:4])}, ..." if len(names) > 1 else "it is '' itself"
            msg = f"the model has no module {shown(self.module)}{near or f': {some}'}"
            raise Error(msg)
        check_choice("at", self.at, ("input", "output"))
        check_count("skip", self.skip, 0)

    @contextlib.contextmanager
    def changed(self, change: Change) -> Iterator[None]:
        """While the context is open, activations x (batch, tokens, d) become change(x, which).

        `which` (batch, tokens) says which positions count: those that the attention mask of the call does not mask,
        without the first `skip` of each sequence; None stands for all.  Where `change` returns None, x stays.
        """
        module, masks = dict(self.model.named_modules())[self.module], list[Any]()

        names = list(inspect.signature(self.model.forward).parameters)

        def read_mask(_: nn.Module, args: Any, given: dict[str, Any]) -> None:
            masks[:] = [{**dict(zip(names, args, strict=False)), **given}.get("attention_mask")]

        def change_it(value: Any, what: str) -> Any:
            where, x = found(value, f"the {what} of {self.module}")
            new = change(x, positions(masks[0] if masks else None, x, self.skip))
            return None if new is None else replaced(value, where, new)

        def before(_: nn.Module, args: Any, given: dict[str, Any]) -> Any:
            if args:
                new = change_it(args, "input")
                return None if new is None else (new, given)
            new = change_it(given, "input")
            return None if new is None else (args, new)

        def after(_: nn.Module, args: Any, output: Any) -> Any:
            return change_it(output, "output")

        handles = [self.model.register_forward_pre_hook(read_mask, with_kwargs=True)]
        try:
            if self.at == "input":
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(after))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def read(self, run: Callable[[], Any]) -> tuple[Tensor, Tensor | None]:
        """The activation (batch, tokens, d) in the forward pass `run()`, which ends there, and which positions count.

        Raises `Error` where the pass does not come to the module.
        """
        kept: list[tuple[Tensor, Tensor | None]] = []

        def keep(x: Tensor, which: Tensor | None) -> None:
            kept.append((x, which))
            raise _Reached

        with self.changed(keep), contextlib.suppress(_Reached):
            run()
        if not kept:
            msg = f"the forward pass does not come to {self.module}: name a module that it runs"
            raise Error(msg)
        return kept[0]


def found(value: Any, what: str) -> tuple[Any, Tensor]:
    """Where in a module's value the activation is, and it: the first floating tensor of at least two axes."""
    parts: Any = [(None, value)]
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, (tuple, list)):
        parts = enumerate(value)
    for where, part in parts:
        if isinstance(part, Tensor) and part.is_floating_point() and part.ndim >= 2:
            return where, part
    msg = f"{what} is {type(value).__name__} without a floating tensor (..., tokens, d): name a module that has one"
    raise Error(msg)


def replaced(value: Any, where: Any, new: Tensor) -> Any:
    """The value with the activation `new` in its place."""
    if where is None:
        return new
    if isinstance(value, Mapping):
        return type(value)(**{**value, where: new})
    parts = [*value[:where], new, *value[where + 1 :]]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def positions(mask: Any, x: Tensor, skip: int) -> Tensor | None:
    """Which of the tokens of x (batch, tokens, d) count, (batch, tokens); None where all do.

    A mask (batch, all tokens) may begin before x does: while text is generated, x is only its newest tokens.
    Raises `Error` where tokens are to be left out and x does not say which of its rows they are.
    """
    masked = isinstance(mask, Tensor) and mask.ndim == 2
    if x.ndim == 3 and not (masked and (len(mask) != len(x) or mask.shape[1] < x.shape[1])):
        if masked:
            real = mask.to(x.device) != 0
            which = real & (real.cumsum(dim=-1) > skip)
            return which[:, -x.shape[1] :]
        return (torch.arange(x.shape[1], device=x.device) >= skip).expand(x.shape[:2]) if skip else None
    if skip or (masked and not bool(mask.all())):
        msg = f"the activation has shape {tuple(x.shape)}, but only of (batch, tokens, d) can padding and the first "
        msg += "tokens be left out: name another module, or give no padding and skip=0"
        raise Error(msg)
    return None
