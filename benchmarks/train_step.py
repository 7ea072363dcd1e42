"""What does a training step cost: forward, backward, all four gradients?  Ratios to the product x W_enc alone.

python benchmarks/train_step.py --rows 1024 --d-in 768 --d-sae 16384 --k 32 --steps 1 --threads 2
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peers import bag_loss, dense_loss
from timing import begin, parser, ratios, rows, show
from torch import Tensor

import proxsae as px


def main() -> None:
    """Time one step of each peer, from the same weights."""
    given = parser(__doc__, rows=1024, d_in=768, d_sae=16384, k=32, steps=1).parse_args()
    begin(given)
    for kind in ("Gaussian", "heavy-tailed"):
        x = rows(kind, given.rows, given.d_in, given)
        sae = px.SAE(given.d_in, given.d_sae, px.KSparse(given.k), given.steps).to(x)
        weights = (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)

        def step(loss: Callable[[], Tensor], sae: px.SAE = sae) -> Callable[[], None]:
            def run() -> None:
                sae.zero_grad()
                loss().backward()
                assert all(p.grad is not None for p in sae.parameters())

            return run

        calls = {
            "product x W_enc": lambda x=x, W=sae.W_enc.detach(): x @ W,
            "proxsae": step(lambda x=x, sae=sae: 0.5 * (sae(x) - x).square().sum(dim=1).mean()),
        }
        if given.steps == 1:
            calls |= {
                "torch: dense": step(lambda x=x, weights=weights: dense_loss(x, weights, given.k)),
                "torch: dense, compiled": step(
                    lambda x=x, weights=weights, loss=torch.compile(dense_loss): loss(x, weights, given.k)
                ),
                "torch: embedding_bag decoder": step(lambda x=x, weights=weights: bag_loss(x, weights, given.k)),
            }
        show(f"{kind} rows, {given.steps} encoder steps", ratios(calls, given))


if __name__ == "__main__":
    main()
