"""Rows of data that need not fit in memory: files are opened, not read, and a batch is read when it is asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxsae.conventions import Error, plain
from proxsae.data.files import Part, floats, memory_part, open_parts

PROBES = 16  # rows of each part that a fingerprint looks at


class Rows:
    """Rows (n, d) of one or several arrays or files, read only where they are asked for.

    `rows[2:5]`, `rows[indices]` and `rows[mask]` are (count, d), `rows[3]` and `rows[-1]` are (d,).  They come as a new
    array of the common float dtype, in the order of the indices, which may repeat.  A row with NaN or infinite entries,
    an index outside [-n, n) and a file that was removed or changed in size meanwhile raise `Error`.  (A file that is
    cut in the moment between that question and the reading still ends the process: no reader of mapped memory can
    exclude it.)  `open_rows` makes one.

    They are a dataset of `torch.utils.data.DataLoader`, also with workers: each opens the mapped files for itself.
    """

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        self.shape: tuple[int, int] = (int(self._starts[-1]), int(parts[0].array.shape[-1]))
        self.dtype: np.dtype[Any] = np.result_type(*(part.dtype for part in parts))
        self.axes = max(part.axes for part in parts)  # of the arrays as they were given; all but the last are rows

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<Rows {self.shape} {self.dtype} of {len(self._parts)} parts>"

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, which: Any) -> NDArray[Any]:
        rows: NDArray[Any] = self._read(self._indices(which))
        return rows if isinstance(which, slice) or np.ndim(which) else rows[0]

    def _read(self, asked: NDArray[np.int64]) -> NDArray[Any]:
        order = np.argsort(asked, kind="stable")  # files are read from front to back
        ascending = asked[order]
        cuts = np.searchsorted(ascending, self._starts)
        out = np.empty((len(asked), self.shape[1]), self.dtype)
        for part, start, low, high in zip(self._parts, self._starts, cuts, cuts[1:], strict=False):
            if low < high:
                with np.errstate(all="ignore"):  # what overflows is infinite, and refused below
                    out[order[low:high]] = part.take(ascending[low:high] - start)
        finite = np.isfinite(out).all(axis=1)
        if not finite.all():
            msg = f"{self.where(int(asked[np.argmin(finite)]))} holds NaN or infinite entries, but rows must be finite"
            raise Error(msg)
        return out

    def _indices(self, which: Any) -> NDArray[np.int64]:
        if isinstance(which, slice):
            return np.arange(*which.indices(len(self)), dtype=np.int64)
        indices = np.asarray(None if isinstance(which, tuple) else which)  # of NumPy's arrays a tuple is an entry
        if indices.dtype == bool and indices.shape == (len(self),):
            return np.flatnonzero(indices)
        if indices.ndim > 1 or (indices.size and indices.dtype.kind not in "iu"):
            given = f"{type(which).__name__} of {indices.dtype} and shape {indices.shape}"
            msg = f"rows are asked for by a slice, whole numbers (count,) or a mask ({len(self)},), not by {given}"
            raise Error(msg)
        indices = indices.reshape(-1)
        outside = indices[(indices < -len(self)) | (indices >= len(self))]
        if outside.size:
            msg = f"row {outside[0]} must be in [{-len(self)}, {len(self)}): there are no others"
            raise Error(msg)
        indices = indices.astype(np.int64)
        return np.where(indices < 0, indices + len(self), indices)

    def where(self, row: int) -> str:
        """Row `row` for an error message, counted within its file: "row 12 of part-3.npy"."""
        (index,) = self._indices([row]).tolist()
        i = int(np.searchsorted(self._starts, index, side="right")) - 1
        name = os.path.basename(self._parts[i].path)
        return f"row {index - int(self._starts[i])}" + (f" of {name}" if name else "")

    def fingerprint(self) -> str:
        """16 hex digits of names, shapes, dtypes and 16 rows of each part, the first and the last among them.

        They tell other data apart at no cost, but they are not a checksum: the rows between are not read.
        """
        digest = hashlib.sha256()
        for part in self._parts:
            n, dtype = len(part), part.array.dtype
            rows = np.unique(np.array([(n - 1) * i // (PROBES - 1) for i in range(PROBES)], dtype=np.int64))
            head = (os.path.basename(part.path), n, self.shape[1], dtype.str)
            digest.update(repr(head).encode() + part.take(rows).tobytes())
        return digest.hexdigest()[:16]


def open_rows(source: Any) -> Rows:
    """Open a path (`.npy`, `.npz`, `.safetensors`, `.pt`, or a folder of them), an array or a tensor (n, d) as `Rows`.

    Nothing is looked through and no array is copied: files are memory-mapped, so that one of any size opens at once,
    but for `.npz`, which is read into memory.  What holds bfloat16 gives float32.  Raises the errors of `data.read`,
    but for NaN and infinite entries, which are found when their row is read.

    >>> rows = open_rows(np.arange(12.0).reshape(6, 2))
    >>> rows.shape, rows[np.array([5, 0])].tolist()
    ((6, 2), [[10.0, 11.0], [0.0, 1.0]])
    """
    if isinstance(source, Rows):
        return source
    return Rows(open_parts(source) if isinstance(source, (str, os.PathLike)) else [memory_part(source)])


def in_memory(name: str, source: Any) -> NDArray[Any]:
    """What `open_rows` takes, and arrays of other axes, as an array of its own in memory that torch can take over."""
    rows = open_rows(source)[:] if isinstance(source, (str, os.PathLike, Rows)) else floats(name, source)
    with np.errstate(all="ignore"):  # what overflows is infinite
        return np.array(rows, dtype=plain(rows.dtype), order="C")
