"""The encoders that a depth study can be asked for by name: what each is, and the penalties that it goes with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from proxsae.conventions import Error, did_you_mean
from proxsae.learned import NAMED, Greedy, LearnedRule
from proxsae.penalties import KSparse
from proxsae.steps import ExactStep, Lipschitz, Refit, Rule

COMPUTED, GREEDY, LEARNED, DISTILLED = "computed", "greedy", "learned layers", "encoder trained again"


@dataclass(frozen=True)
class Way:
    """One way from rows to codes on a frozen dictionary.

    title   in tables and pictures
    family  one of those above: what is trained, if anything is
    steps   the numbers of steps that are measured; () stands for k, one an atom
    rule    of the steps after the first
    towards what it is trained towards, as `distill` has it; "" where nothing is trained
    """

    title: str
    family: str
    steps: tuple[float, ...]
    rule: Rule | None = None
    towards: str = ""


_TITLES = {
    "slista": "SLISTA",
    "learned": "learned steps, thresholds",
    "lista": "LISTA",
    "lista-zero": "LISTA, S = 0",
    "lista-cp": "LISTA-CP",
    "tilista": "TiLISTA",
    "alista": "ALISTA",
    "accumulated": "accumulated",
    "mp": "matching pursuit",
    "omp": "OMP",
}
DEEP = 16  # exact steps whose codes are distilled
ENCODERS: dict[str, Way] = {
    "one-step": Way("one step", COMPUTED, (1,)),
    "exact": Way("exact line steps", COMPUTED, (2, 4, DEEP), ExactStep()),
    "lipschitz": Way("steps of 1/L", COMPUTED, (2, 4, DEEP), Lipschitz()),
    "refit": Way("refits", COMPUTED, (2, 4, DEEP), Refit()),
    "fista": Way("FISTA", COMPUTED, (4, DEEP), Lipschitz()),
    "inf": Way("solved", COMPUTED, (math.inf,)),
    **{name: Way(_TITLES[name], GREEDY, (), rule) for name, rule in NAMED.items() if isinstance(rule, Greedy)},
    "distilled": Way("distilled towards codes", DISTILLED, (1, 2), ExactStep(), "codes"),
    "tuned": Way("trained on, for the error", DISTILLED, (1, 2), ExactStep(), "error"),
    **{
        name: Way(_TITLES[name], LEARNED, (2, 4), rule, "error")
        for name, rule in NAMED.items()
        if isinstance(rule, LearnedRule)
    },
}
ALWAYS = ("one-step", "exact")  # what all others are compared with
# ALISTA solves for its weights for a minute a dictionary, so that it is done where it is named.
UNNAMED = tuple(name for name in ENCODERS if name != "alista")


def check_encoders(names: Any) -> tuple[str, ...]:
    """The names of encoders as a tuple, or `Error` for an unknown one."""
    several = (names,) if isinstance(names, str) else names
    if not isinstance(several, (list, tuple)) or not all(isinstance(name, str) for name in several):
        msg = f"--encoders {names!r} must be names such as ('omp', 'lista')"
        raise Error(msg)
    for name in several:
        if name not in ENCODERS:
            near = did_you_mean(name, ENCODERS) or f": they are {', '.join(ENCODERS)}"
            msg = f"--encoders {name!r} is no encoder of this study{near}"
            raise Error(msg)
    return tuple(dict.fromkeys(several))


def asked(names: Sequence[str]) -> tuple[str, ...]:
    """The encoders of a study, in the order above: those named, and those that all are compared with."""
    wanted = {*(names or UNNAMED), *ALWAYS}
    return tuple(name for name in ENCODERS if name in wanted)


def misfit(name: str, R: Any) -> str:
    """Why an encoder cannot go with a penalty, or "" where it can."""
    way = ENCODERS[name]
    sparse = isinstance(R, KSparse)
    if name == "fista" and not R.convex:
        return "needs a convex penalty (thm-fista-rate)"
    if name == "refit" and not sparse:
        return "has codes of unequal density with a penalty that has a λ"
    if way.family == GREEDY and not sparse:
        return "takes an atom a step, so that it is for k-sparse codes"
    if name == "learned" and not hasattr(R, "lam"):
        return "has no λ to learn a threshold for, and so is SLISTA"
    return ""
