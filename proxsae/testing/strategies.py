"""Hypothesis strategies: penalties, and rows on their threshold lattices.  Hypothesis is imported when one is made."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from proxsae.conventions import library, within
from proxsae.penalties import FAMILIES, Penalty, SortedL1
from proxsae.penalties.domain import LAMS
from proxsae.testing import lattice

OFFSETS = (0.25, 0.5, 1.0, 2.0, 3.0)  # of a parameter from its bound: some steps of `problems` are at edges of regimes


def penalties(width: int) -> Any:
    """Penalties of every family that fits rows of `width` latents, signed and non-negative, from their domains."""
    st = library("hypothesis.strategies", "test")
    return st.one_of([_members(family, width, st) for family in FAMILIES.values()])


def _members(family: type[Penalty], width: int, st: Any) -> Any:
    given = {name: _values(name, allowed, width, st) for name, allowed in family.domain.items()}
    if family is SortedL1:
        given["lam"] = given["lam"].map(lambda a: np.sort(a)[::-1].copy() if np.ndim(a) else a)
    minus = given.pop("lam_minus", None)
    either = st.builds(family, nonneg=st.booleans(), **given)
    return either if minus is None else st.one_of(either, st.builds(family, lam_minus=minus, **given))


def _values(name: str, allowed: str, width: int, st: Any) -> Any:
    if allowed == "whole >= 1":  # the size of groups that fill the width
        return st.sampled_from([size for size in range(1, max(2, width + 1)) if width % size == 0])
    if allowed.startswith("whole"):
        return st.integers(0, width + 1)
    bound = float(allowed.split()[1])
    one = st.sampled_from([bound + offset for offset in OFFSETS] + [bound] * within(allowed, bound))
    if name in LAMS:
        one = st.one_of(one, one, one, st.just(math.inf))
    if not allowed.endswith("per latent") or not width:
        return one
    return st.one_of(one, st.lists(one, min_size=width, max_size=width).map(np.array))


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
