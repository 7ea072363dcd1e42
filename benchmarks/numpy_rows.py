"""What does a NumPy user wait for?  `px.ista`, the operators and `px.solve` on arrays, beside the plainest NumPy.

All peers run interleaved in one process on the same rows; printed are ratios to the first, medians with quartiles.

    python benchmarks/numpy_rows.py --threads 1
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigvalsh
from timing import begin, parser, ratios, show

import proxsae as px

LAM, STEPS, K = 0.1, 20, 4


def plain(x: Any, D: Any, fista: bool) -> tuple[Any, list[Any]]:
    """The codes and objectives of STEPS steps of 1/L, as one writes them in a notebook."""
    L = eigvalsh(D.T @ D)[-1]
    z = y = np.zeros((len(x), len(D)))
    t, objective = 1.0, []
    for _ in range(STEPS):
        u = y - (y @ D - x) @ D.T / L
        new = np.sign(u) * np.maximum(np.abs(u) - LAM / L, 0)
        after = (1 + np.sqrt(1 + 4 * t * t)) / 2
        y = new + (t - 1) / after * (new - z) if fista else new
        z, t = new, after
        r = z @ D - x
        objective.append(0.5 * (r * r).sum(axis=1) + LAM * np.abs(z).sum(axis=1))
    return z, objective


def largest(u: Any) -> Any:
    """The K largest magnitudes of each row, without a rule for ties."""
    z, at = np.zeros_like(u), np.argpartition(np.abs(u), -K, axis=1)[:, -K:]
    np.put_along_axis(z, at, np.take_along_axis(u, at, axis=1), axis=1)
    return z


def main() -> None:
    """Print the tables."""
    given = parser(__doc__, rows=500, d=32, width=50).parse_args()
    begin(given)
    draw = np.random.default_rng(0)
    D = draw.standard_normal((given.width, given.d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    x = draw.standard_normal((given.rows, given.d))
    for momentum in (None, "fista"):
        got, want = px.ista(x, D, px.L1(LAM), STEPS, momentum=momentum).codes, plain(x, D, bool(momentum))[0]
        np.testing.assert_allclose(got, want, atol=1e-9)
        calls: dict[str, Callable[[], object]] = {
            "plain NumPy": lambda m=momentum: plain(x, D, bool(m)),
            "px.ista": lambda m=momentum: px.ista(x, D, px.L1(LAM), STEPS, momentum=m),
        }  # fmt: skip
        show(f"{momentum or 'ista'}, {STEPS} steps of 1/L, L1, over plain NumPy", ratios(calls, given))
    X, A = torch.tensor(x), torch.tensor(D)
    for rule, R in ((px.Backtracking(), px.L1(LAM)), (px.ExactStep(), px.L1(LAM)), (px.Refit(), px.KSparse(K))):
        calls = {
            "torch": lambda rule=rule, R=R: px.ista(X, A, R, STEPS, rule),
            "NumPy": lambda rule=rule, R=R: px.ista(x, D, R, STEPS, rule),
        }
        show(f"{rule!r}, {R!r}, NumPy over torch", ratios(calls, given))
    u = draw.standard_normal((1000, 1000)).astype(np.float32)
    lam, root = np.float32(0.5), np.float32(1.0)  # theta = sqrt(2 lam) = 1
    operators: dict[str, tuple[Any, Callable[[], object], Callable[[], object]]] = {
        "L1": (px.L1(0.5), lambda: u - np.clip(u, -lam, lam), lambda: torch.nn.functional.softshrink(U, 0.5)),
        "L0": (px.L0(0.5), lambda: np.where(np.abs(u) > root, u, 0), lambda: torch.nn.functional.hardshrink(U, 1.0)),
        "KSparse": (px.KSparse(K), lambda: largest(u), lambda: kept(U)),
    }
    U = torch.tensor(u)

    def kept(U: Any) -> Any:
        at = U.abs().topk(K).indices
        return torch.zeros_like(U).scatter(-1, at, U.gather(-1, at))

    for name, (R, in_numpy, in_torch) in operators.items():
        np.testing.assert_allclose(R.prox(u), in_numpy())
        calls = {"shortest": in_numpy, "px": lambda R=R: R.prox(u)}
        if name in ("L1", "L0") and importlib.util.find_spec("fastprox"):
            import fastprox  # type: ignore[import-not-found]

            other = fastprox.soft_threshold if name == "L1" else fastprox.hard_threshold
            calls["fastprox"] = lambda other=other: other(u, 0.5, threads=given.threads)
        show(f"{name}.prox of 10^6 float32, NumPy", ratios(calls, given))
        show(f"{name}.prox of 10^6 float32, torch", ratios({"shortest": in_torch, "px": lambda R=R: R.prox(U)}, given))


if __name__ == "__main__":
    main()
