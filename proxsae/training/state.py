"""Everything that the next training step depends on: started, saved, restored, given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from proxsae.conventions import Error
from proxsae.disk import sentence
from proxsae.formats.parts import is_sound
from proxsae.penalties import L0, L1
from proxsae.penalties.base import with_lam
from proxsae.sae import SAE
from proxsae.sae.parameters import OFFSETS, THRESHOLDS
from proxsae.sae.shards import DIMENSION, part_of, split
from proxsae.sae.team import Team
from proxsae.training import files
from proxsae.training.losses import mean_lam
from proxsae.training.recipe import Recipe, begins_at_mean

MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam
ROUNDED = 0.01  # norms that rounding to half precision leaves
WITH_ATOMS = ("W_enc", "b_enc", *THRESHOLDS.values())  # scaled with the atoms: every z_j d_j stays the same


@dataclass
class State:
    """Everything that the next step depends on, beside recipe and data."""

    sae: SAE  # of normalised rows, in units where they deviate by 1; on a team, this rank's shard
    optimiser: torch.optim.Adam
    spread: float
    lam: float
    quiet: Tensor  # steps since each latent fired
    tail: Tensor  # sums over the last tenth of the run
    step: int = 0
    log: list[dict[str, float]] = field(default_factory=list)


def start(sae: SAE, mean: Any, spread: float, recipe: Recipe, team: Team | None) -> State:
    """The state before the first step.

    Atoms are scaled to norm 1, b_dec is set to the mean row where it is 0, and the unit of x becomes the spread; what
    is frozen is left as it is, but for the unit.
    """
    _normalise_atoms(sae)
    if begins_at_mean(sae):
        sae.set_weight("b_dec", mean)
    sae.rescale(1 / spread)
    try:
        state = _state(sae, spread, recipe, team)
    except BaseException:
        sae.rescale(spread)
        raise
    if recipe.unit_encoder:
        unit_columns(state.sae)
    return state


@contextmanager
def latents_in_rows(sae: SAE) -> Iterator[None]:
    """Hold W_enc (d, P) one latent a row in memory: its gradient, a sum of rows, then costs half as much."""
    W = sae.W_enc
    if parametrize.is_parametrized(sae, "W_enc") or W.T.is_contiguous():
        yield
        return
    home = W.data
    W.grad, W.data = None, home.T.contiguous().T
    try:
        yield
    finally:
        W.grad, W.data = None, home.copy_(W.data)


@contextmanager
def frozen_offsets_kept(sae: SAE) -> Iterator[None]:
    """Give frozen biases and thresholds their bits back, which a change of the unit of x and back may round."""
    parts = [part for name in OFFSETS if hasattr(sae, name) for part in sae.parts(name)]
    kept = [(part, part.detach().clone()) for part in parts if not part.requires_grad]
    try:
        yield
    finally:
        with torch.no_grad():
            for part, value in kept:
                part.copy_(value)


@contextmanager
def left_out(sae: SAE, names: tuple[str, ...]) -> Iterator[None]:
    """Leave the weights of these names out of training."""
    parts = [part for name in names for part in sae.parts(name) if part.requires_grad]
    for part in parts:
        part.requires_grad_(False)
    try:
        yield
    finally:
        for part in parts:
            part.requires_grad_(True)


def check_trainable(sae: SAE, unit_encoder: bool) -> None:
    """Raise `Error` where nothing would be trained, or where norms of 1 would change the SAE or what is frozen."""
    if any(parameter.is_inference() for parameter in sae.parameters()):
        msg = "the weights were made under torch.inference_mode(), which autograd cannot train: copy.deepcopy(sae) can"
        raise Error(msg)
    wrapped = any(kind.__name__ == "FSDPModule" for kind in type(sae).__mro__)  # importing it takes a second
    if wrapped or any(hasattr(parameter, "full_tensor") for parameter in sae.parameters()):
        msg = "the weights are sharded by torch, but train takes the whole SAE and splits it itself: train(sae, rows,"
        msg += " team=proxsae.sae.team.join(shards, device)) under torchrun"
        raise Error(msg)
    if not any(parameter.requires_grad for name, parameter in sae.named_parameters() if name != "batch_threshold"):
        msg = "every weight is frozen, so that nothing would be trained: sae.requires_grad_(True) trains all of them"
        raise Error(msg)
    if sae.encoding.endless and isinstance(sae.common.penalty, L0):
        msg = "steps=inf has no gradient in the threshold of an L0, which training learns: train with fewer steps,"
        msg += " and take unrolled(math.inf) of the result"
        raise Error(msg)
    if unit_encoder and not sae.trained("W_enc"):
        msg = "unit_encoder=True scales W_enc, which is frozen: leave it out, or sae.W_enc.requires_grad_(True)"
        raise Error(msg)
    if sae.trained("W_dec"):
        _check_atoms(sae)


def _check_atoms(sae: SAE) -> None:
    """Raise `Error` where scaling the atoms to norm 1, as training does, would change the SAE or what is frozen."""
    norms, R = _norms(sae), sae.common.penalty
    homogeneous = isinstance(R, L0) or (isinstance(R, L1) and not np.any(np.asarray(R.lam)))
    if not bool(((norms - 1).abs() > ROUNDED).any()):
        return
    frozen = [name for name in WITH_ATOMS if hasattr(sae, name) and not sae.trained(name)]
    if frozen or not (homogeneous and sae.steps == 1):
        low, high = float(norms.min()), float(norms.max())
        why = f"that is the same SAE for one step of L0 or of a plain ReLU, and not for {type(R).__name__} here"
        if homogeneous and sae.steps == 1:
            why = f"that scales {', '.join(frozen)} too, and what is frozen stays as it is"
        msg = f"atoms have norms from {low:.3g} to {high:.3g}, but training keeps them at 1: {why};"
        msg += " scale the rows of W_dec to norm 1 first, or freeze W_dec"
        raise Error(msg)


@torch.no_grad()
def _normalise_atoms(sae: SAE) -> None:
    """Scale atoms to norm 1, and encoder and thresholds by the norms, unless the atoms are frozen."""
    if not sae.trained("W_dec"):
        return
    norms = _norms(sae)
    unit_atoms(sae)
    if bool(((norms - 1).abs() > ROUNDED).any()):
        for name in WITH_ATOMS:
            if hasattr(sae, name):
                sae.set_weight(name, getattr(sae, name) * norms)


def _with_scale(R: Any, saved: dict[str, Any]) -> Any:
    """R with the lam of a checkpoint; an L0 has its lam in the weight `threshold`, and its bandwidth here."""
    if isinstance(R, L0):
        return replace(R, bandwidth=saved["bandwidth"])
    return with_lam(R, saved["lam of R"]) if hasattr(R, "lam") else R


def _norms(sae: SAE) -> Tensor:
    norms = sae.W_dec.detach().norm(dim=1)
    return torch.where(norms > 0, norms, 1)


def _state(sae: SAE, spread: float, recipe: Recipe, team: Team | None) -> State:
    inner = sae.twin(normalize="none")  # rows come normalised
    if team is not None and team.shards > 1:
        inner = split(inner, team)
    optimiser = torch.optim.Adam(inner.parameters(), lr=recipe.lr or 0.0)
    quiet = torch.zeros(inner.d_sae, device=sae.device)
    return State(inner, optimiser, spread, mean_lam(sae), quiet, torch.zeros(4, dtype=torch.float64))


def resume(sae: SAE, found: tuple[dict[str, Any], dict[str, Tensor]], recipe: Recipe, team: Team | None) -> State:
    """The state that `save` wrote, in the caller's SAE; `Error`, with that SAE as it was, for what does not fit it."""
    saved, tensors = found
    try:
        _check(sae, saved, tensors)
    except Exception as problem:  # the file may hold anything
        msg = f"{files.CHECKPOINT} holds no state of this SAE ({sentence(problem, 400)}): delete it to start anew"
        raise Error(msg) from None
    with torch.no_grad():
        for name, a in sae.state_dict().items():
            a.copy_(tensors[name])
    sae.common.penalty = _with_scale(sae.common.penalty, saved)
    state = _state(sae, saved["spread"], recipe, team)
    for name, parameter in state.sae.named_parameters():
        moments: dict[str, Tensor] = {}
        for moment in MOMENTS if f"adam.{name}.{MOMENTS[0]}" in tensors else ():
            whole = tensors[f"adam.{name}.{moment}"].to(sae.device)
            here = torch.empty_like(parameter)
            moments[moment] = here.copy_(whole if team is None else part_of(team, name, whole))
        if moments:
            state.optimiser.state[parameter] = {"step": torch.tensor(float(saved["step"])), **moments}
    quiet = tensors["quiet"].to(sae.device)
    state.quiet = quiet if team is None else part_of(team, "b_enc", quiet)
    state.tail, state.step, state.log, state.lam = tensors["tail"], saved["step"], saved["log"], saved["lam"]
    return state


