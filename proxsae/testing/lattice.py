"""Inputs on which operators go wrong: the threshold itself, its float neighbours, ties, zeros of both signs, NaN.

Gaussian draws never meet a tie.  Most rows are drawn from the operator's own thresholds, and are short, so that a
global oracle can judge them.  Thresholds come from its parameters, and from watching where its output leaves 0.  Other
rows are wider, or of another scale, at steps between: for errors that wait there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from proxsae.penalties.base import lams
from proxsae.testing.compare import numpy_of
from proxsae.testing.laws import ours

Apply = Callable[[np.ndarray[Any, Any], float], np.ndarray[Any, Any]]

WIDTHS = (1, 2, 3, 5, 0)
STEPS = (1.0, 0.3, 2.0, 5.0)
RATIO = 2.5  # of one drawn step to the next, from 1e-3 to 1e3
WIDER = ((6, 17), (17, 34))  # widths that drawn steps take in turn
DECADES = 5  # magnitudes from 1e-5 to 1e5


def widths(R: Any) -> tuple[int, ...]:
    """The widths of rows that R is tried on: its own `widths`, the length of its lam, or multiples of its groups."""
    given, size = getattr(R, "widths", None), getattr(ours(R), "size", 1)
    width = max((len(lam) for lam in _lams(R) if lam.ndim), default=0)
    return tuple(given) if given else (width,) if width else (size, 2 * size, 0) if size > 1 else WIDTHS


def thresholds(R: Any, step: float, dtype: Any) -> list[float]:
    """Magnitudes at which prox_{step R} may jump or change its slope, rounded to dtype: for each weight of R, and 1."""
    found, known = {1.0}, np.concatenate([lam.ravel() for lam in _lams(R)]).tolist()
    for lam in {*filter(math.isfinite, known), *((1.0,) if ours(R) is None else ())}:
        found |= {step * lam, math.sqrt(2 * (step * lam))}
        if hasattr(ours(R), "gamma"):  # MCP
            found |= {R.gamma * lam, lam * math.sqrt(R.gamma * step)}
        if hasattr(ours(R), "a"):  # SCAD
            found |= {(1 + step) * lam, R.a * lam, lam * (R.a + 1 + step) / 2, lam * math.sqrt(step * (R.a + 1))}
    return [float(dtype(t)) for t in sorted(found) if t > 0]


def _lams(R: Any) -> list[np.ndarray[Any, Any]]:
    """The weights of R, lam and lam_minus, each one number or a vector; 1 for an operator where they are neither."""
    found = []
    for given in lams(R).values() or (1.0,):
        try:
            lam = numpy_of(given).astype(np.float64)
        except (TypeError, ValueError):
            lam = np.ones(())
        found.append(lam if lam.ndim <= 1 and bool((lam >= 0).all()) else np.ones(()))
    return found


def watched(apply: Apply, step: float, dtype: Any, width: int) -> list[float]:
    """Where the output of `apply` leaves 0 as the first entry of a row grows, by bisection to neighbouring floats."""

    def kept(t: float) -> bool:
        u = np.zeros((1, width), dtype)
        u[0, 0] = t
        return bool((apply(u, step) != 0).any())

    try:
        grid = [2.0**e for e in range(-12, 13)]
        brackets = [(a, b) for a, b in itertools.pairwise(grid) if kept(a) != kept(b)]
        found = []
        for low, high in brackets:
            below = kept(low)
            while dtype(low) < (middle := dtype((low + high) / 2)) < dtype(high):
                low, high = (float(middle), high) if kept(float(middle)) == below else (low, float(middle))
            found += [low, high]
    except Exception:  # the laws will say what is wrong with it
        return []
    return found


def points(R: Any, step: float, dtype: Any, also: Sequence[float] = ()) -> list[Any]:
    """0, -0.0, and around every threshold t of either sign: t, its two float neighbours, t / 2, 2 t, 3 t / 2."""
    found = [dtype(0.0), dtype(-0.0)]
    for t in (*thresholds(R, step, dtype), *also):
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
    R: Any, step: float, dtype: Any, n: int = 60, seed: int = 0, specials: bool = False, apply: Apply | None = None
) -> Iterator[np.ndarray[Any, Any]]:
    """Yield arrays (about 7n/4, P) of each width P: half lattice points, half bounded floats, with many exact ties.

    `specials` mixes in NaN and infinities.  Given `apply`, the operator on NumPy rows, the thresholds at which
    its output leaves 0 join the lattice: of an operator from elsewhere the parameters are not known.
    """
    rng = np.random.default_rng(seed)
    grid = _grid(R, step, dtype, specials, apply)
    reach = 3 * max(thresholds(R, step, dtype))
    for width in widths(R):
        on_grid = rng.choice(grid, size=(n, width))
        anywhere = rng.uniform(-reach, reach, size=(n, width)).astype(dtype)
        mixed = np.where(rng.random((n, width)) < 0.6, on_grid, anywhere)
        tied = rng.choice(grid[:6], size=(n // 2, width))  # few values: nearly every row has a tie at its boundary
        yield np.concatenate([mixed, tied, -np.abs(mixed[: n // 4])]).astype(dtype)


def _grid(R: Any, step: float, dtype: Any, specials: bool, apply: Apply | None) -> np.ndarray[Any, Any]:
    """The points of R, with those at which the output of `apply` leaves 0, NaN and infinities, each if wanted."""
    seen = watched(apply, step, dtype, max(1, min(filter(None, widths(R)), default=1))) if apply else []
    return np.array(
        points(R, step, dtype, seen) + ([dtype(v) for v in (np.nan, np.inf, -np.inf)] * 4 if specials else [])
    )


def steps(seed: int = 0) -> list[float]:
    """Steps from 1e-3 to 1e3 in equal ratios, from a start drawn by the seed: one in every interval [a, 2.5 a]."""
    start = 1e-3 * RATIO ** np.random.default_rng([seed, 1]).random()
    every = (start * RATIO**i for i in range(math.ceil(math.log(1e6, RATIO))))
    return [float(f"{step:.3g}") for step in every if step <= 1e3]


def inputs(
    R: Any, dtype: Any, n: int = 60, seed: int = 0, specials: bool = False, apply: Apply | None = None
) -> Iterator[tuple[float, np.ndarray[Any, Any]]]:
    """Yield steps and rows: `rows` at each of STEPS, then at drawn steps fewer, some of them wider, of all scales."""
    for step in STEPS:
        for u in rows(R, step, dtype, n, seed, specials, apply):
            yield step, u
    rng, narrow = np.random.default_rng([seed, 2]), [width for width in widths(R) if width]
    for i, step in enumerate(steps(seed) if narrow else ()):
        wide = _wider(R, i // 2, rng) if i % 2 else 0
        few, width = (1 + n // 32, wide) if wide else (1 + n // 4, narrow[i // 2 % len(narrow)])
        near, far = rng.choice(_grid(R, step, dtype, specials, apply), size=(few, width)), _scaled(rng, few, width)
        yield step, np.concatenate([near, far]).astype(dtype)


def _wider(R: Any, turn: int, rng: np.random.Generator) -> int:
    """A width above those of `widths`, or 0 for an operator that takes these only."""
    if widths(R) != WIDTHS and getattr(ours(R), "size", 1) == 1:
        return 0
    return int(rng.integers(*WIDER[turn % len(WIDER)])) * int(getattr(ours(R), "size", 1))


def _scaled(rng: np.random.Generator, n: int, width: int) -> np.ndarray[Any, Any]:
    """Rows of one scale each, and of entries of one scale each, in turn."""
    scale = np.where(np.arange(n)[:, None] % 2, rng.random((n, width)), rng.random((n, 1)))
    return rng.uniform(-1, 1, (n, width)) * 10 ** (DECADES * (2 * scale - 1))
