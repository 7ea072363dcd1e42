"""One rank of the last tests of tests/test_as_a_module.py: an SAE under DDP or FSDP2, and what it found."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

import proxsae as px

MAKE = {
    "k-sparse": lambda: px.SAE(8, 24, px.KSparse(3)),
    "unrolled": lambda: px.SAE(8, 24, px.KSparse(3)).unrolled(3),
    "l0": lambda: px.SAE(8, 24, px.L0(0.1, bandwidth=0.5)),
    "learned": lambda: px.SAE(8, 24, px.L1(0.1), steps=3, step=px.LearnedSteps()),
}
ROWS = 16  # shared by the ranks


def made(name):
    """The SAE of that name with its rows, the same on every rank."""
    torch.manual_seed(0)
    return MAKE[name]().double(), torch.randn(ROWS, 8, dtype=torch.float64)


def gradients(wrap, name, part):
    """The reconstruction and all gradients of the mean error of these rows, and the weights after a step of SGD."""
    sae, x = made(name)
    module = wrap(sae)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    xhat = module(x[part])
    (xhat - x[part]).square().mean().backward()
    grads = {key: _whole(a.grad) for key, a in sae.named_parameters()}
    optimiser.step()
    return xhat.detach(), grads, {key: _whole(a.detach()) for key, a in sae.named_parameters()}


def _whole(a):
    return a.full_tensor() if hasattr(a, "full_tensor") else a


def main():
    """What every rank does, for the folder that is given."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    part = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    found = {name: {"ddp": gradients(DistributedDataParallel, name, part)} for name in MAKE}
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (world,))
    for name in MAKE:
        found[name]["fsdp"] = gradients(lambda sae: fully_shard(sae, mesh=mesh), name, part)
        sae, x = made(name)
        register_fsdp_forward_method(fully_shard(sae, mesh=mesh), "encode")
        found[name]["codes"] = sae.encode(x).detach()
    torch.save(found, Path(sys.argv[1]) / f"rank{os.environ['RANK']}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
