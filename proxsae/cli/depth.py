"""The main job: `depth`, the study of what more encoder steps change, as one report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from proxsae.cli.common import (
    check_path,
    check_sae_there,
    check_there,
    command,
    numbers,
    outliers_argument,
    paragraph,
)
from proxsae.conventions import Error, check_seed
from proxsae.studies.machine import device_named

# Options without sense for --sae.
TRAINS = ("budget", "parts", "encoders", "d_sae", "k", "train_steps", "train_depths", "seeds")
LOOP = ("model", "module", "text", "at", "skip", "model_tokens", "labels")


def add(commands: Any) -> None:
    """Add the command to the parser."""
    depth = command(
        commands,
        "depth",
        _depth,
        "measure what more encoder steps change: a first answer in three minutes, the whole study with --budget 20, or "
        "the curve of your own SAE with --sae; the report is written while it runs, and the same command resumes",
        "proxsae depth --data activations.npy --k 64 --budget 60 --out runs/mine",
    )
    depth.set_defaults(parser=depth)
    depth.add_argument(
        "--data", metavar="PATH", help="rows (n, d): .npy, .npz, .safetensors, .pt or a folder (default: packaged)"
    )
    outliers_argument(depth)
    depth.add_argument("--sae", metavar="PATH", help="measure this SAE on the rows, and train nothing")
    depth.add_argument(
        "--budget",
        type=float,
        metavar="MINUTES",
        help="how long it may take: more buys parts, seeds and training steps (default: 2.5, a first answer)",
    )
    depth.add_argument(
        "--parts",
        metavar="P,Q",
        help="only these of depth, stability, apart, encoders, recovery, signs, bounds, and with --model model "
        "(default: what fits)",
    )
    depth.add_argument(
        "--encoders",
        metavar="E,F",
        help="for the part encoders, alone if no parts are named: of exact, lipschitz, refit, fista, inf, mp, omp, "
        "slista, learned, lista, lista-zero, lista-cp, tilista, alista, accumulated, tuned, distilled (default: all "
        "but alista)",
    )
    depth.add_argument(
        "--model",
        metavar="MODEL",
        help="the language model that the rows come from: what the SAEs, and more steps of them, do to its loss",
    )
    depth.add_argument("--module", metavar="NAME", help="with --model: the module of the rows, such as model.layers.15")
    depth.add_argument("--text", nargs="+", metavar="TEXT", help="with --model: texts to run it on, as of lm eval")
    depth.add_argument("--at", choices=("output", "input"), help="with --model: of the module (default: output)")
    depth.add_argument("--skip", type=int, metavar="N", help="with --model: first tokens left alone (default: 1)")
    depth.add_argument("--model-tokens", type=int, metavar="N", help="with --model: tokens to run (default: 2000)")
    depth.add_argument(
        "--labels", metavar="DATA", help="with --model: labelled texts of two classes, as of lm probe, to probe SAEs on"
    )
    depth.add_argument("--d-sae", type=int, metavar="P", help="number of latents (default: 3 d_in)")
    depth.add_argument(
        "--k",
        type=int,
        help="non-zeros per row that every SAE is asked for (default: 32, or d_sae / 4 if that is less)",
    )
    depth.add_argument("--train-steps", type=int, metavar="N", help="training steps per SAE (default: what fits)")
    depth.add_argument(
        "--train-depths",
        metavar="T,U",
        help="numbers of encoder steps in training (default: 1,4, or 1 where both do not fit)",
    )
    depth.add_argument("--seeds", type=int, metavar="N", help="how many seeds (default: what fits, 3 if possible)")
    depth.add_argument("--seed", type=int, default=0, help="the first seed, of weights and batches (default: 0)")
    depth.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    depth.add_argument(
        "--out", default="proxsae-depth", metavar="DIR", help="folder for the report (default: proxsae-depth)"
    )


def _depth(arguments: argparse.Namespace) -> int:
    from proxsae.studies.progress import Progress

    texts = arguments.text or ()
    for name in ("data", "sae", "out", "model", "labels"):
        check_path(f"--{name}", getattr(arguments, name))
    for path in (arguments.data, arguments.model, arguments.labels, *texts):
        check_there(path)
    check_sae_there(arguments.sae)
    check_seed(arguments.seed)
    depths = tuple(sorted(set(numbers("--train-depths", arguments.train_depths))))
    if arguments.sae is not None:
        for name in TRAINS:
            if getattr(arguments, name) is not None:
                msg = f"--{name.replace('_', '-')} cannot go with --sae: nothing is trained, all that fits is measured"
                raise Error(msg)
        if any(getattr(arguments, name) is not None for name in LOOP):
            msg = "--model is for a study that trains: for one SAE use proxsae lm eval MODEL SAE TEXT --module NAME"
            raise Error(msg)
    with Progress() as progress:
        progress.doing("loading torch")
        device, written = device_named(arguments.device), "proxsae " + " ".join(sys.argv[1:])

        from proxsae.sae import load
        from proxsae.studies.carry_out import carry_out
        from proxsae.studies.depth_study import of_one
        from proxsae.studies.parts.depth.measure import STEPS
        from proxsae.studies.request import Request

        out = Path(arguments.out)
        if arguments.sae is not None:
            sae = load(arguments.sae).to(device)
            found = of_one(sae, arguments.data, STEPS, out, progress, written, arguments.outliers)
        else:
            parts = tuple(arguments.parts.split(",")) if arguments.parts is not None else ()
            encoders = tuple(arguments.encoders.split(",")) if arguments.encoders is not None else ()
            request = Request(
                arguments.data, arguments.budget, parts, arguments.d_sae, arguments.k, arguments.train_steps, depths,
                arguments.seeds, arguments.seed, device, arguments.outliers, arguments.model, arguments.module, texts,
                arguments.at, arguments.skip, arguments.model_tokens, arguments.labels, encoders,
            )  # fmt: skip
            found = carry_out(request, out, progress, written)
    # The report begins with the answer, a terminal ends with it.
    for section in reversed([section for section in found.sections() if section.anchor != "words"]):
        print(f"{section.title}\n")
        print(*(paragraph("  ", finding) for finding in section.findings), sep="\n", end="\n\n")
    print(*(paragraph("  ", note) + "\n\n" for note in found.notes), sep="", end="")
    print(f"written to {out}: report.html, summary.md, rows.csv, rows.json, figures, tables ({progress.seconds:.0f} s)")
    more = [
        found.hint,
        "" if arguments.data else "Your own rows: proxsae depth --data my.npy --out my-study",
        "" if arguments.sae else "Your own SAE: proxsae depth --sae my-sae --data my.npy --out my-sae-study",
    ]
    print(*filter(None, more), sep="\n")
    return 0
