"""What rows are like before anything is learned from them: their norms, their mean, and rows that stand out.

    gamma = ||mean|| / spread,   spread = sqrt(mean ||x - mean||^2)

One row of a hundred times the median norm weighs ten thousand times as much in a squared error, and a large gamma
leaves many latents dead at the start of training, unless b_dec begins at the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxsae.conventions import check_number
from proxsae.data.rows import open_rows

PIECE = 2**22  # entries that are read in one go
OUTLIER = 10.0  # times the median norm


@dataclass(frozen=True)
class Survey:
    """Of rows (n, d): median and largest norm, norm of the mean, spread, and the rows above `outlier` times the median.

    outliers holds their numbers, ascending.
    """

    rows: int
    width: int
    median: float
    largest: float
    mean: float
    spread: float
    outlier: float
    outliers: NDArray[np.int64]

    @property
    def gamma(self) -> float:
        """||mean|| / spread; infinite where all rows are equal."""
        return self.mean / self.spread if self.spread else float("inf")

    def warning(self) -> str | None:
        """One sentence where outliers would ruin a squared error, else None."""
        if not len(self.outliers):
            return None
        count = len(self.outliers)
        have = f"{count} of {self.rows} rows {'has' if count == 1 else 'have'} a norm above {self.outlier:g} times"
        most = f"the largest is {self.largest:.3g}, the first is row {self.outliers[0]}"
        return f"{have} the median of {self.median:.3g} ({most}): they would rule a squared error, so leave them out"


def survey(rows: Any, outlier: float = OUTLIER) -> Survey:
    """Look through rows (n, d), an array or a path as `open_rows` takes it, in float64 and a piece at a time.

    outlier: rows above this many times the median norm are counted and named.
    Raises `Error` as `open_rows` does, for rows that are not finite, and for an outlier that is not above 1.

    >>> found = survey(np.vstack([np.ones((9, 4)), 100 * np.ones((1, 4))]))
    >>> found.outliers.tolist(), found.median
    ([9], 2.0)
    """
    factor = check_number("outlier", outlier, "> 1", ": a number of times the median norm, such as 10")
    data = open_rows(rows)
    n, d = data.shape
    norms, total, squares = np.empty(n), np.zeros(d), 0.0
    step = max(1, PIECE // d)
    for start in range(0, n, step):
        x = data[start : start + step].astype(np.float64)
        norms[start : start + step] = np.linalg.norm(x, axis=1)
        total += x.sum(axis=0)
    mean = total / n
    for start in range(0, n, step):
        squares += float(np.square(data[start : start + step] - mean).sum())
    median = float(np.median(norms))
    far = np.flatnonzero((norms > factor * median) & (median > 0)).astype(np.int64)  # most rows of 0 are no measure
    return Survey(
        n, d, median, float(norms.max()), float(np.linalg.norm(mean)), float(np.sqrt(squares / n)), factor, far
    )
