"""The main job: `depth`, the study of what more encoder steps change, as one report."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from proxsae import __version__
from proxsae.cli.common import Progress, check_path, command, device_named, machine, numbers, paragraph, versions
from proxsae.conventions import Error, check_count, check_finite, check_seed
from proxsae.disk import check_writable, held


def add(commands: Any) -> None:
    """Add the command to the parser."""
    depth = command(
        commands,
        "depth",
        _depth,
        "what more encoder steps change: six SAEs, one step and more in training and after, against certificates, on "
        "planted data and on contrast pairs; one report, of as much as fits into the budget; interrupted, the same "
        "command goes on",
        "proxsae depth --data activations.npy --k 64 --budget 60 --out runs/mine",
    )
    depth.set_defaults(parser=depth)
    depth.add_argument(
        "--data", metavar="PATH", help="rows (n, d): .npy, .npz, .safetensors or a folder (default: packaged)"
    )
    depth.add_argument(
        "--budget",
        type=float,
        metavar="MINUTES",
        help="how long it may take; more is spent on seeds and training steps (default: 20, or what the least takes)",
    )
    depth.add_argument(
        "--parts", metavar="P,Q", help="only these of depth, stability, apart, recovery, signs, bounds (default: all)"
    )
    depth.add_argument("--d-sae", type=int, metavar="P", help="number of latents (default: 3 d_in)")
    depth.add_argument("--k", type=int, default=32, help="non-zeros per row that every SAE is asked for (default: 32)")
    depth.add_argument("--train-steps", type=int, metavar="N", help="training steps per SAE (default: what fits)")
    depth.add_argument(
        "--train-depths", default="1,4", metavar="T,U", help="numbers of encoder steps in training (default: 1,4)"
    )
    depth.add_argument("--seeds", type=int, metavar="N", help="how many seeds (default: what fits, at least 3)")
    depth.add_argument("--seed", type=int, default=0, help="the first seed, of weights and batches (default: 0)")
    depth.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    depth.add_argument(
        "--out", default="proxsae-depth", metavar="DIR", help="folder for the report (default: proxsae-depth)"
    )


def _depth(arguments: argparse.Namespace) -> int:
    # A run of minutes must not fail at its end: what the report needs is looked at before.
    from proxsae.report import figure_class

    check_path("--data", arguments.data)
    check_path("--out", arguments.out)
    check_writable(arguments.out)
    figure_class()
    for name in ("k", "train_steps", "seeds"):
        if (value := getattr(arguments, name)) is not None:
            check_count(f"--{name.replace('_', '-')}", value, 1)
    check_seed(arguments.seed)
    if arguments.budget is not None and not 0 < arguments.budget < math.inf:
        msg = f"--budget {arguments.budget:g} must be a number of minutes > 0"
        raise Error(msg)
    depths = tuple(sorted(set(numbers("--train-depths", arguments.train_depths))))
    train_rows, test_rows, data_name = _activations(arguments.data)
    d_sae = 3 * train_rows.shape[1] if arguments.d_sae is None else arguments.d_sae
    if arguments.k > check_count("--d-sae", d_sae, 1):
        msg = f"--k={arguments.k} must be between 1 and d_sae={d_sae}"
        raise Error(msg)
    device = device_named(arguments.device)

    import torch

    from proxsae.studies import study
    from proxsae.studies.task import Setting

    x, test = (torch.tensor(np.asarray(a), dtype=torch.float32, device=device) for a in (train_rows, test_rows))
    check_finite("the training rows, in float32,", x)
    check_finite("the held-out rows, in float32,", test)
    parts = study.parts_with_needs(tuple(arguments.parts.split(",")) if arguments.parts is not None else ())
    setting = Setting(x, test, d_sae, arguments.k, (), 1, depths, Path(arguments.out), arguments.data is None, 0.0)
    about = {
        "data": data_name,
        "d_in": x.shape[1],
        "d_sae": d_sae,
        "k": arguments.k,
        "encoder steps in training": ", ".join(map(str, depths)),
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "versions": versions(),
        "command": "proxsae " + " ".join(sys.argv[1:]),
    }
    return _study(arguments, setting, parts, about)


def _study(arguments: argparse.Namespace, setting: Any, parts: tuple[str, ...], about: dict[str, Any]) -> int:
    """Plan or go on with a study, do what is left of it, and write the report."""
    from proxsae.report import write_report
    from proxsae.studies import study
    from proxsae.studies.journal import FILE, Journal, check_same, planned
    from proxsae.studies.sections import TITLE, sections

    def told(line: str) -> None:
        print(f"[{time.perf_counter() - started:6.1f} s] {line}", file=sys.stderr, flush=True)

    started, out = time.perf_counter(), setting.folder
    asked = {
        "the data": study.fingerprint(setting.train, setting.test), "--d-sae": setting.d_sae, "--k": setting.k,
        "--train-depths": list(setting.train_depths), "--parts": list(parts), "--seed": arguments.seed,
        "--budget": arguments.budget, "--seeds": arguments.seeds, "--train-steps": arguments.train_steps,
        "--device": about["device"], "the version": __version__,
    }  # fmt: skip
    there = planned(out)
    if there:
        check_same(out / FILE, there, asked)
        plan = there["plan"]
    else:
        setting = replace(setting, seconds=study.seconds_a_step(setting.train, setting.d_sae, setting.k))
        made = study.plan(setting, parts, arguments.budget, arguments.seeds, arguments.train_steps)
        plan = vars(made) | {"a training step": setting.seconds}
    seeds = tuple(range(arguments.seed, arguments.seed + plan["seeds"]))
    check_seed(seeds[-1])
    rows = f"{len(setting.train)} to train, {len(setting.test)} held out, of which {plan['rows']} are measured"
    setting = replace(
        setting,
        seeds=seeds,
        train_steps=plan["train_steps"],
        test=setting.test[: plan["rows"]],
        seconds=plan["a training step"],
    )
    tasks = study.all_tasks(setting, parts)
    with held(out), Progress("s of work") as bar:
        journal = Journal(out, asked | {"plan": plan})
        told(
            f"{len(seeds)} seeds, {setting.train_steps} training steps, {plan['rows']} rows, {len(tasks)} tasks: about "
            f"{plan['seconds'] / 60:.1f} of {arguments.budget or study.BUDGET:g} minutes; "
            f"{sum(task.name not in journal.done for task in tasks)} tasks are left"
        )
        spent = 0.0

        def begun(task: Any, number: int) -> None:
            if not sys.stderr.isatty():
                told(f"{number} of {len(tasks)}: {task.name}")

        def ended(task: Any) -> None:
            nonlocal spent
            spent += task.seconds
            bar(round(spent), round(plan["seconds"]))

        try:
            measured = study.run(tasks, journal, begun, ended)
        except (Error, KeyboardInterrupt) as stop:
            msg = (
                f"{str(stop) or 'interrupted'}; {out} keeps the {len(journal.done)} tasks of {len(tasks)} that ended, "
            )
            raise type(stop)(msg + "and the same command goes on from there") from None
    planned_minutes = f"{plan['seconds'] / 60:.1f} were planned, of a budget of {arguments.budget or study.BUDGET:g}"
    meta = about | {
        "rows": rows,
        "seeds": f"{seeds[0]} to {seeds[-1]}",
        "training steps": setting.train_steps,
        "minutes": f"{journal.seconds / 60:.1f} of work; {planned_minutes}",
        "to repeat": _repeating(arguments, plan),
    }
    found = sections(measured, meta["to repeat"], setting.packaged)
    # Before printing: nobody who pipes into `head` loses the report.
    files = write_report(found, meta, measured, out, TITLE)
    for section in found:
        print(f"{section.title}\n")
        print(*(paragraph("  ", finding) for finding in section.findings), sep="\n", end="\n\n")
    pages = ", ".join(name for name in files if "/" not in name)
    print(f"written to {out}: {pages}, figures, tables ({time.perf_counter() - started:.0f} s)")
    return 0


def _repeating(arguments: argparse.Namespace, plan: dict[str, Any]) -> str:
    """The command that does the same amount of the same study, however long it takes; `--parts` can be added."""
    given = {
        name: value
        for name in ("data", "k", "d_sae", "train_depths", "seed", "device")
        if (value := getattr(arguments, name)) != arguments.parser.get_default(name)
    }
    fixed = {"seeds": plan["seeds"], "train_steps": plan["train_steps"]}
    options = ([f"--{name.replace('_', '-')}", str(value)] for name, value in {**given, **fixed}.items())
    return shlex.join(["proxsae", "depth", *(word for option in options for word in option)])


def _activations(path: str | None) -> tuple[Any, Any, str]:
    """Train rows, held-out rows (the last fifth of the user's own), and what to call them."""
    from proxsae import data

    if path is None:
        train, test = data.packaged()
        return (
            train,
            test,
            "hidden states after layer 3 of all-MiniLM-L6-v2 on CPython's documentation topics (packaged)",
        )
    rows = data.read(path)
    held_out = len(rows) // 5
    if not held_out:
        msg = f"{path} holds {len(rows)} rows, but a study needs at least 5: the last fifth is held out"
        raise Error(msg)
    # What is measured are the first of the held-out rows: in an order of their own they are a fair sample.
    shuffled = np.random.default_rng(0).permutation(held_out)
    return rows[:-held_out], rows[-held_out:][shuffled], f"{Path(path).name}, the last fifth held out"
