"""Does inference or the dictionary fail?  The table of "Stop Probing, Start Coding", with curves over depth.

Rows x = D z of width m = ceil(2 k ln(n / k)), z with k of n latents in (0, 1); rows out of distribution pair latent 0
with others than the training rows did.  MCC is the mean |correlation| of latents that are matched one to one.

    python benchmarks/stop_probing.py work                    # all that is printed in the README, some 40 minutes
    python benchmarks/stop_probing.py work --n 50 --seeds 1 --epochs 20

Measurements are kept in the folder, and a call goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import proxsae as px
from proxsae.disk import replace_file
from proxsae.metrics import code_correlation, recovery
from proxsae.studies.statistics import over_seeds

Floats = NDArray[np.float64]
ROWS, BATCH, K = 2500, 64, 10  # rows of each of the three sets
LASSO, FISTA = px.L1(0.1, nonneg=True), 100  # the penalty and the steps of all FISTA rows
ROUNDS = 50  # of codes and dictionary, of DL-FISTA
DEPTHS = (1, 2, 4, 8, 16, 32, 100)
ORACLE_ONLY = 1000  # latents from which on nothing is trained
PAPER = {  # MCC in and out of distribution, means of three seeds, from the authors' stored results
    (50, "FISTA, true D"): (0.974, 0.971), (50, "DL-FISTA"): (0.928, 0.917), (50, "TopK SAE"): (0.657, 0.603),
    (50, "FISTA on TopK's D"): (0.681, 0.636), (100, "FISTA, true D"): (0.986, 0.986),
    (100, "DL-FISTA"): (0.951, 0.945), (100, "TopK SAE"): (0.813, 0.705), (100, "FISTA on TopK's D"): (0.917, 0.865),
    (100, "ReLU SAE"): (0.400, 0.413), (100, "MP SAE"): (0.433, 0.349), (100, "JumpReLU SAE"): (0.252, 0.324),
    (1000, "FISTA, true D"): (0.993, 0.993),
}  # fmt: skip


class Problem(NamedTuple):
    """The true atoms D (n, m), and codes (ROWS, n): to train on, held out, and out of distribution."""

    D: Floats
    train: Floats
    held: Floats
    shifted: Floats


def problem(n: int, seed: int) -> Problem:
    """Draw one: with a coin latent 0 and K - 1 of the first half, else any but it; shifted, 0 and K - 1 of the rest."""
    rng = np.random.RandomState(seed)
    D = rng.standard_normal((math.ceil(2 * K * math.log(n / K)), n)).T
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    first = n - n // 2

    def codes(rows: int, shifted: bool) -> Floats:
        z = np.zeros((rows, n))
        for row in z:
            if shifted:
                at = np.insert(rng.choice(np.arange(first, n), K - 1, replace=False), 0, 0)
            elif rng.random() < 0.5:
                at = np.insert(rng.choice(np.arange(1, first), K - 1, replace=False), 0, 0)
            else:
                at = rng.choice(np.arange(1, n), K, replace=False)
            row[at] = rng.uniform(0, 1, K)
        return z

    z = codes(2 * ROWS, shifted=False)
    return Problem(D, z[:ROWS], z[ROWS:], codes(ROWS, shifted=True))


def judged(encode: Callable[[Floats], Any], p: Problem) -> dict[str, float]:
    """MCC of the codes of held-out rows; of shifted ones for as many latents as fire there, those that vary most."""
    with torch.no_grad():
        held, shifted = (torch.as_tensor(encode(z @ p.D)).double() for z in (p.held, p.shifted))
    firing = int((p.shifted.var(axis=0) > 1e-8).sum())
    most = shifted.var(dim=0).argsort(descending=True)[:firing]
    return {
        "id": code_correlation(held, torch.tensor(p.held)),
        "ood": code_correlation(shifted[:, most], torch.tensor(p.shifted)),
    }


def fista(x: Any, D: Any, bias: Any = None) -> Any:
    """The codes of all FISTA rows."""
    return px.ista(x, D, LASSO, FISTA, momentum="fista", bias=bias).codes


# What is measured: each function yields names and measures


def oracle(p: Problem, seed: int, epochs: int) -> Iterator[tuple[str, dict[str, float]]]:
    """FISTA on the true atoms, and curves over depth for it, for ISTA, and for k-sparse steps on the true atoms."""
    yield "FISTA, true D", judged(lambda x: fista(x, p.D), p)
    if len(p.D) >= ORACLE_ONLY:
        return
    sparse, L = px.KSparse(K, nonneg=True), px.lipschitz(p.D)
    rules: dict[str, tuple[Any, Any, str | None]] = {
        "FISTA": (LASSO, px.Lipschitz(), "fista"), "ISTA": (LASSO, px.Lipschitz(), None),
        "TopK, step 1/L": (sparse, px.Lipschitz(), None), "TopK, ExactStep": (sparse, px.ExactStep(), None),
    }  # fmt: skip
    if 2 / L > 0.3:
        rules["TopK, step 0.3"] = (sparse, px.FixedStep(0.3), None)
    for name, (R, step, momentum) in rules.items():
        for T in DEPTHS:
            yield f"{name}, T={T}", judged(lambda x: px.ista(x, p.D, R, T, step, momentum).codes, p)  # noqa: B023


def learned(p: Problem, seed: int, epochs: int) -> Iterator[tuple[str, dict[str, float]]]:
    """DL-FISTA: codes by FISTA and least-squares atoms, in turn, from atoms that are rows."""
    x = p.train @ p.D
    D = x[np.random.RandomState(seed).choice(ROWS, len(p.D), replace=False)]
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    for _ in range(ROUNDS):
        z = fista(x, D)
        D, before = np.linalg.solve(z.T @ z + 1e-6 * np.eye(len(D)), z.T @ x), D
        D /= np.maximum(np.linalg.norm(D, axis=1, keepdims=True), 1e-12)
        if np.linalg.norm(D - before) < 1e-5 * np.linalg.norm(before):
            break
    yield "DL-FISTA", judged(lambda x: fista(x, D), p) | {"atoms": recovery(torch.tensor(D), torch.tensor(p.D))}


def library(p: Problem, seed: int, epochs: int) -> Iterator[tuple[str, dict[str, float]]]:
    """The same by `px.learn_dictionary`, with codes that are solved for."""
    n, m = p.D.shape
    x = single(p.train @ p.D)
    torch.manual_seed(seed)
    sae = px.SAE(m, n, LASSO, steps=math.inf)
    sae.b_dec.requires_grad_(False)  # DL-FISTA has no bias
    sae.set_weight("W_dec", torch.nn.functional.normalize(x[torch.randperm(ROWS)[:n]], dim=1))
    px.learn_dictionary(sae, x, ROUNDS, progress=False)
    yield (
        "px.learn_dictionary",
        judged(lambda x: sae.encode(single(x)), p) | {"atoms": recovery(sae.W_dec, torch.tensor(p.D))},
    )


def saes(p: Problem, seed: int, epochs: int) -> Iterator[tuple[str, dict[str, float]]]:
    """SAEs of n latents with K non-zeros a row, and better inference on the dictionaries that they learned."""
    n, m = p.D.shape
    x = torch.tensor(p.train @ p.D, dtype=torch.float32)
    theta = float(x.std())
    kinds = {
        "TopK": lambda: px.topk_sae(m, n, K),
        "ReLU": lambda: px.relu_sae(m, n, theta),
        "JumpReLU": lambda: px.jumprelu_sae(m, n, theta, theta / 2),
        "MP": lambda: px.SAE(m, n, px.KSparse(K, nonneg=True), K, px.MatchingPursuit()),
    }
    plans: list[tuple[str, Callable[[], px.SAE], int, float | None]]
    plans = [(name, make, epochs, None) for name, make in kinds.items()]
    if any(at == n and "TopK" in name for at, name in PAPER):
        plans.append(("slow TopK", kinds["TopK"], 5 * epochs, 5e-4))  # their rate, and at 100 epochs their 500
    for name, make, so_many, rate in plans:
        torch.manual_seed(seed)
        sae = make()
        l0 = None if isinstance(sae.penalty, px.KSparse) else K
        steps = so_many * ROWS // BATCH
        px.train(sae, x, steps, BATCH, rate, seed, l0, progress=False)
        atoms = {"atoms": recovery(sae.W_dec, torch.tensor(p.D))}
        yield f"{name} SAE", judged(lambda x: sae.encode(single(x)), p) | atoms  # noqa: B023
        yield f"FISTA on {name}'s D", judged(lambda x: fista(single(x), sae.W_dec, sae.b_dec), p)  # noqa: B023
        if sae.steps == 1 and l0 is None:
            deep = sae.unrolled(16, px.ExactStep())
            yield f"16 exact steps of {name}", judged(lambda x: deep.encode(single(x)), p)  # noqa: B023


def single(x: Floats) -> torch.Tensor:
    """Rows in the dtype of the SAEs."""
    return torch.tensor(x, dtype=torch.float32)


PARTS = {"oracle": oracle, "learned": learned, "library": library, "saes": saes}


def main() -> None:
    """Measure what is not in the journal, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", help="the folder of the journal")
    parser.add_argument("--n", type=int, nargs="+", default=[50, 100, 500, 1000], help="latents")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=100, help="of an SAE; slow ones take 5 times as many")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    journal = Path(given.work) / "stop_probing.json"
    journal.parent.mkdir(parents=True, exist_ok=True)
    done: dict[str, dict[str, dict[str, float]]] = json.loads(journal.read_text()) if journal.exists() else {}
    for seed in range(given.seeds):
        for n in given.n:
            for part in given.parts if n < ORACLE_ONLY else ["oracle"]:
                key = f"{part} n={n} seed={seed}" + (f" epochs={given.epochs}" if part == "saes" else "")
                if key not in done:
                    done[key] = dict(PARTS[part](problem(n, seed), seed, given.epochs))
                    replace_file(journal, json.dumps(done, indent=1).encode())
                    print(key, flush=True)
    for n in given.n:
        show(n, [row for key, row in done.items() if f" n={n} " in key])


