"""Files: one folder an SAE, `sae.json` with what it is and `sae.safetensors` with its tensors.

Formats are data here (names and tensors), not classes.  A folder is written beside its final name and then renamed, so
that no reader ever sees half of one.
"""

from __future__ import annotations

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
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            new, old = Path(scratch, "new"), Path(scratch, "old")
            new.mkdir()
            text = json.dumps({"format": FORMAT, **config}, indent=2)
            (new / CONFIG).write_text(text + "\n", encoding="utf-8")
            safetensors.save_file({name: a.detach().cpu().contiguous() for name, a in tensors.items()}, new / WEIGHTS)
            if target.exists():
                target.rename(old)
            try:
                new.rename(target)
            except OSError:
                if old.exists():
                    old.rename(target)
                raise
    except OSError as problem:
        msg = f"cannot save to {target}: {problem.strerror or problem}"
        raise Error(msg) from None


def read(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write` wrote: (config, tensors).  Raise `Error`, naming the file, for anything else."""
    safetensors, torn = _safetensors()
    config_path, weights_path = Path(folder, CONFIG), Path(folder, WEIGHTS)
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        tensors = safetensors.load_file(weights_path)
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
    return config, tensors


def _safetensors() -> tuple[Any, type[Exception]]:
    try:
        from safetensors import SafetensorError
        from safetensors import torch as library
    except ImportError:
        msg = "safetensors is missing: pip install 'proxsae[study]'"
        raise Error(msg) from None
    return library, SafetensorError
