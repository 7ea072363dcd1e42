"""The part of a study on a language model: what is measured of it, judged by hand, and that a study goes on."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import proxsae as px
from proxsae.studies import study
from proxsae.studies.density import with_lam
from proxsae.studies.loop import Loop, States, opened
from proxsae.studies.parts.claims import section as claims
from proxsae.studies.parts.claims.statistics import CANNOT, NO, OPEN, YES
from proxsae.studies.parts.depth import measure as depth_part
from proxsae.studies.parts.model import contexts as judges
from proxsae.studies.parts.model import measure
from proxsae.studies.parts.model import section as report
from proxsae.studies.parts.model.contexts import HALF, Sides, apart, contexts, steering, two_sides
from proxsae.studies.request import Request
from proxsae.studies.sections import sections
from proxsae.studies.task import Setting

V, D, P, K = 40, 16, 32, 4
MODULE = "layers.1"


CAUSAL = torch.ones(64, 64, dtype=torch.bool).triu(1)


class Model(nn.Module):
    """A causal transformer of three layers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, D)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(D, 2, 32, 0.0, batch_first=True) for _ in range(3))
        self.head = nn.Linear(D, V)

    def forward(self, input_ids, attention_mask=None):
        s = input_ids.shape[1]
        hidden, later = self.embed(input_ids), CAUSAL[:s, :s]
        padding = None if attention_mask is None else attention_mask == 0
        for layer in self.layers:
            hidden = layer(hidden, later, padding)
        return self.head(hidden)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture(scope="module")
