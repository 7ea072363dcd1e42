"""How rows become codes, as functions of weights: on supports, step by step on dense codes, or with a certificate.

`SAE` checks what it is given and chooses; here it is carried out.  Rows x (..., d_in) are normalised already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from proxsae.certificates import squared_norm
from proxsae.conventions import may_look
from proxsae.learned import Greedy, LearnedSteps
from proxsae.penalties import KSparse
from proxsae.penalties.base import runs
from proxsae.pytorch import ksparse_encoder, learned
from proxsae.pytorch.certified_topk import certified_top_k
from proxsae.pytorch.codes import SparseCodes, accumulator
from proxsae.pytorch.cost_model import Plan
from proxsae.pytorch.greedy import pursue
from proxsae.pytorch.iteration import Point, iterate, solve
from proxsae.sae import walks
from proxsae.sae.encoding import Common, Encoding, Stream
from proxsae.sae.team import squared_norm_of_all
from proxsae.steps import StepRule, check_rule

PRODUCTS_A_STEP = 2  # of `solve`: the residual and its correlations with the atoms


class Weights(NamedTuple):
    """W_enc (d_in, d_sae), b_enc (d_sae,), W_dec (d_sae, d_in) and b_dec (d_in,)."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor


def has_supports(R: Any, encoding: Encoding) -> bool:
    """Whether `on_supports` takes these steps: k-sparse ones, by the dictionary, with a rule that needs no refit."""
    by_dictionary = encoding.analysis == "dictionary" and encoding.b_enc == "first"
    lean = encoding.steps == 1 or (by_dictionary and isinstance(encoding.step, ksparse_encoder.RULES))
    return lean and encoding.encodes and runs(R, KSparse)


def on_supports(
    x: Tensor, weights: Weights, encoding: Encoding, common: Common, plan: Plan, keep: bool, decode: bool,
    stream: Stream | None = None,
) -> tuple[SparseCodes, Tensor | None]:  # fmt: skip
    """Codes of a k-sparse SAE and, if asked to decode, D z + b_dec: nothing of size B x d_sae is made."""
    how = replace(_supports(x, weights, encoding, common, plan), decode=decode, keep=keep)
    if stream is not None and how.plan.product == "gram":
        how = replace(how, gram=_gram(weights.W_dec, common, how.plan, stream))
    indices, values, xhat = ksparse_encoder.Encode.apply(x.reshape(-1, x.shape[-1]), *weights, how)
    shape = (*x.shape[:-1], values.shape[-1])
    codes = SparseCodes(indices.reshape(shape), values.reshape(shape), len(weights.W_dec))
    return codes, xhat if xhat is None or x.ndim == 2 else xhat.reshape(x.shape)  # FSDP wants no view


def walk_on_supports(
    x: Tensor, weights: Weights, encoding: Encoding, common: Common, plan: Plan
) -> Iterator[tuple[SparseCodes, Tensor]]:
    """Yield the codes z_1 ... z_T of rows x (n, d_in) and the products spent so far, by row; without gradients."""
    how = _supports(x, weights, encoding, common, replace(plan, product="residual"))
    for at, z, spent in ksparse_encoder.walk(x, *weights, how):
        yield SparseCodes(at, z, len(weights.W_dec)), spent


def _supports(x: Tensor, weights: Weights, encoding: Encoding, common: Common, plan: Plan) -> ksparse_encoder.Steps:
    """The steps of a k-sparse SAE, for codes alone, once its rule and its penalty were checked."""
    R, rule, L = cast(KSparse, common.penalty), cast(StepRule, encoding.step), 1.0
    if encoding.steps > 1:
        least, L = squared_norm_of(weights.W_dec, common)
        check_rule(rule, None, "last", R, least)
    lone = common.team is None and ksparse_encoder.has_room(L, x.dtype)  # on a team, Gram rows are on all ranks
    if plan.product == "gram" and not lone:
        plan = replace(plan, product="residual")
    return ksparse_encoder.Steps(R, int(encoding.steps), rule, L, plan, False, False, common.pages, common.team)


