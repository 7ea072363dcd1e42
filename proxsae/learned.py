"""Encoders whose steps no theorem computes, as values: learned layers, from LISTA to ALISTA, and greedy pursuit.

A learned layer replaces parts of the step  z+ = prox_{mu R}(z - mu D^T (D z - c)),  c = x - b,  by weights:

    LearnedSteps   z+ = prox_{mu_t R_t}(z - mu_t D^T (D z - c))                one number and one factor of lam a layer
    LISTA          z+ = prox_{mu_t R}(S z + mu_t u)  or  prox_{mu_t R}(S_t z + W_t^T c)
    LISTACP        z+ = prox_{mu_t R}(z - W_t^T (D z - c))
    TiLISTA        z+ = prox_{mu_t R_t}(z - mu_t W^T (D z - c))                one trained W
    ALISTA         the same with a W that is computed, and not trained
    Accumulated    z+ = prox_R(h),  h+ = h - eta W_enc^T (D z - c)

Each says which weights it has (`shapes`) and what a layer costs; `pytorch/learned.py` and `pytorch/greedy.py` carry
them out, in an SAE (`px.SAE(..., step=...)`), or on a known dictionary (`px.Unrolled`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from proxsae.conventions import Error, check_choice, check_number
from proxsae.penalties import L1, KSparse
from proxsae.penalties.base import runs
from proxsae.steps import Rule

Shapes = dict[str, tuple[int, ...]]


class LearnedRule(Rule, ABC):
    """A rule with weights of its own: `log_step` (mu), `log_lam_factor`, `W_step` and `S_step`, a layer a row.

    fixed  those of them that are not trained
    """

    fixed: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def shapes(self, layers: int, d_sae: int, d_in: int, lam: bool, encoder: bool) -> Shapes:
        """The weights by name.

        lam      whether R has one, so that a step size mu matters to its prox
        encoder  whether an SAE has made the first code; else a first layer starts from z = 0
        """

    def cost(self, d_sae: int, d_in: int) -> float:
        """Products with the dictionary that a layer costs a row."""
        return 2.0

    def check(self, R: Any) -> None:
        """Raise `Error` where R does not fit."""


@dataclass(frozen=True)
class LearnedSteps(LearnedRule):
    """One trained mu per step and, for a penalty with lam, one trained factor of it.  They start at 1/L and 1: as ISTA.

    thresholds: without them only step sizes are trained, which is SLISTA (Ablin, Moreau, Massias and Gramfort 2019).

    In an SAE the first step is the learned encoder.  For L0 the factors are learned thresholds, one a step.  Nothing
    holds the step sizes at 1/L, so no descent is promised.  Statement: prop-lista-starts-as-ista.

    >>> LearnedSteps()
    LearnedSteps(thresholds=True)
    """

    thresholds: bool = True

    def __post_init__(self) -> None:
        _check_flag("LearnedSteps: thresholds", self.thresholds)

    def shapes(self, layers: int, d_sae: int, d_in: int, lam: bool, encoder: bool) -> Shapes:
        """mu, and the factor of lam."""
        found: Shapes = {"log_step": (layers,)}
        return found | ({"log_lam_factor": (layers,)} if lam and self.thresholds else {})


@dataclass(frozen=True)
class LISTA(LearnedRule):
    """Learned ISTA (Gregor and LeCun 2010): the map from code to code is a trained P x P matrix S.

        shared       z+ = prox_{mu_t R}(S z + mu_t u),       u = (x - b_dec) W_enc + b_enc, the pre-activations
        not shared   z+ = prox_{mu_t R}(S_t z + W_t^T c),    c = x - b_dec

    shared: one S for all layers, and the encoder for W; with `KSparse` this is the iSAE of ICML 2026.  Else each layer
    has its own S_t (P, P) and W_t (P, d).
    start: "ista", where S = I - D^T D / L and mu = 1/L, so that the layer is the ISTA step of a tied encoder; or
    "zero", where S = 0 and mu = 1, so that every layer gives the code of the encoder alone.

    S costs P / d products a layer and holds P^2 numbers.  Nothing ties it to D (thm-coupling-is-necessary says what
    that costs a network that is to converge), and no descent is promised.  Statement: prop-lista-starts-as-ista.

    >>> LISTA(start="zero")
    LISTA(shared=True, start='zero')
    """

    shared: bool = True
    start: str = "ista"

    def __post_init__(self) -> None:
        _check_flag("LISTA: shared", self.shared)
        check_choice("LISTA: start", self.start, ("ista", "zero"))

    def shapes(self, layers: int, d_sae: int, d_in: int, lam: bool, encoder: bool) -> Shapes:
        """S, W where no encoder stands for it, and mu, which scales u or matters to the prox."""
        found: Shapes = {"S_step": (1 if self.shared else layers, d_sae, d_sae)}
        if not (self.shared and encoder):
            found["W_step"] = (1 if self.shared else layers, d_sae, d_in)
        return found | ({"log_step": (layers,)} if lam or self.shared else {})

    def cost(self, d_sae: int, d_in: int) -> float:
        """S has P / d times as many entries as D; u is at hand."""
        return d_sae / d_in + (0.0 if self.shared else 1.0)


@dataclass(frozen=True)
class _Selecting(LearnedRule):
    """A rule with support selection: in layer t = 1, 2, ... the largest entries are not shrunk.

    select, most: shares of the P entries in [0, 1]; layer t takes min(t select, most).  For L1, since only it shrinks.
    """

    select: float = 0.0
    most: float = 1.0

    def __post_init__(self) -> None:
        for name in ("select", "most"):
            given = f"{type(self).__name__}: {name}"
            share = check_number(given, getattr(self, name), ">= 0", ", a share of the entries")
            if share > 1:
                msg = f"{given}={share:g} must be at most 1: it is a share of the entries"
                raise Error(msg)
            object.__setattr__(self, name, share)

    def check(self, R: Any) -> None:
        if self.select and not runs(R, L1):
            msg = f"{self!r} passes the largest entries unshrunk, but {R!r} is not L1: leave select at 0"
            raise Error(msg)


@dataclass(frozen=True)
class LISTACP(_Selecting):
    """LISTA with coupled weights:  z+ = prox_{mu_t R}(z - W_t^T (D z - c)),  with W_t (P, d) and mu_t for each layer.

    It starts with W_t = D / L and mu_t = 1/L: as ISTA.  With `select` > 0 it is LISTA-CPSS (support selection): of the
    entries that pass the threshold, those among the t select P largest magnitudes, at most most P, are not shrunk.
    The coupling S_t = I - W_t^T D is necessary for a network that converges (thm-coupling-is-necessary; Chen, Liu, Wang
    and Yin 2018, with a linear rate for weights that exist; trained ones are not proved to have it).

    >>> LISTACP(select=0.012, most=0.12)
    LISTACP(select=0.012, most=0.12)
    """

    def shapes(self, layers: int, d_sae: int, d_in: int, lam: bool, encoder: bool) -> Shapes:
        """W of each layer, and mu where it matters to the prox."""
        return {"W_step": (layers, d_sae, d_in)} | ({"log_step": (layers,)} if lam else {})


@dataclass(frozen=True)
class TiLISTA(_Selecting):
    """Tied LISTA:  z+ = prox_{mu_t R_t}(z - mu_t W^T (D z - c)),  one trained W (P, d) for all layers.

    mu_t and the factor of lam in R_t are trained, one each a layer.  It starts with W = D, mu_t = 1/L and factor 1: as
    ISTA (prop-lista-starts-as-ista; Liu, Chen, Wang and Yin 2019).  `select` and `most` are those of `LISTACP`.

    >>> TiLISTA()
    TiLISTA(select=0.0, most=1.0)
    """

    def shapes(self, layers: int, d_sae: int, d_in: int, lam: bool, encoder: bool) -> Shapes:
        """W, mu and the factor of lam."""
        return {"W_step": (1, d_sae, d_in), "log_step": (layers,)} | ({"log_lam_factor": (layers,)} if lam else {})


@dataclass(frozen=True)
class ALISTA(TiLISTA):
    """`TiLISTA` with a W that is computed from D and not trained: 2 T numbers are all that is learned.

    W has w_i^T d_i = 1 and the least max_{j != i} |w_i^T d_j| (`minimal_coherence`, to its certificate), worked out
    when the rule is given to an SAE or to `Unrolled`; where D is trained afterwards, W stays.  It starts with
    mu_t = 1 / ||W^T D||, and so is not ISTA.  For known D, no noise, few non-zeros and the thresholds of the theorem
    its supports are never wrong and its rate is linear (thm-alista-rate; Liu, Chen, Wang and Yin 2019); of trained
    thresholds that is not proved.

    Raises `Error` for a dictionary with an atom that is zero or parallel to another.

    >>> ALISTA().fixed
    ('W_step',)
    """

    fixed: ClassVar[tuple[str, ...]] = ("W_step",)


@dataclass(frozen=True)
class Accumulated(LearnedRule):
    """Pre-activations that accumulate:  h+ = h - eta W_enc^T (D z - c),  z+ = prox_R(h+),  from h = u.

    It is the encoder that its author calls LISTA-Matryoshka (chanind 2026).

    eta: of every step, > 0; trained, one a layer, where `learned`.

    The residual of z is added to h, which z was cut out of, and not to z: from the second code on this is not ISTA, and
    no descent is promised.  For SAEs with atoms of norm 1; without an encoder there is no h to begin with.

    >>> Accumulated(eta=0.1)
    Accumulated(eta=0.1, learned=False)
    """

    eta: float = 0.3
    learned: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", check_number("Accumulated: eta", self.eta, "> 0"))
        _check_flag("Accumulated: learned", self.learned)

    @property
    def fixed(self) -> tuple[str, ...]:  # type: ignore[override]
        """eta, where it is not learned."""
        return () if self.learned else ("log_step",)

    def shapes(self, layers: int, d_sae: int, d_in: int, lam: bool, encoder: bool) -> Shapes:
        """eta."""
        if not encoder:
            msg = f"{self!r} begins with the pre-activations of an encoder, so it is for px.SAE: give LearnedSteps()"
            raise Error(msg)
        return {"log_step": (layers,)}


class Greedy(Rule):
    """A rule that adds one atom a step, from z = 0, without the encoder's weights; for `KSparse` with steps <= k."""

    def check(self, R: Any, steps: float) -> None:
        """Raise `Error` unless R is k-sparse, of as many atoms."""
        if not runs(R, KSparse) or steps > R.k:
            msg = f"{self!r} takes an atom a step, so it needs KSparse(k) with k >= steps={steps}, not {R!r}"
            raise Error(msg)


