"""A CUDA device that is not there: with it, what the library would do on a GPU is tested where none is.

A `Pretend` tensor holds CPU data and says that it lies on cuda:0.  As on the real device, an operation on tensors of
both kinds is an error, except where CUDA takes a CPU number; so is `.numpy()`; and a tensor made without a device is a
CPU tensor.  Each wait of the host for the device is counted, with the place in the library that caused it.  Numbers
are the CPU's, bit for bit.  Triton's kernels run in its interpreter, on the data that is held.

Not seen are the errors of CUDA's own operations, dtypes that they do not take, waits inside them, and races.
"""

import sys
from collections import Counter
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.utils import _device

import proxsae
from proxsae.pytorch import arithmetic, certified_topk, codes, prox, topk

LIBRARY = str(Path(proxsae.__file__).parent)
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)

# How often the host waits in an operation: for a size or a number that only the device knows.
WAITS = {
    "_local_scalar_dense": 1,  # item, bool, int, float
    "nonzero": 1,
    "masked_select": 1,
    "equal": 1,
    "_unique2": 1,
    "unique_dim": 1,
    "unique_consecutive": 1,
    "repeat_interleave": 1,
    "bincount": 2,  # for the smallest and the largest
    "_linalg_eigh": 1,  # whether a solver has converged
    "_linalg_svd": 1,
    "_linalg_check_errors": 1,
    "linalg_pinv": 1,
    "linalg_lstsq": 1,
}
# Operations that take CPU numbers without axes, beside those of single entries.
TAKE_NUMBERS = ("where", "fill_", "masked_fill", "masked_fill_", "linalg_pinv")
# Operators of the library, which ask for the device themselves.
OWN = {torch.ops.proxsae.sqrt.default: arithmetic._operator, torch.ops.proxsae.pools.default: prox._pools}
# What makes tensors of no others: the last of numbers that the host has.
MAKERS = ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm", "zeros")
OF_NUMBERS = ("as_tensor", "asarray", "tensor")


class Waits(Counter):
    """How often the host waited, by the place in the library and the operation."""

    def log(self, operation, times=1):
        """Count a wait at the innermost function of the library that is being run."""
        frame = sys._getframe()
        while frame is not None and not frame.f_code.co_filename.startswith(LIBRARY):
            frame = frame.f_back
        code = None if frame is None else frame.f_code
        place = "the caller" if code is None else f"{Path(code.co_filename).name} {code.co_qualname}"
        self[place, operation] += times


class Pretend(Tensor):
    """A tensor on the pretend device; `held` is its data."""

    waits = Waits()
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        stride = held.stride() if held.layout == torch.strided else None
        made = Tensor._make_wrapper_subclass(cls, held.size(), stride, dtype=held.dtype)
        made.held = held.detach()
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in OWN:
            return OWN[func]._init_fn(*args)
        name, kwargs = func._schema.name.partition("::")[2], kwargs or {}
        given = tensors((*args, *kwargs.values()))
        if times := WAITS.get(name, 0) + crossings(func, name, args, given):
            cls.waits.log(name, times)
        made = func(*held(args), **{key: held(a) for key, a in kwargs.items()})
        same = {id(a.held): a for a in given if isinstance(a, Pretend)}  # what is written in place is what comes back
        there = lambda a: same[id(a)] if id(a) in same else Pretend(a)  # noqa: E731
        if isinstance(made, (tuple, list)):
            return type(made)(there(a) for a in made)
        return there(made) if isinstance(made, Tensor) else made

    # What torch answers in C++, where this tensor is one of the CPU's

    def __repr__(self, **_):
        return f"pretend {self.held!r}"

    def numpy(self, *_, **__):
        msg = "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory."
        raise TypeError(msg)

    __array__ = numpy

    def cpu(self):
        return transferred(self, CPU)

    def tolist(self):
        self.waits.log("tolist")
        return self.held.tolist()

    def data_ptr(self):
        return self.held.data_ptr()

    def new_tensor(self, data, dtype=None):
        return transferred(torch.tensor(data, dtype=dtype or self.dtype), CUDA)

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        Tensor.data.__set__(self, other)
        self.held = other.held


def held(a):
    """An argument with CPU data in place of pretend tensors, in lists and tuples too."""
    if isinstance(a, (list, tuple)):
        return type(a)(held(one) for one in a)
    return a.held if isinstance(a, Pretend) else a


def tensors(a):
    """All tensors of an argument."""
    if isinstance(a, (list, tuple)):
        return [found for one in a for found in tensors(one)]
    return [a] if isinstance(a, Tensor) else []


