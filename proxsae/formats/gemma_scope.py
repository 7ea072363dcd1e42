"""Gemma Scope 1 (`params.npz`) and 2 (`params.safetensors` with `config.json`): JumpReLU SAEs of Google DeepMind.

    W_enc (d, P), W_dec (P, d), b_enc (P,), b_dec (d,), threshold (P,);  w_enc and w_dec in the second
    u = x W_enc + b_enc,   z = relu(u) 1[u > threshold],   xhat = z W_dec + b_dec

b_dec is not subtracted from x, and x is not normalised.  The second also holds transcoders, which map one activation
to another, some of them with `affine_skip_connection`: these are no SAEs.
"""

from __future__ import annotations

from typing import Any

from proxsae.formats.parts import NOT_SUBTRACTED, Config, Found, assemble, jumprelu, shaped

SHAPES = {"W_enc": "dP", "W_dec": "Pd", "b_enc": "P", "b_dec": "d", "threshold": "P"}
METADATA = ("model_name", "hf_hook_point_in", "hf_hook_point_out", "width", "l0", "type")


def read_first(tensors: dict[str, Any]) -> Found:
    """The SAE of a `params.npz`, which has no configuration."""
    return _found("Gemma Scope 1", tensors, {})


def read_second(config: Config, tensors: dict[str, Any]) -> Found:
    """The SAE of a `params.safetensors` and its configuration."""
    if config.text("architecture") != "jump_relu":
        config.refuse("architecture", "Gemma Scope 2 has jump_relu only")
    no_sae = "a transcoder maps one activation to another, and an SAE reconstructs its input"
    config.only({"affine_connection": (False, no_sae), "type": ("sae", no_sae)})
    inner = config.text("hf_hook_point_in")
    if config.text("hf_hook_point_out", inner) != inner:
        config.refuse("hf_hook_point_out", f"hf_hook_point_in differs: {no_sae}")
    found = _found("Gemma Scope 2", tensors, config.metadata(METADATA))
    config.same("width", len(found.tensors["b_enc"]), "the number of latents")
    return found


def _found(name: str, tensors: dict[str, Any], metadata: dict[str, Any]) -> Found:
    tensors = {key.replace("w_", "W_") if key in ("w_enc", "w_dec") else key: a for key, a in tensors.items()}
    latents = shaped(tensors, SHAPES)
    W_enc, W_dec, b_enc, b_dec = (tensors[key] for key in ("W_enc", "W_dec", "b_enc", "b_dec"))
    folded = assemble(W_enc, W_dec, b_enc, b_dec, subtracts=False)
    return Found(name, folded, jumprelu(tensors["threshold"], latents), "none", metadata, (NOT_SUBTRACTED,))
