"""How much memory does a training step take?  Peaks in units of one (B, P) tensor, weights and gradients not counted.

Counted are torch's own allocations, as its profiler reports them: what the forward pass holds at most and leaves, and
what is held at most in the backward pass, that included and the gradients left out.  The memory that proxsae keeps for
gradients is NumPy's on a CPU, which the profiler does not see; here it comes from torch.

    python benchmarks/memory.py --rows 1024 --d-in 768 --d-sae 16384 --k 32 --steps 4
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peers import bag_loss, dense_loss
from timing import begin, parser, rows
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import proxsae as px
from proxsae.pytorch import codes


def memory(call: Callable[[], object], device: str) -> tuple[int, int]:
    """The most bytes that a call held at one time, and the bytes it still holds, beyond what was there before."""
    if device.startswith("cuda"):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most, held


def main() -> None:
    """Measure forward and backward of each peer."""
    given = parser(__doc__, rows=1024, d_in=768, d_sae=16384, k=32, steps=4).parse_args()
    begin(given)
    codes.Pages.take = lambda self, P, d, dtype, device: torch.empty(P, d, dtype=dtype, device=device)
    x = rows("Gaussian", given.rows, given.d_in, given)
    unit = given.rows * given.d_sae * x.element_size()
    sae = px.SAE(given.d_in, given.d_sae, px.KSparse(given.k)).to(x)
    weights = (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    left = sum(p.numel() * p.element_size() for p in sae.parameters())
    losses: dict[str, Callable[[], Tensor]] = {
        f"proxsae, {steps} steps, {type(rule).__name__}": lambda steps=steps, rule=rule: square(
            sae.unrolled(steps, rule)(x) - x
        )
        for steps, rule in ((1, px.Lipschitz()), (given.steps, px.Lipschitz()), (given.steps, px.ExactStep()))
    }
    deep = px.SAE(given.d_in, given.d_sae, px.KSparse(given.k)).to(x)
    losses[f"dense autograd, {given.steps} steps"] = lambda: square(deep_dense(deep, x, given.steps) - x)
    losses["dense autograd, 1 step"] = lambda: dense_loss(x, weights, given.k)
    losses["embedding_bag decoder, 1 step"] = lambda: bag_loss(x, weights, given.k)
    print(
        f"{f'in (B, P) tensors of {unit >> 20} MiB':44} {'forward peak':>12} {'kept for it':>14} {'backward peak':>14}"
    )
    for name, loss in losses.items():
        for model in (sae, deep):
            model.zero_grad()
        loss().backward()  # what is worked out once, such as ||D||^2, and kept
        for model in (sae, deep):
            model.zero_grad()
        kept: list[Tensor] = []
        forward, saved = memory(lambda loss=loss, kept=kept: kept.append(loss()), given.device)
        backward = max(0, memory(kept.pop().backward, given.device)[0] - left)
        print(f"{name:44} {forward / unit:12.2f} {saved / unit:14.3f} {(saved + backward) / unit:14.2f}")


def square(error: Tensor) -> Tensor:
    """The loss."""
    return 0.5 * error.square().sum(dim=1).mean()


def deep_dense(sae: px.SAE, x: Tensor, steps: int) -> Tensor:
    """The reconstruction by dense steps under autograd."""
    deep = sae.unrolled(steps)
    return deep.decode(deep.refine(x, deep.penalty.prox(deep.pre_activations(x))))


if __name__ == "__main__":
    main()
