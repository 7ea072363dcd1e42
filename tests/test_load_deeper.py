"""Any trained SAE in, more steps out: every format deepens without raising its objective, and goes out again."""

import re

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae.testing import assert_close, assert_same
from tests.checkpoint_files import WRITERS

NAMES = list(WRITERS)


@pytest.fixture
def loaded(request, tmp_path):
    return px.load(WRITERS[request.param](tmp_path))


each = pytest.mark.parametrize("loaded", NAMES, indirect=True)


def rows(sae, n=64):
    x = np.random.default_rng(4).standard_normal((n, sae.d_in))
    return torch.tensor(2 * x, dtype=sae.dtype)


@each
def test_more_steps_lower_the_error_at_the_same_k_and_never_raise_the_objective(loaded):
    sae = loaded.double()
    x, R = rows(sae), loaded.penalty
    for deep in (sae.unrolled(16), sae.unrolled(16, px.ExactStep()), sae.unrolled(16, analysis="encoder")):
        F = torch.stack([point.objective(R) for point in deep.walk(x)]).detach()
        F = F if R.rowwise else F.sum(dim=1, keepdim=True)  # a selection over the batch sees it as one vector
        assert bool((F[1:] <= F[:-1] * (1 + 1e-9) + 1e-9).all())
        if deep.analysis == "dictionary":
            assert float(F[-1].sum()) < float(F[0].sum())
    deep = sae.unrolled(16, px.ExactStep())
    before, after = px.evaluate(sae, x), px.evaluate(deep, x)
    if isinstance(R, (px.KSparse, px.BatchKSparse)):
        assert after["nmse"] < before["nmse"]
        assert after["l0"] <= R.k


@each
def test_what_is_loaded_says_where_it_comes_from_and_survives_our_own_format(loaded, tmp_path):
    assert loaded.metadata["format"]
    assert all(isinstance(note, str) and "\n" not in note for note in loaded.metadata["notes"])
    loaded.save(tmp_path / "ours")
    again = px.load(tmp_path / "ours")
    x = rows(loaded)
    assert_same(again(x).detach(), loaded(x).detach())
    assert again.metadata == loaded.metadata
    assert repr(again) == repr(loaded)


@each
@pytest.mark.parametrize("double", [False, True])
def test_what_goes_out_in_saelens_layout_comes_back(loaded, double, tmp_path):
    R = loaded.penalty
    if not R.rowwise:
        with pytest.raises(px.Error, match="threshold"):
            loaded.export(tmp_path / "out", double)
        return
    signed = not R.nonneg
    if double and not signed:
        with pytest.raises(px.Error, match="double=True is for signed codes"):
            loaded.export(tmp_path / "out", double)
        return
    if signed and not double and not isinstance(R, px.KSparse):
        with pytest.raises(px.Error, match="double"):
            loaded.export(tmp_path / "out")
        return
    loaded.export(tmp_path / "out", double)
    again, x = px.load(tmp_path / "out"), rows(loaded)
    assert_close(again(x).detach(), loaded(x).detach(), 1e-4 if loaded.dtype == torch.float32 else 0.05)
    if signed and double:
        assert again.penalty.nonneg
        assert again.d_sae == 2 * loaded.d_sae


def test_steps_are_not_exported(tmp_path):
    sae = px.topk_sae(6, 10, 3).unrolled(4)
    with pytest.raises(px.Error, match=re.escape("steps=4 cannot be exported")):
        sae.export(tmp_path / "out")
    sae.unrolled(1).export(tmp_path / "out")
    assert px.load(tmp_path / "out").penalty == px.KSparse(3, nonneg=True)


def test_cfg_says_what_saelens_tools_ask_for():
    sae = px.topk_sae(6, 10, 3)
    sae.metadata = {"hook_name": "blocks.3.hook_resid_post", "hook_layer": 3, "model_name": "gpt2"}
    cfg = sae.cfg
    assert (cfg.d_in, cfg.d_sae, cfg.architecture, cfg.dtype, cfg.device) == (6, 10, "topk", "float32", "cpu")
    assert (cfg.hook_name, cfg.hook_layer, cfg.model_name) == ("blocks.3.hook_resid_post", 3, "gpt2")
    assert px.abstopk_sae(6, 10, 3).cfg.architecture == "abstopk"
    assert sae.dtype == torch.float32
    assert sae.device == torch.device("cpu")


@pytest.mark.parametrize(
    "R", [px.BatchKSparse(2), px.L1(0.1), px.L0(0.1), px.MCP(0.1), px.GroupL2(0.1, 2)], ids=lambda R: type(R).__name__
)
def test_cfg_is_there_for_every_penalty_and_looks_at_no_weight(R):
    sae = px.SAE(6, 10, R)
    sae.b_enc.data.fill_(torch.nan)
    assert (sae.cfg.architecture, sae.cfg.d_sae, sae.cfg.hook_name) == (None, 10, None)


def test_an_export_says_where_the_sae_reads(tmp_path):
    (tmp_path / "in").mkdir()
    px.load(WRITERS["batchtopk topk"](tmp_path / "in")).export(tmp_path / "out")
    cfg = px.load(tmp_path / "out").cfg
    assert (cfg.hook_name, cfg.hook_layer, cfg.model_name) == ("blocks.3.hook_resid_pre", 3, "tiny")


def test_a_file_of_a_folder_stands_for_it_and_a_run_for_its_sae(tmp_path):
    for name, file in {"saelens topk": "cfg.json", "sparsify": "cfg.json", "batchtopk topk": "config.json"}.items():
        folder = tmp_path / name
        folder.mkdir()
        WRITERS[name](folder)
        assert repr(px.load(folder / file)) == repr(px.load(folder))
    px.load(tmp_path / "sparsify" / "sae.safetensors")
    px.topk_sae(6, 10, 3).save(tmp_path / "run" / "sae")
    for file in ("sae.json", "sae.safetensors"):
        assert px.load(tmp_path / "run" / "sae" / file).penalty == px.KSparse(3, nonneg=True)
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"")
    assert px.load(tmp_path / "run").penalty == px.KSparse(3, nonneg=True)


def test_a_half_told_path_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none", tmp_path / "none.pt"):
        with pytest.raises(px.Error, match=re.escape(str(path))) as error:
            px.load(path)
        assert "\n" not in str(error.value)


def test_a_threshold_beyond_the_dtype_of_the_weights_switches_its_latents_off(tmp_path):
    path = WRITERS["batchtopk jumprelu"](tmp_path)
    file = tmp_path / "sae.pt"
    state = torch.load(file)
    name = next(key for key in state if "threshold" in key)
    state[name] = torch.full_like(state[name], 89.0, dtype=torch.float64)  # its exponential is no float32
    torch.save({key: a if key == name else a.float() for key, a in state.items()}, file)
    sae = px.load(path)  # no float32 is above it
    assert not sae.encode(torch.full((1, sae.d_in), 1e6)).any()
