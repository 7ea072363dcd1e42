"""The whole depth study: its parts, how much of it fits into a budget of time, and one task after the other."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from proxsae.conventions import Error
from proxsae.penalties import KSparse
from proxsae.sae import SAE
from proxsae.studies.journal import Journal
from proxsae.studies.parts.apart import measure as apart
from proxsae.studies.parts.bounds import measure as bounds
from proxsae.studies.parts.depth import measure as depth
from proxsae.studies.parts.recovery import measure as recovery
from proxsae.studies.parts.signs import measure as signs
from proxsae.studies.parts.stability import measure as stability
from proxsae.studies.task import Row, Setting, Task
from proxsae.training import train

PARTS: dict[str, Callable[[Setting], list[Task]]] = {
    "depth": depth.tasks,
    "stability": stability.tasks,
    "apart": apart.tasks,
    "recovery": recovery.tasks,
    "signs": signs.tasks,
    "bounds": bounds.tasks,
}
NEEDS_DEPTH = ("stability", "apart", "bounds")  # they measure the SAEs that it trains
# Seeds, training steps and held-out rows, from the least whose intervals say something to more than a night.
LADDER = [
    (3, 25, 256), (3, 50, 256), (3, 75, 256), (3, 100, 512), (3, 150, 512), (3, 200, 1024), (4, 200, 1024),
    (5, 200, 1024), (5, 300, 1024), (5, 400, 1024), (5, 600, 1024), (6, 800, 1024), (8, 1000, 1024), (10, 2000, 1024),
    (10, 4000, 1024), (10, 8000, 1024), (10, 16000, 1024),
]  # fmt: skip
BUDGET = 20.0  # minutes, where nobody says
HEADROOM = 0.9  # of the budget is planned: the rest is for the report, and for what the estimate missed
TRIALS, TRIAL = 5, 8  # times that training steps are timed, and how many


@dataclass(frozen=True)
class Plan:
    """How much is done: seeds, training steps and held-out rows, and how many seconds that is thought to take."""

    seeds: int
    train_steps: int
    rows: int
    seconds: float


def parts_with_needs(names: Sequence[str]) -> tuple[str, ...]:
    """The parts of these names, or all for none, and what they need, in their order; `Error` for an unknown one."""
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        msg = f"--parts {unknown[0]!r} must be of {', '.join(PARTS)}, with commas between"
        raise Error(msg)
    names = names or tuple(PARTS)
    needed = {*names, *(["depth"] if set(names) & set(NEEDS_DEPTH) else [])}
    return tuple(name for name in PARTS if name in needed)


def seconds_a_step(x: Tensor, d_sae: int, k: int) -> float:
    """What a training step of a one-step AbsTopK SAE takes here, the least of some trials."""
    torch.manual_seed(0)
    sae = SAE(x.shape[1], d_sae, KSparse(k)).to(x.device)
    times = []
    for _ in range(TRIALS):
        started = time.perf_counter()
        train(sae, x, TRIAL, depth.BATCH, depth.LR, progress=False)
        times.append((time.perf_counter() - started) / TRIAL)
    return min(times)  # what else runs here may end before the study does


def plan(
    setting: Setting, parts: Sequence[str], minutes: float | None, seeds: int | None, train_steps: int | None
) -> Plan:
    """The most seeds and training steps that fit into some minutes; what is given is left as it is.

    Where both are given the minutes are not asked.  Raises `Error` where the least does not fit; by default, without
    `minutes`, that is done all the same.
    """
    budget = 60 * (BUDGET if minutes is None else minutes)
    found: Plan | None = None
    for count, steps in dict.fromkeys((seeds or most, train_steps or steps) for most, steps, _ in LADDER):
        rows = min(max((rows for _, least, rows in LADDER if least <= steps), default=LADDER[0][2]), len(setting.test))
        trial = replace(setting, seeds=tuple(range(count)), train_steps=steps, test=setting.test[:rows])
        seconds = sum(task.seconds for task in all_tasks(trial, parts))
        least = found is None and minutes is None
        if seconds <= HEADROOM * budget or (seeds and train_steps) or least:
            found = Plan(count, steps, rows, seconds)
        elif found is None:
            msg = f"--budget {minutes:g} is less than the {seconds / HEADROOM / 60:.3g} minutes that {count} seeds "
            msg += f"of {steps} training steps are thought to take here: give it more, or fewer --parts"
            raise Error(msg)
    assert found is not None
    return found


def all_tasks(setting: Setting, parts: Sequence[str]) -> list[Task]:
    """The tasks of these parts, in order."""
    return [task for part in parts for task in PARTS[part](setting)]


def fingerprint(*rows: Tensor) -> str:
    """What tells other rows apart."""
    digest = hashlib.sha256()
    for some in rows:
        digest.update(some.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def run(
    tasks: Sequence[Task],
    journal: Journal,
    begun: Callable[[Task, int], None] = lambda task, number: None,
    ended: Callable[[Task], None] = lambda task: None,
) -> list[Row]:
    """Do the tasks that the journal does not have; return the rows of all of them, in order."""
    for number, task in enumerate(tasks, start=1):
        if task.name not in journal.done:
            begun(task, number)
            started = time.perf_counter()
            rows = task.run()
            journal.add(task.name, rows, time.perf_counter() - started)
        ended(task)
    return [row for task in tasks for row in journal.done[task.name]]
