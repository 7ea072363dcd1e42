"""Hypothesis strategies: penalties, and rows on their threshold lattices.  Hypothesis is imported when one is made."""

from __future__ import annotations

from typing import Any

import numpy as np

from proxsae.conventions import library
from proxsae.penalties import L0, L1, MCP, SCAD, BatchKSparse, ElasticNet, GroupL2, KSparse, SortedL1
from proxsae.testing import lattice


def penalties(width: int) -> Any:
    """Penalties of every family that fits rows of `width` latents, signed and non-negative."""
    st = library("hypothesis.strategies", "test")
    nonneg, lam = st.booleans(), st.sampled_from([0.0, 0.125, 0.3, 0.5, 1.0])
    per_latent = st.lists(lam, min_size=width, max_size=width).map(np.array) if width else lam
    weights = st.one_of(lam, per_latent)
    falling = per_latent.map(lambda a: np.sort(a)[::-1].copy() if np.ndim(a) else a)
    size = st.sampled_from([s for s in range(1, max(2, width + 1)) if width % s == 0])
    count = st.integers(0, width + 1)
    return st.one_of(
        st.builds(L1, weights, nonneg),
        st.builds(L0, weights, nonneg),
        st.builds(KSparse, count, nonneg),
        st.builds(ElasticNet, weights, st.sampled_from([0.0, 0.5, 2.0]), nonneg),
        st.builds(MCP, weights, st.sampled_from([0.4, 1.0, 3.0]), nonneg),
        st.builds(SCAD, weights, st.sampled_from([2.25, 3.7]), nonneg),
        st.builds(GroupL2, lam, size, nonneg),
        st.builds(SortedL1, falling, nonneg),
        st.builds(BatchKSparse, count, nonneg),
    )


def rows(R: Any, step: float, dtype: Any, width: int) -> Any:
    """Rows (1 to 4, width) on the lattice of R, between its points, and NaN and infinities now and then."""
    st = library("hypothesis.strategies", "test")
    special = st.sampled_from([np.nan, np.inf, -np.inf])
    near = st.sampled_from(lattice.points(R, step, dtype))
    element = st.one_of(near, st.floats(-10, 10, width=32), near, special)
    row = st.lists(element, min_size=width, max_size=width)
    return st.lists(row, min_size=1, max_size=4).map(lambda u: np.array(u, dtype=dtype).reshape(len(u), width))


def problems() -> Any:
    """(R, step, u): the parameters first, then the data."""
    st = library("hypothesis.strategies", "test")

    def problem(draw: Any) -> Any:
        width = draw(st.integers(0, 6))
        R = draw(penalties(width))
        step, dtype = draw(st.sampled_from([0.1, 0.5, 1.0, 3.0, 5.0])), draw(st.sampled_from([np.float32, np.float64]))
        return R, step, draw(rows(R, step, dtype, width))

    return st.composite(problem)()
