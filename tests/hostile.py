"""Hostile files: every format that proxsae reads, changed copies of each, and a judge of what is made of them.

`test_hostile.py` takes some of these mutants, `long/fuzz.py` as many as one likes.  The judge knows two right
answers: an `Error` of one printable line that names the path, and a result that is right.  What is right depends on
what was changed, so every mutant comes with a claim:

    same   nothing that matters was changed: the result is bit for bit that of the good file
    kept   the file is hashed, or is the same in another packing: that result, or `Error`
    any    it may be another good file now: an SAE whose weights are finite, fit each other and are no larger than the
           file, and whose codes and reconstructions are finite; or `Error`
    error  `Error`

Half of the formats hold numbers that nothing else in the file confirms, so that a flipped bit of a weight is a file of
another SAE: there `any` is all that can be asked for.
"""

import contextlib
import copy
import faulthandler
import functools
import hashlib
import io
import json
import math
import os
import pickle
import pickletools
import re
import shutil
import signal
import stat
import struct
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save

import proxsae as px
from proxsae.formats import own as own_format
from proxsae.formats.parts import DTYPES
from proxsae.pytorch.learned import shapes_of
from proxsae.sae.files import describe
from proxsae.testing import assert_same
from proxsae.training import files as run_files
from tests import test_rows
from tests.checkpoint_files import WRITERS, D, P
from tests.mutate import mutants, zip_mutants

GIB, TIB = 2**30, 2**40
DIRECTORY = b"PK\x05\x06" + struct.pack(
    "<4H2IH", 0, 0, 1, 1, GIB - 22, 0, 0
)  # the end of a zip, all else its directory
ALLOCATED = re.compile("allocat|MemoryError|bad_alloc", re.IGNORECASE)


@dataclass(frozen=True)
class Link:
    """In place of a file: a link to a file of that content elsewhere, or where there is none, to a path."""

    to: bytes | str


@dataclass(frozen=True)
class Sparse:
    """In place of a file: one of that size, of which only head and tail are written."""

    size: int
    head: bytes = b""
    tail: bytes = b""


FOLDER, FIFO = "folder", "fifo"


@dataclass(frozen=True, eq=False)
class Target:
    """A good file or folder: its format, its files, and the path in it that is read ("" for the folder)."""

    name: str
    format: str
    files: dict
    path: str = ""

    @property
    def hashed(self):
        return self.format in (OWN, RUN)


@dataclass(frozen=True, eq=False)
class Mutant:
    """What lies in the folder instead, how it came about, and what is claimed of it."""

    files: dict
    how: str
    claim: str


OWN, RUN, DATA = "proxsae", "training checkpoint", "activations"

# ---- the good ones ---------------------------------------------------------------------------------------------------

LIBRARIES = {
    "saelens": "SAELens",
    "gemma": "Gemma Scope",
    "sparsify": "sparsify",
    "dictionary_learning": "dictionary_learning",
    "openai": "openai",
    "batchtopk": "BatchTopK",
    "abstopk": "AbsTopK authors",
}
ROWS = px.data.planted(n=40, d_in=D, d_sae=P, k=2, seed=3).x.astype(np.float32)


def own():
    """SAEs in our own format: each family of penalties, step rules, learned steps, a half precision, metadata."""
    families = {
        "L1": px.L1(0.05, nonneg=True),
        "L1 per latent": px.L1(np.linspace(0.01, 0.2, P)),
        "L0": px.L0(0.02, nonneg=True, bandwidth=0.2),
        "KSparse": px.KSparse(3),
        "ElasticNet": px.ElasticNet(0.05, 0.5, nonneg=True),
        "MCP": px.MCP(0.05, 3.0),
        "SCAD": px.SCAD(0.05, nonneg=True),
        "GroupL2": px.GroupL2(0.05, 2),
        "SortedL1": px.SortedL1(np.linspace(0.1, 0.02, P), nonneg=True),
        "BatchKSparse": px.BatchKSparse(2, nonneg=True),
    }
    torch.manual_seed(5)
    for name, R in families.items():
        sae = px.SAE(D, P, R)
        sae.b_enc.data.normal_(), sae.b_dec.data.normal_()
        yield name, sae
    sae = px.SAE(D, P, px.KSparse(3, nonneg=True), normalize="layer_norm")
    sae.metadata = {"model_name": "tiny", "notes": ["one"], "nested": {"layer": 3}}
    yield "metadata", sae
    yield "exact steps", px.SAE(D, P, px.KSparse(3)).unrolled(4, px.ExactStep())
    yield "fixed step", px.SAE(D, P, px.L1(0.05)).double().unrolled(3, px.FixedStep(0.05))
    yield "learned encoder", px.SAE(D, P, px.L0(0.01)).unrolled(3, analysis="encoder", b_enc="every")
    yield "learned steps", px.SAE(D, P, px.L1(0.05), 3, px.LearnedSteps())
    yield "LISTA", px.SAE(D, P, px.KSparse(3), 3, px.LISTA())
    yield "LISTACP", px.SAE(D, P, px.L1(0.05), 3, px.LISTACP(0.1, 0.5))
    yield "ALISTA", px.SAE(D, P, px.KSparse(3), 3, px.ALISTA())
    yield "OMP", px.SAE(D, P, px.KSparse(3), 3, px.OMP())
    yield "solved", px.SAE(D, P, px.L1(0.05), math.inf)
    yield "bfloat16", px.SAE(D, P, px.KSparse(3)).bfloat16()


