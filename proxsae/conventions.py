"""What all modules share: the error class, the argument checks, and how a call finds its backend.

The letters are B batch, d input width (`d_in`), P latents (`d_sae`), k sparsity, T steps and mu step size; the last
axis is the vector and all leading axes are batch.  Ties, NaN and signed zeros are fixed in `docs/conventions.md`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import math
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterable
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])


class Error(ValueError):
    """The one error of this package: the value given, what is allowed, and the hypothesis that it breaks."""

    def __str__(self) -> str:
        # A message may quote the name of a file, and such a name may hold what a terminal would obey.
        return "".join(c if c.isprintable() else "?" for c in super().__str__())


class Note(UserWarning):
    """What a user should know before a result is believed, though nothing fails: `note: ...` on the command line."""


def note(text: str) -> None:
    """Warn by one sentence; Python shows the same one once."""
    warnings.warn(str(Error(text)), Note, stacklevel=3)


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """The end of a message on an unknown name: ": did you mean L1?" with the `most` names most like it, or nothing."""
    spelled = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), list(spelled), most)
    return f": did you mean {' or '.join(spelled[each] for each in near)}?" if near else ""


def is_torch(a: object) -> bool:
    """True for a torch tensor.  It never imports torch: where torch is not imported yet there are no tensors."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(a, torch.Tensor)


def may_look(a: object) -> bool:
    """Whether code may branch on the numbers in `a`: not on those of tensors in torch.func or torch.export.

    There tensors stand for others, so that no check of values can be made.
    """
    if not is_torch(a):
        return True
    torch = sys.modules["torch"]
    # torch.compile, which sees numbers, says in torch 2.8 to 2.11 that it exports
    exporting = torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
    return not (exporting or torch._C._are_functorch_transforms_active())


def namespace(a: object) -> ModuleType:
    """The library that `a` belongs to (`numpy` or `torch`), for formulas that read the same in both."""
    return sys.modules["torch"] if is_torch(a) else np


def torch_twin(module: str) -> Callable[[F], F]:
    """Send calls that hold a torch tensor to the function of the same name in `module`.

    NumPy code must not import torch, yet `R.prox(u)` should work on tensors too.  So the module is imported when the
    first tensor arrives; it is the only upward reference in the package.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def entry(*args: Any, **kwargs: Any) -> Any:
            tensors = [a for a in (*args, *kwargs.values()) if is_torch(a)]
            if any(a.ndim or a.requires_grad for a in tensors):  # others stand for numbers
                return getattr(importlib.import_module(module), function.__name__)(*args, **kwargs)
            return function(*args, **kwargs)

        return entry  # type: ignore[return-value]

    return decorate


def library(module: str, extra: str) -> Any:
    """Import and return a module of an optional dependency, or raise `Error` with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        msg = f"{module.split('.')[0]} is missing: pip install 'proxsae[{extra}]'"
        raise Error(msg) from None


def shown(value: Any) -> str:
    """How a message shows a value: its repr on one line, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a whole number of more digits than Python prints, a repr that fails
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 100 else f"{text[:97]}..."


def check_floats(name: str, a: Any) -> Any:
    """Return `a` as an array of real floats with at least one axis, or raise `Error`.

    Tensors and arrays stay what they are; whatever else NumPy takes becomes an array, lists of whole numbers one of
    float64.  Refused are arrays that mean more than their numbers, such as masked and sparse ones.
    """
    if not is_torch(a):
        a = as_array(name, a)
        is_float = np.issubdtype(a.dtype, np.floating)
    else:
        torch = sys.modules["torch"]
        if a.layout != torch.strided or a.is_nested or isinstance(a, torch.masked.MaskedTensor):
            kind = f"{str(a.layout).removeprefix('torch.')} {type(a).__name__}"
            msg = f"{name} is a {kind}, but must be a dense tensor: {name}.to_dense()"
            raise Error(msg)
        if a.is_meta:
            msg = f"{name} is on the device meta, which holds shapes without numbers: {name}.to('cpu') of the original"
            raise Error(msg)
        is_float = a.dtype.is_floating_point and a.dtype.itemsize > 1  # torch cannot reckon in float8
    if not is_float:
        msg = f"{name} has dtype {a.dtype}, but a proximal step needs real floating point (float32, float64, ...)"
        raise Error(msg)
    if a.ndim == 0:
        msg = f"{name} is a single number, but the last axis must be the vector: shape (..., d)"
        raise Error(msg)
    return a


def as_array(name: str, a: Any) -> np.ndarray[Any, Any]:
    """Whatever NumPy takes as an array, lists of whole numbers in float64; `Error` where a meaning would be lost."""
    for part in (a, *a) if isinstance(a, (list, tuple)) else (a,):
        if hasattr(part, "toarray") or (isinstance(part, np.ndarray) and type(part) not in (np.ndarray, np.memmap)):
            plain = "x.toarray()" if hasattr(part, "toarray") else "np.asarray(x)"
            plain = "x.filled(0.0), or the rows without a mask" if isinstance(part, np.ma.MaskedArray) else plain
            msg = f"{name} is a {type(part).__name__}, of which only the numbers would be used: give {plain}"
            raise Error(msg)
    try:
        array = np.asarray(a)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # rows of unequal length, tensors that need gradients
        array = np.asarray(None)
    if array.dtype.kind not in "biufc":
        msg = f"{name} is {_what(a)}, but must be numbers: an array, a tensor, or lists of one length"
        raise Error(msg)
    return array.astype(np.float64) if array.dtype.kind in "iu" and isinstance(a, (list, tuple)) else array


def plain(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The same numbers in this machine's byte order, and floats no wider than torch knows."""
    return np.dtype(np.float64) if dtype.kind == "f" and dtype.itemsize > 8 else dtype.newbyteorder("=")