def _check(sae: SAE, saved: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Check that the tensors are those of a run of this SAE, and that its penalty takes the lam that is saved.

    The file may hold anything, so that a failure may be an exception of any kind.
    """
    _with_scale(sae.common.penalty, saved).check_fits("the SAE", sae.W_dec, sae.d_sae)
    float(saved["bandwidth"] or 0)  # a whole number may be too large for one
    wanted = {name: (a.shape, a.dtype) for name, a in sae.state_dict().items()}
    for name, parameter in sae.named_parameters():
        if parameter.requires_grad and parameter.numel() and name != "batch_threshold":
            wanted |= {f"adam.{name}.{moment}": (parameter.shape, parameter.dtype) for moment in MOMENTS}
    wanted |= {"quiet": (torch.Size([sae.d_sae]), torch.float32), "tail": (torch.Size([4]), torch.float64)}
    for name, (shape, dtype) in wanted.items():
        a = tensors[name]
        if (a.shape, a.dtype) != (shape, dtype):
            msg = f"{name} has shape {tuple(a.shape)} of {a.dtype}, not {tuple(shape)} of {dtype}"
            raise Error(msg)
        if name not in ("tail", "batch_threshold") and not is_sound(name, a):
            msg = f"{name} holds NaN or infinite entries"
            raise Error(msg)
        if name.endswith(MOMENTS[1]) and bool((a < 0).any()):
            msg = f"{name} holds negative entries, but it is a mean of squares"
            raise Error(msg)
    if len(tensors) > len(wanted):
        msg = f"there are further tensors {sorted(set(tensors) - set(wanted))}"
        raise Error(msg)


def save(state: State, folder: Path, kind: dict[str, Any], team: Team | None) -> None:
    """Write the checkpoint of the whole SAE: the shards of one replica bring their parts, the first rank writes."""

    def whole(name: str, a: Tensor) -> Tensor | None:
        if team is None:
            return a
        return team.on_first(a, DIMENSION[name]) if name in DIMENSION else a

    sae = state.sae
    found = {name: whole(name, a) for name, a in sae.state_dict().items()}
    for name, parameter in sae.named_parameters():
        for moment, a in state.optimiser.state[parameter].items():
            if moment in MOMENTS:
                found[f"adam.{name}.{moment}"] = whole(name, a)
    found |= {"quiet": whole("b_enc", state.quiet), "tail": state.tail}
    tensors = {name: a for name, a in found.items() if a is not None}
    R: Any = sae.common.penalty
    saved = {
        "step": state.step,
        "spread": state.spread,
        "lam": state.lam,
        "lam of R": np.asarray(R.lam).tolist() if hasattr(R, "lam") else None,
        "bandwidth": getattr(R, "bandwidth", None),
        "log": state.log,
    }
    if team is None or team.rank == 0:
        files.write(folder, kind, saved, tensors)


def give_back(sae: SAE, state: State, team: Team | None) -> None:
    """Put what was trained into the caller's SAE, in the units of the data.

    An encoder that codes do not use becomes that of one step by the dictionary: W_enc = W_dec^T and b_enc = 0.
    """
    if team is not None and team.shards > 1:
        with torch.no_grad():
            for name, parameter in state.sae.named_parameters():
                getattr(sae, name).copy_(team.whole(parameter, DIMENSION[name]) if name in DIMENSION else parameter)
    sae.rescale(state.spread)
    if not sae.encoding.encodes:
        tie_encoder(sae)
    for name, a in sae.state_dict().items():  # the loss of the last step is of the weights before it
        if name != "batch_threshold" and not is_sound(name, a):
            msg = f"{name} is no longer finite after step {state.step}: lr is too high, or rows or the checkpoint have"
            msg += " an outlier"
            raise Error(msg)


def tie_encoder(sae: SAE) -> None:
    """Make the encoder that of one step by the dictionary: W_enc = W_dec^T and b_enc = 0."""
    sae.set_weight("W_enc", sae.W_dec.T)
    sae.set_weight("b_enc", torch.zeros_like(sae.b_enc))


def unit_columns(sae: SAE) -> None:
    """Scale every latent's encoder to norm 1."""
    _to_norm_1(sae, "W_enc", 0)


def unit_atoms(sae: SAE) -> None:
    """Scale every atom to norm 1, unless they are frozen."""
    if sae.trained("W_dec"):
        _to_norm_1(sae, "W_dec", 1)


@torch.no_grad()
def _to_norm_1(sae: SAE, name: str, dim: int) -> None:
    W = getattr(sae, name)
    norms = W.norm(dim=dim, keepdim=True).clamp_min(1e-12)
    if parametrize.is_parametrized(sae, name):
        sae.set_weight(name, W / norms)
    else:
        W /= norms  # no second array of that size
