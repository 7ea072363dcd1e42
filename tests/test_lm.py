"""`proxsae lm` and `px.models` on models of transformers: tiny random ones, made here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import zstandard
from torch.nn import functional

import proxsae as px
from proxsae.cli import main
from proxsae.data import open_rows
from proxsae.models import collect, loss_recovered, splice, steer
from proxsae.models.contexts import AROUND, strongest
from proxsae.models.huggingface import labelled_texts, open_model, texts, token_batches

WORDS = [
    "the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "red", "blue", "and", "then", "it", "was",
    "small", "big", ".", ",",
]  # fmt: skip
D = 16


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS) + 3, hidden_size=D, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def folder(llama, tmp_path_factory):
    """The model with a tokenizer of words, as a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    home = tmp_path_factory.mktemp("llama")
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", "<s>", "</s>", *WORDS])}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.save_pretrained(home)
    llama.save_pretrained(home)
    return home


@pytest.fixture
def sae(tmp_path):
    torch.manual_seed(1)
    sae = px.abstopk_sae(D, 40, k=4)
    sae.save(tmp_path / "sae")
    return sae


def story(n=60, seed=0):
    return " ".join(np.random.default_rng(seed).choice(WORDS, n))


@pytest.fixture
def text(tmp_path):
    (tmp_path / "a.txt").write_text(story())
    lines = [json.dumps({"id": i, "text": story(20, i)}) for i in range(4)]
    (tmp_path / "b.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "c.csv").write_text("label,prompt\n" + "".join(f'1,"{story(10, i)}"\n' for i in range(3)))
    return [str(tmp_path / name) for name in ("a.txt", "b.jsonl", "c.csv")]


# the models


def test_a_causal_model_is_measured_and_generates_alike_with_and_without_its_cache(llama, sae):
    ids = torch.randint(3, 20, (4, 10), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0  # padded on the left, as for generation
    found = loss_recovered(llama, [{"input_ids": ids, "attention_mask": mask}], "model.layers.1", sae, skip=1)
    with splice(llama, "model.layers.1", sae, skip=1), torch.no_grad():
        inside = llama(input_ids=ids, attention_mask=mask).logits
    loss, count = 0.0, 0
    for row, real in enumerate(mask):
        start = int((real == 0).sum())
        loss += float(functional.cross_entropy(inside[row, start + 1 : -1], ids[row, start + 2 :], reduction="sum"))
        count += 10 - start - 2
    assert found["tokens"] == count
    assert found["loss_spliced"] == pytest.approx(loss / count, rel=1e-5)

    def written(cached, latents):
        with steer(llama, "model.layers.1", sae, latents, skip=1):
            return llama.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False, use_cache=cached, pad_token_id=2
            )

    changed = written(True, {3: 50.0, 9: "flip"})
    assert torch.equal(changed, written(False, {3: 50.0, 9: "flip"}))
    assert not torch.equal(changed, written(True, {}))


def test_encoder_models_give_their_activations(sae, tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=D, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.BertModel(config).eval()
    ids, mask = torch.randint(30, (3, 7)), torch.ones(3, 7, dtype=torch.int64)
    mask[2, 4:] = 0
    collect(model, "encoder.layer.1", [{"input_ids": ids, "attention_mask": mask}], tmp_path / "rows")
    with torch.no_grad():
        states = model(ids, mask, output_hidden_states=True).hidden_states[2]
    assert np.array_equal(open_rows(tmp_path / "rows")[:], states[mask == 1].numpy())
    with splice(model, "encoder.layer.1", sae):
        assert model(ids, mask).last_hidden_state.shape == (3, 7, D)
    with pytest.raises(px.Error, match="but a loss needs logits"):
        loss_recovered(model, [ids], "encoder.layer.1", sae)


# texts and tokens


def test_texts_of_all_kinds_of_files(text, tmp_path):
    found = list(texts(text))
    assert found == [story(), *(story(20, i) for i in range(4)), *(story(10, i) for i in range(3))]
    (tmp_path / "c.csv.zst").write_bytes(zstandard.ZstdCompressor().compress((tmp_path / "c.csv").read_bytes()))
    assert list(texts([str(tmp_path / "c.csv.zst")])) == found[5:]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"words": "x"}\n',
            r"a.jsonl has a row without a field text, prompt, content: its fields are words",
        ),
        ("a.jsonl", b"not json\n", r"a.jsonl has a line that is not JSON"),
        ("a.csv", b"one,two\n1,2\n", r"a.csv has a row without a field .* its fields are one, two"),
        ("a.txt", b"\xff\xfe\x00", r"a.txt is not a text in UTF-8"),
        ("missing.txt", None, r"cannot read .*missing.txt: No such file"),
    ],
)
def test_texts_that_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(px.Error, match=message):
        list(texts([str(tmp_path / name)]))


