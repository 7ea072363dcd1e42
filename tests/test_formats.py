"""Other libraries' checkpoints: each against that library's formula on the raw file, and each refusal by its sentence.

The oracles share no code with `proxsae.formats`: they read the files by torch, safetensors or NumPy, and encode as the
library's own source does, in float64.
"""

import contextlib
import json
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import proxsae as px
from proxsae.conventions import Error
from proxsae.formats import Found, parts, read, saelens_layout, write_saelens
from proxsae.formats.files import show
from proxsae.sae.loading import _from_found
from proxsae.testing import assert_same
from tests.checkpoint_files import WRITERS, D, K, P, batchtopk, dictionary_learning, draw, openai, saelens, sparsify
from tests.checkpoint_files import gemma_scope_1 as gemma_scope_1_files
from tests.checkpoint_files import gemma_scope_2 as gemma_scope_2_files

X = torch.randn(60, D, generator=torch.Generator().manual_seed(99), dtype=torch.float64) * 1.5 + 0.3
relu = torch.relu


def ours(found, x=X):
    """Codes and reconstruction of our form, in NumPy."""
    w = {name: a.double().numpy() for name, a in found.tensors.items()}
    x = x.numpy()
    mean, scale = 0.0, 1.0
    if found.normalization == "layer_norm":
        mean, scale = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
        x = (x - mean) / (scale + 1e-5)
    elif found.normalization == "constant_norm":
        scale = np.linalg.norm(x, axis=1, keepdims=True) / np.sqrt(x.shape[1])
        x = x / scale
    z = found.penalty.prox((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    return z, (z @ w["W_dec"] + w["b_dec"]) * scale + mean


# ---- the libraries' formulas -------------------------------------------------------------------------------------


def top(u, k):
    """The entries of the k largest u of each row, others 0."""
    best = u.topk(k, dim=-1)
    return torch.zeros_like(u).scatter(-1, best.indices, best.values)


def top_by_size(u, k):
    return torch.zeros_like(u).scatter(-1, (i := u.abs().topk(k, dim=-1).indices), u.gather(-1, i))


def over_batch(select, u, k):
    return select(u.flatten()[None], k * len(u)).reshape(u.shape)


def per_token(x, normalize):
    """(normalised x, function that undoes it)."""
    if not normalize:
        return x, lambda y: y
    mean = x.mean(dim=-1, keepdim=True)
    std = (x - mean).std(dim=-1, keepdim=True)
    return (x - mean) / (std + 1e-5), lambda y: y * std + mean


def load(file):
    return {name: a.double() for name, a in load_file(file).items()}


def oracle_saelens(path):
    cfg, t = json.loads((path / "cfg.json").read_text()), load(path / "sae_weights.safetensors")
    architecture, k = cfg.get("architecture", "standard"), cfg.get("k")
    if cfg.get("activation_fn_str") == "topk":
        architecture, k = "topk", cfg["activation_fn_kwargs"]["k"]
    scaler, norm = path / "activation_scaler.json", cfg["normalize_activations"]
    s = json.loads(scaler.read_text())["scaling_factor"] if scaler.exists() else 1.0
    x, back = per_token(X * s, norm == "layer_norm")
    if norm == "constant_norm_rescale":
        factor = D**0.5 / X.norm(dim=-1, keepdim=True)
        x, back = X * factor, lambda y: y / factor
    c = x - t["b_dec"] * cfg.get("apply_b_dec_to_input", True)
    rescale = cfg.get("rescale_acts_by_decoder_norm", False)
    if architecture == "gated":
        gate = c @ t["W_enc"] + t["b_gate"] > 0
        z = gate * relu(c @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"])
    else:
        u = c @ t["W_enc"] + t["b_enc"]
        if rescale:
            u = u * t["W_dec"].norm(dim=-1)
        z = {
            "standard": lambda: relu(u),
            "topk": lambda: relu(top(u, k)),
            "abstopk": lambda: top_by_size(u, k),
            "jumprelu": lambda: relu(u) * (u > t["threshold"].relu()),
            "batchtopk": lambda: relu(u) * (u > t["topk_threshold"]),
            "matryoshka_batchtopk": lambda: relu(u) * (u > t["topk_threshold"]),
        }[architecture]()
    y = (z / t["W_dec"].norm(dim=-1) if rescale else z) @ t["W_dec"] + t["b_dec"]
    return z, back(y) / s


def oracle_gemma(path):
    if path.suffix == ".npz":
        t = {name: torch.tensor(a).double() for name, a in np.load(path).items()}
    else:
        t = {name.replace("w_", "W_"): a for name, a in load(path / "params.safetensors").items()}
    u = X @ t["W_enc"] + t["b_enc"]
    z = (u > t["threshold"]) * relu(u)
    return z, z @ t["W_dec"] + t["b_dec"]


def oracle_sparsify(path):
    cfg, t = json.loads((path / "cfg.json").read_text()), load(path / "sae.safetensors")
    c = X if cfg["transcode"] else X - t["b_dec"]
    u = torch.nn.functional.linear(c, t["encoder.weight"], t["encoder.bias"])
    z = top_by_size(u, cfg["k"]) if cfg.get("signed") else top(relu(u), cfg["k"])
    y = torch.zeros_like(X)
    for row, code in enumerate(z):  # a sum over the active latents of their rows of W_dec
        for i in code.nonzero().flatten():
            y[row] += code[i] * t["W_dec"][i]
    return z, y + t["b_dec"]


def oracle_dictionary_learning(path):
    trainer = json.loads((path / "config.json").read_text())["trainer"]
    t = {name: a.double() for name, a in torch.load(path / "ae.pt", weights_only=True).items()}
    kind = trainer["dict_class"]

    def linear(x):
        return torch.nn.functional.linear(x, t["encoder.weight"], t.get("encoder.bias"))

    def decode(z):
        return torch.nn.functional.linear(z, t["decoder.weight"], t.get("decoder.bias"))

    if kind == "AutoEncoder":
        norms = t["decoder.weight"].norm(dim=0)
        t["decoder.weight"] = t["decoder.weight"] / norms
        t["encoder.weight"] = t["encoder.weight"] * norms[:, None]
        t["encoder.bias"] = t["encoder.bias"] * norms
        z = relu(linear(X - t["bias"]))
        return z, decode(z) + t["bias"]
    if kind == "AutoEncoderNew":
        z = relu(linear(X))
        return z, decode(z)
    if kind == "GatedAutoEncoder":
        w = linear(X - t["decoder_bias"])
        z = (w + t["gate_bias"] > 0) * relu(t["r_mag"].exp() * w + t["mag_bias"])
        return z, decode(z) + t["decoder_bias"]
    if kind == "JumpReluAutoEncoder":
        u = X @ t["W_enc"] + t["b_enc"]
        z = relu(u * (u > t["threshold"]))
        return z, z @ t["W_dec"] + t["b_dec"]
    if kind == "MatryoshkaBatchTopKSAE":
        f = relu((X - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
        z = f * (f > t["threshold"])
        return z, z @ t["W_dec"] + t["b_dec"]
    f = relu(linear(X - t["b_dec"]))
    z = top(f, int(t["k"])) if kind == "AutoEncoderTopK" else f * (f > t["threshold"])
    return z, decode(z) + t["b_dec"]


def oracle_openai(path):
    t = torch.load(path, weights_only=True)
    x, back = per_token(X, t["activation"] == "TopK")
    w = {name: a.double() for name, a in t.items() if isinstance(a, torch.Tensor)}
    u = torch.nn.functional.linear(x - w["pre_bias"], w["encoder.weight"], w["latent_bias"])
    z = relu(top(u, t["activation_state_dict"]["k"])) if t["activation"] == "TopK" else relu(u)
    return z, back(torch.nn.functional.linear(z, w["decoder.weight"]) + w["pre_bias"])


def oracle_batchtopk(path):
    if path.is_dir():
        cfg = json.loads((path / "config.json").read_text())
        t = {name: a.double() for name, a in torch.load(path / "sae.pt", weights_only=True).items()}
    else:
        cfg = json.loads(path.with_name("config_500.json").read_text())
        t = load(path)
    kind, k = cfg.get("sae_type") or cfg["sae_name"], cfg.get("top_k") or cfg["k"]
    x, back = per_token(X, cfg["input_unit_norm"])
    c = x - t["b_dec"]
    if kind == "jumprelu":
        u = relu(x @ t["W_enc"] + t["b_enc"])
        z = u * (u > t["jumprelu.log_threshold"].exp())
    else:
        z = {
            "vanilla": lambda: relu(c @ t["W_enc"] + t["b_enc"]),
            "topk": lambda: top(relu(c @ t["W_enc"]), k),
            "batchtopk": lambda: over_batch(top, relu(c @ t["W_enc"]), k),
            "batchabsolutek": lambda: over_batch(top_by_size, c @ t["W_enc"], k),
        }[kind]()
    return z, back(z @ t["W_dec"] + t["b_dec"])


def oracle_per_row(path):
    t = load(path / "SAE_final.safetensors")
    u = torch.nn.functional.linear(X - t["b_dec"], t["encoder.weight"], t["encoder.bias"])
    z = top_by_size(u, int(t["k_buffer"]))
    return z, torch.nn.functional.linear(z, t["decoder.weight"]) + t["b_dec"]


ORACLES = {
    "saelens": oracle_saelens,
    "gemma": oracle_gemma,
    "sparsify": oracle_sparsify,
    "dictionary_learning": oracle_dictionary_learning,
    "openai": oracle_openai,
    "batchtopk": oracle_batchtopk,
    "abstopk": oracle_batchtopk,
    "abstopk authors AbsoluteKSAE": oracle_per_row,
}
NAMES = {
    "saelens matryoshka, training, scaled": "SAELens 6, matryoshka_batchtopk",
    "saelens before 6, topk": "SAELens before 6, topk",
    "gemma scope 1": "Gemma Scope 1",
    "gemma scope 2": "Gemma Scope 2",
    "sparsify, signed": "sparsify",
    "dictionary_learning BatchTopKSAE": "dictionary_learning, BatchTopKSAE",
    "openai TopK": "openai",
    "batchtopk batchtopk": "BatchTopK, batchtopk",
    "abstopk authors batchabsolutek": "AbsTopK authors, batchabsolutek",
    "abstopk authors AbsoluteKSAE": "AbsTopK authors, AbsoluteKSAE",
}


def far(got, want):
    """The largest difference, relative to the largest entry."""
    want = want.numpy()
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("name", WRITERS)
def test_codes_and_reconstructions_are_the_librarys(name, tmp_path):
    path = WRITERS[name](tmp_path)
    found = read(path)
    oracle = ORACLES.get(name) or ORACLES[name.replace(",", "").split()[0]]
    z, xhat = oracle(path)
    got = ours(found)
    assert far(got[0], z) < 1e-5
    assert far(got[1], xhat) < 1e-5
    assert ((got[0] != 0) == (z != 0).numpy()).all()
    assert 0 < (z != 0).double().mean() < 1, "an oracle that keeps all or nothing would see little"
    assert set(found.tensors) == {"W_enc", "W_dec", "b_enc", "b_dec"}
    assert len({a.dtype for a in found.tensors.values()}) == 1
    assert json.loads(json.dumps(found.metadata)) == found.metadata
    assert all(note.endswith(".") for note in found.notes)
    assert found.format == NAMES.get(name, found.format)


@pytest.mark.parametrize("name", WRITERS)
def test_rows_tell_selections_apart(name, tmp_path):
    """Some rows have fewer than k positive entries, and some rows get more of a batch than others."""
    found = read(WRITERS[name](tmp_path))
    if isinstance(found.penalty, px.KSparse):
        positive = (ours(replace(found, penalty=px.KSparse(P)))[0] > 0).sum(axis=1)
        assert positive.min() < K < positive.max()
    elif isinstance(found.penalty, px.BatchKSparse):
        assert len({*(ours(found)[0] != 0).sum(axis=1)}) > 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_is_that_of_the_file(dtype, tmp_path):
    found = read(saelens("jumprelu", dtype=dtype)(tmp_path))
    assert found.tensors["W_enc"].dtype == dtype
    theta = load_file(tmp_path / "sae_weights.safetensors")["threshold"].double().clamp(min=0).numpy()
    assert found.penalty == px.L0(theta**2 / 2, nonneg=True)
    assert found.penalty.lam.shape == (P,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_threshold_that_a_file_keeps_wider_keeps_its_meaning(dtype):
    """The entries of the dtype of the weights that are above it are the same, also those next to it."""
    theta = torch.tensor([0.1, 0.3, 0.7, 0.5, 1e-9, 0.0], dtype=torch.float64)
    n, zero = len(theta), torch.zeros(6, dtype=dtype)
    eye = torch.eye(n, dtype=dtype)
    folded = parts.assemble(eye, eye, zero, zero)
    sae = _from_found(parts.Found("", folded, parts.jumprelu(theta, n), "none", {}, ()))
    near = theta.to(dtype)
    for x in (near, torch.nextafter(near, near + 1), torch.nextafter(near, -near - 1)):
        assert torch.equal(sae.encode(x) != 0, x.double() > theta)


def test_metadata_are_as_the_file_says(tmp_path):
    old = read(WRITERS["saelens before 6, standard"](tmp_path)).metadata
    assert old == {"model_name": "tiny", "hook_name": "blocks.3.hook_resid_post", "hook_layer": 3}


def test_old_log_thresholds_scaling_factors_and_heads(tmp_path):
    saelens("jumprelu", reshape_activations="hook_z")(tmp_path)
    file = tmp_path / "sae_weights.safetensors"
    tensors = load_file(file)
    theta = tensors.pop("threshold").abs()
    save_file({**tensors, "log_threshold": theta.log(), "scaling_factor": torch.ones(P)}, file)
    found = read(tmp_path)
    np.testing.assert_allclose(np.sqrt(2 * found.penalty.lam), theta.double().numpy(), rtol=1e-6)
    assert any("hook_z" in note for note in found.notes)
    save_file({**tensors, "threshold": theta, "scaling_factor": torch.full((P,), 1.5)}, file)
    with pytest.raises(Error, match="scaling_factor is not 1 everywhere"):
        read(tmp_path)


def test_an_atom_of_norm_0_has_no_code(tmp_path):
    saelens("topk", rescale_acts_by_decoder_norm=True)(tmp_path)
    file = tmp_path / "sae_weights.safetensors"
    tensors = load_file(file)
    tensors["W_dec"][3] = 0
    save_file(tensors, file)
    z = oracle_saelens(tmp_path)[0]
    assert (z[:, 3] == 0).all()
    assert far(ours(read(tmp_path))[0], z) < 1e-5


def test_notes_say_what_is_implied(tmp_path):
    assert "selects per row" in " ".join(read(dictionary_learning("AutoEncoderTopK")(tmp_path)).notes)
    assert "not yet set" in " ".join(read(dictionary_learning("BatchTopKSAE", -1.0)(tmp_path)).notes)
    other = tmp_path / "other"
    other.mkdir()
    found = read(saelens("standard", "expected_average_only_in")(other))
    assert found.normalization == "none"
    assert "no factor beside the file" in " ".join(found.notes)


def test_the_norm_of_the_atoms_is_said_with_the_factor_that_is_folded_in(tmp_path):
    found = read(WRITERS["saelens matryoshka, training, scaled"](tmp_path))
    norm = float(found.tensors["W_dec"].norm(dim=1).mean())
    assert any(f"atoms have norm {1 / 0.37:g}, and" in note for note in found.notes)
    assert abs(norm - 1 / 0.37) < 1e-5


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("batchtopk topk", "blocks.3.hook_resid_pre"),
        ("abstopk authors batchtopk", None),
        ("dictionary_learning AutoEncoder", "model.layers[3]"),
        ("gemma scope 2", "model.layers.17.output"),
        ("saelens topk", "blocks.3.hook_resid_post"),
    ],
)
def test_where_an_sae_reads_is_called_as_saelens_calls_it(name, hook, tmp_path):
    metadata = read(WRITERS[name](tmp_path)).metadata
    assert metadata.get("hook_name") == hook
    assert metadata["hook_layer"] == (17 if "gemma" in name else 3)


def test_a_transcoder_says_so(tmp_path):
    assert any(note.startswith("A transcoder: ") for note in read(sparsify(transcode=True)(tmp_path)).notes)


def test_a_configuration_that_a_format_has_not_is_not_read(tmp_path):
    for file in (openai("TopK")(tmp_path), gemma_scope_1_files(tmp_path)):
        (tmp_path / "config.json").write_text("{ broken")
        assert read(file).format in ("openai", "Gemma Scope 1")


# ---- what is refused ---------------------------------------------------------------------------------------------

REFUSALS = {
    "matching pursuit": (saelens("matching_pursuit"), "architecture='matching_pursuit', but it encodes in many greedy"),
    "temporal": (saelens("temporal"), "architecture='temporal', but its code depends on other rows"),
    "transcoder": (saelens("jumprelu_skip_transcoder"), "an SAE reconstructs its input"),
    "unknown architecture": (saelens("kolmogorov"), "architecture='kolmogorov', but only standard, topk"),
    "whitening": (
        saelens("standard", "covariance_whitening"),
        "normalize_activations='covariance_whitening', but only",
    ),
    "d_out": (saelens("standard", d_out=5), "d_out=5, but only 6 can be read"),
    "d_sae": (saelens("standard", d_sae=12), "d_sae=12, but the number of latents is 10 in the tensors"),
    "d_in": (saelens("standard", d_in=True), "d_in=True, but the width is 6 in the tensors"),
    "k huge": (saelens("topk", k=10**400), r"k=1000.*\.\.\., but it must be a whole number from 1 to 10"),
    "k text": (saelens("topk", k="8"), "k='8', but it must be a whole number"),
    "k true": (saelens("topk", k=True), "k=True, but it must be a whole number"),
    "k real": (saelens("abstopk", k=1e308), r"k=1e\+308, but it must be a whole number"),
    "k none": (saelens("abstopk", k=None), "k=None, but it must be a whole number"),
    "flag": (saelens("standard", apply_b_dec_to_input=1), "apply_b_dec_to_input=1, but it must be true or false"),
    "metadata": (saelens("standard", metadata=[1]), "metadata=a list, but it must be an object"),
    "version": (saelens("standard", metadata={"sae_lens_version": 6}), "sae_lens_version=6, but it must be text"),
    "old activation": (saelens("standard", legacy=True, activation_fn_str="tanh-relu"), "only relu and topk are known"),
    "scale": (
        saelens("standard", "expected_average_only_in", scale=-1.0),
        "scaling_factor=-1.0, but it must be a finite",
    ),
    "scale huge": (
        saelens("standard", "expected_average_only_in", scale=10**400),
        "but it must be a finite number > 0",
    ),
    "groupmax": (sparsify(activation="groupmax"), "activation='groupmax', but only 'topk' can be read: groupmax keeps"),
    "skip": (sparsify(skip_connection=True), "skip_connection=True, but only False can be read: its output adds"),
    "embed_skip": (sparsify(embed_skip=True), "embed_skip=True, but only False"),
    "gram_lookup": (sparsify(gram_lookup=True), "gram_lookup=True, but only False"),
    "num_latents": (sparsify(num_latents=11), "num_latents=11, but the number of latents is 10"),
    "identity": (openai("TopK", "Identity"), "postact_fn='Identity', but only 'ReLU' can be read"),
    "openai activation": (openai("GELU"), "activation='GELU', but only ReLU and TopK"),
    "batchtopk kind": (batchtopk("maxpool"), "sae_type='maxpool', but only vanilla"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_name_the_field_its_value_and_why(name, tmp_path):
    write, sentence = REFUSALS[name]
    path = write(tmp_path)
    with pytest.raises(Error, match=sentence) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def edit(folder, file="cfg.json", **fields):
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**config, **fields}))
    return folder


def test_dictionary_learning_refusals(tmp_path):
    dictionary_learning("AutoEncoderTopK")(tmp_path)
    good = json.loads((tmp_path / "config.json").read_text())["trainer"]
    for fields, sentence in [
        ({"dict_class": "CrossCoder"}, "dict_class='CrossCoder', but only AutoEncoder"),
        ({"k": 3}, "k=3, but k is 4 in the tensors"),
        ({"dict_class": "AutoEncoder"}, "no tensor bias"),
        ({"dict_class": "BatchTopKSAE", "dict_size": 5}, "dict_size=5, but"),
    ]:
        edit(tmp_path, "config.json", trainer={**good, **fields})
        with pytest.raises(Error, match=sentence):
            read(tmp_path)
    (tmp_path / "config.json").unlink()  # by names alone TopK and BatchTopK are the same
    with pytest.raises(Error, match="not of a known format: SAELens, Gemma Scope"):
        read(tmp_path)
    torch.save({"step": 1, "ae": {}, "optimizer": {}, "config": {}, "norm_factor": 2.0}, tmp_path / "ae.pt")
    with pytest.raises(Error, match="training backup, whose biases are not yet scaled"):
        read(tmp_path)


def test_gemma_scope_refusals(tmp_path):
    gemma_scope_2_files(tmp_path)
    for fields, sentence in [
        ({"affine_connection": True}, "affine_connection=True, but only False"),
        ({"affine_connection": False, "type": "transcoder"}, "type='transcoder', but only 'sae'"),
        (
            {"type": "sae", "hf_hook_point_out": "elsewhere"},
            "hf_hook_point_out='elsewhere', but hf_hook_point_in differs",
        ),
        ({"hf_hook_point_out": None, "width": 11}, "width=11, but the number of latents is 10"),
        ({"architecture": "topk"}, "architecture='topk', but Gemma Scope 2 has jump_relu only"),
    ]:
        edit(tmp_path, "config.json", **fields)
        with pytest.raises(Error, match=sentence):
            read(tmp_path)
    gemma_scope_2_files(tmp_path)
    file = tmp_path / "params.safetensors"
    save_file({**load_file(file), "affine_skip_connection": torch.zeros(D, D)}, file)
    with pytest.raises(Error, match="tensor 'affine_skip_connection', which this version cannot account for"):
        read(tmp_path)


def test_the_authors_topk_is_no_projection(tmp_path):
    WRITERS["abstopk authors AbsoluteKSAE"](tmp_path)
    file = tmp_path / "SAE_final.safetensors"
    save_file({**load_file(file), "threshold_buffer": torch.tensor(-1.0)}, file)
    with pytest.raises(Error, match="threshold_buffer, as in the authors' TopKSAE"):
        read(tmp_path)


@pytest.mark.parametrize("field", ["tied_weights", "use_encoder_bias"])
def test_early_versions_of_batchtopk_are_refused(field, tmp_path):
    edit(batchtopk("topk")(tmp_path), "config.json", **{field: True})
    with pytest.raises(Error, match=f"{field}=True, but only False can be read: early versions"):
        read(tmp_path)


def test_shapes_are_checked_against_each_other(tmp_path):
    saelens("jumprelu")(tmp_path)
    file = tmp_path / "sae_weights.safetensors"
    good = load_file(file)
    for name, bad, sentence in [
        (
            "W_dec",
            good["W_dec"].T.contiguous(),
            r"W_dec has shape \(6, 10\), but W_enc of shape \(6, 10\) needs \(10, 6\)",
        ),
        ("threshold", torch.zeros(11), r"threshold has shape \(11,\), but W_enc of shape \(6, 10\) needs \(10,\)"),
        ("b_dec", torch.zeros(1), r"b_dec has shape \(1,\), but"),
        ("W_enc", torch.zeros(6, 0), r"W_enc has shape \(6, 0\), but it must be a matrix with at least one"),
        ("W_enc", torch.zeros(6), r"W_enc has shape \(6,\), but it must be a matrix"),
        ("b_enc", torch.zeros(P, dtype=torch.long), "b_enc has dtype torch.int64, but weights are float64"),
        ("b_enc", torch.full((P,), torch.nan), "b_enc holds NaN or infinite entries"),
        ("extra", torch.zeros(2), "tensor 'extra', which this version cannot account for"),
    ]:
        save_file({**good, name: bad}, file)
        with pytest.raises(Error, match=sentence):
            read(tmp_path)
    save_file({name: a for name, a in good.items() if name != "b_enc"}, file)
    with pytest.raises(Error, match="no tensor b_enc, which this format needs"):
        read(tmp_path)
    save_file({**good, "W_enc": torch.full((D, P), 3e38), "b_dec": torch.full((D,), 3e38)}, file)
    with pytest.raises(Error, match="b_enc, once folded, holds NaN or infinite"):
        read(edit(tmp_path, apply_b_dec_to_input=False))


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(Error, match=r"missing: there is no such file or folder$"):
        read(tmp_path / "missing")
    with pytest.raises(Error, match="here are none: name the file"):
        read(tmp_path)
    save_file({"a": torch.zeros(2)}, tmp_path / "x_1.safetensors")
    with pytest.raises(Error, match=r"tensors 'a' with 'no configuration beside it' are not of a known format"):
        read(tmp_path)
    save_file({"a": torch.zeros(2)}, tmp_path / "x_2.safetensors")
    with pytest.raises(Error, match=r"here are x_1.safetensors, x_2.safetensors: name the file"):
        read(tmp_path)
    with pytest.raises(Error, match=r"/x_1.safetensors: tensors"):
        read(tmp_path / "x_1.safetensors")
    (tmp_path / "y.pt").write_bytes(b"nothing")
    with pytest.raises(Error, match=r"/y.pt is no safetensors, npz"):
        read(tmp_path / "y.pt")
    (tmp_path / "y.pt").unlink()
    saelens("standard")(tmp_path)  # a usual name goes before others, such as sparsity.safetensors
    assert read(tmp_path).format == "SAELens 6, standard"
    assert read(tmp_path / "sae_weights.safetensors").format == "SAELens 6, standard"


def test_a_folder_of_folders_says_which_hold_weights(tmp_path):
    for name in ("a/b", "c", "d", "e"):
        (tmp_path / name).mkdir(parents=True)
        saelens("standard")(tmp_path / name)
        some = " and others" if name == "e" else ""
        with pytest.raises(
            Error, match=rf"here are none; some are in [a-e/, ]+{some}: name the file, or its folder$"
        ) as error:
            read(tmp_path)
    assert (
        sum(f"{name}," in str(error.value) or f"{name} and" in str(error.value) for name in ("a/b", "c", "d", "e")) == 3
    )


# ---- hostile files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 100_000, "not readable JSON"),
        ('{"d_in": NaN}', "says d_in=nan, but the width is 6 in the tensors"),
        ('{"d_in": 6, "metadata": {"sae_lens_version": Infinity}}', "sae_lens_version=inf, but it must be text"),
        ("[1]", "holds a list, but a configuration is an object"),
        ("{", "not readable JSON"),
        ('{"d_in": 6, "x": ' + "9" * 10_000 + "}", "not readable JSON"),
        (b"\xff\xfe{}", "not readable JSON"),
    ],
)
def test_hostile_json(text, sentence, tmp_path):
    saelens("standard")(tmp_path)
    (tmp_path / "cfg.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(Error, match=sentence):
        read(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_byte_order_mark_and_infinities_that_nobody_reads_change_nothing(name, encoding, tmp_path):
    """As editors and shells on Windows save JSON, and Python writes what it has not measured."""
    path = WRITERS[name](tmp_path)
    good = read(path)
    for file in tmp_path.rglob("*.json"):
        fields = json.loads(file.read_text()) | {
            "best_loss": float("inf"),
            "lr_end": -float("inf"),
            "loss": float("nan"),
        }
        file.write_bytes(json.dumps(fields).encode(encoding))
    same_found(read(path), good)


@pytest.mark.parametrize("name", WRITERS)
def test_axes_of_length_one_are_no_other_shape(name, tmp_path):
    """b_dec (1, d) of a parameter that broadcasts, biases (P, 1), scalars (1, 1), matrices (1, d, P)."""
    path = WRITERS[name](tmp_path)
    good = read(path)
    for at in (0, -1):
        for file in [f for f in tmp_path.rglob("*") if f.suffix in (".safetensors", ".npz", ".pt")]:
            rewritten(file, lambda a: a.unsqueeze(at) if at == 0 or a.ndim < 2 else a)  # noqa: B023
        same_found(read(path), good)


def rewritten(file, change):
    """The same file with its tensors changed."""
    if file.suffix == ".safetensors":
        save_file({name: change(a).contiguous() for name, a in load_file(file).items()}, file)
    elif file.suffix == ".npz":
        with np.load(file) as held:
            changed = {name: change(torch.tensor(a)).numpy() for name, a in held.items()}
        np.savez(file, **changed)
    else:
        held = torch.load(file, weights_only=True)
        torch.save({name: change(a) if isinstance(a, torch.Tensor) else a for name, a in held.items()}, file)


def same_found(found, good):
    assert (found.format, found.normalization, found.metadata, found.notes) == (
        good.format, good.normalization, good.metadata, good.notes,
    )  # fmt: skip
    assert type(found.penalty) is type(good.penalty)
    z = torch.randn(5, P, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert_same(found.penalty.prox(z.numpy()), good.penalty.prox(z.numpy()))
    assert found.tensors.keys() == good.tensors.keys()
    for key, a in good.tensors.items():
        assert_same(found.tensors[key], a)


def test_json_has_a_size_limit(tmp_path, monkeypatch):
    saelens("standard")(tmp_path)
    monkeypatch.setattr("proxsae.formats.files.LARGEST_TEXT", 100)
    with pytest.raises(Error, match="bytes, but a configuration has at most 100"):
        read(tmp_path)


class Runs:
    def __reduce__(self):
        return print, ("this pickle ran",)


def test_no_pickle_runs(tmp_path, capsys):
    file = tmp_path / "ae.pt"
    torch.save({"pre_bias": Runs(), "latent_bias": 1}, file)
    with pytest.raises(Error, match=r"asks for '(__builtin__|builtins) print', but a dict of tensors"):
        read(file)
    file.write_bytes(pickle.dumps({"pre_bias": Runs()}))
    with pytest.raises(Error, match="older torch files are pickles"):
        read(file)
    torch.save({"a": torch.zeros(3)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(Error, match="older torch files are pickles"):
        read(file)
    torch.save([torch.zeros(3)], file)
    with pytest.raises(Error, match="holds a list, but a checkpoint is a dict"):
        read(file)
    torch.save({3: torch.zeros(3)}, file)
    with pytest.raises(Error, match="an entry named 3, but tensors are named by text"):
        read(file)
    assert capsys.readouterr().out == ""


def test_forged_shapes_are_refused_before_memory_is_asked_for(tmp_path):
    state = {"pre_bias": torch.zeros(1).expand(2**40), "latent_bias": torch.zeros(4)}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(Error, match=r"pre_bias says shape .*holds no dense tensor of that size"):
        read(tmp_path / "a.pt")
    torch.save({"pre_bias": torch.zeros(3).to_sparse(), "latent_bias": torch.zeros(4)}, tmp_path / "a.pt")
    with pytest.raises(Error, match=r"asks for 'torch._utils _rebuild_sparse_tensor'"):
        read(tmp_path / "a.pt")
    torch.save({"pre_bias": torch.zeros(3, dtype=torch.complex64), "latent_bias": torch.zeros(4)}, tmp_path / "a.pt")
    with pytest.raises(Error, match="ComplexFloatStorage"):
        read(tmp_path / "a.pt")


def rezip(file, **changes):
    """The npz again, deflated, with members replaced."""
    with zipfile.ZipFile(file) as archive:
        members = {m.filename: archive.read(m) for m in archive.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**members, **{f"{key}.npy": data for key, data in changes.items()}}.items():
            archive.writestr(name, data)


def npy(shape, dtype="<f4", data=b""):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + data


@pytest.mark.parametrize(
    ("member", "sentence"),
    [
        (npy("(1099511627776,)"), "W_dec in params.npz says shape .*bytes do not hold"),
        (npy("(-2, -3)", data=b"\0" * 24), "says shape"),
        (npy("(1,)", "|O", b"\0" * 8), "has dtype 'object', but weights are float16"),
        (npy("(2,)", "<i4", b"\0" * 8), "has dtype 'int32'"),
        (b"nothing", "not a whole checkpoint"),
        (b"\x93NUMPY\x03\x00" + b"\0" * 40, r"npy version \(3, 0\)"),
        (npy("(25000000,)", data=b"\0" * 10**8), "but says that its members have .*, unpacked 1000"),
    ],
)
def test_hostile_npz(member, sentence, tmp_path):
    path = gemma_scope_1_files(tmp_path)
    rezip(path)
    assert read(path).format == "Gemma Scope 1"
    rezip(path, W_dec=member)
    with pytest.raises(Error, match=sentence):
        read(path)


def test_zip_members_must_fit_their_file(tmp_path):
    path = gemma_scope_1_files(tmp_path)
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 2**31)  # the declared size of the first member
    path.write_bytes(data)
    with pytest.raises(Error, match="which no checkpoint needs"):
        read(path)
    torch.save({"pre_bias": torch.zeros(3), "latent_bias": torch.zeros(3)}, tmp_path / "a.pt")
    rezip(tmp_path / "a.pt")
    with pytest.raises(Error, match="by method 8, which no checkpoint needs"):
        read(tmp_path / "a.pt")


def test_a_member_is_named_once(tmp_path):
    path = gemma_scope_1_files(tmp_path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("W_dec.npy", archive.read("W_dec.npy"))
    with pytest.raises(Error, match=r"params\.npz names a member twice"):
        read(path)


def test_without_safetensors_there_is_one_sentence(tmp_path, monkeypatch):
    path, found = saelens("standard")(tmp_path), example(px.KSparse(K))
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (lambda: read(path), lambda: write_saelens(tmp_path / "out", found)):
        with pytest.raises(Error, match=r"safetensors is missing: pip install 'proxsae\[study\]'"):
            call()


def complaint(path):
    """What `read` says of a file, which must be an `Error` or nothing."""
    try:
        read(path)
    except Error as problem:
        return str(problem)
    return ""


@pytest.mark.parametrize(
    "name", ["saelens topk", "gemma scope 1", "dictionary_learning AutoEncoderTopK", "openai TopK"]
)
def test_mutated_files_raise_nothing_but_error(name, tmp_path):
    path = WRITERS[name](tmp_path)
    files = list(tmp_path.iterdir())
    rng = np.random.default_rng(0)
    for _ in range(150):
        file = files[rng.integers(len(files))]
        good = file.read_bytes()
        bad = bytearray(good)
        for _ in range(rng.integers(1, 6)):
            bad[rng.integers(min(len(bad), 3000))] = rng.integers(256)
        if rng.random() < 0.2:
            bad = bad[: rng.integers(len(bad))]
        file.write_bytes(bad)
        said = complaint(path)
        assert not said or (str(tmp_path) in said and "\n" not in said)
        file.write_bytes(good)


def nested(kind, depth):
    part = kind()
    for _ in range(depth):
        part = [part, part] if kind is list else (part, part) if kind is tuple else OrderedDict(a=part, b=part)
    return part


@pytest.mark.parametrize("kind", [list, tuple, OrderedDict])
def test_structures_that_hold_each_other_twice_are_never_walked(kind, tmp_path):
    assert len(show(nested(kind, 60))) < 60
    path = openai("TopK")(tmp_path)
    good = torch.load(path, weights_only=True)
    torch.save({**good, "activation": nested(kind, 60)}, path)
    with pytest.raises(Error, match="puts objects into others more than 16 times"):
        read(path)
    torch.save({**good, "activation": nested(kind, 4)}, path)
    with pytest.raises(Error, match=f"activation=a {kind.__name__}, but it must be text"):
        read(path)


# ---- writing -----------------------------------------------------------------------------------------------------


def written(tmp_path, found, double=False):
    write_saelens(tmp_path / "out", found, double)
    return read(tmp_path / "out")


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_reads_back_with_the_same_codes(name, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    found = read(WRITERS[name](source))
    if isinstance(found.penalty, px.BatchKSparse):
        with pytest.raises(Error, match="set the inference threshold first"):
            saelens_layout(found)
        return
    again = written(tmp_path, found)
    tol = 1e-6 if found.tensors["W_enc"].dtype in (torch.float32, torch.float64) else 2e-3
    for got, want in zip(ours(again), ours(found), strict=True):
        assert far(got, torch.tensor(want)) < tol
    assert again.normalization == found.normalization
    assert again.metadata.items() >= {k: v for k, v in found.metadata.items() if k == "model_name"}.items()


def example(penalty):
    w = draw(11, torch.float64)
    tensors = {name: w[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    return Found("a test", tensors, penalty, "none", {"model_name": "tiny"}, ())


THETA = np.linspace(0.0, 1.5, P)
SIGNED = [px.KSparse(K), px.L1(0.4), px.L1(THETA), px.L0(0.3), px.L0(THETA**2 / 2), px.KSparse(P + 5)]


@pytest.mark.parametrize("penalty", SIGNED, ids=repr)
def test_doubling_splits_codes_by_sign(penalty, tmp_path):
    found = example(penalty)
    z, xhat = ours(found)
    twice = written(tmp_path, found, double=True)
    got, other = ours(twice)
    np.testing.assert_allclose(got, np.concatenate([np.maximum(z, 0), np.maximum(-z, 0)], axis=1), atol=1e-12)
    np.testing.assert_allclose(other, xhat, atol=1e-12)
    assert twice.penalty.nonneg


@pytest.mark.parametrize(
    "penalty", [px.L1(THETA, nonneg=True), px.L1(0.3, nonneg=True), px.L0(0.3, nonneg=True)], ids=repr
)
def test_parameters_are_folded(penalty, tmp_path):
    found = example(penalty)
    for got, want in zip(ours(written(tmp_path, found)), ours(found), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize(
    ("penalty", "double", "sentence"),
    [
        (px.L1(0.1), False, "double=True writes them at twice the width"),
        (px.L0(0.1), False, "double=True writes them at twice the width"),
        (px.KSparse(3, nonneg=True), True, "double=True is for signed codes"),
        (px.MCP(0.1), False, "has no architecture in SAELens"),
        (px.BatchKSparse(3), True, "set the inference threshold first"),
    ],
    ids=repr,
)
def test_what_cannot_be_written(penalty, double, sentence, tmp_path):
    with pytest.raises(Error, match=sentence):
        write_saelens(tmp_path / "out", example(penalty), double)
    assert list(tmp_path.iterdir()) == []


def test_the_layout_has_what_saelens_asks_for():
    config, tensors = saelens_layout(replace(example(px.KSparse(K)), normalization="constant_norm"))
    assert config == {
        "architecture": "abstopk",
        "d_in": D,
        "d_sae": P,
        "dtype": "float64",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "constant_norm_rescale",
        "reshape_activations": "none",
        "k": K,
        "rescale_acts_by_decoder_norm": False,
        "metadata": {"model_name": "tiny", "sae_lens_version": "6.54.12", "sae_lens_training_version": None},
    }
    assert {name: tuple(a.shape) for name, a in tensors.items()} == {
        "W_enc": (D, P), "W_dec": (P, D), "b_enc": (P,), "b_dec": (D,)
    }  # fmt: skip


def test_a_folder_is_replaced_only_if_it_is_an_sae(tmp_path):
    found = example(px.KSparse(K))
    write_saelens(tmp_path / "out", found)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    write_saelens(tmp_path / "out", replace(found, penalty=px.KSparse(2)))
    assert read(tmp_path / "out").penalty == px.KSparse(2)
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["cfg.json", "notes.txt", "sae_weights.safetensors"]
    sparse = tmp_path / "sparsify"
    sparse.mkdir()
    sparsify()(sparse)
    with pytest.raises(Error, match="not an SAE that may be replaced"):
        write_saelens(sparse, found)
    (tmp_path / "file").write_text("")
    with pytest.raises(Error, match="not an SAE that may be replaced"):
        write_saelens(tmp_path / "file", found)
    with pytest.raises(Error, match="cannot save to"):
        write_saelens(tmp_path / "file" / "below", found)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("nth", range(6))
def test_a_kill_while_a_folder_is_replaced_never_mixes_two_saes(nth, tmp_path, monkeypatch):
    """Every step that changes a name is one after which nothing more happens, not even a cleaning up."""
    found, other = example(px.KSparse(K)), replace(example(px.KSparse(2)), normalization="layer_norm")
    write_saelens(tmp_path / "out", found)
    calls = []

    def dying(call):
        def maybe(*arguments, **options):
            calls.append(call)
            if len(calls) > nth:
                raise Killed
            return call(*arguments, **options)

        return maybe

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "link", "rename"):
            patch.setattr(os, name, dying(getattr(os, name)))
        with contextlib.suppress(Killed, OSError):
            write_saelens(tmp_path / "out", other)
    try:
        assert read(tmp_path / "out").penalty in ((px.KSparse(K),) if nth < 5 else (px.KSparse(2),))
    except Error:
        assert not (tmp_path / "out" / "cfg.json").exists()
    write_saelens(tmp_path / "out", other)
    assert read(tmp_path / "out").penalty == px.KSparse(2)


def test_an_empty_folder_may_be_written_into(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".out-killed").mkdir()  # what a killed one left
    write_saelens(tmp_path / "out", example(px.KSparse(K)))
    assert read(tmp_path / "out").penalty == px.KSparse(K)
