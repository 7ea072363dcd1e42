"""What does the tie rule cost?  `top_k` (lowest index first) against torch.topk alone and against a full stable sort.

Printed are ratios to torch.topk.  Rows of small integers tie at nearly every boundary: the worst case for the
correction.

    python benchmarks/topk.py --rows 1024 --width 16384 --k 32 --threads 2
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from timing import begin, parser, ratios, show
from torch import Tensor

from proxsae.pytorch.topk import top_k

PEERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "torch.topk": lambda u, k: u.abs().topk(k).indices,
    "top_k": top_k,
    "stable sort": lambda u, k: u.abs().sort(dim=-1, descending=True, stable=True).indices[..., :k],
}


def main() -> None:
    """Time every peer on every kind of row."""
    given = parser(__doc__, rows=1024, width=16384, k=32).parse_args()
    begin(given)
    shape = (given.rows, given.width)
    kinds = {
        "Gaussian float32": torch.randn(shape),
        "Gaussian bfloat16": torch.randn(shape).bfloat16(),
        "many ties": torch.randint(-9, 10, shape).float(),
    }
    for kind, rows in kinds.items():
        u = rows.to(given.device)
        show(kind, ratios({name: partial(call, u, given.k) for name, call in PEERS.items()}, given))


if __name__ == "__main__":
    main()
