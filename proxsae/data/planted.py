"""Planted problems  x = D z + noise,  where dictionary, codes and supports are known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proxsae.conventions import Error, check_choice, check_count, check_finite, check_number, check_seed
from proxsae.data.files import floats

KINDS = ("flat", "correlated", "hierarchical")
GROUP = 8  # neighbouring latents that fire together, or a parent and its children; what is left over is a smaller group
RHO = 0.7  # correlation of the scores of two latents of a group


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
    kind: str = "flat",
    D: NDArray[np.float64] | None = None,
) -> Planted:
    """Draw x = z D + noise, float64, with Gaussian atoms of norm 1 and supports of exactly k latents.

    The support of a row is where its scores s_j are largest.  With u_j uniform in (0, 1), e_j and g standard normal,
    all independent, and groups of `GROUP` neighbouring latents {0 ... 7}, {8 ... 15}, ...:

    flat          s_j = u_j: every support is equally likely
    correlated    s_j = sqrt(RHO) g_group(j) + sqrt(1 - RHO) e_j: latents of a group tend to fire together, and all fire
                  about equally often
    hierarchical  the first latent of a group is the parent of the c others: s_parent = u_parent and
                  s_child = s_parent u_child^(1/c) < s_parent, so that a child fires only with its parent

    Magnitudes are log-uniform in [1, dynamic_range], so that max |z| / min |z| never exceeds `dynamic_range`; signs are
    fair coins, or all + when not `signed`.  `noise` is the standard deviation per coordinate of x.  With `D` (d_sae,
    d_in) these atoms are taken: another seed then gives fresh rows of the same problem.
    Raises `Error` for sizes < 1, k > d_sae, dynamic_range < 1, noise < 0, an unknown kind, and a D of another shape.

    >>> data = planted(n=4, d_in=8, d_sae=16, k=3)
    >>> bool(np.allclose(data.z @ data.D, data.x)), (data.z != 0).sum(axis=1)
    (True, array([3, 3, 3, 3]))
    """
    n, d_in, d_sae = check_count("n", n, 0), check_count("d_in", d_in, 1), check_count("d_sae", d_sae, 1)
    k = check_count("k", k, 0)
    if k > d_sae:
        msg = f"k={k} must be at most d_sae={d_sae}: a code has that many latents"
        raise Error(msg)
    dynamic_range, noise = check_number("dynamic_range", dynamic_range, ">= 1"), check_number("noise", noise, ">= 0")
    check_choice("kind", kind, KINDS)
    if D is not None:
        D = floats("D", D)
        check_finite("D", D)
        if D.shape != (d_sae, d_in):
            msg = f"D has shape {D.shape}, but must be (d_sae, d_in) = {(d_sae, d_in)}, an atom a row"
            raise Error(msg)
    rng = np.random.default_rng(check_seed(seed))
    if D is None:
        D = rng.standard_normal((d_sae, d_in))
        D /= np.linalg.norm(D, axis=1, keepdims=True)
    places = _places(kind, rng, n, d_sae)
    support = np.argsort(places, axis=1, kind="stable")[:, :k]  # where rounding ties them, a parent precedes its child
    magnitudes = np.exp(rng.uniform(0, math.log(dynamic_range), (n, k)))
    signs = rng.choice([-1.0, 1.0], (n, k)) if signed else 1.0
    z = np.zeros((n, d_sae))
    np.put_along_axis(z, support, signs * magnitudes, axis=1)
    return Planted(z @ D + noise * rng.standard_normal((n, d_in)), D, z)


def _places(kind: str, rng: np.random.Generator, n: int, d_sae: int) -> NDArray[np.float64]:
    """What the latents (n, d_sae) of each row are sorted by, the first k to fire: minus their scores, or as good."""
    if kind == "flat":
        return rng.random((n, d_sae))
    group = np.arange(d_sae) // GROUP
    if kind == "correlated":
        shared = rng.standard_normal((n, group[-1] + 1))
        own = rng.standard_normal((n, d_sae))
        return -(math.sqrt(RHO) * shared[:, group] + math.sqrt(1 - RHO) * own)
    parent = group * GROUP
    children = np.bincount(group)[group] - 1
    u = rng.random((n, d_sae))
    child = np.arange(d_sae) != parent
    scores = u.copy()
    scores[:, child] = u[:, parent[child]] * u[:, child] ** (1 / children[child])
    return -scores