def as_reals(name: str, a: Any) -> Any:
    """An array or tensor of real numbers of any shape, whole numbers in float64; or `Error`."""
    a = a if is_torch(a) else as_array(name, a)
    if "int" in str(a.dtype):
        a = a.double() if is_torch(a) else a.astype(np.float64)
    check_floats(name, a[None])
    return a


def _what(a: Any) -> str:
    return f"an array of {a.dtype}" if isinstance(a, np.ndarray) else f"{type(a).__name__} {shown(a)}"


def alike(given: dict[str, Any]) -> dict[str, Any]:
    """The arrays of one problem, each checked by its name; lists take library, dtype and device of the first array."""
    checked = {name: check_floats(name, a) for name, a in given.items()}
    arrays = [name for name, a in given.items() if not isinstance(a, (list, tuple))]
    for name in set(given) - set(arrays) if arrays else ():
        first = checked[arrays[0]]
        checked[name] = first.new_tensor(checked[name]) if is_torch(first) else checked[name].astype(first.dtype)
    return checked


def check_finite(name: str, a: Any) -> None:
    """Raise `Error` when `a` holds NaN or infinity, where that can be seen (`may_look`)."""
    if not may_look(a):
        return
    bad = ~namespace(a).isfinite(a)
    if bool(bad.any()):
        first = tuple(int(i[0]) for i in np.nonzero(np.asarray(bad.cpu() if is_torch(bad) else bad)))
        msg = f"{name} holds {int(bad.sum())} NaN or infinite entries (the first at {first}), but it must be finite"
        raise Error(msg)


def scalar(value: Any) -> Any:
    """An array or tensor without axes as the number that it holds; anything else as it is.

    Raises `Error` for a tensor that asks for a gradient, which a number cannot carry.
    """
    if is_torch(value) and value.ndim == 0 and not value.is_meta:
        if value.requires_grad:
            msg = f"{shown(value)} stands for a number that gets no gradient: give {float(value.detach()):g}"
            raise Error(msg)
        return value.item()
    return value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value


def as_number(value: Any) -> float | None:
    """A finite real number, be it of Python, NumPy or torch, or an array without axes, as a float; None for others."""
    value = scalar(value)
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        return None
    try:
        number = float(value)
    except OverflowError:  # 10**400
        return None
    return number if math.isfinite(number) else None


def within(allowed: str, value: Any) -> Any:
    """Whether `value` is within the bound of a domain: for a number, an array, a tensor or a symbol of the solver."""
    sign, bound = allowed.removeprefix("whole ").split()[:2]
    return value >= float(bound) if sign == ">=" else value > float(bound)


def check_number(name: str, value: Any, allowed: str, why: str = "") -> float:
    """Return `value` as a float when it is a finite number and `allowed`, such as "> 0", or raise `Error` with why."""
    number = as_number(value)
    if number is None or not within(allowed, number):
        msg = f"{name}={shown(value)} must be finite and {allowed}{why}"
        raise Error(msg)
    return number


def check_step(step: Any, u: Any) -> Any:
    """Return the step of prox(u) as a float or, for one step per row, as an array; else raise `Error`.

    A torch step stays a tensor beside a torch u, and carries gradients.
    """
    positive = ": prox_(step R) is an argmin only for a positive step (def-prox)"
    if isinstance(step, (list, tuple)):
        step = alike({"u": u, "step": step})["step"]
    if is_torch(step):
        one = step.ndim == 0 and not (is_torch(u) and step.is_floating_point())
    else:
        one = not isinstance(step, np.ndarray) or step.ndim == 0
    if one:
        return check_number("step", step, "> 0", positive)
    step = as_reals("step", step)
    if is_torch(step) != is_torch(u) or (step.ndim and tuple(step.shape) != tuple(u.shape[:-1])):
        given, rows = f"{_kind(step)} of shape {tuple(step.shape)}", tuple(u.shape[:-1])
        msg = f"step is {given}, but u needs a number or one per row, shape {rows}"
        raise Error(msg)
    if may_look(step) and not bool((namespace(step).isfinite(step) & (step > 0)).all()):
        msg = f"step={shown(step)} must be finite and > 0{positive}"
        raise Error(msg)
    return step


