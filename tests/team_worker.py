"""One rank of tests/test_distributed.py: it joins the team, does what is asked, and writes what it found."""

import os
import sys
from pathlib import Path

import torch

import proxsae as px
from proxsae.sae.shards import split
from proxsae.sae.team import join
from proxsae.training import train


def problem(kind):
    """Rows and a k-sparse SAE: random ones, or small whole numbers, whose sums are exact and full of ties."""
    generator = torch.Generator().manual_seed(3)
    d, P, n = 16, 64, 40
    torch.manual_seed(5)
    sae = px.SAE(d, P, px.KSparse(5, nonneg=kind == "nonneg"))
    x = torch.randn(n, d, generator=generator)
    with torch.no_grad():
        sae.W_enc.add_(0.1 * torch.randn(P, d, generator=generator).T)
        sae.b_enc.add_(0.1 * torch.randn(P, generator=generator))
        if kind == "ties":
            x = torch.randint(-1, 2, (n, d), generator=generator).float()
            sae.W_enc.copy_(torch.randint(-1, 2, (P, d), generator=generator).float().T)
            sae.W_dec.copy_(sae.W_enc.T)
            sae.b_enc.zero_()
    return sae, x


def codes(kind, steps, rule, team=None):
    """Dense codes and reconstruction; on a team, of the shards put together."""
    sae, x = problem(kind)
    sae = sae.unrolled(steps, rule)
    if team is None:
        return sae.encode(x).detach(), sae(x).detach()
    part = split(sae, team)
    return team.whole(part.encode(x).detach(), 1), part(x).detach()


def gradients(kind, steps, team=None):
    """The gradients of a loss of codes and reconstruction in all four weights."""
    sae, x = problem(kind)
    sae = sae.double().unrolled(steps, px.FixedStep(2.0**-6))
    part = sae if team is None else split(sae, team)
    part.reconstruct(x.double())[0].square().sum().backward()
    found = {name: a.grad for name, a in part.named_parameters()}
    if team is None:
        return found
    dimension = {"W_enc": 1, "W_dec": 0, "b_enc": 0}
    return {name: team.whole(a, dimension[name]) if name in dimension else a for name, a in found.items()}


CODES = [(kind, steps, rule) for kind in ("random", "nonneg", "ties")
         for steps, rule in ((1, None), (3, px.FixedStep(2.0**-6)), (3, None))]  # fmt: skip
TRAINED = {"plain": {}, "levels": {"ks": (2,), "unit_encoder": True}}
RECIPE = {"steps": 20, "batch_size": 64, "lr": 1e-2, "progress": False, "every": 10}


def trained(name, folder=None, team=None):
    """An SAE trained on planted rows, some of whose latents start dead."""
    torch.manual_seed(1)
    sae = px.abstopk_sae(16, 32, 3)
    with torch.no_grad():
        sae.W_enc[:, ::2] *= 0.01
    rows = px.data.planted(n=600, d_in=16, d_sae=32, k=3, seed=1).x.astype("float32")
    got = train(sae, rows, checkpoint=folder, team=team, **RECIPE, **TRAINED[name])
    return got, {key: a.detach().clone() for key, a in sae.state_dict().items()}


def main():
    """What every rank does, for the number of shards and the folder that are given."""
    shards, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    team = join(shards, "cpu")
    found = {
        "codes": [codes(*case, team) for case in CODES],
        "gradients": [gradients(kind, steps, team) for kind in ("random", "nonneg") for steps in (1, 3)],
        "trained": {name: trained(name, folder / f"run-{name}", team) for name in TRAINED},
    }
    torch.save(found, folder / f"rank{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