def starting():
    """SAE and options of the training runs, by name."""
    return {
        "abstopk": lambda: (px.abstopk_sae(D, P, 3), {}),
        "relu": lambda: (px.relu_sae(D, P, 0.1), {"l0": 3}),
        "jumprelu": lambda: (px.jumprelu_sae(D, P, 0.2, bandwidth=0.3), {}),
        "batchtopk": lambda: (px.SAE(D, P, px.BatchKSparse(2, nonneg=True)), {}),
        "learned steps": lambda: (px.SAE(D, P, px.KSparse(2), 2, px.LearnedSteps()), {}),
        "TiLISTA": lambda: (px.SAE(D, P, px.L1(0.1), 2, px.TiLISTA()), {}),
        "matching pursuit": lambda: (px.SAE(D, P, px.KSparse(2), 2, px.MatchingPursuit()), {}),
    }


def train(name, folder, steps=4):
    """The run of that name, begun or continued: SAE and metrics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sae, options = starting()[name]()
    found = px.train(sae, ROWS, steps=steps, batch_size=8, every=3, progress=False, checkpoint=folder, **options)
    return sae, found


def targets(scratch):
    """All of them."""
    scratch = Path(scratch)

    def kept(name, form, path=None):
        folder = scratch / f"{form} {name}"
        files = {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
        inside = "" if path in (None, folder) else str(Path(path).relative_to(folder))
        return Target(name, form, files, inside)

    for name, write in WRITERS.items():
        form = LIBRARIES[re.split("[ ,]", name)[0]]
        (scratch / f"{form} {name}").mkdir()
        yield kept(name, form, write(scratch / f"{form} {name}"))
    for name, sae in own():
        sae.save(scratch / f"{OWN} {name}")
        yield kept(name, OWN)
        R = sae.penalty
        if sae.steps == 1 and isinstance(R, (px.L1, px.L0, px.KSparse)):
            sae.export(scratch / f"SAELens export {name}", double=not R.nonneg)
            yield kept(name, "SAELens export")
    for name in starting():
        train(name, scratch / f"{RUN} {name}")
        yield kept(name, RUN)
        middle = scratch / f"{RUN} {name}, middle"
        stopped(name, middle)
        yield kept(f"{name}, middle", RUN)
    folder = scratch / f"{DATA} parts"
    folder.mkdir()
    test_rows.parts_of(folder)
    yield kept("parts", DATA)
    folder = scratch / f"{DATA} sources"
    folder.mkdir()
    for file in dict.fromkeys(file for file, _ in test_rows.sources(folder)):
        yield Target(file.name, DATA, {file.name: file.read_bytes()}, file.name)


class Stopped(BaseException):
    """What ends a run in its middle."""


def stopped(name, folder):
    """A run that ended after its first checkpoint."""
    from proxsae.training import loop

    step = loop._step

    def stopping(state, *arguments):
        if state.step == 3:
            raise Stopped
        return step(state, *arguments)

    loop._step = stopping
    try:
        train(name, folder)
    except Stopped:
        pass
    finally:
        loop._step = step


# ---- what is done to them --------------------------------------------------------------------------------------------

RAW = "@@raw@@"
DEEP = ("[" * n + "]" * n for n in (300, 900, 970, 980, 985, 990, 995, 1000))  # the parser's limit, and the writer's
TOKENS = [
    "NaN", "Infinity", "-Infinity", "1e400", "-1e400", "-0", "1E308", "9" * 401, "-" + "9" * 401, "9" * 5000, *DEEP,
    "[" * 20_000, '{"a":' * 20_000, '"\\ud800"', '"\\u0000"', '"\\u001b[2J\\n"', '"\x1b[2J"', "'8'", "", "null, null",
    "0x10", "+1", ".5", "[1, [2, 3]]", "[0.5, 1e400]", '{"rule": "Refit"}',
]  # fmt: skip
VALUES = [
    None, True, False, 0, 1, 2, 3, -1, 7, 10, 1.0, 2.5, -0.5, 1e308, -1e308, 5e-324, 2**31, 2**53 + 1, 2**63 - 1, 2**63,
    2**64, 10**400, -(10**400), "", "8", "topk", "\x1b[2J\n\r", "\u202e\u2028", "x" * 50_000, "../../outside.json",
    "/dev/zero", [], {}, [1], [None], [0.1] * P, [0.0] * (P + 1), [1e308] * P, [[0.1] * P], ["a"] * P, {"a": {}},
    "float64", "gated", "jumprelu", "layer_norm", "encoder", "dictionary", "every", "6.54.12", "Refit", "LearnedSteps",
    "LISTA", "KSparse", "BatchKSparse", "L0", "GroupL2", {"family": "L0", "nonneg": True},
    {"rule": "FixedStep", "mu": 0.1},
]  # fmt: skip
NAMES = [
    "W_enc", "W_dec", "b_enc", "b_dec", "threshold", "log_threshold", "topk_threshold", "batch_threshold", "r_mag",
    "scaling_factor", "k", "k_buffer", "log_step", "log_lam_factor", "encoder.weight", "pre_bias", "quiet", "tail", "",
    "W_step", "S_step", "ae", "optimizer", "\x1b[2J\n", "../x", "__class__", "x" * 3000, "\u2028", "training",
]  # fmt: skip


def pick(rng, choices):
    return choices[int(rng.integers(len(choices)))]


def places(value):
    """Every (container, key) in a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def json_text(value):
    """JSON in which a marked text stands for tokens of its own."""
    raw = []

    def mark(part):
        if isinstance(part, tuple):
            raw.append(part[0])
            return f"{RAW}{len(raw) - 1};"
        if isinstance(part, dict):
            return {name: mark(inner) for name, inner in part.items()}
        return [mark(inner) for inner in part] if isinstance(part, list) else part

    text = json.dumps(mark(value), ensure_ascii=bool(len(raw) % 2))
    return re.sub(f'"{RAW}(\\d+);"', lambda match: raw[int(match[1])], text)


