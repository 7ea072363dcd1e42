"""What every kernel's wrapper needs: the device to launch on, and the same refusals in the same words."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from proxsae.conventions import Error

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def on(a: Tensor) -> AbstractContextManager[object]:
    """The device of `a` as the current one, for a launch; under Triton's interpreter tensors are on the CPU."""
    return torch.cuda.device(a.device) if a.is_cuda else nullcontext()


def rows_of(name: str, a: Tensor, width: int | None = None, n: int | None = None) -> Tensor:
    """`a` (n, width) with neighbours in a row next to each other in memory, copied only if they are not, or `Error`."""
    if a.ndim != 2 or width not in (None, a.shape[1]) or n not in (None, len(a)):
        msg = f"{name} has shape {tuple(a.shape)}, but the kernel needs ({n or 'rows'}, {width or 'columns'})"
        raise Error(msg)
    return a if a.stride(1) == 1 else a.contiguous()


def check_dtype(name: str, a: Tensor) -> None:
    """Raise `Error` unless the kernels know the dtype of `a`."""
    if a.dtype not in FLOATS:
        msg = f"{name} has dtype {a.dtype}, but the kernels hold float32, bfloat16 and float16"
        raise Error(msg)


def codes_of(indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (n, k), int64, and as many values, both contiguous, or `Error`."""
    check_dtype("values", values)
    if indices.ndim != 2 or indices.dtype != torch.int64 or values.shape != indices.shape:
        msg = (
            f"indices {tuple(indices.shape)} of {indices.dtype} and values {tuple(values.shape)} are given,"
            " but the kernel needs int64 indices (n, k) and as many values"
        )
        raise Error(msg)
    return indices.contiguous(), values.contiguous()
