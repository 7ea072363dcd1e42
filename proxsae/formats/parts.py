"""What the formats share: the result, checked fields and shapes, and the folding of encoders into one form."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from proxsae.conventions import Error
from proxsae.formats.files import show
from proxsae.penalties import L0, Penalty

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
HOOKS = ("hook_name", "hook_point", "submodule_name", "hf_hook_point_in")
LAYERS = ("hook_layer", "layer")
LAYER = re.compile(r"\b(?:blocks|layers|h)[.\[](\d{1,4})\b")
THRESHOLDS = ("threshold", "threshold_minus")  # of an L0: for positive codes, for negative ones
BLOCK = 4096  # latents at a time in float64
NOT_SUBTRACTED = "The file does not subtract b_dec from its input: b_enc has b_dec W_enc added."  # see `assemble`


@dataclass(frozen=True, eq=False)
class Found:
    """A checkpoint in the form of `proxsae.SAE`, with what the file says about itself.

    format: the library and the class.  tensors: W_enc (d_in, d_sae), W_dec (d_sae, d_in), b_enc (d_sae,) and
    b_dec (d_in,), of one dtype.  normalization: "none"; "layer_norm", where each row is (x - mean) / (std + 1e-5), std
    with n - 1, and the reconstruction is times std plus mean; or "constant_norm", where it is x sqrt(d) / ||x|| and
    the reconstruction is divided by that factor.  metadata: names and values as in the file.  notes: what was folded
    in or is implied, one sentence each.
    """

    format: str
    tensors: dict[str, Tensor]
    penalty: Penalty
    normalization: str
    metadata: dict[str, Any]
    notes: tuple[str, ...]


class Config:
    """The fields of a configuration, each checked when it is asked for; null counts as absent."""

    def __init__(self, entries: Mapping[str, Any], source: str) -> None:
        self.entries, self.source = entries, source

    def get(self, name: str, default: Any = None) -> Any:
        """The field as it is."""
        value = self.entries.get(name)
        return default if value is None else value

    def refuse(self, name: str, why: str) -> NoReturn:
        """Raise the `Error` that says that field `name` cannot be had, and why."""
        msg = f"{self.source} says {name}={show(self.entries.get(name))}, but {why}"
        raise Error(msg)

    def flag(self, name: str, default: bool = False) -> bool:
        """A field that is true or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            self.refuse(name, "it must be true or false")
        return value

    def text(self, name: str, default: str = "") -> str:
        """A field that is text."""
        value = self.get(name, default)
        if not isinstance(value, str):
            self.refuse(name, "it must be text")
        return value

    def number(self, name: str) -> float:
        """A field that is one positive finite number."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= sys.float_info.max:
            self.refuse(name, "it must be a finite number > 0")
        return float(value)

    def count(self, name: str, most: int) -> int:
        """A field that is a whole number in 1 ... most, the number of latents; a tensor of one entry counts as one."""
        value = self.get(name)
        if isinstance(value, Tensor) and value.numel() == 1 and not value.dtype.is_floating_point:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            self.refuse(name, f"it must be a whole number from 1 to {most}, the number of latents")
        return value

    def section(self, name: str) -> Config:
        """A field that is itself an object; an empty one where it is absent."""
        value = self.get(name, {})
        if not isinstance(value, dict):
            self.refuse(name, "it must be an object of names and values")
        return Config(value, f"{self.source}, {name},")

    def same(self, name: str, value: int, what: str) -> None:
        """Raise `Error` unless the field is absent or equal to what the tensors say."""
        given = self.get(name, value)
        if isinstance(given, bool) or given != value:
            self.refuse(name, f"{what} is {value} in the tensors")

    def only(self, allowed: Mapping[str, tuple[Any, str]]) -> None:
        """Raise `Error` for a field with another value than the allowed one: {name: (allowed value, why no other)}."""
        for name, (value, why) in allowed.items():
            given = self.get(name, value)
            if type(given) is not type(value) or given != value:
                self.refuse(name, f"only {show(value)} can be read: {why}")

    def metadata(self, names: Iterable[str]) -> dict[str, Any]:
        """Those of the named fields that are short text, finite numbers, true or false."""
        return {name: self.entries[name] for name in names if _plain(self.entries.get(name))}


def located(metadata: dict[str, Any]) -> dict[str, Any]:
    """The same with hook_name and hook_layer, where they are there under other names, or the layer in the hook's."""
    hook = next((metadata[name] for name in HOOKS if isinstance(metadata.get(name), str)), None)
    layer = next((metadata[name] for name in LAYERS if type(metadata.get(name)) is int), None)
    number = LAYER.search(hook or "")
    if layer is None and number:
        layer = int(number[1])
    found = {"hook_name": hook, "hook_layer": layer}
    return {**metadata, **{name: value for name, value in found.items() if value is not None}}


