"""The sparse autoencoder: a learned first step of proximal gradient, and as many further steps as one asks for.

    z_1     = prox_R((x - b_dec) W_enc + b_enc)                                      (prop-one-step-is-an-sae)
    z_{t+1} = prox_{mu R}(z_t - mu (z_t W_dec + b_dec - x) W_dec^T)                              (def-ista)
    xhat    = z_T W_dec + b_dec

With W_enc = W_dec^T, b_enc = 0 and mu = 1 the first line is the second, from z = 0.  Six penalties give six SAEs.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from proxsae.certificates import lipschitz
from proxsae.conventions import Error, check_count, check_finite, check_floats
from proxsae.penalties import L0, BatchKSparse, KSparse, Penalty
from proxsae.penalties.base import runs
from proxsae.pytorch import ksparse_encoder
from proxsae.pytorch.certified_topk import certified_top_k
from proxsae.pytorch.codes import Pages, SparseCodes, accumulator, sparse_decode, sparsify
from proxsae.pytorch.cost_model import Plan, kind_of, plan
from proxsae.pytorch.iteration import Point, iterate
from proxsae.pytorch.prox import prox
from proxsae.sae import files, walks
from proxsae.sae.normalize import Normalized, check_kind, normalize
from proxsae.sae.team import Team, lipschitz_of_all
from proxsae.steps import FixedStep, LearnedSteps, Lipschitz, Refit, StepRule, check_rule


class SAE(nn.Module):
    """A sparse autoencoder with `steps` encoder steps; every published one is a choice of `penalty` with steps=1.

    W_enc (d_in, d_sae), W_dec (d_sae, d_in) with atoms as rows, b_enc (d_sae,), b_dec (d_in,); for L0 also the trained
    `threshold` (d_sae,), where lam = threshold^2 / 2 (its gradient is the straight-through one of `L0.bandwidth`).
    Steps after the first use `step` and the dictionary itself (analysis="dictionary"), so that theory applies; or the
    learned encoder (analysis="encoder", unit steps, W_enc in place of W_dec^T), where a row whose objective would rise
    keeps its code.  b_enc belongs to the first step only; with b_enc="every" it is a part of the problem, which then
    has the further term -<b_enc, z>, in its objective too.
    `normalize` says what is done to each row before it is encoded, and undone after: "none", "layer_norm" or
    "constant_norm" (proxsae.sae.normalize).  Codes, steps and objectives then live in normalised units.

    A `BatchKSparse` SAE selects over the batch that it is given, which is one vector to its further steps; training
    leaves in `batch_threshold` what `thresholded` needs.  `metadata` says where a loaded SAE comes from.

    Statement: prop-one-step-is-an-sae (Zhu, Khalili and Zhu 2025, Lemma 1).  Raises `Error` for sizes < 1, an unknown
    analysis, and a step rule beside analysis="encoder".
    """

    metadata: dict[str, Any]
    batch_threshold: Tensor

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        penalty: Penalty,
        steps: int = 1,
        step: StepRule | LearnedSteps | None = None,
        analysis: str = "dictionary",
        b_enc: str = "first",
        normalize: str = "none",
    ) -> None:
        super().__init__()
        self.d_in, self.d_sae = check_count("d_in", d_in, 1), check_count("d_sae", d_sae, 1)
        self.normalize, self.metadata = check_kind(normalize, d_in), {}
        if not isinstance(penalty, Penalty):
            msg = f"penalty={penalty!r} must be a Penalty: L1, L0 or KSparse"
            raise Error(msg)
        atoms = nn.functional.normalize(torch.randn(self.d_sae, self.d_in), dim=1)
        penalty.check_fits("penalty", atoms, self.d_sae)
        lam = getattr(penalty, "lam", None)
        if isinstance(lam, Tensor):  # an SAE trains its threshold or nothing: a lam of the caller's stays outside
            penalty = replace(cast(Any, penalty), lam=lam.detach().cpu().double().numpy())
        self.W_dec = nn.Parameter(atoms)
        self.W_enc = nn.Parameter(atoms.clone().T)  # in memory one latent a row, as W_dec: what supports gather
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(self.d_in))
        self._shared: dict[str, Any] = {"penalty": penalty}  # by `unrolled`, as the weights are
        if isinstance(penalty, L0):
            theta = torch.tensor(np.sqrt(2 * np.asarray(penalty.lam)))
            self.threshold = nn.Parameter(theta.expand(self.d_sae).to(atoms).clone())
        if isinstance(penalty, BatchKSparse):
            self.batch_threshold = nn.Parameter(torch.tensor(torch.nan), requires_grad=False)
        self._plan(steps, step, analysis, b_enc)

    def _plan(self, steps: int, step: StepRule | LearnedSteps | None, analysis: str, b_enc: str) -> None:
        if analysis not in ("dictionary", "encoder"):
            msg = f"analysis={analysis!r} must be 'dictionary' or 'encoder'"
            raise Error(msg)
        if analysis == "encoder" and step is not None:
            msg = f"step={step!r} cannot go with analysis='encoder': a learned encoder takes unit steps"
            raise Error(msg)
        if b_enc not in ("first", "every"):
            msg = f"b_enc={b_enc!r} must be 'first' or 'every'"
            raise Error(msg)
        self.steps, self.analysis, self.bias_at = check_count("steps", steps, 1), analysis, b_enc
        self.step = Lipschitz() if step is None else step
        if b_enc == "every" and isinstance(self.step, Refit):
            msg = "step=Refit() cannot go with b_enc='every': its least squares know no linear term (thm-refit)"
            raise Error(msg)
        if isinstance(self.step, LearnedSteps):
            self._learn_steps()
            return
        L = lipschitz(self.W_dec) if isinstance(self.step, FixedStep) else 1.0  # only FixedStep is judged by it
        check_rule(self.step, None, "last", self._shared["penalty"], L)

    def _learn_steps(self) -> None:
        """Parameters for steps 2 ... T: log mu_t, from 1/L, and the log of lam's factors, from 1."""
        W = self.W_dec
        start = 0.0 if W.is_meta else -math.log(lipschitz(W))  # meta: about to be replaced by a file's
        self.log_step = nn.Parameter(torch.full((self.steps - 1,), start, dtype=W.dtype, device=W.device))
        if hasattr(self._shared["penalty"], "lam"):
            self.log_lam_factor = nn.Parameter(torch.zeros_like(self.log_step))

    @property
    def penalty(self) -> Penalty:
        """R as it stands; for a trained L0 its lam is the tensor threshold^2 / 2."""
        R = self._shared["penalty"]
        return replace(R, lam=self.threshold.double().square() / 2) if isinstance(R, L0) else R

    def scale_lam(self, factor: float) -> None:
        """Multiply lam by `factor`, in place; an L0 SAE has its threshold instead, and a k-sparse one neither."""
        R = self._shared["penalty"]
        if hasattr(R, "lam") and not isinstance(R, L0):
            self._shared["penalty"] = replace(cast(Any, R), lam=R.lam * factor)

    def restore_scale(self, lam: Any, bandwidth: Any) -> None:
        """Set lam and bandwidth as a checkpoint has them, where R has such and they are not weights."""
        R: Any = self._shared["penalty"]
        if isinstance(R, L0):
            self._shared["penalty"] = replace(R, bandwidth=bandwidth)
        elif hasattr(R, "lam"):
            self._shared["penalty"] = replace(R, lam=lam)

    def unrolled(
        self,
        steps: int,
        step: StepRule | LearnedSteps | None = None,
        analysis: str = "dictionary",
        b_enc: str = "first",
    ) -> SAE:
        """The same weights (shared, nothing is copied or retrained) with another number of encoder steps.

        By default a step is 1/L, computed, and never raises the objective (thm-ista-descent).
        What more steps can gain at most is the amortisation gap (prop-amortisation-gap).
        """
        self._whole("unrolled")
        deep = self._twin()
        for learned in ("log_step", "log_lam_factor"):
            deep._parameters.pop(learned, None)
        deep._plan(steps, step, analysis, b_enc)
        return deep

    def _twin(self) -> SAE:
        """An SAE on the same weights, whose further parameters are its own."""
        twin = copy.copy(self)
        for name, value in vars(self).items():  # parameters by name, hooks, metadata
            if isinstance(value, dict) and name != "_shared":
                twin.__dict__[name] = value.copy()
        return twin

    def inner(self) -> SAE:
        """The same weights for rows that are normalised already."""
        twin = self._twin()
        twin.normalize = "none"
        return twin

    def _whole(self, what: str) -> None:
        """Raise `Error` on a shard, for what only the whole SAE can do."""
        if "team" in self._shared:
            msg = f"{what} needs the whole SAE, but this is one shard of it, made to be trained"
            raise Error(msg)

    def thresholded(self) -> SAE:
        """For a trained `BatchKSparse` SAE, the same weights with L0 at the threshold that its training found.

        So single rows can be encoded, whatever batch they come in.  Raises `Error` where no threshold is known.
        """
        R = self._shared["penalty"]
        if self.steps > 1:
            msg = f"steps={self.steps} have no common threshold, since that of L0 goes with mu: unrolled(1) has one"
            raise Error(msg)
        if not isinstance(R, BatchKSparse) or not bool(self.batch_threshold >= 0):
            msg = f"{type(R).__name__} has no threshold: only training with BatchKSparse leaves one"
            raise Error(msg)
        lam = float(self.batch_threshold.double().square() / 2)
        twin = self._twin()
        del twin._parameters["batch_threshold"]
        twin._shared = {"penalty": L0(lam, nonneg=R.nonneg)}
        twin.threshold = nn.Parameter(self.batch_threshold.detach().expand(self.d_sae).clone())
        return twin

    def pre_activations(self, x: Tensor) -> Tensor:
        """u = (x' - b_dec) W_enc + b_enc: (..., d_in) -> (..., d_sae), x' the normalised x."""
        return linear(self._inputs(x) - self.b_dec, self.W_enc.T, self.b_enc)

    def normalized(self, x: Tensor) -> Normalized:
        """The rows of x (..., d_in) as the encoder sees them, and how to undo that."""
        x = self._checked(x)
        if self.normalize != "none":
            return normalize(x, self.normalize)
        one = x.new_ones(())
        return Normalized(x, torch.zeros_like(one), one)

    def _inputs(self, x: Tensor) -> Tensor:
        return self._checked(x) if self.normalize == "none" else self.normalized(x).rows

    def _checked(self, x: Tensor) -> Tensor:
        x = check_floats("x", x)
        if not isinstance(x, Tensor) or x.dtype != self.W_enc.dtype or x.shape[-1] != self.d_in:
            given = f"{type(x).__name__} {tuple(x.shape)} of {x.dtype}"
            msg = f"x is {given}, but this SAE needs a torch tensor (..., {self.d_in}) of {self.W_enc.dtype}"
            raise Error(msg)
        check_finite("x", x)
        return x

    def rows(self, activations: Any) -> Tensor:
        """Activations (n, d_in), from NumPy or torch, as a finite tensor of this SAE's dtype and device, or `Error`."""
        given = activations if isinstance(activations, Tensor) else torch.tensor(np.asarray(activations))
        x = check_floats("activations", given)
        if x.ndim != 2 or x.shape[1] != self.d_in or not len(x):
            msg = f"activations has shape {tuple(x.shape)}, but this SAE needs (n, {self.d_in}) with n >= 1"
            raise Error(msg)
        x = x.to(self.W_dec.device, self.W_dec.dtype)
        check_finite("activations", x)
        return x

    def encode(self, x: Tensor) -> Tensor:
        """Dense codes z_T: (..., d_in) -> (..., d_sae).  Raises `Error` for NaN or infinite x, and shape or dtype."""
        if self._on_supports():
            return self.encode_sparse(x).to_dense()
        return self.refine(x, prox(self.penalty, self.pre_activations(x)))

    def refine(self, x: Tensor, z: Tensor) -> Tensor:
        """Steps 2 ... T from the first code z (..., d_sae) of x (..., d_in), all of them dense."""
        if self.steps == 1:
            return z
        for last in self._points(self._inputs(x), z):  # noqa: B007  (only the last is kept in memory)
            pass
        return last.z.reshape(z.shape)

    def encode_sparse(self, x: Tensor, exact: str | None = None) -> SparseCodes:
        """The same codes as `SparseCodes`: k entries a row for KSparse, else the largest support in the batch.

        KSparse codes are never dense, nor is what their backward pass keeps (thm-sparse-gradient).  Trial steps look at
        2k candidates a row (lem-step-candidates), and constant ones may read Gram rows (prop-gram-step).
        exact="certified" gives the float32 code of one KSparse step whatever the order of any sum, from a product in
        half precision and a proof (thm-certified-topk): for GPUs whose float32 units are slow.  It has no gradient.
        """
        R = self.penalty
        if exact is not None:
            return self._certified(x, exact)
        if self._on_supports():
            return self._encode(x, decode=False)[0]
        return sparsify(self.encode(x), min(R.k, self.d_sae) if runs(R, KSparse) else None)

    def _certified(self, x: Tensor, exact: str) -> SparseCodes:
        self._whole("exact='certified'")
        R = self._shared["penalty"]
        if exact != "certified" or self.steps != 1 or not runs(R, KSparse):
            msg = f"exact={exact!r} with {R!r} and steps={self.steps} must be 'certified', for one step of KSparse"
            raise Error(msg)
        rows = self._inputs(x).reshape(-1, self.d_in) - self.b_dec
        indices, values, _ = certified_top_k(rows, self.W_enc.T, self.b_enc, R.k, R.nonneg)
        shape = (*x.shape[:-1], indices.shape[-1])
        return SparseCodes(indices.reshape(shape), values.reshape(shape), self.d_sae)

    def reconstruct(self, x: Tensor) -> tuple[Tensor, SparseCodes]:
        """decode(encode_sparse(x)) and the codes; for KSparse one forward and one backward pass for both.

        Its gradient is thm-sparse-gradient.
        """
        if self._on_supports():
            codes, xhat = self._encode(x, decode=True)
            return cast(Tensor, xhat), codes
        z = self.encode(x)
        return self.decode(z, like=x), sparsify(z)

    def _on_supports(self) -> bool:
        """Whether `ksparse_encoder` has these steps: k-sparse, by the dictionary, with a rule that needs no refit."""
        by_dictionary = self.analysis == "dictionary" and self.bias_at == "first"
        lean = self.steps == 1 or (by_dictionary and isinstance(self.step, ksparse_encoder.RULES))
        return lean and runs(self._shared["penalty"], KSparse)

    def _encode(self, x: Tensor, decode: bool) -> tuple[SparseCodes, Tensor | None]:
        normal = self.normalized(x)
        rows = normal.rows.reshape(-1, self.d_in)
        L = 1.0
        if self.steps > 1:
            L = self._lipschitz()
            check_rule(cast(StepRule, self.step), None, "last", self.penalty, L)
        team: Team | None = self._shared.get("team")
        weights = (self.W_enc, self.b_enc, self.W_dec, self.b_dec)
        keep = torch.is_grad_enabled() and any(a.requires_grad for a in (rows, *weights))
        chosen, pages = self.plan(len(rows), frozen=not keep), self._shared.setdefault("pages", Pages())
        if team is not None and chosen.product == "gram":  # its rows are on all ranks
            chosen = replace(chosen, product="residual")
        rule, R = cast(StepRule, self.step), cast(KSparse, self.penalty)
        how = ksparse_encoder.Steps(R, self.steps, rule, L, chosen, decode, keep, pages, team)
        with torch.autocast(x.device.type, enabled=False):  # codes must not depend on which products the plan takes
            indices, values, xhat = ksparse_encoder.Encode.apply(rows, *weights, how)
        k = values.shape[-1]
        codes = SparseCodes(indices.reshape(*x.shape[:-1], k), values.reshape(*x.shape[:-1], k), self.d_sae)
        if xhat is None:
            return codes, None
        return codes, xhat.reshape(x.shape) if self.normalize == "none" else normal.undo(xhat.reshape(x.shape))

    def _lipschitz(self) -> float:
        """||W_dec||^2, kept while W_dec stays the same: working it out costs what a step of some d_in rows costs.

        Weights may change in place, unseen, so what is compared are the norm of every atom and its product with one
        vector, whose entries differ so that their order shows: two reads of W_dec, each row summed in one order.
        """
        if (team := self._shared.get("team")) is not None:
            return lipschitz_of_all(self.W_dec, team)
        with torch.no_grad(), torch.autocast(self.W_dec.device.type, enabled=False):
            W = self.W_dec.to(accumulator(self.W_dec.dtype))
            vector = torch.arange(1, self.d_in + 1, device=W.device, dtype=W.dtype).cos()
            mark = torch.stack([W @ vector, torch.linalg.vector_norm(W, dim=1)])
            known, L = self._shared.get("lipschitz", (None, 0.0))
            if known is None or known.device != mark.device or not torch.equal(known, mark):
                L = lipschitz(self.W_dec)
                self._shared["lipschitz"] = mark, L
        return L

    def plan(self, rows: int, frozen: bool = True) -> Plan:
        """How that many rows would be encoded, and in `.reasons` why.  `frozen` says that no gradient is asked for."""
        W, R = self.W_dec, self.penalty
        k = min(R.k, self.d_sae) if isinstance(R, KSparse) else self.d_sae
        wants_gram = self.steps > 1 and frozen  # only a Gram matrix asks how much memory is free
        free = ksparse_encoder.free_bytes(W.device) if wants_gram else 0.0
        return plan(
            rows, self.d_in, self.d_sae, k, self.steps,
            kind=kind_of(W.device.type, W.element_size()), bytes_per_number=W.element_size(), frozen=frozen,
            constant_step=isinstance(self.step, (Lipschitz, FixedStep)), free_bytes=free,
        )  # fmt: skip

    def decode(self, z: Tensor | SparseCodes, like: Tensor | None = None) -> Tensor:
        """z W_dec + b_dec: dense codes (..., d_sae) or `SparseCodes` -> (..., d_in); `Error` for others.

        Where rows are normalised, so is this; with `like`, the x (..., d_in) that was encoded, it is in the units of x.
        """
        width, values = (z.d_sae, z.values) if isinstance(z, SparseCodes) else (z.shape[-1], z)
        if width != self.d_sae or values.dtype != self.W_dec.dtype:
            msg = f"codes have {width} latents of {values.dtype}, but this SAE has {self.d_sae} of {self.W_dec.dtype}"
            raise Error(msg)
        part = sparse_decode(z, self.W_dec) if isinstance(z, SparseCodes) else z @ self.W_dec
        team: Team | None = self._shared.get("team")
        xhat = (part if team is None else team.total(part)) + self.b_dec
        return xhat if like is None or self.normalize == "none" else self.normalized(like).undo(xhat)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of x (..., d_in), in its units: decode(encode(x), like=x)."""
        return self.reconstruct(x)[0] if self._on_supports() else self.decode(self.encode(x), like=x)

    def walk(self, x: Tensor) -> Iterator[Point]:
        """Yield the points z_1, z_2, ... z_T of x, rows flattened: codes, residuals, and products spent so far."""
        return self._points(self._inputs(x), prox(self.penalty, self.pre_activations(x)))

    def _points(self, x: Tensor, z: Tensor) -> Iterator[Point]:
        c = (x - self.b_dec).reshape(-1, self.d_in)
        first, R = z.reshape(-1, self.d_sae), self.penalty
        tilt = self.b_enc if self.bias_at == "every" else None
        one = Point(first, c, self.W_dec, c.new_ones(len(c), dtype=torch.float64), tilt=tilt)
        if self.analysis == "encoder":
            walk = walks.encoder(one, R, self.W_enc, tilt)
        elif isinstance(self.step, LearnedSteps):
            factors = getattr(self, "log_lam_factor", None)
            walk = walks.learned(one, R, self.log_step, factors, tilt)
        else:
            L = self._lipschitz()
            check_rule(self.step, None, "last", R, L)
            walk = iterate(c, self.W_dec, R, self.step, None, first, L, spent=1.0, tilt=tilt)
        for _, point in zip(range(self.steps), walk, strict=False):
            yield point

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Change the unit of x by `factor`, in place: codes scale with it, atoms keep their norms.

        Every prox here is homogeneous, so only offsets and thresholds are multiplied.
        """
        for name in ("b_enc", "b_dec", "threshold", "batch_threshold"):
            if hasattr(self, name):
                getattr(self, name).mul_(factor)
        self.scale_lam(factor)
        R = self._shared["penalty"]
        if isinstance(R, L0):
            self._shared["penalty"] = replace(R, bandwidth=R.bandwidth * factor)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.W_dec.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.W_dec.device

    @property
    def cfg(self) -> SimpleNamespace:
        """What tools made for SAELens read of an SAE: d_in, d_sae, dtype, architecture, hook_name and the like."""
        return files.saelens_cfg(self)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the folder `sae.json` + `sae.safetensors`, beside and then renamed; raise `Error` if that fails."""
        self._whole("save")
        files.save(self, folder)

    def export(self, folder: str | os.PathLike[str], double: bool = False) -> None:
        """Write the one-step SAE in SAELens' layout, which its tools read.

        `double` writes atoms [D, -D] and non-negative codes, for tools that cannot read signed ones: twice the latents,
        the same reconstruction (prop-splitting-codes).  Raises `Error` for more steps than one, and for what that
        layout cannot say.
        """
        files.export(self, folder, double)

    def extra_repr(self) -> str:
        """What print(sae) shows."""
        R: Any = self._shared["penalty"]
        if isinstance(R, L0):
            R = f"L0(threshold about {float(self.threshold.detach().mean()):.3g}, nonneg={R.nonneg})"
        how = f"steps={self.steps}, step={self.step}, {self.analysis}"
        return f"{self.d_in}, {self.d_sae}, {R}, {how}, b_enc={self.bias_at}, normalize={self.normalize}"
