"""Commands that measure: `depth`, `rates` and `bench`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from proxsae.cli.common import check_path, command, device_named, machine, versions
from proxsae.conventions import Error, check_count, check_seed


def add(commands: Any) -> None:
    """Add the commands of this file to the parser."""
    depth = command(
        commands,
        "depth",
        _depth,
        "what 1, 2, 4, 8 and 16 encoder steps change: train four SAEs, unroll each, measure on held-out rows",
        "proxsae depth --data activations.npy --k 64 --out runs/mine",
    )
    depth.add_argument(
        "--data", metavar="PATH", help="rows (n, d): .npy, .npz, .safetensors or a folder (default: packaged)"
    )
    depth.add_argument("--d-sae", type=int, metavar="P", help="number of latents (default: 3 d_in)")
    depth.add_argument("--k", type=int, default=32, help="non-zeros per row that every SAE is asked for (default: 32)")
    depth.add_argument(
        "--train-steps", type=int, default=300, metavar="N", help="training steps per SAE (default: 300)"
    )
    depth.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default: 0)")
    depth.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    depth.add_argument(
        "--out", default="proxsae-depth", metavar="DIR", help="folder for the report (default: proxsae-depth)"
    )

    rates = command(
        commands,
        "rates",
        _rates,
        "hold ISTA, FISTA and IHT against their proved rates, on random and on adversarial problems: table and picture",
        "proxsae rates --seed 1 --out runs/rates",
    )
    rates.add_argument("--seed", type=int, default=0, help="seed of the random problems (default: 0)")
    rates.add_argument(
        "--out", default="proxsae-rates", metavar="DIR", help="folder for table and picture (default: proxsae-rates)"
    )

    bench = command(
        commands,
        "bench",
        _bench,
        "say how a k-sparse encoder would be run here and why, and time it: ratios to the product x W_enc",
        "proxsae bench --d-in 2304 --d-sae 65536 --k 64 --rows 1000000 --steps 16 --explain",
    )
    sizes = (("d-in", 768), ("d-sae", 16384), ("k", 32), ("rows", 1024), ("steps", 4))
    for name, default in sizes:
        bench.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"(default: {default})")
    bench.add_argument("--explain", action="store_true", help="print the choices and their reasons, and time nothing")
    bench.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    bench.add_argument("--seed", type=int, default=0, help="seed of rows and weights (default: 0)")


def _depth(arguments: argparse.Namespace) -> int:
    # A run of minutes must not fail at its end: what the report needs is looked at before.
    from proxsae.report import check_writable, figure_class, findings, table, write_report

    check_path("--data", arguments.data)
    check_path("--out", arguments.out)
    check_writable(arguments.out)
    figure_class()
    for name, least in (("k", 1), ("train_steps", 1)):
        check_count(f"--{name.replace('_', '-')}", getattr(arguments, name), least)
    train_rows, test_rows, data_name = _activations(arguments.data)
    d_sae = 3 * train_rows.shape[1] if arguments.d_sae is None else arguments.d_sae
    device = device_named(arguments.device)

    import torch

    from proxsae.studies.depth import depth

    started = time.perf_counter()
    on_terminal = sys.stderr.isatty()
    rows = depth(
        train_rows,
        test_rows,
        d_sae=check_count("--d-sae", d_sae, 1),
        k=arguments.k,
        train_steps=arguments.train_steps,
        seed=arguments.seed,
        device=device,
        progress=on_terminal,
        report=lambda line: print(f"[{time.perf_counter() - started:5.1f} s] {line}", file=sys.stderr, flush=True),
    )
    meta = {
        "data": data_name,
        "rows": f"{len(train_rows)} to train, {len(test_rows)} held out",
        "d_in": train_rows.shape[1],
        "d_sae": d_sae,
        "k": arguments.k,
        "training steps": arguments.train_steps,
        "left out": "refit steps for relu, whose codes are dense after its first dictionary step",
        "seed": arguments.seed,
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "versions": versions(),
        "seconds": round(time.perf_counter() - started, 1),
        "command": "proxsae " + " ".join(sys.argv[1:]),
    }
    write_report(rows, meta, arguments.out)  # before printing: nobody who pipes the table into `head` loses the run
    print(table(rows))
    print()
    print("\n".join(findings(rows)))
    print(f"\nwritten to {arguments.out}: report.html, rows.csv, rows.json, depth.png, depth.svg ({meta['seconds']} s)")
    return 0


def _rates(arguments: argparse.Namespace) -> int:
    from proxsae.report import check_writable, figure_class, rates_table, write_rates
    from proxsae.studies.rates import holds, rates

    check_path("--out", arguments.out)
    check_writable(arguments.out)
    figure_class()
    started = time.perf_counter()
    rows = rates(arguments.seed)
    files = write_rates(rows, arguments.out)
    broken = sum(not holds(row) for row in rows)
    print(rates_table(rows))
    print(f"\n{len(rows)} measurements, {broken} broken")
    print(f"written to {arguments.out}: {', '.join(files)} ({time.perf_counter() - started:.1f} s)")
    return 1 if broken else 0


def _bench(arguments: argparse.Namespace) -> int:
    for name in ("d_in", "d_sae", "k", "rows", "steps"):
        check_count(f"--{name.replace('_', '-')}", getattr(arguments, name), 1)
    check_seed(arguments.seed)
    device = device_named(arguments.device)

    import torch

    from proxsae.encoder import free_bytes
    from proxsae.kernels.dispatch import kind_of, plan
    from proxsae.studies.cost import cost

    d_in, d_sae, k, rows, steps = (getattr(arguments, name) for name in ("d_in", "d_sae", "k", "rows", "steps"))
    kind = kind_of(torch.device(device).type, 4)
    chosen = plan(rows, d_in, d_sae, min(k, d_sae), steps, kind=kind, free_bytes=free_bytes(torch.device(device)))
    print(f"{rows} rows of {d_in}, {d_sae} latents, k = {k}, {steps} steps, float32, weights frozen")
    print(*(f"  {reason}" for reason in chosen.reasons), sep="\n")
    if arguments.explain:
        return 0
    print(f"\ntimes over that of the product x W_enc, {torch.get_num_threads()} threads, {machine()}")
    print(f"{'':50} {'median':>7} {'quartiles':>14} {'model':>7}")
    for row in cost(d_in, d_sae, k, rows, steps, device, seed=arguments.seed):
        spread = f"{row.low:.2f} to {row.high:.2f}"
        print(f"{row.name:50} {row.median:7.2f} {spread:>14} {row.model:7.2f}")
    return 0


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
    return rows[:-held_out], rows[-held_out:], f"{Path(path).name}, the last fifth held out"
