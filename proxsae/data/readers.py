"""Read one array of floats from an untrusted `.npy`, `.npz`, `.safetensors` or `.pt` file, or raise `Error`.

Nothing is unpickled but tensors.  A shape is believed only when it fits the bytes that are there: those of the file, or
what a zip member of that many compressed bytes can hold.  So at most a fixed multiple of the file's size is allocated.
"""

from __future__ import annotations

import io
import math
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from proxsae.conventions import Error, library, namespace
from proxsae.disk import CHUNK, DEFLATE, Bounded, sentence

HEADER = 10_000  # bytes of an .npy header, as NumPy allows
BFLOAT16 = np.dtype([("bfloat16", "<u2")])  # NumPy has none: the upper half of a float32, see `widened`
FLOATS: dict[str, np.dtype[Any]] = {  # as .safetensors files name them
    "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "BF16": BFLOAT16,
}  # fmt: skip


def load(file: Path) -> tuple[NDArray[Any], os.stat_result]:
    """The one array of a file, float with at least two axes and no axis of length 0, and the file as it was read.

    It comes as a memory map, but for `.npz`.  Raises `Error`, naming the file, for everything else.
    """
    if file.suffix not in READERS:
        msg = f"{file} must end in {', '.join(READERS)}"
        raise Error(msg)
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # opening a pipe would wait for ever
            msg = f"{file} is not a regular file, but activations are read from files"
            raise Error(msg)
        with Bounded(io.FileIO(file)) as stream:
            return READERS[file.suffix](str(file), stream), os.fstat(stream.fileno())
    except Error as problem:
        msg = problem.args[0]
        raise Error(msg if str(file) in msg else f"{file}: {msg}") from None
    except OSError as problem:
        msg = f"cannot read {file}: {problem.strerror or sentence(problem)}"
        raise Error(msg) from None
    except Exception as problem:  # on a damaged file the libraries below raise nearly any type
        msg = f"{file} is truncated or not a {file.suffix} file of numbers: {sentence(problem)}"
        raise Error(msg) from None


def widened(a: NDArray[Any]) -> NDArray[Any]:
    """`a` itself, or an array of bfloat16 as float32, which holds each of its numbers."""
    return (a["bfloat16"].astype(np.uint32) << 16).view(np.float32) if a.dtype == BFLOAT16 else a


def check_kind(name: str, dtype: Any, shape: tuple[int, ...]) -> None:
    """Raise `Error` unless `dtype` and `shape` are of rows: floats (n, d), at least one of each."""
    if getattr(dtype, "kind", "") != "f" or len(shape) < 2:
        msg = f"{name} holds {sentence(dtype)} of shape {sentence(shape)}, but activations are floats of shape (n, d)"
        raise Error(msg)
    if 0 in shape:
        msg = f"{name} has shape {sentence(shape)}: there are no rows, but activations have n >= 1 and d >= 1"
        raise Error(msg)


def _numpy(name: str, stream: IO[bytes]) -> NDArray[Any]:
    if stream.read(2) == b"PK":  # the content decides, not the name
        return _zip(name, stream)
    stream.seek(0)
    shape, order, dtype, start = _header(name, stream, os.fstat(stream.fileno()).st_size)
    mapped: NDArray[Any] = np.memmap(stream, dtype, mode="r", offset=start, shape=shape, order=order)  # type: ignore
    return mapped


def _header(name: str, stream: IO[bytes], size: int) -> tuple[tuple[int, ...], Any, np.dtype[Any], int]:
    """Shape, order, dtype and start of the data of an .npy of `size` bytes, which must be header and data exactly."""
    version = npy.read_magic(stream)
    field = stream.read(2 if version == (1, 0) else 4)
    length = int.from_bytes(field, "little")
    if version not in ((1, 0), (2, 0), (3, 0)) or length > HEADER:
        msg = f"version {version} and {length} bytes of header, but NumPy writes 1.0 to 3.0 and at most {HEADER}"
        raise ValueError(msg)
    parse = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0  # 3.0 is UTF-8, for names
    dims, fortran, dtype = parse(io.BytesIO(field + stream.read(length)))
    shape = tuple(map(int, dims))
    if dtype.hasobject:
        msg = "it holds Python objects, which are never unpickled"
        raise ValueError(msg)
    start = len(npy.MAGIC_PREFIX) + 2 + len(field) + length
    claimed = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or claimed != size - start:
        msg = f"its header claims {dtype} of shape {shape}, {claimed} bytes, and {size - start} bytes follow"
        raise ValueError(msg)
    check_kind(name, dtype, shape)
    return shape, "F" if fortran else "C", dtype, start


