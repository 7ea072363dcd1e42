"""SAELens: a folder with `cfg.json` and `sae_weights.safetensors`, of version 6 or of the flat layout before it.

    x' = normalised x (normalize_activations),  c = x' - a b_dec,  a = apply_b_dec_to_input (true by default)
    standard                       relu(c W_enc + b_enc)
    topk, abstopk                  the k largest of u n, relu'd, or the k largest |u n|;  n = ||W_dec_i|| if
                                   rescale_acts_by_decoder_norm, else 1;  xhat' = (z / n) W_dec + b_dec
    jumprelu                       u 1[u > max(threshold, 0)], u = relu(c W_enc + b_enc); old saves hold log_threshold
    gated                          1[c W_enc + b_gate > 0] relu(c W_enc exp(r_mag) + b_mag)
    batchtopk, matryoshka_...      training saves: topk_threshold (), in units of u n, is a jumprelu threshold for all
    xhat' = z W_dec + b_dec, un-normalised

Version 6 keeps what describes the model under "metadata"; before, all fields stand in one flat object, hook_name may be
called hook_point, and a TopK is "standard" with activation_fn_str "topk" and its k in activation_fn_kwargs.
`expected_average_only_in` means that training saw s x: SAELens folds s at its last save and then says "none"; a
checkpoint from before that has s in `activation_scaler.json` beside it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxsae.conventions import Error
from proxsae.formats.files import read_json
from proxsae.formats.parts import NOT_SUBTRACTED, Config, Found, assemble, gated, jumprelu, row_norms, shaped
from proxsae.penalties import L1, KSparse, Penalty

COMMON = {"W_enc": "dP", "W_dec": "Pd", "b_enc": "P", "b_dec": "d"}
GATED = {"W_enc": "dP", "W_dec": "Pd", "b_dec": "d", "b_gate": "P", "b_mag": "P", "r_mag": "P"}
SHAPES = {
    "standard": COMMON,
    "topk": COMMON,
    "abstopk": COMMON,
    "jumprelu": {**COMMON, "threshold": "P"},
    "gated": GATED,
    "batchtopk": {**COMMON, "topk_threshold": ""},
    "matryoshka_batchtopk": {**COMMON, "topk_threshold": ""},
}
RESCALED = ("topk", "abstopk", "batchtopk", "matryoshka_batchtopk")
REFUSED = {
    "matching_pursuit": "it encodes in many greedy steps, which is not one step of a penalty",
    "temporal": "its code depends on other rows of the sequence",
    **dict.fromkeys(
        ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder", "clt"),
        "it maps one activation to another, and an SAE reconstructs its input",
    ),
}
NORMALIZATIONS = {
    "none": "none",
    "expected_average_only_in": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
}
METADATA = (
    "model_name", "hook_name", "hook_layer", "hook_head_index", "dataset_path", "context_size", "prepend_bos",
    "neuronpedia_id", "model_class_name", "sae_lens_version", "sae_lens_training_version", "training_architecture",
    "hf_hook_name", "l0",
)  # fmt: skip
OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}


def read(config: Config, tensors: dict[str, Any], folder: Path) -> Found:
    """The SAE of a SAELens configuration and its tensors."""
    metadata, new = config.section("metadata"), True
    source = config if config.get("sae_lens_version") else metadata
    version = re.match(r"\d{1,3}\.", source.text("sae_lens_version"))
    if version is None or int(version[0][:-1]) < 6:
        config, new = _modern(config), False
        metadata = config
    architecture = config.text("architecture", "" if new else "standard")
    if architecture not in SHAPES:
        why = REFUSED.get(architecture, f"only {', '.join(SHAPES)} are known")
        config.refuse("architecture", why)
    latents = _check(config, architecture, tensors)
    notes: list[str] = []
    scale = _scale(config, folder, notes)
    subtracts = config.flag("apply_b_dec_to_input", True)
    if not subtracts:
        notes.append(NOT_SUBTRACTED)
    if config.text("reshape_activations", "none") != "none":
        notes.append("Rows are the outputs of all attention heads (hook_z), one after another.")
    penalty: Penalty
    W_enc, W_dec, b_dec = tensors["W_enc"], tensors["W_dec"], tensors["b_dec"]
    if architecture == "gated":
        gates = (tensors["r_mag"], tensors["b_gate"], tensors["b_mag"])
        folded, penalty = gated(W_enc, W_dec, b_dec, *gates, subtracts, scale)
        notes.append("The gated encoder is a JumpReLU with the threshold max(b_mag - exp(r_mag) b_gate, 0).")
    else:
        norms = _norms(config, architecture, W_dec, scale, notes)
        folded = assemble(W_enc, W_dec, tensors["b_enc"], b_dec, subtracts=subtracts, norms=norms, scale=scale)
        penalty = _penalty(config, architecture, tensors, latents, notes)
    name = f"SAELens {'6' if new else 'before 6'}, {architecture}"
    normalization = NORMALIZATIONS[config.text("normalize_activations", "none")]
    return Found(name, folded, penalty, normalization, metadata.metadata(METADATA), tuple(notes))


def _modern(config: Config) -> Config:
    """The fields of version 6 from the flat ones before it."""
    entries = {OLD_NAMES.get(name, name): value for name, value in config.entries.items()}
    old = Config(entries, config.source)
    activation = old.text("activation_fn", "relu")
    if activation == "topk":
        k = old.section("activation_fn_kwargs").get("k", old.get("k"))
        entries |= {"architecture": "topk", "k": k}
    elif activation != "relu":
        old.refuse("activation_fn", "only relu and topk are known")
    if isinstance(entries.get("normalize_activations"), bool):
        entries["normalize_activations"] = "expected_average_only_in" if entries["normalize_activations"] else "none"
    if "hook_z" in old.text("hook_name") and old.get("reshape_activations") is None:
        entries["reshape_activations"] = "hook_z"
    return Config(entries, config.source)


def _check(config: Config, architecture: str, tensors: dict[str, Any]) -> int:
    shapes = SHAPES[architecture]
    if "log_threshold" in tensors and "threshold" in shapes:
        shapes = {**COMMON, "log_threshold": "P"}
    latents = shaped(tensors, shapes, {"scaling_factor": "P", "finetuning_scaling_factor": "P"})
    config.same("d_sae", latents, "the number of latents")
    config.same("d_in", tensors["W_enc"].shape[0], "the width")
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        factor = tensors.get(name)
        if isinstance(factor, Tensor) and not torch.allclose(factor.double(), torch.ones((), dtype=torch.float64)):
            msg = f"{name} is not 1 everywhere, but codes that are rescaled after encoding have no place in this form"
            raise Error(msg)
    if architecture == "gated":
        config.only({"normalize_decoder": (False, "released versions of SAELens have no such field")})
    config.only({"d_out": (tensors["W_enc"].shape[0], "an SAE reconstructs its input")})
    return latents


def _scale(config: Config, folder: Path, notes: list[str]) -> float:
    """The factor by which training multiplied its input, where it is still outside of the weights."""
    normalization = config.text("normalize_activations", "none")
    if normalization not in NORMALIZATIONS:
        config.refuse("normalize_activations", f"only {', '.join(NORMALIZATIONS)} are known")
    if normalization != "expected_average_only_in":
        return 1.0
    beside = folder / "activation_scaler.json"
    scaler = Config(read_json(beside) if beside.exists() else {}, beside.name)
    scaler.only({"has_whitening": (False, "whitening is not folded into these weights")})
    if scaler.get("scaling_factor") is None:
        notes.append(
            "normalize_activations is expected_average_only_in with no factor beside the file: the weights are taken "
            "as they are, as SAELens does, and rows must have the norms that they were folded for."
        )
        return 1.0
    scale = scaler.number("scaling_factor")
    notes.append(
        f"The factor {scale:g} of activation_scaler.json, by which training multiplied its input, is folded in."
    )
    return scale


def _norms(config: Config, architecture: str, W_dec: Tensor, scale: float, notes: list[str]) -> Tensor | None:
    trained = architecture in ("batchtopk", "matryoshka_batchtopk")  # training saves, whose class has true as default
    if architecture not in RESCALED or not config.flag("rescale_acts_by_decoder_norm", trained):
        return None
    notes.append(
        f"rescale_acts_by_decoder_norm is folded in: atoms have norm {1 / scale:g}, "
        "and codes are those after rescaling."
    )
    return row_norms(W_dec)


def _penalty(config: Config, architecture: str, tensors: dict[str, Any], latents: int, notes: list[str]) -> Penalty:
    if architecture == "standard":
        return L1(0.0, nonneg=True)
    if architecture in ("topk", "abstopk"):
        return KSparse(config.count("k", latents), nonneg=architecture == "topk")
    if "topk_threshold" in tensors:
        notes.append(
            "A training save: its topk_threshold is the one threshold of a JumpReLU, as SAELens saves it at the end."
        )
        return jumprelu(tensors["topk_threshold"], latents)
    if "log_threshold" in tensors:
        return jumprelu(tensors["log_threshold"].double().exp(), latents)
    return jumprelu(tensors["threshold"], latents)
