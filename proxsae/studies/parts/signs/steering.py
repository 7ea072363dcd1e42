"""What setting one latent does to the row that is rebuilt: to its own concept, and to the others.

The shift is read by linear probes that know nothing of SAEs, in units of a probe's distance between the two sides of
its concept: a shift of 1 carries a row from the mean of one side to that of the other.
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
        """What steps (..., d) in the space of rows do to the probe, in units of its distance."""
        return np.asarray(step @ self.weights / self.distance)


def ridge(positive: Array, negative: Array) -> Probe:
    """The ridge regression of labels +1, -1 on rows (n, d), (m, d): w = (X'X + a I)^-1 X'y, X and y centred.

    a is the mean squared norm of the centred rows: as much as one row.  With fewer rows than coordinates the least
    squares fit is exact, so some such term is needed.
    """
    X, y = np.concatenate([positive, negative]), np.repeat([1.0, -1.0], [len(positive), len(negative)])
    X, y = X - X.mean(axis=0), y - y.mean()
    a = float((X**2).sum() / len(X))
    weights = np.linalg.solve(X.T @ X + a * np.eye(X.shape[1]), X.T @ y)
    return Probe(weights, float(weights @ (positive.mean(axis=0) - negative.mean(axis=0))))


def clamped(score: Array, level: float, nonneg: bool, sign: float) -> dict[str, Array]:
    """How far setting z_j to the level +q, and to -q, moves it: c - z_j for z_j (n,), by direction "+" and "-".

    Directions are those of the concept, so `sign` is that of the latent.  A non-negative code has no -q: it gets 0, the
    most that it allows.
    """
    found = {}
    for name, wanted in (("+", sign * level), ("-", -sign * level)):
        found[name] = (max(wanted, 0.0) if nonneg else wanted) - score
    return found


def steered(change: Array, direction: Array, probe: Probe, others: Sequence[Probe]) -> dict[str, float | None]:
    """The rows x' = x + change * direction, (n,) times (d,): what the probe and the others see of it, and its size.

    shift        mean over rows of the probe's shift
    damage       root mean square, over rows and the other probes, of their shifts
    selectivity  |shift| / damage, None without damage
    norm         root mean square of ||x' - x||
    """
    step = change[:, None] * direction
    shift = float(probe.shift(step).mean())
    damage = float(np.sqrt(np.mean([other.shift(step) ** 2 for other in others]))) if others else 0.0
    norm = float(np.sqrt((step**2).sum(axis=1).mean()))
    return {"shift": shift, "damage": damage, "selectivity": abs(shift) / damage if damage else None, "norm": norm}
