"""Interventions: an SAE in place of an activation (`splice`), or a change of its latents alone (`steer`).

    splice   x -> xhat = decode(encode(x)),  or x -> xhat + (x - xhat) with the error x - xhat held constant
    steer    x -> x + decode(z') - decode(z),  z = encode(x),  so that what the SAE does not explain stays

Both are context managers: the model is as before when the context ends, after an exception too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proxsae.conventions import Error, as_number, check_count, note, shown
from proxsae.models.places import Change, Place
from proxsae.sae import SAE
from proxsae.sae.model import check_sae


@dataclass
class Spliced:
    """What the SAE saw and gave in the last forward pass: x (..., d_in), codes z (..., d_sae) and xhat (..., d_in)."""

    x: Tensor | None = None
    z: Tensor | None = None
    xhat: Tensor | None = None


@contextlib.contextmanager
def splice(
    model: nn.Module, module: str, sae: SAE, at: str = "output", skip: int = 0, error: bool = False
) -> Iterator[Spliced]:
    """While the context is open, the activation x at a module is replaced by its reconstruction xhat.

    model, module: any `torch.nn.Module`, and the dotted name of one in it; `at` is its "input" or "output".
    sae: it may have another dtype than the model: x is converted to it and xhat back.
    skip: the first tokens of each sequence that stay as they are, padding aside; padding stays too, where the call has
    an `attention_mask`.
    error: xhat + (x - xhat), the error held constant: the model computes what it did, and gradients reach the codes.

    What is yielded holds x, z and xhat of the last forward pass.  Warns where the SAE has a record of another module,
    or of its other side.  Raises `Error` for an unknown module, and in the forward pass where the width does not fit.

    >>> import proxsae as px
    >>> model, sae = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), px.topk_sae(4, 16, k=4)
    >>> with px.models.splice(model, "0", sae) as seen:
    ...     tuple(model(torch.ones(3, 4)).shape), tuple(seen.z.shape)
    ((3, 2), (3, 16))
    """
    place, seen = Place(model, module, at, skip), Spliced()
    warn_elsewhere([check_sae(sae)], module, at)

    def change(x: Tensor, which: Tensor | None) -> Tensor:
        rows = fitting(x, sae, module)
        z = sae.encode(rows)
        xhat = sae.decode(z, like=rows)
        seen.x, seen.z, seen.xhat = x, z, xhat
        new = xhat + (rows - xhat).detach() if error else xhat
        return chosen(new.to(x.dtype), x, which)

    with place.changed(change):
        yield seen


@contextlib.contextmanager
def steer(
    model: nn.Module, module: str, sae: SAE, latents: Mapping[int, Any], at: str = "output", skip: int = 0
) -> Iterator[None]:
    """While the context is open, latents are changed at a module: x becomes x + decode(z') - decode(z).

    latents: {latent: change}.  A number sets z'_j to it on every token; "flip" changes the sign of z_j; "*2" multiplies
    z_j by 2, and "*0" removes it.  For signed codes the sign is part of the value: +v and -v are two directions.
    The other arguments are those of `splice`.

    Raises `Error` for a latent or a change that does not exist.

    >>> import proxsae as px
    >>> model, sae = nn.Sequential(nn.Linear(4, 4)), px.abstopk_sae(4, 16, k=2)
    >>> x = torch.ones(3, 4)
    >>> with px.models.steer(model, "0", sae, {7: "*1"}):
    ...     bool(torch.equal(model(x), model(x)))
    True
    """
    place, change = Place(model, module, at, skip), steering(sae, latents, module)
    warn_elsewhere([sae], module, at)
    with place.changed(change):
        yield


def steering(sae: SAE, latents: Mapping[int, Any], module: str) -> Change:
    """The change of activations that `steer` makes."""
    check_sae(sae)
    if not isinstance(latents, Mapping):
        msg = f"latents={shown(latents)} must be a dict, such as {{7: 'flip'}}"
        raise Error(msg)
    at = [latent_of(sae, latent) for latent in latents]
    changes = [_change(value) for value in latents.values()]

    def change(x: Tensor, which: Tensor | None) -> Tensor:
        rows = fitting(x, sae, module)
        old = sae.encode(rows)[..., at]
        factors, values = (old.new_tensor(column) for column in zip(*changes, strict=True))
        move = (factors * old + values - old) @ sae.W_dec[at]
        moved = rows + move * sae.normalized(rows).scale
        return chosen(moved.to(x.dtype), x, which)

    return change if at else lambda x, which: None


def warn_elsewhere(saes: Iterable[SAE], module: str, at: str) -> None:
    """Warn, once, where SAEs say that their rows came from another module, or from its other side.

    Names are the same where one ends in the other: a model may be a part of a larger one.
    """
    for sae in saes:
        known = sae.metadata.get("collected")
        home, side = (known.get(name) for name in ("module", "at")) if isinstance(known, dict) else (None, None)
        if not isinstance(home, str) or side not in ("input", "output"):
            continue
        if side != at or not (f".{module}".endswith(f".{home}") or f".{home}".endswith(f".{module}")):
            note(
                f"this SAE was trained on the {side} of {home}, and is now used on the {at} of {module}, whose "
                f"activations may be others: module={home!r}, at={side!r} is where its rows came from"
            )
            return


def latent_of(sae: SAE, latent: Any) -> int:
    """The number of a latent of the SAE, or `Error`."""
    number = check_count("latent", latent, 0)
    if number >= sae.d_sae:
        msg = f"latent={number} must be below {sae.d_sae}: this SAE has no other"
        raise Error(msg)
    return number


def _change(value: Any) -> tuple[float, float]:
    """(f, v) for z' = f z + v."""
    if isinstance(value, str):
        if value == "flip":
            return -1.0, 0.0
        with contextlib.suppress(ValueError):
            factor = as_number(float(value[1:])) if value.startswith("*") else None
            if factor is not None:
                return factor, 0.0
    number = as_number(value)
    if number is None:
        msg = f"a latent cannot be changed by {shown(value)}: give a number to set it to, 'flip', or a factor like '*2'"
        raise Error(msg)
    return 0.0, number


def fitting(x: Tensor, sae: SAE, module: str) -> Tensor:
    """x in the dtype of the SAE, or `Error` where its width or device is another."""
    if x.shape[-1] != sae.d_in:
        msg = f"{module} has activations of width {x.shape[-1]}, but this SAE needs {sae.d_in}: name its own module"
        raise Error(msg)
    if x.device != sae.W_dec.device:
        msg = f"{module} computes on {x.device}, but the SAE lies on {sae.W_dec.device}: sae.to({str(x.device)!r})"
        raise Error(msg)
    return x.to(sae.W_dec.dtype)


def chosen(new: Tensor, old: Tensor, which: Tensor | None) -> Tensor:
    """`new` at the positions that count, `old` at the others; a tensor of its own, which the model may write to."""
    return new.clone() if which is None else torch.where(which[..., None], new, old)
