"""The BatchTopK repository (`sae.pt`, `config.json`) and the AbsTopK authors' (`sae_N.safetensors`, `config_N.json`).

    W_enc (d, P), W_dec (P, d), b_enc (P,), b_dec (d,);  jumprelu.log_threshold (P,)
    x' = (x - mean) / (std + 1e-5) per row where `input_unit_norm`, else x;  xhat' = z W_dec + b_dec, un-normalised
    vanilla         relu((x' - b_dec) W_enc + b_enc)
    topk            the top_k largest of relu((x' - b_dec) W_enc), per row; b_enc is stored and not used
    batchtopk       the top_k B largest of all B rows; so too in the authors' code, where top_k is called k
    batchabsolutek  the k B largest |(x' - b_dec) W_enc| of all B rows, with their signs
    jumprelu        u 1[u > exp(log_threshold)], u = relu(x' W_enc + b_enc): b_dec is not subtracted

An earlier version of the authors' code saved, without configuration, an AbsoluteKSAE that selects per row: k_buffer (),
encoder.weight (P, d), encoder.bias (P,), decoder.weight (d, P), b_dec (d,), u = L(x - b_dec), the k largest |u|.
"""

from __future__ import annotations

from typing import Any

import torch

from proxsae.conventions import Error
from proxsae.formats.parts import NOT_SUBTRACTED, Config, Found, assemble, jumprelu, shaped
from proxsae.penalties import L1, BatchKSparse, KSparse, Penalty

SHAPES = {"W_enc": "dP", "W_dec": "Pd", "b_enc": "P", "b_dec": "d"}
PER_ROW = {"encoder.weight": "Pd", "encoder.bias": "P", "decoder.weight": "dP", "b_dec": "d", "k_buffer": ""}
KINDS = ("vanilla", "topk", "batchtopk", "batchabsolutek", "jumprelu")
ONLY = {
    "tied_weights": (False, "early versions then decode by W_enc^T, and later ones ignore the field"),
    "use_encoder_bias": (False, "early versions then use b_enc, and later ones do not"),
    "activation": ("relu", "early versions then select by another function of u"),
}
METADATA = (
    "model_name", "hook_point", "layer", "site", "dataset_path", "dataset", "sae_type", "sae_name", "lr", "seq_len",
)  # fmt: skip


def read(config: Config, tensors: dict[str, Any]) -> Found:
    """The SAE of a configuration of either repository and its tensors."""
    authors = config.get("sae_type") is None
    field = "sae_name" if authors else "sae_type"
    kind = config.text(field)
    if kind not in KINDS:
        config.refuse(field, f"only {', '.join(KINDS)} are known")
    config.only(ONLY)
    threshold = "jumprelu.log_threshold"
    latents = shaped(tensors, {**SHAPES, threshold: "P"} if kind == "jumprelu" else SHAPES)
    config.same("act_size", tensors["W_enc"].shape[0], "the width")
    config.same("dict_size", latents, "the number of latents")
    b_enc, notes = tensors["b_enc"], []
    selects = kind not in ("vanilla", "jumprelu")
    if selects and bool((b_enc != 0).any()):
        notes.append("The file's b_enc is not used: this code selects on (x - b_dec) W_enc.")
    if kind == "jumprelu":
        notes.append(NOT_SUBTRACTED)
    folded = assemble(
        tensors["W_enc"], tensors["W_dec"], torch.zeros_like(b_enc) if selects else b_enc, tensors["b_dec"],
        subtracts=kind != "jumprelu",
    )  # fmt: skip
    penalty: Penalty
    if kind == "vanilla":
        penalty = L1(0.0, nonneg=True)
    elif kind == "jumprelu":
        penalty = jumprelu(tensors[threshold].double().exp(), latents)
    else:
        k = config.count("k" if authors else "top_k", latents)
        penalty = KSparse(k, nonneg=True) if kind == "topk" else BatchKSparse(k, nonneg=kind == "batchtopk")
    normalization = "layer_norm" if config.flag("input_unit_norm") else "none"
    name = f"{'AbsTopK authors' if authors else 'BatchTopK'}, {kind}"
    return Found(name, folded, penalty, normalization, config.metadata(METADATA), tuple(notes))


def read_per_row(tensors: dict[str, Any]) -> Found:
    """The SAE of the authors' earlier code."""
    if "threshold_buffer" in tensors:
        msg = (
            "there is a tensor threshold_buffer, as in the authors' TopKSAE, which keeps the k largest u even where "
            "they are negative, but that is no projection"
        )
        raise Error(msg)
    latents = shaped(tensors, PER_ROW)
    k = Config(tensors, "the file").count("k_buffer", latents)
    W_enc, W_dec = tensors["encoder.weight"].T, tensors["decoder.weight"].T
    folded = assemble(W_enc, W_dec, tensors["encoder.bias"], tensors["b_dec"])
    note = "A factor by which training may have divided its input (normalize_activations) is not in the file."
    return Found("AbsTopK authors, AbsoluteKSAE", folded, KSparse(k), "none", {}, (note,))
