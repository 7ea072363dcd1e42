"""What the wrappers of all kernels share: the device to launch on, and the checks of shapes, dtypes and devices."""

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
        msg = f"{name} has dtype {a.dtype}, but the kernels take float32, bfloat16 and float16"
        raise Error(msg)


def check_together(*tensors: Tensor) -> None:
    """Raise `Error` unless all tensors lie on one device: a kernel would read another one's addresses."""
    devices = {str(a.device) for a in tensors}
    if len(devices) > 1:
        msg = f"tensors lie on {' and '.join(sorted(devices))}, but the kernel needs them on one device"
        raise Error(msg)


def indices_of(indices: Tensor) -> Tensor:
    """Indices (n, k), int64, contiguous, or `Error`: narrower ones would overflow as offsets."""
    if indices.ndim != 2 or indices.dtype != torch.int64:
        msg = f"indices are {tuple(indices.shape)} of {indices.dtype}, but the kernel needs int64 indices (n, k)"
        raise Error(msg)
    return indices.contiguous()


def codes_of(indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (n, k), int64, and as many values, both contiguous, or `Error`."""
    check_dtype("values", values)
    if values.shape != indices.shape:
        msg = f"values have shape {tuple(values.shape)}, but the kernel needs one for each index {tuple(indices.shape)}"
        raise Error(msg)
    return indices_of(indices), values.contiguous()
