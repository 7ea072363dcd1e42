"""An SAE on the weights of another: what is shared, what is not, and that torch's own tools work on both."""

import copy
import io
import pickle
import weakref

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize

import proxsae as px
from proxsae.sae.encoding import Encoding
from proxsae.testing import assert_close, assert_same
from proxsae.training import recipe


def made(R=None):
    torch.manual_seed(0)
    return px.SAE(8, 24, px.KSparse(3) if R is None else R)


def rows(n=40):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(1))


KINDS = {
    "k-sparse": (lambda: made(), {}),
    "l0": (lambda: made(px.L0(0.1)), {}),
    "l1": (lambda: made(px.L1(0.1, nonneg=True)), {"step": px.ExactStep()}),
    "learned": (lambda: made(px.L1(0.1)), {"step": px.LearnedSteps()}),
    "normalised": (lambda: px.SAE(8, 24, px.KSparse(3), normalize="layer_norm"), {}),
}
EACH = pytest.mark.parametrize(("make", "options"), KINDS.values(), ids=KINDS)


def twin_of(make, options):
    sae = make()
    return sae, sae.unrolled(3, **options)


# Hooks


def test_a_hook_is_heard_where_it_was_registered_and_nowhere_once_it_is_removed():
    sae, heard = made(), []
    handle = sae.register_forward_hook(lambda module, given, found: heard.append(module))
    before = sae.register_full_backward_hook(lambda module, into, out: heard.append("backward"))
    deep = sae.unrolled(3)
    x = rows().requires_grad_()
    deep(x).sum().backward()
    assert heard == []
    sae(x).sum().backward()
    assert heard == [sae, "backward"]
    handle.remove()
    before.remove()
    for one in (sae, deep, sae.unrolled(2), deep.unrolled(2)):
        one(x).sum().backward()
    assert len(heard) == 2


def test_a_twin_keeps_what_the_user_has_set_and_shares_no_dict():
    sae = made()
    sae.layer, sae.notes = 3, {"a": 1}
    sae.eval()
    deep = sae.unrolled(2)
    assert (deep.layer, deep.training) == (3, False)
    deep.notes["a"] = 2
    deep.metadata["of"] = "the twin"
    assert (sae.notes, sae.metadata) == ({"a": 1}, {})


# Parametrisations


def test_weight_norm_on_the_dictionary_is_shared_and_trained_through_a_twin():
    sae, x = made(), rows()
    plain = sae.unrolled(3).encode(x).detach()
    parametrizations.weight_norm(sae, "W_dec", dim=0)
    deep = sae.unrolled(3)
    assert_close(deep.encode(x).detach(), plain, 1e-5)
    assert {name for name, _ in deep.named_parameters()} == {name for name, _ in sae.named_parameters()}
    optimiser = torch.optim.SGD(deep.parameters(), lr=0.1)
    before = sae.W_dec.detach().clone()
    (deep(x) - x).square().mean().backward()
    optimiser.step()
    assert not torch.equal(sae.W_dec.detach(), before)
    assert_same(deep.W_dec.detach(), sae.W_dec.detach())
    with torch.no_grad():
        sae.parametrizations.W_dec.original0.mul_(2)
    assert_same(deep.W_dec.detach(), sae.W_dec.detach())


@pytest.mark.parametrize("first", ["sae", "twin"])
def test_a_parametrisation_that_is_removed_from_one_leaves_the_other_whole(first):
    sae, x = made(), rows()
    parametrizations.weight_norm(sae, "W_dec", dim=0)
    deep = sae.unrolled(3)
    want = deep(x).detach()
    parametrize.remove_parametrizations(sae if first == "sae" else deep, "W_dec")
    for one in (sae.unrolled(3), deep):
        assert_close(one(x).detach(), want, 1e-6)
    assert parametrize.is_parametrized(deep) == (first == "sae")


@pytest.mark.parametrize("options", [{}, {"bfloat16": True}, {"unit_encoder": True}], ids=str)
def test_a_dictionary_with_weight_norm_trains_and_its_atoms_stay_on_the_sphere(options, tmp_path):
    sae, x = made(), rows(200)
    parametrizations.weight_norm(sae, "W_dec", dim=0)
    assert px.evaluate(sae, x)["nmse"] > 0.3
    before = px.evaluate(sae, x)["nmse"]
    px.train(sae, x, steps=60, batch_size=64, lr=1e-2, checkpoint=tmp_path / "run", progress=False, **options)
    assert px.evaluate(sae, x)["nmse"] < 0.9 * before
    assert_close(sae.W_dec.detach().norm(dim=1), torch.ones(24), 1e-5)
    sae.save(tmp_path / "sae")
    assert_same(px.load(tmp_path / "sae").encode(x).detach(), sae.encode(x).detach())


def test_a_parametrisation_that_takes_no_value_is_refused_in_one_sentence():
    sae = made()

    class Halved(torch.nn.Module):
        def forward(self, W):
            return W / 2

    parametrize.register_parametrization(sae, "b_dec", Halved())
    with pytest.raises(px.Error, match="b_dec has a parametrisation that cannot be given a value") as error:
        px.train(sae, rows(), steps=2, batch_size=8, progress=False)
    assert "\n" not in str(error.value)


# What every module can


@EACH
def test_a_twin_is_copied_in_depth(make, options):
    sae, deep = twin_of(make, options)
    x = rows()
    want = deep.encode(x).detach()
    alone = copy.deepcopy(deep)
    assert_same(alone.encode(x).detach(), want)
    one, other = copy.deepcopy([sae, deep])
    assert one.W_dec is other.W_dec
    with torch.no_grad():
        sae.W_dec.mul_(2)
    assert_same(alone.encode(x).detach(), want)
    assert alone.encoding == deep.encoding


