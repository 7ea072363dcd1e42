"""What rows are like before anything is learned from them: their norms, their mean, and rows that stand out.

    gamma = ||mean|| / spread,   spread = sqrt(mean ||x - mean||^2)

One row of a hundred times the median norm weighs ten thousand times as much in a squared error.  And where b_dec begins
at 0, a large gamma leaves many latents dead from the start: the mean alone decides which of them win (arXiv
2605.31518).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proxsae.data.rows import Rows, lengths

PIECE = 2**18  # entries that are read in one go: they stay in the cache of a core
ABOVE = 10.0  # times the median norm
RULES = 0.01  # share of all squares that outliers must hold before they are worth a warning


@dataclass(frozen=True)
class Survey:
    """What rows (n, d) are like.

    median, largest  of their norms
    mean, spread     ||mean||, and sqrt(mean ||x - mean||^2); `gamma` is their ratio
    outliers, above  the numbers of the rows with a norm above `above` times the median, ascending
    share            of sum ||x||^2 that these rows hold
    """

    rows: int
    width: int
    median: float
    largest: float
    mean: float
    spread: float
    above: float
    outliers: NDArray[np.int64]
    share: float

    @property
    def gamma(self) -> float:
        """||mean|| / spread; infinite where all rows are equal."""
        return self.mean / self.spread if self.spread else math.inf

    def warning(self, of: int | None = None) -> str | None:
        """One sentence where the outliers hold a hundredth of all squares or more, else None.

        of: how many rows there are, where these were looked at.
        """
        count = len(self.outliers)
        if self.share < RULES:
            return None
        looked = "" if of in (None, self.rows) else " looked at"
        return (
            f"{count} of {self.rows} rows{looked} {'has' if count == 1 else 'have'} a norm above {self.above:g} times "
            f"the median of {self.median:.3g} and hold{'s' if count == 1 else ''} {100 * self.share:.0f} % of all "
            f"squares (the first is row {self.outliers[0]}, the largest norm {self.largest:.3g}), so that a squared "
            "error is about them: px.data.open_rows(rows, outliers='drop') leaves them out, and so does --outliers drop"
        )

    def told(self) -> str:
        """Norms, mean and gamma, for a line of a report."""
        return (
            f"median norm {self.median:.4g}, largest {self.largest:.4g}; mean {self.mean:.4g} over spread "
            f"{self.spread:.4g}: gamma {self.gamma:.3g}"
        )


def summed_up(
    norms: NDArray[np.float64],
    width: int,
    mean: float,
    spread: float,
    above: float = ABOVE,
    which: NDArray[np.int64] | None = None,
    unit: float = 1.0,
) -> Survey:
    """The survey of rows whose norms are `unit` times as large; `which` are their numbers where they are a sample."""
    norms = np.minimum(norms, np.finfo(np.float64).max)
    median, largest = float(np.median(norms)), float(norms.max())
    with np.errstate(over="ignore"):
        far = np.flatnonzero((norms > above * median) & (median > 0))  # where most rows are 0 there is no measure
    squares = np.square(norms / (largest or 1.0))
    share = float(squares[far].sum() / (squares.sum() or 1.0))
    numbers = far if which is None else np.sort(which[far])
    norms_of = (unit * median, unit * largest)
    return Survey(len(norms), width, *norms_of, mean, spread, above, numbers.astype(np.int64), share)


def look(rows: Rows, above: float) -> Survey:
    """Look through all rows, once and a piece at a time, in float64.

    The sum of squares about the mean is that of each piece about its own, moved to the common one (Chan, Golub and
    LeVeque 1979), so that nothing cancels.  Of float64 rows both are kept in a unit of their size, so that no square
    overflows.
    """
    n, d = rows.shape
    norms, mean, squares, unit = np.empty(n), np.zeros(d), 0.0, 1.0
    step = max(1, PIECE // d)
    for start in range(0, n, step):
        piece = rows[start : start + step]
        stop = start + len(piece)
        norms[start:stop] = lengths(piece)
        x = piece.astype(np.float64)
        if piece.dtype.itemsize == 8:
            larger = max(unit if start else 0.0, _power_of_two(float(np.abs(x).max())))
            smaller = unit / larger if start else 1.0
            mean, squares, unit = mean * smaller, squares * smaller**2, larger
            x /= unit
        own = x.mean(axis=0)
        x -= own
        move = own - mean
        squares += float(np.vdot(x, x) + np.vdot(move, move) * (start * len(x) / stop))
        mean += move * (len(x) / stop)
    return summed_up(norms, d, unit * float(np.linalg.norm(mean)), unit * math.sqrt(squares / n), above)


def _power_of_two(size: float) -> float:
    """The power of two that the size is 1 to 2 times as large as, 1 for 0: a division by it rounds nothing."""
    return math.ldexp(1.0, max(-1022, math.frexp(size)[1] - 1)) if size else 1.0
