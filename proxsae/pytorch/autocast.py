"""Autocast ends where proxsae begins: a call on tensors runs in the dtype of its inputs, and so does its backward pass.

Under `torch.autocast` torch rounds the factors of a product to half precision, but not those of one that is written in
place, nor sums: residuals, step sizes and supports would no longer belong together, and no theorem holds for them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

F = TypeVar("F", bound=Callable[..., Any])
GUARDED = "proxsae"  # the mark of a node of the graph that leaves autocast already


def outside_autocast(function: F) -> F:
    """`function` with autocast switched off, for the device of its first tensor or of the object that it belongs to.

    A generator that it returns leaves autocast at each of its steps.  A module, that is an SAE, is given what comes in
    the dtype of autocast, as a `Linear` hands it on there, in the dtype of its weights.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        kind = None
        for a in (*args, *kwargs.values()):
            if isinstance(a, Tensor):
                kind = a.device.type
                break
        kind = kind or args[0].device.type
        enabled = kind != "meta" and torch.is_autocast_enabled(kind)
        result = _outside(kind, function, args, kwargs) if enabled else function(*args, **kwargs)
        return _each(result, args, kwargs) if isinstance(result, Generator) else result

    return call  # type: ignore[return-value]


def _outside(kind: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    known = {a.grad_fn for a in _tensors((*args, *kwargs.values()))}
    half = torch.get_autocast_dtype(kind)
    with torch.autocast(kind, enabled=False):
        if isinstance(args[0], nn.Module):
            own: Any = args[0].dtype
            args = tuple(_cast(a, half, own) for a in args)
            kwargs = {name: _cast(a, half, own) for name, a in kwargs.items()}
        result = function(*args, **kwargs)
    if not torch.compiler.is_compiling():
        _guard_backward(kind, result, known)
    return result


def _each(rest: Generator[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    step = outside_autocast(lambda *args, **kwargs: next(rest, None))
    while (item := step(*args, **kwargs)) is not None:
        yield item


def _cast(a: Any, half: torch.dtype, own: torch.dtype) -> Any:
    return a.to(own) if isinstance(a, Tensor) and a.dtype == half else a


def _guard_backward(kind: str, result: Any, known: set[Any]) -> None:
    """Let the nodes of the graph from the result back to `known` ones run outside autocast, also inside the block."""
    nodes: list[Any] = [a.grad_fn for a in _tensors(result) if a.grad_fn is not None]
    while nodes:
        node = nodes.pop()
        if node in known or GUARDED in node.metadata or hasattr(node, "variable"):  # the last is a leaf
            continue
        node.metadata[GUARDED] = True
        _guard(node, kind)
        nodes += [before for before, _ in node.next_functions if before is not None]


def _guard(node: Any, kind: str) -> None:
    found: list[bool] = []

    def enter(_: Any) -> None:
        found.append(torch.is_autocast_enabled(kind))
        torch.set_autocast_enabled(kind, False)

    def leave(_: Any, __: Any) -> None:
        torch.set_autocast_enabled(kind, found.pop())

    node.register_prehook(enter)
    node.register_hook(leave)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors that a value holds: in tuples and lists, and as fields of an object."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):  # its parameters are leaves
        yield from (a for a in vars(value).values() if isinstance(a, Tensor))
    elif isinstance(value, (tuple, list)) or hasattr(value, "__dict__"):
        for part in value if isinstance(value, (tuple, list)) else vars(value).values():
            yield from _tensors(part)
