"""Collect the activations at a module into a folder of shards that `data.open_rows` reads, a shard at a time.

A forward pass ends at the module.  After every shard the record is renewed, so that a kill loses the shard in work and
no more; the same call goes on from there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from proxsae.conventions import Error, check_choice, check_count, check_counts, check_path, note
from proxsae.data.opening import RECORD, survey
from proxsae.data.readers import READERS
from proxsae.disk import disk_errors, held, replace_file, sentence
from proxsae.models.batches import Batch, each_of, evaluating
from proxsae.models.places import Place

DTYPES = ("float16", "float32")


def collect(
    model: nn.Module,
    module: str,
    batches: Iterable[Any],
    out: str | os.PathLike[str],
    rows: int | None = None,
    at: str = "output",
    skip: int = 0,
    drop: Sequence[int] = (),
    dtype: str = "float32",
    shard_rows: int = 2**14,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write the activations at a module, one row a token, to shards in the folder `out`, and return their record.

    model, module: any `torch.nn.Module`, and the dotted name of one in it; `at` is its "input" or "output".
    batches: token tensors (batch, tokens), or dicts with "input_ids" and, for padding, "attention_mask".  They are
    taken one at a time; padding is left out.
    rows: stop at the end of the batch that brings this many; None takes all.
    skip: the first tokens of each sequence that are left out.
    drop: token ids that are left out, such as those that begin or end a text.
    dtype: "float32" or "float16" on the disk.
    shard_rows: a shard is written when it has this many rows; one is held in memory.
    progress: gets the rows so far, and `rows`.

    The record, `collected.json` in the folder: model, module, at, skip, drop, dtype; width, rows, tokens, batches and
    shards; and what `data.survey` finds: norms, and how many rows stand out.
    A call that is stopped, by Ctrl-C or `kill -9`, goes on when it is made again with the same batches; other batches,
    another model or other choices raise `Error`, and so do batches without a token that is kept, activations that are
    not finite and a folder that cannot be written.

    >>> import tempfile
    >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4))
    >>> with tempfile.TemporaryDirectory() as out:
    ...     record = collect(model, "1", [torch.arange(6).reshape(2, 3)], out, skip=1)
    >>> record["rows"], record["tokens"], record["width"]
    (4, 6, 4)
    """
    place, folder = Place(model, module, at, skip), Path(check_path("out", out))
    shard_rows = check_count("shard_rows", shard_rows, 1)
    most = None if rows is None else check_count("rows", rows, 1)
    ids, dtype = sorted(check_counts("drop", drop, 0)), check_choice("dtype", dtype, DTYPES)
    what = {"model": about(model), "module": module, "at": at, "skip": int(skip), "drop": ids, "dtype": dtype}
    with held(folder), evaluating(model), disk_errors(folder):
        other = f"{folder} was collected from other batches: give those, or another folder"
        state = _resumed(folder, what)
        writer, reader = _Writer(folder, what, state, shard_rows), hashlib.sha256()
        dropped, number = torch.tensor(ids, dtype=torch.int64), -1
        for number, batch in enumerate(each_of(batches, model)):
            if number >= state["batches"] and most is not None and writer.ahead["rows"] >= most:
                break
            reader.update(batch.ids.cpu().numpy().tobytes() + batch.real.cpu().numpy().tobytes())
            if number < state["batches"]:
                if number + 1 == state["batches"] and reader.hexdigest()[:16] != state["read"]:
                    raise Error(other)
                continue
            x, which = place.read(partial(batch.run, model))
            kept = x.reshape(-1, x.shape[-1]) if which is None else x[which]
            if skip or len(dropped):
                batch.check_tokens(x, f"skip={skip}" if skip else "drop")
            if len(dropped):
                of_kept = batch.ids.reshape(-1) if which is None else batch.ids[which]
                kept = kept[~torch.isin(of_kept, dropped.to(of_kept.device))]
            _check_finite(kept, module, number)
            writer.add(kept, batch, reader.hexdigest()[:16])
            progress(writer.ahead["rows"], most)
        if number + 1 < state["batches"]:
            raise Error(other)
        return writer.close()


