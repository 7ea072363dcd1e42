"""An SAE by the name it has on a model hub, from the cache on this machine, which is written here as its tools do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae import hub
from proxsae.cli import main
from proxsae.testing import assert_same

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def sae():
    torch.manual_seed(0)
    return px.abstopk_sae(8, 24, k=3)


@pytest.fixture
def cached(sae, tmp_path, monkeypatch):
    """An SAE at the root of a model and one in a folder, whose files are links to blobs."""
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = tmp_path / ".cache/huggingface/hub/models--org--my.sae"
    (model / "blobs").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs/main").write_text(COMMIT)
    for i, folder in enumerate(("", "layer_3/width_24")):
        sae.save(tmp_path / "saved")
        place = model / "snapshots" / COMMIT / folder
        place.mkdir(parents=True, exist_ok=True)
        for file in (tmp_path / "saved").iterdir():
            blob = model / "blobs" / f"{i}{file.name}"
            file.rename(blob)
            (place / file.name).symlink_to(os.path.relpath(blob, place))
        (tmp_path / "saved").rmdir()
    return model


@pytest.mark.parametrize("name", ["org/my.sae", "org/my.sae/layer_3/width_24", "org/my.sae/layer_3/width_24/sae.json"])
def test_an_sae_is_found_by_its_name(name, cached, sae, tmp_path, monkeypatch):
    x = torch.randn(5, 8)
    want = sae(x).detach()
    assert_same(px.load(name)(x).detach(), want)
    moved = tmp_path / "elsewhere"
    (tmp_path / ".cache/huggingface").rename(moved)
    with pytest.raises(px.Error, match="no such model in"):
        px.load(name)
    monkeypatch.setenv("HF_HOME", str(moved))
    assert_same(px.load(name)(x).detach(), want)
    monkeypatch.setenv("HF_HOME", "nowhere")
    monkeypatch.setenv("HF_HUB_CACHE", str(moved / "hub"))
    assert_same(px.load(name)(x).detach(), want)


def test_the_commit_is_that_of_main_or_the_only_one(cached, sae):
    other = cached / "snapshots" / COMMIT[::-1]
    other.mkdir()
    assert hub.find("org/my.sae") == cached / "snapshots" / COMMIT
    (cached / "refs/main").write_text("../../../etc")
    with pytest.raises(px.Error, match="no such model"):
        px.load("org/my.sae/layer_3")
    other.rmdir()
    assert hub.find("org/my.sae") == cached / "snapshots" / COMMIT


def test_what_is_here_goes_before_what_is_in_the_cache(cached, sae, tmp_path):
    deep = sae.unrolled(3)
    deep.save(tmp_path / "org/my.sae")
    assert px.load("org/my.sae").steps == 3
    assert px.load(tmp_path / "org/my.sae").steps == 3


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("org/other", r"hf download org/other \(pip"),
        ("org/my.sae/layer_4", r'hf download org/my.sae --include "layer_4\*" \(pip'),
    ],
)
def test_what_the_cache_does_not_hold_is_refused_with_the_command_that_fetches_it(name, command, cached, capsys):
    with pytest.raises(px.Error, match=rf"^{name}: there is no such file or folder, .*{command}"):
        px.load(name)
    (cached / "text").touch()
    lm = ["lm", "eval", str(cached), name, str(cached / "text"), "--module", "layers.0"]
    for arguments in (["inspect", name], ["depth", "--sae", name], ["convert", name, "out"], lm):
        assert main(arguments) == 2
        told = capsys.readouterr().err
        assert "hf download" in told
        assert told.count("\n") == 1


@pytest.mark.parametrize("path", ["../org/my.sae", "org/../my.sae", "org/..", "./a", "/org/my.sae", "one", "o r/g"])
def test_paths_stay_paths(path, cached):
    assert hub.find(path) == Path(path)
    assert hub.find("org//my.sae/") == hub.find("org/my.sae") != Path("org/my.sae")


@pytest.mark.parametrize("length", [250, 5000])  # too long in the cache, and anywhere
def test_names_that_are_too_long_are_told_in_one_sentence(length, cached, capsys):
    for arguments in (["inspect"], ["depth", "--sae"]):
        assert main([*arguments, "org/" + "a" * length]) == 2
        told = capsys.readouterr().err
        assert "File name too long" in told or "o such file" in told
        assert told.count("\n") == 1


def test_commands_take_names(cached, tmp_path, capsys):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(40, 8)).astype("float32"))
    assert main(["inspect", "org/my.sae"]) == 0
    assert "AbsTopK" in capsys.readouterr().out
    assert main(["eval", "org/my.sae", "rows.npy", "--steps", "1,2"]) == 0
    assert main(["convert", "org/my.sae", "copy"]) == 0
    assert json.loads((tmp_path / "copy/sae.json").read_text())["d_sae"] == 24
    train = ["train", "rows.npy", "--out", "run", "--init", "org/my.sae", "--steps", "2", "--batch-size", "8"]
    assert main(train) == 0


def test_looking_up_loads_no_torch():
    code = "import sys, proxsae.hub; proxsae.hub.find('one'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Where the weights go, and as what


def test_an_sae_is_loaded_in_another_dtype(sae, tmp_path):
    sae.save(tmp_path / "sae")
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        again = px.load(tmp_path / "sae", dtype=dtype)
        assert_same(again.W_enc.detach(), sae.W_enc.detach().to(dtype))
        assert {a.dtype for a in again.state_dict().values()} == {dtype}
    assert px.load(tmp_path / "sae").dtype == torch.float32


def test_an_sae_is_loaded_on_a_device(sae, tmp_path, device):
    sae.save(tmp_path / "sae")
    for given in (device, torch.device(device)):
        assert px.load(tmp_path / "sae", given).W_dec.device.type == torch.device(device).type
    assert px.load(tmp_path / "sae", device, torch.float64).dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": torch.int32}, r"dtype=torch.int32 must be one of torch.float64"),
        ({"dtype": "float16"}, r"dtype='float16' must be one of"),
        ({"device": "nowhere"}, r"device='nowhere' cannot hold the SAE, but must be cpu, cuda or cuda:N"),
        ({"device": "cuda:77"}, r"device='cuda:77' cannot hold the SAE"),
        ({"device": "meta"}, r"device='meta' cannot hold the SAE, but must be cpu, cuda or cuda:N"),
    ],
)
def test_other_dtypes_and_devices_are_refused(options, said, sae, tmp_path):
    sae.save(tmp_path / "sae")
    with pytest.raises(px.Error, match=said) as error:
        px.load(tmp_path / "sae", **options)
    assert "\n" not in str(error.value)


def test_weights_beyond_the_range_of_the_dtype_are_refused(sae, tmp_path):
    with torch.no_grad():
        sae.b_dec.fill_(1e5)
    sae.save(tmp_path / "sae")
    with pytest.raises(px.Error, match="b_dec holds"):
        px.load(tmp_path / "sae", dtype=torch.float16)
    assert px.load(tmp_path / "sae", dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("write", [px.SAE.save, px.SAE.export])
def test_what_is_no_path_is_not_written_to(write, sae):
    for folder in (3, None, b"x"):
        with pytest.raises(px.Error, match="must be the path of a file or folder"):
            write(sae, folder)
