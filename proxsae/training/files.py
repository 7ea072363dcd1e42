"""A training run on disk: everything that the next step depends on, in one file, beside the metrics so far.

`checkpoint.safetensors` holds weights, Adam's moments and counters as tensors, and the rest as JSON in its header: the
step, which is the position in the data too, since the batch of a step is a function of seed and step; and what kind of
run it is, so that another one is refused.  It is written beside its name, flushed, and renamed: a reader, or a kill at
any moment, finds the old one or the new one.  A hash tells a torn or edited file from a whole one.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxsae.conventions import Error, check_count, library
from proxsae.data.rows import KEPT
from proxsae.disk import read_safetensors, replace_file, sentence
from proxsae.penalties.published import PUBLISHED

CHECKPOINT, METRICS, FORMAT = "checkpoint.safetensors", "metrics.csv", "proxsae-run-1"
COLUMNS = ["step", "loss", "nmse", "l0", "dead", "lr", "lam"]  # of the metrics


def write(folder: Path, kind: dict[str, Any], state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write checkpoint and metrics (`state["log"]`, a list of rows); raise `Error` when that is impossible."""
    safetensors = library("safetensors.torch", "study")
    plain = {name: a.detach().cpu().contiguous() for name, a in tensors.items()}
    run = {"format": FORMAT, "kind": kind, "state": state}
    header = {"run": json.dumps({**run, "sha256": digest(plain, json.dumps(run))})}  # one entry: many come in any order
    try:
        replace_file(folder / METRICS, _table(state["log"]).encode())  # first: a run that ends has both
        replace_file(folder / CHECKPOINT, safetensors.save(plain, header))
    except OSError as problem:
        msg = f"cannot write a checkpoint of step {state['step']} to {folder}: {problem.strerror or problem}"
        raise Error(msg) from None


def read(folder: Path, kind: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """State and tensors of the run in `folder`, None where there is none; `Error` for another run or a torn file."""
    safetensors = library("safetensors.torch", "study")
    file = folder / CHECKPOINT
    try:
        content = read_safetensors(file)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        tensors, run = safetensors.load(content), json.loads(header["run"])
        if run["format"] != FORMAT:
            msg = f"its format is {run['format']!r}"
            raise Error(msg)
        if run.pop("sha256") != digest(tensors, json.dumps(run)):
            msg = "the hash of its content differs"
            raise Error(msg)
        there, state = {"outliers": KEPT, **run["kind"]}, run["state"]  # runs once had no choice
        other = _difference(there, kind)
        if other is None:
            _check(state, kind)
    except FileNotFoundError:
        return None
    except OSError as problem:
        msg = f"cannot read {file}: {problem.strerror or problem}"
        raise Error(msg) from None
    except Exception as problem:  # on a damaged file the libraries raise nearly any type
        why = problem if isinstance(problem, Error) else f"{type(problem).__name__}: {problem}"
        msg = f"{file} is torn or no checkpoint of proxsae train ({sentence(why, 400)}): delete it to start anew"
        raise Error(msg) from None
    if other is not None:
        name, was, asked = other
        msg = f"{file} is of another run, with {name}={was} and not {asked}: use another folder"
        raise Error(msg)
    return state, tensors


def _difference(there: dict[str, Any], kind: dict[str, Any]) -> tuple[str, str, str] | None:
    """The first fact that two kinds of runs differ in, and its two values; None where they are alike in all of `kind`.

    Sizes come first and the data before lam, since the default of lr follows the width, and lam the scale of the rows.
    """
    differs = [name for name in kind if there.get(name) != kind[name]]
    if not differs:
        return None
    facts = [_facts(one) for one in (there, kind)]
    names = [name for name in facts[1] if facts[0].get(name) != facts[1][name]]
    name = (names or differs)[0]
    values = (one.get(name) for one in (facts if names else (there, kind)))
    was, asked = (sentence(value if isinstance(value, str) else repr(value)) for value in values)
    return name, was, asked


def _facts(kind: dict[str, Any]) -> dict[str, Any]:
    """What makes a run what it is, by the names that were asked for; a file may hold anything there."""
    sae = kind["sae"] if isinstance(kind.get("sae"), dict) else {}
    R = sae["penalty"] if isinstance(sae.get("penalty"), dict) else {}
    known: dict[Any, str] = {(one.family.__name__, one.nonneg): one.title for one in PUBLISHED.values()}
    return {
        **{name: sae.get(name) for name in ("d_in", "d_sae")},
        "sae": known.get((R.get("family"), R.get("nonneg")), R.get("family")),
        "k": R.get("k"),
        "encoder steps": sae.get("steps"),
        "encoder rule": sae.get("step"),
        **{name: sae.get(name) for name in ("analysis", "b_enc", "normalize")},
        **{name: value for name, value in kind.items() if name not in ("sae", "initial weights")},
        **{name: value for name, value in R.items() if name not in ("family", "nonneg", "k")},
        "metadata": sae.get("metadata"),
        "initial weights": kind.get("initial weights"),
    }


def _check(state: dict[str, Any], kind: dict[str, Any]) -> None:
    """Check that the state could come from a run of this kind: any exception means that it could not."""
    check_count("step", state["step"], 1)
    positive = _number(state["spread"]) and state["spread"] > 0 and _number(state["lam"]) and state["lam"] >= 0
    if state["step"] > kind.get("steps", state["step"]) or not positive:
        given = f"step={state['step']!r}, spread={state['spread']!r} and lam={state['lam']!r}"
        msg = f"{given} cannot come from a training run"
        raise Error(msg)
    for row in state["log"]:
        if list(row) != COLUMNS or not all(type(value) in (int, float) for value in row.values()):
            msg = f"a row of its log holds {sentence(repr(row))}, not {', '.join(COLUMNS)}"
            raise Error(msg)


def _number(value: Any) -> bool:
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 2**53)


def digest(tensors: dict[str, Tensor], text: str = "") -> str:
    """A hash of a text and of tensors on the CPU, names, shapes and bits."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        a = tensors[name]
        total.update(f"{name} {a.dtype} {tuple(a.shape)}".encode())
        total.update(a.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _table(log: list[dict[str, float]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(log)
    return out.getvalue()