def crossings(func, name, args, given):
    """How often data of an operation goes from one device to the other; an error where it may not."""
    strays = [a for a in given if not isinstance(a, Pretend)]
    if name == "copy_":
        return len(strays)
    if name in ("index", "index_put", "index_put_"):
        at = [a for a in args[1] if a is not None]
        masks = sum(a.dtype == torch.bool for a in at)  # each is made indices
        filled = name == "index_put_" and masks == len(at) == 1 and args[2].numel() == 1  # but not where a number goes
        moved = [a for a in at if not isinstance(a, Pretend)]  # CUDA takes indices of the CPU
        together(name, [a for a in strays if not any(a is b for b in moved) and (a.ndim or a is args[0])])
        return len(moved) + (0 if filled else masks)
    numbers = torch.Tag.pointwise in func.tags or name in TAKE_NUMBERS
    together(name, [a for a in strays if a.ndim or not numbers])
    return 0


def together(name, strays):
    """Raise torch's error if there are tensors of the CPU among those of CUDA."""
    if strays:
        msg = f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({name})"
        raise RuntimeError(msg)


class Transfer(torch.autograd.Function):
    """A copy on the other device."""

    @staticmethod
    def forward(ctx, a):
        return a.held.clone() if isinstance(a, Pretend) else Pretend(a.clone())

    @staticmethod
    def backward(ctx, grad):
        return Transfer.apply(grad)


def transferred(a, device):
    """`a` on a device; the host waits where it is not there."""
    if a.device == device or a.is_meta:
        return a
    Pretend.waits.log(f"to {device.type}")
    return Transfer.apply(a)


def device_of(device):
    """A device as torch takes it: one of the two."""
    return CUDA if torch.device(device).type == "cuda" else CPU


def maker(make, of_numbers):
    """A function that makes tensors, such as torch.zeros, and knows the pretend device."""

    def made(*args, device=None, **kwargs):
        if device is None or torch.device(device).type != "cuda":
            a = make(*args, device=device, **kwargs)
            return a if device is None else transferred(a, torch.device(device))
        a = make(*args, **kwargs)
        if of_numbers or isinstance(a, Pretend):
            return transferred(a, CUDA)
        return Pretend(a).requires_grad_(a.requires_grad)

    return made


def parse_to(parse):
    """What the arguments of `to` ask for, of a tensor or of a module."""

    def parsed(*args, **kwargs):
        device, dtype, *rest = parse(*args, **kwargs)
        return next((a.device for a in tensors((*args, *kwargs.values()))), device), dtype, *rest

    return parsed


def to(convert):
    """`Tensor.to` that knows the pretend device."""

    def converted(self, *args, copy=False, **kwargs):
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        a = self if device is None else transferred(self, device_of(device))
        return convert(a, dtype or a.dtype, copy=copy and a is self)

    return converted


def keeping_parameters(move):
    """`Module.to` that keeps the module's parameters, as it does for all devices of torch."""

    def moved(self, *args, **kwargs):
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return move(self, *args, **kwargs)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)

    return moved


@contextmanager
def pretend_cuda(kernels=False):
    """The pretend device is there; yields the count of waits.  `kernels`: with Triton, whose interpreter must be on."""
    Pretend.waits = Waits()
    there = {
        "is_available": lambda: True,
        "device": lambda _: nullcontext(),
        "synchronize": lambda *_: Pretend.waits.log("synchronize"),
        "mem_get_info": lambda *_: (2**34, 2**34),
        "memory_reserved": lambda *_: 0,
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "reset_peak_memory_stats": lambda *_: None,
        "get_device_name": lambda *_: "a pretend device",
    }
    changes = [(torch.cuda, name, value) for name, value in there.items()]
    changes += [(torch, name, maker(getattr(torch, name), False)) for name in MAKERS]
    changes += [(torch, name, maker(getattr(torch, name), True)) for name in OF_NUMBERS]
    changes += [(torch.nn.Module, "to", keeping_parameters(torch.nn.Module.to)), (Tensor, "to", to(Tensor.to))]
    changes += [(Tensor, "cuda", lambda a: transferred(a, CUDA))]
    changes += [(torch._C._nn, "_parse_to", parse_to(torch._C._nn._parse_to)), (torch, "mm", mm(torch.mm))]
    kind = lambda device: kernels and device == "cuda"  # noqa: E731
    changes += [(module, "has_kernels", kind) for module in (certified_topk, codes, topk)]
    if kernels:
        from triton.runtime.interpreter import GridExecutor

        changes += [(GridExecutor, "__call__", launch(GridExecutor.__call__))]
    _device._device_constructors()  # kept by torch from now on: the true ones
    with ExitStack() as stack:
        for change in changes:
            stack.enter_context(mock.patch.object(*change))
        yield Pretend.waits


def mm(multiply):
    """`torch.mm` with `out_dtype`, which only CUDA has."""

    def product(a, b, out_dtype=None, **kwargs):
        return multiply(a, b, **kwargs) if out_dtype is None else multiply(a.to(out_dtype), b.to(out_dtype))

    return product


def launch(run):
    """The launch of a kernel in Triton's interpreter, on the data that is held."""

    def launched(self, *args, **kwargs):
        together("a Triton kernel", [a for a in tensors(args) if not isinstance(a, Pretend)])
        return run(self, *held(args), **kwargs)

    return launched
