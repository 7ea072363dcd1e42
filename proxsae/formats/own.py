"""Files: one folder an SAE, `sae.json` with what it is and `sae.safetensors` with its tensors.

Formats are data here (names and tensors), not classes.  Files are written beside their final names and then renamed, so
that no reader ever sees half of one; `sae.json` holds a hash of itself and of its weights, so that no two saves are
ever mixed, and no edit goes unseen.  A file may be a link, as in the caches of model hubs; no path comes from a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from proxsae.conventions import Error
from proxsae.data.readers import memory, sentence

CONFIG, WEIGHTS, FORMAT = "sae.json", "sae.safetensors", "proxsae-2"
WEIGHTS_ONLY = "proxsae-1"  # before: its hash is of the weights alone
LARGEST_CONFIG = 64 * 2**20  # bytes: one lam a latent, for some million of them


def write(folder: str | os.PathLike[str], config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write config and tensors as `folder`, replacing an SAE that is there; raise `Error` when that is impossible."""
    safetensors, _ = safetensors_library()
    weights = safetensors.save({name: a.detach().cpu().contiguous() for name, a in tensors.items()})
    described = json.loads(json.dumps({"format": FORMAT, **config}))  # as it will be read: names are text, and so on
    text = json.dumps({**described, "sha256": digest(described, weights)}, indent=2)
    replace_folder(folder, {WEIGHTS: weights, CONFIG: (text + "\n").encode()}, CONFIG)


def replace_folder(folder: str | os.PathLike[str], files: dict[str, bytes], marker: str, hashed: bool = True) -> None:
    """Write the files, weights and then their description, as a new or empty folder, or into one that holds `marker`.

    A description that is not `hashed` goes first, so that a kill never leaves it beside weights of another save.
    Raises `Error` for what may not be replaced, and where writing fails, which leaves the old files as they were.
    """
    target = Path(folder)
    prefix = f".{target.name}-"
    try:
        new = not target.exists()
        if not (new or (target / marker).is_file() or (target.is_dir() and _empty(target, prefix))):
            msg = f"cannot save to {target}: it exists and holds no {marker}, so it is not an SAE that may be replaced"
            raise Error(msg)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent if new else target) as scratch:
            draft = Path(scratch, "sae")
            draft.mkdir()
            for name, content in files.items():
                (draft / name).write_bytes(content)
                flush(draft / name)
            if new:
                draft.rename(target)
            else:  # other files in the folder are the user's
                _exchange(draft, target, list(files), hashed)
            flush(target.parent if new else target)
    except OSError as problem:
        msg = f"cannot save to {target}: {problem.strerror or problem}"
        raise Error(msg) from None


def _empty(folder: Path, prefix: str) -> bool:
    """Whether there is nothing in a folder, but for what a killed save left."""
    return all(found.name.startswith(prefix) for found in folder.iterdir())


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(draft: Path, target: Path, names: list[str], hashed: bool) -> None:
    """Move the files of `draft` into `target`, or none; a kill between two of them leaves an SAE that is refused."""
    had = [name for name in names if (target / name).exists()]  # a kill may have left a folder without
    for name in had:
        try:
            os.link(target / name, draft / f"old-{name}")
        except OSError:  # not every disk has hard links
            shutil.copyfile(target / name, draft / f"old-{name}")
    try:
        if not hashed:
            (target / names[-1]).unlink(missing_ok=True)
        for name in names:
            os.replace(draft / name, target / name)
    except BaseException:  # Ctrl-C too
        for name in had:
            os.replace(draft / f"old-{name}", target / name)
        raise


def digest(config: dict[str, Any], weights: bytes) -> str:
    """The hash of an SAE: of the bytes of its weights, and of its description as one line of sorted names."""
    total = hashlib.sha256(weights)
    if config.get("format") != WEIGHTS_ONLY:
        rest = {name: value for name, value in config.items() if name != "sha256"}
        total.update(json.dumps(rest, sort_keys=True).encode())
    return total.hexdigest()


def read(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write` wrote: (config, tensors).  Raise `Error`, naming the file, for anything else."""
    library, _ = safetensors_library()
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
        config = json.loads(text.decode())
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
    return config, library.load(weights)


def read_safetensors(file: Path) -> bytes:
    """All bytes of a file that is safetensors by its header, which has to agree with the size before it is read."""
    safetensors_library()
    from safetensors import safe_open

    check_file(file)
    try:
        with safe_open(file, framework="np"):
            return file.read_bytes()
    except OSError:
        raise
    except Exception as problem:  # the library raises several kinds for what is torn
        msg = f"{file} is not a whole safetensors file: {sentence(problem)}"
        raise Error(msg) from None


def check_file(file: Path) -> int:
    """The size of a regular file that memory could hold; `Error` for others: a pipe or a device would never end."""
    found = os.stat(file)
    if not stat.S_ISREG(found.st_mode):
        msg = f"{file} is not a regular file"
        raise Error(msg)
    if found.st_size > memory():
        msg = f"{file} has {found.st_size} bytes, which is more than the memory of this machine"
        raise Error(msg)
    return found.st_size


def safetensors_library() -> tuple[Any, type[Exception]]:
    """The library's module for torch, and what it raises; `Error` where it is not installed."""
    try:
        from safetensors import SafetensorError
        from safetensors import torch as library
    except ImportError:
        msg = "safetensors is missing: pip install 'proxsae[study]'"
        raise Error(msg) from None
    return library, SafetensorError
