"""An SAE from files: its own format, and through `formats` those of other libraries."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxsae import formats, hub
from proxsae.conventions import Error, check_path
from proxsae.disk import sentence
from proxsae.formats import own
from proxsae.learned import GREEDY, LEARNED
from proxsae.penalties import FAMILIES, L0, Penalty
from proxsae.pytorch.learned import shapes_of
from proxsae.sae.encoding import Encoding
from proxsae.sae.model import SAE
from proxsae.steps import RULES

RUN = "checkpoint.safetensors"  # in the folder of a training run, beside the folder "sae"
STEP_RULES: dict[str, Any] = {**RULES, **LEARNED, **GREEDY}


def load(
    path: str | os.PathLike[str], device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> SAE:
    """The SAE in a file or folder: one that `SAE.save` wrote, or one of another library, recognised by its content.

    path: a file or folder, or the name of a model that was downloaded from the Hugging Face hub, "org/name" or
    "org/name/folder": it is looked up in the hub's cache on this machine, and nothing is downloaded.
    device, dtype: where the weights go and what they are rounded to; by default the CPU, and as the file has them.

    What is read, and how it becomes this SAE, is listed in the guide *From your SAE to a deeper one*; `metadata` of the
    result holds the format, what the file says about its model, and in "notes" what was folded or is implied.
    A file of a folder may stand for it, and the folder of a training run for its SAE.
    Nothing but tensors is unpickled.  Raises `Error` for a missing, torn, foreign or hostile file, for a device that
    is not there, and for weights beyond the range of `dtype`.
    """
    sae = _load(path)
    if device is None and dtype is None:
        return sae
    if dtype not in (None, *formats.DTYPES):
        msg = f"dtype={dtype!r} must be one of {', '.join(map(str, formats.DTYPES))}: weights are floats"
        raise Error(msg)
    try:
        sae = sae.to(device, dtype)
        _check_finite(sae)  # "meta" has no numbers to look at
    except (RuntimeError, AssertionError, TypeError) as problem:
        msg = f"device={device!r} cannot hold the SAE, but must be cpu, cuda or cuda:N: {sentence(problem)}"
        raise Error(msg) from None
    return sae


def _load(path: str | os.PathLike[str]) -> SAE:
    path = check_path("path", path)
    try:
        path = place_of(Path(path))
        ours = Path(path, own.CONFIG).exists()
    except OSError as problem:
        msg = f"cannot read {path}: {problem.strerror or problem}"
        raise Error(msg) from None
    if not ours:
        found = formats.read(path)
        try:
            return _from_found(found)
        except Error as problem:  # a threshold beyond the weights' dtype
            msg = f"{path}: {problem}"
            raise Error(msg) from None
    config, tensors = own.read(path)
    try:
        return rebuild(config, tensors)
    except Exception as problem:  # the file may hold anything
        msg = f"{path} does not hold a whole SAE: {sentence(problem, 1000)}"
        raise Error(msg) from None


def place_of(path: Path) -> Path:
    """The folder of the SAE that a path names, which may be one of its two files, the folder of a run, or on a hub."""
    path = hub.find(path)
    if path.name in (own.CONFIG, own.WEIGHTS) and (path.parent / own.CONFIG).exists():
        return path.parent
    if (path / RUN).exists() and (path / "sae" / own.CONFIG).exists():
        return path / "sae"
    return path


def rebuild(config: dict[str, Any], tensors: dict[str, Tensor]) -> SAE:
    """The SAE of a description and its tensors; what `describe` did not write may raise an exception of any kind."""
    family, rule = dict(config["penalty"]), dict(config["step"])
    kind: Any = FAMILIES.get(name := family.pop("family"))
    if kind is None:
        msg = (
            f"its penalty {name!r} is not of this package: make px.SAE with it, and load_state_dict of sae.safetensors"
        )
        raise Error(msg)
    for name, value in family.items():
        if isinstance(value, bool) != (name == "nonneg") or (isinstance(value, int) and abs(value) >= 2**63):
            msg = f"{name} of the penalty is {value!r}, but nonneg is true or false, and whole numbers have 64 bits"
            raise Error(msg)
    penalty = kind(**({"lam": 0.0} if kind is L0 else {}), **family)
    step = None if config["analysis"] == "encoder" or config["steps"] == "inf" else STEP_RULES[rule.pop("rule")](**rule)
    metadata, b_enc = config.get("metadata", {}), config.get("b_enc", "first")
    if not isinstance(metadata, dict):
        msg = f"metadata is {type(metadata).__name__}, not a table"
        raise Error(msg)
    notes = metadata.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in [*notes, metadata.get("format", "")]):
        msg = "notes of metadata must be a list of texts, and its format a text"
        raise Error(msg)
    steps = math.inf if config["steps"] == "inf" else config["steps"]
    encoding = Encoding(steps, step, config["analysis"], b_enc)
    learned = encoding.learned
    if learned is not None:
        for name, shape in shapes_of(learned, int(steps) - 1, tensors["W_dec"], penalty).items():
            if tuple(tensors[name].shape) != shape:
                msg = f"{name} has shape {tuple(tensors[name].shape)}, not {shape} of {steps} steps by {learned!r}"
                raise Error(msg)
    sizes, normalize = (config["d_in"], config["d_sae"]), config.get("normalize", "none")
    sae = _assemble(sizes, penalty, tensors, normalize, encoding if learned else Encoding())
    sae.metadata = metadata
    return sae if learned else sae.twin(encoding=encoding)  # after the weights, by which its rule is checked


def _assemble(
    sizes: tuple[int, int], penalty: Penalty, tensors: dict[str, Tensor], normalize: str, encoding: Encoding
) -> SAE:
    """An SAE with these weights, made without allocating more memory than they take."""
    d_in, d_sae = sizes
    if tuple(tensors["W_dec"].shape) != (d_sae, d_in):
        msg = f"W_dec has shape {tuple(tensors['W_dec'].shape)}, not ({d_sae}, {d_in})"
        raise Error(msg)
    with torch.device("meta"):
        sae = SAE(d_in, d_sae, penalty, normalize=normalize).twin(encoding=encoding)
    kinds = {a.dtype for a in tensors.values()}
    if len(kinds) > 1 or tensors["W_dec"].dtype not in formats.DTYPES:
        msg = f"the tensors are {', '.join(sorted(map(str, kinds)))}, but weights are floats of one dtype"
        raise Error(msg)
    if not penalty.rowwise:
        tensors = {"batch_threshold": tensors["W_dec"].new_full((), torch.nan), **tensors}
    # Copies, in memory of torch's own: no file stays mapped, and the alignment, on which rounding depends, is torch's.
    own = {name: a.clone(memory_format=torch.contiguous_format) for name, a in tensors.items()}
    sae.load_state_dict(own, assign=True)
    _check_finite(sae)
    return sae


def _check_finite(sae: SAE) -> None:
    for name, a in sae.state_dict().items():
        if name != "batch_threshold":
            formats.parts.check_finite(name, a)


def _from_found(found: formats.Found) -> SAE:
    tensors = dict(found.tensors)
    d_in, d_sae = tensors["W_enc"].shape
    if isinstance(found.penalty, L0):
        theta = torch.as_tensor(np.sqrt(2 * np.asarray(found.penalty.lam))).expand(d_sae)
        near = theta.to(tensors["W_enc"].dtype)
        below = torch.nextafter(near, torch.full_like(near, -torch.inf))
        # rounded down: then the same entries of this dtype are above it as above a threshold that is kept wider
        tensors["threshold"] = torch.where(near.double() > theta, below, near)
    sae = _assemble((d_in, d_sae), found.penalty, tensors, found.normalization, Encoding())
    sae.metadata = {"format": found.format, **found.metadata, "notes": list(found.notes)}
    return sae
