"""What the weights of an SAE imply, in words: which prox its encoder is, which steps are safe, which latents are idle.

Everything is worked out in float64, in blocks of latents: nothing of size P x P is made.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from proxsae.certificates import lipschitz
from proxsae.disk import sentence
from proxsae.penalties import L0, L1, BatchKSparse, KSparse, Penalty
from proxsae.penalties.published import published_as
from proxsae.sae import SAE

SUBTRACTED = "b_dec subtracted (equivalently, after folding, where the file does not)"
INPUTS = {
    "none": f"as given, {SUBTRACTED}",
    "layer_norm": f"each row is centred and divided by its deviation, then {SUBTRACTED}",
    "constant_norm": f"each row is scaled to one norm, then {SUBTRACTED}",
}
COMPARED = 8192  # latents up to which all pairs of atoms are compared
TWIN = 0.99  # |cosine| from which two atoms are nearly one
BLOCK = 1024  # latents worked on at a time


@torch.no_grad()
def inspect(sae: SAE) -> list[tuple[str, str]]:
    """What `sae` is and what its weights imply, as (name, sentence) pairs in the order of reading.

    Nothing is encoded: no data is needed.
    """
    sizes = f"d_in {sae.d_in}, d_sae {sae.d_sae} ({sae.d_sae / sae.d_in:.3g} latents per input dimension)"
    facts = [
        ("encoder", name_of(sae.penalty)),
        ("penalty", _penalty(sae)),
        ("sizes", f"{sizes}, {str(sae.W_dec.dtype).removeprefix('torch.')}"),
        ("steps", steps_of(sae)),
        ("input", INPUTS[sae.normalize]),
        ("biases", f"||b_dec|| = {_length(sae.b_dec):.4g}; b_enc {spread(sae.b_enc)}"),
        *_atoms(sae),
    ]
    known = {name: told for name, told in sae.metadata.items() if name not in ("format", "notes")}
    if isinstance(record := known.get("collected"), dict):
        del known["collected"]
        facts.append(("trained on", of_record(record)))
    if known:
        facts.append(("metadata", sentence("; ".join(f"{name}: {told}" for name, told in known.items()), 2000)))
    return facts + [("note", note) for note in notes_of(sae)]


def of_record(record: dict[str, Any]) -> str:
    """Where rows come from, by the record that `models.collect` left; a file may hold anything there."""
    model = record.get("model")
    model = f"{model.get('class')} {model.get('name')}" if isinstance(model, dict) else "a model"
    return sentence(f"the {record.get('at')} of {record.get('module')} of {model}, skip={record.get('skip')}")


def notes_of(sae: SAE) -> list[str]:
    """What its file says was folded or is implied, fit for a terminal."""
    return [sentence(note, 1000) for note in sae.metadata.get("notes", ())]


def name_of(R: Penalty) -> str:
    """The published name of the SAE whose prox is that of R, or the name of the family."""
    known = published_as(R)
    sign = "codes >= 0" if R.nonneg else "signed codes"
    return f"{known.title if known else type(R).__name__} ({sign})"


def summary(sae: SAE) -> str:
    """What `sae` is, on one line."""
    dtype = str(sae.W_dec.dtype).removeprefix("torch.")
    return f"{name_of(sae.penalty)}, {sae.d_in} to {sae.d_sae}, {dtype}"


@torch.no_grad()
def compare(sae: SAE, other: SAE, seed: int = 0, rows: int = 64) -> tuple[float, int, int]:
    """The largest difference of codes, as a share of the largest code in its row; how many rows; how many non-zeros.

    Rows are sums of four atoms at 16 scales, since thresholds have the unit of the data.  An `other` of twice the width
    holds the codes of z and -z, clipped at 0, side by side.
    """
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(sae.d_sae, (rows, 4), generator=generator)
    signs = 1 - 2 * torch.randint(2, (rows, 4, 1), generator=generator).double()
    scale = 2.0 ** (torch.arange(rows) % 16 - 4).double()
    x = sae.b_dec.double().cpu() + scale[:, None] * (signs * sae.W_dec.cpu()[which].double()).sum(dim=1)
    one, two = (s.encode(x.to(s.W_dec.device, s.W_dec.dtype)).double().cpu() for s in (sae, other))
    if other.d_sae == 2 * sae.d_sae:
        two = two[:, : sae.d_sae] - two[:, sae.d_sae :]
    size = torch.maximum(one.abs().amax(dim=1), two.abs().amax(dim=1)).clamp(min=1e-300)
    return float(((one - two).abs().amax(dim=1) / size).max()), rows, int((one != 0).sum())


def spread(a: Tensor) -> str:
    """Smallest, median and largest entry, or the one value that all entries have."""
    a = a.detach().double().flatten()
    low, high = float(a.min()), float(a.max())
    if low == high:
        return f"{low:.4g}, all alike" if len(a) > 1 else f"{low:.4g}"
    return f"min {low:.4g}, median {float(a.median()):.4g}, max {high:.4g}"


def keeps_everything(sae: SAE) -> bool:
    """Whether k is so large that the codes are dense."""
    return isinstance(sae.penalty, (KSparse, BatchKSparse)) and sae.penalty.k >= sae.d_sae


def lam_is_zero(R: Penalty) -> bool:
    """Whether lam is 0, as for the ReLU SAEs of other libraries: what keeps their codes sparse is b_enc."""
    return isinstance(R, L1) and not bool((torch.as_tensor(R.lam) > 0).any())


def _penalty(sae: SAE) -> str:
    R: Any = sae.penalty
    if isinstance(R, (KSparse, BatchKSparse)):
        average = " on average over the batch, so codes depend on it" if isinstance(R, BatchKSparse) else ""
        told = f"{type(R).__name__}: at most k = {R.k} of {sae.d_sae} latents a row{average} ({R.statement})"
        told += "; k is not less than d_sae, so it limits nothing" if keeps_everything(sae) else ""
        if isinstance(R, BatchKSparse) and bool(sae.batch_threshold >= 0):
            told += f"; training found the threshold {float(sae.batch_threshold):.4g} for single rows"
        return told
    if isinstance(R, L0):
        minus = f" for z > 0, {spread(sae.threshold_minus)} for z < 0" if hasattr(sae, "threshold_minus") else ""
        return f"L0: threshold {spread(sae.threshold)}{minus}; lam = threshold^2 / 2 ({R.statement})"
    lam = torch.as_tensor(getattr(R, "lam", math.nan))
    told = "; codes are sparse by b_enc, so further steps need it in every one" if lam_is_zero(R) else ""
    return f"{type(R).__name__}: lam {spread(lam)} ({R.statement}){told}"


def steps_of(sae: SAE) -> str:
    """How many encoder steps `sae` takes, and with what."""
    if sae.steps == 1:
        return "1, the published encoder (prop-one-step-is-an-sae)"
    how = "the learned encoder" if sae.analysis == "encoder" else f"the dictionary and {sae.step}"
    every = ", b_enc in every one" if sae.encoding.b_enc == "every" else ""
    return f"{sae.steps}: the learned first step, then {sae.steps - 1} with {how}{every}"


def _atoms(sae: SAE) -> list[tuple[str, str]]:
    """Facts of the dictionary, and of the encoder beside it."""
    D, E = sae.W_dec.detach(), sae.W_enc.detach().T  # both one latent a row
    norms, columns = _norms(D), _norms(E)
    facts = [("encoder weights", _tied(D, E, norms, columns)), ("atom norms", spread(norms))]
    if bool((norms > 0).any()):
        facts += [("||D||^2", _safe_steps(sae.penalty, lipschitz(D))), ("coherence", _coherence(D, norms))]
    idle = {
        "zero atoms": int((norms == 0).sum()),
        "zero encoder columns": int((columns == 0).sum()),
        "atoms that repeat another bit for bit": _repeated(D, norms),
    }
    facts.append(("idle latents", ", ".join(f"{count or 'no'} {name}" for name, count in idle.items())))
    return facts


def _tied(D: Tensor, E: Tensor, norms: Tensor, columns: Tensor) -> str:
    if torch.equal(D, E):
        return "tied: W_enc = W_dec^T exactly"
    live = (norms > 0) & (columns > 0)
    if not bool(live.any()):
        return "untied, and no latent has both a column and an atom"
    dots = torch.cat([(D[s].double() * E[s].double()).sum(dim=1) for s in _blocks(len(D))])
    cosines = (dots / (norms * columns))[live]
    ratios = (columns / norms)[live]
    mean = float(cosines.mean())
    if float(cosines.min()) > 1 - 1e-6:
        return f"tied but for their lengths: ||column|| / ||atom|| {spread(ratios)}"
    return f"untied: mean cosine of a column of W_enc with its atom {mean:.4f}; ||column|| / ||atom|| {spread(ratios)}"


def _safe_steps(R: Penalty, L: float) -> str:
    told = f"L = {L:.4g}: no step up to 1/L = {1 / L:.4g} raises the objective"
    told += f", nor up to 2/L = {2 / L:.4g}, as R is convex" if R.convex else ""
    return f"{told} (thm-ista-descent)"


def _coherence(D: Tensor, norms: Tensor) -> str:
    """The largest |cosine| of two atoms, and how many atoms have one nearly like them."""
    if len(D) > COMPARED:
        return f"not worked out for more than {COMPARED} latents: it compares all pairs"
    live = norms > 0
    unit = D[live].double() / norms[live][:, None]
    nearest = unit.new_zeros(len(unit))
    for s in _blocks(len(unit)):
        cosines = (unit[s] @ unit.T).abs()
        cosines[:, s].fill_diagonal_(0)
        nearest[s] = cosines.amax(dim=1)
    twins = int((nearest > TWIN).sum())
    largest = min(1.0, float(nearest.max()))
    told = f"{largest:.4f}, the largest |cosine| of two atoms (def-coherence); of the nearest atom, median "
    return f"{told}{float(nearest.median()):.4f}; {twins} atoms have one above {TWIN}"


def _repeated(D: Tensor, norms: Tensor) -> int:
    rows = D[norms > 0].cpu().contiguous().view(torch.uint8).numpy()  # as bytes: NumPy has no bfloat16
    return len(rows) - len({row.tobytes() for row in rows})


def _norms(W: Tensor) -> Tensor:
    return torch.cat([torch.linalg.vector_norm(W[s].double(), dim=1) for s in _blocks(len(W))])


def _length(a: Tensor) -> float:
    return float(torch.linalg.vector_norm(a.detach().double()))


def _blocks(count: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