def hostile_value(rng, here):
    kind = rng.integers(4)
    if kind == 0:
        return (pick(rng, TOKENS),)
    if kind == 1 and isinstance(here, (int, float)):
        return pick(rng, [here + 1, here - 1, -here, here * 2.0, float(here), str(here), [here], 1 - here])
    return copy.deepcopy(pick(rng, VALUES))


def change_json(value, rng):
    """A changed copy of an object, and how."""
    value = copy.deepcopy(value)
    found = list(places(value))
    if not found:
        return {"a": 1}, "grown"
    container, key = pick(rng, found)
    kind = pick(rng, ["value", "value", "value", "remove", "rename", "other", "swap", "new"])
    if kind == "remove":
        del container[key]
    elif kind == "rename" and isinstance(container, dict):
        container[pick(rng, [f"{key} ", str(key).upper(), *NAMES])] = container.pop(key)
    elif kind == "other":
        container[key] = copy.deepcopy(pick(rng, found)[0])
    elif kind == "swap":
        other, name = pick(rng, found)
        a, b = copy.deepcopy(container[key]), copy.deepcopy(other[name])
        container[key], other[name] = b, a
    elif kind == "new" and isinstance(container, dict):
        container[pick(rng, NAMES)] = hostile_value(rng, 1)
    else:
        container[key] = hostile_value(rng, container[key])
    return value, f"{kind} of {str(key)[:40]}"


def json_mutant(text, rng):
    """Other text of a JSON object."""
    try:
        value = json.loads(text)
        changed, how = change_json(value, rng)
        for _ in range(int(rng.integers(3)) // 2):
            changed, more = change_json(changed, rng)
            how += f", {more}"
        new = json_text(changed)
        if rng.random() < 0.1 and isinstance(value, dict) and value:
            name = pick(rng, list(value))
            extra = f"{json.dumps(name)}: {json_text([hostile_value(rng, 1)])[1:-1]}"
            whole = json.dumps(value)
            new, how = pick(rng, [(f"{{{extra}, {whole[1:]}", "first"), (f"{whole[:-1]}, {extra}}}", "last")])
            how = f"{name} twice, hostile {how}"
        if rng.random() < 0.05:
            encoding = pick(rng, ["utf-16", "utf-32", "utf-8-sig", "latin-1"])
            return new.encode(encoding, "replace"), f"{how} in {encoding}"
        return new.encode("utf-8", "surrogatepass"), how
    except (RecursionError, ValueError, KeyError, IndexError, TypeError, OverflowError):
        return b"[]", "a list"


def header_of(data):
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header, body):
    text = (header if isinstance(header, str) else json_text(header)).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + body


def forged(data, rng):
    """A safetensors file whose header says something else, with its length right."""
    header, body = header_of(data)
    names = [name for name in header if name != "__metadata__"]
    name = pick(rng, names)
    entry, other = header[name], header[pick(rng, names)]
    kind = pick(rng, ["shape", "shape", "offsets", "dtype", "rename", "remove", "alias", "json", "metadata", "body"])
    shape = entry["shape"]
    if kind == "shape":
        huge = pick(rng, [2**20, 2**31, 2**40, 2**62, 2**63, 2**64])
        entry["shape"] = pick(
            rng,
            [
                shape[::-1], [math.prod(shape)], [*shape, 1], [1, *shape], [], [0], [huge], [huge, huge], [*shape, 0],
                [-n for n in shape], [n + 1 for n in shape], [n * 2 for n in shape], [float(n) for n in shape], "x",
                [huge, *shape[1:]], None,
            ],
        )  # fmt: skip
        if rng.random() < 0.3 and isinstance(entry["shape"], list):  # offsets that agree, into a body that is not there
            size = {"F64": 8, "I64": 8, "F32": 4, "F16": 2, "BF16": 2}.get(entry["dtype"], 4)
            entry["data_offsets"] = [0, int(math.prod(entry["shape"]) * size)]
    elif kind == "offsets":
        begin, end = entry["data_offsets"]
        choices = [[end, begin], [0, end], [begin, end + 4], [begin + 4, end], [0, 2**62], [-4, end], [2**63, 2**64]]
        entry["data_offsets"] = pick(rng, [*choices, other["data_offsets"], [], "x", [0, 1, 2]])
    elif kind == "dtype":
        kinds = ["F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64", "x", 4]
        entry["dtype"] = pick(rng, kinds)
    elif kind == "rename":
        header[pick(rng, [*NAMES, *names])] = header.pop(name)
    elif kind == "remove":
        del header[name]
    elif kind == "alias":
        header[pick(rng, NAMES)] = copy.deepcopy(other)
    elif kind == "metadata":
        key = pick(rng, NAMES)
        header["__metadata__"] = pick(rng, [{key: "x"}, {key: 1}, "x", {}, [], {key: "x" * 10_000}])
    elif kind == "body":
        body = pick(rng, [body[:-1], body + b"\0", body + bytes(4096), body[4:], b"", body[::-1], body * 2])
    else:
        header, _ = change_json(header, rng)
    text = json_text(header)
    if kind != "body" and rng.random() < 0.5:
        text += " " * (-len(text) % 8)
    return with_header(text, body), f"header: {kind} of {name}"