def check_count(name: str, value: Any, least: int) -> int:
    """Return a whole number >= `least`, be it of Python, NumPy or torch, as an int; or raise `Error`."""
    number = scalar(value)
    if isinstance(number, (bool, np.bool_)) or not isinstance(number, (int, np.integer)) or number < least:
        msg = f"{name}={shown(value)} must be a whole number >= {least}"
        raise Error(msg)
    if number >= 2**63:
        msg = f"{name}={shown(value)} must be below 2^63"
        raise Error(msg)
    return int(number)


def check_choice(name: str, value: Any, allowed: Collection[str]) -> str:
    """Return `value` when it is one of these texts, or raise `Error`."""
    if not isinstance(value, str) or value not in allowed:
        *most, last = map(repr, allowed)
        msg = f"{name}={shown(value)} must be {', '.join(most)} or {last}"
        raise Error(msg)
    return value


def check_path(name: str, value: Any) -> str:
    """Return a path as text, or raise `Error` for what is none."""
    if not isinstance(value, (str, os.PathLike)):
        msg = f"{name}={shown(value)} must be the path of a file or folder"
        raise Error(msg)
    return os.fspath(value)


def check_counts(name: str, values: Any, least: int = 1) -> tuple[int, ...]:
    """Return several whole numbers >= `least`, in their order, or raise `Error`."""
    try:
        several = list(() if isinstance(values, (str, dict)) else values)
    except TypeError:  # a single number
        several = []
    if not several and not (isinstance(values, (list, tuple)) and not values):
        msg = f"{name}={shown(values)} must be whole numbers >= {least}, such as (1, 4)"
        raise Error(msg)
    return tuple(check_count(name, value, least) for value in several)


def check_seed(seed: Any) -> int:
    """Return `seed` as an int when it is a whole number in [0, 2^63), or raise `Error`."""
    return check_count("seed", seed, 0)


def check_problem(
    x: Any, D: Any, z0: Any = None, bias: Any = None, R: Any = ..., code: str = "z0"
) -> tuple[Any, Any, Any, Any]:
    """Check the data of  min_z 1/2 ||x - b - D z||^2 + R(z)  and return (x - b, D, z0, lead).

    Shapes: x (..., d), D (P, d) with atoms as rows, z0 (..., P), bias (d,).  `lead` is the shape of the batch axes,
    `code` what an error calls z0.  Without R the problem has none.
    Raises `Error` for another backend, dtype or shape, for NaN and infinities, and for a dictionary of zeros.
    """
    given = alike({"x": x, "D": D} | {name: a for name, a in ((code, z0), ("bias", bias)) if a is not None})
    x, D, z0, bias = (given.get(name) for name in ("x", "D", code, "bias"))
    for name, a in given.items():
        if is_torch(a) != is_torch(x) or a.dtype != x.dtype or getattr(a, "device", None) != getattr(x, "device", None):
            msg = (
                f"{name} is {_kind(a)}, but x is {_kind(x)}: all arrays of one problem share library, dtype and device"
            )
            raise Error(msg)
        check_finite(name, a)
    if D.ndim != 2 or D.shape[1] != x.shape[-1]:
        msg = f"D has shape {tuple(D.shape)}, but x of width {x.shape[-1]} needs (d_sae, {x.shape[-1]}): atoms are rows"
        raise Error(msg)
    if may_look(D) and not bool((D != 0).any()):
        msg = f"D of shape {tuple(D.shape)} is all zeros, but a step size 1/L needs L = ||D||^2 > 0"
        raise Error(msg)
    if bias is not None and bias.shape != x.shape[-1:]:
        msg = f"bias has shape {tuple(bias.shape)}, but x of width {x.shape[-1]} needs ({x.shape[-1]},)"
        raise Error(msg)
    if z0 is not None and tuple(z0.shape) != (*x.shape[:-1], D.shape[0]):
        msg = f"{code} has shape {tuple(z0.shape)}, but x and D need {(*x.shape[:-1], D.shape[0])}"
        raise Error(msg)
    if R is not ...:
        if not callable(getattr(R, "check_fits", None)) or isinstance(R, type):
            msg = f"R={shown(R)} must be a penalty, such as KSparse(32)"
            raise Error(msg)
        R.check_fits("D", D, D.shape[0])
        if not R.rowwise:
            msg = f"{R!r} couples the rows of a batch, and the iteration takes rows one by one: use KSparse(k)"
            raise Error(msg)
    return (x if bias is None else x - bias), D, z0, tuple(x.shape[:-1])


def _kind(a: Any) -> str:
    where = f" on {a.device}" if is_torch(a) else ""
    return f"{'torch' if is_torch(a) else 'numpy'} {str(a.dtype).removeprefix('torch.')}{where}"
