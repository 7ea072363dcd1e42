"""openai/sparse_autoencoder: one `.pt` file, a dict of tensors and of what the activation is.

    pre_bias (d,), encoder.weight (P, d), latent_bias (P,), decoder.weight (d, P);  "activation" and
    "activation_state_dict" {k, postact_fn};  stats_last_nonzero, latents_activation_frequency, latents_mean_square (P,)
    u = (x' - pre_bias) encoder.weight^T + latent_bias;   xhat' = z decoder.weight^T + pre_bias
    ReLU: z = relu(u), x' = x.   TopK: z = postact(the k largest of u), and x' = (x - mean) / (std + 1e-5) per row

With postact ReLU that is the k largest of max(u, 0); with Identity negative entries may be kept.
"""

from __future__ import annotations

from typing import Any

from proxsae.formats.parts import Config, Found, assemble, shaped
from proxsae.penalties import L1, KSparse, Penalty

SHAPES = {"encoder.weight": "Pd", "decoder.weight": "dP", "latent_bias": "P", "pre_bias": "d"}
STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
SETTINGS = ("activation", "activation_state_dict")


def read(contents: dict[str, Any]) -> Found:
    """The SAE of a state dict."""
    settings = Config({name: contents[name] for name in SETTINGS if name in contents}, "the file")
    tensors = {name: a for name, a in contents.items() if name not in (*STATISTICS, *SETTINGS)}
    latents = shaped(tensors, SHAPES)
    activation = settings.text("activation", "ReLU")
    if activation not in ("ReLU", "TopK"):
        settings.refuse("activation", "only ReLU and TopK are known")
    penalty: Penalty = L1(0.0, nonneg=True)
    notes: tuple[str, ...] = ()
    if activation == "TopK":
        inner = settings.section("activation_state_dict")
        inner.only(
            {"postact_fn": ("ReLU", "other ones may keep negative entries by their value, which is no projection")}
        )
        penalty = KSparse(inner.count("k", latents), nonneg=True)
        notes = ("Rows are normalised to mean 0 and deviation 1, which this library does for TopK only.",)
    W_enc, W_dec = tensors["encoder.weight"].T, tensors["decoder.weight"].T
    folded = assemble(W_enc, W_dec, tensors["latent_bias"], tensors["pre_bias"])
    normalization = "layer_norm" if notes else "none"
    return Found("openai", folded, penalty, normalization, {"activation": activation}, notes)
