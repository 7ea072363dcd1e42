"""One SAE on many processes: the batch split over replicas, the dictionary over shards, codes as on one process.

A world of shards x replicas ranks, started by torchrun.  Neighbours in rank see the same rows and hold consecutive
latents each; ranks of one place among their neighbours hold the same latents and see other rows.

    top-k    each shard sends the magnitudes of its k candidates, 4 k bytes a row; the k largest of all, lowest latent
             first among ties, are those of one process (lem-sharded-topk)
    decode   the sum over shards of their parts of D z, 4 d bytes a row
    update   the mean over replicas of each gradient, for this shard's latents only
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from proxsae.conventions import Error
from proxsae.pytorch.ksparse_encoder import check_first
from proxsae.pytorch.topk import largest

TIMEOUT = timedelta(minutes=10)  # after which a rank that does not answer counts as gone
LOST = re.compile("gloo|nccl|connection|timed out|broken pipe|peer", re.IGNORECASE)


def join(shards: int, device: str) -> Team | None:
    """The team that torchrun has started this process in, or None where there is one process.

    Raises `Error` for a number of shards that does not divide the number of processes.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if shards < 1 or world % shards:
        msg = f"shards={shards} must divide the number of processes, {world}: torchrun --nproc-per-node N starts N"
        raise Error(msg)
    if world == 1:
        return None
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        _reach(dist.init_process_group, "nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
    return team(shards, world, rank)


def team(shards: int, world: int, rank: int) -> Team:
    """The team of an initialised process group."""
    replicas = world // shards
    shard_groups = [dist.new_group([r * shards + s for s in range(shards)]) for r in range(replicas)]
    replica_groups = [dist.new_group([r * shards + s for r in range(replicas)]) for s in range(shards)]
    return Team(shards, replicas, rank, shard_groups[rank // shards], replica_groups[rank % shards])


@dataclass(frozen=True)
class Team:
    """One process among those that hold an SAE together."""

    shards: int
    replicas: int
    rank: int
    shard_group: Any
    replica_group: Any

    @property
    def shard(self) -> int:
        """Which latents are here: those of `part`."""
        return self.rank % self.shards

    @property
    def replica(self) -> int:
        """Which rows of a batch are here."""
        return self.rank // self.shards

    def keep(self, values: Tensor, k: int) -> Tensor:
        """Candidates (n, s) of this shard, latents ascending, with 0 where they are not among the k largest of all.

        All shards send the same number of candidates (lem-sharded-topk).
        """
        sizes = self._gather(values.detach().abs().contiguous())
        return torch.where(among_all(sizes, k)[self.shard], values, 0)

    def total(self, a: Tensor) -> Tensor:
        """The sum of `a` over shards; its gradient is that of each part, since all shards work out the same loss."""
        return _Total.apply(a, self) if self.shards > 1 else a

    def over_replicas(self, a: Tensor) -> Tensor:
        """The sum of `a` over replicas, in its place."""
        if self.replicas > 1:
            _reach(dist.all_reduce, a, group=self.replica_group)
        return a

    def everywhere(self, a: Tensor) -> Tensor:
        """The sum of `a` over all ranks, in its place."""
        _reach(dist.all_reduce, a)
        return a

    def part(self, a: Tensor, dim: int) -> Tensor:
        """The part of `a` along `dim` that this shard holds."""
        return a.chunk(self.shards, dim=dim)[self.shard]

    def whole(self, a: Tensor, dim: int) -> Tensor:
        """The tensor whose parts along `dim` the shards hold, on every shard."""
        return torch.cat(self._gather(a.detach().contiguous()), dim=dim)

    def on_first(self, a: Tensor, dim: int) -> Tensor | None:
        """The same in the CPU memory of the first rank, and None on the others; the first replica sends its parts."""
        if self.replica:
            return None
        if self.shards == 1:
            return a.detach().cpu()
        own = a.detach().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.shards)] if self.rank == 0 else None
        _reach(dist.gather, own, parts, dst=0, group=self.shard_group)
        return None if parts is None else torch.cat([part.cpu() for part in parts], dim=dim)

    def agrees(self, number: int) -> bool:
        """Whether every rank has the same number in [0, 2^62)."""
        ends = torch.tensor([number, -number], device=self.device)
        _reach(dist.all_reduce, ends, op=dist.ReduceOp.MAX)
        return int(ends[0]) == -int(ends[1])

    @property
    def device(self) -> str:
        """The type of device from which the backend sends tensors."""
        return "cuda" if dist.get_backend() == "nccl" else "cpu"

    def _gather(self, a: Tensor) -> list[Tensor]:
        if self.shards == 1:
            return [a]
        parts = [torch.empty_like(a) for _ in range(self.shards)]
        _reach(dist.all_gather, parts, a, group=self.shard_group)
        return parts


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, team: Team) -> Tensor:
        out = a.detach().clone(memory_format=torch.contiguous_format)
        _reach(dist.all_reduce, out, group=team.shard_group)
        ctx.team = team
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        check_first(ctx.team)
        return grad, None


def among_all(sizes: list[Tensor], k: int) -> list[Tensor]:
    """Which candidates are among the k largest of all shards, ties to the lowest latent (lem-sharded-topk).

    sizes[s] (n, w) are the magnitudes of the w candidates of shard s, its latents ascending and after those of s - 1.
    """
    everyone = torch.cat(sizes, dim=-1)
    chosen = largest(everyone, min(k, everyone.shape[1]))
    kept = torch.zeros_like(everyone, dtype=torch.bool).scatter_(-1, chosen, True)
    return list(kept.split([size.shape[1] for size in sizes], dim=-1))


@torch.no_grad()
def squared_norm_of_all(W_dec: Tensor, team: Team) -> tuple[float, float]:
    """Bounds of ||D||^2 of all shards, by the Gram matrix (d_in, d_in), as `certificates.squared_norm` has them."""
    W = W_dec.double()
    P, d = W.shape
    summed = team.total(torch.cat([(W.T @ W).view(-1), W.square().sum().view(1)]))
    slack = 4 * (P * team.shards + d) * 2.0**-52 * float(summed[-1])
    top = float(torch.linalg.eigvalsh(summed[:-1].view(d, d))[-1])
    return top - slack, top + slack


def _reach(call: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Call a collective operation; a failure of the network becomes an `Error`, since it means that a rank has gone."""
    try:
        call(*arguments, **options)
    except RuntimeError as problem:
        if not isinstance(problem, dist.DistError) and not LOST.search(str(problem)):
            raise
        msg = f"a rank has gone or does not answer, so that this one stops too: {str(problem).splitlines()[0]}"
        raise Error(msg) from None
