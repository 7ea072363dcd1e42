"""The sparse autoencoder: a learned first step of proximal gradient, and as many further steps as one asks for.

    z_1     = prox_R((x - b_dec) W_enc + b_enc)                                      (prop-one-step-is-an-sae)
    z_{t+1} = prox_{mu R}(z_t - mu (z_t W_dec + b_dec - x) W_dec^T)                              (def-ista)
    xhat    = z_T W_dec + b_dec

With W_enc = W_dec^T, b_enc = 0 and mu = 1 the first line is the second, from z = 0.  Six penalties give six SAEs.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from proxsae import checkpoints, encoder
from proxsae.certificates import lipschitz
from proxsae.certified import certified_top_k
from proxsae.conventions import Error, check_count, check_finite, check_floats
from proxsae.functional import prox
from proxsae.iteration import RULES, FixedStep, Lipschitz, StepRule, check_rule
from proxsae.kernels.dispatch import Plan, kind_of, plan
from proxsae.penalties import FAMILIES, L0, L1, KSparse, Penalty
from proxsae.sparse import Pages, SparseCodes, accumulator, sparse_decode, sparsify
from proxsae.unroll import Point, iterate


class SAE(nn.Module):
    """A sparse autoencoder with `steps` encoder steps; every published one is a choice of `penalty` with steps=1.

    W_enc (d_in, d_sae), W_dec (d_sae, d_in) with atoms as rows, b_enc (d_sae,), b_dec (d_in,); for L0 also the trained
    `threshold` (d_sae,), where lam = threshold^2 / 2 (its gradient is the straight-through one of `L0.bandwidth`).
    Steps after the first use `step` and the dictionary itself (analysis="dictionary"), so that theory applies; or the
    learned encoder (analysis="encoder", unit steps, W_enc in place of W_dec^T), where a row whose objective would rise
    keeps its code.  b_enc belongs to the first step only.

    Statement: prop-one-step-is-an-sae (Zhu, Khalili and Zhu 2025, Lemma 1).  Raises `Error` for sizes < 1, an unknown
    analysis, and a step rule beside analysis="encoder".
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        penalty: Penalty,
        steps: int = 1,
        step: StepRule | None = None,
        analysis: str = "dictionary",
    ) -> None:
        super().__init__()
        self.d_in, self.d_sae = check_count("d_in", d_in, 1), check_count("d_sae", d_sae, 1)
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
            self.threshold = nn.Parameter(theta.expand(self.d_sae).to(atoms.dtype).clone())
        self._plan(steps, step, analysis)

    def _plan(self, steps: int, step: StepRule | None, analysis: str) -> None:
        if analysis not in ("dictionary", "encoder"):
            msg = f"analysis={analysis!r} must be 'dictionary' or 'encoder'"
            raise Error(msg)
        if analysis == "encoder" and step is not None:
            msg = f"step={step!r} cannot go with analysis='encoder': a learned encoder takes unit steps"
            raise Error(msg)
        self.steps, self.analysis = check_count("steps", steps, 1), analysis
        self.step = Lipschitz() if step is None else step
        L = lipschitz(self.W_dec) if isinstance(self.step, FixedStep) else 1.0  # only FixedStep is judged by it
        R = self._shared["penalty"]
        if self.steps > 1 and not R.rowwise:
            msg = f"steps={steps} needs a penalty that takes rows one by one, not {R!r}: use KSparse(k)"
            raise Error(msg)
        check_rule(self.step, None, "last", R, L)

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

    def unrolled(self, steps: int, step: StepRule | None = None, analysis: str = "dictionary") -> SAE:
        """The same weights (shared, nothing is copied or retrained) with another number of encoder steps.

        What more steps can gain at most is the amortisation gap (prop-amortisation-gap).
        """
        deep = copy.copy(self)
        deep._plan(steps, step, analysis)
        return deep

    def pre_activations(self, x: Tensor) -> Tensor:
        """u = (x - b_dec) W_enc + b_enc: (..., d_in) -> (..., d_sae)."""
        return linear(self._checked(x) - self.b_dec, self.W_enc.T, self.b_enc)

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
        for last in self._points(x, z):  # noqa: B007  (only the last is kept in memory)
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
        return sparsify(self.encode(x), min(R.k, self.d_sae) if isinstance(R, KSparse) else None)

    def _certified(self, x: Tensor, exact: str) -> SparseCodes:
        R = self._shared["penalty"]
        if exact != "certified" or self.steps != 1 or not isinstance(R, KSparse):
            msg = f"exact={exact!r} with {R!r} and steps={self.steps} must be 'certified', for one step of KSparse"
            raise Error(msg)
        rows = self._checked(x).reshape(-1, self.d_in) - self.b_dec
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
        return self.decode(z), sparsify(z)

    def _on_supports(self) -> bool:
        """Whether encoder.py has these steps: k-sparse ones, by the dictionary, with a rule that needs no refit."""
        lean = self.steps == 1 or (self.analysis == "dictionary" and isinstance(self.step, encoder.RULES))
        return lean and isinstance(self._shared["penalty"], KSparse)

    def _encode(self, x: Tensor, decode: bool) -> tuple[SparseCodes, Tensor | None]:
        rows = self._checked(x).reshape(-1, self.d_in)
        L = 1.0
        if self.steps > 1:
            L = self._lipschitz()
            check_rule(self.step, None, "last", self.penalty, L)
        weights = (self.W_enc, self.b_enc, self.W_dec, self.b_dec)
        keep = torch.is_grad_enabled() and any(a.requires_grad for a in (rows, *weights))
        chosen, pages = self.plan(len(rows), frozen=not keep), self._shared.setdefault("pages", Pages())
        how = encoder.Steps(cast(KSparse, self.penalty), self.steps, self.step, L, chosen, decode, keep, pages)
        with torch.autocast(x.device.type, enabled=False):  # codes must not depend on which products the plan takes
            indices, values, xhat = encoder.Encode.apply(rows, *weights, how)
        k = values.shape[-1]
        codes = SparseCodes(indices.reshape(*x.shape[:-1], k), values.reshape(*x.shape[:-1], k), self.d_sae)
        return codes, None if xhat is None else xhat.reshape(x.shape)

    def _lipschitz(self) -> float:
        """||W_dec||^2, kept while W_dec stays the same: working it out costs what a step of some d_in rows costs.

        Weights may change in place, unseen, so what is compared are the norm of every atom and its product with one
        vector, whose entries differ so that their order shows: two reads of W_dec, each row summed in one order.
        """
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
        free = encoder.free_bytes(W.device) if self.steps > 1 and frozen else 0.0  # only a Gram matrix asks for it
        return plan(
            rows, self.d_in, self.d_sae, k, self.steps,
            kind=kind_of(W.device.type, W.element_size()), bytes_per_number=W.element_size(), frozen=frozen,
            constant_step=isinstance(self.step, (Lipschitz, FixedStep)), free_bytes=free,
        )  # fmt: skip

    def decode(self, z: Tensor | SparseCodes) -> Tensor:
        """z W_dec + b_dec: dense codes (..., d_sae) or `SparseCodes` -> (..., d_in); `Error` for others."""
        width, values = (z.d_sae, z.values) if isinstance(z, SparseCodes) else (z.shape[-1], z)
        if width != self.d_sae or values.dtype != self.W_dec.dtype:
            msg = f"codes have {width} latents of {values.dtype}, but this SAE has {self.d_sae} of {self.W_dec.dtype}"
            raise Error(msg)
        return (sparse_decode(z, self.W_dec) if isinstance(z, SparseCodes) else z @ self.W_dec) + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction decode(encode(x))."""
        return self.reconstruct(x)[0] if self._on_supports() else self.decode(self.encode(x))

    def walk(self, x: Tensor) -> Iterator[Point]:
        """Yield the points z_1, z_2, ... z_T of x, rows flattened: codes, residuals, and products spent so far."""
        return self._points(x, prox(self.penalty, self.pre_activations(x)))

    def _points(self, x: Tensor, z: Tensor) -> Iterator[Point]:
        c = (x - self.b_dec).reshape(-1, self.d_in)
        first, R = z.reshape(-1, self.d_sae), self.penalty
        if self.analysis == "encoder":
            walk = self._encoder_walk(Point(first, c, self.W_dec, c.new_ones(len(c), dtype=torch.float64)), R)
        else:
            L = self._lipschitz()
            check_rule(self.step, None, "last", R, L)
            walk = iterate(c, self.W_dec, R, self.step, None, first, L, spent=1.0)
        for _, point in zip(range(self.steps), walk, strict=False):
            yield point

    def _encoder_walk(self, point: Point, R: Penalty) -> Iterator[Point]:
        spent = point.spent + 1  # the residual of z_1
        while True:
            yield point
            spent = spent + 2
            trial = Point(prox(R, point.z - point.residual() @ self.W_enc), point.c, point.D, spent)
            falls = (trial.objective(R) <= point.objective(R))[:, None]
            residual = torch.where(falls, trial.residual(), point.residual())
            point = Point(torch.where(falls, trial.z, point.z), point.c, point.D, spent, residual)

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Change the unit of x by `factor`, in place: codes scale with it, atoms keep their norms.

        Every prox here is homogeneous, so only offsets and thresholds are multiplied.
        """
        for name, parameter in self.named_parameters():
            if name not in ("W_enc", "W_dec"):
                parameter.mul_(factor)
        self.scale_lam(factor)
        R = self._shared["penalty"]
        if isinstance(R, L0):
            self._shared["penalty"] = replace(R, bandwidth=R.bandwidth * factor)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the folder `sae.json` + `sae.safetensors`, beside and then renamed; raise `Error` if that fails."""
        R: Any = self._shared["penalty"]
        parameters = {f.name: np.asarray(getattr(R, f.name)).tolist() for f in fields(R)}
        if isinstance(R, L0):
            del parameters["lam"]  # it is in the trained threshold
        config = {
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "penalty": {"family": type(R).__name__, **parameters},
            "steps": self.steps,
            "step": {"rule": type(self.step).__name__, **asdict(self.step)},
            "analysis": self.analysis,
        }
        checkpoints.write(folder, config, self.state_dict())

    def extra_repr(self) -> str:
        """What print(sae) shows."""
        R: Any = self._shared["penalty"]
        if isinstance(R, L0):
            R = f"L0(threshold about {float(self.threshold.detach().mean()):.3g}, nonneg={R.nonneg})"
        return f"{self.d_in}, {self.d_sae}, {R}, steps={self.steps}, step={self.step}, {self.analysis}"


def load(folder: str | os.PathLike[str]) -> SAE:
    """The SAE that `SAE.save` wrote to `folder`.  Raises `Error` for a missing, torn or foreign file."""
    config, tensors = checkpoints.read(folder)
    try:
        family, rule = dict(config["penalty"]), dict(config["step"])
        kind: Any = FAMILIES[family.pop("family")]
        penalty = kind(**({"lam": 0.0} if kind is L0 else {}), **family)
        step = None if config["analysis"] == "encoder" else RULES[rule.pop("rule")](**rule)
        if tuple(tensors["W_dec"].shape) != (config["d_sae"], config["d_in"]):  # before memory is asked for
            msg = f"W_dec has shape {tuple(tensors['W_dec'].shape)}, not ({config['d_sae']}, {config['d_in']})"
            raise Error(msg)
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced at once
            sae = SAE(config["d_in"], config["d_sae"], penalty)
        sae.to(tensors["W_dec"].dtype).load_state_dict(tensors)
        sae._plan(config["steps"], step, config["analysis"])
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as problem:
        msg = f"{folder} does not hold a whole SAE: {' '.join(str(problem).split())}"
        raise Error(msg) from None
    return sae


def relu_sae(d_in: int, d_sae: int, lam: float) -> SAE:
    """The ReLU SAE: `SAE` with L1(lam, nonneg=True), whose code is max(u - lam, 0)."""
    return SAE(d_in, d_sae, L1(lam, nonneg=True))


def jumprelu_sae(d_in: int, d_sae: int, threshold: float, bandwidth: float = 0.1) -> SAE:
    """The JumpReLU SAE: `SAE` with L0(threshold^2 / 2, nonneg=True), whose code is u where u > threshold, else 0."""
    if threshold < 0:
        msg = f"threshold={threshold} must be >= 0"
        raise Error(msg)
    return SAE(d_in, d_sae, L0(threshold**2 / 2, nonneg=True, bandwidth=bandwidth))


def topk_sae(d_in: int, d_sae: int, k: int) -> SAE:
    """The TopK SAE: `SAE` with KSparse(k, nonneg=True), whose code is max(u, 0) on its k largest entries."""
    return SAE(d_in, d_sae, KSparse(k, nonneg=True))


def abstopk_sae(d_in: int, d_sae: int, k: int) -> SAE:
    """The AbsTopK SAE: `SAE` with KSparse(k), whose code is u on its k largest magnitudes, with their signs.

    Beside TopK its codes are closer to u (prop-abstopk-closer), and it is a TopK SAE of twice the width with tied
    weights (prop-splitting-codes).
    """
    return SAE(d_in, d_sae, KSparse(k))
