"""What a depth study consists of: its parts, how much of them fits into a budget of time, and the run of its tasks."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from proxsae.conventions import Error
from proxsae.penalties import KSparse
from proxsae.sae import SAE
from proxsae.studies.journal import Journal
from proxsae.studies.parts.apart import measure as apart
from proxsae.studies.parts.bounds import measure as bounds
from proxsae.studies.parts.depth import measure as depth
from proxsae.studies.parts.encoders import measure as encoders
from proxsae.studies.parts.model import measure as model
from proxsae.studies.parts.recovery import measure as recovery
from proxsae.studies.parts.signs import measure as signs
from proxsae.studies.parts.stability import measure as stability
from proxsae.studies.task import Row, Setting, Task
from proxsae.training import train

PARTS: dict[str, Callable[[Setting], list[Task]]] = {
    "depth": depth.tasks,
    "stability": stability.tasks,
    "apart": apart.tasks,
    "encoders": encoders.tasks,
    "recovery": recovery.tasks,
    "signs": signs.tasks,
    "bounds": bounds.tasks,
}
NEEDS_DEPTH = ("stability", "apart", "encoders", "bounds", "model")  # they measure the SAEs that it trains
# The part that answers most comes first.
ANSWERS = ("depth", "model", "apart", "encoders", "stability", "signs", "recovery", "bounds")
DEPTHS = (1, 4)  # encoder steps in training, of a whole study
# Seeds, training steps and held-out rows, from the least that gives numbers to more than a night.
LADDER = [
    (1, 10, 128), (1, 25, 256), (1, 50, 256), (1, 100, 256), (3, 25, 256), (3, 50, 256), (3, 75, 256), (3, 100, 256),
    (3, 150, 512), (3, 200, 1024), (4, 200, 1024), (5, 200, 1024), (5, 300, 1024), (5, 400, 1024), (5, 600, 1024),
    (6, 800, 1024), (8, 1000, 1024), (10, 2000, 1024), (10, 4000, 1024), (10, 8000, 1024), (10, 16000, 1024),
]  # fmt: skip
ENOUGH = (3, 100)  # seeds and training steps: a part is left out before the others get less
WHOLE = (3, 100)  # of a study with all parts, in 20 minutes on two idle cores
BUDGET = 2.5  # minutes by default: a first answer
HEADROOM = 0.9  # share of the budget that is planned: the rest is for the report and for errors of the estimate
TRIALS, TRIAL = 5, 8  # how often training steps are timed, and how many at once
TIMING = 2.0  # seconds after which no further trial begins


@dataclass(frozen=True)
class Plan:
    """How much is done: seeds, training steps, held-out rows, estimated seconds, parts, depths in training."""

    seeds: int
    train_steps: int
    rows: int
    seconds: float
    parts: tuple[str, ...] = ()
    train_depths: tuple[int, ...] = ()


def parts_of(loop: bool) -> dict[str, Callable[[Setting], list[Task]]]:
    """The parts of a study, by name: one more where a language model is in the loop."""
    return PARTS | ({"model": model.tasks} if loop else {})


def parts_with_needs(names: Sequence[str], loop: bool = False) -> tuple[str, ...]:
    """The named parts, or all if none is named, with the parts that they depend on; `Error` for an unknown name."""
    known = parts_of(loop)
    unknown = [name for name in names if name not in known]
    if unknown == ["model"]:
        msg = "--parts model needs a language model in the loop: give --model, --module and --text too"
        raise Error(msg)
    if unknown:
        msg = f"--parts {unknown[0]!r} must be of {', '.join(known)}, with commas between"
        raise Error(msg)
    names = names or tuple(known)
    needed = {*names, *(["depth"] if set(names) & set(NEEDS_DEPTH) else [])}
    return tuple(name for name in known if name in needed)


def speed(x: Tensor, d_sae: int, k: int) -> tuple[float, int]:
    """Seconds of a training step of a one-step AbsTopK SAE, the median of some trials, and with how many threads.

    Where other programs use the cores, one thread is faster than several, which wait for each other.
    """
    torch.manual_seed(0)
    sae = SAE(x.shape[1], d_sae, KSparse(k)).to(x.device)
    before, found = torch.get_num_threads(), {}
    try:
        for threads in {before, 1} if x.device.type == "cpu" else {before}:
            torch.set_num_threads(threads)
            train(sae, x, 2, depth.BATCH, depth.LR, progress=False)  # the first steps also pay for memory and threads
            times: list[float] = []
            while len(times) < TRIALS and TRIAL * sum(times) < TIMING:
                started = time.perf_counter()
                train(sae, x, TRIAL, depth.BATCH, depth.LR, progress=False)
                times.append((time.perf_counter() - started) / TRIAL)
            found[threads] = float(np.median(times))
    finally:
        torch.set_num_threads(before)
    threads = min(found, key=lambda n: found[n])
    return found[threads], threads


def choose(
    setting: Setting,
    parts: Sequence[str],
    depths: Sequence[int],
    minutes: float | None,
    seeds: int | None,
    train_steps: int | None,
) -> Plan:
    """Choose parts, depths in training, seeds and training steps that fit into some minutes (`BUDGET` by default).

    What is given stays as it is.  The rest is made smaller: first parts are left out, those that answer least before
    others, and the depths of training beyond one, as long as `ENOUGH` seeds and training steps do not fit; then seeds
    and training steps fall.  Where both are given, nothing is left out; a model that is given is a part that is.
    """
    loop = setting.loop is not None
    answers = tuple(name for name in ANSWERS if name in parts_of(loop))
    scopes = [(tuple(parts) or answers, tuple(depths) or DEPTHS)]
    if not parts:
        scopes += [(answers[:n], scopes[0][1]) for n in range(len(answers) - 1, 1, -1)]
    if not depths:
        scopes.append((scopes[-1][0], DEPTHS[:1]))
    if not parts and not loop:
        scopes.append((answers[:1], scopes[-1][1]))
    for names, trained in scopes:
        needed = parts_with_needs(names, loop)
        made = plan(replace(setting, train_depths=trained), needed, minutes, seeds, train_steps)
        made = replace(made, parts=needed, train_depths=trained)
        enough = (seeds or made.seeds >= ENOUGH[0]) and (train_steps or made.train_steps >= ENOUGH[1])
        if (seeds and train_steps) or (enough and fits(made, minutes)):
            break
    return made


def fits(made: Plan, minutes: float | None) -> bool:
    """Whether the estimate of a plan is within the budget."""
    return made.seconds <= HEADROOM * 60 * (BUDGET if minutes is None else minutes)


def plan(
    setting: Setting, parts: Sequence[str], minutes: float | None, seeds: int | None, train_steps: int | None
) -> Plan:
    """The largest plan, by estimated time, that fits; the smallest if none fits.

    What is given stays as it is.  Where both are given the minutes (`BUDGET` by default) do not matter.  Beside the
    passes of a model training costs little, so that SAEs of fewer than `ENOUGH` steps save nothing there.
    """
    least = 0 if setting.loop is None else ENOUGH[1]
    rungs = dict.fromkeys((seeds or most, train_steps or steps) for most, steps, _ in LADDER if steps >= least)
    plans = [sized(setting, parts, *rung) for rung in rungs]
    return max((made for made in plans if fits(made, minutes)), key=lambda made: made.seconds, default=plans[0])


def sized(setting: Setting, parts: Sequence[str], seeds: int, train_steps: int) -> Plan:
    """The plan with so many seeds and training steps; the number of rows goes with the training steps."""
    rows = min(
        max((rows for _, least, rows in LADDER if least <= train_steps), default=LADDER[0][2]), len(setting.test)
    )
    trial = replace(setting, seeds=tuple(range(seeds)), train_steps=train_steps, test=setting.test[:rows])
    return Plan(seeds, train_steps, rows, sum(task.seconds for task in all_tasks(trial, parts)))


def minutes_of_the_whole(
    setting: Setting, parts: Sequence[str], depths: Sequence[int], seeds: int | None, train_steps: int | None
) -> int:
    """A budget, in whole tens of minutes and at least 20, into which a whole study fits on this machine.

    What is given stays as it is; the rest is all parts, `DEPTHS` and `WHOLE`.
    """
    setting = replace(setting, train_depths=tuple(depths) or DEPTHS)
    seconds = sized(
        setting, parts_with_needs(parts, setting.loop is not None), seeds or WHOLE[0], train_steps or WHOLE[1]
    ).seconds
    return max(20, 10 * math.ceil(seconds / HEADROOM / 600))


def all_tasks(setting: Setting, parts: Sequence[str]) -> list[Task]:
    """The tasks of these parts; those of the part that answers most come first."""
    known = parts_of(setting.loop is not None)
    return [task for part in sorted(parts, key=ANSWERS.index) for task in known[part](setting)]


def fingerprint(*rows: Tensor) -> str:
    """A hash of the rows, so that a journal tells other data."""
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
    """Do the tasks that the journal does not have; return the rows of all tasks, in order.

    `begun` is called before a task with its number from 1, `ended` after each, also one that the journal had.
    """
    for number, task in enumerate(tasks, start=1):
        if task.name not in journal.done:
            begun(task, number)
            started = time.perf_counter()
            rows = task.run()
            journal.add(task.name, rows, time.perf_counter() - started)
        ended(task)
    return [row for task in tasks for row in journal.done[task.name]]
