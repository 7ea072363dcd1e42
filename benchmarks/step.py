"""What does each further step of the encoder cost?  Ratios to the product x W_enc: (T steps - 1 step) / (T - 1).

python benchmarks/step.py --rows 1024 --d-in 768 --d-sae 16384 --k 32 --steps 4 --threads 2
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from peers import compiled, dense_encode, dense_step
from timing import begin, parser, ratios, rows, show

import proxsae as px
from proxsae.pytorch import ksparse_encoder


def main() -> None:
    """Time T steps by each rule, and by each kind of product, against the dense iteration."""
    given = parser(__doc__, rows=1024, d_in=768, d_sae=16384, k=32, steps=4).parse_args()
    begin(given)
    x = rows("Gaussian", given.rows, given.d_in, given)
    sae = px.SAE(given.d_in, given.d_sae, px.KSparse(given.k)).to(x).requires_grad_(False)
    W, b, D, T = sae.W_enc, sae.b_enc, sae.W_dec, given.steps
    L = px.lipschitz(D)
    chosen = replace(sae.plan(len(x)), product="gram")
    gram = ksparse_encoder.gram_blocks(D, chosen.columns)

    def dense(steps: int, further: Callable[..., torch.Tensor] = dense_step) -> torch.Tensor:
        indices, values = dense_encode(x, W, b, given.k)
        z = torch.zeros(len(x), given.d_sae, dtype=x.dtype, device=x.device).scatter_(-1, indices, values)
        for _ in range(steps - 1):
            z = further(x, z, D, 1 / L, given.k)
        return z

    def by_gram_rows() -> None:
        """The walk of the encoder, with the Gram matrix that a million rows would share."""
        how = ksparse_encoder.Steps(sae.penalty, T, px.Lipschitz(), L, chosen, decode=False, keep=False)
        area = x.new_empty(chosen.rows * chosen.columns)
        for piece in (x - sae.b_dec).split(chosen.rows):
            for _ in ksparse_encoder._walk(piece, W, b, D, how, area, gram):
                pass

    codes = sae.encode(x)
    quick = compiled(lambda: dense_step(x, codes, D, 1 / L, given.k))
    calls = {
        "product x W_enc": lambda: x @ W,
        "1 step": lambda: sae.encode_sparse(x),
        "residuals, Lipschitz": lambda: sae.unrolled(T).encode_sparse(x),
        "Gram rows, Lipschitz (Gram matrix given)": by_gram_rows,
        "residuals, ExactStep": lambda: sae.unrolled(T, px.ExactStep()).encode_sparse(x),
        "residuals, Backtracking": lambda: sae.unrolled(T, px.Backtracking()).encode_sparse(x),
        "dense torch, 1 step": lambda: dense(1),
        "dense torch": lambda: dense(T),
        "one dense step, torch.compile": quick,
    }
    with torch.no_grad():
        found = ratios(calls, given)
    first, dense_first = found.pop("1 step"), found.pop("dense torch, 1 step")
    for name in found:
        if name.startswith(("residuals", "Gram")):
            found[name] = further(found[name], first, T)
    found["dense torch"] = further(found["dense torch"], dense_first, T)
    show(f"a further step (first step {first[0]:.2f}, dense {dense_first[0]:.2f})", found)


def further(whole: np.ndarray, first: np.ndarray, steps: int) -> np.ndarray:
    """(T steps - median of one step) / (T - 1)."""
    return (whole - first[0]) / (steps - 1)


if __name__ == "__main__":
    main()