class _Writer:
    """The shards of a folder: what is not yet written of them, and the record of what is."""

    def __init__(self, folder: Path, what: dict[str, Any], state: dict[str, Any], shard_rows: int) -> None:
        self.folder, self.what, self.state, self.shard_rows = folder, what, state, shard_rows
        self.ahead = dict(state)  # with what waits
        self.waiting: list[NDArray[Any]] = []

    def add(self, kept: Tensor, batch: Batch, read: str) -> None:
        """The rows of one batch."""
        part = kept.to(getattr(torch, self.what["dtype"]))
        if not bool(part.isfinite().all()):
            half = self.what["dtype"] == "float16"
            msg = f"activations of up to {float(kept.abs().max()):.3g} do not fit into "
            msg += "float16: dtype='float32'" if half else "float32, the widest that is written"
            raise Error(msg)
        self.waiting.append(part.cpu().numpy())
        self.ahead |= {
            "rows": self.ahead["rows"] + len(part), "width": part.shape[1], "read": read,
            "tokens": self.ahead["tokens"] + int(batch.real.sum()), "batches": self.ahead["batches"] + 1,
        }  # fmt: skip
        if self.ahead["rows"] - self.state["rows"] >= self.shard_rows:
            self.flush()

    def flush(self) -> None:
        """Write what waits as a shard, and then the record that counts it."""
        if any(map(len, self.waiting)):
            name, content = f"rows-{len(self.state['shards']):05d}.npy", io.BytesIO()
            np.save(content, np.concatenate(self.waiting))
            replace_file(self.folder / name, content.getvalue())
            self.ahead["shards"] = [*self.state["shards"], name]
        self.waiting, self.state = [], dict(self.ahead)
        self.write()

    def write(self, **more: Any) -> dict[str, Any]:
        """Write the record, and return it."""
        record = {**self.what, **self.state, **more}
        replace_file(self.folder / RECORD, json.dumps(record, indent=1).encode())
        return record

    def close(self) -> dict[str, Any]:
        """Write the last shard, and into the record what all rows are like."""
        if self.waiting:
            self.flush()
        if not self.state["rows"]:
            msg = f"no token was kept of {self.state['tokens']}: give longer texts, or a smaller skip"
            raise Error(msg)
        found = survey(self.folder)
        norms = {name: getattr(found, name) for name in ("median", "largest", "mean", "spread", "gamma")}
        if warning := found.warning():
            note(warning)
        return self.write(norms=norms, outliers=len(found.outliers), above=found.above)


def about(model: nn.Module) -> dict[str, Any]:
    """What tells a model from another: class, name, number of parameters, and a digest of 16 numbers of each."""
    digest = hashlib.sha256()
    for name, a in model.named_parameters():
        flat = a.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // 16)][:16].float().cpu().numpy()
        digest.update(f"{name} {tuple(a.shape)} {a.dtype}".encode() + some.tobytes())
    name = str(getattr(getattr(model, "config", None), "_name_or_path", ""))
    size = sum(a.numel() for a in model.parameters())
    return {"class": type(model).__name__, "name": name, "parameters": size, "weights": digest.hexdigest()[:16]}


def _resumed(folder: Path, what: dict[str, Any]) -> dict[str, Any]:
    """The state of a folder that a call with the same choices left, or that of an empty one."""
    fresh = {"rows": 0, "width": 0, "tokens": 0, "batches": 0, "read": "", "shards": []}
    if not (folder / RECORD).exists():
        if found := sorted(file.name for file in folder.glob("*") if file.suffix in READERS):
            msg = f"{folder} holds {found[0]}, which no collect wrote: choose an empty folder"
            raise Error(msg)
        return fresh
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        state, before = {name: record[name] for name in fresh}, {name: record[name] for name in what}
    except (ValueError, KeyError, TypeError) as problem:
        msg = f"{folder / RECORD} is not the record of a collect ({sentence(problem)}): choose another folder"
        raise Error(msg) from None
    for name, value in what.items():
        if before[name] != value:
            msg = f"{folder} was collected with {name}={before[name]!r}, not {value!r}: choose another folder"
            raise Error(msg)
    return state


def _check_finite(x: Tensor, module: str, number: int) -> None:
    if not bool(x.isfinite().all()):
        msg = f"{module} gives NaN or infinite activations for batch {number}: run the model in float32"
        raise Error(msg)


def last_tokens(model: nn.Module, module: str, batches: Iterable[Any], at: str = "output", skip: int = 0) -> Tensor:
    """The activation at the last token of each sequence: (sequences, d), float32, on the CPU.  Probes read it.

    The arguments are those of `collect`.  Padding may stand on either side; a forward pass ends at the module.

    Raises `Error` as `collect` does, and for a sequence that has no token beyond the first `skip`.

    >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4))
    >>> tuple(last_tokens(model, "1", [torch.arange(6).reshape(2, 3)]).shape)
    (2, 4)
    """
    place, rows = Place(model, module, at, skip), list[Tensor]()
    with evaluating(model):
        for number, batch in enumerate(each_of(batches, model)):
            x, _ = place.read(partial(batch.run, model))
            batch.check_tokens(x, "the last token")
            counts = batch.real.sum(dim=1)
            if bool((counts <= skip).any()):
                row = int((counts <= skip).nonzero()[0])
                msg = f"row {row} of batch {number} has {int(counts[row])} tokens, but skip={skip} leaves that many out"
                raise Error(msg + ": leave out short texts")
            last = (batch.real * torch.arange(batch.ids.shape[1], device=batch.ids.device)).argmax(dim=1)
            part = x[torch.arange(len(x), device=x.device), last].float().cpu()
            _check_finite(part, module, number)
            rows.append(part)
    if not rows:
        msg = "batches is empty, but a probe needs rows: a list of token tensors (batch, tokens), for example"
        raise Error(msg)
    return torch.cat(rows)
