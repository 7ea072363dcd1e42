"""What does an exact k-sparse code cost beside the product x W_enc alone?  Ratios to that product.

python benchmarks/encode.py --rows 1024 --d-in 768 --d-sae 16384 --k 32 --threads 2
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from peers import compiled, dense_encode, installed_encoders
from timing import begin, parser, ratios, rows, show
from torch import Tensor

from proxsae import SAE, KSparse


def main() -> None:
    """Time every encoder on Gaussian and heavy-tailed rows."""
    given = parser(__doc__, rows=1024, d_in=768, d_sae=16384, k=32).parse_args()
    begin(given)
    for kind in ("Gaussian", "heavy-tailed"):
        x = rows(kind, given.rows, given.d_in, given)
        signed, positive = (SAE(given.d_in, given.d_sae, KSparse(given.k, nonneg)).to(x) for nonneg in (False, True))
        W, b = signed.W_enc.detach(), signed.b_enc.detach()
        dense = partial(dense_encode, x, W, b, given.k)
        calls: dict[str, Callable[[], object]] = {
            "product x W_enc": lambda x=x, W=W: x @ W,
            "proxsae AbsTopK": lambda x=x, sae=signed: sae.encode_sparse(x),
            "proxsae TopK": lambda x=x, sae=positive: sae.encode_sparse(x),
            "torch: linear, abs, topk, gather": dense,
            "torch: the same, dense codes": lambda dense=dense, P=given.d_sae: scatter(*dense(), P),
            "torch.compile of linear, abs, topk, gather": compiled(dense),
            **installed_encoders(x, given.d_sae, given.k),
        }
        with torch.no_grad():
            show(f"{kind} rows", ratios(calls, given))


def scatter(indices: Tensor, values: Tensor, d_sae: int) -> Tensor:
    """Dense codes, as most SAE libraries return them."""
    return values.new_zeros(len(values), d_sae).scatter_(-1, indices, values)


if __name__ == "__main__":
    main()
