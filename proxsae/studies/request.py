"""What is asked of a study: its options, checked, and the rows of data that it is about."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxsae import data
from proxsae.conventions import (
    Error,
    as_number,
    check_count,
    check_counts,
    check_finite,
    check_seed,
    note,
    shown,
)
from proxsae.data.rows import KEPT
from proxsae.studies import study
from proxsae.studies.loop import Loop, opened
from proxsae.studies.machine import device_named
from proxsae.studies.parts.encoders.names import check_encoders

PACKAGED = "hidden states after layer 3 of all-MiniLM-L6-v2 on CPython's documentation topics (packaged)"
K = 32
LOOP = {"at": "output", "skip": 1, "model_tokens": 2000}  # what belongs to a model, where it is not given
FEW = 30  # rows: of fewer a mean of errors that differ by as much as their size is off by a fifth or more


@dataclass(frozen=True)
class Request:
    """What is asked of a study, as options of the command; None and () are chosen so that the study fits its budget.

    data          rows (n, d): a path, an array, or None for the packaged rows
    budget        minutes, None for a first answer (`study.BUDGET`)
    parts         names of `study.PARTS`
    d_sae, k      latents, by default 3 d; non-zeros a row, by default 32, or a quarter of few latents
    train_steps   of every SAE
    train_depths  numbers of encoder steps in training
    seeds, seed   how many seeds, and the first
    outliers      what becomes of rows that stand out, as `data.open_rows` has it
    model         a language model in the loop: a path, or a module of torch
    module, at, skip
                  the place that the rows come from, as `px.models.collect` names it; "output" and 1 by default
    text          paths of texts, or batches of tokens
    model_tokens  how many tokens of them are run, 2000 by default
    labels        labelled texts of two classes, where there are any: a path, or batches of tokens and a label a row
    encoders      names of `ENCODERS`, for the part encoders; without `parts` that part alone
    """

    data: Any = None
    budget: float | None = None
    parts: Sequence[str] = ()
    d_sae: int | None = None
    k: int | None = None
    train_steps: int | None = None
    train_depths: Sequence[int] = ()
    seeds: int | None = None
    seed: int = 0
    device: str = "cpu"
    outliers: str = "keep"
    model: Any = None
    module: str | None = None
    text: Sequence[Any] = ()
    at: str | None = None
    skip: int | None = None
    model_tokens: int | None = None
    labels: Any = None
    encoders: Sequence[str] = ()

    @property
    def named(self) -> bool:
        """Whether a command can name the rows, and a model: a path, or none for the packaged ones."""
        return all(one is None or isinstance(one, (str, os.PathLike)) for one in (self.data, self.model))

    def command(self, **more: Any) -> str:
        """Return the command that asks for the same with `more` instead of some options."""
        given = {
            name: getattr(self, name)
            for name in ("k", "d_sae", "train_depths", "seed", "device", "outliers", "encoders")
        }
        given = {"data": _as_word(self.data, "ROWS.npy")} | given | more
        if self.model is not None:
            given |= {"model": _as_word(self.model, "MODEL"), "module": self.module}
            given |= {"labels": _as_word(self.labels, "LABELS")}
            given |= {name: value for name in LOOP if (value := getattr(self, name)) != LOOP[name]}
        words = ["proxsae", "depth"]
        for name, value in given.items():
            if value not in (None, ()) and value != Request.__dict__.get(name):
                text = ",".join(map(str, value)) if isinstance(value, list | tuple) else f"{value}"
                words += [f"--{name.replace('_', '-')}", text]
        if self.text:
            words += ["--text", *dict.fromkeys(_as_word(one, "TEXT") or "" for one in self.text)]
        return shlex.join(words)

    def checked(self) -> Request:
        """The same with plain numbers; `Error` for those out of range, unknown parts and a device that is not there."""
        parts = (self.parts,) if isinstance(self.parts, str) else self.parts
        if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
            msg = f"--parts {shown(parts)} must be names such as ('depth', 'apart')"
            raise Error(msg)
        encoders = check_encoders(self.encoders)
        parts, loop = tuple(parts) or (("encoders",) if encoders else ()), self._loop_checked()
        if encoders and "encoders" not in parts:
            msg = (
                f"--encoders {','.join(encoders)} is for the part encoders: name that in --parts, or leave --parts out"
            )
            raise Error(msg)
        study.parts_with_needs(parts, self.model is not None)
        sizes: dict[str, Any] = {
            name: check_count(f"--{name.replace('_', '-')}", value, 1)
            for name in ("d_sae", "k", "train_steps", "seeds") if (value := getattr(self, name)) is not None
        }  # fmt: skip
        depths = tuple(sorted(set(check_counts("--train-depths", self.train_depths))))
        seed, budget = check_seed(self.seed), self.budget
        if budget is not None:
            budget = as_number(budget)
            if budget is None or budget <= 0:
                given = shown(self.budget) if budget is None else f"{budget:g}"
                msg = f"--budget {given} must be a number of minutes > 0"
                raise Error(msg)
        device = device_named(str(self.device))
        return replace(
            self, **sizes, **loop, parts=parts, train_depths=depths, seed=seed, budget=budget, device=device,
            encoders=encoders,
        )  # fmt: skip

    def _loop_checked(self) -> dict[str, Any]:
        """The options of a model in the loop, with defaults; `Error` where some are missing, or without a model."""
        text = (self.text,) if isinstance(self.text, (str, os.PathLike)) else self.text
        if not isinstance(text, (list, tuple)):
            msg = f"--text {shown(text)} must be a list of paths, or of batches of tokens"
            raise Error(msg)
        given = {name: getattr(self, name) for name in ("module", *LOOP)}
        if self.model is None:
            for name, value in [*given.items(), ("text", text or None), ("labels", self.labels)]:
                if value is not None:
                    msg = f"--{name.replace('_', '-')} is for a study on a language model: give --model too, or leave "
                    msg += "it out"
                    raise Error(msg)
            return {}
        for name, value, why in (
            ("data", self.data, "the rows of one of its modules, which proxsae lm collect writes"),
            ("module", self.module, "the module that the rows come from, such as model.layers.15"),
            ("text", text or None, "texts to run it on, best others than those that the rows come from"),
        ):
            if value is None:
                msg = f"--model needs --{name}: {why}"
                raise Error(msg)
        files = isinstance(self.model, (str, os.PathLike))
        if any(isinstance(one, (str, os.PathLike)) != files for one in text):
            msg = "--text must be paths for a model from a path, and batches of tokens for a module of torch"
            raise Error(msg)
        of_files = isinstance(self.labels, (str, os.PathLike))
        if self.labels is not None and not (of_files if files else _is_pair(self.labels)):
            msg = "--labels must be a path for a model from a path, and (batches, labels) for a module of torch"
            raise Error(msg)
        given = {name: LOOP.get(name) if value is None else value for name, value in given.items()}
        given["model_tokens"] = check_count("--model-tokens", given["model_tokens"], 1)
        return given | {"text": tuple(text)}

    def loop(self, d_in: int) -> Loop | None:
        """The model in the loop, for rows of that width, where one was asked for."""
        if self.model is None:
            return None
        module, at, skip, tokens = (getattr(self, name) for name in ("module", *LOOP))
        return opened(self.model, module, self.text, at, skip, tokens, self.device, d_in, self.labels)

    def about(self, loop: Loop) -> dict[str, str]:
        """What a report says of the model in the loop."""
        texts = [_as_word(one, "batches of tokens") or "" for one in self.text]
        return {
            "model": _as_word(self.model, type(loop.model).__name__) or "",
            "module": f"{loop.at} of {loop.module}, first tokens left alone: {loop.skip}",
            "texts": f"{loop.tokens} tokens of {', '.join(dict.fromkeys(texts))}",
            **({"labelled texts": str(len(loop.labels[1]))} if loop.labels else {}),
        }

    def sizes(self, d_in: int) -> tuple[int, int]:
        """d_sae and k for rows of that width."""
        d_sae = self.d_sae or 3 * d_in
        k = self.k or min(K, max(1, d_sae // 4))
        if k > d_sae:
            msg = f"--k={k} must be between 1 and d_sae={d_sae}"
            raise Error(msg)
        return d_sae, k

    def rows(self) -> tuple[Tensor, Tensor, dict[str, str], list[str]]:
        """Training rows and held-out rows (the last fifth of the user's own) on the device, facts on them, and notes.

        Warns of outliers that are kept.
        """
        notes: list[str] = []
        if self.data is None:
            train, test = data.packaged()
            name, rows = PACKAGED, data.open_rows(train)
        else:
            rows = data.open_rows(self.data, self.outliers)
            held_out = len(rows) // 5
            title, notes = Path(self.data).name if self.named else "the array", [*of_few(held_out), *of_axes(rows)]
            if not held_out:
                msg = f"{title} holds {len(rows)} rows, but a study needs at least 5: the last fifth is held out"
                raise Error(msg)
            # Only the first held-out rows are measured: in random order they are a fair sample.
            shuffled = np.random.default_rng(0).permutation(held_out)
            train, test = rows[:-held_out], rows[-held_out:][shuffled]
            name = f"{title}, the last fifth held out"
        x, y = (torch.tensor(np.asarray(a), dtype=torch.float32, device=self.device) for a in (train, test))
        check_finite("the training rows, in float32,", x)
        check_finite("the held-out rows, in float32,", y)
        return x, y, {"data": name, **about_rows(rows, rows.outliers)}, notes


def about_rows(rows: Any, treated: str) -> dict[str, str]:
    """What a report says of rows before they are used: norms, mean, outliers; warns of outliers that are kept."""
    seen = data.survey(rows)
    if treated == KEPT:
        treated = f"{len(seen.outliers)} of {seen.rows} rows above {seen.above:g} times the median norm, kept"
        if warning := seen.warning():
            note(warning)
    return {"norms": seen.told(), "outliers": treated}


def _is_pair(labels: Any) -> bool:
    return isinstance(labels, (list, tuple)) and len(labels) == 2


def _as_word(value: Any, other: str) -> str | None:
    """How a command names a path, and by another word what is none."""
    return None if value is None else os.fspath(value) if isinstance(value, (str, os.PathLike)) else other


def of_few(rows: int) -> list[str]:
    """A note where errors are means over so few rows that they say little."""
    if rows >= FEW:
        return []
    count = f"{rows} rows are" if rows > 1 else "1 row is"
    return [f"Only {count} measured, and means over so few may be far from those of other rows: {FEW} say more."]


def of_axes(rows: data.Rows) -> list[str]:
    """A note where the arrays have more axes than two."""
    return [f"The data are arrays of {rows.axes} axes: all but the last were taken as rows."] if rows.axes > 2 else []
