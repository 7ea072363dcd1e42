"""EleutherAI's sparsify (before: sae): one folder a hookpoint, with `cfg.json` and `sae.safetensors`.

    encoder.weight (P, d), encoder.bias (P,), W_dec (P, d) with atoms as rows (not transposed), b_dec (d,)
    c = x - b_dec, or x where `transcode`;   u = relu(c encoder.weight^T + encoder.bias);   the k largest of u
    xhat = z W_dec + b_dec

Until August 2024 `signed` made it AbsTopK: no relu, the k largest |u| with their signs.  Today's sparsify ignores that
field, and so reads such a file as another SAE.
"""

from __future__ import annotations

from typing import Any

from proxsae.formats.parts import Config, Found, assemble, shaped
from proxsae.penalties import KSparse

SHAPES = {"encoder.weight": "Pd", "encoder.bias": "P", "W_dec": "Pd", "b_dec": "d"}
ONLY = {
    "activation": ("topk", "groupmax keeps the largest of each group, which is no k-sparse projection"),
    "skip_connection": (False, "its output adds a linear map of x, which is no part of a code"),
    "embed_skip": (False, "its output adds a map of the embedding, which is no part of a code"),
    "gram_lookup": (False, "its input has a table of means subtracted that the file does not hold"),
}
METADATA = ("expansion_factor", "normalize_decoder", "num_latents", "multi_topk", "transcode", "signed")


def read(config: Config, tensors: dict[str, Any]) -> Found:
    """The SAE of a sparsify configuration and its tensors."""
    config.only(ONLY)
    latents = shaped(tensors, SHAPES)
    weight = tensors["encoder.weight"]
    config.same("d_in", weight.shape[1], "the width")
    if config.get("num_latents", 0) != 0:
        config.same("num_latents", latents, "the number of latents")
    transcodes, signed = config.flag("transcode"), config.flag("signed")
    notes = []
    if transcodes:
        notes.append(
            "A transcoder: its reconstruction is of another activation, so that errors and further steps measured on x "
            "mean little; b_dec is not subtracted from x."
        )
    if signed:
        notes.append("The file says signed: its codes keep their signs, which today's sparsify ignores.")
    folded = assemble(weight.T, tensors["W_dec"], tensors["encoder.bias"], tensors["b_dec"], subtracts=not transcodes)
    penalty = KSparse(config.count("k", latents), nonneg=not signed)
    return Found("sparsify", folded, penalty, "none", config.metadata(METADATA), tuple(notes))
