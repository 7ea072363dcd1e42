"""Steering: what setting one latent changes in the reconstructed row, for its own concept and for the others.

Linear probes that do not depend on any SAE measure the shift, in units of the distance between the two sides of a
concept: a shift of 1 moves a row from the mean of one side to that of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from proxsae.studies.parts.signs.concepts import Array


class Probe(NamedTuple):
    """A linear probe w (d,) and the distance of its means on the two sides, w . (mean+ - mean-)."""

    weights: Array
    distance: float

    def shift(self, step: Array) -> Array:
        """The change of the probe by steps (..., d) in the space of rows, in units of its distance."""
        return np.asarray(step @ self.weights / self.distance)


def ridge(positive: Array, negative: Array) -> Probe:
    """The ridge regression of labels +1, -1 on rows (n, d), (m, d): w = (X'X + a I)^-1 X'y, X and y centred.

    a is the mean squared norm of the centred rows.  It is needed since the least-squares fit of fewer rows than
    coordinates is exact.
    """
    X, y = np.concatenate([positive, negative]), np.repeat([1.0, -1.0], [len(positive), len(negative)])
    X, y = X - X.mean(axis=0), y - y.mean()
    a = float((X**2).sum() / len(X))
    weights = np.linalg.solve(X.T @ X + a * np.eye(X.shape[1]), X.T @ y)
    return Probe(weights, float(weights @ (positive.mean(axis=0) - negative.mean(axis=0))))


def clamped(score: Array, level: float, nonneg: bool, sign: float) -> dict[str, Array]:
    """The changes c - z_j that set z_j (n,) to the level c = +q and to c = -q, by direction "+" and "-".

    Directions are those of the concept; `sign` is that of the latent.  A non-negative code is set to 0 instead of -q.
    """
    found = {}
    for name, wanted in (("+", sign * level), ("-", -sign * level)):
        found[name] = (max(wanted, 0.0) if nonneg else wanted) - score
    return found


def steered(change: Array, direction: Array, probe: Probe, others: Sequence[Probe]) -> dict[str, float | None]:
    """The effect of x' = x + change * direction, (n,) times (d,), on the probe and on the others, and its size.

    shift        mean over rows of the shift of the probe
    damage       root mean square, over rows and the other probes, of their shifts
    selectivity  |shift| / damage, None without damage
    norm         root mean square of ||x' - x||
    """
    step = change[:, None] * direction
    shift = float(probe.shift(step).mean())
    damage = float(np.sqrt(np.mean([other.shift(step) ** 2 for other in others]))) if others else 0.0
    norm = float(np.sqrt((step**2).sum(axis=1).mean()))
    return {"shift": shift, "damage": damage, "selectivity": abs(shift) / damage if damage else None, "norm": norm}
