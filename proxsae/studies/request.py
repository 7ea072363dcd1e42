"""What is asked of a study: its options, checked, and the rows of data that it is about."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxsae import data
from proxsae.conventions import Error, check_count, check_finite, check_seed
from proxsae.studies import study

PACKAGED = "hidden states after layer 3 of all-MiniLM-L6-v2 on CPython's documentation topics (packaged)"
K = 32


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

    def command(self, **more: Any) -> str:
        """Return the command that asks for the same with `more` instead of some options."""
        source = self.data if self.data is None or isinstance(self.data, str) else "ROWS.npy"
        given = {name: getattr(self, name) for name in ("k", "d_sae", "train_depths", "seed", "device")}
        words = ["proxsae", "depth"]
        for name, value in ({"data": source} | given | more).items():
            if value not in (None, ()) and value != Request.__dict__.get(name):
                text = ",".join(map(str, value)) if isinstance(value, list | tuple) else f"{value}"
                words += [f"--{name.replace('_', '-')}", text]
        return shlex.join(words)

    def check(self) -> None:
        """Raise `Error` for numbers out of range and unknown parts."""
        study.parts_with_needs(tuple(self.parts))
        for name in ("d_sae", "k", "train_steps", "seeds"):
            if (value := getattr(self, name)) is not None:
                check_count(f"--{name.replace('_', '-')}", value, 1)
        for trained in self.train_depths:
            check_count("--train-depths", trained, 1)
        check_seed(self.seed)
        if self.budget is not None and not 0 < self.budget < math.inf:
            msg = f"--budget {self.budget:g} must be a number of minutes > 0"
            raise Error(msg)

    def sizes(self, d_in: int) -> tuple[int, int]:
        """d_sae and k for rows of that width."""
        d_sae = self.d_sae or 3 * d_in
        k = self.k or min(K, max(1, d_sae // 4))
        if k > d_sae:
            msg = f"--k={k} must be between 1 and d_sae={d_sae}"
            raise Error(msg)
        return d_sae, k

    def rows(self) -> tuple[Tensor, Tensor, str]:
        """Training rows and held-out rows (the last fifth of the user's own) on the device, and what to call them."""
        if self.data is None:
            train, test = data.packaged()
            name = PACKAGED
        else:
            path = self.data if isinstance(self.data, (str, os.PathLike)) else None
            rows = data.read(path) if path is not None else data.open_rows(plain(self.data))[:]
            title = "the array" if path is None else Path(path).name
            held_out = len(rows) // 5
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
        return x, y, name


def plain(rows: Any) -> Any:
    """Rows as what `data.open_rows` takes: a tensor as an array."""
    return rows.detach().cpu().numpy() if isinstance(rows, Tensor) else rows
