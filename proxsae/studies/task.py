"""What a study is made of: tasks that can be done one by one, and what all of them are told.

A task is the unit that is kept when a study is interrupted: its rows are written when it ends, and are not worked out
again.  Whatever one task needs of another lies in the folder of the study, as a saved SAE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from proxsae.sae import SAE, load

Row = dict[str, Any]  # one measurement; flat, and of what JSON knows: text, numbers, None


# The four published SAEs and their two signed cousins, by their names in `PUBLISHED`.
SIX = ("relu", "soft", "jumprelu", "jumprelu2", "topk", "abstopk")


@dataclass(frozen=True)
class Task:
    """One piece of a study: a name that stays, about how long it takes, and what gives its rows."""

    name: str
    seconds: float
    run: Callable[[], list[Row]]


@dataclass(frozen=True)
class Setting:
    """What all tasks of a study share.

    train, test    rows (n, d_in), float32, on the device; of `test`, the parts that are slow take the first ones
    d_sae, k       latents, and non-zeros per row that every SAE is asked for
    seeds          of weights and batches; intervals are over them
    train_steps    of every SAE
    train_depths   encoder steps with which SAEs are trained
    folder         where trained SAEs lie
    packaged       whether the rows are those of the packaged model, so that its contrast pairs fit
    seconds        of this machine for one training step of a one-step AbsTopK SAE here, from which tasks are estimated
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

    def keep(self, sae: SAE, name: str) -> None:
        """Save an SAE under a name, for later tasks."""
        (self.folder / "saes").mkdir(parents=True, exist_ok=True)
        sae.save(self.folder / "saes" / name)

    def kept(self, name: str) -> SAE:
        """The SAE of that name, on the device of the rows."""
        return load(self.folder / "saes" / name).to(self.train.device)