def change_tensor(a, rng):
    """Another tensor in place of a good one."""
    flat = a.float() if a.is_floating_point() else a
    dtype = pick(rng, [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn])
    value = float(pick(rng, [math.nan, math.inf, -math.inf, 0.0, 1e30, 3e38, 1e-40, -1.0, 1e19, 60000.0]))
    spot = a.clone(memory_format=torch.contiguous_format)
    if a.is_floating_point() and a.numel():
        spot.view(-1)[int(rng.integers(a.numel()))] = torch.tensor(value).to(a.dtype)
    choices = [
        a.mT.contiguous() if a.ndim > 1 else a[None], a.reshape(-1), a[None], a[..., None], flat.to(dtype), spot, spot,
        torch.full(a.shape, value).to(a.dtype) if a.is_floating_point() else a - 20, a[:-1] if a.ndim else a[None],
        torch.cat([a, a]) if a.ndim else a.expand(3).clone(), a[:0] if a.ndim else a[None][:0], a * 0, -a.float(),
        a.float().to(a.dtype) * 1000, torch.zeros(()), torch.ones(1, 1, 1),
    ]  # fmt: skip
    return pick(rng, choices).clone()


def change_tensors(tensors, rng):
    """Other tensors, for a file that is itself in order."""
    tensors = dict(tensors)
    for _ in range(int(rng.integers(1, 3))):
        name = pick(rng, list(tensors))
        kind = pick(rng, ["change"] * 6 + ["remove", "rename", "add"])
        if kind == "change" and isinstance(tensors[name], torch.Tensor):
            tensors[name] = change_tensor(tensors[name], rng)
        elif kind == "remove" and len(tensors) > 1:
            del tensors[name]
        elif kind == "rename":
            tensors[pick(rng, NAMES)] = tensors.pop(name)
        else:
            tensors[pick(rng, NAMES)] = torch.ones(pick(rng, [(), (1,), (P,), (D,), (D, P), (P, D)]))
    return tensors


def retensored(name, data, rng):
    """The same file written anew with other tensors; a torn one where these cannot be written."""
    try:
        return written_with_others(name, data, rng)
    except (RuntimeError, TypeError, ValueError):  # torch has no such tensor, or the library no such file
        return data[:-1]


def written_with_others(name, data, rng):
    if name.endswith(".safetensors"):
        header, _ = header_of(data)
        return save(change_tensors(load(data), rng), header.get("__metadata__"))
    if name.endswith(".npz"):
        arrays = {key: torch.tensor(a) for key, a in np.load(io.BytesIO(data)).items()}
        out = io.BytesIO()
        plain = {key: a for key, a in change_tensors(arrays, rng).items() if a.dtype not in UNKNOWN_TO_NUMPY}
        names = {key: a.numpy() for key, a in plain.items() if key not in ("file", "")}
        (np.savez_compressed if rng.random() < 0.3 else np.savez)(out, **names)
        return out.getvalue()
    contents = torch.load(io.BytesIO(data), weights_only=True)
    kind = rng.random()
    if kind < 0.1:  # shapes that agree with each other, and with nothing in the file
        contents = {key: enlarged(a) if isinstance(a, torch.Tensor) else a for key, a in contents.items()}
    elif kind < 0.6:
        contents = change_tensors(contents, rng)
    else:
        contents[pick(rng, [*contents, *NAMES, 3, None, ("a",)])] = odd_object(rng, next(iter(contents.values())))
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(contents, out)
    return out.getvalue()


UNKNOWN_TO_NUMPY = (torch.bfloat16, torch.float8_e4m3fn)


def enlarged(a):
    """A tensor of one number that says to be as large as that of an SAE of 2^41 weights."""
    return torch.ones(1, dtype=a.dtype).expand([{D: 2**20, P: 2**21}.get(n, n) for n in a.shape])


def odd_object(rng, a):
    """What no checkpoint of an SAE holds, or holds elsewhere."""
    return pick(
        rng,
        [
            lambda: torch.nn.Parameter(a.float()), lambda: a.to_sparse(), lambda: torch.zeros(3, dtype=torch.complex64),
            lambda: torch.zeros(1).expand(2**40), lambda: torch.zeros(1).expand(P), lambda: a.float().mT[::2],
            lambda: torch.empty(2**40, device="meta"), lambda: a.float().requires_grad_(), lambda: 10**400,
            lambda: {"k": 10**400}, lambda: {"k": True, "postact_fn": "ReLU"}, lambda: "TopK", lambda: "\x1b[2J\n",
            lambda: [a] * 3, lambda: None, lambda: math.nan, lambda: torch.tensor([]), lambda: {1: {2: {3: 4}}},
            lambda: torch.quantize_per_tensor(torch.ones(P), 0.1, 0, torch.quint8), lambda: {"k": torch.tensor(3)},
            lambda: np.float64(3), lambda: b"\x00" * 99, lambda: {"k": torch.tensor([3, 4])}, lambda: 1e400,
            lambda: torch.tensor(3.5), lambda: torch.tensor(-1), lambda: {"a", "b"}, lambda: slice(3),
        ],
    )()  # fmt: skip


