"""Files: one folder an SAE, `sae.json` with what it is and `sae.safetensors` with its tensors.

Formats are data here (names and tensors), not classes.  Files are written beside their final names and then renamed, so
that no reader ever sees half of one; `sae.json` holds the hash of its weights, so that no two saves are ever mixed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from proxsae.conventions import Error

CONFIG, WEIGHTS, FORMAT = "sae.json", "sae.safetensors", "proxsae-1"


def write(folder: str | os.PathLike[str], config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write config and tensors as `folder`, replacing an SAE that is there; raise `Error` when that is impossible."""
    safetensors, _ = _safetensors()
    target = Path(folder)
    if target.exists() and not (target / CONFIG).is_file():
        msg = f"cannot save to {target}: it exists and holds no {CONFIG}, so it is not an SAE that may be replaced"
        raise Error(msg)
    weights = safetensors.save({name: a.detach().cpu().contiguous() for name, a in tensors.items()})
    text = json.dumps({"format": FORMAT, **config, "sha256": hashlib.sha256(weights).hexdigest()}, indent=2)
    new = not target.exists()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent if new else target) as scratch:
            draft = Path(scratch, "sae")
            draft.mkdir()
            (draft / WEIGHTS).write_bytes(weights)
            (draft / CONFIG).write_text(text + "\n", encoding="utf-8")
            if new:
                draft.rename(target)
            else:  # other files in the folder are the user's
                _exchange(draft, target, draft / "old")
    except OSError as problem:
        msg = f"cannot save to {target}: {problem.strerror or problem}"
        raise Error(msg) from None


def _exchange(draft: Path, target: Path, old: Path) -> None:
    """Move both files of `draft` into `target`, or neither."""
    os.replace(target / WEIGHTS, old)
    try:
        os.replace(draft / WEIGHTS, target / WEIGHTS)
        os.replace(draft / CONFIG, target / CONFIG)
    except BaseException:  # Ctrl-C too
        os.replace(old, target / WEIGHTS)
        raise


def read(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write` wrote: (config, tensors).  Raise `Error`, naming the file, for anything else."""
    safetensors, torn = _safetensors()
    config_path, weights_path = Path(folder, CONFIG), Path(folder, WEIGHTS)
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        weights = weights_path.read_bytes()
        tensors = safetensors.load(weights)
    except OSError as problem:
        msg = f"cannot read {problem.filename or weights_path}: {problem.strerror or problem}"
        raise Error(msg) from None
    except (ValueError, RecursionError) as problem:  # json and unicode
        msg = f"{config_path} is not readable JSON: {problem}"
        raise Error(msg) from None
    except torn as problem:
        msg = f"{weights_path} is not a whole safetensors file: {problem}"
        raise Error(msg) from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        msg = f"{config_path} has format {found!r}, but this version reads {FORMAT!r}"
        raise Error(msg)
    if config.get("sha256") != hashlib.sha256(weights).hexdigest():
        msg = f"{weights_path} and {config_path.name} are not of one save: the hash of the weights differs"
        raise Error(msg)
    return config, tensors


def _safetensors() -> tuple[Any, type[Exception]]:
    try:
        from safetensors import SafetensorError
        from safetensors import torch as library
    except ImportError:
        msg = "safetensors is missing: pip install 'proxsae[study]'"
        raise Error(msg) from None
    return library, SafetensorError
