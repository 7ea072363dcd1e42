"""A study from its request to its report: planned for this machine, resumed where it stopped, told while it runs."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from proxsae import __version__
from proxsae.conventions import Error, Note, check_count, check_seed
from proxsae.disk import check_writable, held
from proxsae.report import figure_class
from proxsae.studies import study
from proxsae.studies.journal import FILE, Journal, check_same, foreign, planned
from proxsae.studies.machine import about_machine
from proxsae.studies.progress import Progress
from proxsae.studies.request import Request
from proxsae.studies.results import Study
from proxsae.studies.study import Plan
from proxsae.studies.task import Row, Setting, Task
from proxsae.studies.words import counted

SELDOM, SHARE = 5.0, 10.0  # the report is written again after 5 s, and after 10 times what writing it took


def carry_out(request: Request, out: Path | None, progress: Progress, command: str) -> Study:
    """Plan a study or resume that of `out`, do what is left of it, and write the report into `out` as it grows."""
    check_folder(out)
    request = request.checked()
    train, test, of_rows, notes = request.rows()
    d_sae, k = request.sizes(train.shape[1])
    if request.model is not None:
        progress.doing("loading the model")
    loop = request.loop(train.shape[1])
    parts = study.parts_with_needs(request.parts, loop is not None)
    asked = {
        "the data": study.fingerprint(train, test), "--d-sae": d_sae, "--k": k,
        "--train-depths": list(request.train_depths or study.DEPTHS), "--parts": list(parts),
        "--encoders": list(request.encoders),
        "--seed": request.seed, "--budget": request.budget, "--seeds": request.seeds,
        "--train-steps": request.train_steps, "--device": request.device, "the version": __version__,
        **({} if loop is None else loop.what()),
    }  # fmt: skip
    with ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="proxsae-")))
        setting = Setting(
            train, test, d_sae, k, (), 1, (), folder, request.data is None, 0.0, loop, tuple(request.encoders)
        )
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", Note)  # of outliers, once more for each SAE that is trained
        stack.enter_context(torch.random.fork_rng([train.device] if train.is_cuda else []))  # the caller's stays
        made, first = _planned(request, setting, asked, progress)
        plan = first["plan"]
        setting = replace(setting, seconds=plan["a training step"])
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(plan.get("threads", torch.get_num_threads()))
        seeds = tuple(range(request.seed, request.seed + made.seeds))
        check_seed(seeds[-1])
        lines, hint = _said(request, setting, made, out)
        setting = replace(
            setting,
            seeds=seeds, train_steps=made.train_steps, train_depths=made.train_depths, test=test[: made.rows],
        )  # fmt: skip
        fixed: dict[str, Any] = {"seeds": made.seeds, "train_steps": made.train_steps}
        if made.train_depths != study.DEPTHS:
            fixed["train_depths"] = made.train_depths
        if set(made.parts) != set(study.parts_of(loop is not None)):
            fixed["parts"] = made.parts
        about = {
            **of_rows,
            **({} if loop is None else request.about(loop)),
            "d_in": train.shape[1],
            "d_sae": d_sae,
            "k": k,
            "parts": ", ".join(made.parts),
            "encoder steps in training": ", ".join(map(str, made.train_depths)),
            **about_machine(),
            "device": request.device,
            "command": command,
            "rows": f"{len(train)} to train, {len(test)} held out, of which {made.rows} are measured",
            "seeds": f"{seeds[0]} to {seeds[-1]}" if made.seeds > 1 else f"{seeds[0]}",
            "training steps": made.train_steps,
            "to repeat": replace(request, train_depths=()).command(**fixed),
        }
        repeat = "" if "parts" in fixed or not request.named else about["to repeat"]
        stack.enter_context(held(folder))
        run = _Run(study.all_tasks(setting, made.parts), Journal(folder, first), made, about, progress)
        notes = [f"The SAEs were trained for {counted(made.train_steps, 'step')}.", *notes]
        run.study = replace(run.study, packaged=setting.packaged, hint=hint, repeat=repeat, notes=notes)
        run.carry_out(lines, out)
    return run.study


class _Run:
    """The tasks of a study while they are done: what is shown of them, and the report that grows."""

    def __init__(
        self, tasks: list[Task], journal: Journal, made: Plan, about: dict[str, Any], progress: Progress
    ) -> None:
        self.tasks, self.journal, self.progress = tasks, journal, progress
        self.made, self.about = made, about
        self.study = Study([], about, (0, len(tasks)))
        self.spent = 0.0  # seconds of the tasks that ended, as estimated
        self.error = ""  # of the SAE that was measured last, as text
        self.written, self.took = -float("inf"), 0.0  # when the report was last written, and how long that took

    def carry_out(self, lines: Sequence[str], out: Path | None) -> None:
        """Do the tasks; leave a report of those that ended when an error of this package or Ctrl-C ends the run."""
        done = sum(task.name in self.journal.done for task in self.tasks)
        for line in lines:
            self.progress.say(line)
        if done:
            self.progress.say(f"resuming: {done} of {len(self.tasks)} tasks are done")
        self.progress.done(0.0, self.made.seconds)

        def begun(task: Task, number: int) -> None:
            last = self.error if self.progress.bar else ""  # where lines are printed, that of the last task has it
            self.progress.doing(f"{number} of {len(self.tasks)}: {task.name}{last}", task.seconds)

        def ended(task: Task) -> None:
            self.spent += task.seconds
            self.progress.done(self.spent, self.made.seconds)
            if task.name in self.journal.fresh:
                self.error = _error(self.journal.done[task.name])
                if not self.progress.bar:
                    number = self.tasks.index(task) + 1
                    taken = self.journal.fresh[task.name]
                    self.progress.say(f"{number} of {len(self.tasks)}: {task.name}, {taken:.1f} s{self.error}")
                if out is not None and time.perf_counter() - self.written > max(SELDOM, SHARE * self.took):
                    with suppress(Error):  # the disk refused: the next task or the end of the run says so
                        self.write(out)

        try:
            study.run(self.tasks, self.journal, begun, ended)
        except (Error, KeyboardInterrupt) as stop:
            raise type(stop)(self._left(stop, out)) from None
        if out is None:
            self.collect()
        else:
            self.write(out)

    def collect(self) -> None:
        """Take the rows of the tasks that ended."""
        done = [task for task in self.tasks if task.name in self.journal.done]
        rows = [row for task in done for row in self.journal.done[task.name]]
        spent = f"{minutes(self.journal.seconds)} of work, {minutes(self.made.seconds)} were planned"
        about = self.about | {"time": spent}
        self.study = replace(self.study, rows=rows, about=about, done=(len(done), len(self.tasks)))

    def write(self, out: Path) -> None:
        """Write the report of the tasks that ended."""
        started = time.perf_counter()
        self.progress.doing("writing the report")
        self.collect()
        self.study.report(out)
        self.written = time.perf_counter()
        self.took = self.written - started

    def _left(self, stop: BaseException, out: Path | None) -> str:
        """Write what there is of the report; say what stopped the run, what is kept, and how to resume."""
        said = str(stop) or "interrupted"
        if out is None:
            return said
        kept = ""
        if self.journal.done:
            with suppress(Error):
                self.write(out)
                kept = " and a report of them"
        said += f"; {out} keeps the {len(self.journal.done)} of {len(self.tasks)} tasks that ended{kept}: "
        return said + "run the same command to resume"


def _planned(
    request: Request, setting: Setting, asked: dict[str, Any], progress: Progress
) -> tuple[Plan, dict[str, Any]]:
    """The plan of the study, and the first line of its journal: what is asked, the plan, and how it was timed."""
    there = planned(setting.folder)
    if there is not None:
        return _planned_before(request, setting.folder / FILE, there, asked), there
    progress.doing("timing a training step on this machine")
    seconds, threads = study.speed(setting.train, setting.d_sae, setting.k)
    depths = tuple(sorted(set(request.train_depths)))
    made = study.choose(
        replace(setting, seconds=seconds), request.parts, depths, request.budget, request.seeds, request.train_steps
    )
    return made, asked | {"plan": vars(made) | {"a training step": seconds, "threads": threads}}


def _planned_before(request: Request, path: Path, there: dict[str, Any], asked: dict[str, Any]) -> Plan:
    """The plan in the first line of the journal at `path`; `Error` where that is of another study, or foreign.

    Parts and training depths may be named as the plan chose them.
    """
    plan = there.get("plan")
    plan = plan if isinstance(plan, dict) else {}
    chosen = {
        "--parts": plan.get("parts") if request.parts else None,
        "--train-depths": plan.get("train_depths") if request.train_depths else None,
    }
    check_same(path, there | {name: value for name, value in chosen.items() if value}, asked)
    try:
        check_count("threads", plan.get("threads", 1), 1)
        seeds, steps, rows = (check_count(name, plan[name], 1) for name in ("seeds", "train_steps", "rows"))
        depths = tuple(check_count("train_depths", depth, 1) for depth in plan["train_depths"])
        float(plan["a training step"])
        parts = study.parts_with_needs(plan["parts"], request.model is not None)
        return Plan(seeds, steps, rows, float(plan["seconds"]), parts, depths)
    except (KeyError, TypeError, ValueError):
        raise foreign(path) from None


def _said(request: Request, setting: Setting, made: Plan, out: Path | None) -> tuple[list[str], str]:
    """What is said of a plan before it is carried out, and after it how to get the whole study.

    `setting` must hold all test rows, since other plans are sized from it.
    """
    parts, depths, seeds, steps = request.parts, request.train_depths, request.seeds, request.train_steps
    whole = study.minutes_of_the_whole(setting, parts, depths, seeds, steps)
    place = {} if out is None else {"out": f"{out}-whole"}
    command = request.command(budget=whole, parts=parts, seeds=seeds, train_steps=steps, **place)
    setting = replace(setting, train_depths=made.train_depths)
    tasks = len(study.all_tasks(replace(setting, seeds=tuple(range(made.seeds))), made.parts))
    size = f"{counted(made.seeds, 'seed')}, {counted(made.train_steps, 'training step')}"
    lines = [f"{size}, {made.rows} rows, {counted(tasks, 'task')}: about {minutes(made.seconds)} on this machine"]
    if made.seeds == 1:
        lines.append("one seed: numbers, no verdicts")
    if seeds and steps:  # nothing was chosen
        return lines, ""
    seeds, steps = seeds or study.ENOUGH[0], steps or study.ENOUGH[1]
    wanted = study.sized(setting, made.parts, seeds, steps)
    if made.seeds < seeds or made.train_steps < steps:
        more = f"{counted(seeds, 'seed')} of {counted(steps, 'training step')}"
        said = f"This machine needs about {minutes(wanted.seconds)} for {more}; doing {size} instead."
        lines.append(f"{said} For the whole study: {command}")
    if not study.fits(made, request.budget):
        lines.append(f"There is no smaller study: this one takes longer than {request.budget or study.BUDGET:g} min")
    known = study.parts_of(setting.loop is not None)
    left = [] if parts else [name for name in study.ANSWERS if name in known and name not in made.parts]
    if not depths and made.train_depths != study.DEPTHS:
        left.append(f"training with {study.DEPTHS[-1]} encoder steps")
    if left and request.budget is not None:
        lines.append(f"left out, to fit into {request.budget:g} min: {', '.join(left)}. To have them: {command}")
    return lines, f"For the whole study, about {whole} min: {command}" if left else ""


def minutes(seconds: float) -> str:
    """A time as text: in seconds up to 90, then in minutes."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.{1 if seconds < 600 else 0}f} min"


def _error(rows: Sequence[Row]) -> str:
    """The error of an SAE that was measured, at the fewest and at the most exact steps; nothing for other tasks."""
    found = {row["steps"]: row["nmse"] for row in rows if row["part"] == "depth" and row["rule"] == "exact"}
    if not found:
        return ""
    few, many = min(found), max(found)
    return f", error {found[few]:.3g} after {counted(few, 'step')}, {found[many]:.3g} after {many}"


def check_folder(out: Path | None) -> None:
    """A run of minutes must not fail at its end: `Error` now if no report could be written later."""
    if out is not None:
        check_writable(out)
        figure_class()