def text_opcode(text):
    return b"X" + len(text.encode()).to_bytes(4, "little") + text.encode()


def payload(rng, marker):
    """Opcodes of a pickle that would make the file `marker`, and leave the stack as it was."""
    command, program = f": > '{marker}'", f"open({str(marker)!r}, 'w').close()"
    inner = pickle.dumps(Runs(program), 2)
    module, function, argument = pick(
        rng,
        [
            ("os", "system", text_opcode(command)), ("posix", "system", text_opcode(command)),
            ("subprocess", "getoutput", text_opcode(command)), ("builtins", "eval", text_opcode(program)),
            ("builtins", "exec", text_opcode(program)), ("__builtin__", "eval", text_opcode(program)),
            ("torch.storage", "_load_from_bytes", b"B" + len(inner).to_bytes(4, "little") + inner),
            ("timeit", "timeit", text_opcode(program)),
            ("shutil", "copy", text_opcode(__file__) + text_opcode(str(marker))),
            ("builtins", "open", text_opcode(str(marker)) + text_opcode("w")),
        ],
    )  # fmt: skip
    how = int(rng.integers(4))
    if how == 0:
        return f"c{module}\n{function}\n".encode() + b"(" + argument + b"tR0"
    if how == 1:  # STACK_GLOBAL
        return text_opcode(module) + text_opcode(function) + b"\x93(" + argument + b"tR0"
    if how == 2:  # INST
        return b"(" + argument + f"i{module}\n{function}\n".encode() + b"0"
    return b"(" + f"c{module}\n{function}\n".encode() + argument + b"o0"  # OBJ


class Runs:
    """An object whose pickle evaluates a program."""

    def __init__(self, program):
        self.program = program

    def __reduce__(self):
        return eval, (self.program,)


def poisoned_pickle(data, rng, marker):
    """A pickle with such opcodes between two of its own."""
    ends = [position for _, _, position in pickletools.genops(data) if position]
    at = pick(rng, ends)
    head = b"\x80\x04" if rng.random() < 0.3 else data[:2]  # STACK_GLOBAL is of protocol 4
    return head + data[2:at] + payload(rng, marker) + data[at:]


