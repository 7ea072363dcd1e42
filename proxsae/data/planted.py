"""Planted problems  x = D z + noise,  where dictionary, codes and supports are known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proxsae.conventions import Error, check_count, check_seed


@dataclass(frozen=True)
class Planted:
    """x (n, d_in), the atoms D (d_sae, d_in) of norm 1, and the codes z (n, d_sae) with k non-zeros a row."""

    x: NDArray[np.float64]
    D: NDArray[np.float64]
    z: NDArray[np.float64]


def planted(
    n: int,
    d_in: int,
    d_sae: int,
    k: int,
    *,
    signed: bool = True,
    dynamic_range: float = 1.0,
    noise: float = 0.0,
    seed: int = 0,
) -> Planted:
    """Draw x = z D + noise: Gaussian atoms of norm 1, uniform supports of k latents, float64.

    Magnitudes are log-uniform in [1, dynamic_range], so that max |z| / min |z| never exceeds `dynamic_range`; signs are
    fair coins, or all + when not `signed`.  `noise` is the standard deviation per coordinate of x.
    Raises `Error` for sizes < 1, k > d_sae, dynamic_range < 1 and noise < 0.

    >>> data = planted(n=4, d_in=8, d_sae=16, k=3)
    >>> bool(np.allclose(data.z @ data.D, data.x)), (data.z != 0).sum(axis=1)
    (True, array([3, 3, 3, 3]))
    """
    n, d_in, d_sae = check_count("n", n, 0), check_count("d_in", d_in, 1), check_count("d_sae", d_sae, 1)
    if check_count("k", k, 0) > d_sae:
        msg = f"k={k} must be at most d_sae={d_sae}: a code has that many latents"
        raise Error(msg)
    if not 1 <= dynamic_range < math.inf or not 0 <= noise < math.inf:
        msg = f"dynamic_range={dynamic_range} must be finite and >= 1, and noise={noise} finite and >= 0"
        raise Error(msg)
    rng = np.random.default_rng(check_seed(seed))
    D = rng.standard_normal((d_sae, d_in))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    support = np.argsort(rng.random((n, d_sae)), axis=1)[:, :k]
    magnitudes = np.exp(rng.uniform(0, math.log(dynamic_range), (n, k)))
    signs = rng.choice([-1.0, 1.0], (n, k)) if signed else 1.0
    z = np.zeros((n, d_sae))
    np.put_along_axis(z, support, signs * magnitudes, axis=1)
    return Planted(z @ D + noise * rng.standard_normal((n, d_in)), D, z)
