"""Small synthetic checkpoints in the layouts of other libraries: what `test_formats.py` reads, and a fuzzer may break.

`WRITERS` maps a name to a function that writes a checkpoint into a folder and returns the path to load.  Weights are
random, biases are not 0, atoms do not have norm 1, and b_enc is negative on average, so that rows have fewer positive
entries than k.
"""

import json

import numpy as np
import torch
from safetensors.torch import save_file

D, P, K = 6, 10, 4


def draw(seed=0, dtype=torch.float32, d_out=D):
    """Weights by our names: W_enc (D, P), W_dec (P, D), b_enc, b_dec, and positive and negative `theta` (P,)."""
    g = torch.Generator().manual_seed(seed)
    sizes = {"W_enc": (D, P), "W_dec": (P, d_out), "b_enc": (P,), "b_dec": (D,), "theta": (P,), "extra": (P,)}
    drawn = {name: torch.randn(size, generator=g, dtype=torch.float64) for name, size in sizes.items()}
    drawn["W_dec"] *= torch.linspace(0.3, 2.0, P, dtype=torch.float64)[:, None]
    drawn["b_enc"] -= 0.6
    drawn["theta"] = drawn["theta"] * 0.8 + 0.5
    return {name: a.to(dtype) for name, a in drawn.items()}


