"""k-sparse codes as indices and values, and the three products with them; nothing of size B x P is made.

    decode      sum_j z_j w_j                        gathers k rows a code
    dots        <w_j, g> for j in the support         its transpose
    outer       sum of z_j g over the codes with j    the gradient of w_j: codes sorted by latent

W holds one latent a row, (P, d).  Half precision accumulates in float32.
"""

from __future__ import annotations

import importlib
import threading
import warnings
import weakref
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from proxsae.certificates import FAINT
from proxsae.conventions import Error, check_count, check_floats, may_look
from proxsae.pytorch.cost_model import has_kernels
from proxsae.pytorch.topk import top_k

BLOCK = 2**18  # entries of a weight, or of its gradient, that are worked on at a time


@dataclass(frozen=True)
class SparseCodes:
    """Codes of `d_sae` latents by their support: `indices` (..., s) int64, ascending, and `values` (..., s).

    A row with fewer than s non-zeros is padded with latents whose value is 0; no index occurs twice in a row.
    """

    indices: Tensor
    values: Tensor
    d_sae: int

    def __post_init__(self) -> None:
        indices, values = self.indices, self.values
        if not (isinstance(indices, Tensor) and isinstance(values, Tensor) and indices.dtype == torch.int64):
            kinds = " and ".join(str(getattr(a, "dtype", type(a).__name__)) for a in (indices, values))
            msg = f"indices and values of codes are {kinds}, but must be tensors, indices of int64"
            raise Error(msg)
        if indices.shape != values.shape or not indices.ndim:
            msg = f"indices have shape {tuple(indices.shape)} and values {tuple(values.shape)}: both need (..., s)"
            raise Error(msg)

    def check(self) -> None:
        """Raise `Error` for an index that is no latent, which a GPU would answer with what is in memory there."""
        check_count("d_sae", self.d_sae, 0)
        check_floats("values", self.values)
        if not may_look(self.indices) or not self.indices.numel():
            return
        low, high = int(self.indices.min()), int(self.indices.max())
        if not 0 <= low <= high < self.d_sae:
            msg = f"indices of codes go from {low} to {high}, but must be in [0, {self.d_sae}): there are d_sae latents"
            raise Error(msg)

    def to_dense(self) -> Tensor:
        """The same codes as (..., d_sae)."""
        self.check()
        return self.scattered()

    def scattered(self) -> Tensor:
        """`to_dense` of codes that were made here, and need no check."""
        dense = self.values.new_zeros(*self.values.shape[:-1], self.d_sae)
        return dense.scatter(-1, self.indices, self.values)


def sparsify(z: Tensor, width: int | None = None, felt: Tensor | None = None) -> SparseCodes:
    """Dense codes (..., P) as `SparseCodes` with `width` entries a row, by default the largest support in the batch.

    `felt` (..., P) marks entries that have gradients though they may be 0: then they are kept as well.
    """
    if not may_look(z):  # its width cannot be known
        felt, width = None, z.shape[-1] if width is None else width
    if felt is not None:
        kept = (z != 0) | felt
        indices = sparsify(kept.to(z.dtype)).indices
        return SparseCodes(indices, z.gather(-1, indices), z.shape[-1])
    if width is None:
        width = int((z != 0).sum(dim=-1).max()) if z.numel() else 0
    indices = top_k(z, width)
    return SparseCodes(indices, z.gather(-1, indices), z.shape[-1])


def sparse_decode(codes: SparseCodes, W_dec: Tensor) -> Tensor:
    """D z, that is sum_j z_j d_j: codes with s entries and W_dec (P, d) give (..., d).

    Differentiable any number of times, in the values and in W_dec (thm-sparse-gradient).
    """
    if not may_look(W_dec):
        return codes.to_dense() @ W_dec
    lead, s = codes.values.shape[:-1], codes.values.shape[-1]
    flat = (lead.numel(), s)
    decoded = _Decode.apply(codes.values.reshape(flat), W_dec, codes.indices.reshape(flat))
    return decoded.reshape(*lead, W_dec.shape[1]).to(W_dec.dtype)


