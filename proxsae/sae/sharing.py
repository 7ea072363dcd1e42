"""A second module on the same parameters: what `SAE.twin` is made of.

Shared are parameters, buffers and submodules, with them the parametrisations of
`torch.nn.utils.parametrizations`.  Hooks are not inherited: a hook belongs to the module that it was registered on, so
that a hook removed there no longer runs anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar, cast

from torch import nn
from torch.nn.utils import parametrize

M = TypeVar("M", bound=nn.Module)
CONTAINERS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


def shared(module: M, without: Iterable[str] = ()) -> M:
    """A module of the same kind on the same parameters; parameters named in `without` are left out."""
    kind: Any = type(module)
    split = parametrize.is_parametrized(module)
    if split:  # torch gives such a module a class of its own, and changes it when a parametrisation goes
        kind = type(kind.__name__, kind.__bases__, dict(vars(kind)))
    twin: Any = object.__new__(kind)
    nn.Module.__init__(twin)
    fresh = set(vars(twin))
    for name, value in vars(module).items():
        if name in CONTAINERS:
            vars(twin)[name].update(value)
        elif name == "training" or name not in fresh | {"_compiled_call_impl"}:
            vars(twin)[name] = value.copy() if type(value) is dict else value
    if split:
        twin.parametrizations = nn.ModuleDict(cast(Any, module).parametrizations.items())
    for name in without:
        if split and name in twin.parametrizations:
            del twin.parametrizations[name]
            delattr(kind, name)
        elif hasattr(twin, name):
            delattr(twin, name)
    return twin
