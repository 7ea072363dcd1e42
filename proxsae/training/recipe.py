"""What is asked of a training run, checked before anything is touched; and the batches that it asks for."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from proxsae.conventions import Error, check_count, check_counts, check_number, check_seed, note
from proxsae.data import Rows, Shuffle, open_rows
from proxsae.data.rows import KEPT
from proxsae.data.survey import PIECE, summed_up
from proxsae.penalties import BatchKSparse, KSparse
from proxsae.sae import SAE
from proxsae.sae.files import describe
from proxsae.sae.shards import check_split
from proxsae.sae.team import Team
from proxsae.training import files
from proxsae.training.losses import mean_lam

WARM_UP, DECAY = 0.05, 0.2  # shares of the run in which the learning rate rises from 0, and falls to 0
SAMPLE = 65536  # rows from which mean and spread are taken, where there are more


def default_lr(d_sae: int) -> float:
    """Adam's rate by width, 2e-3 sqrt(1024 / d_sae): 4e-3 at 256 latents, 2e-3 at 1024, 5e-4 at 16384."""
    return 2e-3 * math.sqrt(1024 / d_sae)


def rate(t: int, steps: int) -> float:
    """Share of lr at step t: linear warm-up, then constant, then linear decay."""
    return min(1.0, (t + 1) / max(1, WARM_UP * steps), (steps - t) / max(1, DECAY * steps))


@dataclass
class Recipe:
    """What is asked of a run; together with the data it decides every bit of the result."""

    steps: int = 1000
    batch_size: int = 512
    lr: float | None = None
    seed: int = 0
    l0: float | None = None
    widths: tuple[int, ...] = ()
    ks: tuple[int, ...] = ()
    unit_encoder: bool = False
    bfloat16: bool = False

    def checked(self, sae: SAE, team: Team | None) -> Recipe:
        """The same with lr filled in, or `Error`."""
        self.steps, self.batch_size = check_count("steps", self.steps, 1), check_count("batch_size", self.batch_size, 1)
        self.seed = check_seed(self.seed)
        if sae.dtype not in (torch.float32, torch.float64):
            msg = f"weights of {sae.dtype} lose what Adam adds: train in float32, and with bfloat16=True for speed"
            raise Error(msg)
        self.lr = default_lr(sae.d_sae) if self.lr is None else check_number("lr", self.lr, "> 0")
        self.l0 = None if self.l0 is None else check_number("l0", self.l0, "> 0")
        self.widths, self.ks = check_counts("widths", self.widths), check_counts("ks", self.ks)
        R = sae.penalty
        for w in self.widths:
            if w >= sae.d_sae:
                msg = f"widths={self.widths} must lie below d_sae={sae.d_sae}, which is always a level"
                raise Error(msg)
        if self.ks and not isinstance(R, KSparse):
            msg = f"ks={self.ks} are prefixes of k-sparse codes, and {type(R).__name__} has none (lem-nested)"
            raise Error(msg)
        for k in self.ks:
            if k >= getattr(R, "k", 0):
                msg = f"ks={self.ks} must lie below k={getattr(R, 'k', 0)}, which is always a level"
                raise Error(msg)
        if team is not None:
            if self.batch_size % team.replicas:
                msg = f"batch_size={self.batch_size} must be a multiple of the {team.replicas} replicas that share it"
                raise Error(msg)
            if isinstance(R, BatchKSparse):
                msg = f"{type(R).__name__} selects over a batch, of which a process would hold a part: use KSparse(k)"
                raise Error(msg)
            if team.shards > 1:
                check_split(sae, team)
            if team.shards > 1 and self.widths:
                msg = f"widths={self.widths} with shards={team.shards}: prefixes of the latents lie on the first shards"
                raise Error(msg)
        return self


def check_l0(l0: float | None, sae: SAE) -> None:
    """Raise `Error` where `l0` is asked for and every lam is 0 or infinite, which no factor changes."""
    if l0 is not None and hasattr(sae.penalty, "lam") and not mean_lam(sae):
        msg = f"l0={l0} cannot be reached from lam=0, nor from inf: lam is adjusted by factors, so one must lie between"
        raise Error(msg)


