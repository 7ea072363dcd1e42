"""What an SAE is beside its weights: how it encodes (`Encoding`), and what its twins share (`Common`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from proxsae.certificates import squared_norm
from proxsae.conventions import Error, check_choice, check_count, shown
from proxsae.learned import Greedy, LearnedRule, LearnedSteps
from proxsae.penalties import Penalty
from proxsae.pytorch.codes import Pages
from proxsae.pytorch.cost_model import Plan
from proxsae.pytorch.ksparse_encoder import Gram
from proxsae.sae.team import Team
from proxsae.steps import FixedStep, Lipschitz, Refit, Rule, check_rule, how_to_solve


@dataclass(frozen=True)
class Encoding:
    """T encoder steps.  The first is the learned encoder; the others are chosen here.

    steps     T >= 1; or math.inf, where the code is that of `solve`, and the encoder's weights are not used
    rule      of steps 2 ... T by the dictionary, None standing for `Lipschitz()`, that is mu = 1/L; a `LearnedRule`; or
              a `Greedy` one, which takes all T steps and does not use the encoder's weights
    analysis  "dictionary": steps 2 ... T use W_dec; "encoder": W_enc in place of W_dec^T, with mu = 1 and no rule
    b_enc     "first": b_enc acts in the first step only; "every": it is the term -<b_enc, z> of the objective

    Raises `Error` for other values, and for a rule beside analysis="encoder".
    """

    steps: float = 1
    rule: Rule | None = None
    analysis: str = "dictionary"
    b_enc: str = "first"

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", check_steps(self.steps))
        if not (self.rule is None or isinstance(self.rule, Rule)):
            msg = (
                f"step={shown(self.rule)} must be a step rule, such as ExactStep() or FixedStep(0.1), or LearnedSteps()"
            )
            raise Error(msg)
        check_choice("analysis", self.analysis, ("dictionary", "encoder"))
        if self.analysis == "encoder" and (self.rule is not None or self.endless):
            given = f"steps={self.steps}" if self.rule is None else f"step={self.rule!r}"
            msg = f"{given} cannot go with analysis='encoder': a learned encoder takes some unit steps"
            raise Error(msg)
        check_choice("b_enc", self.b_enc, ("first", "every"))
        if self.b_enc == "every" and (self.endless or not self.tilts):
            given = f"steps={self.steps}" if self.endless else f"step={self.rule!r}"
            why = "its least squares know no linear term (thm-refit)"
            why = why if isinstance(self.rule, Refit) or self.endless else "it knows no linear term"
            msg = f"{given} cannot go with b_enc='every': {why}"
            raise Error(msg)

    @property
    def tilts(self) -> bool:
        """Whether the steps can have b_enc as a linear term."""
        other = isinstance(self.rule, (LearnedRule, Greedy)) and not isinstance(self.rule, LearnedSteps)
        return not other and not isinstance(self.rule, Refit)

    @property
    def step(self) -> Rule:
        """The rule, `Lipschitz()` where none is given."""
        return Lipschitz() if self.rule is None else self.rule

    @property
    def learned(self) -> LearnedRule | None:
        """The rule, where it has weights."""
        return self.rule if isinstance(self.rule, LearnedRule) else None

    @property
    def endless(self) -> bool:
        """Whether the code is that of `solve`."""
        return math.isinf(self.steps)

    @property
    def encodes(self) -> bool:
        """Whether the encoder's weights make the first code; else it starts from z = 0, with the dictionary alone."""
        return not self.endless and not isinstance(self.rule, Greedy)

    def check(self, R: Penalty, W_dec: Tensor) -> None:
        """Raise `Error` where R or the dictionary breaks a hypothesis of the rule."""
        if self.endless:
            self._check_endless(R)
        elif isinstance(self.rule, Greedy):
            self.rule.check(R, self.steps)
        elif isinstance(self.rule, LearnedRule):
            self.rule.check(R)
        else:
            # the others are below 2/L by definition
            rule: Any = self.step
            least = squared_norm(W_dec)[0] if isinstance(rule, FixedStep) else 1.0
            check_rule(rule, None, "last", R, least)

    def _check_endless(self, R: Penalty) -> None:
        ends = how_to_solve(R)[0]
        if self.rule not in (None, ends):
            msg = f"steps=inf with step={self.rule!r} need not end: leave step out to solve for {type(R).__name__}"
            raise Error(msg)
        if not (R.affine and R.rowwise):
            msg = f"steps=inf has gradients for L1, L0 and KSparse, row by row, not for {R!r} (thm-implicit-gradient)"
            raise Error(msg)


def check_steps(steps: Any) -> float:
    """Return a number of encoder steps: a whole number >= 1, or math.inf; else raise `Error`."""
    if isinstance(steps, float) and steps == math.inf:
        return math.inf
    return check_count("steps", steps, 1)


@dataclass
class Common:
    """What twins on the same weights share beside them: a change of lam through one is a change for all.

    penalty    R; of an L0 SAE the weight `threshold` holds lam, and this its sign and bandwidth
    team       the other processes, on a shard
    pages      memory for large gradients, used again
    norm       `certificates.squared_norm` of W_dec, and marks of the W_dec that it was worked out for
    """

    penalty: Penalty
    team: Team | None = None
    pages: Pages = field(default_factory=Pages)
    norm: tuple[int | None, Tensor, tuple[float, float]] | None = None


@dataclass
class Stream:
    """What `frozen` decided for all batches of a stream, and D^T D with the marks of the W_dec that it was made of."""

    plan: Plan
    gram: tuple[Tensor, Gram] | None = None
