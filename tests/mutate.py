"""Files as an adversary or a bad disk would write them: a seeded stream of changed copies of a good one.

The edits know what headers are made of (numbers in text, names of dtypes, length fields, zip records, pickle opcodes),
since random bytes rarely get past a first check.
"""

import io
import re
import zipfile
from collections.abc import Iterator

import numpy as np

HUGE = (
    0,
    1,
    2,
    3,
    255,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
NUMBERS = [
    *map(str, HUGE),
    "-1",
    "-40",
    "99999999999999999999999",
    "1e9",
    "True",
    "4L",
    "0x10",
    "1.5",
    "()",
    "None",
    "NaN",
]
WORDS = [  # each is replaced by any other of its line
    rb"\|O <f2 <f4 >f4 <f8 <f16 <f12 <c8 <i8 |V4 <U9 <M8[s] |S0 '' <f4,<f4 4<f4 (2,)f4 float32",
    rb"False True None 0 null true",
    rb"F16 F32 F64 BF16 F8_E4M3 F8_E5M2 I64 U8 BOOL C64 F128",
    rb"'descr' 'shape' 'fortran_order' 'nonsense'",
    rb'"dtype" "shape" "data_offsets" "__metadata__" "__proto__" "format" "sha256"',
]
INSERTS = [
    b"[('a', '<f4'), ('b', '|O')]", b"[('x', '<f4', (4,))]", b"(2, 2), ", b"40, ", b"}", b"NaN", b"Infinity", b"\n",
    b"(" * 500, b"[" * 5000, b'{"a":' * 5000, b"-" * 5000, b"\x00", b"\x00" * 64, b"\xff" * 8, b"\xc3\x28", b"\x1b[2J",
    b"\x80\x04cos\nsystem\n(S'true'\ntR.", b"c__builtin__\neval\n(V1\ntR.", b"../../x", b"/etc/x",
    b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"PK\x05\x06",
]  # fmt: skip
RECORDS = re.compile(rb"PK(?:\x01\x02|\x03\x04|\x05\x06|\x06\x06|\x06\x07)")


def mutants(data: bytes, rng: np.random.Generator, count: int) -> Iterator[bytes]:
    """`count` changed copies of `data`, by one to three edits each; the same generator state gives the same ones."""
    for _ in range(count):
        mutant = data
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            mutant = EDITS[rng.integers(len(EDITS))](mutant, rng)
        yield mutant


def zip_mutants(data: bytes, rng: np.random.Generator, count: int) -> Iterator[bytes]:
    """Whole zips, checksums right, with one changed member: what a change of the zip itself never reaches."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    for _ in range(count):
        chosen = int(rng.integers(len(members)))
        (changed,) = mutants(members[chosen][1], rng, 1)
        method = int(
            rng.choice(
                [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], p=[0.4, 0.4, 0.1, 0.1]
            )
        )
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", method) as archive:
            for i, (name, content) in enumerate(members):
                archive.writestr(name, changed if i == chosen else content)
        yield target.getvalue()


def _place(data: bytes, rng: np.random.Generator) -> int:
    """Somewhere, and half of the time in the head or tail, where formats keep what matters."""
    end = len(data) + 1
    low, high = ((0, end), (0, end), (0, min(end, 160)), (max(0, end - 160), end))[rng.integers(4)]
    return int(rng.integers(low, high))


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(data)
    for _ in range(rng.integers(1, 9) if out else 0):
        out[min(_place(data, rng), len(out) - 1)] ^= 1 << int(rng.integers(8))
    return bytes(out)


def _truncate(data: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] if rng.random() < 0.8 else data[at:]


def _delete(data: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + int(rng.integers(1, 65)) :]


def _insert(data: bytes, rng: np.random.Generator) -> bytes:
    at, kind = _place(data, rng), rng.integers(3)
    if kind == 0:
        new = rng.bytes(int(rng.integers(1, 65)))
    elif kind == 1:
        new = data[_place(data, rng) :][: int(rng.integers(1, 257))]
    else:
        new = INSERTS[rng.integers(len(INSERTS))]
    return data[:at] + new + data[at + (len(new) if rng.random() < 0.5 else 0) :]


def _number(data: bytes, rng: np.random.Generator) -> bytes:
    """Another number in the text of a header; half of the time of the same length, so that lengths still agree."""
    found = list(re.finditer(rb"(?<=[ (\[:,\"'])\d{1,20}(?=[,)\]} \"'])", data[:4096]))
    if not found:
        return _flip(data, rng)
    match = found[rng.integers(len(found))]
    new = NUMBERS[rng.integers(len(NUMBERS))].encode()
    after = data[match.end() :]
    if rng.random() < 0.5:
        pad = len(new) - len(match[0])
        blank = after.find(b" " * max(pad, 1))  # of an .npy header's padding, or a safetensors header's
        after = after[:blank] + after[blank + pad :] if pad > 0 and blank >= 0 else b" " * -pad + after
    return data[: match.start()] + new + after


def _word(data: bytes, rng: np.random.Generator) -> bytes:
    words = [line.split() for line in WORDS]
    present = [(word, line) for line in words for word in line if word in data]
    if not present:
        return _flip(data, rng)
    old, line = present[rng.integers(len(present))]
    return data.replace(old, line[rng.integers(len(line))], 1)


def _field(data: bytes, rng: np.random.Generator) -> bytes:
    """Another length, offset, size, flag or method: 1 to 8 bytes, near a zip record where there is one."""
    records = [match.start() for match in RECORDS.finditer(data)]
    at = (
        records[rng.integers(len(records))] + int(rng.integers(4, 46))
        if records and rng.random() < 0.7
        else _place(data, rng)
    )
    width = int(rng.choice([1, 2, 4, 8]))
    near = int.from_bytes(data[at : at + width], "little") + int(rng.integers(-9, 10))
    value = (len(data), near, *HUGE)[rng.integers(len(HUGE) + 2)]
    return data[:at] + (value % 256**width).to_bytes(width, "little") + data[at + width :]


def _splice(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: _place(data, rng)] + data[_place(data, rng) :]


EDITS = [_flip, _truncate, _delete, _insert, _number, _number, _word, _word, _field, _field, _splice]
