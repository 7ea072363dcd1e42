"""Kill training runs at random moments, resume each until it ends, and compare the weights with an undisturbed run's.

    python -m tests.long.kills --kills 1000 --seed 0

A kill is SIGKILL, which no process can catch.  A checkpoint is written after every step, so that many kills hit the
writing itself: those leave a draft beside the checkpoint, and are counted.  Exit status 1 if one bit differs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import proxsae as px
from proxsae.training import files

KINDS = {
    "abstopk": lambda: px.abstopk_sae(16, 64, 4),
    "relu to an l0": lambda: px.relu_sae(16, 64, 0.3),
    "jumprelu": lambda: px.jumprelu_sae(16, 64, 0.5, bandwidth=0.3),
    "batchtopk": lambda: px.SAE(16, 64, px.BatchKSparse(4, nonneg=True)),
    "learned steps": lambda: px.SAE(16, 64, px.KSparse(4), 3, px.LearnedSteps()),
}


def run(kind: str, folder: Path) -> None:
    """One run, from the start or from its checkpoint, to its end."""
    torch.manual_seed(0)
    sae = KINDS[kind]()
    l0 = 4 if kind.startswith("relu") else None
    px.train(sae, folder.parent / "rows.npy", 60, 64, l0=l0, checkpoint=folder, every=1, progress=False)
    sae.save(folder / "sae")


def child(kind: str, folder: Path) -> int:
    """Start a run in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            run(kind, folder)
        except BaseException as problem:
            print(f"{kind}: {problem}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid


def result(folder: Path) -> list[bytes]:
    """The files that must be the same: weights, checkpoint and metrics."""
    return [(folder / name).read_bytes() for name in ("sae/sae.safetensors", files.CHECKPOINT, files.METRICS)]


def main() -> int:
    """Kill until there are as many kills as asked for, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chance = random.Random(arguments.seed)
    kills = drafts = runs = wrong = 0
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        np.save(home / "rows.npy", px.data.planted(n=600, d_in=16, d_sae=64, k=4, seed=1).x.astype(np.float32))
        want, took = {}, {}
        for kind in KINDS:
            started = time.perf_counter()
            if os.waitpid(child(kind, home / f"whole-{kind}"), 0)[1]:
                return 1
            want[kind], took[kind] = result(home / f"whole-{kind}"), time.perf_counter() - started
        while kills < arguments.kills:
            kind = chance.choice(list(KINDS))
            folder = home / f"run-{runs}"
            runs += 1
            while True:
                pid = child(kind, folder)
                time.sleep(chance.uniform(0, took[kind]))
                os.kill(pid, signal.SIGKILL)
                status = os.waitpid(pid, 0)[1]
                if not os.WIFSIGNALED(status):
                    break
                kills += 1
                drafts += any(folder.glob(".*.part"))
            if status or result(folder) != want[kind]:
                wrong += 1
                print(f"{kind}: the run in {folder} ended with status {status} or in other bits")
            if sys.stderr.isatty():
                print(f"\r{kills} kills", end="", file=sys.stderr)
    print(f"{kills} kills, {drafts} of them amid the writing of a file, in {runs} runs; {wrong} ended in other bits")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
