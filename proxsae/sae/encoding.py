"""What an SAE is beside its weights: how it encodes (`Encoding`), and what its twins share (`Common`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from proxsae.certificates import squared_norm
from proxsae.conventions import Error, check_choice, check_count, shown
from proxsae.penalties import Penalty
from proxsae.pytorch.codes import Pages
from proxsae.pytorch.cost_model import Plan
from proxsae.pytorch.ksparse_encoder import Gram
from proxsae.sae.team import Team
from proxsae.steps import FixedStep, LearnedSteps, Lipschitz, Refit, StepRule, check_rule


@dataclass(frozen=True)
class Encoding:
    """T encoder steps.  The first is the learned encoder; the others are chosen here.

    steps     T >= 1
    rule      of steps 2 ... T by the dictionary; None stands for `Lipschitz()`, that is mu = 1/L
    analysis  "dictionary": steps 2 ... T use W_dec; "encoder": W_enc in place of W_dec^T, with mu = 1 and no rule
    b_enc     "first": b_enc acts in the first step only; "every": it is the term -<b_enc, z> of the objective

    Raises `Error` for other values, and for a rule beside analysis="encoder".
    """

    steps: int = 1
    rule: StepRule | LearnedSteps | None = None
    analysis: str = "dictionary"
    b_enc: str = "first"

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", check_count("steps", self.steps, 1))
        if not (self.rule is None or isinstance(self.rule, (StepRule, LearnedSteps))):
            msg = (
                f"step={shown(self.rule)} must be a step rule, such as ExactStep() or FixedStep(0.1), or LearnedSteps()"
            )
            raise Error(msg)
        check_choice("analysis", self.analysis, ("dictionary", "encoder"))
        if self.analysis == "encoder" and self.rule is not None:
            msg = f"step={self.rule!r} cannot go with analysis='encoder': a learned encoder takes unit steps"
            raise Error(msg)
        check_choice("b_enc", self.b_enc, ("first", "every"))
        if self.b_enc == "every" and isinstance(self.rule, Refit):
            msg = "step=Refit() cannot go with b_enc='every': its least squares know no linear term (thm-refit)"
            raise Error(msg)

    @property
    def step(self) -> StepRule | LearnedSteps:
        """The rule, `Lipschitz()` where none is given."""
        return Lipschitz() if self.rule is None else self.rule

    @property
    def learned(self) -> bool:
        """Whether the sizes of the steps are weights."""
        return isinstance(self.rule, LearnedSteps)

    def check(self, R: Penalty, W_dec: Tensor) -> None:
        """Raise `Error` where R or the dictionary breaks a hypothesis of the rule; a learned rule has none."""
        if not isinstance(self.step, LearnedSteps):
            # the others are below 2/L by definition
            least = squared_norm(W_dec)[0] if isinstance(self.step, FixedStep) else 1.0
            check_rule(self.step, None, "last", R, least)


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