def _zip(name: str, stream: IO[bytes]) -> NDArray[Any]:
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        if len(members) != 1:
            names = [member.filename.removesuffix(".npy") for member in members[:9]]
            more = "" if len(members) < 10 else f" and {len(members) - 9} more"
            msg = f"{name} holds the arrays {sentence(sorted(names))}{more}, but activations are one array"
            raise Error(msg)
        (member,) = members
        stored = member.compress_type == zipfile.ZIP_STORED
        if not stored and member.compress_type != zipfile.ZIP_DEFLATED:  # others allocate as their stream says
            msg = f"compression method {member.compress_type}, but NumPy stores or deflates"
            raise ValueError(msg)
        room = os.fstat(stream.fileno()).st_size - member.header_offset
        most = member.compress_size * (1 if stored else DEFLATE)
        if not 0 <= member.compress_size <= room or not 0 <= member.file_size <= most:
            msg = (
                f"the member claims {member.compress_size} bytes that hold {member.file_size}, but {room} bytes of the "
                f"file are left, and {member.compress_size} hold at most {most}"
            )
            raise ValueError(msg)
        with archive.open(member) as data:
            shape, order, dtype, _ = _header(name, data, member.file_size)
            flat = np.empty(math.prod(shape), dtype)
            into: memoryview = flat.view(np.uint8).data
            while into:
                chunk = data.read(min(len(into), CHUNK))  # reading the last byte checks the sum of all
                if not chunk:
                    msg = f"{len(into)} bytes of data are missing"
                    raise ValueError(msg)
                into[: len(chunk)] = chunk
                into = into[len(chunk) :]
        return flat.reshape(shape, order=order)


def _safetensors(name: str, stream: IO[bytes]) -> NDArray[Any]:
    safe_open = library("safetensors", "study").safe_open
    with safe_open(name, framework="np") as file:  # checks its header against the size of the file
        keys = sorted(file.keys())
        if len(keys) != 1:
            msg = f"{name} holds the arrays {sentence(keys)}, but activations are one array"
            raise Error(msg)
        tensor = file.get_slice(keys[0])
        kind, shape = tensor.get_dtype(), tuple(tensor.get_shape())
    if kind not in FLOATS:
        msg = f"{name} holds {kind} of shape {sentence(shape)}, but activations are {', '.join(FLOATS)}"
        raise Error(msg)
    check_kind(name, np.dtype(np.float32), shape)
    dtype = FLOATS[kind]
    start = os.fstat(stream.fileno()).st_size - math.prod(shape) * dtype.itemsize  # the data end the file, without gaps
    mapped: NDArray[Any] = np.memmap(stream, dtype, mode="r", offset=start, shape=shape)  # type: ignore
    return mapped


def _torch(name: str, stream: IO[bytes]) -> NDArray[Any]:
    from proxsae.formats.files import dense, read_torch, tensors_in

    found = tensors_in(read_torch(Path(name), stream))
    if len(found) != 1:
        msg = f"{name} holds {len(found)} tensors, but activations are one tensor, alone or in a dict or list"
        raise Error(msg)
    a = dense(Path(name), "its tensor", found[0])
    bfloat16 = str(a.dtype) == "torch.bfloat16"
    array: NDArray[Any] = (a.view(namespace(a).int16) if bfloat16 else a).numpy()
    check_kind(name, np.dtype(np.float32) if bfloat16 else array.dtype, array.shape)
    return array.view(BFLOAT16) if bfloat16 else array


TORCH = (".pt", ".pth")
READERS: dict[str, Callable[[str, IO[bytes]], NDArray[Any]]] = {
    ".npy": _numpy,
    ".npz": _numpy,
    ".safetensors": _safetensors,
    **dict.fromkeys(TORCH, _torch),
}