def sparse_dots(indices: Tensor, W: Tensor, g: Tensor) -> Tensor:
    """`dots`, differentiable any number of times in W and g."""
    products: Tensor = _Dots.apply(W, g, indices)
    return products


class _Decode(torch.autograd.Function):
    """`decode` with gradients.

    `_Decode`, `_Dots` and `_Outer` are the derivatives of  sum_bj z_bj <w_j, g_b>  in g, in z and in W.  Each is linear
    in two of the three, so that the other two are all that its backward pass needs, to any order.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, W: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(values, W, indices)
        return decode(indices, values, W)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        values, W, indices = ctx.saved_tensors
        to_values = to_W = None
        if ctx.needs_input_grad[0]:
            to_values = _Dots.apply(W, grad, indices).to(values.dtype)
        if ctx.needs_input_grad[1]:
            to_W = _Outer.apply(values, grad, indices, len(W)).to(W.dtype)
        return to_values, to_W, None


class _Dots(torch.autograd.Function):
    """`dots` with gradients."""

    @staticmethod
    def forward(ctx: Any, W: Tensor, g: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(W, g, indices)
        return dots(indices, W, g)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        W, g, indices = ctx.saved_tensors
        to_W = _Outer.apply(grad, g, indices, len(W)).to(W.dtype) if ctx.needs_input_grad[0] else None
        to_g = _Decode.apply(grad, W, indices).to(g.dtype) if ctx.needs_input_grad[1] else None
        return to_W, to_g, None


class _Outer(torch.autograd.Function):
    """`outer` with gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, g: Tensor, indices: Tensor, P: int) -> Tensor:
        ctx.save_for_backward(values, g, indices)
        return outer(indices, values, g, P)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, g, indices = ctx.saved_tensors
        to_values = _Dots.apply(grad, g, indices).to(values.dtype) if ctx.needs_input_grad[0] else None
        to_g = _Decode.apply(values, grad, indices).to(g.dtype) if ctx.needs_input_grad[1] else None
        return to_values, to_g, None, None


def _kernels(name: str, a: Tensor) -> Any:
    """The module of Triton kernels of that name where they run on `a`, else None."""
    if a.dtype == torch.float64 or not has_kernels(a.device.type):
        return None
    return importlib.import_module(f"proxsae.pytorch.kernels.{name}")


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums of `dtype` are kept."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def squares(a: Tensor) -> Tensor:
    """||a||^2 of rows (n, s) in float64, where no square of float32 overflows or underflows; without gradient."""
    return a.detach().double().square().sum(dim=-1)


def fulfils(lhs: Tensor, rhs: Tensor, moved: Tensor) -> Tensor:
    """Whether  lhs = mu ||D dz||^2 <= ||dz||^2 = rhs,  as squares that over- or underflow cannot tell; by row."""
    return (lhs <= rhs) & (lhs < torch.inf) & ((rhs > FAINT) | ~moved)


def full_float32() -> bool:
    """Whether torch multiplies float32 matrices in float32, and not in TF32 or bfloat16."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set per backend, by the newer interface
        return False


def decode(indices: Tensor, values: Tensor, W: Tensor) -> Tensor:
    """sum_j values_j W[indices_j]: indices and values (n, s), W (P, d) -> (n, d), in the accumulator's dtype."""
    wide = accumulator(W.dtype)
    if not values.numel():
        return torch.zeros(len(values), W.shape[1], dtype=wide, device=W.device)
    if (kernels := _kernels("decode", W)) is not None:
        gathered: Tensor = kernels.decode(indices, values.to(wide), W, out_dtype=wide)
        return gathered
    return embedding_bag(indices, W.to(wide), per_sample_weights=values.to(wide), mode="sum")


def decode_dense(indices: Tensor, values: Tensor, W: Tensor) -> Tensor:
    """`decode` as a product of dense codes (n, P), for codes that are hardly sparse."""
    dense, wide = SparseCodes(indices, values, len(W)).scattered(), accumulator(W.dtype)
    if W.is_cuda and W.dtype != wide:
        return torch.mm(dense.to(W.dtype), W, out_dtype=wide)
    return dense.to(wide) @ W.to(wide)


