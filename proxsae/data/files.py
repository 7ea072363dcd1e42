"""Reading activations: the packaged ones, arrays, and `.npy`, `.npz`, `.safetensors`, `.pt` files or a folder of them.

Files are not trusted: nothing in them is run, and the size that a header claims is compared with that of the file
before anything is allocated.  The formats themselves are in `readers.py` beside this file.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxsae.conventions import Error, check_floats, check_path, is_torch, plain
from proxsae.data.readers import BFLOAT16, READERS, TORCH, check_kind, load, widened

PACKAGED = "minilm-l6-v2-layer3"
PIECE = 2**20  # entries that are looked at in one go, so that a memory-mapped file is never held whole


def packaged() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Train (8192, 384) and test (2048, 384) rows, float32: hidden states after layer 3 of all-MiniLM-L6-v2.

    One row a token of CPython's English documentation topics; no topic is on both sides.  PROVENANCE.md beside the
    files says how they were made, and under which licences.
    """
    files = (Path(__file__).with_name(f"{PACKAGED}-{side}.npy") for side in ("train", "test"))
    train, test = (np.load(file, allow_pickle=False).astype(np.float32) for file in files)
    return train, test


def read(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Rows (n, d) from a file, or from all files of a folder in the order of their names, looked through for NaN.

    One file is memory-mapped, but for `.npz` and bfloat16, which becomes float32; several files become one array in
    memory (`open_rows` reads only the rows asked for).  A file must hold one array; a `.pt` or `.pth` is one tensor,
    alone or in a dict or list, as `torch.save` writes it.  Arrays with more axes are read as rows over their last one.
    Raises `Error` for a missing, truncated or foreign file, integers, widths that differ, no rows, and NaN or infinite
    entries.
    """
    parts = [part.checked() for part in open_parts(path)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class Part:
    """The array of one file, not yet looked at: its axes but the last are rows."""

    path: str  # "" for an array in memory
    array: NDArray[Any]
    identity: tuple[int, ...] | None = None  # of a memory-mapped file, as it was when opened
    mapping: mmap.mmap | None = None
    axes: int = 2  # of the array as it was given

    def __len__(self) -> int:
        return self.array.size // self.array.shape[-1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The floats that rows are given in."""
        return np.dtype(np.float32) if self.array.dtype == BFLOAT16 else plain(self.array.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        """A mapped file is opened again by the process that gets the part; it must be the same one."""
        if self.identity is None:
            return Part, (self.path, self.array, None, None, self.axes)
        return _opened_again, (self.path, self.identity)

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The rows of these ascending numbers, as they are stored; a view where they are consecutive."""
        self.check_still_there()
        consecutive = rows[-1] - rows[0] + 1 == len(rows) and bool((np.diff(rows) == 1).all())
        if self.mapping is not None and hasattr(mmap, "MADV_RANDOM"):  # else megabytes are read ahead of every row
            self.mapping.madvise(mmap.MADV_NORMAL if consecutive else mmap.MADV_RANDOM)
        if consecutive and self.array.ndim == 2:
            return widened(self.array[rows[0] : rows[-1] + 1])
        return widened(self.array[np.unravel_index(rows, self.array.shape[:-1])])

    def check_still_there(self) -> None:
        """A mapped page that is no longer in its file ends the process (SIGBUS): ask first, at every read."""
        try:
            if self.identity is None or self.identity == _identity(os.stat(self.path)):
                return
            now = "replaced, truncated or extended"
        except OSError:
            now = "removed"
        msg = f"{self.path} was {now} after it was opened, but the rows of a run must stay as they are"
        raise Error(msg)

    def checked(self) -> NDArray[Any]:
        """All rows (n, d) as `dtype`, a view where possible; raise `Error` where one is not finite."""
        rows = widened(self.array).reshape(-1, self.array.shape[-1])
        if rows.dtype != self.dtype:
            with np.errstate(all="ignore"):  # what overflows is infinite, and refused below
                rows = rows.astype(self.dtype)
        step = max(1, PIECE // rows.shape[1])
        for start in range(0, len(rows), step):
            bad = ~np.isfinite(rows[start : start + step])
            if bool(bad.any()):
                row, column = np.argwhere(bad)[0].tolist()
                first = (start + row, column)
                msg = f"{self.path} holds NaN or infinite entries (the first at {first}), but it must be finite"
                raise Error(msg)
        return rows


def open_parts(path: str | os.PathLike[str]) -> list[Part]:
    """The parts of a file or folder, of one width and with rows; their entries are not looked at."""
    source = Path(check_path("path", path))
    parts = [_open(file) for file in _files(source)]
    widths = sorted({part.array.shape[-1] for part in parts})
    if len(widths) > 1:
        msg = f"the files of {source} have widths {widths}, but activations share one width"
        raise Error(msg)
    return parts


def memory_part(array: Any) -> Part:
    """An array (n, d) that is in memory already, as a part of that array itself."""
    a = floats("the array", array)
    check_kind("the array", a.dtype, a.shape)
    return Part("", a if a.ndim == 2 else a.reshape(-1, a.shape[-1]), axes=a.ndim)


def floats(name: str, given: Any) -> NDArray[Any]:
    """What is in memory as NumPy holds it: arrays as they are, lists of numbers, tensors of any device and float."""
    a = check_floats(name, given)
    if is_torch(a):
        a = a.detach().cpu()
        a = (a.float() if str(a.dtype) == "torch.bfloat16" else a).numpy()
    array: NDArray[Any] = a
    return array


def _opened_again(path: str, identity: tuple[int, ...]) -> Part:
    part = replace(_open(Path(path)), identity=identity)
    part.check_still_there()
    return part


def _open(file: Path) -> Part:
    array, stat = load(file)
    mapping, axes = array.base, array.ndim
    if array.flags.c_contiguous:
        array = array.reshape(-1, array.shape[-1])  # of other arrays this would be a copy
    if isinstance(mapping, mmap.mmap):
        return Part(os.path.abspath(file), np.asarray(array), _identity(stat), mapping, axes)
    if file.suffix in TORCH:  # torch has mapped it
        return Part(os.path.abspath(file), array, _identity(stat), axes=axes)
    return Part(str(file), array, axes=axes)


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size


def _files(source: Path) -> list[Path]:
    try:
        if not source.is_dir():
            return [source]
        files = sorted(f for f in source.iterdir() if f.suffix in READERS)  # they may be links, as in a hub's cache
    except OSError as problem:
        msg = f"cannot read {source}: {problem.strerror or problem}"
        raise Error(msg) from None
    if not files:
        msg = f"{source} holds no {', '.join(READERS)} file"
        raise Error(msg)
    return files