def _plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= 1000
    return isinstance(value, bool) or (isinstance(value, (int, float)) and abs(value) < 1e18)


def shaped(tensors: dict[str, Any], shapes: Mapping[str, str], optional: Mapping[str, str] | None = None) -> int:
    """Check names, shapes, dtypes and finiteness, and return the number of latents P.

    A shape is written by letters, as in {"W_enc": "dP", "b_enc": "P", "threshold": ""}; the first of two letters fixes
    d and P.  A tensor with further axes of length 1, such as a b_dec (1, d), is given the shape without them.  Raises
    `Error` for a tensor that is missing or that no such file holds, and for shapes that disagree.
    """
    known = {**shapes, **(optional or {})}
    for name in shapes:
        if not isinstance(tensors.get(name), Tensor):
            held = ", ".join(sorted(tensors)[:12])
            msg = f"there is no tensor {name}, which this format needs, among {show(held)}"
            raise Error(msg)
    for name in tensors:
        if name not in known:
            msg = f"there is a tensor {show(name)}, which this version cannot account for in this format"
            raise Error(msg)
    first = next(name for name, letters in shapes.items() if len(letters) == 2)
    tensors[first] = tensors[first].reshape(_without_ones(tensors[first].shape, 2))
    shape = tuple(tensors[first].shape)
    if len(shape) != 2 or 0 in shape:
        msg = f"{first} has shape {show(shape)}, but it must be a matrix with at least one row and column"
        raise Error(msg)
    sizes = dict(zip(shapes[first], shape, strict=True))
    for name, letters in known.items():
        if name in tensors:
            wanted = tuple(sizes[letter] for letter in letters)
            tensors[name] = _checked(name, tensors[name], wanted, f"{first} of shape {shape}")
    return sizes["P"]


