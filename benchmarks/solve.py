"""What does `solve` cost for L1?  Peers on the same rows to the same certificate: relative duality gap <= 1e-6.

All peers run interleaved in one process on `--threads` threads: SPAMS by its own; scikit-learn, celer and skglm, which
take one row at a time, by as many Python threads.  Printed are ratios of our time to theirs, medians with quartiles
(below 1 we are faster), and the largest relative gap of each, measured by `duality_gap` in float64.  A peer's tolerance
is tightened until that gap is reached.  `--peer-rows` times peers that go row by row on fewer rows and scales; SPAMS
is not scaled, since it forms a Gram matrix first.

    python benchmarks/solve.py --rows 2000 --d 256 --atoms 1024 --threads 2
    python benchmarks/solve.py --rows 512 --d 768 --atoms 16384 --peer-rows 32 --rounds 3
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import numpy as np
import torch

import proxsae as px

TOL = 1e-6
Solver = Callable[[np.ndarray, float], np.ndarray]  # rows and tolerance to codes


def rows_of(kind: str, n: int, d: int, atoms: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Unit Gaussian atoms, and rows of mean norm 1: 20 atoms of Gaussian weight with noise, or heavy-tailed entries."""
    D = rng.standard_normal((atoms, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    if kind == "planted":
        codes = np.zeros((n, atoms))
        for code in codes:
            code[rng.choice(atoms, 20, replace=False)] = rng.standard_normal(20)
        x = codes @ D
        x += 0.3 * np.linalg.norm(x, axis=1, keepdims=True) * rng.standard_normal((n, d)) / np.sqrt(d)
    else:
        x = rng.standard_t(2.5, (n, d))
    x /= np.linalg.norm(x, axis=1).mean()
    return x.astype(np.float32), D.astype(np.float32)


def peers(D: np.ndarray, lam: float, nonneg: bool, threads: int) -> tuple[dict[str, tuple[Solver, float]], list[str]]:
    """The installed peers, each with the tolerance to begin with, and the names of those that are missing."""
    columns, d = np.asfortranarray(D.T.astype(np.float64)), D.shape[1]
    found: dict[str, tuple[Solver, float]] = {}
    missing = []

    def one_by_one(fit: Callable[[np.ndarray, float], np.ndarray]) -> Solver:
        def solve(x: np.ndarray, tol: float) -> np.ndarray:
            with ThreadPoolExecutor(threads) as pool:
                return np.stack(list(pool.map(lambda row: fit(row, tol), x.astype(np.float64))))

        return solve

    def module(name: str, package: str) -> Any:
        try:
            return import_module(name)
        except ImportError:
            missing.append(package)
            return None

    if spams := module("spams", "spams-bin"):
        sparse = import_module("scipy.sparse")
        common = {"D": columns, "lambda1": lam, "mode": 2, "numThreads": threads}

        def lars(x: np.ndarray, tol: float) -> np.ndarray:
            return spams.lasso(np.asfortranarray(x.T.astype(np.float64)), pos=nonneg, **common).toarray().T

        def descent(x: np.ndarray, tol: float) -> np.ndarray:
            start = sparse.csc_matrix((len(D), len(x)))
            columns_of_x = np.asfortranarray(x.T.astype(np.float64))
            return spams.cd(columns_of_x, A0=start, itermax=10_000, tol=tol, **common).toarray().T

        found["SPAMS LARS"] = (lars, TOL)
        if not nonneg:  # for which SPAMS CD has no option
            found["SPAMS CD"] = (descent, 1e-6)
    if linear := module("sklearn.linear_model", "scikit-learn"):
        options = {"alpha": lam / d, "fit_intercept": False, "positive": nonneg, "max_iter": 100_000}
        found["scikit-learn"] = (
            one_by_one(lambda row, tol: linear.Lasso(tol=tol, **options).fit(columns, row).coef_),
            1e-6,
        )
        found["scikit-learn LARS"] = (
            one_by_one(
                lambda row, tol: linear.LassoLars(lam / d, fit_intercept=False, positive=nonneg).fit(columns, row).coef_
            ),
            TOL,
        )
    if celer := module("celer", "celer"):
        options = {"alpha": lam / d, "fit_intercept": False, "positive": nonneg}
        found["celer"] = (one_by_one(lambda row, tol: celer.Lasso(tol=tol, **options).fit(columns, row).coef_), 1e-6)
    if skglm := module("skglm", "skglm"):
        options = {"alpha": lam / d, "fit_intercept": False, "positive": nonneg}
        found["skglm"] = (one_by_one(lambda row, tol: skglm.Lasso(tol=tol, **options).fit(columns, row).coef_), 1e-7)
    return found, missing


def worst_gap(x: np.ndarray, D: np.ndarray, z: np.ndarray, R: px.L1) -> float:
    """The largest duality gap over objective; a code that a peer leaves at -1e-17 although it is `positive` is cut."""
    x, D, z = (a.astype(np.float64) for a in (x, D, np.maximum(z, 0) if R.nonneg else z))
    return float((px.duality_gap(x, D, z, R) / (0.5 * ((x - z @ D) ** 2).sum(-1) + R.value(z))).max())


def main() -> None:
    """Time every peer on every kind of row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rows", 2000), ("d", 256), ("atoms", 1024), ("threads", 2), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peer-rows", type=int, default=0, help="rows of the peers that go row by row (0: all)")
    parser.add_argument("--lam", type=float, nargs=2, default=(0.2, 0.65), help="of median lambda_max: planted, heavy")
    parser.add_argument("--only", nargs="*", help="names of the peers to run")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")  # peers warn of tolerances that they do not reach; the gaps say it
    rng = np.random.default_rng(0)
    print(f"{given.rows} rows, d = {given.d}, P = {given.atoms}, {given.threads} threads, torch {torch.__version__}")
    for kind, fraction in zip(("planted", "heavy tails"), given.lam, strict=True):
        x, D = rows_of(kind, given.rows, given.d, given.atoms, rng)
        for nonneg in (False, True):
            lam = fraction * float(np.median(px.lambda_max(x, D, nonneg)))
            R = px.L1(lam, nonneg)
            compare(kind, x, D, R, given)


def compare(kind: str, x: np.ndarray, D: np.ndarray, R: px.L1, given: argparse.Namespace) -> None:
    """Print one block of the table."""
    xt, Dt = torch.tensor(x, device=given.device), torch.tensor(D, device=given.device)
    z = px.solve(xt, Dt, R).codes.cpu().numpy()
    support = (z != 0).sum(axis=1)
    title = (
        f"{kind}{', nonneg' if R.nonneg else ''}, lam {R.lam:.3g}, support {support.mean():.0f} (max {support.max()})"
    )
    print(f"{title}: our largest gap {worst_gap(x, D, z, R):.0e}")
    found, missing = peers(D, R.lam, R.nonneg, given.threads)
    calls, scales, notes = [], [], []
    names = [name for name in found if given.only is None or name in given.only]
    for name in names:
        solver, tol = found[name]
        few = x[: given.peer_rows] if given.peer_rows and not name.startswith("SPAMS") else x
        while (gap := worst_gap(few, D, solver(few, tol), R)) > TOL and tol > 1e-12 and "LARS" not in name:
            tol /= 10
        calls.append((solver, few, tol))
        scales.append(len(x) / len(few))
        notes.append(f"gap {gap:.0e}")
    times = np.empty((given.rounds, 1 + len(names)))
    for row in times:
        row[0] = seconds(lambda: px.solve(xt, Dt, R).codes.cpu())
        for i, ((solver, few, tol), scale) in enumerate(zip(calls, scales, strict=True), 1):
            row[i] = scale * seconds(lambda s=solver, f=few, t=tol: s(f, t))
    print(f"  ours {np.median(times[:, 0]) / len(x) * 1e3:.3f} ms a row")
    for name, note, (lo, m, hi) in zip(
        names, notes, np.quantile(times[:, :1] / times[:, 1:], (0.25, 0.5, 0.75), axis=0).T, strict=True
    ):
        print(f"  ours / {name:18} x{m:.3f} ({lo:.3f} to {hi:.3f})   {note}", flush=True)
    if missing:
        print(f"  not installed: {', '.join(missing)}")


def seconds(call: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
