"""What an SAE is: its weights, its penalty, how many steps it takes; and further SAEs on the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from proxsae.conventions import Error, check_count, shown
from proxsae.penalties import L0, BatchKSparse, Penalty
from proxsae.penalties.base import with_lam
from proxsae.pytorch import learned
from proxsae.sae.encoding import Common, Encoding, Stream
from proxsae.sae.normalize import check_kind
from proxsae.sae.sharing import shared
from proxsae.sae.team import Team
from proxsae.steps import Rule

# In the order of files; `threshold` is there for L0, `batch_threshold` for BatchKSparse, the last for learned rules.
WEIGHTS = ("W_dec", "W_enc", "b_enc", "b_dec", "threshold", "batch_threshold", *learned.WEIGHTS)
OFFSETS = ("b_enc", "b_dec", "threshold")  # those that have the unit of x


class Parameters(nn.Module):
    """The weights of an SAE and the facts that go with them; `SAE` documents them, and adds what they do."""

    metadata: dict[str, Any]
    encoding: Encoding
    common: Common
    stream: Stream | None = None  # of an SAE that `frozen` made
    batch_threshold: Tensor

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        penalty: Penalty,
        steps: float = 1,
        step: Rule | None = None,
        analysis: str = "dictionary",
        b_enc: str = "first",
        normalize: str = "none",
    ) -> None:
        super().__init__()
        self.d_in, self.d_sae = check_count("d_in", d_in, 1), check_count("d_sae", d_sae, 1)
        self.normalize, self.metadata = check_kind(normalize, self.d_in), {}
        if not isinstance(penalty, Penalty):
            msg = f"penalty={shown(penalty)} must be a Penalty: L1, L0 or KSparse"
            raise Error(msg)
        atoms = nn.functional.normalize(torch.randn(self.d_sae, self.d_in), dim=1)
        self.W_dec = nn.Parameter(atoms)
        self.W_enc = nn.Parameter(atoms.T.clone(memory_format=torch.contiguous_format))  # as torch's tools want it
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(self.d_in))
        self.common = Common(penalty)
        self._take_penalty(penalty)
        self._encode_by(Encoding(steps, step, analysis, b_enc))

    def _take_penalty(self, penalty: Penalty) -> None:
        """Take R, and make the weight that goes with it: `threshold` of an L0, `batch_threshold` of a BatchKSparse."""
        W, lam = self.W_dec, getattr(penalty, "lam", None)
        penalty.check_fits("penalty", W, self.d_sae)
        if isinstance(lam, Tensor):  # lam is not trained here: a tensor of the caller gets no gradient
            penalty = with_lam(penalty, lam.detach().cpu().double().numpy())
        self.common.penalty = penalty
        if isinstance(penalty, L0):
            theta = torch.tensor(np.sqrt(2 * np.asarray(penalty.lam)))
            self.threshold = nn.Parameter(theta.expand(self.d_sae).to(W).clone())
        if isinstance(penalty, BatchKSparse):
            self.batch_threshold = nn.Parameter(W.new_tensor(torch.nan), requires_grad=False)

    def _encode_by(self, encoding: Encoding) -> None:
        """Take an encoding; a learned rule gets its weights, one layer for each step after the first."""
        encoding.check(self.common.penalty, self.W_dec)
        self.encoding, rule = encoding, encoding.learned
        if rule is not None:
            begun = learned.start(rule, int(encoding.steps) - 1, self.W_dec, self.common.penalty)
            for name, value in begun.items():
                setattr(self, name, nn.Parameter(value, requires_grad=name not in rule.fixed))

    # What it is

    @property
    def steps(self) -> int:
        """The number T of encoder steps; math.inf, which is no whole number, where codes are solved for."""
        return self.encoding.steps  # type: ignore[return-value]  # of those who count, all but a few want an int

    @property
    def step(self) -> Rule:
        """The rule of the steps after the first."""
        return self.encoding.step

    @property
    def analysis(self) -> str:
        """What steps after the first use: "dictionary" or "encoder"."""
        return self.encoding.analysis

    @property
    def penalty(self) -> Penalty:
        """R as it stands; for a trained L0 its lam is the tensor threshold^2 / 2."""
        R = self.common.penalty
        if not isinstance(R, L0):
            return R
        theta = self.threshold.double()
        theta = torch.where(theta.isinf(), theta.detach(), theta)  # whose gradient would be infinity times 0
        return replace(R, lam=theta.square() / 2)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.W_dec.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.W_dec.device

    def weights(self) -> dict[str, Tensor]:
        """The weights by name, as files have them: parametrisations are worked out."""
        return {name: getattr(self, name) for name in WEIGHTS if hasattr(self, name)}

    def trained(self, name: str) -> bool:
        """Whether the weight of that name is there to be trained: nothing that it is made of is frozen."""
        return hasattr(self, name) and all(part.requires_grad for part in self.parts(name))

    def parts(self, name: str) -> list[nn.Parameter]:
        """What the weight of that name is made of: itself, or the parameters of its parametrisation."""
        if parametrize.is_parametrized(self, name):
            return list(cast(Any, self).parametrizations[name].parameters())
        return [getattr(self, name)]

    @torch.no_grad()
    def set_weight(self, name: str, value: Tensor) -> None:
        """Give the weight of that name another value of its shape, through its parametrisation where it has one.

        Raises `Error`, with the weight as it was, for a parametrisation that takes no value, or not this one.
        """
        if not parametrize.is_parametrized(self, name):
            getattr(self, name).copy_(value)
            return
        held = cast(Any, self).parametrizations[name]
        before = {part: a.clone() for part, a in held.state_dict().items()}
        try:
            setattr(self, name, value)
        except (RuntimeError, NotImplementedError) as problem:
            msg = f"{name} has a parametrisation that cannot be given a value (no right_inverse): {problem}"
            raise Error(msg.split("\n")[0]) from None
        if bool((getattr(self, name) - value).abs().amax() > 0.01 * value.abs().amax()):
            held.load_state_dict(before)
            msg = f"{name} has a parametrisation that does not take the value it is given, such as atoms of norm 1:"
            msg += f" torch.nn.utils.parametrize.remove_parametrizations(sae, {name!r}) leaves the weight alone"
            raise Error(msg)

    def scale_lam(self, factor: float) -> None:
        """Multiply lam by `factor`, in place; an L0 SAE has its threshold instead, and a k-sparse one neither."""
        R = self.common.penalty
        if hasattr(R, "lam") and not isinstance(R, L0):
            self.common.penalty = with_lam(R, R.lam * factor)

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Change the unit of x by `factor`, in place: codes scale with it, atoms keep their norms.

        Every prox here is homogeneous, so only offsets and thresholds are multiplied.
        """
        for name in (*OFFSETS, "batch_threshold"):
            if hasattr(self, name):
                self.set_weight(name, getattr(self, name) * factor)
        self.scale_lam(factor)
        R = self.common.penalty
        if isinstance(R, L0):
            self.common.penalty = replace(R, bandwidth=R.bandwidth * factor)

    # The same weights once more

    def twin(
        self,
        *,
        encoding: Encoding | None = None,
        penalty: Penalty | None = None,
        normalize: str | None = None,
        team: Team | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Self:
        """An SAE on the same weights: nothing is copied, and what trains one trains the other.

        encoding: other encoder steps; `unrolled` is the short form.
        penalty: another R, with lam of its own.  Without `penalty`, `weights` and `team`, R is shared, and `rescale`
        changes it for both.
        normalize: another treatment of rows.
        team: the other processes, on which the remaining latents are.
        weights: tensors that take the place of weights of this name, in the twin only.  They become parameters, except
        tensors with a grad_fn, which are kept so that gradients flow through them.

        `metadata` is copied.  Hooks are not inherited: a hook belongs to the object that it was registered on.
        Parametrisations registered before `twin` are shared; later ones are not, and once torch has removed one, which
        may write to what it was made of, twins are to be made anew.  `to`, `state_dict`,
        `load_state_dict` (also with assign=True), `copy.deepcopy` and pickling work on a twin as on any module.  As in
        any module, `to("meta")` and `to_empty` make new parameters, so that there the sharing ends.
        """
        given = dict(weights or {})
        for name in given:
            if name not in WEIGHTS:
                msg = f"weights has {name!r}, but an SAE has {', '.join(WEIGHTS)}"
                raise Error(msg)
        without = set(given)
        if penalty is not None:
            without |= {"threshold", "batch_threshold"} | (set() if hasattr(penalty, "lam") else {"log_lam_factor"})
        if encoding is not None:
            without |= set(learned.WEIGHTS)
        twin = shared(self, without)
        twin.stream = None
        if given or penalty is not None or team is not None:
            twin.common = replace(self.common, team=team or self.common.team)
        if penalty is not None:
            twin._take_penalty(penalty)
        for name, value in given.items():
            if hasattr(twin, name):  # `threshold` of another penalty
                delattr(twin, name)
            trained = getattr(getattr(self, name, None), "requires_grad", True)
            setattr(twin, name, value if value.grad_fn is not None else nn.Parameter(value, requires_grad=trained))
        twin.d_sae = len(given.get("W_dec", ())) or self.d_sae
        twin.normalize = self.normalize if normalize is None else check_kind(normalize, self.d_in)
        if encoding is not None:
            twin._encode_by(encoding)
        elif penalty is not None:
            twin.encoding.check(twin.common.penalty, twin.W_dec)
        return twin

    def unrolled(
        self,
        steps: float,
        step: Rule | None = None,
        analysis: str = "dictionary",
        b_enc: str = "first",
    ) -> Self:
        """The same weights with another number of encoder steps; nothing is copied or retrained (`twin`).

        By default a step is 1/L, computed, and never raises the objective (thm-ista-descent).  A learned or greedy rule
        may be given as well, and steps=math.inf for the codes of `solve`.
        What more steps can gain at most is the amortisation gap (prop-amortisation-gap).
        """
        self._whole("unrolled")
        return self.twin(encoding=Encoding(steps, step, analysis, b_enc))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        """As every module does it; with assign=True the parameters take the tensors, and stay those of all twins."""
        before = dict(self._parameters)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        for name, mine in before.items():
            given = self._parameters[name]
            if given is not mine and given is not None and mine is not None and given.is_meta == mine.is_meta:
                mine.data, self._parameters[name] = given.data, mine

    def _whole(self, what: str) -> None:
        """Raise `Error` on a shard, for what only the whole SAE can do."""
        if self.common.team is not None:
            msg = f"{what} needs the whole SAE, but this is one shard of it, made to be trained"
            raise Error(msg)

    def extra_repr(self) -> str:
        """What print(sae) shows."""
        R: Any = self.common.penalty
        if isinstance(R, L0):
            theta = "unknown" if self.threshold.is_meta else f"about {float(self.threshold.detach().mean()):.3g}"
            R = f"L0(threshold {theta}, nonneg={R.nonneg})"
        how = f"steps={self.steps}, step={self.step}, {self.analysis}"
        return f"{self.d_in}, {self.d_sae}, {R}, {how}, b_enc={self.encoding.b_enc}, normalize={self.normalize}"
