"""Distillation: an encoder of few steps learns, on a frozen dictionary, what one of many steps finds.

    towards the codes   1/2 sum over z_j != 0 of (z_j - z*_j)^2   +   1/2 sum over z_j = 0 != z*_j of (u_j - u*_j)^2
    towards the error   1/2 ||x - z W_dec - b_dec||^2 + R(z),   as `train` has it

z are the codes of the encoder that learns, u its pre-activations of the first step, z* the codes to be learned, and
u* = z* + R'(z*) the pre-activations whose prox they are.  The second sum is there because a prox holds no gradient for
an entry that it sets to 0: without it a latent that the encoder misses would never learn to fire, k-sparse ones
above all.  For one step of k-sparse or l0 codes the two sums are least squares for u on both supports.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from proxsae.certificates import lipschitz
from proxsae.conventions import Error, check_choice
from proxsae.learned import LISTA, LISTACP
from proxsae.metrics import l0, nmse
from proxsae.penalties import BatchKSparse
from proxsae.pytorch.autocast import outside_autocast
from proxsae.pytorch.prox import slope
from proxsae.sae import SAE
from proxsae.sae.evaluation import default_batch
from proxsae.sae.model import check_sae
from proxsae.sae.parameters import OFFSETS, WEIGHTS
from proxsae.training.dictionary import coded
from proxsae.training.losses import mean_lam, outcome
from proxsae.training.recipe import Recipe, Source, rate
from proxsae.training.state import check_trainable, latents_in_rows, left_out
from proxsae.training.terminal import progress_of

DICTIONARY = ("W_dec", "b_dec")
LEARNS = tuple(name for name in WEIGHTS if name not in (*DICTIONARY, "batch_threshold"))
MEASURED = 1024  # rows on which errors are measured, where there are more: `deep` may cost as much as training


@torch.inference_mode(False)  # gradients, whatever the caller has switched off
def distill(
    sae: SAE,
    deep: SAE,
    activations: Any,
    steps: int = 1000,
    batch_size: int = 512,
    lr: float | None = None,
    seed: int = 0,
    towards: str = "codes",
    progress: bool | str | None = None,
) -> dict[str, float]:
    """Train the encoder of `sae` in place towards the codes of `deep`, on the dictionary of both, which is held.

    sae: what learns: W_enc, b_enc, the threshold of an L0, and the weights of a learned rule.  W_dec and b_dec keep
    their bits.
    deep: an SAE with the same W_dec and b_dec, such as `sae.unrolled(16, px.ExactStep())` or `sae.unrolled(math.inf)`.
    Its codes are those of its weights when the call begins; where it shares W_enc with `sae`, it has the new one after.
    activations: as `train` takes them.
    steps, batch_size, lr, seed, progress: as in `train`; nothing is written to a disk.
    towards: "codes" of `deep`, 1/2 ||z - z_deep||^2 on the support of z, and for latents that only `deep` fires the
    same of the pre-activations, since the prox has no gradient there; or "error", the loss of `train`, for which `deep`
    only says what could be gained.

    Returns `nmse` and `l0` of `sae` after, `before` and `deep` (nmse of `sae` before, and of `deep`), and `share`,
    which is (before - nmse) / (before - deep): 1 where all that `deep` gains was learned.  They are measured on up to
    1024 of the rows, as the encoder sees them; `px.evaluate` measures others.

    A code of few steps cannot be every code of many, so no share is promised.  Codes keep their density only where R
    fixes it (KSparse): else compare errors at one density, as `px.studies.depth` does.
    Raises `Error` for an encoder that does not use its weights (greedy, or solved for), another dictionary, signed
    codes for an encoder that has none, and as `train` does.

    >>> import proxsae as px
    >>> x = px.data.planted(n=256, d_in=16, d_sae=32, k=3).x
    >>> sae = px.abstopk_sae(d_in=16, d_sae=32, k=3)
    >>> told = px.distill(sae, sae.unrolled(16, px.ExactStep()), x, steps=50, batch_size=64)
    >>> told["deep"] < told["nmse"] < told["before"]
    True
    """
    check_pair(sae, deep)
    check_choice("towards", towards, ("codes", "error"))
    if towards == "codes" and not sae.common.penalty.affine:
        msg = f"towards='codes' needs a slope of R on its support, which {sae.common.penalty!r} has not: give 'error'"
        raise Error(msg)
    recipe = Recipe(steps, batch_size, lr, seed).checked(sae, None)
    with ExitStack() as held:
        held.enter_context(left_out(sae, DICTIONARY))
        check_trainable(sae, False)
        source = Source(sae, activations, recipe, None)
        inner, teacher = sae.twin(normalize="none"), _as_it_is(deep)
        rows = source.sample(MEASURED)
        before, aim = _nmse(inner, rows)[0], _nmse(teacher, rows)[0]
        held.enter_context(latents_in_rows(sae))
        aims = aims_of(teacher, source, recipe) if towards == "codes" else None
        with progress_of(recipe.steps, 0, progress) as show:
            _loop(inner, source, recipe, aims, show)
        after, density = _nmse(inner, rows)
    share = (before - after) / (before - aim) if before != aim else math.nan
    return {"nmse": after, "l0": density, "before": before, "deep": aim, "share": share}


def check_pair(sae: SAE, deep: SAE) -> None:
    """Raise `Error` unless the encoder of `sae` can learn from the codes of `deep`."""
    for one in (check_sae(sae), check_sae(deep)):
        one._whole("distill")
        if isinstance(one.common.penalty, BatchKSparse):
            msg = f"{one.common.penalty!r} selects over a batch, so that a row has no code of its own: give the SAE "
            msg += "that thresholded() returns"
            raise Error(msg)
    if not sae.encoding.encodes:
        how = "steps=inf" if sae.encoding.endless else f"step={sae.step!r}"
        msg = f"an SAE with {how} does not use W_enc, so there is nothing to distill into: give sae.unrolled(1)"
        raise Error(msg)
    same = sae.normalize == deep.normalize and all(
        getattr(sae, name).shape == getattr(deep, name).shape and torch.equal(getattr(sae, name), getattr(deep, name))
        for name in DICTIONARY
    )
    if not same:
        msg = (
            "deep has another dictionary than sae (W_dec, b_dec or normalize differ), on which its codes mean nothing:"
        )
        msg += " give sae.unrolled(16, px.ExactStep())"
        raise Error(msg)
    if sae.common.penalty.nonneg and not deep.common.penalty.nonneg:
        msg = (
            f"deep has codes of both signs ({deep.common.penalty!r}), but those of sae are >= 0: give both one penalty"
        )
        raise Error(msg)


def _as_it_is(deep: SAE) -> SAE:
    """A twin that keeps the weights of now while those of `deep` are trained, on the same dictionary."""
    kept = {name: a.detach().clone() for name, a in deep.weights().items() if name in LEARNS}
    return deep.twin(normalize="none", weights=kept)


Aims = Callable[[int, Tensor], Tensor]  # the codes to be learned, of the rows of the batch of a step


@torch.no_grad()
def aims_of(deep: SAE, source: Source, recipe: Recipe) -> Aims:
    """The codes of `deep`; where rows are in memory and all are read, each is encoded once."""
    if not source.in_memory or recipe.steps * recipe.batch_size < len(source):
        return lambda t, x: deep.encode(x).detach()
    parts = [deep.encode_sparse(part) for part in source.everything().split(default_batch(deep))]
    width = max(part.values.shape[1] for part in parts)
    indices, values = (
        torch.cat([pad(getattr(part, name), (0, width - part.values.shape[1])) for part in parts])
        for name in ("indices", "values")
    )

    def known(t: int, x: Tensor) -> Tensor:
        at = source.positions(t)
        return x.new_zeros(len(x), deep.d_sae).scatter_add(1, indices[at], values[at])  # what was padded adds 0

    return known


def towards_codes(sae: SAE, x: Tensor, aim: Tensor) -> Tensor:
    """The loss of normalised rows x (n, d) towards codes (n, P), as the first lines of this file have it."""
    u, z = sae.pre_activations(x), sae.encode(x)
    wanted = aim + torch.where(aim != 0, slope(sae.penalty, aim).detach(), 0)
    fires = z.detach() != 0
    off = torch.where(fires, z - aim, torch.where(aim != 0, u - wanted, 0))
    return 0.5 * off.square().sum(dim=1).mean()


def towards_error(sae: SAE, x: Tensor) -> Tensor:
    """The loss that `train` has, without its revival of dead latents."""
    return outcome(sae, x, mean_lam(sae), torch.zeros(sae.d_sae, dtype=torch.bool, device=sae.device)).loss


@outside_autocast
def _loop(
    sae: SAE, source: Source, recipe: Recipe, aims: Aims | None, show: Callable[[dict[str, float]], None]
) -> None:
    """Adam, as in `train`: there the unit of x is the spread, here the rates of what has that unit are."""
    _, spread = source.mean_and_spread()
    lr, units = cast(float, recipe.lr), _units(sae, spread)
    groups = [{"params": [part for part in sae.parts(name) if part.requires_grad], "unit": units[name]}
              for name in LEARNS if hasattr(sae, name)]  # fmt: skip
    optimiser = torch.optim.Adam([group for group in groups if group["params"]], lr=lr)
    for t in range(recipe.steps):
        x = source.batch(t)
        loss = (towards_error(sae, x) if aims is None else towards_codes(sae, x, aims(t, x))) / spread**2
        now = loss.item()
        if not math.isfinite(now):
            msg = f"the loss is {now} at step {t}: lr={lr:g} is too high, or the rows have an outlier"
            raise Error(msg)
        optimiser.zero_grad()
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = lr * rate(t, recipe.steps) * group["unit"]
        optimiser.step()
        show({"loss": now})


def _units(sae: SAE, spread: float) -> dict[str, float]:
    """What a rate of 1 means for each weight.

    Offsets have the unit of x.  Where a layer has W or S in place of a step of size 1/L, their entries are so much
    smaller than those of W_enc, and so are their rates.
    """
    units: dict[str, float] = dict.fromkeys(LEARNS, 1.0) | {name: spread for name in OFFSETS}
    rule = sae.encoding.learned
    if isinstance(rule, (LISTA, LISTACP)):
        units |= dict.fromkeys(("W_step", "S_step"), 1 / lipschitz(sae.W_dec))
    return units


@torch.no_grad()
def _nmse(sae: SAE, x: Tensor) -> tuple[float, float]:
    """nmse and l0 of rows that are normalised already."""
    z, xhat = coded(sae, x)
    return nmse(x, xhat), l0(z)
