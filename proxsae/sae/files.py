"""An SAE into files: its own format, and SAELens' through `formats`."""

from __future__ import annotations

import os
from dataclasses import asdict, fields
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from proxsae import formats
from proxsae.conventions import Error
from proxsae.formats import own
from proxsae.penalties import L0

if TYPE_CHECKING:
    from proxsae.sae.model import SAE


def describe(sae: SAE) -> dict[str, Any]:
    """Everything about an SAE that its tensors do not say, as JSON has it."""
    R: Any = sae._shared["penalty"]
    parameters = {f.name: np.asarray(getattr(R, f.name)).tolist() for f in fields(R)}
    if isinstance(R, L0):
        del parameters["lam"]  # it is in the trained threshold
    return {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "penalty": {"family": type(R).__name__, **parameters},
        "steps": sae.steps,
        "step": {"rule": type(sae.step).__name__, **asdict(sae.step)},
        "analysis": sae.analysis,
        "b_enc": sae.bias_at,
        "normalize": sae.normalize,
        "metadata": sae.metadata,
    }


def save(sae: SAE, folder: str | os.PathLike[str]) -> None:
    """What `SAE.save` does."""
    own.write(folder, describe(sae), sae.state_dict())


def _found(sae: SAE) -> formats.Found:
    tensors = {name: getattr(sae, name).detach() for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    R: Any = sae.penalty
    if isinstance(R, L0):
        R = L0(R.lam.detach().cpu().numpy(), nonneg=R.nonneg)
    return formats.Found("proxsae", tensors, R, sae.normalize, _own_metadata(sae), ())


def _own_metadata(sae: SAE) -> dict[str, Any]:
    return {name: value for name, value in sae.metadata.items() if name not in ("format", "notes")}


def export(sae: SAE, folder: str | os.PathLike[str], double: bool) -> None:
    """What `SAE.export` does."""
    if sae.steps != 1:
        msg = f"steps={sae.steps} cannot be exported: SAELens' encoders take one step; unrolled(1) has it"
        raise Error(msg)
    formats.write_saelens(folder, _found(sae), double)


def saelens_cfg(sae: SAE) -> SimpleNamespace:
    """What `SAE.cfg` is: of no weight is more than its shape looked at."""
    R, dtype = sae._shared["penalty"], str(sae.dtype).removeprefix("torch.")
    cfg = formats.saelens_fields(R, (sae.d_in, sae.d_sae), dtype, sae.normalize, _own_metadata(sae))
    names = ("hook_name", "hook_layer", "model_name")
    return SimpleNamespace(**{name: sae.metadata.get(name) for name in names} | cfg | {"device": str(sae.device)})
