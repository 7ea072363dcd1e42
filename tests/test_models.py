"""A model in the loop: what is read, replaced and measured at a module, against the same done by hand."""

import collections
import json
import math
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import proxsae as px
from proxsae.data import open_rows, survey
from proxsae.models import ablate, collect, last_tokens, loss_recovered, splice, steer
from proxsae.models.contexts import strongest
from proxsae.models.losses import compare
from proxsae.testing import assert_close

V, D, LAYERS = 23, 12, 3
Logits = collections.namedtuple("Logits", ["logits", "cache"])


class Block(nn.Module):
    """Causal attention with one head, and an MLP; it gives a tuple, as many models do."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(D, 1, batch_first=True, bias=False)
        self.mlp = nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D))

    def forward(self, hidden, attention_mask=None):
        s = hidden.shape[1]
        later = torch.ones(s, s, dtype=torch.bool).triu(1)
        padding = None if attention_mask is None else attention_mask == 0
        mixed, _ = self.attention(hidden, hidden, hidden, attn_mask=later, key_padding_mask=padding)
        hidden = hidden + mixed.nan_to_num()
        return (hidden + self.mlp(hidden), "cache")


class Model(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.embed = nn.Embedding(V, D)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(D, V, bias=False)
        self.passes = 0

    def forward(self, input_ids, attention_mask=None):
        hidden = self.dropout(self.embed(input_ids))
        for block in self.blocks:
            hidden, _ = block(hidden, attention_mask=attention_mask)
        self.passes += 1
        return Logits(self.head(hidden), None)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture
def sae():
    torch.manual_seed(1)
    return px.abstopk_sae(D, 30, k=4)


def identity():
    """An SAE whose codes lose nothing: the penalty is 0, and the dictionary orthonormal."""
    sae = px.SAE(D, D, px.L1(0.0))
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(D))
        sae.W_enc.copy_(torch.eye(D))
    return sae


def tokens(n=6, s=9, seed=0):
    return torch.randint(V, (n, s), generator=torch.Generator().manual_seed(seed))


def padded(left=False):
    """Three rows of 9, 5 and 2 tokens with padding, as keyword arguments."""
    ids, mask = tokens(3, 9, seed=1), torch.zeros(3, 9, dtype=torch.int64)
    for row, length in enumerate((9, 5, 2)):
        mask[row, -length if left else None : None if left else length] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids}


def by_hand(model, ids, change, skip=0):
    """Logits with `change` at the output of blocks.1, written out."""
    hidden = model.embed(ids)
    for i, block in enumerate(model.blocks):
        hidden, _ = block(hidden)
        if i == 1:
            new = change(hidden)
            hidden = torch.cat([hidden[:, :skip], new[:, skip:]], dim=1)
    return model.head(hidden)


# splice


@pytest.mark.parametrize("skip", [0, 1, 3])
def test_a_splice_replaces_the_activation_by_its_reconstruction_and_is_gone_afterwards(model, sae, skip):
    x = tokens()
    before = model(x).logits
    with splice(model, "blocks.1", sae, skip=skip) as seen:
        inside = model(x).logits
    assert torch.equal(inside, by_hand(model, x, sae, skip))
    assert not torch.equal(inside, before)
    assert torch.equal(seen.xhat, sae.decode(sae.encode(seen.x)))
    assert torch.equal(model(x).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_input_of_a_module_is_a_place_too_by_position_or_by_keyword(model, sae):
    x = tokens()
    with splice(model, "blocks.2", sae, at="input"):
        inside = model(x).logits
    assert torch.equal(inside, by_hand(model, x, sae))

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model.blocks[0]

        def forward(self, hidden):
            return self.inner(hidden=hidden)

    wrapped, rows = Wrapped(), torch.randn(2, 5, D)
    with splice(wrapped, "inner", sae, at="input"):
        inside = wrapped(rows)[0]
    assert torch.equal(inside, model.blocks[0](sae(rows))[0])


def test_the_identity_changes_nothing_and_nor_does_the_error_term(model, sae):
    x = tokens()
    before = model(x).logits
    with splice(model, "blocks.1", identity()):
        assert torch.equal(model(x).logits, before)
    with splice(model, "blocks.1", sae, error=True) as seen:
        after = model(x).logits
        assert_close(after.detach().numpy(), before.detach().numpy(), 1e-6)
        (slope,) = torch.autograd.grad(after[:, -1].logsumexp(dim=-1).sum(), seen.z)
    assert slope.abs().max() > 1e-3  # gradients reach the codes


def test_hooks_are_gone_after_an_exception(model, sae):
    with pytest.raises(KeyError), splice(model, "blocks.1", sae):
        raise KeyError
    with (
        pytest.raises(px.Error, match=r"blocks.0.mlp.0 has activations of width 24, but this SAE needs 12"),
        splice(model, "blocks.0.mlp.0", sae),
    ):
        model(tokens())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("left", [False, True])
def test_padding_stays_as_it_is_and_skip_counts_real_tokens(model, sae, left, by_position):
    batch = padded(left)
    del batch["labels"]
    rows, seen = {}, {}
    model.blocks[1].register_forward_hook(lambda _, args, out: rows.update(x=out[0]))
    model(**batch)
    with splice(model, "blocks.1", sae, skip=1):
        handle = model.blocks[2].register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
        model(*batch.values()) if by_position else model(**batch)
        handle.remove()
    changed = (seen["x"] != rows["x"]).any(dim=-1)
    real = batch["attention_mask"] == 1
    assert torch.equal(changed, real & (real.cumsum(dim=1) > 1))


def test_a_model_in_half_precision_takes_an_sae_in_float32(model, sae):
    half, x = Model().to(torch.bfloat16), tokens()
    with splice(half, "blocks.1", sae) as seen:
        assert half(x).logits.dtype == torch.bfloat16
    assert seen.x.dtype == torch.bfloat16
    assert seen.z.dtype == seen.xhat.dtype == torch.float32


def test_plain_modules_will_do():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(D, 2, 16, batch_first=True), 2, enable_nested_tensor=False
    )
    rows, sae = torch.randn(2, 5, D), px.topk_sae(D, 30, k=4)
    encoder.eval()
    with splice(encoder, "layers.0", sae):
        inside = encoder(rows).detach()
    want = encoder.layers[1](sae(encoder.layers[0](rows))).detach()
    assert_close(inside.numpy(), want.numpy(), 1e-5)
    with steer(nn.Sequential(nn.Linear(D, D)), "0", sae, {}):
        pass


# steer


def test_steering_adds_what_the_latents_change_and_keeps_the_rest(model, sae):
    x = tokens()
    for normalize in ("none", "layer_norm"):
        one = px.SAE(D, 30, px.KSparse(4), normalize=normalize)

        def expected(h, one=one):
            z = one.encode(h)
            changed = z.clone()
            changed[..., 3], changed[..., 5], changed[..., 8] = 2.5, -z[..., 5], 3 * z[..., 8]
            return h + one.decode(changed, like=h) - one.decode(z, like=h)

        with steer(model, "blocks.1", one, {3: 2.5, 5: "flip", 8: "*3"}):
            inside = model(x).logits
        assert_close(inside.detach().numpy(), by_hand(model, x, expected).detach().numpy(), 1e-5)
    with steer(model, "blocks.1", sae, {0: "*1"}):
        assert torch.equal(model(x).logits, by_hand(model, x, lambda h: h))


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        ({30: 1.0}, "latent=30 must be below 30: this SAE has no other"),
        ({-1: 1.0}, "latent=-1 must be a whole number >= 0"),
        ({0: "double"}, r"a latent cannot be changed by 'double': give a number to set it to, 'flip', or a factor"),
        ({0: math.nan}, "a latent cannot be changed by nan"),
        ({0: "*inf"}, r"cannot be changed by '\*inf'"),
    ],
)
def test_a_latent_or_a_change_that_does_not_exist(model, sae, latents, message):
    with pytest.raises(px.Error, match=message), steer(model, "blocks.1", sae, latents):
        pass


# places


def test_an_unknown_module_is_told_the_nearest(model, sae):
    with pytest.raises(px.Error, match=r"no module 'block.1': did you mean blocks.1"), splice(model, "block.1", sae):
        pass
    with (
        pytest.raises(px.Error, match=r"no module 'zzz': its modules are embed, dropout, blocks, ..."),
        splice(model, "zzz", sae),
    ):
        pass
    with pytest.raises(px.Error, match="no module 'zzz': it is '' itself"), splice(nn.Linear(D, D), "zzz", sae):
        pass
    with (
        pytest.raises(px.Error, match="at='middle' must be 'input' or 'output'"),
        splice(model, "embed", sae, "middle"),
    ):
        pass


def test_a_module_without_an_activation_and_one_that_is_not_run(model, tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.count, self.unused = nn.Identity(), nn.Linear(2, 2)

        def forward(self, ids):
            return self.count(ids)

    with pytest.raises(px.Error, match="the output of count is Tensor without a floating tensor"):
        collect(Odd(), "count", [tokens()], tmp_path / "a")
    with pytest.raises(px.Error, match="the forward pass does not come to unused"):
        collect(Odd(), "unused", [tokens()], tmp_path / "b")


def test_tokens_that_cannot_be_told_apart_are_not_left_out(tmp_path):
    """Where a module sees the tokens of all rows in one axis, as experts do, padding would be taken for text."""

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(V, D)
            self.expert = nn.Linear(D, D)

        def forward(self, input_ids, attention_mask=None):
            return self.expert(self.embed(input_ids).flatten(0, 1))

    model, whole = Flat(), {"input_ids": tokens(3, 9), "attention_mask": torch.ones(3, 9)}
    assert collect(model, "expert", [whole, tokens()], tmp_path / "all")["rows"] == 27 + 54
    with pytest.raises(px.Error, match=r"activations have shape \(27, 12\), but a context needs a row"):
        strongest(model, [whole], "expert", px.topk_sae(D, 30, k=4))
    for batch, skip in ((padded(), 0), (tokens(), 1), (whole, 1)):
        with pytest.raises(px.Error, match=r"has shape \(\d+, 12\), but only of \(batch, tokens, d\) can padding"):
            collect(model, "expert", [batch], tmp_path / "some", skip=skip)


# losses


@torch.no_grad()
def cross_entropy(logits, ids):
    return float(functional.cross_entropy(logits[:, :-1].reshape(-1, V), ids[:, 1:].reshape(-1)))


def test_loss_recovered_is_what_the_definition_says(model, sae):
    batches = [tokens(4, 9, seed=2), tokens(3, 5, seed=3)]
    flat = torch.cat([by_hand_rows(model, ids) for ids in batches])
    mean = flat.mean(dim=0)

    def loss(change):
        parts = [(cross_entropy(by_hand(model, ids, change), ids), ids[:, 1:].numel()) for ids in batches]
        return sum(value * n for value, n in parts) / sum(n for _, n in parts)

    found = loss_recovered(model, batches, "blocks.1", sae)
    own, spliced, zero, average = (
        loss(change) for change in (lambda h: h, sae, torch.zeros_like, lambda h: mean.expand(h.shape))
    )
    want = {
        "loss": own, "loss_spliced": spliced, "loss_zero": zero, "loss_mean": average,
        "recovered_zero": (zero - spliced) / (zero - own), "recovered_mean": (average - spliced) / (average - own),
        "nmse": float((flat - sae(flat).detach()).square().sum() / (flat - mean).square().sum()),
    }  # fmt: skip
    for name, value in want.items():
        assert found[name] == pytest.approx(value, rel=2e-4), name
    kl = [
        functional.kl_div(by_hand(model, ids, sae)[:, :-1].log_softmax(-1), model(ids).logits[:, :-1].log_softmax(-1),
                          reduction="sum", log_target=True) for ids in batches
    ]  # fmt: skip
    assert found["kl"] == pytest.approx(float(sum(kl).detach()) / found["tokens"], rel=1e-4)
    assert (found["tokens"], found["sequences"]) == (4 * 8 + 3 * 4, 7)
    for name in ("loss_spliced", "recovered_zero", "recovered_mean", "kl"):
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]
        assert found[f"{name}_low"] < found[f"{name}_high"]


def by_hand_rows(model, ids):
    kept = []
    by_hand(model, ids, lambda h: kept.append(h.detach()) or h)
    return kept[0].reshape(-1, D)


def test_the_identity_recovers_everything_and_a_mean_nothing(model):
    found = loss_recovered(model, [tokens()], "blocks.1", identity())
    assert found["recovered_zero"] == found["recovered_mean"] == 1
    assert found["kl"] == found["nmse"] == 0
    constant = px.SAE(D, 4, px.KSparse(0))
    with torch.no_grad():
        constant.b_dec.copy_(by_hand_rows(model, tokens()).mean(dim=0))
    assert loss_recovered(model, [tokens()], "blocks.1", constant)["recovered_mean"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("left", [False, True])
def test_padding_is_neither_counted_nor_seen(model, sae, left):
    """Three rows in one padded batch are three batches of one row without padding."""
    batch = padded(left)
    alone = [ids[real == 1][None] for ids, real in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    for skip in (0, 1):
        together, apart = (loss_recovered(model, b, "blocks.1", sae, skip=skip) for b in ([batch], alone[: 3 - skip]))
        assert together["tokens"] == apart["tokens"] == sum(n - 1 - skip for n in (9, 5, 2))
        for name in ("loss", "loss_spliced", "kl") + (("loss_mean", "nmse") if not skip else ()):
            assert together[name] == pytest.approx(apart[name], rel=1e-4), name


def test_several_saes_share_the_passes_of_the_model(model, sae):
    table = compare(model, [tokens()], "blocks.1", {"1": sae, "4": sae.unrolled(4)})
    assert model.passes == 1 + 2 + 2  # its own, zeros, the mean, two SAEs; the mean itself ends at the module
    assert table["4"] == loss_recovered(model, [tokens()], "blocks.1", sae.unrolled(4))


def test_the_effect_of_a_latent_is_the_loss_without_its_part(model, sae):
    ids = tokens()
    latent = int((sae.encode(by_hand_rows(model, ids)) != 0).sum(dim=0).argmax())
    found = ablate(model, [ids], "blocks.1", sae, latent)

    def without(h):
        z = sae.encode(h)
        return h - z[..., latent : latent + 1] * sae.W_dec[latent]

    assert found["loss_ablated"] == pytest.approx(cross_entropy(by_hand(model, ids, without), ids), rel=1e-5)
    assert found["effect"] == pytest.approx(found["loss_ablated"] - found["loss"], abs=1e-6)
    assert found["effect_low"] <= found["effect"] <= found["effect_high"]
    assert found["fires"] == pytest.approx(float((sae.encode(by_hand_rows(model, ids))[:, latent] != 0).float().mean()))


def test_a_model_is_measured_without_dropout_and_is_in_training_again_afterwards(sae):
    torch.manual_seed(0)
    model = Model(dropout=0.5).train()
    model.blocks[2].eval()
    modes = [module.training for module in model.modules()]
    first, second = (loss_recovered(model, [tokens()], "blocks.1", sae) for _ in range(2))
    assert first == second
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches is empty, but a loss needs tokens"),
        ([torch.zeros(2, 0, dtype=torch.int64)], "batch 0 has no tokens: leave out empty texts"),
        ([torch.ones(2, 3)], r"batch 0 holds Tensor of shape \(2, 3\) and torch.float32, but a batch is a tensor of"),
        (["text"], "batch 0 holds str, but a batch is a tensor of token ids"),
        ([{"ids": tokens()}], "batch 0 holds NoneType, but a batch"),
        ([torch.zeros(2, 1, dtype=torch.int64)], "no token of 2 sequences has a next one to predict"),
    ],
)
def test_what_is_no_batch(model, sae, batches, message):
    with pytest.raises(px.Error, match=message):
        loss_recovered(model, batches, "blocks.1", sae)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(6, 8), r"attention_mask of batch 0 is \(6, 8\), but says which of \(6, 9\) token ids count"),
        (torch.ones(6, 1, 9, 9), r"attention_mask of batch 0 is \(6, 1, 9, 9\), but"),
        ([[1] * 9] * 6, "attention_mask of batch 0 is list, but"),
    ],
)
def test_a_mask_that_is_not_of_the_tokens(model, sae, mask, message):
    with pytest.raises(px.Error, match=message):
        loss_recovered(model, [{"input_ids": tokens(), "attention_mask": mask}], "blocks.1", sae)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, sae, out: splice("a name", "blocks.1", sae).__enter__(),
        lambda model, sae, out: splice(model, ["blocks.1"], sae).__enter__(),
        lambda model, sae, out: splice(model, "blocks.1", None).__enter__(),
        lambda model, sae, out: steer(model, "blocks.1", None, {1: 2.0}).__enter__(),
        lambda model, sae, out: steer(model, "blocks.1", sae, [1, 2]).__enter__(),
        lambda model, sae, out: loss_recovered(model, None, "blocks.1", sae),
        lambda model, sae, out: loss_recovered(model, [tokens()], "blocks.1", None),
        lambda model, sae, out: loss_recovered(model, [tokens()], "blocks.1", sae, seed=-1),
        lambda model, sae, out: ablate(model, [tokens()], "blocks.1", sae, 3, seed="a"),
        lambda model, sae, out: ablate(model, [tokens()], "blocks.1", sae, "a"),
        lambda model, sae, out: collect(model, "blocks.1", [tokens()], None),
        lambda model, sae, out: collect(model, "blocks.1", [tokens()], out, drop=3),
        lambda model, sae, out: collect(model, "blocks.1", [tokens()], out, drop=["a"]),
        lambda model, sae, out: collect(model, "blocks.1", 3, out),
    ],
)
def test_strange_arguments_are_one_sentence(model, sae, tmp_path, call):
    with pytest.raises(px.Error):
        call(model, sae, tmp_path / "out")


def test_numbers_of_numpy_and_torch_are_numbers(model, sae, tmp_path):
    record = collect(model, "blocks.1", [tokens()], tmp_path / "a", skip=np.int64(1), drop=torch.tensor([3, 4]))
    assert record == collect(model, "blocks.1", [tokens()], tmp_path / "b", skip=1, drop=[3, 4])
    with steer(model, "blocks.1", sae, {np.int64(1): np.float32(2)}):
        moved = model(tokens()).logits
    with steer(model, "blocks.1", sae, {1: 2.0}):
        assert torch.equal(moved, model(tokens()).logits)


class Folded(nn.Module):
    """A model whose module sees tokens in another order, or other axes, than (batch, tokens, d)."""

    def __init__(self, fold, unfold):
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(V, D), nn.Identity(), nn.Linear(D, V)
        self.fold, self.unfold = fold, unfold

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.unfold(self.inner(self.fold(self.embed(input_ids))), input_ids.shape))


FOLDS = [
    (lambda h: h.transpose(0, 1), lambda h, shape: h.transpose(0, 1)),
    (lambda h: h.flatten(0, 1), lambda h, shape: h.unflatten(0, shape)),
    (lambda h: h.unflatten(-1, (1, D)), lambda h, shape: h.flatten(-2)),
]


@pytest.mark.parametrize("fold", FOLDS)
def test_padding_is_never_taken_for_tokens_where_rows_are_not_those_of_the_mask(sae, tmp_path, fold):
    model = Folded(*fold)
    whole = [tokens(), {"input_ids": tokens(), "attention_mask": torch.ones(6, 9)}]
    assert collect(model, "inner", whole, tmp_path)["rows"] == 108
    for call in (
        lambda: collect(model, "inner", [padded()], tmp_path / "other"),
        lambda: loss_recovered(model, [padded()], "inner", sae),
    ):
        with pytest.raises(px.Error, match=r"only of \(batch, tokens, d\) can padding and the first tokens be left"):
            call()


@pytest.mark.parametrize("fold", FOLDS)
def test_skip_is_not_ignored_where_there_is_no_axis_of_tokens(sae, tmp_path, fold):
    with pytest.raises(px.Error, match=r"but skip=1 needs a row for each|only of \(batch, tokens, d\)"):
        collect(Folded(*fold), "inner", [tokens()], tmp_path, skip=1)


def test_rows_are_not_dropped_by_the_ids_of_others(sae, tmp_path):
    fold = FOLDS[0]
    with pytest.raises(
        px.Error, match=r"activations have shape \(9, 6, 12\), but drop needs a row for each of \(6, 9\)"
    ):
        collect(Folded(*fold), "inner", [tokens()], tmp_path, drop=[3])
    with pytest.raises(px.Error, match=r"but a context needs a row for each"):
        strongest(Folded(*fold), [tokens()], "inner", sae)


class Writes(nn.Module):
    """A model that writes into what its module gives."""

    def __init__(self):
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(V, D), nn.Linear(D, D), nn.Linear(D, V)

    def forward(self, input_ids):
        return self.head(self.inner(self.embed(input_ids)).add_(1.0).relu_())


def test_a_model_that_writes_into_the_activation_does_not_write_into_what_a_splice_saw(sae):
    model = Writes().eval()
    with torch.no_grad(), splice(model, "inner", sae) as seen:
        model(tokens())
        assert torch.equal(seen.xhat, sae.decode(seen.z))
    assert loss_recovered(model, [tokens()], "inner", sae)["loss_mean"] > 0


def test_outputs_that_are_no_logits_and_texts_beyond_the_context(model, sae):
    with pytest.raises(px.Error, match=r"the model's output is \(6, 108\), but a loss needs logits"):
        loss_recovered(nn.Sequential(nn.Embedding(V, D), nn.Flatten(1)), [tokens()], "0", sae)
    with torch.no_grad():
        model.head.weight[0] = math.nan
    with pytest.raises(px.Error, match="logits for batch 0 are not finite"):
        loss_recovered(model, [tokens()], "blocks.1", sae)
    model.config = type("Config", (), {"max_position_embeddings": 8})()
    with pytest.raises(px.Error, match="batch 0 has 9 tokens a row, but the model's context is 8: cut the texts"):
        loss_recovered(model, [tokens()], "blocks.1", sae)


# collect


def test_collected_rows_are_the_activations_in_order(model, tmp_path):
    batches = [tokens(4, 9, seed=s) for s in range(5)]
    record = collect(model, "blocks.1", batches, tmp_path / "rows", shard_rows=50)
    want = torch.cat([by_hand_rows(model, ids) for ids in batches]).numpy()
    rows = open_rows(tmp_path / "rows")
    assert np.array_equal(rows[:], want)
    assert model.passes == 0  # each ends at the module
    assert (record["rows"], record["tokens"], record["width"], record["batches"]) == (180, 180, D, 5)
    assert record["shards"] == ["rows-00000.npy", "rows-00001.npy", "rows-00002.npy"]
    assert record == json.loads((tmp_path / "rows" / "collected.json").read_text())
    norms = np.linalg.norm(want.astype(float), axis=1)
    assert record["norms"]["median"] == pytest.approx(np.median(norms))
    assert record["norms"]["largest"] == pytest.approx(norms.max())
    assert record["norms"]["mean"] == pytest.approx(np.linalg.norm(want.astype(float).mean(axis=0)))
    assert record["norms"]["spread"] == pytest.approx(np.sqrt(want.astype(float).var(axis=0).sum()))


def test_padding_first_tokens_and_chosen_ids_are_left_out(model, tmp_path):
    batch = padded()
    record = collect(model, "blocks.1", [batch], tmp_path / "a", skip=1, drop=[int(batch["input_ids"][0, 3])])
    ids, real = batch["input_ids"], batch["attention_mask"] == 1
    kept = real & (real.cumsum(dim=1) > 1) & (ids != ids[0, 3])
    assert record["rows"] == int(kept.sum()) < record["tokens"] == 16
    model(**{name: a for name, a in batch.items() if name != "labels"})
    collect(model, "blocks.1", [ids], tmp_path / "b", rows=10, dtype="float16")
    assert open_rows(tmp_path / "b").dtype == np.float16
    assert len(open_rows(tmp_path / "b")) == 27  # whole batches


def test_a_stopped_collection_goes_on_and_ends_in_the_same_bits(model, tmp_path):
    batches = [tokens(4, 9, seed=s) for s in range(6)]
    collect(model, "blocks.1", batches, tmp_path / "whole", shard_rows=50)

    def stopped():
        yield from batches[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(model, "blocks.1", stopped(), tmp_path / "again", shard_rows=50)
    assert len(open_rows(tmp_path / "again")) == 72  # the shard in work is lost
    record = collect(model, "blocks.1", batches, tmp_path / "again", shard_rows=50)
    assert record == json.loads((tmp_path / "whole" / "collected.json").read_text())
    for name in record["shards"]:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert collect(model, "blocks.1", batches, tmp_path / "again", shard_rows=50) == record  # nothing is left to do


@pytest.mark.parametrize("rows", [None, 10])
@pytest.mark.parametrize("batches", [[], [tokens(seed=9)], [tokens(), tokens(seed=9)], [tokens()]])
def test_a_folder_that_is_complete_is_told_from_one_of_other_batches(model, tmp_path, batches, rows):
    collect(model, "blocks.1", [tokens(), tokens(seed=1)], tmp_path / "rows")
    with pytest.raises(px.Error, match="was collected from other batches"):
        collect(model, "blocks.1", batches, tmp_path / "rows", rows)


@pytest.mark.parametrize("other", ["batches", "module", "model", "dtype"])
def test_what_differs_is_not_joined(model, tmp_path, other):
    collect(model, "blocks.1", [tokens()], tmp_path / "rows")
    batches = [tokens(seed=9 if other == "batches" else 0)]
    message = "other batches" if other == "batches" else f"was collected with {other}="
    given = {"dtype": "float16"} if other == "dtype" else {}
    with pytest.raises(px.Error, match=message):
        collect(
            Model() if other == "model" else model, "blocks.0" if other == "module" else "blocks.1", batches,
            tmp_path / "rows", **given,
        )  # fmt: skip


def test_a_kill_loses_at_most_the_shard_in_work(tmp_path):
    code = textwrap.dedent(f"""
        import os, signal, sys
        sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})
        import torch
        from tests.test_models import Model, tokens
        from proxsae.models import collect
        torch.manual_seed(0)
        model = Model().eval()
        def batches():
            for s in range(6):
                if s == 3 and {{kill}}:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield tokens(4, 9, seed=s)
        collect(model, "blocks.1", batches(), {str(tmp_path / "rows")!r}, shard_rows=50)
    """)
    killed = subprocess.run([sys.executable, "-c", code.replace("{kill}", "True")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(open_rows(tmp_path / "rows")) == 72
    subprocess.run([sys.executable, "-c", code.replace("{kill}", "False")], check=True)
    torch.manual_seed(0)
    model = Model().eval()
    want = torch.cat([by_hand_rows(model, tokens(4, 9, seed=s)) for s in range(6)]).numpy()
    assert np.array_equal(open_rows(tmp_path / "rows")[:], want)


def test_what_cannot_be_collected_is_one_sentence(model, tmp_path):
    (tmp_path / "other").mkdir()
    np.save(tmp_path / "other" / "x.npy", np.ones((2, 2)))
    with pytest.raises(px.Error, match=r"holds x.npy, which no collect wrote: choose an empty folder"):
        collect(model, "blocks.1", [tokens()], tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(px.Error, match="cannot write"):
        collect(model, "blocks.1", [tokens()], tmp_path / "file")
    pooled = nn.Sequential(nn.EmbeddingBag(V, D))
    assert collect(pooled, "0", [tokens()], tmp_path / "pooled")["rows"] == 6
    with pytest.raises(px.Error, match=r"activations have shape \(6, 12\), but drop needs a row"):
        collect(pooled, "0", [tokens()], tmp_path / "dropped", drop=[1])
    with pytest.raises(px.Error, match="no token was kept of 54: give longer texts, or a smaller skip"):
        collect(model, "blocks.1", [tokens()], tmp_path / "none", skip=9)
    with pytest.raises(px.Error, match="dtype='int8' must be 'float16' or 'float32'"):
        collect(model, "blocks.1", [tokens()], tmp_path / "int", dtype="int8")
    with torch.no_grad():
        model.embed.weight *= 1e6
    with pytest.raises(px.Error, match=r"activations of up to .* do not fit into float16: dtype='float32'"):
        collect(model, "embed", [tokens()], tmp_path / "half", dtype="float16")
    with torch.no_grad():
        model.embed.weight[:] = math.nan
    with pytest.raises(px.Error, match=r"blocks.1 gives NaN or infinite activations for batch 0"):
        collect(model, "blocks.1", [tokens()], tmp_path / "nan")


# rows that stand out


def test_a_survey_finds_rows_that_stand_out_and_what_the_mean_weighs():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)) + np.array([3.0, 0, 0, 0, 0])
    x[[7, 90]] *= 50
    found = survey(x.astype(np.float32))
    x = x.astype(np.float32).astype(float)
    assert found.outliers.tolist() == [7, 90]
    assert found.mean == pytest.approx(np.linalg.norm(x.mean(axis=0)))
    assert found.spread == pytest.approx(np.sqrt(((x - x.mean(axis=0)) ** 2).sum(axis=1).mean()))
    assert found.gamma == pytest.approx(found.mean / found.spread)
    assert found.warning() is not None
    assert found.warning().startswith("2 of 200 rows have a norm above 10 times the median of ")
    assert survey(x[10:80]).warning() is None
    assert survey(np.ones((3, 2))).gamma == math.inf
    assert survey(np.eye(5, 2)).warning() is None  # most rows are 0
    with pytest.raises(px.Error, match="above=1 must be finite and > 1"):
        survey(x, above=1)


# last tokens


@pytest.mark.parametrize("left", [False, True])
def test_last_tokens_are_those_of_each_sequence_alone(model, left):
    batch = padded(left)
    rows = [ids[real == 1] for ids, real in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    more = tokens(2, 5, seed=3)
    found = last_tokens(model, "blocks.1", [batch, more], skip=1)
    want = []
    for ids in [*rows, *more]:
        hidden = model.embed(ids[None])
        for block in model.blocks[:2]:
            hidden, _ = block(hidden)
        want.append(hidden[0, -1].detach())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack(want))
    passes = model.passes
    last_tokens(model, "blocks.1", [more])
    assert model.passes == passes  # it ends at the module


def test_rows_without_a_last_token_are_refused(model):
    with pytest.raises(px.Error, match=r"row 2 of batch 1 has 2 tokens, but skip=2 leaves that many out: leave out"):
        last_tokens(model, "blocks.1", [tokens(), padded()], skip=2)
    with pytest.raises(px.Error, match="batches is empty, but a probe needs rows"):
        last_tokens(model, "blocks.1", [])
    with torch.no_grad():
        model.embed.weight[3] = math.nan
    with pytest.raises(px.Error, match=r"blocks.1 gives NaN or infinite activations for batch 0"):
        last_tokens(model, "blocks.1", [torch.tensor([[3, 3]])])
