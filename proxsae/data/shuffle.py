"""An order of training that is a formula: entry t of it needs no entry before it, and no memory of size n."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxsae.conventions import Error, check_count, check_seed

ROUNDS = 12
GOLDEN = 0x9E3779B97F4A7C15  # odd, so that k -> k * GOLDEN is invertible modulo 2^64


@dataclass(frozen=True)
class Shuffle:
    """Endless epochs over range(n), each in its own pseudo-random order: a pure function of (n, seed, position).

    Write i < n on 2h bits, the fewest (but at least 2) that hold it, as halves (L, R).  A round of a Feistel network is

        (L, R)  ->  (R, L xor f(R)),

    f being h bits of the splitmix64 mixer (Steele, Lea and Flood 2014), keyed by seed, epoch and round.  A round is
    invertible whatever f is: R is kept, and L = (L xor f(R)) xor f(R).  So 12 of them, E, permute range(4^h).  Cycle
    walking (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002) makes that a permutation of
    range(n): apply E until the result is below n.  The walk ends, because the cycle of E through i comes back to i < n;
    and no two walks end alike, because each takes i to the next entry below n on its cycle.  As 4^h <= 4n, a walk takes
    at most 4 steps in the mean.  (A round on 4 or more bits is an even permutation, so the sign of a whole epoch is no
    fair coin; what depends on a few entries of it cannot see that.)

    A batch costs time and memory of its own size for any n up to 2^62; resuming needs the position alone, and workers
    take slices of one batch.  The rows of a batch lie anywhere in the data: each is a read of its own, which memory and
    solid-state disks do well and spinning disks do not.

    >>> Shuffle(n=5, seed=0).positions(5, 5).tolist()  # the second epoch
    [0, 3, 1, 2, 4]
    """

    n: int
    seed: int = 0

    def __post_init__(self) -> None:
        if check_count("n", self.n, 1) > 2**62:
            msg = f"n={self.n} must be at most 2^62: positions are 64-bit integers"
            raise Error(msg)
        check_seed(self.seed)

    def positions(self, start: int, count: int) -> NDArray[np.int64]:
        """Entries start .. start + count - 1 of the sequence, shape (count,): entry t is of epoch t // n."""
        start, count = check_count("start", start, 0), check_count("count", count, 0)
        if start + count > 2**63:
            msg = f"start + count = {start + count} must be at most 2^63: positions are 64-bit integers"
            raise Error(msg)
        epoch, entry = np.divmod(np.arange(count, dtype=np.uint64) + np.uint64(start), np.uint64(self.n))
        key = _mix(_mix(np.array([self.seed], np.uint64)) + epoch * GOLDEN)  # mixed again: epochs share no round
        walking = np.arange(count)
        while walking.size:
            entry[walking] = self._network(entry[walking], key[walking])
            walking = walking[entry[walking] >= self.n]
        return entry.astype(np.int64)

    def _network(self, entry: NDArray[Any], key: NDArray[Any]) -> NDArray[Any]:
        half = max(1, ((self.n - 1).bit_length() + 1) // 2)
        left, right = entry >> half, entry & (2**half - 1)
        for _ in range(ROUNDS):
            key = key + GOLDEN
            left, right = right, left ^ (_mix(right + _mix(key)) >> (64 - half))
        return (left << half) | right


def _mix(x: NDArray[Any]) -> NDArray[Any]:
    """The finaliser of splitmix64, an invertible map of 64 bits that lets each input bit flip half of the output."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)