def _gram(W_dec: Tensor, common: Common, plan: Plan, stream: Stream) -> ksparse_encoder.Gram:
    """D^T D, made for the first batch of a stream and again where W_dec has changed (`squared_norm_of` looks)."""
    mark = cast(Any, common.norm)[1]
    if stream.gram is None or stream.gram[0] is not mark:
        stream.gram = None  # first free what a new one is to replace
        stream.gram = mark, ksparse_encoder.gram_blocks(W_dec.detach(), plan.columns)
    return stream.gram[1]


def points(
    x: Tensor,
    z: Tensor,
    felt: Tensor | None,
    weights: Weights,
    R: Any,
    encoding: Encoding,
    common: Common,
    learned_weights: Mapping[str, Tensor],
) -> Iterator[Point]:
    """Yield the points of steps 1 ... T from the first code z (..., d_sae) of x, rows flattened, all of them dense.

    `felt` marks entries of z that have gradients though they may be 0.
    """
    W_enc, b_enc, D, b_dec = weights
    c, first = (x - b_dec).reshape(-1, D.shape[1]), z.reshape(-1, len(D))
    tilt = b_enc if encoding.b_enc == "every" else None
    felt = None if felt is None else felt.reshape(first.shape)
    one = Point(first, c, D, c.new_ones(len(c), dtype=torch.float64), tilt=tilt, felt=felt)
    if encoding.analysis == "encoder":
        walk = walks.encoder(one, R, W_enc, tilt)
    elif encoding.learned is not None:
        u = None if isinstance(encoding.learned, LearnedSteps) else torch.nn.functional.linear(c, W_enc.T, b_enc)
        walk = learned.walk(encoding.learned, learned_weights, int(encoding.steps) - 1, one, R, W_enc, u, tilt)
    else:
        rule, (least, L) = cast(StepRule, encoding.step), squared_norm_of(D, common)
        check_rule(rule, None, "last", R, least)
        walk = iterate(c, D, R, rule, None, first, L, spent=1.0, tilt=tilt)
    yield from islice(walk, int(encoding.steps))


def from_zero(x: Tensor, weights: Weights, R: Any, encoding: Encoding) -> Iterator[Point]:
    """Yield the points of an encoding that does not use the encoder's weights: of each atom, or the one that is solved.

    What `solve` finds has its gradients by the implicit function theorem, so that memory does not grow with its steps.
    """
    D = weights.W_dec
    c = (x - weights.b_dec).reshape(-1, D.shape[1])
    if isinstance(encoding.rule, Greedy):
        yield from islice(pursue(encoding.rule, c, D, R), int(encoding.steps))
        return
    found = solve(c, D, R)
    yield Point(found.codes, c, D, PRODUCTS_A_STEP * found.steps.double())


def certified(x: Tensor, weights: Weights, R: KSparse) -> SparseCodes:
    """The code of one k-sparse step by a product in half precision and a proof (thm-certified-topk)."""
    W_enc, b_enc, _, b_dec = weights
    indices, values, _ = certified_top_k(x.reshape(-1, len(b_dec)) - b_dec, W_enc.T, b_enc, R.k, R.nonneg)
    shape = (*x.shape[:-1], indices.shape[-1])
    return SparseCodes(indices.reshape(shape), values.reshape(shape), len(b_enc))


def squared_norm_of(W_dec: Tensor, common: Common) -> tuple[float, float]:
    """Bounds of ||W_dec||^2, kept while W_dec stays the same: working them out costs what a step of some rows costs.

    Weights may change in place, unseen by the counter of such changes where `.data` is written.  So what is compared
    are that counter, the norm of every atom and its product with one vector, whose entries differ so that their order
    shows: two reads of W_dec, each row summed in one order.
    """
    if common.team is not None:
        return squared_norm_of_all(W_dec, common.team)
    if not may_look(W_dec):
        return squared_norm(W_dec)
    with torch.no_grad():
        W = W_dec.to(accumulator(W_dec.dtype))
        vector = torch.arange(1, W.shape[1] + 1, device=W.device, dtype=W.dtype).cos()
        mark = torch.stack([W @ vector, torch.linalg.vector_norm(W, dim=1)])
        written = None if W_dec.is_inference() else W_dec._version
        if common.norm is not None:
            before, known, bounds = common.norm
            if before == written and known.device == mark.device and torch.equal(known, mark):
                return bounds
        bounds = squared_norm(W_dec)
        common.norm = written, mark, bounds
    return bounds