def show(n: int, found: list[dict[str, dict[str, float]]]) -> None:
    """Means with 95 % intervals over seeds, beside the paper; and the curves over depth."""
    rows: dict[str, list[dict[str, float]]] = {}
    for name, measures in (item for part in found for item in part.items()):
        rows.setdefault(name, []).append(measures)
    print(f"\n| n = {n} | MCC | paper | MCC, shifted | paper | atoms found |\n|---|---|---|---|---|---|")
    for name, some in rows.items():
        if ", T=" not in name:
            paper = [f"{a:.3f}" for a in PAPER.get((n, name), ())] or ["", ""]
            cells = [interval(some, "id"), paper[0], interval(some, "ood"), paper[1], interval(some, "atoms")]
            print(f"| {name} | {' | '.join(cells)} |")
    curves = list(dict.fromkeys(name.rpartition(", T=")[0] for name in rows if ", T=" in name))
    if curves:
        print(f"\n| n = {n}, true D | {' | '.join(f'T = {T}' for T in DEPTHS)} |\n|---|{'---|' * len(DEPTHS)}")
    for curve in curves:
        at_depths = [rows[f"{curve}, T={T}"] for T in DEPTHS]
        means = [[float(np.mean([row[key] for row in at])) for key in ("id", "ood")] for at in at_depths]
        print(f"| {curve} | {' | '.join(f'{a:.3f} / {b:.3f}' for a, b in means)} |")


def interval(rows: list[dict[str, float]], key: str) -> str:
    """A mean with its 95 % interval over seeds."""
    if key not in rows[0]:
        return ""
    found = over_seeds((row[key] for row in rows), share=True)
    return f"{found.mean:.3f}" + (f" ({found.low:.3f} to {found.high:.3f})" if found.n > 1 else "")


if __name__ == "__main__":
    main()
