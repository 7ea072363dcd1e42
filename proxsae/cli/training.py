"""`proxsae train`: from rows on disk to an SAE on disk, in runs that can be killed, on one process or on many."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from proxsae.cli.common import check_path, command, numbers, outliers_argument, steps_of_encoder
from proxsae.cli.saes import RULES, of_axes, treated
from proxsae.conventions import Error, check_count, check_seed
from proxsae.disk import disk_errors, replace_file
from proxsae.learned import NAMED, Greedy
from proxsae.penalties.published import PUBLISHED
from proxsae.studies.machine import device_named, machine, versions

K = 32


def add(commands: Any) -> None:
    """Add the command of this file to the parser."""
    train = command(
        commands,
        "train",
        _train,
        "train an SAE on rows that need not fit in memory; the same command continues a run that was stopped or killed",
        "proxsae train activations/ --out runs/mine --kind abstopk --d-sae 16384 --k 32 --steps 20000",
    )
    train.add_argument("data", metavar="DATA", help="rows (n, d_in): .npy, .npz, .safetensors, .pt or a folder")
    outliers_argument(train)
    train.add_argument(
        "--out", required=True, metavar="DIR", help="folder for sae/, metrics.csv, metrics.json and the checkpoint"
    )
    what = train.add_argument_group("what is trained")
    what.add_argument(
        "--kind",
        choices=tuple(PUBLISHED),
        help="which SAE; soft and jumprelu2 are the signed forms of relu and jumprelu (default: abstopk)",
    )
    what.add_argument("--d-sae", type=int, metavar="P", help="number of latents (default: 4 d_in)")
    what.add_argument(
        "--k", type=int, help="non-zeros a row, at which relu and jumprelu aim (default: 32, or d_in / 2 if less)"
    )
    what.add_argument("--init", metavar="SAE", help="start from this SAE, of any format; its atoms must have norm 1")
    what.add_argument("--encoder-steps", metavar="T", help="train through T steps, or inf: solved codes (default: 1)")
    what.add_argument(
        "--encoder-rule",
        choices=("lipschitz", "exact", *NAMED),
        help="rule of steps 2 to T: lipschitz, exact; steps that are trained, from learned (their sizes) to alista; or "
        "pursuit, mp and omp, of T atoms (default: lipschitz)",
    )
    what.add_argument(
        "--normalize",
        choices=("none", "layer_norm", "constant_norm"),
        help="normalisation of each row (default: none)",
    )
    how = train.add_argument_group("how")
    how.add_argument("--steps", type=int, default=10_000, metavar="N", help="training steps (default: 10000)")
    how.add_argument("--batch-size", type=int, default=4096, metavar="B", help="rows a step (default: 4096)")
    how.add_argument("--lr", type=float, help="Adam's rate (default: 2e-3 sqrt(1024 / P))")
    how.add_argument("--widths", metavar="N,N", help="Matryoshka: also reconstruct from the first N latents")
    how.add_argument("--ks", metavar="K,K", help="Matryoshka: also reconstruct from the largest K of the k codes")
    how.add_argument("--unit-encoder", action="store_true", help="keep the encoder's rows at norm 1")
    how.add_argument("--bfloat16", action="store_true", help="codes and gradients from rounded copies of the weights")
    how.add_argument("--seed", type=int, default=0, help="seed of weights and order (default: 0)")
    how.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    how.add_argument("--every", type=int, default=200, metavar="N", help="steps between checkpoints (default: 200)")
    how.add_argument(
        "--shards", type=int, default=1, metavar="S", help="under torchrun: split the dictionary over S processes"
    )


def _train(arguments: argparse.Namespace) -> int:
    for name in ("data", "out", "init"):
        check_path(name.upper() if name == "data" else f"--{name}", getattr(arguments, name))
    for name in ("k", "d_sae", "steps", "batch_size", "every", "shards"):
        if getattr(arguments, name) is not None:
            check_count(f"--{name.replace('_', '-')}", getattr(arguments, name), 1)
    for name in ("kind", "k", "d_sae", "normalize"):
        if arguments.init is not None and getattr(arguments, name) is not None:
            msg = f"--{name.replace('_', '-')} cannot go with --init: the SAE there is taken as it is"
            raise Error(msg)
    through = steps_of_encoder("--encoder-steps", arguments.encoder_steps) or (0,)
    if len(through) > 1:
        msg = f"--encoder-steps {arguments.encoder_steps} must be one number, or inf"
        raise Error(msg)
    greedy = isinstance(NAMED.get(arguments.encoder_rule), Greedy)
    if arguments.encoder_rule is not None and through[0] < 2 and not greedy:
        msg = f"--encoder-rule {arguments.encoder_rule} needs --encoder-steps of 2 or more: the first is the encoder"
        raise Error(msg)
    check_seed(arguments.seed)
    widths, ks = (tuple(numbers(f"--{name}", getattr(arguments, name))) for name in ("widths", "ks"))
    out = Path(arguments.out)
    if out.exists() and not out.is_dir():
        msg = f"--out {out} is a file, but must be a folder"
        raise Error(msg)

    from proxsae.formats.own import CONFIG

    if (out / "sae").is_dir() and any((out / "sae").iterdir()) and not (out / "sae" / CONFIG).exists():
        msg = f"{out / 'sae'} holds other files, but the trained SAE is to be written there: use another folder"
        raise Error(msg)
    local_rank = os.environ.get("LOCAL_RANK")
    device = device_named(f"cuda:{local_rank}" if arguments.device == "cuda" and local_rank else arguments.device)

    import torch

    from proxsae.data import open_rows
    from proxsae.sae.team import join
    from proxsae.training import train
    from proxsae.training.files import CHECKPOINT

    rows = open_rows(arguments.data, arguments.outliers)
    team = join(arguments.shards, device)
    first = team is None or team.rank == 0
    torch.manual_seed(arguments.seed)
    sae = _start(arguments, rows).to(device)
    target = _sizes(arguments, rows)[1] if hasattr(sae.penalty, "lam") and arguments.init is None else None
    started = time.perf_counter()
    if first:
        print(f"{len(rows)} rows of {rows.shape[1]}{of_axes(rows)}{treated(rows)}; {sae}", file=sys.stderr, flush=True)
    try:
        got = train(
            sae, rows, arguments.steps, arguments.batch_size, arguments.lr, arguments.seed, target, "lines",
            checkpoint=out, every=arguments.every, widths=widths, ks=ks,
            unit_encoder=arguments.unit_encoder, bfloat16=arguments.bfloat16, team=team,
        )  # fmt: skip
    except KeyboardInterrupt as stop:
        if not first:
            return 130
        kept = f"; {out} holds the last checkpoint: the same command continues" if (out / CHECKPOINT).exists() else ""
        raise KeyboardInterrupt(str(stop) or f"interrupted{kept}") from None
    if team is not None:
        torch.distributed.destroy_process_group()
    if not first:
        return 0
    for left in out.glob(".sae-*"):  # of a kill in the midst of this
        shutil.rmtree(left, ignore_errors=True)
    sae.save(out / "sae")
    meta = {
        **got,
        "rows": len(rows),
        "outliers": rows.outliers,
        "device": device,
        "threads": torch.get_num_threads(),
        "processes": 1 if team is None else team.shards * team.replicas,
        "machine": machine(),
        "versions": versions(),
        "command": "proxsae " + " ".join(sys.argv[1:]),
    }
    with disk_errors(out / "metrics.json"):
        replace_file(out / "metrics.json", (json.dumps(meta, indent=2) + "\n").encode())
    print(f"last tenth of {arguments.steps} steps: " + ", ".join(f"{name} {value:.4g}" for name, value in got.items()))
    if hasattr(sae, "batch_threshold"):
        print(
            f"single rows: |u| > {float(sae.batch_threshold):.4g} stands for the selection over a batch (thresholded)"
        )
    print(f"written to {out}: sae/, metrics.csv, metrics.json ({time.perf_counter() - started:.1f} s)")
    return 0


def _start(arguments: argparse.Namespace, rows: Any) -> Any:
    """The SAE before training: of `--init`, or of `--kind` with thresholds of the size of a coordinate's deviation."""
    import numpy as np
    import torch

    from proxsae.data import Shuffle
    from proxsae.penalties import L0, L1
    from proxsae.sae import SAE, load
    from proxsae.training.recipe import mean_and_spread

    rule = (RULES | NAMED).get(arguments.encoder_rule)
    steps = next(iter(steps_of_encoder("--encoder-steps", arguments.encoder_steps)), None)
    if arguments.init is not None:
        sae = load(arguments.init)
        if sae.dtype not in (torch.float32, torch.float64):  # what Adam adds would be lost in half precision
            sae = sae.float()
        R = sae.common.penalty
        if isinstance(R, L0) and sae.metadata.get("format"):  # another library's: no bandwidth goes with its thresholds
            bandwidth = max(float(sae.threshold.median()) / 2, 1e-6)
            sae.common.penalty = L0(R.lam, nonneg=R.nonneg, bandwidth=bandwidth)
        if isinstance(R, L1) and not np.any(np.asarray(R.lam)):
            print("lam is 0 here: only what the encoder has learned keeps codes sparse", file=sys.stderr)
        return sae if steps is None else sae.unrolled(steps, rule)
    d_sae, k = _sizes(arguments, rows)
    sample = rows[Shuffle(len(rows), arguments.seed).positions(0, min(len(rows), 4096))]
    normalize = arguments.normalize or "none"
    scale = 1.0 if normalize != "none" else mean_and_spread(torch.from_numpy(sample))[1]
    penalty = PUBLISHED[arguments.kind or "abstopk"].penalty(k, scale)
    return SAE(
        rows.shape[1], d_sae, penalty, steps or (k if isinstance(rule, Greedy) else 1), rule, normalize=normalize
    )


def _sizes(arguments: argparse.Namespace, rows: Any) -> tuple[int, int]:
    """The number of latents and of non-zeros a row; what is not given fits the width of the rows."""
    d_in = rows.shape[1]
    d_sae = 4 * d_in if arguments.d_sae is None else arguments.d_sae
    k = max(1, min(K, d_in // 2, d_sae)) if arguments.k is None else arguments.k
    if k > d_sae:
        msg = f"--k {k} must not exceed --d-sae {d_sae}"
        raise Error(msg)
    return d_sae, k
