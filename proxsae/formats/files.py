"""Reading files that may be hostile: nothing is run, and no more memory is taken than the file itself could fill.

JSON has a size limit.  A `.pt` must be a zip archive whose members are stored as they are, and its pickle
may name only what a dict of tensors needs; it is then loaded with weights_only=True.  An `.npz` must hold plain float
arrays of the size that its own headers say.  The kind of a file is told by its first bytes, not by its name.
"""

from __future__ import annotations

import io
import json
import math
import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from proxsae.conventions import Error, library
from proxsae.disk import DEFLATE, Bounded, check_file

LARGEST_TEXT = 4 * 2**20  # bytes of JSON, or of a pickle without its tensors: parsed, each may take twenty in memory
ZIP = b"PK\x03\x04"  # how such files begin
OLDER = "older torch files are pickles that may run code"
UNPACKED, SLACK = 16, 64 * 2**20  # an archive unpacks to at most so many times its size, and this
STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
ALLOWED = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {kind}Storage" for kind in STORAGES),
}
# What may stand in a pickle many times.
PLAIN = {"GLOBAL", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING"}
SHARED = 16  # times that a pickle may reuse an object other than a text: nested reuse makes structures without end
FOREIGN = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"}


def show(value: object) -> str:
    """Repr of a value from a file, short enough for a sentence."""
    if isinstance(value, Tensor) and value.numel() != 1:
        return f"a tensor of {value.ndim} axes"
    shape = isinstance(value, tuple) and all(isinstance(n, int) for n in value)
    if not (value is None or shape or isinstance(value, (str, int, float, Tensor))):
        return f"a {type(value).__name__}"  # whole structures are never printed: their parts may be shared without end
    try:
        text = repr(value[:60] if isinstance(value, (str, tuple)) else value)
    except ValueError:  # Python prints no integer of more than some thousands of digits
        text = "a number too long to print"
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, or `Error`."""
    if (size := check_file(path)) > LARGEST_TEXT:
        msg = f"{path.name} has {size} bytes, but a configuration has at most {LARGEST_TEXT}"
        raise Error(msg)
    try:
        value = json.loads(path.read_bytes())  # of any Unicode encoding, with a byte-order mark or without
    except (ValueError, RecursionError) as problem:
        msg = f"{path.name} is not readable JSON: {problem}"
        raise Error(msg) from None
    if not isinstance(value, dict):
        msg = f"{path.name} holds a {type(value).__name__}, but a configuration is an object of names and values"
        raise Error(msg)
    return value


def read_tensors(path: Path) -> tuple[str, dict[str, Any]]:
    """Kind ("safetensors", "npz" or "pt") and contents of a file of named tensors; a "pt" may hold other values too."""
    check_file(path)
    with path.open("rb") as file:
        head = file.read(9)
    if head[:4] == ZIP:
        with Bounded(io.FileIO(path)) as stream, zipfile.ZipFile(stream) as archive:  # no forged length allocates
            names = [member.filename for member in archive.infolist()]
            kind = "npz" if any(name.endswith(".npy") for name in names) else "pt"
            contents = _npz(path, archive) if kind == "npz" else _named(path, _torch_archive(path, archive))
    elif head[8:9] == b"{":
        kind, contents = "safetensors", _safetensors(path)
    else:
        msg = f"{path.name} is no safetensors, npz or zipped torch file; {OLDER}"
        raise Error(msg)
    for name, value in contents.items():
        if not isinstance(name, str):
            msg = f"{path.name} has an entry named {show(name)}, but tensors are named by text"
            raise Error(msg)
        if isinstance(value, Tensor):
            contents[name] = dense(path, name, value)
    return kind, contents


def read_torch(path: Path, stream: IO[bytes]) -> Any:
    """What `torch.save` wrote into `path`, which `stream` reads: tensors, mapped, alone or in dicts and lists."""
    if stream.read(4) != ZIP:
        msg = f"{path} is no zipped torch file; {OLDER}"
        raise Error(msg)
    with zipfile.ZipFile(stream) as archive:
        return _torch_archive(path, archive)


def dense(path: Path, name: str, a: Tensor) -> Tensor:
    """`a` itself, unless its shape asks for more memory than the file holds for it."""
    plain = a.layout == torch.strided and a.device.type == "cpu" and not a.is_quantized and not a.is_complex()
    if not plain or a.numel() * a.element_size() > min(a.untyped_storage().nbytes(), path.stat().st_size):
        msg = (
            f"{name} says shape {show(tuple(a.shape))} of {a.dtype}, but {path.name} holds no dense tensor of that size"
        )
        raise Error(msg)
    return a.detach()


def _safetensors(path: Path) -> dict[str, Any]:
    return dict(library("safetensors.torch", "study").load_file(path))


def _check_members(path: Path, archive: zipfile.ZipFile, methods: dict[int, int]) -> None:
    """Raise `Error` unless members are of these methods, grow at most so much, have one name each, and fit the file."""
    members = archive.infolist()
    for member in members:
        most = methods.get(member.compress_type)
        if most is None or member.file_size > most * member.compress_size or member.flag_bits & 1:
            msg = (
                f"{path.name} says that {show(member.filename)} has {member.file_size} bytes in "
                f"{member.compress_size} by method {member.compress_type}, which no checkpoint needs"
            )
            raise Error(msg)
    packed, unpacked = (sum(getattr(m, size) for m in members) for size in ("compress_size", "file_size"))
    size = path.stat().st_size
    if packed > size or unpacked > UNPACKED * size + SLACK:
        msg = f"{path.name} has {size} bytes, but says that its members have {packed}, unpacked {unpacked}"
        raise Error(msg)
    if len({member.filename for member in members}) < len(members):
        msg = f"{path.name} names a member twice"
        raise Error(msg)


def _torch_archive(path: Path, archive: zipfile.ZipFile) -> Any:
    _check_members(path, archive, {zipfile.ZIP_STORED: 1})
    pickles = [m for m in archive.infolist() if m.filename.split("/")[-1].lower() == "data.pkl"]  # to torch all are one
    if len(pickles) != 1 or pickles[0].file_size > LARGEST_TEXT:
        msg = f"{path.name} is a zip archive, but neither an npz nor a torch file with one data.pkl"
        raise Error(msg)
    _check_pickle(path, archive.read(pickles[0]))
    contents = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    sizes = {member.file_size for member in archive.infolist()}
    for a in tensors_in(contents):
        if (size := a.untyped_storage().nbytes()) not in sizes:  # a map would give the bytes that follow
            msg = f"{path.name} says that a tensor has {size} bytes, and no member has so many"
            raise Error(msg)
    return contents


def tensors_in(contents: Any) -> list[Tensor]:
    """The tensors of what was saved: itself, or those in its dict or list."""
    values = contents.values() if isinstance(contents, dict) else contents if isinstance(contents, list) else [contents]
    return [value for value in values if isinstance(value, Tensor)]


def _named(path: Path, contents: Any) -> dict[str, Any]:
    if not isinstance(contents, dict):
        msg = f"{path.name} holds a {type(contents).__name__}, but a checkpoint is a dict of tensors"
        raise Error(msg)
    return dict(contents)


def _check_pickle(path: Path, program: bytes) -> None:
    """Raise `Error` for a pickle that names other objects than tensors, or that puts one into others many times."""
    last, number, shared = "", 0, 0
    plain: set[Any] = set()
    for opcode, argument, _ in pickletools.genops(program):
        name = opcode.name
        if name in FOREIGN or (name == "GLOBAL" and argument not in ALLOWED):
            msg = f"{path.name} asks for {show(argument or name)}, but a dict of tensors needs no such object"
            raise Error(msg)
        if name.endswith("PUT") or name == "MEMOIZE":
            place = number if argument is None else argument
            (plain.add if last in PLAIN else plain.discard)(place)
            number += 1
        shared += name == "DUP" or (name.endswith("GET") and argument not in plain)
        if shared > SHARED:
            msg = f"{path.name} puts objects into others more than {SHARED} times, which no dict of tensors needs"
            raise Error(msg)
        last = name


def _npz(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    _check_members(path, archive, {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: DEFLATE})
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    arrays = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            if version not in headers:
                msg = f"{name} in {path.name} has npy version {version}, but this version reads 1.0 and 2.0"
                raise Error(msg)
            shape, _, dtype = headers[version](file)
            if dtype.kind != "f" or dtype.itemsize > 8:
                msg = f"{name} in {path.name} has dtype {show(str(dtype))}, but weights are float16, float32 or float64"
                raise Error(msg)
            if min(shape, default=1) < 0 or file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
                msg = f"{name} in {path.name} says shape {show(shape)}, which its {member.file_size} bytes do not hold"
                raise Error(msg)
            file.seek(0)
            array = np.lib.format.read_array(file, allow_pickle=False)
        arrays[name] = torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))
    return arrays
