"""How near do unrolled networks come in 16 layers?  The figures of LISTA-CPSS and ALISTA, on codes that are known.

Rows x = D z of width 250, 500 Gaussian atoms of norm 1, z_j = 0 but for a tenth, which is N(0, 1); without noise, and
with 30 dB of it.  Printed is NMSE = 10 log10(sum ||z_t - z||^2 / sum ||z||^2) on rows that no network was trained on.

    python benchmarks/alista.py work                     # all that is printed in the README
    python benchmarks/alista.py work --seeds 0 --noise none --nets ALISTA SLISTA --steps 50

Training is layer by layer, as in the authors' code: the new layer, then the last layers together at a lower rate.
Measurements are kept in the folder, and a call goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import proxsae as px
from proxsae.disk import replace_file
from proxsae.pytorch import learned
from proxsae.pytorch.iteration import Point

D_IN, D_SAE, SHARE, LAYERS = 250, 500, 0.1, 16
SHOWN = (1, 2, 4, 6, 8, 10, 12, 14, 16)
LAM = 0.4  # where the authors' networks start; their thresholds are trained
LAMS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)  # of which ISTA and FISTA have the best, each
SELECT = {"select": 0.012, "most": 0.13}  # the authors'
NETS = {
    "SLISTA": px.LearnedSteps(thresholds=False), "LISTA": px.LISTA(shared=False),
    "LISTA-CP": px.LISTACP(), "LISTA-CPSS": px.LISTACP(**SELECT),
    "TiLISTA": px.TiLISTA(**SELECT), "ALISTA": px.ALISTA(**SELECT), "ALISTA, no selection": px.ALISTA(),
}  # fmt: skip
BATCH, POOL, CHECK, HELD = 256, 20_000, 1000, 2000  # rows of a step, to train on, to undo by, and to judge by
RATE, LOG_RATE = 2e-3, 0.1  # of matrices, and of what is trained as a logarithm
DEEPER = 0.9  # the rate of a new layer over that of the one before: its error is smaller
LAM_OF = {"SLISTA": 0.1}  # whose thresholds are not trained
LATER, AGE = 0.2, 0.3  # the rate of the last layers together, and of a layer over that of the next
WINDOW = 3  # layers that are trained together: the rate of older ones has fallen to AGE^3, and they stay
NOISE = {"none": math.inf, "30 dB": 30.0}


class Rows:
    """A dictionary, and fresh rows of it."""

    def __init__(self, seed: int, snr: float) -> None:
        self.draw, self.snr = torch.Generator().manual_seed(seed), snr
        self.D = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN, generator=self.draw), dim=1)

    def __call__(self, n: int) -> tuple[Tensor, Tensor]:
        """Rows (n, 250) and their codes (n, 500)."""
        z = torch.randn(n, D_SAE, generator=self.draw)
        z = z * (torch.rand(n, D_SAE, generator=self.draw) < SHARE)
        x = z @ self.D
        noise = torch.randn(x.shape, generator=self.draw) * 10 ** (-self.snr / 20)
        return x + x.std(dim=1, correction=0, keepdim=True) * noise, z


class Layers:
    """The layers of a network with weights each of their own, so that a step costs what it trains."""

    def __init__(self, net: px.Unrolled) -> None:
        self.net, self.rule, weights = net, net.rule, dict(net.named_parameters())
        self.draw = torch.Generator().manual_seed(0)  # of batches
        self.tied = {name: w.detach().clone() for name, w in weights.items() if len(w) < net.steps}
        own = {name: w for name, w in weights.items() if name not in self.tied}
        self.own = [{name: w[t : t + 1].detach().clone() for name, w in own.items()} for t in range(net.steps)]
        self.trained = [name for name in weights if name not in net.rule.fixed]

    def step(self, t: int, point: Point) -> Point:
        """Layer t, on the codes of the layer before."""
        rule = self.rule
        if getattr(rule, "select", 0):
            rule = replace(rule, select=min((t + 1) * rule.select, rule.most))
        *_, after = learned.walk(rule, self.tied | self.own[t], 1, point, self.net.penalty)
        return after

    @torch.no_grad()
    def codes(self, x: Tensor, z: Tensor, some: range) -> Tensor:
        """The codes of rows x after some layers, from codes z."""
        point = self.start(x, z)
        for t in some:
            point = self.step(t, point)
        return point.z

    def start(self, x: Tensor, z: Tensor) -> Point:
        """The point of codes z that are given."""
        return Point(z, x, self.net.D, x.new_zeros(len(x), dtype=torch.float64))

    def leaves(self, layers: range, with_tied: bool) -> list[dict[str, Any]]:
        """Groups of what is trained, with the rates that their ages leave them."""
        groups = []
        for t in layers:
            groups += [self.group(name, w, AGE ** (layers[-1] - t)) for name, w in self.own[t].items()]
        groups += [self.group(name, w, 1.0) for name, w in self.tied.items() if with_tied]
        return [group for group in groups if group["name"] in self.trained]

    @staticmethod
    def group(name: str, weight: Tensor, share: float) -> dict[str, Any]:
        """One weight, as an optimiser takes it."""
        return {"name": name, "params": [weight], "lr": share * (LOG_RATE if name.startswith("log") else RATE)}

    @torch.no_grad()
    def put(self) -> None:
        """Hand the weights over to the network."""
        for name, w in self.net.named_parameters():
            w.copy_(self.tied[name] if name in self.tied else torch.cat([own[name] for own in self.own]))


def train(net: px.Unrolled, rows: Rows, steps: int) -> None:
    """Layer by layer: a new layer starts as the one before, is trained alone, then with the last ones."""
    layers = Layers(net)
    x, z = rows(POOL)
    whole = bool(layers.tied.keys() & set(layers.trained))
    first, before = 0, torch.zeros_like(z)  # the codes that the layers under training begin with
    for t in range(net.steps):
        if t:
            layers.own[t] = {name: w.detach().clone() for name, w in layers.own[t - 1].items()}
        if t == 1 and isinstance(net.rule, px.LISTA):  # z = 0 before, so S was not trained, and W outgrew it
            layers.own[t]["S_step"] = (torch.eye(D_SAE) - layers.own[t]["W_step"][0] @ net.D.T)[None]
        if not whole and t - first == WINDOW:
            before, first = layers.codes(x, before, range(first, first + 1)), first + 1
        rate = DEEPER**t
        fit(layers, range(t, t + 1), t == 0, (x, layers.codes(x, before, range(first, t)), z), steps, rate)
        fit(layers, range(first, t + 1), True, (x, before, z), steps // 2, LATER * rate)
    layers.put()


def fit(layers: Layers, some: range, with_tied: bool, pool: tuple[Tensor, ...], steps: int, rate: float) -> None:
    """Adam on 1/2 ||z_t - z||^2 summed over a batch, with a rate that falls to 0; undone where it makes that worse."""
    groups = layers.leaves(some, with_tied)
    x, before, z = (a[:CHECK] for a in pool)
    error, kept = decibels(layers.codes(x, before, some), z), [group["params"][0].clone() for group in groups]
    for group in groups:
        group["params"][0].requires_grad_(True)
        group["lr"] *= rate
    adam = torch.optim.Adam(groups, fused=True)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        at = torch.randint(CHECK, POOL, (BATCH,), generator=layers.draw)
        rows, codes, truth = (a[at] for a in pool)
        point = layers.start(rows, codes)
        for t in some:
            point = layers.step(t, point)
        adam.zero_grad()
        (0.5 * (point.z - truth).square().sum()).backward()
        adam.step()
        falling.step()
    worse = not decibels(layers.codes(x, before, some), z) <= error
    for group, weight in zip(groups, kept, strict=True):
        group["params"][0].requires_grad_(False)
        if worse:
            group["params"][0].copy_(weight)


def decibels(z: Tensor, truth: Tensor) -> float:
    """NMSE of codes."""
    return 10 * math.log10(float((z - truth).double().square().sum() / truth.double().square().sum()))


@torch.no_grad()
def judged(net: px.Unrolled, x: Tensor, z: Tensor) -> list[float]:
    """NMSE after each layer."""
    return [decibels(point.z, z) for point in net.walk(x)]


def plain(momentum: str | None, D: Tensor, x: Tensor, z: Tensor) -> tuple[float, list[float]]:
    """ISTA or FISTA with the lam that is best after 16 steps: lam, and NMSE after each."""
    found = {}
    for lam in LAMS:
        trace = px.ista(x, D, px.L1(lam), LAYERS, px.Lipschitz(), momentum, keep="all")
        found[lam] = [decibels(codes, z) for codes in trace.steps[1:]]
    best = min(found, key=lambda lam: found[lam][-1])
    return best, found[best]


def measure(name: str, noise: str, seed: int, steps: int) -> dict[str, Any]:
    """NMSE after each layer of a method, and what it took."""
    rows = Rows(seed, NOISE[noise])
    x, z = rows(HELD)
    if name not in NETS:
        lam, found = plain({"ISTA": None, "FISTA": "fista"}[name], rows.D, x, z)
        return {"lam": lam, "nmse": found}
    began = time.process_time()
    net = px.Unrolled(rows.D, px.L1(LAM_OF.get(name, LAM)), LAYERS, NETS[name])
    train(net, rows, steps)
    return {"nmse": judged(net, x, z), "seconds": time.process_time() - began}


def main() -> None:
    """Measure what is not in the journal, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", help="the folder of the journal")
    parser.add_argument("--noise", nargs="+", choices=NOISE, default=list(NOISE))
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=100, help="of a new layer; half as many follow")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    journal = Path(given.work) / "alista.json"
    journal.parent.mkdir(parents=True, exist_ok=True)
    done: dict[str, dict[str, Any]] = json.loads(journal.read_text()) if journal.exists() else {}
    names = ["ISTA", "FISTA", *given.nets]

    def key(name: str, noise: str, seed: int) -> str:
        return f"{name} noise={noise} seed={seed}" + (f" steps={given.steps}" if name in NETS else "")

    for seed, noise, name in itertools.product(given.seeds, given.noise, names):
        if (at := key(name, noise, seed)) not in done:
            done[at] = measure(name, noise, seed, given.steps)
            replace_file(journal, json.dumps(done, indent=1).encode())
            print(f"{at}: {done[at]['nmse'][-1]:.1f} dB", flush=True)
    for noise in given.noise:
        print(f"\n| noise: {noise} | {' | '.join(map(str, SHOWN))} | seconds |\n|---|{'---|' * (len(SHOWN) + 1)}")
        for name in names:
            show(name, [done[key(name, noise, seed)] for seed in given.seeds])


def show(name: str, found: list[dict[str, Any]]) -> None:
    """A line: means over seeds of the NMSE at some depths, and the least and the largest at the last."""
    nmse = np.array([row["nmse"] for row in found])
    cells = [f"{nmse[:, t - 1].mean():.1f}" for t in SHOWN]
    cells[-1] += f" ({nmse[:, -1].min():.1f} to {nmse[:, -1].max():.1f})"
    seconds = f"{np.mean([row['seconds'] for row in found]):.0f}" if "seconds" in found[0] else ""
    lam = f", lam {' and '.join(sorted({format(row['lam'], 'g') for row in found}))}" if "lam" in found[0] else ""
    print(f"| {name}{lam} | {' | '.join(cells)} | {seconds} |")


if __name__ == "__main__":
    main()
