"""Learned layers in torch: the weights that a `LearnedRule` begins with, and the walk through its layers.

Each layer is a step  z+ = prox_{mu R}(z - mu D^T (D z - c))  with parts of it replaced: `proxsae.learned` lists them.
`tilt` is b_enc where it belongs to every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from proxsae.certificates import lipschitz
from proxsae.conventions import Error
from proxsae.learned import ALISTA, LISTA, LISTACP, Accumulated, LearnedRule, TiLISTA
from proxsae.minimal_coherence import minimal_coherence
from proxsae.penalties.base import with_lams
from proxsae.pytorch.codes import accumulator
from proxsae.pytorch.iteration import Point
from proxsae.pytorch.prox import has_kernel, in_kernel, prox
from proxsae.steps import step_dtype

WEIGHTS = ("log_step", "log_lam_factor", "W_step", "S_step")


def shapes_of(rule: LearnedRule, layers: int, D: Tensor, R: Any, encoder: bool = True) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights of so many layers, by name."""
    return rule.shapes(layers, len(D), D.shape[1], hasattr(R, "lam"), encoder)


@torch.no_grad()
def start(rule: LearnedRule, layers: int, D: Tensor, R: Any, encoder: bool = True) -> dict[str, Tensor]:
    """The weights that a rule begins with, on the dictionary D (P, d); without numbers where D has none ("meta").

    Statement: prop-lista-starts-as-ista.  Raises `Error` for 1/L out of the range of the dtype of D.
    """
    shapes = shapes_of(rule, layers, D, R, encoder)
    if D.is_meta:
        return {name: D.new_empty(shape) for name, shape in shapes.items()}
    wide = D.detach().double()
    mu, W, S = 1.0, wide, wide
    if not isinstance(rule, (Accumulated, ALISTA)) and getattr(rule, "start", "ista") == "ista":
        L = lipschitz(D)
        if step_dtype(L, D) not in (torch.float32, D.dtype):
            msg = f"{rule!r} starts at 1/L={1 / L:.3g}, out of the range of {D.dtype}: scale the rows of W_dec"
            msg += " to norm 1, or call sae.double() first (def-lipschitz)"
            raise Error(msg)
        mu = 1 / L
    if isinstance(rule, LISTA):
        gram = torch.eye(len(D), dtype=wide.dtype, device=D.device) - mu * (wide @ wide.T)
        S = gram if rule.start == "ista" else torch.zeros_like(gram)
        W = wide if rule.shared else mu * wide
    elif isinstance(rule, LISTACP):
        W = mu * wide
    elif isinstance(rule, ALISTA):
        W = torch.as_tensor(minimal_coherence(wide)[0])
        mu = 1 / float(torch.linalg.matrix_norm(wide @ W.T, 2))
    elif isinstance(rule, Accumulated):
        mu = rule.eta
    values = {"log_step": wide.new_tensor(math.log(mu)), "log_lam_factor": wide.new_zeros(()), "W_step": W, "S_step": S}
    return {
        name: torch.empty(shape, dtype=D.dtype, device=D.device).copy_(values[name]) for name, shape in shapes.items()
    }


def walk(
    rule: LearnedRule,
    weights: Mapping[str, Tensor],
    layers: int,
    point: Point,
    R: Any,
    W_enc: Tensor | None = None,
    u: Tensor | None = None,
    tilt: Tensor | None = None,
) -> Iterator[Point]:
    """Yield the point and one more for each layer.

    W_enc (d, P) and pre-activations u (B, P) are those of an SAE, which has made the code of `point` from u; without an
    SAE the code there is 0.
    """
    yield point
    cost, c = rule.cost(*point.D.shape), point.c

    def layer(name: str, t: int) -> Tensor:
        """The weight of layer t, which may be that of all."""
        return weights[name][t if len(weights[name]) > 1 else 0]

    if u is None:
        u = c @ layer("W_step", 0).T if isinstance(rule, LISTA) and rule.shared else c.new_zeros(())
    h = u
    for t in range(layers):
        mu = _exp(weights["log_step"][t]) if "log_step" in weights else torch.ones((), device=c.device)
        Rt = _with_factor(R, weights["log_lam_factor"][t]) if "log_lam_factor" in weights else R
        if isinstance(rule, LISTA):
            v = point.z @ layer("S_step", t).T
            v = v + (_scaled(mu, u) if rule.shared else c @ layer("W_step", t).T)
        elif isinstance(rule, LISTACP):
            v = point.z - point.residual() @ layer("W_step", t).T
        elif isinstance(rule, TiLISTA):
            v = point.z - _scaled(mu, point.residual() @ layer("W_step", t).T)
        elif isinstance(rule, Accumulated):
            h = v = h - _scaled(mu, point.residual() @ cast(Tensor, W_enc))
            mu = torch.ones_like(mu)
        else:
            g = point.residual() @ point.D.T
            v = point.z - _scaled(mu, g if tilt is None else g - tilt)
        z = _selected(Rt, v, mu, min((t + 1) * getattr(rule, "select", 0.0), getattr(rule, "most", 1.0)))
        felt = in_kernel(Rt, v, mu) if has_kernel(Rt) else None
        point = Point(z, c, point.D, point.spent + cost, tilt=tilt, felt=felt)
        yield point


def _exp(log: Tensor) -> Tensor:
    return log.to(accumulator(log.dtype)).exp()


def _scaled(mu: Tensor, a: Tensor) -> Tensor:
    return (mu * a.to(mu.dtype)).to(a.dtype)


def _with_factor(R: Any, log_factor: Tensor) -> Any:
    """R with its weights times a factor; of an infinite one nothing hangs on it."""
    factor = log_factor.double().exp()

    def times(lam: Any) -> Tensor:
        lam = (lam if isinstance(lam, Tensor) else torch.as_tensor(np.array(lam))).to(factor.device)
        return torch.where(lam.isinf(), lam, lam * torch.where(lam.isinf(), factor.detach(), factor))

    return with_lams(R, times)


def _selected(R: Any, v: Tensor, mu: Tensor, share: float) -> Tensor:
    """prox_{mu R}(v), where a share of each row, the largest entries, is not shrunk if it passes the threshold."""
    z, size = prox(R, v, mu), int(share * v.shape[-1])
    if not size:
        return z
    largest = torch.zeros_like(v, dtype=torch.bool).scatter(-1, v.detach().abs().topk(size).indices, True)
    return torch.where(largest & (z != 0), v, z)
