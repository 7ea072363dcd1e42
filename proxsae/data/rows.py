"""Rows of data that need not fit in memory: files are opened, not read, and a batch is read when it is asked for."""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxsae.conventions import Error
from proxsae.data.files import Part

KEPT = "kept"  # the treatment of outliers that is none
PROBES = 16  # rows of each part that a fingerprint looks at


class Rows:
    """Rows (n, d) of one or several arrays or files, read only where they are asked for.

    `rows[2:5]`, `rows[indices]` and `rows[mask]` are (count, d), `rows[3]` and `rows[-1]` are (d,).  They come as a new
    array of the common float dtype, in the order of the indices, which may repeat.  A row with NaN or infinite entries,
    an index outside [-n, n) and a file that was removed or changed in size meanwhile raise `Error`.  (A file that is
    cut in the moment between that question and the reading still ends the process: no reader of mapped memory can
    exclude it.)  `open_rows` makes one.

    They are a dataset of `torch.utils.data.DataLoader`, also with workers: each opens the mapped files for itself.

    `outliers` says what was done to rows that stand out: "kept", or how many were dropped or clipped, and above what.
    `collected` is the record that `models.collect` left beside the files: of which model and module they are.
    """

    def __init__(self, parts: list[Part], collected: dict[str, Any] | None = None) -> None:
        self._parts, self.collected, self.outliers = parts, collected, KEPT
        self._starts = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        self._dropped = np.empty(0, np.int64)  # of all rows there are, ascending
        self._longest = math.inf  # norm down to which longer rows are scaled
        self.shape: tuple[int, int] = (int(self._starts[-1]), int(parts[0].array.shape[-1]))
        self.dtype: np.dtype[Any] = np.result_type(*(part.dtype for part in parts))
        self.axes = max(part.axes for part in parts)  # of the arrays as they were given; all but the last are rows

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        treated = "" if self.outliers == KEPT else f", {self.outliers}"
        return f"<Rows {self.shape} {self.dtype} of {len(self._parts)} parts{treated}>"

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, which: Any) -> NDArray[Any]:
        rows: NDArray[Any] = self._read(self._indices(which))
        return rows if isinstance(which, slice) or np.ndim(which) else rows[0]

    def without(self, far: NDArray[np.int64], told: str) -> Rows:
        """The same rows but for those of the numbers `far`, ascending, which are not read; `told` says why."""
        return self._treated(told, np.union1d(self._dropped, self._stored(far)), self._longest)

    def no_longer_than(self, norm: float, told: str) -> Rows:
        """The same rows, where a longer one is scaled down to that norm as it is read; `told` says why."""
        return self._treated(told, self._dropped, min(norm, self._longest))

    def _treated(self, told: str, dropped: NDArray[np.int64], longest: float) -> Rows:
        rows = copy.copy(self)
        rows.outliers = told if self.outliers == KEPT else f"{self.outliers}; {told}"
        rows._dropped, rows._longest = dropped, longest
        rows.shape = (int(self._starts[-1]) - len(dropped), self.shape[1])
        return rows

    def _stored(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers of these rows among all that are stored: each dropped one before them counts."""
        before = self._dropped - np.arange(len(self._dropped))  # how many rows are kept before each dropped one
        return rows + np.searchsorted(before, rows, side="right")

    def _read(self, asked: NDArray[np.int64]) -> NDArray[Any]:
        order = np.argsort(asked, kind="stable")  # files are read from front to back
        ascending = self._stored(asked[order])
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
        if self._longest < math.inf:
            far = lengths(out) > self._longest
            long = out[far].astype(np.float64)
            long /= np.abs(long).max(axis=1, keepdims=True)  # whose norm does not overflow
            out[far] = long * (self._longest / lengths(long))[:, None]
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
        (index,) = self._stored(self._indices([row])).tolist()
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
        if self.outliers != KEPT:
            digest.update(repr((self.outliers, self._longest)).encode() + self._dropped.tobytes())
        return digest.hexdigest()[:16]


def lengths(x: NDArray[Any]) -> NDArray[np.float64]:
    """||x_i|| of rows (n, d) in float64, where no square overflows; its largest number stands for any larger."""
    wide = x.astype(np.float64)
    if x.dtype.itemsize < 8:
        return np.sqrt(np.einsum("ij,ij->i", wide, wide))
    largest = np.abs(wide).max(axis=1)
    wide /= np.where(largest > 0, largest, 1)[:, None]
    with np.errstate(over="ignore"):
        norms = largest * np.sqrt(np.einsum("ij,ij->i", wide, wide))
    return np.minimum(norms, np.finfo(np.float64).max)
