"""Inputs on which operators go wrong: the threshold itself, its float neighbours, ties, zeros of both signs, NaN.

Gaussian draws never meet a tie.  Rows are drawn from the operator's own thresholds, and are short, so that a global
oracle can judge them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

WIDTHS = (0, 1, 2, 3, 5)
STEPS = (1.0, 0.5, 0.3, 2.0)


def thresholds(R: Any, step: float, dtype: Any) -> list[float]:
    """Magnitudes at which prox_{step R} may change its mind, rounded to dtype: soft and hard, for each lam, and 1."""
    lams = np.unique(np.atleast_1d(np.asarray(getattr(R, "lam", 1.0), dtype=np.float64)))
    points = [1.0, *(t for lam in lams for t in (step * lam, math.sqrt(2 * (step * lam))))]
    return [float(dtype(t)) for t in points if t > 0]


def points(R: Any, step: float, dtype: Any) -> list[Any]:
    """0, -0.0, and around every threshold t of either sign: t, its two float neighbours, t / 2, 2 t, 3 t / 2."""
    found = [dtype(0.0), dtype(-0.0)]
    for t in thresholds(R, step, dtype):
        t = dtype(t)
        near = (
            t,
            np.nextafter(t, dtype(np.inf)),
            np.nextafter(t, dtype(0)),
            t / dtype(2),
            t * dtype(2),
            t * dtype(1.5),
        )
        found += [s * dtype(v) for v in near for s in (1, -1)]
    return found


def rows(
    R: Any, step: float, dtype: Any, n: int = 60, seed: int = 0, specials: bool = False
) -> Iterator[np.ndarray[Any, Any]]:
    """Yield arrays (n, P) of each width P: half lattice points, half bounded floats, with many exact ties.

    A penalty with one lam per latent has the one width that fits.  `specials` mixes in NaN and infinities.
    """
    rng = np.random.default_rng(seed)
    grid = np.array(points(R, step, dtype) + ([dtype(v) for v in (np.nan, np.inf, -np.inf)] * 4 if specials else []))
    reach = 3 * max(thresholds(R, step, dtype))
    lam = np.asarray(getattr(R, "lam", 1.0))
    for width in (len(lam),) if lam.ndim else WIDTHS:
        on_grid = rng.choice(grid, size=(n, width))
        anywhere = rng.uniform(-reach, reach, size=(n, width)).astype(dtype)
        mixed = np.where(rng.random((n, width)) < 0.6, on_grid, anywhere)
        tied = rng.choice(grid[:6], size=(n // 2, width))  # few values: nearly every row has a tie at its boundary
        yield np.concatenate([mixed, tied, -np.abs(mixed[: n // 4])]).astype(dtype)
