"""Planted problems  x = D z + noise,  where dictionary, codes and supports are known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proxsae.conventions import Error, check_choice, check_count, check_finite, check_number, check_seed
from proxsae.data.files import floats
from proxsae.data.synthetic import Synthetic, spread_atoms

KINDS = ("flat", "correlated", "hierarchical")
GROUP = 8  # neighbouring latents that fire together, or a parent and its children; what is left over is a smaller group
RHO = 0.7  # correlation of the scores of two latents of a group


@dataclass(frozen=True)
class Planted:
    """x (n, d_in), the atoms D (d_sae, d_in) of norm 1, the codes z (n, d_sae), and the bias (d_in,) of x."""

    x: NDArray[np.float64]
    D: NDArray[np.float64]
    z: NDArray[np.float64]
    bias: NDArray[np.float64]


def planted(
    n: int,
    d_in: int,
    d_sae: int,
    k: int,
    *,
    signed: bool | None = None,
    dynamic_range: float = 1.0,
    noise: float = 0.0,
    seed: int = 0,
    kind: str = "flat",
    D: NDArray[np.float64] | None = None,
) -> Planted:
    """Draw x = z D + bias + noise, float64, with Gaussian atoms of norm 1; codes have k non-zeros.

    In three kinds every row has exactly k non-zeros, and bias = 0.  The support of a row is where its scores s_j are
    largest.  With u_j uniform in (0, 1), e_j and g standard normal, all independent, and groups of `GROUP` neighbouring
    latents {0 ... 7}, {8 ... 15}, ...:

    flat          s_j = u_j: every support is equally likely
    correlated    s_j = sqrt(RHO) g_group(j) + sqrt(1 - RHO) e_j: latents of a group tend to fire together, and all fire
                  about equally often
    hierarchical  the first latent of a group is the parent of the c others: s_parent = u_parent and
                  s_child = s_parent u_child^(1/c) < s_parent, so that a child fires only with its parent

    Their magnitudes are log-uniform in [1, dynamic_range], so that max |z| / min |z| never exceeds `dynamic_range`.

    synthsae      the second version of SynthSAEBench at any size; k non-zeros a row on average:
        firing     latent j = 1 ... P fires with probability c (1 + 799 (j^(-1/2) - P^(-1/2)) / (1 - P^(-1/2))), with
                   the c that makes k of it; drawn by normal scores, which 25 common factors correlate by some 0.05
        trees      the first max(1, P // 128) latents are roots; the next are, level by level, four children of each
                   parent, three levels deep; the rest are in no tree.  A child fires only with its parent, and of the
                   children drawn beside each other only one, at random.  Children are drawn more often to make up for
                   it, which a probability of 1 does not always allow
        magnitudes normal, about a mean that falls linearly from 5 for the first latent to 4 for the last, with a
                   deviation |N(0.5, 0.5^2)| a latent; a child's is multiplied by the parent's over the parent's mean
        atoms      as made more orthogonal by 100 small steps; the bias has norm 0.5
    Deviations, factors and the bias depend on d_in and P = d_sae alone.

    signed: whether signs are fair coins, or all +; by default they are all + for synthsae, as there.
    noise: the standard deviation per coordinate of x.
    D: atoms (d_sae, d_in) to take: another seed then gives fresh rows of the same problem.

    Raises `Error` for sizes < 1, k > d_sae, dynamic_range < 1, noise < 0, an unknown kind, a D of another shape; for
    synthsae also for a k that needs a probability above 1, and for a dynamic_range.

    Source: sae-lens 6.54, `SyntheticModelConfig`.

    >>> data = planted(n=4, d_in=8, d_sae=16, k=3)
    >>> bool(np.allclose(data.z @ data.D, data.x)), (data.z != 0).sum(axis=1)
    (True, array([3, 3, 3, 3]))
    >>> data = planted(n=1000, d_in=24, d_sae=128, k=2, kind="synthsae")
    >>> bool(np.allclose(data.z @ data.D + data.bias, data.x)), round((data.z != 0).sum(axis=1).mean())
    (True, 2)
    """
    n, d_in, d_sae = check_count("n", n, 0), check_count("d_in", d_in, 1), check_count("d_sae", d_sae, 1)
    k = check_count("k", k, 0)
    if k > d_sae:
        msg = f"k={k} must be at most d_sae={d_sae}: a code has that many latents"
        raise Error(msg)
    dynamic_range, noise = check_number("dynamic_range", dynamic_range, ">= 1"), check_number("noise", noise, ">= 0")
    check_choice("kind", kind, (*KINDS, "synthsae"))
    synthetic = Synthetic(d_in, d_sae, k) if kind == "synthsae" else None
    if synthetic and dynamic_range != 1:
        msg = f"dynamic_range={dynamic_range:g} must be 1 for kind='synthsae', which has magnitudes of its own"
        raise Error(msg)
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
        D = spread_atoms(D) if synthetic else D
    if synthetic:
        z, bias = synthetic.codes(rng, n), synthetic.bias
        z = z * rng.choice([-1.0, 1.0], z.shape) + 0.0 if signed else z
    else:
        z, bias = _exactly(kind, rng, (n, d_sae), k, dynamic_range, signed is not False), np.zeros(d_in)
    return Planted(z @ D + bias + noise * rng.standard_normal((n, d_in)), D, z, bias)


def _exactly(
    kind: str, rng: np.random.Generator, shape: tuple[int, int], k: int, dynamic_range: float, signed: bool
) -> NDArray[np.float64]:
    """Codes (n, d_sae) with k non-zeros a row."""
    n, d_sae = shape
    places = _places(kind, rng, n, d_sae)
    support = np.argsort(places, axis=1, kind="stable")[:, :k]  # where rounding ties them, a parent precedes its child
    magnitudes = np.exp(rng.uniform(0, math.log(dynamic_range), (n, k)))
    signs = rng.choice([-1.0, 1.0], (n, k)) if signed else 1.0
    z = np.zeros(shape)
    np.put_along_axis(z, support, signs * magnitudes, axis=1)
    return z


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
