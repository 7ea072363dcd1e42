"""Commands that measure: `rates` and `bench`."""

from __future__ import annotations

import argparse
import time
from typing import Any

from proxsae.cli.common import check_path, command
from proxsae.conventions import check_count, check_seed
from proxsae.disk import check_writable
from proxsae.studies.machine import device_named, machine


def add(commands: Any) -> None:
    """Add the commands of this file to the parser."""
    rates = command(
        commands,
        "rates",
        _rates,
        "measure ISTA, FISTA and IHT on random and adversarial problems, beside their proved rates: table and picture",
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
        "explain how a k-sparse encoder would run on this machine, and time it: ratios to the product x W_enc",
        "proxsae bench --d-in 2304 --d-sae 65536 --k 64 --rows 1000000 --steps 16 --explain",
    )
    sizes = (("d-in", 768), ("d-sae", 16384), ("k", 32), ("rows", 1024), ("steps", 4))
    for name, default in sizes:
        bench.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"(default: {default})")
    bench.add_argument("--explain", action="store_true", help="print the choices and their reasons, and time nothing")
    bench.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    bench.add_argument("--seed", type=int, default=0, help="seed of rows and weights (default: 0)")


def _rates(arguments: argparse.Namespace) -> int:
    from proxsae.report import figure_class
    from proxsae.studies.rates.figure import rates_table, write_rates
    from proxsae.studies.rates.measure import holds, rates

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

    from proxsae.pytorch.cost_model import kind_of, plan
    from proxsae.pytorch.ksparse_encoder import free_bytes
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
