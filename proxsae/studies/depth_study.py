"""`proxsae.studies.depth`: what more encoder steps change, in one given SAE or in a study that trains its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from proxsae import data, metrics
from proxsae.conventions import Error, check_counts, check_path, shown
from proxsae.disk import held
from proxsae.penalties import BatchKSparse, KSparse
from proxsae.sae import SAE
from proxsae.sae.inspection import lam_is_zero
from proxsae.studies.carry_out import carry_out, check_folder
from proxsae.studies.density import sample
from proxsae.studies.journal import FILE
from proxsae.studies.machine import about_machine
from proxsae.studies.parts.depth import measure
from proxsae.studies.progress import Progress
from proxsae.studies.request import PACKAGED, Request, about_rows, of_axes, of_few
from proxsae.studies.results import Study

ROWS = 1024  # of the user's, on which an SAE of the user's is measured


def depth(
    sae_or_rows: Any = None,
    activations: Any = None,
    *,
    steps: Sequence[int] | None = None,
    budget: float | None = None,
    parts: Sequence[str] = (),
    d_sae: int | None = None,
    k: int | None = None,
    train_steps: int | None = None,
    train_depths: Sequence[int] = (),
    seeds: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    model: Any = None,
    module: str | None = None,
    text: Sequence[Any] = (),
    at: str | None = None,
    skip: int | None = None,
    model_tokens: int | None = None,
    labels: Any = None,
    encoders: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Study:
    """Measure what more encoder steps of the same weights change, at equal density.

    With an SAE and rows (n, d_in): its error after each number of `steps`, by every step rule that fits, with no
    training.  Rows may also be a path; of more than 1024 rows that many are drawn.  Where the penalty has a lam, it is
    set anew for each number of steps, so that codes keep the density that they have as the SAE is.  A lam of 0 stays 0:
    then densities differ, and the report says so.

    With rows only, or nothing for the packaged rows: the study that `proxsae depth` does, as much as fits into `budget`
    minutes (by default 2.5).  It trains SAEs of six penalties on four fifths of the rows, and measures on the rest.

    parts         one or some of depth, stability, apart, encoders, recovery, signs, bounds, and with a model model; by
                  default what fits, in the order of what they answer
    encoders      for the part encoders, which is done alone where no parts are named: some of exact, lipschitz, refit,
                  fista, inf, mp, omp, slista, learned, lista, lista-zero, lista-cp, tilista, alista, accumulated, tuned
                  (the encoder trained on for the error), distilled (towards the codes of 16 steps); by default all but
                  alista.  One that cannot go with a penalty is left out there, and the report says so
    d_sae, k      latents, by default 3 d_in; non-zeros a row, by default 32, or d_sae / 4 if that is less
    train_steps, train_depths, seeds, seed
                  steps of training, numbers of encoder steps in training, how many seeds, and the first; by default
                  what fits
    model, module, text
                  the language model that the rows come from, a `torch.nn.Module` or the path of one that transformers
                  reads; the dotted name of the module; and a list of batches of tokens, or of paths of texts.  Then the
                  part model measures what the SAEs in that place, and more steps of them, do to the model's loss and
                  predictions, and whether the two signs of a latent are two things
    at, skip, model_tokens
                  as `px.models.collect` has them: by default "output" and 1; and how many tokens are run, by default
                  2000
    labels        labelled texts of two classes, on which SAEs are probed (`px.models.probe`): the path of a file for a
                  model from a path, else batches of tokens and a label for each row, (batches, labels)
    out           a folder that keeps SAEs, journal and report: the same call resumes an interrupted study.  Without one
                  nothing is kept but what is returned
    progress      whether lines, and on a terminal a bar, are shown on stderr

    Returns a `Study`: `.rows`, `.table()`, `.plot()` (a matplotlib figure), `.report(path)`.
    Raises `Error` for rows that are not finite or do not fit, numbers out of range, a device that is not there, an SAE
    that never fires on the rows, a folder of another study, and a model without rows, a module or texts, or whose
    activations there are not as wide as the rows.

    >>> import proxsae as px
    >>> sae, rows = px.topk_sae(8, 16, 4), px.data.planted(200, 8, 16, 4, seed=0).x
    >>> study = px.studies.depth(sae, rows, steps=(1, 4), progress=False)
    >>> [(row["rule"], row["steps"]) for row in study.rows]
    [('lipschitz', 1), ('lipschitz', 4), ('exact', 1), ('exact', 4), ('refit', 1), ('refit', 4)]
    """
    home = None if out is None else Path(check_path("out", out))
    loop: dict[str, Any] = {"model": model, "module": module, "text": text, "at": at, "skip": skip}
    loop |= {"model_tokens": model_tokens, "labels": labels, "encoders": encoders}
    with Progress(progress) as bar:
        if isinstance(sae_or_rows, SAE):
            asked = Request(None, budget, parts, d_sae, k, train_steps, train_depths, seeds, seed, device, **loop)
            _refuse_training(asked)
            return of_one(sae_or_rows, activations, measure.STEPS if steps is None else steps, home, bar)
        if activations is not None or steps is not None:
            msg = f"{'steps' if activations is None else 'activations'} needs an SAE as the first argument, "
            msg += f"which is {type(sae_or_rows).__name__}"
            raise Error(msg)
        request = Request(sae_or_rows, budget, parts, d_sae, k, train_steps, train_depths, seeds, seed, device, **loop)
        return carry_out(request, home, bar, "proxsae.studies.depth(...)")


def _refuse_training(asked: Request) -> None:
    """Raise `Error` where options of a study that trains were given beside an SAE: they would change nothing."""
    for option in fields(Request):
        value = getattr(asked, option.name)
        plain_value = isinstance(value, (int, str, list, tuple))
        if value is not option.default and not (plain_value and value in (option.default, [])):
            msg = f"{option.name}={shown(value)} is for a study that trains SAEs, and here one is given: leave it out, "
            msg += "or give rows alone, px.studies.depth(rows, ...)"
            raise Error(msg)


def of_one(
    sae: SAE,
    rows: Any,
    steps: Sequence[int],
    out: Path | None,
    progress: Progress,
    command: str = "",
    outliers: str = "keep",
) -> Study:
    """Measure one SAE on rows, or on the packaged ones, for several numbers of steps; write the report into `out`."""
    check_folder(out)
    if out is not None and (out / FILE).exists():
        msg = f"{out} holds a study ({FILE}), whose report this one would replace: name another folder with --out"
        raise Error(msg)
    wanted = sorted(set(check_counts("steps", steps)))
    if not wanted:
        msg = "steps is empty, but a curve needs at least one number of encoder steps"
        raise Error(msg)
    name = PACKAGED if rows is None else str(rows) if isinstance(rows, (str, os.PathLike)) else "an array"
    if isinstance(sae.penalty, BatchKSparse):
        sae = sae.thresholded()  # its codes depend on the batch
    opened = data.open_rows(data.packaged()[1] if rows is None else rows, outliers)
    if rows is None and opened.shape[1] != sae.d_in:
        msg = f"the packaged rows have width {opened.shape[1]}, but this SAE needs {sae.d_in}: give its rows (--data)"
        raise Error(msg)
    which = np.arange(len(opened))
    if len(which) > ROWS:
        which = np.sort(np.random.default_rng(0).choice(which, ROWS, replace=False))
    drawn = opened[which]
    x = sae.rows(drawn)
    R = sae.penalty
    with torch.no_grad():
        k = float(R.k) if isinstance(R, KSparse) else metrics.l0(sae.encode(sample(x)))
    if not k:
        msg = (
            f"no latent fires on the first {len(sample(x))} rows (l0 = 0), so that there is no density at which errors "
        )
        msg += f"could be compared: look at lam of {R!r}, and at the layer, scale and normalisation of the rows"
        raise Error(msg)
    about = {
        "SAE": sae.extra_repr(),
        "data": name,
        "rows": f"{len(x)} of {len(opened)}",
        **about_rows(drawn, opened.outliers),
        "l0": f"{k:.4g}",
        **about_machine(),
        "command": command or "proxsae.studies.depth(sae, rows)",
    }
    with nullcontext() if out is None else held(out):
        progress.doing(f"{', '.join(map(str, wanted))} encoder steps on {len(x)} rows")
        same = {"part": "depth", "penalty": measure.kind_of(R), "train_depth": sae.steps, "seed": 0}
        found = [same | row for row in measure.errors(sae, x, k, wanted)]
        about["to repeat"] = about["command"]
        made = Study(found, about, (1, 1), notes=[*_remarks(sae), *of_few(len(x)), *of_axes(opened)])
        if out is not None:
            made.report(out)
    return made


def _remarks(sae: SAE) -> list[str]:
    """How the steps that are measured differ from the SAE's own, and that they need b_enc where lam is 0."""
    told, further = [], sae.steps > 1
    own = {
        "b_enc in every step": sae.encoding.b_enc == "every",
        "steps by the learned encoder": further and sae.analysis == "encoder",
        "learned step sizes": further and sae.encoding.learned,
    }
    if any(own.values()):
        had = " and ".join(name for name, there in own.items() if there)
        told.append(f"The SAE has {had}; here its further steps are by the dictionary, with b_enc in the first only.")
    if lam_is_zero(sae.penalty):
        told.append("lam is 0, so steps without b_enc seek no sparse code: "
                    "try `proxsae eval SAE DATA --steps 1,16 --b-enc every`.")  # fmt: skip
    return told
