"""An unrolled network on a known dictionary: T layers from z = 0, for inverse problems; no SAE."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from proxsae.certificates import squared_norm
from proxsae.conventions import check_count, check_problem
from proxsae.learned import Greedy, LearnedRule, LearnedSteps
from proxsae.penalties import Penalty
from proxsae.pytorch import learned
from proxsae.pytorch.arithmetic import seeing
from proxsae.pytorch.autocast import outside_autocast
from proxsae.pytorch.greedy import pursue
from proxsae.pytorch.iteration import Point, iterate
from proxsae.steps import as_rule, check_reached, check_rule


class Unrolled(nn.Module):
    """T steps of  min_z 1/2 ||x - D z||^2 + R(z)  from z = 0, as a module: rows x (..., d) -> codes z_T (..., P).

    D: the dictionary (P, d), atoms as rows; kept as a buffer, which is not trained.
    penalty: R.
    steps: the number T of layers.
    step: a learned rule, whose weights are the parameters of the module, by default `LearnedSteps()`; or a step rule or
    a greedy one, which have none.  What each starts as, and what is promised of it, is in its own words.

    Its `state_dict` is what it has learned, and D.  A code is trained by whatever loss asks for, such as
    ||z_T - z||^2 on planted codes z; `walk` gives the codes of all layers, for layer-wise training.
    Statement: prop-lista-starts-as-ista.
    Raises `Error` for a D that is no dictionary, and where the rule does not fit R or D.

    >>> import proxsae as px
    >>> D = torch.nn.functional.normalize(torch.randn(20, 10), dim=1)
    >>> net = px.Unrolled(D, px.L1(0.1), steps=3, step=px.LISTACP())
    >>> bool(torch.allclose(net(D[:2]), px.ista(D[:2], D, px.L1(0.1), steps=3).codes, atol=1e-5))
    True
    >>> sorted(name for name, _ in net.named_parameters())
    ['W_step', 'log_step']
    """

    D: Tensor

    def __init__(self, D: Tensor, penalty: Penalty, steps: int, step: Any = None) -> None:
        super().__init__()
        self.penalty, self.steps = penalty, check_count("steps", steps, 1)
        check_problem(D[:1], D, R=penalty)
        self.register_buffer("D", D.detach().clone())
        self.rule = LearnedSteps() if step is None else step
        if isinstance(self.rule, LearnedRule):
            self.rule.check(penalty)
            for name, value in learned.start(self.rule, self.steps, self.D, penalty, encoder=False).items():
                self.register_parameter(name, nn.Parameter(value, requires_grad=name not in self.rule.fixed))
        elif isinstance(self.rule, Greedy):
            self.rule.check(penalty, self.steps)
        else:
            self.rule = as_rule(step, self.D)
            check_rule(self.rule, None, "last", penalty, squared_norm(self.D)[0], self.steps)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the dictionary."""
        return self.D.dtype

    @property
    def device(self) -> torch.device:
        """The device of the dictionary."""
        return self.D.device

    @outside_autocast
    def walk(self, x: Tensor) -> Iterator[Point]:
        """Yield the points z_1 ... z_T of x, rows flattened: codes, residuals, and products spent so far."""
        c, D, _, _ = check_problem(x, self.D, R=self.penalty)
        c = c.reshape(-1, D.shape[1])
        if isinstance(self.rule, Greedy):
            yield from islice(pursue(self.rule, c, D, self.penalty), self.steps)
            return
        zero = c.new_zeros(len(c), len(D))
        if isinstance(self.rule, LearnedRule):
            first = Point(zero, c, D, c.new_zeros(len(c), dtype=torch.float64), -c)
            points = learned.walk(self.rule, dict(self.named_parameters()), self.steps, first, self.penalty)
        else:
            points = iterate(c, D, self.penalty, self.rule, None, zero, squared_norm(D)[1])
        yield from islice(points, 1, self.steps + 1)

    @outside_autocast
    def forward(self, x: Tensor) -> Tensor:
        """The codes z_T (..., P) of rows x (..., d); raises `Error` where they left the range of their dtype."""
        with seeing("an unrolled network", x):
            for last in self.walk(x):  # noqa: B007  (only the last is kept in memory)
                pass
        check_reached(last.z.detach())
        return last.z.reshape(*x.shape[:-1], len(self.D))

    def extra_repr(self) -> str:
        """What print(net) shows."""
        return f"{self.D.shape[1]}, {len(self.D)}, {self.penalty}, steps={self.steps}, step={self.rule}"