def dots(indices: Tensor, W: Tensor, g: Tensor) -> Tensor:
    """<W[indices_j], g>: indices (n, s) without repeats, W (P, d), g (n, d) -> (n, s), in the accumulator's dtype."""
    wide = accumulator(W.dtype)
    if not indices.numel():
        return torch.zeros(indices.shape, dtype=wide, device=W.device)
    if (kernels := _kernels("decode", W)) is not None:
        found: Tensor = kernels.gather_dot(indices, W, g)
        return found
    _announce_csr()
    (n, s), flat = indices.shape, indices.reshape(-1)
    begins = torch.arange(0, n * s + 1, s, device=W.device)
    values = torch.zeros(n * s, dtype=wide, device=W.device)
    support = torch.sparse_csr_tensor(begins, flat, values, (n, len(W)), check_invariants=False)
    return torch.sparse.sampled_addmm(support, g.to(wide), W.to(wide).T, beta=0.0).values().view(n, s)


@cache
def _announce_csr() -> None:
    """Torch warns of the first CSR tensor, once, that they are beta, and 2.11 that invariants are not checked.

    Nothing that a user could act on: a support made here has them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 1], [0], [0.0], (1, 1), check_invariants=False)


class Pages:
    """Memory for gradients, reused once no tensor refers to it any more.

    On a CPU fresh memory costs a page fault for every 4 KiB, which takes longer than the gradient that is written to
    it.  At most two are kept: an SAE has two large weights.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[np.ndarray, Any]] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Pages, ()  # a copy has its own

    def take(self, P: int, d: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """An unfilled (P, d)."""
        if device.type != "cpu":
            return torch.empty(P, d, dtype=dtype, device=device)
        kind = np.dtype(np.float64 if dtype == torch.float64 else np.float32)
        with self._lock:
            self._kept = [one for one in self._kept if one[0].shape == (P, d) and one[0].dtype == kind]
            free = [i for i, (_, given) in enumerate(self._kept) if given() is None]
            page = self._kept.pop(free[0])[0] if free else np.empty((P, d), kind)
            view = page[:]  # lives as long as a tensor on this memory does
            if len(self._kept) < 2:
                self._kept.append((page, weakref.ref(view)))
            return torch.from_numpy(view)


def outer(
    indices: Tensor,
    values: Tensor,
    g: Tensor,
    P: int,
    into: Tensor | None = None,
    pages: Pages | None = None,
    turned: bool = False,
) -> Tensor:
    """The gradient (P, d) of P latents: row j sums values_bj g_b over the rows b with j in their support; g (n, d).

    Codes are sorted by latent, stably, and the rows of g that belong to a latent are summed in one order: no atomics,
    so the same result every time.  With `into` (P, d) it is added there, a block of latents at a time, so that no
    second gradient is in memory.  New memory comes from `pages`; with `turned` it is that of a contiguous (d, P), but
    for kernels.
    """
    d, wide = g.shape[1], accumulator(g.dtype)
    if not values.numel():
        return torch.zeros(P, d, dtype=wide, device=g.device) if into is None else into
    if (kernels := _kernels("gradients", g)) is not None:
        summed: Tensor = kernels.weight_gradient(indices, values, g, P, into)
        return summed
    latents, order = indices.reshape(-1).sort(stable=True)
    rows, weights, source = order // indices.shape[1], values.reshape(-1)[order].to(wide), g.to(wide)
    edges = torch.searchsorted(latents, torch.arange(P + 1, device=g.device))
    starts = range(0, P, max(1, BLOCK // d))
    cuts = edges[[*starts, P]].tolist()
    out = (pages or Pages()).take(P, d, wide, g.device) if into is None else into
    out = out.view(d, P).T if turned else out  # each block is turned while it lies in the cache
    for start, first, last in zip(starts, cuts, cuts[1:], strict=False):
        part, some = slice(first, last), out[start : start + starts.step]
        ends = edges[start : start + len(some) + 1] - first
        sums = embedding_bag(
            rows[part], source, ends, mode="sum", per_sample_weights=weights[part], include_last_offset=True
        )
        some.copy_(sums) if into is None else some.add_(sums)
    return out