@EACH
def test_a_twin_is_pickled(make, options):
    _, deep = twin_of(make, options)
    deep(rows())
    again = pickle.loads(pickle.dumps(deep))
    assert_same(again.encode(rows()).detach(), deep.encode(rows()).detach())
    stream = io.BytesIO()
    torch.save(deep, stream)
    stream.seek(0)
    assert_same(torch.load(stream, weights_only=False)(rows()).detach(), deep(rows()).detach())


@EACH
def test_a_state_of_a_twin_is_a_state_of_its_like(make, options):
    _, deep = twin_of(make, options)
    torch.manual_seed(9)
    other = px.SAE(8, 24, deep.common.penalty, normalize=deep.normalize).unrolled(3, **options)
    other.load_state_dict(deep.state_dict())
    assert_same(other.encode(rows()).detach(), deep.encode(rows()).detach())


@EACH
def test_a_dtype_is_that_of_all_twins(make, options):
    sae, deep = twin_of(make, options)
    deep.to(torch.float64)
    assert sae.dtype == deep.dtype == torch.float64
    assert sae.encode(rows().double()).dtype == deep.encode(rows().double()).dtype == torch.float64


# Another penalty, other weights


def test_a_twin_may_have_another_penalty_of_its_own():
    sae, x = made(), rows()
    fewer = sae.twin(penalty=px.KSparse(2, nonneg=True))
    assert px.evaluate(fewer, x)["l0"] <= 2 < px.evaluate(sae, x)["l0"]
    assert fewer.W_dec is sae.W_dec
    assert sae.penalty == px.KSparse(3)
    with pytest.raises(px.Error, match="24 latents"):
        sae.twin(penalty=px.L1([0.1, 0.2]))


def test_weights_that_are_given_are_the_twins_own_and_carry_gradients():
    sae, x = made(px.L0(0.1)), rows()
    half = sae.twin(weights={"W_dec": sae.W_dec * 0.5, "threshold": sae.threshold.detach() * 2})
    assert_same(half.W_dec.detach(), sae.W_dec.detach() * 0.5)
    assert {name for name, _ in half.named_parameters()} == {"W_enc", "b_enc", "b_dec", "threshold"}
    half(x).sum().backward()
    assert bool(sae.W_dec.grad.any())
    assert sae.threshold.grad is None
    half.rescale(2.0)
    assert sae.penalty.bandwidth == 0.1


def test_an_l0_twin_gets_its_threshold():
    sae = made(px.KSparse(3))
    one = sae.twin(penalty=px.L0(0.5, nonneg=True))
    u = sae.pre_activations(rows()).detach()
    assert_same(one.encode(rows()).detach(), torch.where(u > 1, u, 0))
    assert not hasattr(one.twin(penalty=px.KSparse(2)), "threshold")


# Values


def test_an_encoding_is_checked_where_it_is_made():
    with pytest.raises(px.Error, match=r"step=5 must be a step rule, such as ExactStep\(\)"):
        Encoding(2, 5)
    assert Encoding(4) == Encoding(steps=4, rule=None, analysis="dictionary", b_enc="first")
    for bad in ({"steps": 0}, {"analysis": "both"}, {"b_enc": "last"}, {"rule": px.Refit(), "b_enc": "every"}):
        with pytest.raises(px.Error):
            Encoding(**{"steps": 2} | bad)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"normalize": "bogus"}, "normalize='bogus' must be 'none', 'layer_norm' or 'constant_norm'"),
        ({"weights": {"W": torch.ones(1)}}, "weights has 'W'"),
    ],
)
def test_a_twin_is_checked(change, said):
    with pytest.raises(px.Error, match=said):
        px.topk_sae(4, 8, 2).twin(**change)


def test_rows_may_be_numpy_or_lists_and_come_back_as_tensors():
    for sae in (made(), made(px.L1(0.1)), px.SAE(8, 24, px.KSparse(3), normalize="layer_norm")):
        x = rows(4)
        for given in (x.numpy(), x.double().numpy(), x.tolist()):
            assert_same(sae.encode(given).detach(), sae.encode(x).detach())
            assert_same(sae(given).detach(), sae(x).detach())
            assert_same(sae.encode_sparse(given).values.detach(), sae.encode_sparse(x).values.detach())
            assert_same(sae.reconstruct(given)[0].detach(), sae.reconstruct(x)[0].detach())
        with pytest.raises(px.Error, match=r"int64"):
            sae.encode(x.numpy().astype(int))


def test_codes_may_be_numpy_or_lists_and_whole_numbers_are_rows():
    sae = px.topk_sae(4, 8, 2)
    z = sae.encode([[1, 2, 3, 4]])
    assert_same(z, sae.encode(torch.tensor([[1.0, 2.0, 3.0, 4.0]])))
    for same in (z.detach().numpy(), z.tolist()):
        assert_same(sae.decode(same), sae.decode(z))
    with pytest.raises(px.Error, match="codes is str 'codes', but must be numbers"):
        sae.decode("codes")


def test_nothing_is_left_in_the_object_by_a_run(tmp_path):
    sae = made()
    names = set(vars(sae))
    px.train(sae, rows(), steps=2, batch_size=8, checkpoint=tmp_path, progress=False)
    assert set(vars(sae)) == names
    assert sae in recipe.LEFT_BY_RUN
    seen = weakref.ref(sae)
    del sae
    assert seen() is None
