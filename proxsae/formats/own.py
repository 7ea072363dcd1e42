"""Files: one folder an SAE, `sae.json` with what it is and `sae.safetensors` with its tensors.

Formats are data here (names and tensors), not classes.  `sae.json` holds a hash of itself and of its weights, so that
no two saves are ever mixed, and no edit goes unseen.  A file may be a link, as in the caches of model hubs; no path is
taken from a file.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from proxsae.conventions import Error, library
from proxsae.disk import check_file, read_safetensors, replace_folder, sentence

CONFIG, WEIGHTS, FORMAT = "sae.json", "sae.safetensors", "proxsae-2"
WEIGHTS_ONLY = "proxsae-1"  # before: its hash is of the weights alone
LARGEST_CONFIG = 64 * 2**20  # bytes: one lam a latent, for some million of them


def write(folder: str | os.PathLike[str], config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write config and tensors as `folder`, replacing an SAE that is there; raise `Error` when that is impossible."""
    safetensors = library("safetensors.torch", "study")
    weights = safetensors.save({name: a.detach().cpu().contiguous() for name, a in tensors.items()})
    described = json.loads(json.dumps({"format": FORMAT, **config}))  # as it will be read: names are text, and so on
    text = json.dumps({**described, "sha256": digest(described, weights)}, indent=2)
    replace_folder(folder, {WEIGHTS: weights, CONFIG: (text + "\n").encode()}, CONFIG)


def digest(config: dict[str, Any], weights: bytes) -> str:
    """The hash of an SAE: of the bytes of its weights, and of its description as one line of sorted names."""
    total = hashlib.sha256(weights)
    if config.get("format") != WEIGHTS_ONLY:
        rest = {name: value for name, value in config.items() if name != "sha256"}
        total.update(json.dumps(rest, sort_keys=True).encode())
    return total.hexdigest()


def read(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write` wrote: (config, tensors).  Raise `Error`, naming the file, for anything else."""
    safetensors = library("safetensors.torch", "study")
    config_path, weights_path = Path(folder, CONFIG), Path(folder, WEIGHTS)
    try:
        if check_file(config_path) > LARGEST_CONFIG:
            msg = f"{config_path} has more than {LARGEST_CONFIG} bytes, but it only describes an SAE"
            raise Error(msg)
        text = config_path.read_bytes()
        weights = read_safetensors(weights_path)
    except OSError as problem:
        msg = f"cannot read {problem.filename or weights_path}: {problem.strerror or problem}"
        raise Error(msg) from None
    try:
        config = json.loads(text)
        found = digest(config, weights) if isinstance(config, dict) else ""
    except (ValueError, RecursionError) as problem:  # json and unicode
        msg = f"{config_path} is not readable JSON: {sentence(problem)}"
        raise Error(msg) from None
    if not isinstance(config, dict) or config.get("format") not in (FORMAT, WEIGHTS_ONLY):
        form = config.get("format") if isinstance(config, dict) else type(config).__name__
        msg = f"{config_path} has format {sentence(repr(form))}, but this version reads {FORMAT!r}"
        raise Error(msg)
    if config.get("sha256") != found:
        msg = f"{weights_path} and {config_path.name} are not of one save: their hash differs"
        raise Error(msg)
    return config, safetensors.load(weights)