def test_tokens_are_cut_into_rows_that_begin_as_the_tokenizer_begins(folder):
    _, tokenizer = open_model(str(folder))
    batches = list(token_batches([story(30), "", story(5, 1)], tokenizer, length=9, rows=3))
    rows = [
        ids[real == 1].tolist() for b in batches for ids, real in zip(b["input_ids"], b["attention_mask"], strict=True)
    ]
    assert [len(row) for row in rows] == [6, 7, 9, 9, 9]  # 30 words at 8 a row, and 5: the short ones come first
    assert all(row[0] == 1 for row in rows)
    in_order = [*rows[2:], rows[1]]
    assert [i for row in in_order for i in row[1:]] == [WORDS.index(w) + 3 for w in story(30).split()]
    many = [story(7 * n % 19 + 1, n) for n in range(19)] * 40
    batches = list(token_batches(many, tokenizer, length=32, rows=4))
    real = sum(int(b["attention_mask"].sum()) for b in batches)
    assert real == sum(len(text.split()) + 1 for text in many)
    assert real > 0.9 * sum(b["input_ids"].numel() for b in batches)  # 0.62 as the texts come
    few = list(token_batches([story(30)], tokenizer, length=9, rows=1, tokens=10))
    assert sum(int(b["attention_mask"].sum()) for b in few) == 18  # whole rows
    with pytest.raises(px.Error, match="there is no text"):
        list(token_batches(["", "  "], tokenizer))


# contexts