def rezipped(data, change, method=zipfile.ZIP_STORED):
    """The archive again with members (name, content) as `change` returns them."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
        warnings.simplefilter("ignore")  # a name twice
        for name, content in change(members):
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return out.getvalue()


def poisoned(name, data, rng, marker):
    """The file with a pickle in it that would run."""
    if not name.endswith(".pt"):  # an array of objects
        content = io.BytesIO()
        np.lib.format.write_array_header_1_0(content, {"descr": "|O", "fortran_order": False, "shape": (1, 1)})
        array = content.getvalue() + b"\x80\x02" + payload(rng, marker)[:-1] + b"."
        if name.endswith(".npz"):
            return rezipped(data, lambda members: [(members[0][0], array), *members[1:]])
        return array
    if rng.random() < 0.1:
        return b"\x80\x02" + payload(rng, marker)[:-1] + b"."  # older torch files
    kind = int(rng.integers(4))

    def change(members):
        out = []
        for path, content in members:
            if not path.endswith("data.pkl"):
                out.append((path, content))
                continue
            bad = poisoned_pickle(content, rng, marker)
            root = path[: -len("data.pkl")]
            twin = pick(rng, [root + "DATA.PKL", "other/data.pkl", path, root + "constants.pkl", root + "./data.pkl"])
            pairs = [(path, bad)], [(twin, bad), (path, content)], [(path, content), (twin, bad)], [(path, bad)]
            out += pairs[kind]
        return out

    return rezipped(data, change)


def reshaped_pickle(data, rng):
    """A torch file whose pickle says other sizes, strides or offsets: what its small integers are."""
    huge = pick(rng, [2**20, 2**31 - 1, 2**40, 2**62, 2**63 - 1, -1, 0])
    number = b"\x8a\x09" + huge.to_bytes(9, "little", signed=True)

    def change(members):
        out = []
        for path, content in members:
            if path.endswith("data.pkl"):
                spots = [
                    position
                    for opcode, argument, position in pickletools.genops(content)
                    if opcode.name == "BININT1" and argument in (0, 1, D, P, D * P)
                ]
                for at in sorted({pick(rng, spots) for _ in range(int(rng.integers(1, 4)))}, reverse=True):
                    content = content[:at] + number + content[at + 2 :]
            out.append((path, content))
        return out

    return rezipped(data, change)


def rehash(name, data):
    """The hash of an edited file of ours made right again; the file itself where that cannot be."""
    try:
        if name == own_format.CONFIG:
            return data
        header, body = header_of(data)
        run = json.loads(header["__metadata__"]["run"])
        run.pop("sha256", None)
        run["sha256"] = run_files.digest(load(data), json.dumps(run))
        return with_header({**header, "__metadata__": {"run": json.dumps(run)}}, body)
    except Exception:  # what was edited is no longer a file of ours
        return data


def with_hash(files):
    """A folder of ours with its hash made right, as an adversary would."""
    try:
        config = json.loads(files[own_format.CONFIG])
        config["sha256"] = own_format.digest(config, files[own_format.WEIGHTS])
        return {**files, own_format.CONFIG: json.dumps(config).encode()}
    except Exception:
        return files


def changed_run(data, rng):
    """A training checkpoint with another state, and a hash that is right."""
    header, body = header_of(data)
    run = json.loads(header["__metadata__"]["run"])
    part = run if rng.random() < 0.2 else run["state"]
    changed, how = change_json(part, rng)
    run = changed if part is run else {**run, "state": changed}
    text = json_text(run)
    new = with_header({**header, "__metadata__": {"run": text}}, body)
    return rehash("", new), f"state: {how}"


def specials(name, content):
    """Something else in place of a file, and the claim, by what it is."""
    big = Sparse(TIB, content)
    return {
        "removed": (None, "any"),
        "folder": (FOLDER, "any"),
        "pipe": (FIFO, "any"),
        "empty": (b"", "any"),
        "link": (Link(content), "same"),
        "dangling": (Link("nowhere"), "any"),
        "loop": (Link(name), "any"),
        "device": (Link("/dev/zero"), "any"),
        "sparse": (big, "any"),
        "sparse zeros": (Sparse(TIB), "any"),
        "sparse, small": (Sparse(GIB, content), "any"),
        "sparse zip": (Sparse(GIB, b"PK\x03\x04", DIRECTORY), "any"),
        "sparse tail": (Sparse(TIB, content[:4096], content), "any"),
        "text": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "any"),
    }


def mutant(target, rng, marker, pool):
    """A changed copy of a target; `pool` has the files of others, to splice with."""
    name = pick(rng, [n for n in target.files if n != run_files.METRICS])
    data = target.files[name]
    suffix = Path(name).suffix
    any_claim = "kept" if target.hashed else "any"
    kinds = ["bytes", "bytes", "flip", "splice", "special", "swap", "extra"]
    kinds += {".json": ["json"] * 6, ".safetensors": ["header"] * 3 + ["tensors"] * 3}.get(suffix, [])
    kinds += {".pt": ["zip", "tensors", "tensors", "poison", "poison", "sizes"], ".npz": ["zip", "zip"]}.get(suffix, [])
    kinds += ["poison"] if suffix in (".npz", ".npy") else []
    if target.format == DATA:
        kinds = [kind for kind in kinds if kind not in ("tensors",)]
    elif suffix == ".npz":
        kinds += ["tensors"] * 2
    kinds += ["forge"] * 6 if target.hashed else []
    kinds += ["harmless"] * 2 if not target.hashed and suffix in (".json", ".safetensors", ".pt", ".npz") else []
    kind = pick(rng, kinds)
    new, how, claim = dict(target.files), kind, any_claim
    if kind == "bytes":
        (new[name],) = mutants(data, rng, 1)
    elif kind == "flip":  # one bit, anywhere
        bad = bytearray(data)
        bad[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        new[name] = bytes(bad)
    elif kind == "splice":
        other = pick(rng, pool)
        cut = [int(rng.integers(len(part) + 1)) for part in (data, other)]
        cut = pick(rng, [cut, [min(cut), min(cut)], [0, 0]])
        new[name] = data[: cut[0]] + other[cut[1] :]
    elif kind == "special":
        choices = specials(name, data)
        how = pick(rng, list(choices))
        content, claim = choices[how]
        if claim == "any":
            claim = any_claim
        new[name] = content
    elif kind == "swap":
        other = pick(rng, list(target.files))
        new[name], new[other] = new[other], new[name]
        if other == name:
            claim = "same"
    elif kind == "extra":
        content = pick(rng, [FOLDER, FIFO, b"", data, b"{}", Link("nowhere")])
        extra = pick(rng, ["cfg.json", "config.json", "sae.json", "ae.pt", "b.safetensors", "a\nb\x1b[2J.pt", "z.npy"])
        extra = pick(rng, [extra, "activation_scaler.json", "notes.txt"])
        if extra not in new:
            new[extra] = content
        claim = "any" if extra == "sae.json" else any_claim
        how = f"also {extra!r}"
    elif kind == "json":
        new[name], how = json_mutant(data, rng)
    elif kind == "header":
        new[name], how = forged(data, rng)
    elif kind == "tensors":
        new[name] = retensored(name, data, rng)
    elif kind == "zip":
        (new[name],) = zip_mutants(data, rng, 1)
    elif kind == "poison":
        new[name] = poisoned(name, data, rng, marker)
    elif kind == "sizes":
        new[name] = reshaped_pickle(data, rng)
    elif kind == "harmless":
        new[name], how = harmless(name, data, rng)
        claim = "kept" if suffix in (".pt", ".npz") else "same"
    elif target.format == OWN:
        claim, how = "any", "forged with its hash right"
        if rng.random() < 0.6:
            new[own_format.CONFIG], more = json_mutant(target.files[own_format.CONFIG], rng)
        else:
            weights = target.files[own_format.WEIGHTS]
            new[own_format.WEIGHTS], more = (
                (retensored(own_format.WEIGHTS, weights, rng), "tensors")
                if rng.random() < 0.6
                else forged(weights, rng)
            )
        new, how = with_hash(new), f"{how}: {more}"
    else:
        claim = "any"
        if rng.random() < 0.6:
            new[name], how = changed_run(data, rng)
        else:
            new[name], how = rehash(name, retensored(name, data, rng)), "tensors, with the hash right"
    if new == target.files:
        claim = "same"
    return Mutant(new, f"{name}: {how}", claim)


def harmless(name, data, rng):
    """Another packing of the same content."""
    if name.endswith(".json"):
        value = json.loads(data)
        if rng.random() < 0.3:
            value = {"nothing of that name": (pick(rng, ["null", '"x"', "[{}, 3]", "1.5"]),), **value}
        if rng.random() < 0.5:
            value = dict(reversed(value.items()))
        text = json_text(value)
        return pick(rng, [text, f"\n\t {text} \n\n", text.replace(",", " ,\n")]).encode(), "written otherwise"
    if name.endswith(".safetensors"):
        tensors = load(data)
        return save(dict(reversed(tensors.items())), {"by": "another"}), "written otherwise"
    method = zipfile.ZIP_DEFLATED if name.endswith(".npz") and rng.random() < 0.5 else zipfile.ZIP_STORED
    return rezipped(data, lambda members: members, method), "zipped anew"


# ---- the judge -------------------------------------------------------------------------------------------------------


class Violation(AssertionError):
    """A file for which proxsae did something else than it should."""


def place(folder, files):
    """Lay the files into a new folder."""
    folder.mkdir()
    for name, content in files.items():
        file = folder / name
        if content is None:
            continue
        if content is FOLDER:
            file.mkdir()
        elif content is FIFO:
            os.mkfifo(file)
        elif isinstance(content, Sparse):
            with file.open("wb") as stream:
                stream.write(content.head)
                stream.truncate(content.size)
                stream.seek(content.size - len(content.tail))
                stream.write(content.tail)
        elif isinstance(content, Link):
            to = content.to
            if isinstance(to, bytes):
                blobs = folder.with_name("blobs")
                blobs.mkdir(exist_ok=True)
                to = blobs / hashlib.sha256(to).hexdigest()[:16]
                to.write_bytes(content.to)
            file.symlink_to(to)
        else:
            file.write_bytes(content)


def said(call, *names):
    """The result of a call, or (None, the text of its `Error`), which must be a sentence."""
    try:
        return call(), None
    except px.Error as error:
        text = str(error)
    except Exception as problem:
        kind = type(problem).__name__
        msg = f"raised {kind}: {' '.join(str(problem).split())[:500]}"
        raise Violation(msg) from problem
    require(text.isprintable(), f"says what a terminal would obey: {text[:500]!r}")
    require(len(text) < 1500, f"says too much: {text[:200]!r} ... of {len(text)} characters")
    require(any(str(name) in text for name in names), f"names no file: {text!r}")
    require(not ALLOCATED.search(text), f"asked for memory that was not there: {text!r}")
    return None, text


def require(truth, otherwise):
    if not truth:
        raise Violation(otherwise)


def rows_for(sae):
    g = torch.Generator().manual_seed(1)
    return torch.randn(3, sae.d_in, generator=g, dtype=torch.float64).to(sae.W_enc.dtype)


def results(sae):
    """All that an SAE says of itself, of three rows, and of what is wrong with it."""
    x = rows_for(sae)
    with torch.no_grad():
        z = sae.encode(x)
        return describe(sae), {**sae.state_dict(), "codes": z, "reconstructions": sae.decode(z, like=x)}


def well_formed(sae, most):
    """Raise `Violation` unless weights are finite, fit each other and the file, and give finite codes or `Error`."""
    state = sae.state_dict()
    shapes = {
        "W_enc": (sae.d_in, sae.d_sae),
        "W_dec": (sae.d_sae, sae.d_in),
        "b_enc": (sae.d_sae,),
        "b_dec": (sae.d_in,),
    }
    shapes |= {"threshold": (sae.d_sae,), "batch_threshold": ()}
    if sae.encoding.learned is not None:
        shapes |= shapes_of(sae.encoding.learned, sae.steps - 1, sae.W_dec, sae.common.penalty)
    require({"W_enc", "W_dec", "b_enc", "b_dec"} <= set(state), f"has tensors {sorted(state)}")
    for name, a in state.items():
        require(tuple(a.shape) == shapes[name], f"{name} has shape {tuple(a.shape)}")
        require(a.dtype == sae.W_dec.dtype and a.dtype in DTYPES, f"{name} has dtype {a.dtype}")
        require(name == "batch_threshold" or bool(a.isfinite().all()), f"{name} is not finite")
    held = sum(a.numel() * a.element_size() for a in state.values())
    require(held <= 16 * most + 4096, f"weights of {held} bytes from files of {most}")
    require(isinstance(sae.penalty.nonneg, bool), f"nonneg is {sae.penalty.nonneg!r}")
    require(isinstance(sae.metadata, dict), "metadata are no table")
    if 50 < sae.steps < math.inf:  # as many steps as one asks for, which may be for ever
        sae = sae.unrolled(1)
    x = rows_for(sae)
    with torch.no_grad():
        got, _ = said(lambda: (z := sae.encode(x), sae.decode(z, like=x)), "")
        if got is not None and not overflows(sae, x):
            for name, a in zip(("codes", "reconstructions"), got, strict=True):
                require(bool(a.isfinite().all()), f"{name} are not finite")
    again, _ = said(lambda: describe(sae), "")
    json.dumps(again)


def overflows(sae, x):
    """Whether the sizes of weights and rows, finite as they are, may leave the range of their dtype."""
    W_enc, W_dec, b_enc, b_dec = (getattr(sae, name).double().abs() for name in ("W_enc", "W_dec", "b_enc", "b_dec"))
    sizes = x.double().abs() * 1e3 + b_dec  # normalised rows are no larger
    codes = sizes @ W_enc + b_enc
    hat = codes @ W_dec + b_dec
    limit = torch.finfo(sae.dtype).max / 1e3
    worst = max(float(a.max()) for a in (codes, hat))
    if sae.steps > 1:  # objectives are squares, and products of two maps
        worst = max(worst, float(hat.max()) ** 2, float((hat @ W_dec.T).max()) ** 2, float((hat @ W_enc).max()) ** 2)
        learned = getattr(sae, "log_step", None)
        worst *= math.exp(min(600.0, float(learned.abs().sum()))) if learned is not None else 1
        for name in ("W_step", "S_step"):
            worst *= max(1.0, float(getattr(sae, name, torch.zeros(())).detach().abs().sum())) ** min(sae.steps, 50)
    return not worst < limit


class Judge:
    """Judges mutants in a folder of its own, and counts."""

    def __init__(self, scratch):
        self.scratch, self.folder = Path(scratch), Path(scratch, "mutant")
        self.marker = self.scratch / "marker"
        self.truths = {}

    def truth(self, target):
        """What the good file gives."""
        key = target.format, target.name
        if key not in self.truths:
            place(self.folder, target.files)
            try:
                self.truths[key] = self.read(target)
            finally:
                self.clear()
            require(self.truths[key][1] is None, f"the good file is refused: {self.truths[key][1]}")
        return self.truths[key][0]

    def clear(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.scratch / "blobs", ignore_errors=True)

    def path(self, target):
        return self.folder / target.path if target.path else self.folder

    def read(self, target):
        """(result, None) or (None, the sentence)."""
        path = self.path(target)
        if target.format == DATA:
            files = sorted(file.name for file in self.folder.iterdir())  # of a bad row, its file is named
            first, refusal = said(lambda: px.data.open_rows(path)[:], path, *files)
            second, other = said(lambda: np.array(px.data.read(path)), path)
            require((first is None) == (second is None), f"two readers disagree: {refusal!r}, {other!r}")
            if first is not None:
                assert_same(first, second)
                require(bool(np.isfinite(first).all()) and first.dtype.kind == "f", "rows are no finite floats")
            return first, refusal
        if target.format == RUN:
            names = run_files.CHECKPOINT, "the checkpoint "  # what a run that cannot go on says
            return said(lambda: train(target.name.split(",")[0], path), *names)
        return said(lambda: px.load(path), path)

    def same(self, target, got):
        """Whether a result is that of the good file, bit for bit."""
        want = self.truth(target)
        if target.format == DATA:
            return want.shape == got.shape and want.dtype == got.dtype and want.tobytes() == got.tobytes()
        if target.format == RUN:
            want, got = (
                (describe(sae), {**sae.state_dict(), **{k: torch.tensor(v) for k, v in m.items()}})
                for sae, m in (want, got)
            )
        else:
            want, got = results(want), results(got)
            if target.format not in (OWN, RUN):  # what a file says about its model is its own affair
                want[0].pop("metadata"), got[0].pop("metadata")
        return (
            repr(want[0]) == repr(got[0])
            and want[1].keys() == got[1].keys()
            and all(
                a.dtype == got[1][name].dtype and a.shape == got[1][name].shape and bits(a) == bits(got[1][name])
                for name, a in want[1].items()
            )
        )

    def __call__(self, target, mutant):
        """ "refused", or "read" for a right answer; raise `Violation` for everything else."""
        self.truth(target)
        place(self.folder, mutant.files)
        try:
            got, refusal = self.read(target)
            require(not self.marker.exists(), "code of the file was run")
            if got is None:
                require(mutant.claim != "same", f"a good file is refused: {refusal}")
                return "refused"
            require(mutant.claim != "error", "was read")
            if mutant.claim in ("same", "kept"):
                require(self.same(target, got), "gives another result than the good file")
            if target.format == RUN:
                well_formed(got[0], TIB)
            elif target.format != DATA:
                well_formed(got, self.size())
            elif target.path and isinstance(mutant.files[target.path], bytes):
                self.agree(got, self.path(target))
            return "read"
        finally:
            self.marker.unlink(missing_ok=True)
            self.clear()

    def size(self):
        """The bytes of the files of the mutant, as far as they are written."""
        files = [file.stat() for file in self.folder.rglob("*") if file.is_file()]
        return sum(found.st_size for found in files if stat.S_ISREG(found.st_mode) and found.st_size < TIB)

    def agree(self, got, file):
        """Rows are those that the format's own library reads."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            truth = test_rows.truth_of(file)
        with np.errstate(all="ignore"):
            require(np.array_equal(got, truth.astype(got.dtype)), "rows are others")


def bits(a):
    return a.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def stream(target, seed, start, count, marker, pool):
    """Mutants start ... start + count - 1 of a target, each to be made: of its number alone, but for times in zips."""
    name = int.from_bytes(hashlib.sha256(f"{target.format} {target.name}".encode()).digest()[:8], "little")

    def make(number):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries that write what nobody should
            return mutant(target, np.random.default_rng([seed, name, number]), marker, pool)

    for number in range(start, start + count):
        yield number, functools.partial(make, number)


@contextlib.contextmanager
def limited(room):
    """Within this, the process may ask for that many bytes of memory more, and no more; files may be mapped."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


class Endless(BaseException):
    """A file took too long."""


@contextlib.contextmanager
def within(seconds):
    """Raise `Endless` after so many seconds."""

    def endless(*_):
        raise Endless

    before = signal.signal(signal.SIGALRM, endless)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(seconds + 60, exit=True)  # where a library waits and heeds no signal
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def results_of_all(judge, chosen):
    """Read every good file once."""
    for target in chosen:
        judge.truth(target)
