"""What an SAE does on rows that need not fit into memory, also with more encoder steps: one pass, one batch at a time.

Sums are kept over all rows, in float64, and divided once at the end: a mean of the ratios of batches is another number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proxsae.conventions import Error, check_count, check_floats, note
from proxsae.data import open_rows
from proxsae.data.rows import KEPT
from proxsae.data.survey import summed_up
from proxsae.disk import memory
from proxsae.learned import LearnedRule
from proxsae.metrics import cosines, mean_jaccard, power_of_two, ratio, support_change
from proxsae.pytorch.codes import SparseCodes, squares
from proxsae.sae.model import SAE, check_sae
from proxsae.steps import ExactStep, Lipschitz, Rule

Codes = Tensor | SparseCodes
STEPS = (1, 2, 4, 8, 16)
LARGEST = 4096  # rows of a batch, by default
ENTRIES = 2**23  # of the codes of one batch, by default: 32 MiB in float32, and a walk holds a few such arrays


@torch.no_grad()
def evaluate(sae: SAE, activations: Any, batch_size: int | None = None) -> dict[str, float]:
    """Measure an SAE on rows (n, d_in), of which one batch is held at a time, and return a dict.

    nmse                sum ||x - xhat||^2 / sum ||x||^2
    explained_variance  1 - sum ||x - xhat||^2 / sum ||x - mean||^2
    cosine, l0          means over rows of the cosine between x and xhat, and of the number of z != 0
    dead                share of latents with z = 0 on every row
    two_sided           share of the other latents that fire with both signs
    sign_balance        mean over these latents of min(p, q) / max(p, q), p and q the counts of either sign

    activations: rows as a tensor, NumPy array or lists of numbers; or a path or `data.Rows`, which are streamed.
    batch_size: how many rows are encoded together, by default 4096, or as many as keep a batch of codes below
    `ENTRIES`; a `BatchKSparse` SAE selects among them, and takes 4096 by default.

    Warns of rows above 10 times the median norm where they hold a hundredth of all squares, unless `data.open_rows` was
    asked to drop or clip them.  Raises `Error` for no rows, NaN or infinite rows and a width that does not fit.

    >>> import proxsae as px
    >>> px.evaluate(px.topk_sae(d_in=4, d_sae=8, k=2), np.eye(4))["l0"] <= 2
    True
    """
    spread, rows = Spread(check_sae(sae).d_in), _opened(sae, activations)
    sae, sums = _frozen(sae, len(rows)), _Sums(sae)
    for x in batches(sae, rows, LARGEST if batch_size is None and not sae.penalty.rowwise else batch_size):
        z = sae.encode_sparse(x) if sae.on_supports else sae.encode(x)
        spread.add(x)
        sums.add(x, sae.decode(z, like=x), z, None, spread.unit)
    spread.warn(rows)
    found = sums.measures(spread, compared=False)
    names = ("nmse", "explained_variance", "cosine", "l0", "dead", "two_sided")
    return {**{name: found[name] for name in names}, "sign_balance": sums.sign_balance()}


@torch.no_grad()
def evaluate_depths(
    sae: SAE,
    rows: Any,
    steps: Iterable[float] = STEPS,
    step: Rule | None = None,
    analysis: str = "dictionary",
    b_enc: str = "first",
    batch_size: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Measurements of `sae` on rows (n, d_in), one dict for each number of encoder steps, in ascending order.

    steps               number of encoder steps; "inf" for math.inf, the codes of `solve`
    nmse                sum ||x - xhat||^2 / sum ||x||^2
    explained_variance  1 - sum ||x - xhat||^2 / sum ||x - mean||^2, the mean taken over all rows
    l0, cosine          means over rows of the non-zeros, and of the cosine between x and xhat
    dead, two_sided     share of latents that never fire (z = 0), and of the others the share that fire with both signs
    support_change      mean Jaccard distance to the supports at the next smaller number of steps, None at the smallest
    objective           mean of 1/2 ||x - b_dec - D z||^2 + R(z), in the units that the encoder sees; with
                        b_enc="every" also of -<b_enc, z>
    cost                mean products with the dictionary, in units of one encoder product

    `rows` is an array or anything with a length whose slices are arrays: only `batch_size` rows are held at a time, by
    default as many as keep a batch of codes below `ENTRIES`.  `step` is by default `ExactStep()`, and `Lipschitz()`
    where R is not affine; a learned rule is that of `sae` itself; analysis="encoder" has no step rule.
    `progress` gets the rows done and their number.  Warns of outliers as `evaluate` does.
    Raises `Error` for rows that do not fit or are not finite, steps < 1, and as `SAE.unrolled` does.
    """
    wanted = sorted({math.inf if t == math.inf else check_count("steps", t, 1) for t in steps})
    if not wanted:
        msg = "steps is empty, but a table needs at least one number of encoder steps"
        raise Error(msg)
    counted = [int(t) for t in wanted if t != math.inf]
    most = max(counted, default=0)
    if isinstance(step, LearnedRule):
        if sae.step != step:
            msg = f"step={step!r} needs an SAE trained with it, and this one has {sae.step!r}: choose another rule"
            raise Error(msg)
        if wanted[-1] > sae.steps:
            msg = f"steps={wanted[-1]} exceeds the {sae.steps} steps whose sizes this SAE has learned"
            raise Error(msg)
        deep = sae
    else:
        deep = unrolled(sae, most or 1, step, analysis, b_enc)
    endless = sae.unrolled(math.inf) if len(counted) < len(wanted) else None
    spread, sums = Spread(sae.d_in), {t: _Sums(sae) for t in wanted}
    rows = _opened(sae, rows)
    for x in batches(sae, rows, batch_size, progress):
        spread.add(x)
        before = None
        walk: Iterator[tuple[float, Any]] = enumerate(
            itertools.islice(_walk(deep, x), max(counted, default=0)), start=1
        )
        if endless is not None:
            walk = itertools.chain(walk, ((math.inf, found) for found in _walk(endless, x)))
        for t, (z, objective, spent) in walk:
            if t in sums:
                if isinstance(before, SparseCodes) and not isinstance(z, SparseCodes):
                    before = before.to_dense()
                sums[t].add(x, sae.decode(z, like=x), z, before, spread.unit)
                sums[t].objective += float(objective().double().sum())
                sums[t].cost += float(spent.sum())
                before = z
    spread.warn(rows)
    named = {t: "inf" if t == math.inf else t for t in wanted}
    return [{"steps": named[t], **sums[t].measures(spread, compared=t != wanted[0])} for t in wanted]


