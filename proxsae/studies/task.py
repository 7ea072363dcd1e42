"""What a study is made of: tasks that are done one by one, and the setting that all of them share.

A task is the unit that is kept when a study is interrupted: its rows are written when it ends, and are not computed
again.  What one task needs of another is a saved SAE in the folder of the study.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from proxsae.report.rows import Row
from proxsae.sae import SAE, load
from proxsae.studies.loop import Loop

__all__ = ["Row", "Setting", "Task"]


# The four published SAEs and their two signed cousins, by their names in `PUBLISHED`.
SIX = ("relu", "soft", "jumprelu", "jumprelu2", "topk", "abstopk")


@dataclass(frozen=True)
class Task:
    """One piece of a study: its name in the journal, an estimate of its seconds, and what returns its rows."""

    name: str
    seconds: float
    run: Callable[[], list[Row]]


@dataclass(frozen=True)
class Setting:
    """What all tasks of a study share.

    train, test    rows (n, d_in), float32, on the device; slow parts measure only the first rows of `test`
    d_sae, k       latents, and non-zeros per row that every SAE is asked for
    seeds          of weights and batches; intervals are over them
    train_steps    of every SAE
    train_depths   numbers of encoder steps with which SAEs are trained
    folder         holds the trained SAEs
    packaged       whether the rows are those of the packaged model, which its contrast pairs fit
    encoders       of the part encoders, by name; () for those that a study has by itself
    """

    train: Tensor
    test: Tensor
    d_sae: int
    k: int
    seeds: tuple[int, ...]
    train_steps: int
    train_depths: tuple[int, ...]
    folder: Path
    packaged: bool
    seconds: float
    loop: Loop | None = None
    encoders: tuple[str, ...] = ()

    def keep(self, sae: SAE, name: str) -> None:
        """Save an SAE under a name, for later tasks."""
        (self.folder / "saes").mkdir(parents=True, exist_ok=True)
        sae.save(self.folder / "saes" / name)

    def kept(self, name: str) -> SAE:
        """The SAE of that name, on the device of the rows."""
        return load(self.folder / "saes" / name).to(self.train.device)
