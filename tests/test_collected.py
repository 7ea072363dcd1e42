"""An SAE keeps the record of the module that its rows came from, and is warned of where it is used at another."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import proxsae as px
from proxsae.cli import main
from proxsae.data import open_rows
from proxsae.models.contexts import strongest
from proxsae.models.losses import compare
from proxsae.testing import assert_same
from proxsae.training import loop
from tests.test_outliers import CLEAN, fresh, norms_of, told, trained

MODEL = '"model": {"class": "", "name": "", "weights": ""}'


class Model(nn.Module):
    """Two layers, and logits."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.head = nn.Linear(16, 20)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


@pytest.fixture
def collected(tmp_path):
    """A model, batches, the folder of the outputs of its second layer, and an SAE trained on them."""
    torch.manual_seed(0)
    model, batches = Model(), [torch.randint(20, (8, 9)) for _ in range(4)]
    px.models.collect(model, "layers.1", batches, tmp_path / "rows", skip=1)
    sae = fresh()
    px.train(sae, tmp_path / "rows", steps=5, batch_size=32, progress=False)
    return model, batches, tmp_path / "rows", sae


def test_an_sae_keeps_the_record_of_its_rows(collected, tmp_path, capsys):
    _, _, folder, sae = collected
    record = sae.metadata["collected"]
    assert (record["module"], record["at"], record["skip"]) == ("layers.1", "output", 1)
    assert record["model"]["class"] == "Model"
    assert open_rows(folder).collected == open_rows(open_rows(folder, "drop")).collected == record
    sae.save(tmp_path / "sae")
    assert px.load(tmp_path / "sae").unrolled(3).metadata["collected"] == record
    assert main(["inspect", str(tmp_path / "sae")]) == 0
    assert "the output of layers.1 of Model , skip=1" in " ".join(capsys.readouterr().out.split(" "))
    other = fresh()
    px.train(other, open_rows(folder)[:], steps=2, batch_size=32, progress=False)
    assert "collected" not in other.metadata


def test_a_run_on_collected_rows_goes_on(collected, tmp_path, monkeypatch):
    folder = collected[2]
    want = trained(folder, checkpoint=tmp_path / "a")
    monkeypatch.setattr(loop, "_step", lambda *arguments, step=loop._step: (_ for _ in ()).throw(KeyboardInterrupt)
                        if arguments[0].step == 12 else step(*arguments))  # fmt: skip
    sae = fresh()
    with pytest.raises(KeyboardInterrupt):
        px.train(sae, folder, 20, 64, checkpoint=tmp_path / "b", every=5, progress=False)
    monkeypatch.undo()
    px.train(sae, folder, 20, 64, checkpoint=tmp_path / "b", every=5, progress=False)  # the half-trained one
    for mine, other in zip(sae.parameters(), want[1], strict=True):
        assert_same(mine.detach(), other)
    assert trained(folder, checkpoint=tmp_path / "b")[0] == want[0]  # and a new one, which has no record yet


def spliced(model, batches, module, sae, **more):
    with px.models.splice(model, module, sae, **more):
        model(batches[0])


def steered(model, batches, module, sae, **more):
    with px.models.steer(model, module, sae, {3: 1.0}, **more):
        model(batches[0])


USES = {
    "splice": spliced,
    "steer": steered,
    "loss_recovered": px.models.loss_recovered,
    "ablate": lambda model, batches, module, sae, **more: px.models.ablate(model, batches, module, sae, 3, **more),
    "contexts": strongest,
    "compare": lambda model, batches, module, sae, **more: compare(
        model, batches, module, {"1": sae, "4": sae.unrolled(4)}, **more
    ),
}


@pytest.mark.parametrize("use", USES)
def test_an_sae_that_is_used_elsewhere_is_warned_of_once(collected, use):
    model, batches, _, sae = collected

    def call(module, sae=sae, model=model, **more):
        return told(lambda: USES[use](model, batches, module, sae, **more))

    assert not call("layers.1")
    (said,) = call("layers.0")
    assert said == (
        "this SAE was trained on the output of layers.1, and is now used on the output of layers.0, whose activations "
        "may be others: module='layers.1', at='output' is where its rows came from"
    )
    (said,) = call("layers.1", at="input")
    assert "is now used on the input of layers.1" in said
    assert not call("layers.0", fresh())
    whole = nn.Sequential()
    whole.model = model
    whole.forward = model.forward
    assert not call("model.layers.1", model=whole)  # the same place in a larger model
    (said,) = call("model.layers.0", model=whole)
    sae.metadata["collected"]["module"] = "model.layers.1"
    assert not call("layers.1")  # and in a part of that model
    for strange in (
        {"module": 3, "at": "output"},
        {"module": "layers.9"},
        [],
        "layers.9",
        {"module": "a", "at": ["output"]},
    ):
        sae.metadata["collected"] = strange
        assert not call("layers.0")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "[" * 100_000, '{"module": "a"}', '{"model": 3, "module": "a", "at": "output", "skip": 0}',
     f'{{{MODEL}, "module": "a", "at": "side", "skip": 0}}',
     f'{{{MODEL}, "module": "a", "at": "output", "skip": 1e999}}', None],
)  # fmt: skip
def test_a_record_that_cannot_be_understood_is_none(tmp_path, content):
    np.save(tmp_path / "x.npy", CLEAN)
    if content is None:
        (tmp_path / "collected.json").mkdir()
    else:
        (tmp_path / "collected.json").write_text(content)
    assert open_rows(tmp_path).collected is None
    assert open_rows(tmp_path / "x.npy").collected is None


def test_collect_warns_of_the_sink_that_it_collects(tmp_path):
    torch.manual_seed(0)
    model, batches = Model(), [torch.randint(1, 20, (8, 9)) for _ in range(4)]
    with torch.no_grad():
        model.embed.weight[0] *= 500
    for batch in batches:
        batch[:, 0] = 0
    (said,) = told(lambda: px.models.collect(model, "layers.0", batches, tmp_path / "a"))
    assert said.startswith("32 of 288 rows have a norm above 10 times the median of ")
    assert not told(lambda: px.models.collect(model, "layers.0", batches, tmp_path / "b", skip=1))
    record = json.loads((tmp_path / "a" / "collected.json").read_text())
    assert (record["outliers"], record["above"]) == (32, 10.0)
    assert record["norms"]["median"] == pytest.approx(np.median(norms_of(open_rows(tmp_path / "a")[:])))
