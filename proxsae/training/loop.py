"""The training loop: Adam with warm-up and decay, unit-norm atoms, dead latents revived; and a run that can be killed.

Everything that a step depends on is in its `State`, and the batch of step t is a function of the seed and t.  So a run
that is continued from a checkpoint is, bit for bit, the run that was never interrupted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from proxsae import disk
from proxsae.conventions import Error, check_count, check_path, shown
from proxsae.penalties import BatchKSparse
from proxsae.pytorch.autocast import outside_autocast
from proxsae.sae import SAE
from proxsae.sae.model import check_sae
from proxsae.sae.parameters import OFFSETS
from proxsae.sae.team import Team
from proxsae.training import files
from proxsae.training.losses import outcome
from proxsae.training.recipe import LEFT_BY_RUN, Left, Recipe, Source, check_l0, condition, kind_of_run, rate
from proxsae.training.state import (
    State,
    check_trainable,
    frozen_offsets_kept,
    give_back,
    latents_in_rows,
    left_out,
    resume,
    save,
    start,
    unit_atoms,
    unit_columns,
)
from proxsae.training.terminal import progress_of, stops

DEAD_AFTER = 0.1  # share of the run without firing after which a latent counts as dead
SPARSITY_GAIN = 0.03  # how fast lam follows a wrong L0, per step
THRESHOLD_GAIN = 0.01  # how fast the inference threshold of a batch selection follows its batches
LOGGED = 200  # lines of metrics.csv, and one for the last step
NAMES = ("loss", "nmse", "l0", "dead")


@torch.inference_mode(False)  # gradients, whatever the caller has switched off
def train(
    sae: SAE,
    activations: Any,
    steps: int = 1000,
    batch_size: int = 512,
    lr: float | None = None,
    seed: int = 0,
    l0: float | None = None,
    progress: bool | str | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 200,
    widths: tuple[int, ...] = (),
    ks: tuple[int, ...] = (),
    unit_encoder: bool = False,
    bfloat16: bool = False,
    team: Team | None = None,
) -> dict[str, float]:
    """Train `sae` in place on rows (n, d_in) and return the means of the last tenth of the run: loss, nmse, l0, dead.

    activations: rows as an array or tensor; or a path or `data.Rows`, which are streamed: files larger than memory are
    memory-mapped and shuffled without being read.
    steps: how many steps of Adam, with a warm-up over a twentieth of the run and a decay over its last fifth.
    batch_size: rows a step, drawn in shuffled epochs.
    lr: Adam's rate in units where the rows' mean squared deviation is d_in, by default 2e-3 sqrt(1024 / d_sae); the SAE
    itself stays in the units of the data.
    seed: of the order of the rows.  The same call on the same machine and number of threads gives the same weights.
    l0: a number of non-zeros a row to reach: lam, where R has one, is adjusted during training.
    progress: True for a bar, False for none; by default there is one on a terminal.  "lines" also prints some lines on
    standard error where there is no terminal.
    checkpoint: a folder, where the state of the run is written every `every` steps, at the end, and when it is asked to
    stop (Ctrl-C, SIGTERM).  The same call continues from there, and ends in the same bits as if it had never stopped.
    widths, ks: Matryoshka levels: reconstructions from the first latents, and from the largest of k codes; the error is
    then the mean over levels.
    unit_encoder: keep the encoder's rows at norm 1, which keeps AbsTopK latents alive.
    bfloat16: work out codes and gradients from rounded copies of the weights.
    team: the same run on several processes, `join(...)` of `proxsae.sae.team` (guide *Resumable training*).

    For L0 lam starts as given, the threshold is trained, and the sparsity that is trained is that of the first step (of
    two weights both thresholds are trained, at one price of a code of either sign: the mean of both to begin with);
    any other R is added to the loss itself (an indicator adds nothing).  A `BatchKSparse` SAE gets its
    `batch_threshold`.  Codes that are solved for (steps=math.inf) are held in the loss that they minimise: that leaves
    its gradient as it is (thm-envelope).  An encoder that codes do not use ends as W_enc = W_dec^T with b_enc = 0.
    Atoms have norm 1 after every step, through `right_inverse` where W_dec has a parametrisation.
    What is frozen (`sae.b_dec.requires_grad_(False)`) keeps its bits.  It trains wherever it is called, also under
    `torch.no_grad()`.  Rows that are not to count, such as padding, are left out before: `train(sae, x[mask])`.

    A run that begins looks for outliers, among all rows if it reads as many, and warns where they hold a hundredth of
    all squares (`data.survey`); `data.open_rows(rows, outliers="drop")` leaves them out.  b_dec begins at the mean row
    where it is 0, so that a large mean does not decide which latents fire.  `metadata["collected"]` of the SAE becomes
    the record of `models.collect`, where the rows have one.

    Raises `Error` for rows that are not finite or do not fit, a loss or gradient that is no longer finite (with the
    step and the row; the last checkpoint stays), weights below float32, atoms whose norm is not 1 (but for L0 and
    plain ReLU), a checkpoint that is torn or of another run, a folder in use, and a disk that is full.

    >>> import proxsae as px
    >>> x = px.data.planted(n=256, d_in=16, d_sae=32, k=3).x
    >>> sae = px.topk_sae(d_in=16, d_sae=32, k=3)
    >>> sorted(px.train(sae, x, steps=10, batch_size=64))
    ['dead', 'l0', 'loss', 'nmse']
    """
    check_sae(sae)
    if not (team is None or isinstance(team, Team)):
        msg = f"team={shown(team)} must be None, or what proxsae.sae.team.join(...) returns"
        raise Error(msg)
    recipe = Recipe(steps, batch_size, lr, seed, l0, widths, ks, unit_encoder, bfloat16)
    recipe = recipe.checked(sae, team)
    every, steps = check_count("every", every, 1), recipe.steps
    check_trainable(sae, unit_encoder)
    source = Source(sae, activations, recipe, team)
    folder = None if checkpoint is None else Path(check_path("checkpoint", checkpoint))
    with ExitStack() as held:
        if not sae.encoding.encodes:  # `give_back` says what becomes of the encoder
            held.enter_context(left_out(sae, ("W_enc", "b_enc")))
        if folder is not None and (team is None or team.rank == 0):
            held.enter_context(disk.held(folder))
        held.enter_context(latents_in_rows(sae))
        kind = kind_of_run(sae, recipe, source, folder) if folder or team else {}
        found = None if folder is None else files.read(folder, kind)
        mean, spread = source.mean_and_spread() if found is None else (None, found[0]["spread"])
        if mean is not None and (team is None or team.rank == 0):
            source.tell(mean, spread, lines=progress == "lines")
        _check_alike(team, kind, spread, 0 if found is None else found[0]["step"])
        check_l0(recipe.l0, sae)
        began: dict[str, Any] = {name: kind[name] for name in ("sae", "initial weights") if name in kind}
        run = _Run(recipe, source, folder, kind, every, team)
        stop = held.enter_context(stops(folder is not None))
        told = progress if team is None or team.rank == 0 else False
        try:
            with frozen_offsets_kept(sae):
                state = start(sae, mean, spread, recipe, team) if found is None else resume(sae, found, recipe, team)
                if source.collected is not None:
                    sae.metadata["collected"] = source.collected
                try:
                    with progress_of(steps, state.step, told) as show:
                        _loop(state, run, stop, show)
                except BaseException:  # also after Ctrl-C the SAE is in the units of the data
                    sae.rescale(state.spread)
                    raise
                give_back(sae, state, team)
        finally:
            if folder is not None:
                LEFT_BY_RUN[sae] = Left(folder.resolve(), began, condition(sae))
    count = max(1, steps // 10)
    return dict(zip(NAMES, (state.tail / count).tolist(), strict=True))


@dataclass(frozen=True)
class _Run:
    """What does not change while a run goes on."""

    recipe: Recipe
    source: Source
    folder: Path | None
    kind: dict[str, Any]
    every: int
    team: Team | None


def _check_alike(team: Team | None, kind: dict[str, Any], spread: float, step: int) -> None:
    """Raise `Error` unless all ranks begin the same run at the same step."""
    if team is None:
        return
    mark = hashlib.sha256(json.dumps([kind, spread, step], sort_keys=True).encode()).digest()
    if not team.agrees(int.from_bytes(mark[:7], "little")):
        msg = f"the ranks do not begin alike (here at step {step}): they need the same weights, data and checkpoint,"
        msg += " so one seed before the SAE is made, and one folder that all see"
        raise Error(msg)


def _loop(state: State, run: _Run, stop: threading.Event, show: Callable[[dict[str, float]], None]) -> None:
    last_saved: int | None = state.step or None
    problem: Error | None = None
    try:
        while True:
            batch = None
            if problem is None and state.step < run.recipe.steps:
                try:
                    batch = run.source.batch(state.step)
                except Error as error:
                    problem = error
            stopping = _agreed(run.team, problem, stop)
            if stopping or state.step == run.recipe.steps:
                if state.step != last_saved and run.folder is not None:
                    save(state, run.folder, run.kind, run.team)
                    last_saved = state.step
                if state.step < run.recipe.steps:
                    msg = f"interrupted at step {state.step}, saved in {run.folder}: the same command continues"
                    raise KeyboardInterrupt(msg)
                return
            show(_step(state, run, cast(Tensor, batch)))
            if run.folder is not None and state.step % run.every == 0:
                try:
                    save(state, run.folder, run.kind, run.team)
                    last_saved = state.step
                except Error as error:  # of the rank that writes: all hear of it before the next step
                    problem = error
    except Error as error:
        kept = f"; the checkpoint of step {last_saved} stays" if run.folder and last_saved else ""
        msg = f"{error}{kept}"
        raise Error(msg) from None


def _agreed(team: Team | None, problem: Error | None, stop: threading.Event) -> bool:
    """Whether any rank was asked to stop; raises this rank's problem, or that of another."""
    flags = torch.tensor([float(problem is not None), float(stop.is_set())])
    if team is not None:
        flags = team.everywhere(flags.to(team.device)).cpu()
    if problem is not None:
        raise problem
    if bool(flags[0]):
        msg = "another rank has stopped, and says why"
        raise Error(msg)
    return bool(flags[1])


