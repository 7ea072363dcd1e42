"""What do rows cost that come in batches: encoded by a frozen SAE, and evaluated?

python benchmarks/stream.py --rows 1024 --d-in 2304 --d-sae 16384 --k 32 --threads 2   # further steps
python benchmarks/stream.py --rows 2048 --d-in 768 --d-sae 65536 --part evaluate       # evaluate over encode
"""

from __future__ import annotations

import argparse
import functools

import numpy as np
import torch
from step import further
from timing import begin, parser, ratios, rows, show

import proxsae as px
from proxsae.sae.evaluation import evaluate_depths


def main() -> None:
    """Time one part."""
    made = parser(__doc__, rows=1024, d_in=2304, d_sae=16384, k=32)
    made.add_argument("--part", choices=("steps", "evaluate"), default="steps")
    given = made.parse_args()
    begin(given)
    with torch.no_grad():
        {"steps": frozen_steps, "evaluate": evaluation}[given.part](given)


def frozen_steps(given: argparse.Namespace) -> None:
    """A further step of a frozen SAE over the product x W_enc, its Gram matrix made for a stream of 10^6 rows."""
    x = rows("Gaussian", given.rows, given.d_in, given)
    sae = px.SAE(given.d_in, given.d_sae, px.KSparse(given.k)).to(x)
    plain = {T: sae.unrolled(T) for T in (5, 16)}
    frozen = {T: deep.frozen(rows=10**6) for T, deep in plain.items()}
    calls = {"product x W_enc": lambda: x @ sae.W_enc, "1 step": lambda: sae.encode_sparse(x)}
    for T in (5, 16):
        calls[f"T = {T}, frozen"] = functools.partial(frozen[T].encode_sparse, x)
        calls[f"T = {T}, called plainly"] = functools.partial(plain[T].encode_sparse, x)
    calls["D^T D, once"] = lambda: [sae.W_dec @ part.T for part in sae.W_dec.split(2048)]
    found = ratios(calls, given)
    first = found.pop("1 step")
    for name, ratio in found.items():
        if name.startswith("T = "):
            found[name] = further(ratio, first, int(name[4:].split(",")[0]))
    show(f"a further step (first step {first[0]:.2f}); D^T D, in products of {given.rows} rows", found)
    print(*frozen[16].plan(given.rows).reasons, sep="\n")


def evaluation(given: argparse.Namespace) -> None:
    """The throughput of `evaluate` and of `proxsae eval` over that of `encode_sparse` of the same rows."""
    x = rows("Gaussian", given.rows, given.d_in, given)
    sae = px.SAE(given.d_in, given.d_sae, px.KSparse(given.k)).to(x)
    deep = sae.unrolled(4, px.ExactStep())
    pairs = {
        "evaluate": (sae, lambda: px.evaluate(sae, x)),
        "eval, 1, 2 and 4 steps": (deep, lambda: evaluate_depths(sae, x, (1, 2, 4))),
    }
    table = {}
    for name, (encoder, call) in pairs.items():
        median, low, high = ratios({"encode": functools.partial(encoder.encode_sparse, x), name: call}, given)[name]
        table[name] = 1 / np.array([median, high, low])
    show("throughput over that of encode_sparse, with the same steps", table)


if __name__ == "__main__":
    main()