@dataclass(frozen=True)
class MatchingPursuit(Greedy):
    """Matching pursuit: T times  j = argmax_j |d_j^T r| / ||d_j||,  v = d_j^T r / ||d_j||^2,  z_j += v,  r -= v d_j.

    With `nonneg` only d_j^T r > 0 counts.  An atom may be taken again, so that the code has at most T non-zeros.
    ||r|| never grows (Mallat and Zhang 1993).  Gradients flow through the atoms that were taken, their choice is held.
    It is the encoder of the MP-SAE (Costa et al. 2025).

    >>> MatchingPursuit()
    MatchingPursuit()
    """


@dataclass(frozen=True)
class OMP(Greedy):
    """Orthogonal matching pursuit: T times the atom with the largest |d_j^T r| / ||d_j||, then least squares on all.

    With `nonneg` only d_j^T r > 0 counts, and the move towards the least-squares code stops where an entry would change
    its sign (thm-refit).  If x = D z with few non-zeros and D is incoherent it finds z (Tropp 2004).  Gradients are
    those of the last least squares, with the support held (thm-implicit-gradient), so that memory does not grow with T.

    >>> OMP()
    OMP()
    """


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        msg = f"{name}={value!r} must be True or False"
        raise Error(msg)


LEARNED: dict[str, type[LearnedRule]] = {
    rule.__name__: rule for rule in (LearnedSteps, LISTA, LISTACP, TiLISTA, ALISTA, Accumulated)
}
GREEDY: dict[str, type[Greedy]] = {rule.__name__: rule for rule in (MatchingPursuit, OMP)}
# What commands call them.
NAMED: dict[str, Rule] = {
    "learned": LearnedSteps(),
    "slista": LearnedSteps(thresholds=False),
    "lista": LISTA(),
    "lista-zero": LISTA(start="zero"),
    "lista-cp": LISTACP(),
    "tilista": TiLISTA(),
    "alista": ALISTA(),
    "accumulated": Accumulated(),
    "mp": MatchingPursuit(),
    "omp": OMP(),
}
