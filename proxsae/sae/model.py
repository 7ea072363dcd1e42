"""The sparse autoencoder: a learned first step of proximal gradient, and as many further steps as one asks for.

    z_1     = prox_R((x - b_dec) W_enc + b_enc)                                      (prop-one-step-is-an-sae)
    z_{t+1} = prox_{mu R}(z_t - mu (z_t W_dec + b_dec - x) W_dec^T)                              (def-ista)
    xhat    = z_T W_dec + b_dec

With W_enc = W_dec^T, b_enc = 0 and mu = 1 the first line is the second, from z = 0.  Six penalties give six SAEs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import linear

from proxsae import formats
from proxsae.conventions import Error, check_count, check_finite, check_floats, check_path, may_look, shown
from proxsae.data.opening import in_memory
from proxsae.formats import own
from proxsae.penalties import L0, KSparse
from proxsae.penalties.base import runs
from proxsae.pytorch import ksparse_encoder, learned
from proxsae.pytorch.arithmetic import as_tensor, seeing
from proxsae.pytorch.autocast import outside_autocast
from proxsae.pytorch.codes import SparseCodes, sparse_decode, sparsify
from proxsae.pytorch.cost_model import Plan, kind_of, plan
from proxsae.pytorch.iteration import Point
from proxsae.pytorch.prox import has_kernel, in_kernel, prox
from proxsae.sae import encoders, thresholds
from proxsae.sae.encoding import Stream
from proxsae.sae.files import describe
from proxsae.sae.normalize import Normalized, normalize
from proxsae.sae.parameters import Parameters
from proxsae.steps import FixedStep, Lipschitz


class SAE(Parameters):
    """A sparse autoencoder with `steps` encoder steps; every published one is a choice of `penalty` with steps=1.

        z_1 = prox_R((x - b_dec) W_enc + b_enc),    z_{t+1} = prox_{mu R}(z_t - mu (z_t W_dec + b_dec - x) W_dec^T)

    d_in: the width d of the rows x (..., d).
    d_sae: the number P of latents; codes are (..., P).
    penalty: R, such as `KSparse(32)`; for L0 the weight `threshold` (P,) is trained, with lam = threshold^2 / 2.
    steps: the number T of encoder steps, at least 1.  The first is the learned encoder.  With math.inf the code is that
    of `solve`, which has gradients (thm-implicit-gradient) in memory that does not grow with its steps.
    step: the rule of the steps after the first, by default `Lipschitz()`; a learned one (`LISTA`, `LISTACP`, `TiLISTA`,
    `ALISTA`, `Accumulated`, `LearnedSteps`), whose weights are trained with the SAE; or a greedy one, `OMP()` or
    `MatchingPursuit()`, where T is the number of atoms.  Greedy codes and those of `solve` do not use W_enc and b_enc.
    analysis: "dictionary", where further steps use W_dec, so that theory applies; or "encoder", where they use W_enc in
    place of W_dec^T with mu = 1, and a row whose objective would rise keeps its code.
    b_enc: "first", where b_enc belongs to the first step only; or "every", where it is a part of the problem, whose
    objective then has the further term -<b_enc, z>.
    normalize: what is done to each row before it is encoded, and undone after: "none", "layer_norm" or "constant_norm".
    Codes, steps and objectives then live in normalised units.

    The weights have the names and shapes that SAE users know: W_enc (d, P), W_dec (P, d) with atoms as rows, b_enc (P,)
    and b_dec (d,).  Atoms start as random unit vectors, W_enc as their transpose, biases as 0.  `metadata` is a dict
    that files keep: where a loaded SAE comes from.

    A `BatchKSparse` SAE selects over the batch that it is given; training leaves in `batch_threshold` what
    `thresholded` needs.  `torch.nn.utils.parametrizations`, such as weight_norm, may be put on any weight.

    Statement: prop-one-step-is-an-sae (Zhu, Khalili and Zhu 2025, Lemma 1).

    Raises `Error` for sizes below 1, what is not a penalty, an unknown analysis, and a step rule beside
    analysis="encoder".

    >>> import proxsae as px
    >>> sae = px.SAE(d_in=8, d_sae=32, penalty=px.KSparse(4))
    >>> z = sae.encode(torch.randn(5, 8))
    >>> tuple(z.shape), int((z != 0).sum(dim=1).max())
    ((5, 32), 4)
    >>> deep = sae.unrolled(steps=8)
    >>> deep.W_dec is sae.W_dec
    True
    """

    # Rows in

    def rows(self, activations: Any) -> Tensor:
        """Activations (n, d_in) as a finite tensor of this SAE's dtype and device, or `Error`.

        They are a tensor, an array or lists of numbers, `data.Rows` or a path; all axes but the last are rows.
        """
        name = "activations"
        x = activations if isinstance(activations, Tensor) else torch.from_numpy(in_memory(name, activations))
        x = check_floats(name, x)
        shape = tuple(x.shape)
        x = x.reshape(-1, shape[-1]) if x.ndim > 2 and x.numel() else x
        if x.ndim != 2 or x.shape[1] != self.d_in or not len(x):
            msg = f"activations has shape {shape}, but this SAE needs (n, {self.d_in}) with n >= 1"
            raise Error(msg)
        x = x.to(self.W_dec.device, self.W_dec.dtype)
        check_finite(name, x)
        return x

    def _checked(self, x: Any) -> Tensor:
        """Rows (..., d_in) as a finite tensor: what is no tensor is converted, tensors have to fit."""
        W = self.W_dec
        x = check_floats("x", x) if isinstance(x, Tensor) else torch.from_numpy(in_memory("x", x)).to(W)
        if x.dtype != W.dtype or x.shape[-1] != self.d_in:
            given = f"a tensor of shape {tuple(x.shape)} and {x.dtype}"
            msg = f"x is {given}, but this SAE needs (..., {self.d_in}) in {W.dtype}"
            msg += f": x.to({W.dtype}), or sae.to({x.dtype})" if x.dtype != W.dtype else ""
            raise Error(msg)
        check_finite("x", x)
        return x

    @outside_autocast
    def normalized(self, x: Any) -> Normalized:
        """The rows of x (..., d_in) as the encoder sees them, and how to undo that."""
        x = self._checked(x)
        if self.normalize != "none":
            return normalize(x, self.normalize)
        one = x.new_ones(())
        return Normalized(x, torch.zeros_like(one), one)

    # Codes and reconstructions

    @outside_autocast
    def pre_activations(self, x: Any) -> Tensor:
        """u = (x' - b_dec) W_enc + b_enc: (..., d_in) -> (..., d_sae), x' the normalised x."""
        return self._pre_activations(self.normalized(x).rows)

    @outside_autocast
    def encode(self, x: Any) -> Tensor:
        """Dense codes z_T: (..., d_in) -> (..., d_sae), a tensor.

        x is a tensor of this SAE's dtype and device; or NumPy rows, lists of numbers, `data.Rows` or a path to rows,
        which are converted to them.
        Raises `Error` for NaN or infinite x, and for another width or dtype.
        """
        if self.on_supports:
            return self.encode_sparse(x).scattered()
        return self._dense(self.normalized(x).rows)[0]

    @outside_autocast
    def encode_sparse(self, x: Any, exact: str | None = None) -> SparseCodes:
        """The same codes as `SparseCodes`: k entries a row for KSparse, else the largest support in the batch.

        Where the threshold of an L0 is trained, entries of 0 that have a gradient in it are kept as well, so that the
        gradients are those of `encode` (prop-threshold-gradient).

        KSparse codes are never dense, nor is what their backward pass keeps (thm-sparse-gradient).  Trial steps look at
        2k candidates a row (lem-step-candidates), and constant ones may read Gram rows (prop-gram-step).
        exact="certified" gives the float32 code of one KSparse step whatever the order of any sum, from a product in
        half precision and a proof (thm-certified-topk): for GPUs whose float32 units are slow.  It has no gradient.
        """
        R = self.common.penalty
        if exact is not None:
            self._whole("exact='certified'")
            if not isinstance(exact, str) or exact != "certified" or self.steps != 1 or not runs(R, KSparse):
                given = f"exact={shown(exact)} with {R!r} and steps={self.steps}"
                msg = f"{given} must be 'certified', for one step of KSparse"
                raise Error(msg)
            return encoders.certified(self.normalized(x).rows, self._weights(), R)
        if self.on_supports:
            return self._on_supports(self.normalized(x).rows, decode=False)[0]
        z, felt = self._dense(self.normalized(x).rows)
        return sparsify(z, min(R.k, self.d_sae) if runs(R, KSparse) else None, felt)

    @outside_autocast
    def refine(self, x: Any, z: Tensor) -> Tensor:
        """Steps 2 ... T from the first code z (..., d_sae) of x (..., d_in), all of them dense.

        A code that does not begin with the encoder is what `encode` gives, whatever z.
        """
        rows = self.normalized(x).rows
        return self._refined(rows, z, None)[0] if self.encoding.encodes else self._dense(rows)[0]

    @outside_autocast
    def walk(self, x: Any) -> Iterator[Point]:
        """Yield the points z_1, z_2, ... z_T of x, rows flattened: codes, residuals, and products spent so far.

        With steps=math.inf there is one, the last.
        """
        rows = self.normalized(x).rows
        if not self.encoding.encodes:
            return encoders.from_zero(rows, self._weights(), self.penalty, self.encoding)
        return self._points(rows, prox(self.penalty, self._pre_activations(rows)))

    @outside_autocast
    def decode(self, z: Tensor | SparseCodes, like: Any = None) -> Tensor:
        """z W_dec + b_dec: dense codes (..., d_sae), also NumPy ones, or `SparseCodes` -> (..., d_in).

        Where rows are normalised, so is this; with `like`, the x (..., d_in) that was encoded, it is in the units of x.
        """
        if isinstance(z, SparseCodes):
            z.check()
        elif isinstance(z, Tensor):
            z = check_floats("codes", z)
        else:
            z = as_tensor("codes", z).to(self.W_dec)
        width, values = (z.d_sae, z.values) if isinstance(z, SparseCodes) else (z.shape[-1], z)
        if width != self.d_sae or values.dtype != self.W_dec.dtype:
            msg = f"codes have {width} latents of {values.dtype}, but this SAE has {self.d_sae} of {self.W_dec.dtype}"
            raise Error(msg)
        part, team = sparse_decode(z, self.W_dec) if isinstance(z, SparseCodes) else z @ self.W_dec, self.common.team
        xhat = (part if team is None else team.total(part)) + self.b_dec
        return xhat if like is None or self.normalize == "none" else self.normalized(like).undo(xhat)

    @outside_autocast
    def reconstruct(self, x: Any) -> tuple[Tensor, SparseCodes]:
        """decode(encode_sparse(x)) and the codes; for KSparse one forward and one backward pass for both.

        Its gradient is thm-sparse-gradient.
        """
        if not self.on_supports:
            z, felt = self._dense(self.normalized(x).rows)
            return self.decode(z, like=x), sparsify(z, felt=felt)
        normal = self.normalized(x)
        codes, xhat = self._on_supports(normal.rows, decode=True)
        return cast(Tensor, xhat) if self.normalize == "none" else normal.undo(cast(Tensor, xhat)), codes

    @outside_autocast
    def forward(self, x: Any) -> Tensor:
        """The reconstruction of x (..., d_in), in its units: decode(encode(x), like=x)."""
        return self.reconstruct(x)[0] if self.on_supports else self.decode(self.encode(x), like=x)

    def frozen(self, rows: int) -> SAE:
        """The same k-sparse SAE for a stream of about `rows` rows by weights that stay, in batches of any size.

            deep = sae.unrolled(16).frozen(rows=1_000_000)
            for batch in stream: codes = deep.encode_sparse(batch)

        The products are planned once, for all rows.  Constant steps of many rows read rows of D^T D, which the first
        batch makes and the others share (prop-gram-step); `plan(1).reasons` says what it costs and what it spares.
        It is kept as long as this twin is, and made again where W_dec has changed.  The plan is for the dtype and the
        device of now: `to` comes before `frozen`.  Codes have no gradient.
        Raises `Error` for rows < 1, and for codes that are not worked out on supports.
        """
        self._whole("frozen")
        if not self.on_supports:
            msg = f"frozen is for k-sparse steps by the dictionary, not {self.common.penalty!r} with {self.step!r}: "
            msg += "torch.no_grad() is all that other codes need"
            raise Error(msg)
        with torch.no_grad():
            planned = self.plan(check_count("rows", rows, 1))
        twin = self.twin()
        twin.stream = Stream(planned)
        return twin

    def thresholded(self, rows: Any = None) -> SAE:
        """The same weights with L0 in place of a selection, so that an entry is kept whatever the others are.

        rows: for `KSparse`, rows (n, d_in): the threshold of each step is the mean of the smallest magnitude that the
        selection keeps there, so that codes have about k non-zeros.  Steps after the first, of one size each, become
        `LearnedSteps` with a factor of lam each; training may go on with them.
        Without rows, for one trained step of `BatchKSparse`, at the threshold that its training found: so single rows
        can be encoded, whatever batch they come in.

        Raises `Error` where no threshold is known, and for steps that look at several step sizes.
        """
        return thresholds.of_batches(self) if rows is None else thresholds.of_rows(self, rows)

    @property
    def on_supports(self) -> bool:
        """Whether codes are worked out on their supports: k-sparse ones, by the dictionary, without a refit.

        Under torch.func and torch.export all codes are dense.
        """
        return may_look(self.W_dec) and encoders.has_supports(self.common.penalty, self.encoding)

    def plan(self, rows: int, frozen: bool = True) -> Plan:
        """How that many rows would be encoded on supports: the products chosen by their cost, and in `.reasons` why.

        `frozen` says that no gradient is asked for.  The guide *What a step costs* derives the costs.
        """
        if self.stream is not None:
            return self.stream.plan
        W, R = self.W_dec, self.common.penalty
        k = min(R.k, self.d_sae) if isinstance(R, KSparse) else self.d_sae
        wants_gram = self.steps > 1 and frozen  # only a Gram matrix asks how much memory is free
        free = ksparse_encoder.free_bytes(W.device) if wants_gram else 0.0
        return plan(
            rows, self.d_in, self.d_sae, k, int(self.steps),
            kind=kind_of(W.device.type, W.element_size()), bytes_per_number=W.element_size(), frozen=frozen,
            constant_step=isinstance(self.step, (Lipschitz, FixedStep)), free_bytes=free,
        )  # fmt: skip

    def _weights(self) -> encoders.Weights:
        return encoders.Weights(self.W_enc, self.b_enc, self.W_dec, self.b_dec)

    def _on_supports(self, x: Tensor, decode: bool) -> tuple[SparseCodes, Tensor | None]:
        weights = self._weights()
        keep = torch.is_grad_enabled() and any(a.requires_grad for a in (x, *weights))
        how = self.plan(x.shape[:-1].numel(), frozen=not keep)
        if self.stream is None:
            return encoders.on_supports(x, weights, self.encoding, self.common, how, keep, decode)
        with torch.no_grad():
            return encoders.on_supports(x, weights, self.encoding, self.common, how, False, decode, self.stream)

    def _walk_on_supports(self, x: Tensor) -> Iterator[tuple[SparseCodes, Tensor]]:
        """Yield the codes z_1 ... z_T of normalised rows (n, d_in), and the products spent so far; no gradients."""
        x, weights = x.detach(), encoders.Weights(*(weight.detach() for weight in self._weights()))
        return encoders.walk_on_supports(x, weights, self.encoding, self.common, self.plan(len(x)))

    def _dense(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes (..., d_sae) of normalised rows and, where some have gradients though they are 0, which."""
        R = self.penalty
        if not self.encoding.encodes:
            with seeing("an encoder of several steps", rows):
                return self._last(encoders.from_zero(rows, self._weights(), R, self.encoding), rows)
        u = self._pre_activations(rows)
        return self._refined(rows, prox(R, u), in_kernel(R, u) if has_kernel(R) else None)

    def _pre_activations(self, rows: Tensor) -> Tensor:
        return linear(rows - self.b_dec, self.W_enc.T, self.b_enc)

    def _refined(self, rows: Tensor, z: Tensor, felt: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.steps == 1:
            return z, felt
        with seeing(f"an encoder of {self.steps} steps", z):
            return self._last(self._points(rows, z, felt), rows)

    def _last(self, points: Iterator[Point], rows: Tensor) -> tuple[Tensor, Tensor | None]:
        for last in points:  # noqa: B007  (only the last is kept in memory)
            pass
        shape = (*rows.shape[:-1], self.d_sae)
        return last.z.reshape(shape), None if last.felt is None else last.felt.reshape(shape)

    def _points(self, rows: Tensor, z: Tensor, felt: Tensor | None = None) -> Iterator[Point]:
        layers = {name: getattr(self, name) for name in learned.WEIGHTS if hasattr(self, name)}
        return encoders.points(rows, z, felt, self._weights(), self.penalty, self.encoding, self.common, layers)

    # Files

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the folder `sae.json` + `sae.safetensors`, beside and then renamed; raise `Error` if that fails."""
        self._whole("save")
        own.write(check_path("folder", folder), describe(self), self.weights())

    def export(self, folder: str | os.PathLike[str], double: bool = False) -> None:
        """Write the one-step SAE in SAELens' layout, which its tools read.

        `double` writes atoms [D, -D] and non-negative codes, for tools that cannot read signed ones: twice the latents,
        the same reconstruction (prop-splitting-codes).  Raises `Error` for more steps than one, and for what that
        layout cannot say.
        """
        if self.steps != 1 or not self.encoding.encodes:
            msg = (
                f"steps={self.steps} with step={self.step!r} cannot be exported: SAELens' encoders take one step, and "
            )
            msg += "unrolled(1) has it"
            raise Error(msg)
        R: Any = self.penalty
        if isinstance(R, L0):
            R = L0(R.lam.detach().cpu().numpy(), nonneg=R.nonneg)
        weights = {name: a.detach() for name, a in zip(encoders.Weights._fields, self._weights(), strict=True)}
        found = formats.Found("proxsae", weights, R, self.normalize, formats.model_metadata(self.metadata), ())
        formats.write_saelens(check_path("folder", folder), found, double)

    @property
    def cfg(self) -> SimpleNamespace:
        """What tools made for SAELens read of an SAE: d_in, d_sae, dtype, architecture, hook_name and the like."""
        sizes, dtype = (self.d_in, self.d_sae), str(self.dtype).removeprefix("torch.")
        return formats.saelens_cfg(self.common.penalty, sizes, dtype, self.normalize, self.metadata, str(self.device))


def check_sae(sae: Any) -> SAE:
    """Return an SAE, or raise `Error` for anything else."""
    if not isinstance(sae, SAE):
        msg = f"sae={shown(sae)} must be a px.SAE, such as px.topk_sae(d_in, d_sae, k) or px.load(path)"
        raise Error(msg)
    return sae