def _frozen(sae: SAE, rows: int) -> SAE:
    """The same SAE, with what further steps share made once for all rows where it can be."""
    return sae.frozen(rows) if sae.on_supports and sae.common.team is None else sae


def _walk(sae: SAE, x: Tensor) -> Iterator[tuple[Codes, Callable[[], Tensor], Tensor]]:
    """Yield z_1 ... z_T of rows x, how to work out their objectives, and the products spent: on supports if it can."""
    if not sae.on_supports:
        R = sae.penalty
        for point in sae.walk(x):
            yield point.z, partial(point.objective, R), point.spent
        return
    rows = sae.normalized(x).rows

    def objective(codes: SparseCodes) -> Tensor:
        return 0.5 * squares(sae.decode(codes) - rows)  # R is 0 there

    for codes, spent in sae._walk_on_supports(rows):
        yield codes, partial(objective, codes), spent


def unrolled(sae: SAE, steps: float, step: Rule | None, analysis: str, b_enc: str = "first") -> SAE:
    """`sae.unrolled`; without a rule, with `ExactStep()` where R is affine between sign changes, else `Lipschitz()`."""
    if step is None and analysis == "dictionary" and steps != math.inf:
        step = ExactStep() if sae.penalty.affine else Lipschitz()
    return sae.unrolled(steps, step, analysis, b_enc)


