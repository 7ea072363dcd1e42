"""Write a `Found` in SAELens's layout, as its `SAE.load_from_disk` reads it.

    L1, nonneg      standard, b_enc less lam              KSparse, nonneg   topk
    L0, nonneg      jumprelu, threshold sqrt(2 lam)       KSparse           abstopk

Signed penalties have no place in libraries that read codes by their sign.  With `double` the SAE gets twice the width,
[W_dec; -W_dec], [W_enc, -W_enc] and [b_enc, -b_enc], and the non-negative architecture: its codes are max(z, 0) beside
max(-z, 0), and its reconstruction is the same (prop-splitting-codes).
"""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxsae.conventions import Error, library, shown
from proxsae.disk import replace_folder
from proxsae.formats.parts import Found, check_finite
from proxsae.penalties import L0, L1, BatchKSparse, KSparse
from proxsae.penalties.base import lams

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
VERSION = "6.54.12"  # of SAELens, whose layout this is
NORMALIZATIONS = {"none": "none", "layer_norm": "layer_norm", "constant_norm": "constant_norm_rescale"}


def saelens_layout(found: Found, double: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The `cfg.json` and the tensors of `found` as SAELens 6 lays them out.

    Raises `Error` for penalties that SAELens has no architecture for.
    """
    R: Any = found.penalty
    if isinstance(R, BatchKSparse):
        msg = f"{R!r} selects over a batch, and SAELens encodes by a threshold: set the inference threshold first (L0)"
        raise Error(msg)
    if not isinstance(R, (L1, L0, KSparse)):
        msg = f"{R!r} has no architecture in SAELens, which has those of L1, L0 and KSparse"
        raise Error(msg)
    if double and R.nonneg:
        msg = f"double=True is for signed codes, but those of {R!r} are >= 0 already"
        raise Error(msg)
    if not R.nonneg and not double and not isinstance(R, KSparse):
        msg = f"{shown(R)} gives signed codes, which SAELens has for KSparse only: double=True writes them at twice"
        msg += " the width"
        raise Error(msg)
    tensors = {name: found.tensors[name].detach().cpu() for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    if double:
        W_enc, W_dec, b_enc = tensors["W_enc"], tensors["W_dec"], tensors["b_enc"]
        tensors |= {
            "W_enc": torch.cat([W_enc, -W_enc], dim=1),
            "W_dec": torch.cat([W_dec, -W_dec]),
            "b_enc": torch.cat([b_enc, -b_enc]),
        }
    latents, width = tensors["W_dec"].shape
    _settle(R, tensors, 2 if double else 1)
    for name, a in tensors.items():
        check_finite(name, a)
    dtype = str(tensors["W_dec"].dtype).removeprefix("torch.")
    config = saelens_fields(R, (width, latents), dtype, found.normalization, found.metadata, double)
    return config, {name: a.contiguous() for name, a in tensors.items()}


def saelens_fields(
    R: Any, sizes: tuple[int, int], dtype: str, normalization: str, metadata: dict[str, Any], double: bool = False
) -> dict[str, Any]:
    """The `cfg.json` of an SAE of these (d_in, d_sae); its architecture is None where SAELens has none."""
    names: dict[Any, str] = {L1: "standard", L0: "jumprelu", KSparse: "topk"}
    known = names.get(type(R)) if R.nonneg or double else None
    width, latents = sizes
    extra = {}
    if isinstance(R, KSparse):
        known = known or "abstopk"
        extra = {"k": min(R.k, latents // 2 if double else latents), "rescale_acts_by_decoder_norm": False}
    return {
        "architecture": known,
        "d_in": width,
        "d_sae": latents,
        "dtype": dtype,
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": NORMALIZATIONS[normalization],
        "reshape_activations": "none",
        **extra,
        "metadata": {**metadata, "sae_lens_version": VERSION, "sae_lens_training_version": None},
    }


def model_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """What `metadata` says of the model, without what it says of the file that the SAE came from."""
    return {name: value for name, value in metadata.items() if name not in ("format", "notes")}


def saelens_cfg(
    R: Any, sizes: tuple[int, int], dtype: str, normalization: str, metadata: dict[str, Any], device: str
) -> SimpleNamespace:
    """The `cfg` of an SAE as tools made for SAELens read it: its fields, and the hook and model, or None."""
    fields = saelens_fields(R, sizes, dtype, normalization, model_metadata(metadata))
    known = {name: metadata.get(name) for name in ("hook_name", "hook_layer", "model_name")}
    return SimpleNamespace(**known | fields | {"device": device})


def _settle(R: Any, tensors: dict[str, Tensor], copies: int) -> None:
    """Put the parameters of R into the tensors."""
    if isinstance(R, KSparse):
        return
    dtype, latents = tensors["b_enc"].dtype, tensors["b_enc"].shape[0]
    sides = [lam.detach().cpu().numpy() if isinstance(lam, Tensor) else lam for lam in lams(R).values()]
    sides = (sides * copies)[:copies]  # of -D: the weight of negative codes
    values = np.concatenate([np.broadcast_to(np.asarray(lam, np.float64), (latents // copies,)) for lam in sides])
    level = torch.tensor(values if isinstance(R, L1) else np.sqrt(2 * values))
    if isinstance(R, L1):
        tensors["b_enc"] = (tensors["b_enc"].double() - level).to(dtype)
    else:
        tensors["threshold"] = level.to(dtype)


def write_saelens(folder: str | os.PathLike[str], found: Found, double: bool = False) -> None:
    """Write `found` as a SAELens folder, beside and then renamed, replacing one that is there.

    Raises `Error` for a penalty without architecture, and for a folder that holds something else.
    """
    safetensors = library("safetensors.torch", "study")
    config, tensors = saelens_layout(found, double)
    files = {WEIGHTS: safetensors.save(tensors), CONFIG: (json.dumps(config, indent=2) + "\n").encode()}
    replace_folder(folder, files, WEIGHTS, hashed=False)