def _without_ones(shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """The shape without axes of length 1, the first ones first, as long as more than `axes` are left."""
    left = list(shape)
    while len(left) > axes and 1 in left:
        left.remove(1)
    return tuple(left)


def _checked(name: str, a: Any, shape: tuple[int, ...], whole: str) -> Tensor:
    if not isinstance(a, Tensor):
        msg = f"{name} is a {type(a).__name__}, but it must be a tensor"
        raise Error(msg)
    if _without_ones(a.shape, len(shape)) != shape:
        msg = f"{name} has shape {show(tuple(a.shape))}, but {whole} needs {shape}"
        raise Error(msg)
    if shape and a.dtype not in DTYPES:
        msg = f"{name} has dtype {a.dtype}, but weights are float64, float32, float16 or bfloat16"
        raise Error(msg)
    check_finite(name, a)
    return a.reshape(shape)


def is_sound(name: str, a: Tensor) -> bool:
    """Whether a weight holds numbers: a threshold may be infinite, which switches its latent off, or one side of it."""
    return bool((a.isfinite() | (a == torch.inf)).all() if name in THRESHOLDS else a.isfinite().all())


def check_finite(name: str, a: Tensor) -> None:
    """Raise `Error` for NaN and infinities, but for thresholds that are infinite."""
    if a.dtype.is_floating_point and not is_sound(name, a):
        msg = f"{name} holds NaN or infinite entries, but weights must be finite"
        raise Error(msg)


def row_norms(W_dec: Tensor) -> Tensor:
    """||W_dec_i|| in float64: (d_sae, d_in) -> (d_sae,)."""
    return torch.linalg.vector_norm(W_dec, dim=1, dtype=torch.float64)


def assemble(
    W_enc: Tensor,
    W_dec: Tensor,
    b_enc: Tensor,
    b_dec: Tensor,
    *,
    subtracts: bool = True,
    gain: Tensor | None = None,
    norms: Tensor | None = None,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """The four tensors of our form, from  u = n (g (s x - a b_dec) W_enc + b_enc)  and  s xhat = (z / n) W_dec + b_dec.

    a = 1 if the encoder `subtracts` b_dec, else 0; g is `gain`, n `norms`, both (d_sae,); s is `scale`.  So

        W_enc' = s n g W_enc,   b_enc' = n (b_enc + (1 - a) g (b_dec W_enc))
        W_dec' = W_dec / (s n),   b_dec' = b_dec / s

    each worked out in float64 and rounded once, to the widest dtype of the four.  A latent whose n is 0 has no code.
    """
    dtype = functools.reduce(torch.promote_types, (a.dtype for a in (W_enc, W_dec, b_enc, b_dec)))
    one = torch.ones((), dtype=torch.float64)
    g, n = (one if factor is None else factor.double() for factor in (gain, norms))
    bias = b_enc.double()
    if not subtracts:
        parts = [b_dec.double() @ part.double() for part in W_enc.split(BLOCK, dim=1)]
        bias = bias + g * torch.cat(parts)
    tensors = {
        "W_enc": _times(W_enc, scale * n * g, dtype),
        "W_dec": _times(W_dec.T, torch.where(n > 0, 1 / n, 0) / scale, dtype).T,
        "b_enc": (n * bias).to(dtype),
        "b_dec": (b_dec.double() / scale).to(dtype),
    }
    for name, a in tensors.items():
        check_finite(f"{name}, once folded,", a)
    return tensors


def _times(W: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """W with its columns times `factor`, in memory of its own, block by block: float64 of all of W might not fit."""
    out, factor = torch.empty_like(W, dtype=dtype), factor.expand(W.shape[1])
    for i in range(0, W.shape[1], BLOCK):
        out[:, i : i + BLOCK] = (W[:, i : i + BLOCK].double() * factor[i : i + BLOCK]).to(dtype)
    return out


def jumprelu(theta: Tensor, latents: int) -> L0:
    """L0 with lam = max(theta, 0)^2 / 2 for every latent: its non-negative prox is u 1[u > 0] 1[u > theta]."""
    values = np.broadcast_to(theta.double().clamp(min=0).numpy().reshape(-1), (latents,))
    with np.errstate(over="ignore"):  # what is beyond float64 switches the latent off, and so it did before
        return L0(values * values / 2, nonneg=True)


def gated(
    W_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    r: Tensor,
    b_gate: Tensor,
    b_mag: Tensor,
    subtracts: bool = True,
    scale: float = 1.0,
) -> tuple[dict[str, Tensor], L0]:
    """(tensors, penalty) of a gated encoder, which is a JumpReLU exactly.

    With w = c W_enc its code is  1[w + b_gate > 0] max(e^r w + b_mag, 0).  Put u = e^r w + b_mag.  Since e^r > 0,
    w > -b_gate  if and only if  u > b_mag - e^r b_gate,  so the code is u where u > max(b_mag - e^r b_gate, 0), else 0:
    a JumpReLU with W_enc' = e^r W_enc, b_enc' = b_mag and that threshold.
    """
    growth = r.double().exp()
    theta = b_mag.double() - growth * b_gate.double()
    check_finite("the threshold b_mag - exp(r_mag) b_gate", theta)
    tensors = assemble(W_enc, W_dec, b_mag, b_dec, subtracts=subtracts, gain=growth, scale=scale)
    return tensors, jumprelu(theta, len(theta))