@outside_autocast
def _step(state: State, run: _Run, rows: Tensor) -> dict[str, float]:
    sae, t, recipe, team = state.sae, state.step, run.recipe, run.team
    lr = cast(float, recipe.lr) * rate(t, recipe.steps)
    batch = rows * (1 / state.spread)
    dead = state.quiet > DEAD_AFTER * recipe.steps
    weights = _rounded(sae) if recipe.bfloat16 else sae
    got = outcome(weights, batch, state.lam, dead, recipe.widths, recipe.ks, team)
    state.optimiser.zero_grad()
    got.loss.backward()
    trained = [parameter for parameter in sae.parameters() if parameter.requires_grad]
    if team is not None and team.replicas > 1:
        for parameter in trained:
            _mean_gradient(parameter, team)
    # Adam squares gradients: one whose square overflows would stop its weight for good, without a word.
    grads = [parameter.grad for parameter in trained if parameter.grad is not None and parameter.numel()]
    largest = torch.stack([torch.linalg.vector_norm(grad, math.inf).double() for grad in grads]).max()
    tame = largest.square() < torch.finfo(sae.dtype).max
    squares = [got.error.square().sum(), batch.square().sum(), got.loss.detach(), dead.sum(), got.fired.sum(), ~tame]
    sums, fired = torch.stack([a.double() for a in squares]), got.fired
    if team is not None:
        fired = team.over_replicas(fired.clone())
        shared = sums.new_tensor([team.shards, team.shards, team.shards * team.replicas, team.replicas, 1, 1])
        sums = team.everywhere(sums) / shared
    error, energy, loss, dead_count, firings, wild = sums.tolist()
    if not math.isfinite(loss) or wild:
        index = int(batch.double().square().sum(dim=1).nan_to_num(math.inf).argmax())
        msg = f"the loss is {loss} at step {t}" + (" and its gradient overflows" if math.isfinite(loss) else "")
        msg += f": lr={recipe.lr:g} is too high, or the rows have an outlier"
        msg += f" (of its rows here the largest is {run.source.where(t, index)})"
        raise Error(msg)
    _keep_norms(sae.W_dec, 1)
    if recipe.unit_encoder:
        _keep_norms(sae.W_enc, 0)
    for group in state.optimiser.param_groups:
        group["lr"] = lr
    state.optimiser.step()
    unit_atoms(sae)
    if recipe.unit_encoder:
        unit_columns(sae)
    state.quiet = torch.where(fired > 0, 0, state.quiet + 1)
    density = firings / recipe.batch_size
    if recipe.l0 is not None:
        state.lam = _adjust(sae, state.lam, density / recipe.l0)
    if isinstance(sae.common.penalty, BatchKSparse):
        before, least = sae.batch_threshold, got.least.to(sae.dtype)
        known = torch.where(before.isnan(), least, before).lerp(least, max(THRESHOLD_GAIN, 1 / (t + 1)))
        sae.set_weight("batch_threshold", torch.where(least < torch.inf, known, before))
    state.step = t + 1
    row = [loss, error / energy if energy else 0.0, density, dead_count / (sae.d_sae * (team.shards if team else 1))]
    if state.step > recipe.steps - max(1, recipe.steps // 10):
        state.tail = state.tail + torch.tensor(row, dtype=torch.float64)
    shown = dict(zip(NAMES, row, strict=True))
    if t % -(-recipe.steps // LOGGED) == 0 or state.step == recipe.steps:
        state.log.append({"step": state.step, **shown, "lr": lr, "lam": state.lam})
    return shown


def _rounded(sae: SAE) -> SAE:
    """The same SAE with copies of its weights in bfloat16, through which gradients reach the weights."""
    rounded = ("W_enc", "W_dec", *OFFSETS, "W_step", "S_step")
    return sae.twin(weights={name: a.to(torch.bfloat16) for name, a in sae.weights().items() if name in rounded})


def _mean_gradient(parameter: nn.Parameter, team: Team) -> None:
    grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    turned = grad.ndim > 1 and not grad.is_contiguous() and grad.mT.is_contiguous()
    flat = team.over_replicas((grad.mT if turned else grad).contiguous()).div_(team.replicas)
    parameter.grad = flat.mT if turned else flat


def _keep_norms(W: Tensor, dim: int) -> None:
    """Project the gradient of W on the tangent of the unit sphere along `dim`, on which W stays.

    A parametrised W has no gradient of its own: it is brought back to the sphere after the step only.
    """
    if W.is_leaf and W.grad is not None:
        W.grad -= (W.grad * W.data).sum(dim=dim, keepdim=True) * W.data


def _adjust(sae: SAE, lam: float, ratio: float) -> float:
    """Multiply lam by a factor near 1: above 1 where codes are denser than asked (ratio > 1), else below; return it."""
    factor = float(np.exp(SPARSITY_GAIN * np.clip(ratio - 1, -1, 1)))
    sae.scale_lam(factor)
    return lam * factor
