"""What does a training step cost: forward, backward, all four gradients?  Ratios to the product x W_enc alone.

python benchmarks/train_step.py --rows 1024 --d-in 768 --d-sae 16384 --k 32 --steps 1 --threads 2
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from peers import bag_loss, compiled, dense_loss
from timing import begin, parser, ratios, rows, show
from torch import Tensor

import proxsae as px
from proxsae.training.state import latents_in_rows


def main() -> None:
    """Time one step of each peer, from the same weights."""
    given = parser(__doc__, rows=1024, d_in=768, d_sae=16384, k=32, steps=1).parse_args()
    begin(given)
    for kind in ("Gaussian", "heavy-tailed"):
        x = rows(kind, given.rows, given.d_in, given)
        sae = px.SAE(given.d_in, given.d_sae, px.KSparse(given.k), given.steps).to(x)
        weights = (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
        losses: dict[str, Callable[[], Tensor]] = {"proxsae": partial(ours, sae, x)}
        if given.steps == 1:
            peers = {"dense": dense_loss, "embedding_bag decoder": bag_loss}
            losses |= {f"torch: {name}": partial(loss, x, weights, given.k) for name, loss in peers.items()}
            losses["torch: dense, compiled"] = compiled(losses["torch: dense"])
        with latents_in_rows(sae):  # as px.train holds them
            calls: dict[str, Callable[[], object]] = {"product x W_enc": partial(torch.matmul, x, sae.W_enc.detach())}
            calls |= {name: partial(step, sae, loss) for name, loss in losses.items()}
            show(f"{kind} rows, {given.steps} encoder steps", ratios(calls, given))


def ours(sae: px.SAE, x: Tensor) -> Tensor:
    """The same loss by proxsae."""
    return 0.5 * (sae(x) - x).square().sum(dim=1).mean()


def step(sae: px.SAE, loss: Callable[[], Tensor]) -> None:
    """Forward, backward, and all four gradients."""
    sae.zero_grad()
    loss().backward()
    assert all(p.grad is not None for p in sae.parameters())


if __name__ == "__main__":
    main()