class Source:
    """Batches: rows of the data, normalised as the SAE does it, in its dtype and on its device."""

    def __init__(self, sae: SAE, activations: Any, recipe: Recipe, team: Team | None) -> None:
        self._sae, self._team, self._size = sae, team, recipe.batch_size
        self._reads = recipe.steps * recipe.batch_size
        self._rows: Any = activations
        self.outliers, self.collected = KEPT, None
        if isinstance(activations, (str, os.PathLike, Rows)):
            self._rows = open_rows(activations)
            self.outliers, self.collected = self._rows.outliers, self._rows.collected
            if self._rows.shape[1] != sae.d_in:
                msg = f"the rows have {self._rows.shape[1]} numbers, but this SAE needs {sae.d_in}"
                raise Error(msg)
        else:
            self._rows = sae.rows(activations).detach()
        self._order = Shuffle(len(self._rows), recipe.seed)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def in_memory(self) -> bool:
        """Whether all rows are."""
        return isinstance(self._rows, Tensor)

    def fingerprint(self) -> str:
        """A text that other data would not have."""
        rows = self._rows
        if isinstance(rows, Rows):
            return rows.fingerprint()
        some = rows[torch.linspace(0, len(rows) - 1, 16, dtype=torch.float64).long().to(rows.device)]
        return f"{len(rows)} rows, " + open_rows(some.double().cpu().numpy()).fingerprint()

    def at(self, positions: np.ndarray[Any, Any]) -> Tensor:
        """The rows at these positions, normalised as the SAE does it."""
        sae = self._sae
        if isinstance(self._rows, Tensor):
            x = self._rows[torch.from_numpy(positions).to(self._rows.device)]
        else:
            x = torch.from_numpy(self._rows[positions]).to(sae.device, sae.dtype)
        return sae.normalized(x).rows

    def everything(self) -> Tensor:
        """All rows, in memory."""
        return self.at(np.arange(len(self._rows)))

    def sample(self, most: int) -> Tensor:
        """All rows, or as many as `most`, drawn."""
        n = len(self._rows)
        return self.at(np.arange(n) if n <= most else np.sort(self._order.positions(0, most)))

    def batch(self, step: int) -> Tensor:
        """The rows of the batch of a step that this rank sees."""
        return self.at(self.positions(step))

    def positions(self, step: int) -> np.ndarray[Any, Any]:
        """The positions of the rows of `batch`."""
        replicas, mine = (self._team.replicas, self._team.replica) if self._team else (1, 0)
        count = self._size // replicas
        return self._order.positions(step * self._size + mine * count, count)

    def where(self, step: int, index: int) -> str:
        """Row `index` of a batch, for an error message."""
        row = int(self.positions(step)[index])
        return self._rows.where(row) if isinstance(self._rows, Rows) else f"row {row}"

    def mean_and_spread(self) -> tuple[Tensor, float]:
        """The mean row, and the deviation of a coordinate from it, of all rows or of a sample."""
        n = len(self._rows)
        sample = np.arange(n) if n <= SAMPLE else self._order.positions(0, SAMPLE)
        mean, spread = mean_and_spread(self.at(sample))
        least = torch.finfo(mean.dtype).tiny
        if not least <= spread <= 1 / least:
            msg = f"the rows of activations deviate by {spread:.3g} from their mean, but weights of {mean.dtype} take"
            msg += f" {least:.3g} to {1 / least:.3g}: multiply the rows by a factor"
            raise Error(msg)
        return mean, spread

    def tell(self, mean: Tensor, spread: float, lines: bool) -> None:
        """Warn of outliers among the rows as the encoder sees them, and print what they are like where lines are asked.

        All rows are looked through where the run reads as many, else a sample.
        """
        n, d = len(self._rows), self._sae.d_in
        numbers = np.arange(n) if n <= max(SAMPLE, self._reads) else np.sort(self._order.positions(0, SAMPLE))
        step = max(1, PIECE // d)
        norms = [
            torch.linalg.vector_norm(self.at(numbers[start : start + step]).double() / spread, dim=1).cpu().numpy()
            for start in range(0, len(numbers), step)
        ]
        length = float(torch.linalg.vector_norm(mean.double() / spread)) * spread
        seen = summed_up(np.concatenate(norms), d, length, spread * math.sqrt(d), which=numbers, unit=spread)
        if lines:
            begins = "b_dec does not begin at the mean: the larger gamma, the more latents are dead at the start"
            if begins_at_mean(self._sae):
                begins = "b_dec begins at the mean, so that it does not decide which latents fire"
            looked = "all rows" if n <= SAMPLE else f"a sample of {SAMPLE} rows"
            looked += ", but norms of all" if SAMPLE < n == len(numbers) else ""
            print(f"{looked}: {seen.told()}; {begins}", file=sys.stderr, flush=True)
        if self.outliers == KEPT and (warning := seen.warning(n)):
            note(warning)


def begins_at_mean(sae: SAE) -> bool:
    """Whether training sets b_dec to the mean row before its first step."""
    return sae.trained("b_dec") and not bool(sae.b_dec.any())


def mean_and_spread(x: Tensor) -> tuple[Tensor, float]:
    """The mean of rows (n, d), and the deviation of a coordinate from it; `Error` where all rows are equal.

    They are worked out in float64, from the first row and in units of the largest deviation from it, so that nothing
    cancels, overflows or vanishes.
    """
    first = x[0].double()
    wide = x.to(torch.float64, copy=True).sub_(first)
    largest = float(torch.linalg.vector_norm(wide, math.inf))
    if not largest:
        msg = f"the rows of activations are equal, all {len(x)} of them, but training needs rows that differ"
        raise Error(msg)
    wide /= largest
    mean = wide.mean(dim=0)
    spread = largest * float(torch.linalg.vector_norm(wide.sub_(mean))) / math.sqrt(wide.numel())
    return (first + largest * mean).to(x.dtype), spread


@dataclass(frozen=True)
class Left:
    """A run as it left an SAE: its folder, and the `condition` of the SAE when it began and when it ended."""

    folder: Path
    began: dict[str, Any]
    ended: dict[str, Any]


LEFT_BY_RUN: WeakKeyDictionary[SAE, Left] = WeakKeyDictionary()  # of this process


def kind_of_run(sae: SAE, recipe: Recipe, source: Source, folder: Path | None) -> dict[str, Any]:
    """What makes two runs the same, as JSON has it: the SAE that it starts from, the recipe, the data.

    If `sae` is exactly as the run in `folder` left it, the run is identified by the state of the SAE when it began: in
    a notebook the object at hand is the half-trained one.
    """
    began, left = condition(sae), LEFT_BY_RUN.get(sae)
    if folder is not None and left is not None and left.folder == folder.resolve() and left.ended == began:
        began = left.began
    return json.loads(json.dumps({**vars(recipe), "outliers": source.outliers, "data": source.fingerprint(), **began}))


def condition(sae: SAE) -> dict[str, Any]:
    """What an SAE is, and a digest of its weights."""
    weights = files.digest({name: a.detach().cpu() for name, a in sae.state_dict().items()})
    return {"sae": json.loads(json.dumps(describe(sae))), "initial weights": weights}
