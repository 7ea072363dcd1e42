"""Reading activations: the packaged ones, and `.npy`, `.npz`, `.safetensors` files or a folder of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxsae.conventions import Error, check_finite

PACKAGED = "minilm-l6-v2-layer3"
SUFFIXES = (".npy", ".npz", ".safetensors")


def packaged() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Train (8192, 384) and test (2048, 384) rows, float32: hidden states after layer 3 of all-MiniLM-L6-v2.

    One row a token of CPython's English documentation topics; no topic is on both sides.  PROVENANCE.md beside the
    files says how they were made, and under which licences.
    """
    files = (Path(__file__).with_name(f"{PACKAGED}-{side}.npy") for side in ("train", "test"))
    train, test = (np.load(file, allow_pickle=False).astype(np.float32) for file in files)
    return train, test


def read(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Rows (n, d) from a file, or from all files of a folder in the order of their names.

    `.npy` is memory-mapped.  `.npz` and `.safetensors` must hold one array.  Arrays with more axes are read as rows
    over their last one.  Raises `Error` for a missing, truncated or foreign file, integers, widths that differ, no
    rows, and NaN or infinite entries.
    """
    source = Path(path)
    files = sorted(f for f in source.iterdir() if f.suffix in SUFFIXES) if source.is_dir() else [source]
    if not files:
        msg = f"{source} holds no {', '.join(SUFFIXES)} file"
        raise Error(msg)
    parts = [_rows(file) for file in files]
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) > 1:
        msg = f"the files of {source} have widths {widths}, but activations share one width"
        raise Error(msg)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _rows(file: Path) -> NDArray[Any]:
    if file.suffix not in SUFFIXES:
        msg = f"{file} must end in {', '.join(SUFFIXES)}"
        raise Error(msg)
    try:
        arrays = _safetensors(file) if file.suffix == ".safetensors" else _numpy(file)
    except Error:
        raise
    except OSError as problem:
        msg = f"cannot read {file}: {problem.strerror or problem}"
        raise Error(msg) from None
    except Exception as problem:  # the bytes of a stranger: the readers below raise nearly anything
        msg = f"{file} is truncated or not a {file.suffix} file of numbers: {' '.join(str(problem).split())}"
        raise Error(msg) from None
    if len(arrays) != 1:
        msg = f"{file} holds the arrays {sorted(arrays)}, but activations are one array"
        raise Error(msg)
    (array,) = arrays.values()
    if array.dtype.kind != "f" or array.ndim < 2:
        msg = f"{file} holds {array.dtype} of shape {array.shape}, but activations are floats of shape (n, d)"
        raise Error(msg)
    if not array.size:
        msg = f"{file} has shape {array.shape}: there are no rows to encode"
        raise Error(msg)
    rows = array.reshape(-1, array.shape[-1])
    if not rows.dtype.isnative or rows.dtype.itemsize > 8:  # torch knows neither
        rows = rows.astype(f"f{min(8, rows.dtype.itemsize)}")
    for start in range(0, len(rows), 65536):  # in pieces, so that a memory-mapped file is never held whole
        check_finite(str(file), rows[start : start + 65536])
    return rows


def _numpy(file: Path) -> dict[str, NDArray[Any]]:
    with file.open("rb") as stream:  # the content decides, not the name
        if stream.read(2) != b"PK":
            return {"": np.load(file, mmap_mode="r", allow_pickle=False)}
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}


def _safetensors(file: Path) -> dict[str, NDArray[Any]]:
    try:
        from safetensors.numpy import load_file
    except ImportError:
        msg = "safetensors is missing: pip install 'proxsae[study]'"
        raise Error(msg) from None
    arrays: dict[str, NDArray[Any]] = load_file(file)
    return arrays