@pytest.mark.parametrize("size", [1, 4])
def test_the_strongest_contexts_are_those_of_a_sort(llama, folder, sae, size):
    _, tokenizer = open_model(str(folder))
    batches = list(token_batches([story(80), story(20, 2)], tokenizer, length=17, rows=size))
    table, tokens = strongest(llama, batches, "model.layers.1", sae, count=5, skip=1)
    codes, rows = [], []
    for batch in batches:
        for ids, real in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            ids = ids[real == 1]
            with torch.no_grad():
                states = llama(ids[None], output_hidden_states=True).hidden_states[2][0]
                codes.append(sae.encode(states[1:]))
            rows += [(ids.tolist(), t) for t in range(1, len(ids))]
    codes = torch.cat(codes)
    assert tokens == len(codes) == len(rows)
    for one in table:
        z = codes[:, one.latent]
        assert (one.up, one.down) == (int((z > 0).sum()), int((z < 0).sum()))
        for sign, shown in ((1, one.positive), (-1, one.negative)):
            values = sorted(((sign * v, i) for i, v in enumerate(z.tolist()) if sign * v > 0), reverse=True)[:5]
            assert [c.value for c in shown] == pytest.approx([sign * v for v, _ in values], rel=1e-4)
            for context in shown:  # where codes are equal, as at equal beginnings, any of them will do
                alike = [rows[i] for i, v in enumerate(z.tolist()) if v == pytest.approx(context.value, rel=1e-4)]
                around = [(ids[max(0, t - AROUND) : t + AROUND // 2 + 1], ids[t]) for ids, t in alike]
                assert (list(context.ids), context.ids[context.at]) in around


# the command


def run(*arguments):
    return main(["lm", *map(str, arguments)])


PLACE = ("--module", "model.layers.1", "--length", "16", "--batch-size", "2")


def test_collect_train_and_eval_end_in_a_table(folder, text, tmp_path, capsys):
    rows = tmp_path / "rows"
    assert run("collect", folder, *text, *PLACE, "--tokens", 100, "--out", rows) == 0
    printed = capsys.readouterr().out
    assert f"rows of 16 in {rows}, of " in printed
    assert json.loads((rows / "collected.json").read_text())["skip"] == 1
    sae = px.topk_sae(D, 32, k=4)
    px.train(sae, open_rows(rows), steps=10, batch_size=16)
    sae.save(tmp_path / "sae")
    out = tmp_path / "eval"
    assert run("eval", folder, tmp_path / "sae", *text, *PLACE, "--steps", "1,4", "--out", out) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[-2:]] == ["1", "4"]
    saved = json.loads((out / "rows.json").read_text())
    assert saved["meta"]["command"].startswith("proxsae ")
    model, tokenizer = open_model(str(folder))
    batches = list(token_batches(texts(text), tokenizer, 16, 2))
    want = loss_recovered(model, batches, "model.layers.1", sae.unrolled(4, px.ExactStep()), skip=1)
    assert {name: value for name, value in saved["rows"][1].items() if name != "steps"} == pytest.approx(want)


def test_top_writes_a_page_with_both_signs(folder, text, sae, tmp_path, capsys):
    assert run("top", folder, tmp_path / "sae", *text, *PLACE, "--latents", "3,0", "--out", tmp_path / "top") == 0
    page = (tmp_path / "top" / "report.html").read_text()
    assert "Latent 3" in page
    assert page.index("Latent 3") < page.index("Latent 0")
    assert "z &gt; 0" in page
    assert "z &lt; 0" in page
    assert "\u27e6" in page
    assert run("top", folder, tmp_path / "sae", *text, *PLACE, "--latents", "40", "--out", tmp_path / "no") == 2
    assert "--latents 40 must be below 40" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_steer_writes_three_texts(folder, sae, tmp_path, capsys):
    given = ("--module", "model.layers.1", "--latent", 3, "--value", 60, "--prompt", "the cat", "--new", 6)
    assert run("steer", folder, tmp_path / "sae", *given) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["z_3 = -60", "z_3 = 0", "z_3 = 60"]
    assert all("the cat" in line for line in lines)
    assert len({line.split(":")[1] for line in lines}) == 3


@pytest.fixture
def labelled(tmp_path):
    """240 texts of 1 to 12 words that end in "red", label 1, or in "blue"; the first ten have no word but that."""
    rng = np.random.default_rng(0)
    found = [(" ".join([*rng.choice(WORDS, rng.integers(1, 12)), ("blue", "red")[i % 2]]), i % 2) for i in range(240)]
    found[:10] = [(text.split()[-1], label) for text, label in found[:10]]
    lines = [json.dumps({"prompt": text, "target": label}) for text, label in found]
    (tmp_path / "labelled.jsonl").write_text("\n".join(lines))
    return tmp_path / "labelled.jsonl"


PROBE = ("--module", "model.layers.1", "--length", 8, "--batch-size", 32, "--steps", "1,4", "--k", "1,3", "--skip", 2)


def test_probe_is_that_of_the_library_on_the_last_tokens(llama, folder, sae, labelled, tmp_path, capsys):
    out = tmp_path / "probe"
    assert run("probe", folder, tmp_path / "sae", labelled, *PROBE, "--out", out) == 0
    printed = capsys.readouterr().out.splitlines()
    said = "230 texts, 130 to train on and 99 for the test; 10 with no token beyond the first 2 are left out"
    assert printed[:2] == [said, "the positive class is '1'"]
    _, tokenizer = open_model(str(folder))
    x, y = [], []
    for line in labelled.read_text().splitlines()[10:]:
        row = json.loads(line)
        ids = tokenizer(row["prompt"])["input_ids"]
        ids = [ids[0], *ids[1:][-7:]]  # the first token of the tokenizer, and the end of the text
        with torch.no_grad():
            x.append(llama(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0, -1])
        y.append(row["target"])
    x = torch.stack(x)
    saved = json.loads((out / "rows.json").read_text())
    assert [row["steps"] for row in saved["rows"]] == [1, 1, 4, 4]
    for row in saved["rows"]:
        (want,) = px.models.probe(sae.unrolled(row["steps"], px.ExactStep()), x, y, ks=(row["k"],))
        assert {name: row[name] for name in ("k", "auc", "accuracy", "f1")} == pytest.approx(
            {name: want[name] for name in ("k", "auc", "accuracy", "f1")}, abs=0.03
        )
        assert row["latents"].split()[0] == str(want["latents"][0])
    dense = px.models.dense_probes(x, y)
    assert saved["meta"]["difference in means"] == pytest.approx(dense["difference in means"], abs=1e-3)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ('{"text": "the cat"}\n', (), "has a row without a field label, target: its fields are text"),
        ('{"text": "the cat", "label": 1.5}\n', (), "has a row without a field label, target: its fields are text"),
        ("", (), "has no text of more than 2 tokens: give longer texts"),
        ('{"text": "", "label": 1}\n', (), "has no text of more than 2 tokens: give longer texts"),
        ('{"text": "a cat", "label": 1}\n' * 9, (), "labels has 1 classes ('1'), but needs two"),
        (None, ("--k", "41"), "k=41 exceeds the 40 latents of this SAE"),
        (None, ("--k", "0"), "--k '0' must be whole numbers >= 1"),
        (None, ("--seed", "-1"), "seed=-1 must be a whole number >= 0"),
    ],
)
def test_mistakes_of_probe_are_one_sentence(folder, sae, labelled, tmp_path, capsys, content, options, message):
    if content is not None:
        labelled.write_text(content)
    assert run("probe", folder, tmp_path / "sae", labelled, *PROBE, *options, "--out", tmp_path / "out") == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_sae_of_another_module_is_noted_once(folder, text, labelled, sae, tmp_path, capsys):
    sae.metadata["collected"] = {"module": "model.layers.2", "at": "output"}
    sae.save(tmp_path / "sae")
    given = ("--module", "model.layers.1", "--latent", 3, "--value", 60, "--prompt", "the cat", "--new", 2)
    capsys.readouterr()
    for arguments in (
        ("steer", folder, tmp_path / "sae", *given),
        ("eval", folder, tmp_path / "sae", *text, *PLACE, "--steps", "1,4"),
        ("top", folder, tmp_path / "sae", *text, *PLACE, "--latents", "3", "--out", tmp_path / "top"),
        ("probe", folder, tmp_path / "sae", labelled, *PROBE),
    ):
        assert run(*arguments) == 0
        (said,) = [line for line in capsys.readouterr().err.splitlines() if "note" in line]
        assert said.startswith(
            "note: this SAE was trained on the output of model.layers.2, and is now used on the output"
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--module": "model.layer.1"}, "the model has no module 'model.layer.1': did you mean model.layers.1"),
        ({"--module": "lm_head"}, "lm_head has activations of width 23, but this SAE needs 16"),
        ({"--length": "70"}, "tokens a row, but the model's context is 64"),
        ({"--tokens": "0"}, "--tokens=0 must be a whole number >= 1"),
        ({"--skip": "-1"}, "--skip=-1 must be a whole number >= 0"),
        ({"--steps": "0"}, "--steps '0' must be whole numbers >= 1"),
        ({"model": "nowhere"}, "cannot read nowhere: No such file"),
        ({"model": "empty"}, "transformers cannot read the model"),
    ],
)
def test_mistakes_are_one_sentence(folder, text, sae, tmp_path, capsys, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    given = {"--module": "model.layers.1", "--length": "16", "--steps": "1", **change}
    model = given.pop("model", str(folder))
    if change.get("--length"):
        (tmp_path / "a.txt").write_text(story(200))
    assert run("eval", model, "sae", *text, *(part for pair in given.items() for part in pair)) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.startswith("proxsae: ")
    assert len(printed.splitlines()) == 1


# the study


STUDY = ("--parts", "model", "--seeds", "1", "--train-steps", "3", "--train-depths", "1", "--d-sae", "32", "--k", "4")
LOOP = {"--module": "model.layers.1", "--model-tokens": "60", "--skip": "1"}


def study(rows, model, text, out, **changes):
    given = [part for name, value in (LOOP | changes).items() if value is not None for part in (name, value)]
    return main(["depth", "--data", rows, *(("--model", str(model)) if model else ()), *given,
                 *(("--text", *text) if text else ()), *STUDY, "--out", str(out)])  # fmt: skip


@pytest.fixture
def rows(llama, folder, text, tmp_path):
    _, tokenizer = open_model(str(folder))
    collect(llama, "model.layers.1", token_batches(texts(text), tokenizer, 16), tmp_path / "rows", skip=1)
    return str(tmp_path / "rows")


def test_a_study_takes_the_model_into_the_loop(folder, text, rows, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("proxsae.studies.parts.depth.measure.TRAINING", {"abstopk": 1.0})
    monkeypatch.setattr("proxsae.studies.parts.model.measure.PENALTIES", ("abstopk",))
    lines = ["label,text", *(f'{"ab"[i % 2]},"{story(3 + i % 5, i)} {WORDS[i % 2]}"' for i in range(110))]
    labelled = str(tmp_path / "labelled.csv")
    Path(labelled).write_text("\n".join(lines))
    assert study(rows, folder, text, tmp_path / "out", **{"--labels": labelled}) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Does it help the model?" in printed
    assert "The model's own loss is" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert "output of model.layers.1, first tokens left alone: 1" in page
    assert (
        f"--model {folder} --module model.layers.1 --labels {labelled} --model-tokens 60 --text {' '.join(text)}"
        in page
    )
    saved = json.loads((tmp_path / "out" / "rows.json").read_text())["rows"]
    model, tokenizer = open_model(str(folder))
    batches = list(token_batches(texts(text), tokenizer, tokens=60))
    sae = px.load(tmp_path / "out" / "saes" / "abstopk-train1-seed0")
    want = loss_recovered(model, batches, "model.layers.1", sae.unrolled(16, px.ExactStep()), skip=1)
    probed = [row for row in saved if row.get("kind") == "probe"]
    kept = labelled_texts(labelled, tokenizer, 128, 8, 1)
    x = px.models.last_tokens(model, "model.layers.1", kept.batches, skip=1)[kept.places]
    first = px.models.probe(sae, x, kept.labels, ks=(4,))[0]
    (one,) = (row for row in probed if (row["steps"], row["k"]) == (1, 4))
    assert (one["auc"], one["f1"]) == pytest.approx((first["auc"], first["f1"]), abs=0.02)
    (row,) = (row for row in saved if row["part"] == "model" and row["kind"] == "loss" and row["steps"] == 16)
    assert (row["loss_spliced"], row["kl"]) == pytest.approx((want["loss_spliced"], want["kl"]), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--module": None}, "--model needs --module: the module that the rows come from"),
        ({"text": ()}, "--model needs --text: texts to run it on"),
        ({"model": None}, "--module is for a study on a language model: give --model too"),
        ({"model": None, "--module": None, "text": ()}, "--skip is for a study on a language model: give --model too"),
        ({"--module": "lm_head"}, "lm_head has activations of width 23, but the rows have 16: collect rows of that"),
        ({"--model-tokens": "0"}, "--model-tokens=0 must be a whole number >= 1"),
        ({"text": ("nowhere.txt",)}, "cannot read nowhere.txt: No such file"),
        ({"model": "nowhere"}, "cannot read nowhere: No such file"),
    ],
)
def test_mistakes_of_a_study_are_one_sentence(folder, text, rows, tmp_path, capsys, change, message):
    given = {"model": folder, "text": text} | change
    capsys.readouterr()
    assert study(rows, out=tmp_path / "out", **given) == 2
    printed = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]
    assert len(printed) == 1
    assert printed[0].startswith("proxsae: ")
    assert message in printed[0]
    assert not (tmp_path / "out").exists()


def test_a_study_of_one_sae_points_to_lm_eval(folder, sae, tmp_path, capsys):
    assert main(["depth", "--sae", str(tmp_path / "sae"), "--model", str(folder)]) == 2
    assert "for one SAE use proxsae lm eval MODEL SAE TEXT --module NAME" in capsys.readouterr().err


def test_lm_alone_says_what_there_is(capsys):
    assert run() == 2
    assert "lm collect, lm eval, lm top, lm steer or lm probe" in capsys.readouterr().err
