"""dictionary_learning: a folder with a state dict, `ae.pt`, and `config.json`, where trainer.dict_class is the class.

    L(x) = x encoder.weight^T + encoder.bias, encoder.weight (P, d), decoder.weight (d, P)
    AutoEncoder             relu(L(x - bias));  xhat = z decoder.weight^T + bias;  its loader then gives atoms norm 1
    AutoEncoderNew          relu(L(x));  xhat = z decoder.weight^T + decoder.bias
    GatedAutoEncoder        w = (x - decoder_bias) encoder.weight^T;  1[w + gate_bias > 0] relu(w exp(r_mag) + mag_bias)
    JumpReluAutoEncoder     u 1[u > threshold] relu'd, u = x W_enc + b_enc: b_dec is not subtracted
    AutoEncoderTopK         the k largest of relu(L(x - b_dec)), per row; its `threshold` is not used
    BatchTopKSAE            u 1[u > threshold], u = relu(L(x - b_dec)), one threshold () for all; -1 says not yet set
    MatryoshkaBatchTopKSAE  the same with W_enc (d, P), W_dec (P, d)

Weights are as the current library reads them; some versions before it multiplied gated and JumpReLU codes by the norms
of their atoms, which changes the unit of a code and not the reconstruction.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from proxsae.formats.parts import Config, Found, assemble, gated, jumprelu, row_norms, shaped
from proxsae.penalties import L1, KSparse, Penalty

LINEAR = {"encoder.weight": "Pd", "encoder.bias": "P", "decoder.weight": "dP"}
PLAIN = {"W_enc": "dP", "b_enc": "P", "W_dec": "Pd", "b_dec": "d"}
COUNTS = {"k": "", "threshold": ""}
GATES = {"decoder_bias": "d", "r_mag": "P", "gate_bias": "P", "mag_bias": "P"}
SHAPES = {
    "AutoEncoder": {**LINEAR, "bias": "d"},
    "AutoEncoderNew": {**LINEAR, "decoder.bias": "d"},
    "GatedAutoEncoder": {"encoder.weight": "Pd", "decoder.weight": "dP", **GATES},
    "JumpReluAutoEncoder": {**PLAIN, "threshold": "P"},
    "AutoEncoderTopK": {**LINEAR, "b_dec": "d"},
    "BatchTopKSAE": {**LINEAR, "b_dec": "d", "threshold": ""},
    "MatryoshkaBatchTopKSAE": {**PLAIN, "threshold": ""},
}
NO_SUBTRACTION = ("AutoEncoderNew", "JumpReluAutoEncoder")
METADATA = ("dict_class", "trainer_class", "lm_name", "layer", "submodule_name", "k", "steps", "lr")


def read(config: Config, tensors: dict[str, Any]) -> Found:
    """The SAE of a trainer's configuration and its state dict."""
    trainer = config.section("trainer")
    kind = trainer.text("dict_class")
    if kind not in SHAPES:
        trainer.refuse("dict_class", f"only {', '.join(SHAPES)} are known")
    batch = kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")
    sizes = tensors.get("group_sizes") if kind.startswith("Matryoshka") else None
    named = {name: a for name, a in tensors.items() if sizes is None or name != "group_sizes"}
    latents = shaped(named, SHAPES[kind], COUNTS if batch or kind == "AutoEncoderTopK" else None)
    linear = "encoder.weight" in named
    W_enc = named["encoder.weight"].T if linear else named["W_enc"]
    W_dec = named["decoder.weight"].T if linear else named["W_dec"]
    trainer.same("dict_size", latents, "the number of latents")
    trainer.same("activation_dim", W_enc.shape[0], "the width")
    notes: list[str] = []
    penalty: Penalty
    if kind == "GatedAutoEncoder":
        r, gate, mag = (named[name] for name in ("r_mag", "gate_bias", "mag_bias"))
        folded, penalty = gated(W_enc, W_dec, named["decoder_bias"], r, gate, mag)
        notes.append("The gated encoder is a JumpReLU with the threshold max(mag_bias - exp(r_mag) gate_bias, 0).")
    else:
        subtracts = kind not in NO_SUBTRACTION
        b_dec = next(named[name] for name in ("b_dec", "bias", "decoder.bias") if name in named)
        norms = row_norms(W_dec) if kind == "AutoEncoder" else None
        b_enc = named["encoder.bias" if linear else "b_enc"]
        folded = assemble(W_enc, W_dec, b_enc, b_dec, subtracts=subtracts, norms=norms)
        penalty = _penalty(kind, trainer, named, latents, notes)
        if not subtracts:
            notes.append(f"{kind} does not subtract b_dec from its input: b_enc has b_dec W_enc added.")
        if norms is not None:
            notes.append("The norms of the atoms are folded into the encoder, as the library's loader does.")
    return Found(f"dictionary_learning, {kind}", folded, penalty, "none", trainer.metadata(METADATA), tuple(notes))


def _penalty(kind: str, trainer: Config, tensors: dict[str, Any], latents: int, notes: list[str]) -> Penalty:
    if kind == "AutoEncoderTopK":
        k = Config(tensors, "ae.pt").count("k", latents) if "k" in tensors else trainer.count("k", latents)
        trainer.same("k", k, "k")
        if "threshold" in tensors:
            notes.append("The file's threshold is not used: dictionary_learning's TopK selects per row.")
        return KSparse(k, nonneg=True)
    if "threshold" not in tensors:
        return L1(0.0, nonneg=True)
    threshold: Tensor = tensors["threshold"]
    if kind == "JumpReluAutoEncoder":
        return jumprelu(threshold, latents)
    if float(threshold) < 0:
        notes.append(f"The threshold is {float(threshold):g}, not yet set, with which {kind} is a plain ReLU SAE.")
        return L1(0.0, nonneg=True)
    notes.append(f"{kind} encodes by its one threshold, {float(threshold):g}, and not by k.")
    return jumprelu(threshold, latents)