def default_batch(sae: SAE) -> int:
    """How many rows are encoded together by default."""
    return sae.plan(LARGEST).rows if sae.on_supports else min(LARGEST, max(1, ENTRIES // sae.d_sae))


def batches(
    sae: SAE, rows: Any, batch_size: int | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[Tensor]:
    """The rows (n, d_in), some at a time, as finite tensors of the dtype and device of `sae`."""
    size = default_batch(sae) if batch_size is None else check_count("batch_size", batch_size, 1)
    rows = _opened(sae, rows)
    total = len(rows)
    for start in range(0, total, size):
        part = rows[start : start + size]
        _check_finite(part, start)
        yield sae.rows(part)
        progress(min(start + size, total), total)


def _opened(sae: SAE, rows: Any) -> Any:
    """Rows (n, d_in) that come in slices: what `SAE.rows` takes, or anything that has a shape and slices of arrays."""
    if isinstance(rows, (Tensor, np.ndarray)) or hasattr(rows, "toarray"):
        rows = check_floats("rows", rows)
    elif not hasattr(rows, "shape"):
        rows = open_rows(rows)
    shape = tuple(rows.shape)
    rows = rows.reshape(-1, shape[-1]) if len(shape) > 2 and shape[-1] else rows
    if len(rows.shape) != 2 or shape[-1] != sae.d_in or not len(rows):
        msg = f"the data has shape {shape}, but this SAE needs rows of width {sae.d_in}: (n, {sae.d_in}) with n >= 1"
        raise Error(msg)
    return rows


def _check_finite(part: Any, start: int) -> None:
    """Raise `Error`, naming the first row that is not finite, counted over all batches."""
    good = (part.isfinite() if isinstance(part, Tensor) else np.isfinite(part)).all(-1)
    if not bool(good.all()):
        msg = f"row {start + good.tolist().index(False)} of the data (from 0) holds NaN or infinite entries"
        raise Error(msg)


@torch.no_grad()
def encode_rows(
    sae: SAE, rows: Any, batch_size: int | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """The codes of rows (n, d_in) as NumPy arrays: indices (n, s) int32, ascending; values (n, s); d_sae.

    s is the largest support of a row.  Others are padded as `SparseCodes` are, with other latents of value 0.  The
    codes are held in memory, and an `Error` says so as soon as they will not fit.
    """
    rows = _opened(sae, rows)
    sae = _frozen(sae, len(rows))
    parts: list[tuple[NDArray[Any], NDArray[Any]]] = []
    done, held, there = 0, 0, memory()
    for x in batches(sae, rows, batch_size, progress):
        codes = sae.encode_sparse(x)
        values = codes.values.float() if codes.values.dtype == torch.bfloat16 else codes.values
        parts.append((codes.indices.int().cpu().numpy(), values.cpu().numpy()))
        done, held = done + len(x), held + sum(a.nbytes for a in parts[-1])
        needed = 2 * held * len(rows) / done  # twice, while parts become one
        if there < needed:
            msg = f"the codes of {len(rows)} rows need {needed / 2**30:.1f} GiB of memory, but {there / 2**30:.1f} are "
            msg += "there: encode the data in parts"
            raise Error(msg)
    width = max(indices.shape[1] for indices, _ in parts)
    padded = [_pad(indices, values, width) for indices, values in parts]
    both = (np.concatenate(arrays) for arrays in zip(*padded, strict=True))
    return dict(zip(("indices", "values"), both, strict=True)) | {"d_sae": np.array(sae.d_sae)}


def _pad(indices: NDArray[Any], values: NDArray[Any], width: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The same codes with `width` entries a row: latents that the row lacks are added, with value 0."""
    more = width - indices.shape[1]
    if not more:
        return indices, values
    taken = np.zeros((len(indices), width), dtype=bool)  # of the first `width` latents, `more` at least are free
    row, column = np.nonzero(indices < width)
    taken[row, indices[row, column]] = True
    free = np.argsort(taken, axis=1, kind="stable")[:, :more].astype(indices.dtype)
    indices = np.concatenate([indices, free], axis=1)
    values = np.concatenate([values, np.zeros(free.shape, values.dtype)], axis=1)
    order = np.argsort(indices, axis=1)
    return np.take_along_axis(indices, order, axis=1), np.take_along_axis(values, order, axis=1)


class Spread:
    """sum ||x||^2 and sum ||x - mean||^2 of rows that come in batches.

    Each batch is centred on its own mean and then moved to the common one (Chan, Golub and LeVeque 1979): the textbook
    sum ||x||^2 - n ||mean||^2 cancels where the mean is large.  Means are those of x - the first row of all, so that
    equal rows have none.  All are in a unit of the size of the rows, which their squares need not have room for.
    """

    def __init__(self, width: int) -> None:
        self.n, self.square, self.centred, self.unit = 0, 0.0, 0.0, 1.0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.first: Tensor | None = None
        self.norms: list[NDArray[np.float64]] = []

    def add(self, x: Tensor) -> None:
        """Add the rows x (B, d)."""
        B = len(x)
        if self.first is None:
            self.unit = float(power_of_two(x.abs().max().double()))
        x = x.double() / self.unit
        self.square += float(x.square().sum())
        self.norms.append(torch.linalg.vector_norm(x, dim=1).cpu().numpy())
        self.first = x[0] if self.first is None else self.first
        x = x - self.first
        mean = x.mean(dim=0)
        self.centred += float((x - mean).square().sum())
        move = mean.cpu() - self.mean
        self.centred += float(move.square().sum()) * self.n * B / (self.n + B)
        self.n += B
        self.mean += move * B / self.n

    def warn(self, rows: Any) -> None:
        """Warn of outliers among these rows, which were all added, unless they were treated when they were opened."""
        if self.first is not None and getattr(rows, "outliers", KEPT) == KEPT:
            mean = float(torch.linalg.vector_norm(self.first.cpu() + self.mean))
            spread = math.sqrt(self.centred / self.n)
            size = (self.unit * mean, self.unit * spread)
            if warning := summed_up(np.concatenate(self.norms), len(self.mean), *size, unit=self.unit).warning():
                note(warning)


class _Sums:
    """What is summed at one number of steps."""

    def __init__(self, sae: SAE) -> None:
        self.n = 0
        self.error = self.cosine = self.change = self.objective = self.cost = 0.0
        self.up, self.down = torch.zeros(2, sae.d_sae, dtype=torch.int64, device=sae.W_dec.device)  # firings by sign

    def add(self, x: Tensor, xhat: Tensor, z: Codes, before: Codes | None, unit: float) -> None:
        """Add rows; `before` are their codes at the next smaller number of steps, `unit` that of errors."""
        x, xhat = x.double(), xhat.double()
        self.n += len(x)
        self.error += float(((x - xhat) / unit).square().sum())
        self.cosine += float(cosines(x, xhat).sum())
        self.change += 0.0 if before is None else len(x) * _support_change(before, z)
        if isinstance(z, SparseCodes):
            at = z.indices.flatten()
            self.up.index_add_(0, at, (z.values > 0).flatten().long())
            self.down.index_add_(0, at, (z.values < 0).flatten().long())
        else:
            self.up += (z > 0).sum(dim=0, dtype=torch.int32)  # one batch at a time in 32 bits: twice as fast
            self.down += (z < 0).sum(dim=0, dtype=torch.int32)

    def sign_balance(self) -> float:
        """The mean over latents that fire of min(p, q) / max(p, q)."""
        balance = torch.minimum(self.up, self.down) / torch.maximum(self.up, self.down).clamp(min=1)
        return float(balance.double().sum()) / max(1, int((self.up + self.down > 0).sum()))

    def measures(self, spread: Spread, compared: bool) -> dict[str, Any]:
        live, both = int((self.up + self.down > 0).sum()), int(((self.up > 0) & (self.down > 0)).sum())
        return {
            "nmse": _ratio(self.error, spread.square),
            "explained_variance": 1 - _ratio(self.error, spread.centred),
            "l0": int((self.up + self.down).sum()) / self.n,
            "cosine": self.cosine / self.n,
            "dead": 1 - live / len(self.up),
            "two_sided": both / live if live else 0.0,
            "support_change": self.change / self.n if compared else None,
            "objective": self.objective / self.n,
            "cost": self.cost / self.n,
        }


def _support_change(before: Codes, after: Codes) -> float:
    """`metrics.support_change`, also of codes on supports."""
    if not (isinstance(before, SparseCodes) and isinstance(after, SparseCodes)):
        return support_change(cast(Tensor, before), cast(Tensor, after))
    place = torch.searchsorted(before.indices, after.indices).clamp(max=before.indices.shape[-1] - 1)
    same = (before.indices.gather(-1, place) == after.indices) & (before.values.gather(-1, place) != 0)
    shared = (same & (after.values != 0)).sum(dim=-1)
    union = (before.values != 0).sum(dim=-1) + (after.values != 0).sum(dim=-1) - shared
    return mean_jaccard(shared, union)


def _ratio(part: float, whole: float) -> float:
    return ratio(*torch.tensor([part, whole], dtype=torch.float64))
