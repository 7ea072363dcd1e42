"""The operations of a scalar formula on tensors: with them torch runs the formulas of `penalties/`, with gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, library
from torch.autograd import forward_ad

from proxsae.conventions import Error, check_floats, may_look, plain
from proxsae.penalties.scalar import soft


def sqrt(a: Tensor) -> Tensor:
    """The square root, correctly rounded; its derivative at 0 is 0, and not infinity.

    On CPUs torch's own may be off by one unit in the last place, which moves ties; NumPy's is IEEE 754's, and so is
    CUDA's.
    """
    root: Tensor = _Sqrt.apply(a) if differentiated(a) else _root(a)
    return root


def differentiated(*tensors: Tensor) -> bool:
    """Whether a derivative of some of them may be asked for: if not, the time of an autograd.Function is saved."""
    asked = torch.is_grad_enabled() and any(a.requires_grad for a in tensors)
    return asked or forward_ad._current_level >= 0 or not may_look(tensors[0])


def _root(a: Tensor) -> Tensor:
    # the first call of an operator of one's own makes torch import its compiler, which takes seconds
    root: Tensor = _operator(a) if torch.compiler.is_compiling() or not may_look(a) else _rounded_root(a)
    return root


def _rounded_root(a: Tensor) -> Tensor:
    if a.device.type != "cpu":
        return a.sqrt()
    wide = a.detach().float() if a.dtype == torch.bfloat16 else a.detach()  # NumPy has no bfloat16
    return torch.as_tensor(np.sqrt(wide.numpy())).to(a.dtype)


@library.custom_op("proxsae::sqrt", mutates_args=())
def _operator(a: Tensor) -> Tensor:
    """An operator of its own, because torch.compile would read np.sqrt as torch's."""
    return _rounded_root(a)


@_operator.register_fake
def _(a: Tensor) -> Tensor:
    return torch.empty_like(a)


@_operator.register_vmap
def _(info: Any, in_dims: tuple[int], a: Tensor) -> tuple[Tensor, int]:
    return _operator(a), in_dims[0]


class _Sqrt(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor) -> Tensor:  # type: ignore[override]
        return _root(a)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (root,) = ctx.saved_tensors
        return torch.where(root > 0, grad / (2 * torch.where(root > 0, root, 1)), 0)

    jvp = backward  # one number a number


@contextmanager
def seeing(what: str, a: Tensor) -> Iterator[None]:
    """Say in one sentence that `what` looks at values, where torch.func or torch.export hides those of `a`."""
    try:
        yield
    except RuntimeError as problem:
        if may_look(a):
            raise
        msg = f"{what} looks at values, which torch.func.vmap and torch.export hide: give it plain tensors, or"
        msg += " take one encoder step, as in sae.unrolled(1) (def-ista)"
        raise Error(msg) from problem


def as_tensor(name: str, a: Any) -> Tensor:
    """A tensor as it is, NumPy rows or lists of numbers as a tensor of their dtype; `Error` for all else."""
    a = check_floats(name, a)
    return a if isinstance(a, Tensor) else torch.tensor(np.ascontiguousarray(a, plain(a.dtype)))


class TorchArithmetic:
    """`FloatArithmetic` on tensors, bit for bit; thresholds are rounded once to the dtype of u.

    Numbers are 0-d float64 tensors: torch takes a number over a tensor as a product with the reciprocal, rounded twice,
    but a tensor over a tensor as one division.
    """

    where = staticmethod(torch.where)
    abs = staticmethod(torch.abs)
    sqrt = staticmethod(sqrt)
    soft = soft

    def by_sign(self, u: Tensor, plus: Tensor, minus: Tensor) -> Tensor:
        """`plus` where u > 0, else `minus`."""
        return torch.where(u > 0, plus, minus)

    def __init__(self, like: Tensor) -> None:
        self.dtype, self.device = like.dtype, like.device

    def number(self, a: Any) -> Tensor:
        """A number, array or tensor in float64 on the device."""
        if isinstance(a, (int, float)):  # made on the device: a copy would be waited for
            return torch.full((), a, dtype=torch.float64, device=self.device)
        return (a if isinstance(a, Tensor) else torch.tensor(a, dtype=torch.float64)).to(self.device, torch.float64)

    def wide(self, a: Tensor) -> Tensor:
        """An entry in float64, for a factor that the dtype of u may have no room for; round the product."""
        return a.double()

    def rounded(self, t: Tensor) -> Tensor:
        """A threshold or an entry, rounded once to the dtype of u."""
        return t.to(self.dtype)