def saelens(architecture, /, norm="none", dtype=torch.float32, legacy=False, scale=None, **fields):
    """A writer of a SAELens folder."""

    def write(folder):
        w = draw(1, dtype)
        tensors = {name: w[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
        if architecture == "gated":
            del tensors["b_enc"]
            tensors |= {"b_gate": w["b_enc"] + 1, "b_mag": w["theta"] - 0.5, "r_mag": w["extra"] * 0.5}
        elif architecture == "jumprelu":
            tensors["threshold"] = w["theta"]
        elif "batchtopk" in architecture:
            tensors["topk_threshold"] = torch.tensor(0.73, dtype=torch.float64)
        described = {"model_name": "tiny", "hook_name": "blocks.3.hook_resid_post", "hook_head_index": None}
        config = {"d_in": D, "d_sae": P, "dtype": str(dtype).removeprefix("torch."), "device": "cpu"}
        if legacy:
            config |= {
                "model_name": "tiny",
                "hook_point": "blocks.3.hook_resid_post",
                "hook_point_layer": 3,
                "l1_coefficient": 1.0,
            }
            config |= {"activation_fn_str": "relu", "normalize_activations": norm}
        else:
            config |= {"architecture": architecture, "normalize_activations": norm, "reshape_activations": "none"}
            config |= {"apply_b_dec_to_input": True, "metadata": {**described, "sae_lens_version": "6.54.12"}}
        if architecture in ("topk", "abstopk", "batchtopk", "matryoshka_batchtopk") and not legacy:
            config |= {"k": K, "rescale_acts_by_decoder_norm": False}
        if architecture == "matryoshka_batchtopk":
            config["matryoshka_widths"] = [K, P]
        if scale is not None:
            (folder / "activation_scaler.json").write_text(
                json.dumps({"scaling_factor": scale, "has_whitening": False})
            )
        save_file({name: a.contiguous() for name, a in tensors.items()}, folder / "sae_weights.safetensors")
        (folder / "cfg.json").write_text(json.dumps({**config, **fields}))
        return folder

    return write


def gemma_scope_1(folder):
    w = draw(2)
    named = {
        "W_enc": w["W_enc"],
        "W_dec": w["W_dec"],
        "b_enc": w["b_enc"],
        "b_dec": w["b_dec"],
        "threshold": w["theta"],
    }
    np.savez(folder / "params.npz", **{name: a.numpy() for name, a in named.items()})
    return folder / "params.npz"


def gemma_scope_2(folder):
    w = draw(3)
    named = {
        "w_enc": w["W_enc"],
        "w_dec": w["W_dec"],
        "b_enc": w["b_enc"],
        "b_dec": w["b_dec"],
        "threshold": w["theta"],
    }
    save_file(named, folder / "params.safetensors")
    hook = "model.layers.17.output"
    config = {
        "architecture": "jump_relu",
        "model_name": "google/tiny",
        "hf_hook_point_in": hook,
        "hf_hook_point_out": hook,
    }
    config |= {"width": P, "l0": 20, "affine_connection": False, "type": "sae"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def sparsify(dtype=torch.float32, **fields):
    """A writer of a sparsify folder."""

    def write(folder):
        w = draw(4, dtype)
        tensors = {"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"]}
        save_file({**tensors, "W_dec": w["W_dec"], "b_dec": w["b_dec"]}, folder / "sae.safetensors")
        config = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": P, "k": K}
        config |= {"multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D}
        (folder / "cfg.json").write_text(json.dumps({**config, **fields}))
        return folder

    return write


def dictionary_learning(kind, threshold=0.6):
    """A writer of a dictionary_learning folder."""

    def write(folder):
        w = draw(5)
        linear = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}
        plain = {name: w[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        counts = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(threshold)}
        state = {
            "AutoEncoder": {**linear, "bias": w["b_dec"]},
            "AutoEncoderNew": {**linear, "decoder.bias": w["b_dec"]},
            "GatedAutoEncoder": {
                "decoder_bias": w["b_dec"],
                "r_mag": w["extra"] * 0.5,
                "gate_bias": w["b_enc"] + 1,
                "mag_bias": w["theta"] - 0.5,
                "encoder.weight": w["W_enc"].T,
                "decoder.weight": w["W_dec"].T,
            },
            "JumpReluAutoEncoder": {**plain, "threshold": w["theta"]},
            "AutoEncoderTopK": {**linear, **counts, "b_dec": w["b_dec"]},
            "BatchTopKSAE": {**linear, **counts, "b_dec": w["b_dec"]},
            "MatryoshkaBatchTopKSAE": {**plain, **counts, "group_sizes": torch.tensor([4, P - 4])},
        }[kind]
        torch.save(state, folder / "ae.pt")
        trainer = {"dict_class": kind, "activation_dim": D, "dict_size": P, "lm_name": "tiny", "layer": 3}
        trainer["submodule_name"] = "model.layers[3]"
        trainer |= {"k": K} if "TopK" in kind else {}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
        return folder

    return write


def openai(activation, postact="ReLU"):
    """A writer of an openai file."""

    def write(folder):
        w = draw(6)
        state = {"pre_bias": w["b_dec"], "latent_bias": w["b_enc"], "encoder.weight": w["W_enc"].T.contiguous()}
        state |= {"decoder.weight": w["W_dec"].T.contiguous(), "stats_last_nonzero": torch.zeros(P, dtype=torch.long)}
        state |= {"latents_activation_frequency": torch.ones(P), "latents_mean_square": torch.zeros(P)}
        state["activation"] = activation
        state["activation_state_dict"] = {"k": K, "postact_fn": postact} if activation == "TopK" else {}
        torch.save(state, folder / "autoencoder.pt")
        return folder / "autoencoder.pt"

    return write


def batchtopk(kind, unit_norm=True):
    """A writer of a folder of the BatchTopK repository."""

    def write(folder):
        w = draw(7)
        state = {name: w[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        if kind == "jumprelu":
            state["jumprelu.log_threshold"] = w["extra"] * 0.3
        torch.save(state, folder / "sae.pt")
        config = {"sae_type": kind, "act_size": D, "dict_size": P, "top_k": K, "input_unit_norm": unit_norm}
        config |= {"model_name": "tiny", "hook_point": "blocks.3.hook_resid_pre", "layer": 3}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write


def abstopk_authors(kind, unit_norm=True):
    """A writer of a checkpoint of the AbsTopK authors' code."""

    def write(folder):
        w = draw(8)
        state = {name: w[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        if kind == "jumprelu":
            state["jumprelu.log_threshold"] = w["extra"] * 0.3
        save_file(state, folder / "sae_500.safetensors")
        config = {"sae_name": kind, "act_size": D, "dict_size": P, "k": K, "input_unit_norm": unit_norm, "layer": 3}
        (folder / "config_500.json").write_text(json.dumps(config))
        return folder / "sae_500.safetensors"

    return write


def abstopk_authors_per_row(folder):
    w = draw(9)
    state = {"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"], "b_dec": w["b_dec"]}
    state |= {"decoder.weight": w["W_dec"].T.contiguous(), "k_buffer": torch.tensor(K, dtype=torch.int)}
    save_file(state, folder / "SAE_final.safetensors")
    return folder


def legacy_topk():
    return saelens("topk", None, legacy=True, activation_fn_str="topk", activation_fn_kwargs={"k": K})


WRITERS = {
    "saelens standard": saelens("standard"),
    "saelens standard, no subtraction": saelens("standard", apply_b_dec_to_input=False),
    "saelens standard, layer_norm": saelens("standard", "layer_norm"),
    "saelens standard, constant_norm": saelens("standard", "constant_norm_rescale", apply_b_dec_to_input=False),
    "saelens standard, bfloat16": saelens("standard", dtype=torch.bfloat16),
    "saelens standard, float16": saelens("standard", dtype=torch.float16),
    "saelens standard, float64": saelens("standard", dtype=torch.float64),
    "saelens topk": saelens("topk"),
    "saelens topk, rescaled": saelens("topk", rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=False),
    "saelens abstopk": saelens("abstopk"),
    "saelens abstopk, rescaled": saelens("abstopk", "layer_norm", rescale_acts_by_decoder_norm=True),
    "saelens jumprelu": saelens("jumprelu"),
    "saelens jumprelu, no subtraction": saelens("jumprelu", apply_b_dec_to_input=False),
    "saelens gated": saelens("gated"),
    "saelens gated, no subtraction": saelens("gated", apply_b_dec_to_input=False),
    "saelens batchtopk, training": saelens("batchtopk", rescale_acts_by_decoder_norm=True),
    "saelens matryoshka, training, scaled": saelens(
        "matryoshka_batchtopk", "expected_average_only_in", scale=0.37, rescale_acts_by_decoder_norm=True
    ),
    "saelens gated, scaled": saelens("gated", "expected_average_only_in", scale=2.5, apply_b_dec_to_input=False),
    "saelens before 6, standard": saelens("standard", False, legacy=True),
    "saelens before 6, topk": legacy_topk(),
    "saelens before 6, jumprelu": saelens(
        "jumprelu", None, legacy=True, architecture="jumprelu", apply_b_dec_to_input=False
    ),
    "gemma scope 1": gemma_scope_1,
    "gemma scope 2": gemma_scope_2,
    "sparsify": sparsify(),
    "sparsify, float16": sparsify(torch.float16),
    "sparsify, transcode": sparsify(transcode=True),
    "sparsify, signed": sparsify(signed=True),
    "dictionary_learning AutoEncoder": dictionary_learning("AutoEncoder"),
    "dictionary_learning AutoEncoderNew": dictionary_learning("AutoEncoderNew"),
    "dictionary_learning GatedAutoEncoder": dictionary_learning("GatedAutoEncoder"),
    "dictionary_learning JumpReluAutoEncoder": dictionary_learning("JumpReluAutoEncoder"),
    "dictionary_learning AutoEncoderTopK": dictionary_learning("AutoEncoderTopK"),
    "dictionary_learning BatchTopKSAE": dictionary_learning("BatchTopKSAE"),
    "dictionary_learning BatchTopKSAE, unset": dictionary_learning("BatchTopKSAE", -1.0),
    "dictionary_learning MatryoshkaBatchTopKSAE": dictionary_learning("MatryoshkaBatchTopKSAE"),
    "openai ReLU": openai("ReLU"),
    "openai TopK": openai("TopK"),
    "batchtopk vanilla": batchtopk("vanilla"),
    "batchtopk topk": batchtopk("topk", unit_norm=False),
    "batchtopk batchtopk": batchtopk("batchtopk"),
    "batchtopk jumprelu": batchtopk("jumprelu"),
    "abstopk authors batchabsolutek": abstopk_authors("batchabsolutek"),
    "abstopk authors batchtopk": abstopk_authors("batchtopk", unit_norm=False),
    "abstopk authors jumprelu": abstopk_authors("jumprelu"),
    "abstopk authors AbsoluteKSAE": abstopk_authors_per_row,
}