def text():
    return [torch.randint(3, V, (6, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]


@pytest.fixture(scope="module")
def rows(model, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    px.models.collect(model, MODULE, text, folder, skip=1)
    return str(folder)


@pytest.fixture
def few(monkeypatch):
    """Two SAEs and two numbers of steps, so that a study takes a second."""
    monkeypatch.setattr(depth_part, "TRAINING", {"jumprelu": 1.0, "abstopk": 1.0})
    for part in (depth_part, measure):
        monkeypatch.setattr(part, "STEPS", (1, 3))
    monkeypatch.setattr(measure, "PENALTIES", ("abstopk", "jumprelu"))


def depth(rows, model, text, out=None, **changes):
    given = {
        "model": model, "module": MODULE, "text": text, "model_tokens": 300, "d_sae": P, "k": K, "seeds": 1,
        "train_steps": 5, "train_depths": (1,), "parts": ("model",), "progress": False,
    }  # fmt: skip
    return px.studies.depth(rows, out=out, **(given | changes))


# what is measured


def test_the_strongest_codes_of_either_sign_in_either_half_are_those_of_a_sort():
    rng = np.random.default_rng(0)
    z = torch.tensor(rng.normal(size=(90, 20)) * (rng.random((90, 20)) < 0.4))
    sequence = torch.tensor(np.repeat(np.arange(9), 10))
    found = {one.latent: one for one in two_sides(z, sequence)}
    expected = {}
    for j in range(20):
        cells = []
        for rows_of in ([i for i in range(90) if sequence[i] <= 4], [i for i in range(90) if sequence[i] > 4]):
            for sign in (1, -1):
                ranked = sorted((i for i in rows_of if sign * z[i, j] > 0), key=lambda i: -abs(float(z[i, j])))
                cells.append(ranked[:HALF])
        if all(len(cell) == HALF for cell in cells):
            expected[j] = cells
    assert 0 < len(expected) < 20
    assert found.keys() == expected.keys()
    for j, one in found.items():
        assert one.rows.reshape(4, HALF).tolist() == expected[j]
        assert one.value == pytest.approx(np.mean([abs(float(z[i, j])) for cell in expected[j] for i in cell]))
    assert two_sides(z, torch.zeros(90)) == [], "one text has no two halves"


def test_a_probe_learns_from_one_half_and_is_judged_on_the_other():
    rng = np.random.default_rng(0)
    noise = torch.tensor(rng.normal(size=(2, 2, HALF, 6)))
    planted = noise.clone()
    planted[:, 0, :, 2] += 50
    assert apart(planted) == 1
    planted[1] = planted[1].flip(0)
    assert apart(planted) == 0, "the other half says the opposite"
    told = np.mean([apart(torch.tensor(rng.normal(size=(2, 2, HALF, 6)))) >= judges.TOLD for _ in range(1500)])
    assert told == pytest.approx(4 / 252, abs=0.01), "the chance that the report names"


def states(token, below):
    n = len(token)
    return States(torch.zeros(n, 2), below, token, torch.full((n,), -1), torch.arange(n))


def test_contexts_are_told_apart_by_tokens_and_by_what_lies_below():
    side = torch.arange(4 * HALF).reshape(2, 2, HALF)
    of = [Sides(0, side, 1.0)]
    positive = (torch.arange(4 * HALF) // HALF % 2 == 0).long()
    nothing = torch.zeros(4 * HALF, 3)
    apart_by_both = contexts(states(positive, positive[:, None].float() + nothing), of)
    assert (apart_by_both["by_tokens"], apart_by_both["by_probe"], apart_by_both["shared"]) == (1, 1, 0)
    same = contexts(states(torch.zeros_like(positive), nothing), of)
    assert (same["by_tokens"], same["by_probe"], same["auc_probe"], same["shared"]) == (0, 0, 0.5, 1)
    fresh = contexts(states(torch.arange(4 * HALF), nothing[:, :0]), of)
    assert (fresh["by_tokens"], fresh["auc_tokens"], fresh["shared"]) == (0, 0.5, 0), "tokens that never come again"
    assert (fresh["by_probe"], fresh["latents"]) == (None, 1)
    assert contexts(states(positive, nothing), [])["by_tokens"] is None


class Readout(nn.Module):
    """Embedding, a place, logits: what a change at the place does to log-probabilities is known."""

    def __init__(self):
        super().__init__()
        self.embed, self.place, self.head = nn.Embedding(V, D), nn.Identity(), nn.Linear(D, V, bias=False)

    def forward(self, ids):
        return self.head(self.place(self.embed(ids)))


@torch.no_grad()
def test_steering_is_judged_by_what_follows_on_the_contexts():
    torch.manual_seed(0)
    model, sae = Readout(), px.abstopk_sae(D, P, K)
    ids = [torch.randint(V, (3, 20))]
    loop = Loop(model, "place", ids, "output", 1, 60, 1.0)
    spots = torch.randperm(57)[: 4 * 4 * HALF].reshape(-1)[: 2 * 4 * HALF].reshape(2, 2, 2, HALF)
    sides = [Sides(latent, spots[i], 3.0) for i, latent in enumerate((5, 9))]
    effect = {}
    after = loop.states.next
    for one, other in itertools.product(sides, repeat=2):
        move = 2 * one.value * model.head.weight @ sae.W_dec[one.latent]  # logits at +v less those at -v
        up, down = (after[other.rows[:, side].flatten()] for side in (0, 1))
        effect[one.latent, other.latent] = float(move[up[up >= 0]].mean() - move[down[down >= 0]].mean())
    found = steering(loop, sae, sides, seed=0)
    own, others = [effect[5, 5], effect[9, 9]], [effect[5, 9], effect[9, 5]]
    assert found["latents"] == 2
    assert found["effect"] == pytest.approx(np.mean(own), rel=1e-3)
    assert found["effect_other"] == pytest.approx(np.mean(others), rel=1e-3)
    assert found["steered"] == np.mean([e > 0 for e in own])
    assert found["steered_other"] == np.mean([e > 0 for e in others])
    assert steering(loop, sae, sides[:1], seed=0)["steered"] is None, "one latent has no other"


def test_states_are_a_row_for_each_token_that_counts(model):
    ids = torch.randint(3, V, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    loop = Loop(model, MODULE, [{"input_ids": ids, "attention_mask": mask}], "output", 1, 10, 1.0)
    found = loop.states
    assert found.token.tolist() == [*ids[0, 1:].tolist(), *ids[1, 1:4].tolist()]
    assert found.next.tolist() == [*ids[0, 2:].tolist(), -1, *ids[1, 2:4].tolist(), -1]
    assert found.sequence.tolist() == [0] * 5 + [1] * 3
    later = CAUSAL[:6, :6]
    with torch.no_grad():
        below = model.layers[0](model.embed(ids), later)
        for a, hidden in ((found.x, model.layers[1](below, later)), (found.below, below)):
            torch.testing.assert_close(a, torch.cat([hidden[0, 1:], hidden[1, 1:4]]))
    assert replace(loop, at="input").states.below.shape == (8, 0)
    assert replace(loop, module="embed").states.below.shape == (8, 0), "nothing lies below an embedding"


def test_prompts_are_the_beginnings_of_the_longest_rows(model, text):
    ids = torch.randint(3, V, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] + 8 * [0], 9 * [1], 5 * [1] + 4 * [0]])
    short = {"input_ids": torch.tensor([[3]]), "attention_mask": torch.tensor([[1]])}
    loop = opened(model, MODULE, [short, {"input_ids": ids, "attention_mask": mask}], "output", 1, 99, "cpu", D, None)
    assert loop.tokens == 1 + 1 + 9 + 5
    found = loop.prompts(2, 7)
    assert torch.equal(found.ids, ids[[1, 2], :7])
    assert found.real.sum(dim=1).tolist() == [7, 5]
    assert opened(model, MODULE, text, "output", 1, 200, "cpu", D, None).tokens == 288, "until there are 200"
    assert torch.equal(replace(loop, batches=text).prompts(4, 8).ids, text[0][:4, :8])


def test_a_task_measures_the_saes_of_the_part_on_depth(model, text, rows, tmp_path, few):
    x = torch.tensor(px.data.open_rows(rows)[:])
    loop = opened(model, MODULE, text, "output", 1, 300, "cpu", D, None)
    assert loop.tokens == 432, "whole batches"
    made = Setting(x[:300], x[300:], P, K, (3,), 5, (1, 2), tmp_path, False, 1e-4, loop)
    for task in depth_part.tasks(made):
        task.run()
    tasks = measure.tasks(made)
    assert [task.name for task in tasks] == [
        f"model {name}-train{t}-seed3" for name in ("abstopk", "jumprelu") for t in (1, 2)
    ]
    found = [row for task in tasks for row in task.run()]
    for row in (row for row in found if row["kind"] == "loss"):
        sae = made.kept(f"{row['penalty']}-train{row['train_depth']}-seed3")
        deep = with_lam(sae.unrolled(row["steps"], px.ExactStep()), row["lam_factor"])
        want = px.models.loss_recovered(model, text, MODULE, deep, skip=1)
        for name in ("loss", "loss_mean", "loss_zero", "loss_spliced", "recovered_mean", "recovered_zero", "kl"):
            assert row[name] == pytest.approx(want[name], rel=1e-4), name
        assert row["unexplained"] == pytest.approx(want["nmse"], rel=1e-4)
        assert row["excess"] == pytest.approx(want["loss_spliced"] - want["loss"], abs=1e-6)
        assert row["l0"] == pytest.approx(K, rel=0.05)
        assert row["seed"] == 3
    kinds = [(row["kind"], row["penalty"], row["train_depth"], row["steps"]) for row in found if row["kind"] != "loss"]
    assert kinds == [("contexts", "abstopk", 1, 1), ("steering", "abstopk", 1, 1), ("contexts", "abstopk", 1, 3)]
    assert measure.tasks(replace(made, loop=None)) == []


def test_saes_are_probed_on_labelled_texts(model, text, rows, tmp_path, few):
    ids = torch.randint(3, V, (120, 6), generator=torch.Generator().manual_seed(9))
    labels = ["low" if last < V // 2 else "high" for last in ids[:, -1].tolist()]
    loop = opened(model, MODULE, text, "output", 1, 300, "cpu", D, (list(ids.split(50)), labels))
    x = torch.tensor(px.data.open_rows(rows)[:])
    made = Setting(x[:300], x[300:], P, K, (3,), 5, (1,), tmp_path, False, 1e-4, loop)
    depth_part.tasks(made)[1].run()
    found = [row for row in measure.tasks(made)[0].run() if row["kind"] == "probe"]
    assert [(row["steps"], row["k"]) for row in found] == list(itertools.product((1, 3), measure.PROBED))
    with torch.no_grad():
        last = model.layers[1](model.layers[0](model.embed(ids), CAUSAL[:6, :6]), CAUSAL[:6, :6])[:, -1]
    x = loop.labelled[0]
    torch.testing.assert_close(x, last)
    deep = made.kept("abstopk-train1-seed3").unrolled(3, px.ExactStep())
    for row, want in zip(found[3:], px.models.probe(deep, x, labels, ks=measure.PROBED), strict=True):
        assert (row["auc"], row["f1"]) == (want["auc"], want["f1"])
    told = " ".join(report.findings(loss_rows(lambda *_: 0.4, last=3) + found))
    assert "F1 of probes on labelled texts, after one step and after 3, by the number of latents 1: " in told
    with pytest.raises(px.Error, match="too few to train on"):
        opened(model, MODULE, text, "output", 1, 300, "cpu", D, (list(ids[:20].split(5)), labels[:20]))
    with pytest.raises(px.Error, match="--labels has 120 labels for 119 rows of tokens"):
        opened(model, MODULE, text, "output", 1, 300, "cpu", D, ([ids[:119]], labels))
    assert loop.what() != replace(loop, labels=(loop.labels[0], labels[::-1])).what()


# the study


def test_a_study_on_a_model_goes_on_where_it_was_interrupted(model, text, rows, tmp_path, few, monkeypatch):
    monkeypatch.setattr("proxsae.studies.results.write_report", lambda *_: [])  # drawing takes seconds
    whole = depth(rows, model, text)
    calls, real = [], measure.rows

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(measure, "rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        depth(rows, model, text, tmp_path / "out")
    resumed = depth(rows, model, text, tmp_path / "out")
    assert len(calls) == 2 + 1
    for one, other in zip(whole.rows, resumed.rows, strict=True):
        assert {k: v for k, v in one.items() if "seconds" not in k} == pytest.approx(
            {k: v for k, v in other.items() if "seconds" not in k}
        )
    assert (resumed.about["model"], resumed.about["texts"]) == ("Model", "432 tokens of batches of tokens")
    other = Model().eval()
    for changes, says in (
        ({"model": other}, "the model is "), ({"text": text[:1]}, "the texts is "), ({"skip": 2}, "--skip is 1, not 2"),
    ):  # fmt: skip
        with pytest.raises(px.Error, match=f"of another study \\({says}"):
            depth(**({"rows": rows, "model": model, "text": text, "out": tmp_path / "out"} | changes))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": None}, "--model needs --data: the rows of one of its modules"),
        ({"module": None}, "--model needs --module: the module that the rows come from, such as model.layers.15"),
        ({"text": ()}, "--model needs --text: texts to run it on"),
        ({"text": 3}, "--text 3 must be a list of paths, or of batches of tokens"),
        ({"text": ["a.txt"]}, "--text must be paths for a model from a path, and batches of tokens for a module"),
        ({"model": None}, "--module is for a study on a language model: give --model too, or leave it out"),
        ({"model": None, "module": None, "model_tokens": None}, "--text is for a study on a language model"),
        ({"model": 3}, "model=3 must be a torch.nn.Module"),
        ({"module": "layer.1"}, "the model has no module 'layer.1': did you mean layers.1"),
        ({"module": "head"}, "head has activations of width 40, but the rows have 16: collect rows of that"),
        ({"model_tokens": 0}, "--model-tokens=0 must be a whole number >= 1"),
        ({"skip": -1}, "skip=-1 must be a whole number >= 0"),
        ({"labels": "a.csv"}, "--labels must be a path for a model from a path, and (batches, labels) for a module"),
        ({"at": "middle"}, "at='middle' must be"),
        ({"text": [torch.zeros(2, 3)]}, "batch 0 holds Tensor of shape (2, 3)"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_trained(model, text, rows, monkeypatch, change, says):
    monkeypatch.setattr(study, "run", lambda *a, **k: pytest.fail("a task was begun"))
    given = {"rows": rows, "model": model, "text": text} | change
    with pytest.raises(px.Error) as problem:
        depth(**given)
    assert says in str(problem.value)
    assert "\n" not in str(problem.value)


def test_a_model_without_logits_is_refused_before_anything_is_trained(model, text, rows, monkeypatch):
    monkeypatch.setattr(study, "run", lambda *a, **k: pytest.fail("a task was begun"))
    with pytest.raises(px.Error, match="a loss needs logits"):
        depth(rows, nn.Sequential(model.embed, nn.Flatten(0, 1)), text, module="0")


def test_an_sae_and_a_model_do_not_go_together(model):
    with pytest.raises(px.Error, match=r"is for a study that trains SAEs, and here one is given"):
        px.studies.depth(px.topk_sae(4, 8, 2), np.ones((5, 4)), model=model)


def test_the_part_on_a_model_is_there_where_there_is_one(tmp_path):
    assert study.parts_with_needs(("model",), loop=True) == ("depth", "model")
    assert study.parts_with_needs((), loop=True) == (*study.PARTS, "model")
    with pytest.raises(px.Error, match="--parts model needs a language model in the loop"):
        study.parts_with_needs(("model",))
    with pytest.raises(
        px.Error, match="'deep' must be of depth, stability, apart, encoders, recovery, signs, bounds, model"
    ):
        study.parts_with_needs(("deep",), loop=True)
    x = torch.zeros(300, D)
    loop = Loop(nn.Identity(), "", [], "output", 1, 1000, 600.0)
    made = Setting(x, x, P, K, (), 1, (), tmp_path, False, 1e-3, loop)
    least = study.choose(made, (), (), 1.0, None, None)
    assert (least.parts, least.seeds) == (("depth", "model"), 1), "a model that is given is not left out"
    assert least.train_steps >= study.ENOUGH[1]
    assert "model" not in study.choose(replace(made, loop=None), (), (), 1e9, None, None).parts


def test_the_command_that_repeats_names_the_model():
    asked = Request("rows", seeds=2, model="m.gguf", module="model.layers.15", text=("a.txt", "b c.txt"), skip=1)
    command = asked.checked().command(train_steps=5)
    assert command == (
        "proxsae depth --data rows --train-steps 5 --model m.gguf --module model.layers.15 --text a.txt 'b c.txt'"
    )
    more = replace(asked, skip=2, at="input", model_tokens=50).checked()
    assert "--at input --skip 2 --model-tokens 50 --text a.txt" in more.command()
    assert not replace(asked, model=nn.Identity(), text=[torch.zeros(1, 1)]).named


# what is said


def loss_rows(excess, seeds=3, last=16, l0=4.0):
    """Rows of the part; `excess(penalty, train_depth, steps)` is what the SAE costs, of 5 nats to lose."""
    made = []
    for penalty, depth_, seed, t in itertools.product(
        ("abstopk", "topk", "jumprelu", "relu"), (1, 4), range(seeds), (1, last)
    ):
        cost = excess(penalty, depth_, t) * (1 + 0.01 * seed)
        made.append({
            "part": "model", "kind": "loss", "penalty": penalty, "train_depth": depth_, "seed": seed, "rule": "exact",
            "steps": t, "loss": 3.0, "loss_mean": 8.0, "loss_zero": 10.0, "loss_spliced": 3 + cost, "excess": cost,
            "recovered_mean": 1 - cost / 5, "kl": abs(cost) + 0.1, "unexplained": 0.2, "l0": l0, "tokens": 100,
        })  # fmt: skip
    return made


def found(rows, packaged=False):
    return {claim.text: claim for claim in claims.claims(rows, packaged)}


def test_verdicts_on_the_loss_turn_with_the_rows():
    better = found(loss_rows(lambda penalty, depth, t: (0.4 if penalty == "abstopk" else 0.6) / t**0.5 / depth))
    worse = found(loss_rows(lambda penalty, depth, t: (0.8 if penalty == "abstopk" else 0.6) * t**0.1 * depth))
    little = found(loss_rows(lambda penalty, depth, t: 0.6 / t**0.1))
    one = found(loss_rows(lambda penalty, depth, t: (0.4 if penalty == "abstopk" else 0.6) / t**0.5, seeds=1))
    for text in (
        "AbsTopK keeps more of the model's loss than TopK (Loss Recovered)",
        "AbsTopK keeps more of the model's loss than JumpReLU, with 16 steps of the same weights (Loss Recovered)",
        "More steps of the same weights lower the model's loss with a TopK SAE in place",
        "More steps of the same weights lower the model's loss with an AbsTopK SAE in place",
        "16 steps give back more than half of the loss that an AbsTopK SAE costs the model",
        "With a TopK SAE in place, more steps bring the predictions nearer to the model's (KL)",
        "With 16 steps at inference, AbsTopK trained with 4 steps keeps more of the model's loss than trained with one",
    ):
        assert [rows[text].verdict for rows in (better, worse)] == [YES, NO], text
        assert text not in one or one[text].verdict == OPEN
    half = "16 steps give back more than half of the loss that an AbsTopK SAE costs the model"
    assert little[half].verdict == NO
    assert "24 % [24, 24] comes back" in little[half].measured
    assert little["More steps of the same weights lower the model's loss with an AbsTopK SAE in place"].verdict == YES
    assert little["AbsTopK keeps more of the model's loss than TopK (Loss Recovered)"].verdict == NO, (
        "equal is not more"
    )


def test_an_sae_that_costs_nothing_gives_nothing_back():
    rows = loss_rows(lambda penalty, depth, t: -0.01 * t)
    half = found(rows)["16 steps give back more than half of the loss that an AbsTopK SAE costs the model"]
    assert half.measured.endswith("it costs nothing")
    (table,) = [item for item in report.section(rows).shown if item.name == "model" and hasattr(item, "lines")]
    assert {line[-2] for line in table.lines} == {"-"}


def test_losses_at_unequal_density_get_no_verdict():
    rows = loss_rows(lambda penalty, depth, t: 0.4 / t if penalty == "abstopk" else 0.6)
    text = "AbsTopK keeps more of the model's loss than TopK (Loss Recovered)"
    assert found(rows)[text].verdict == YES
    for row in rows:
        row["l0"] = 4.3 if row["penalty"] == "abstopk" else 4.0
    assert found(rows)[text].verdict == OPEN
    assert found(rows)[text].measured.endswith("at l0 4.3 against 4.0")


def signed_rows(probe, tokens, steered):
    same = {"part": "model", "penalty": "abstopk", "train_depth": 1, "latents": 12}
    return [
        row
        for seed in range(3)
        for row in (
            *({**same, "kind": "contexts", "steps": t, "seed": seed, "by_probe": probe + 0.01 * seed,
               "by_tokens": tokens + 0.01 * seed, "shared": 0.1} for t in (1, 16)),
            {**same, "kind": "steering", "steps": 1, "seed": seed, "steered": steered + 0.01 * seed,
             "steered_other": 0.5},
        )
    ]  # fmt: skip


def test_verdicts_on_signs():
    both = "Most AbsTopK latents with contexts of both signs have contexts that {} tells apart"
    probe, tokens = (both.format(what) for what in ("a probe on the input of the module", "the set of their tokens"))
    steers = "Set to +v and to -v, most AbsTopK latents move the model towards what follows on their own contexts"
    losses = loss_rows(lambda penalty, depth, t: 0.4)
    high, low, middle = (
        found(losses + signed_rows(*shares)) for shares in ((0.9, 0.8, 0.7), (0.2, 0.1, 0.3), 3 * (0.49,))
    )
    for text in (probe, tokens, steers):
        assert [each[text].verdict for each in (high, low, middle)] == [YES, NO, OPEN], text
    without = [row | {"by_probe": None} if row["kind"] == "contexts" else row for row in signed_rows(0.9, 0.9, 0.9)]
    assert probe not in found(losses + without)


def test_verdicts_on_probes_turn_with_the_rows():
    def probed(f1):
        return loss_rows(lambda *_: 0.4) + [
            {"part": "model", "kind": "probe", "penalty": penalty, "train_depth": 1, "seed": seed, "rule": "exact",
             "steps": t, "k": k, "l0": 4.0, "f1": f1(penalty, t) + 0.01 * seed * k}
            for penalty in ("abstopk", "topk", "jumprelu") for seed in range(3) for t in (1, 16) for k in (1, 4)
        ]  # fmt: skip

    better, worse = (
        found(probed(lambda penalty, t, sign=sign: 0.6 + sign * (0.1 * (penalty == "abstopk") + 0.01 * t)))
        for sign in (1, -1)
    )
    for text in (
        "k-sparse probes on AbsTopK latents tell labelled texts apart better than on those of TopK",
        "k-sparse probes on AbsTopK latents tell labelled texts apart better than on those of JumpReLU",
        "More steps of the same weights make k-sparse probes on TopK latents better",
    ):
        assert [rows[text].verdict for rows in (better, worse)] == [YES, NO], text
    assert better[text].measured.startswith("F1 with 1, 4 latents 0.785 and 0.635, difference 0.150 [")


def test_with_a_model_the_table_says_what_stays_out_of_reach():
    rows = loss_rows(lambda penalty, depth, t: 0.4 / t)
    cannot = {text: claim.measured for text, claim in found(rows).items() if claim.verdict == CANNOT}
    assert "AbsTopK keeps more of the model's loss (Loss Recovered)" not in cannot
    assert len(cannot) == 5
    assert "needs all sets of the benchmark" in " ".join(cannot.values())
    section = claims.section(rows, "", packaged=False)
    assert "5 cannot be tested here" in section.findings[0]
    assert "said or asked by" in section.shown[0].headings
    assert "concept" not in section.shown[0].caption, "concepts are of the packaged rows"
    assert found([]) == {}


def test_the_answer_says_what_comes_back_in_the_model():
    def sentence(excess, seeds=3):
        return report.answer(loss_rows(excess, seeds), "abstopk")

    assert sentence(lambda penalty, depth, t: 0.4 / t**0.25) == (
        "In the model 16 steps give back 50 % [50, 50] of the loss that the SAE costs."
    )
    assert sentence(lambda penalty, depth, t: 0.4 / t**0.25, seeds=1).startswith(
        "In the model 16 steps give back 50 % of"
    )
    assert "give back -32 % [-32, -32]" in sentence(lambda penalty, depth, t: 0.4 * t**0.1)
    rows = loss_rows(lambda penalty, depth, t: 0.4)
    for row in rows:
        row["excess"] += 0.05 * (row["seed"] - 1) * (row["steps"] > 1)
    assert "do not clearly change the loss that the SAE costs" in report.answer(rows, "abstopk")
    assert report.answer([], "abstopk") == report.answer(rows, "gated") == ""
    told = [section.anchor for section in sections(rows, "", packaged=False)]
    assert told == ["answer", "model", "claims", "words"]
