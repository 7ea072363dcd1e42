"""An SAE is a torch module like others: what PyTorch's own tools do with modules, they do with it and its twins."""

import copy
import io
import pickle

import pytest
import safetensors.torch as safetensors
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, parametrizations, parametrize, vector_to_parameters

import proxsae as px
from proxsae.testing import assert_close, assert_same
from proxsae.training import files
from proxsae.training.state import latents_in_rows
from tests import module_worker
from tests.test_distributed import launch

MAKE = {
    "k-sparse": lambda: px.SAE(8, 24, px.KSparse(3)),
    "batch": lambda: px.SAE(8, 24, px.BatchKSparse(3)),
    "l0": lambda: px.SAE(8, 24, px.L0(0.1)),
    "l1": lambda: px.SAE(8, 24, px.L1(0.1, nonneg=True)),
    "learned": lambda: px.SAE(8, 24, px.L1(0.1), steps=3, step=px.LearnedSteps()),
}
KINDS = pytest.mark.parametrize("kind", MAKE)


def made(kind="k-sparse", seed=0):
    torch.manual_seed(seed)
    return MAKE[kind]()


def rows(n=60):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(1)) + 0.3


def fit(sae, x=None, **options):
    return px.train(
        sae, rows() if x is None else x, **{"steps": 12, "batch_size": 16, "lr": 1e-2, "progress": False} | options
    )


def state(sae):
    return {name: a.detach().clone() for name, a in sae.state_dict().items()}


def assert_states(sae, want):
    assert list(sae.state_dict()) == list(want)
    for name, a in sae.state_dict().items():
        assert_same(a.detach(), want[name], name)


# Memory: contiguous parameters, whose state is the weights themselves


@KINDS
def test_safetensors_takes_the_state_as_it_is(kind, tmp_path):
    sae, other = made(kind), made(kind, seed=5)
    fit(sae)
    safetensors.save_file(nn.Sequential(sae, nn.Linear(8, 2)).state_dict(), tmp_path / "whole")
    safetensors.save_file(sae.state_dict(), tmp_path / "state")
    other.load_state_dict(safetensors.load_file(tmp_path / "state"))
    assert_states(other, state(sae))
    both, others = nn.ModuleList([sae, sae.unrolled(2)]), nn.ModuleList([made(kind, 6), made(kind, 7).unrolled(2)])
    safetensors.save_model(both, str(tmp_path / "model"))
    shared = nn.ModuleList([others[0], others[0].unrolled(2)])
    safetensors.load_model(shared, str(tmp_path / "model"))
    assert_states(shared[0], state(sae))


@KINDS
def test_parameters_are_a_vector_and_back(kind):
    sae = made(kind)
    vector = parameters_to_vector(sae.parameters())
    vector_to_parameters(2 * vector, sae.parameters())
    assert_same(sae.W_enc.detach(), 2 * made(kind).W_enc.detach())


def test_lbfgs_which_flattens_parameters_and_gradients_lowers_a_loss():
    sae, x = made("l1"), rows()
    optimiser = torch.optim.LBFGS(sae.parameters(), lr=0.1, max_iter=5)

    def loss():
        optimiser.zero_grad()
        out = (sae(x) - x).square().mean()
        out.backward()
        return out.detach()

    before = optimiser.step(loss)
    assert loss() < before


@KINDS
def test_what_is_written_into_the_state_is_written_into_the_weights(kind):
    sae = made(kind)
    fit(sae)
    other = made(kind)
    held = other.state_dict()
    for mean, a in zip(held.values(), sae.state_dict().values(), strict=True):  # as an average of weights is kept
        mean.copy_(a)
    assert_states(other, state(sae))
    fit(other)  # nor does training put other memory in their place
    assert_states(other, held)
    assert all(parameter.is_contiguous() for parameter in other.parameters())


@pytest.mark.parametrize("n", [2, 40])  # few rows name few latents; many name all
def test_gradients_do_not_depend_on_how_w_enc_lies_in_memory(n):
    sae = made().double()
    for x in (rows(n).double(), rows(n).double().view(n, 1, 8)):
        x.requires_grad_()
        sae.zero_grad()
        sae(x).square().sum().backward()
        found = {name: a.grad.clone() for name, a in sae.named_parameters()} | {"x": x.grad.clone()}
        assert sae.W_enc.grad.is_contiguous()
        with latents_in_rows(sae):
            assert sae.W_enc.T.is_contiguous()
            sae.zero_grad()
            x.grad = None
            sae(x).square().sum().backward()
            for name, a in {**dict(sae.named_parameters()), "x": x}.items():
                assert_close(a.grad, found[name], 1e-12, name)
        codes = x.detach() - sae.b_dec
        dense = torch.where(sae.encode(x) != 0, codes @ sae.W_enc, 0)  # the same by dense autograd
        sae.zero_grad()
        (dense @ sae.W_dec + sae.b_dec).square().sum().backward()
        assert_close(sae.W_enc.grad, found["W_enc"], 1e-12)


# Loading


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_that_is_assigned_is_that_of_all_twins_and_of_the_optimiser(kind, dtype):
    sae = made(kind)
    deep, optimiser = sae.twin(), torch.optim.SGD(sae.parameters(), lr=0.1)
    given = {name: a.detach().to(dtype) for name, a in made(kind, seed=3).state_dict().items()}
    sae.load_state_dict(given, assign=True)
    assert_states(deep, given)
    for name, a in given.items():
        assert sae.state_dict()[name].data_ptr() == a.data_ptr()
    x = rows().to(dtype)
    (sae(x) - x).square().sum().backward()
    optimiser.step()
    assert not torch.equal(deep.W_dec, made(kind, seed=3).W_dec.to(dtype))
    assert_same(deep.W_dec.detach(), sae.W_dec.detach())


@pytest.mark.parametrize("assign", [False, True])
def test_what_does_not_fit_is_said_as_torch_says_it(assign):
    sae, before = made(), state(made())
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "W_enc", "b_enc", "b_dec"'):
        sae.load_state_dict({"W_dec": before["W_dec"]}, assign=assign)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "threshold"'):
        sae.load_state_dict({**before, "threshold": torch.ones(24)}, assign=assign)
    wide = px.SAE(8, 25, px.KSparse(3)).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch for W_enc"):
        sae.load_state_dict(wide, assign=assign)
    found = sae.load_state_dict({"W_dec": before["W_dec"], "more": torch.ones(1)}, strict=False, assign=assign)
    assert (found.missing_keys, found.unexpected_keys) == (["W_enc", "b_enc", "b_dec"], ["more"])
    assert sae.W_enc.shape == (8, 24)


@KINDS
def test_a_module_is_made_on_meta_filled_and_loaded(kind):
    with torch.device("meta"):
        sae = MAKE[kind]()
    assert "SAE(8, 24" in repr(sae)
    sae.to_empty(device="cpu").load_state_dict(made(kind).state_dict())
    assert_same(sae.encode(rows()).detach(), made(kind).encode(rows()).detach())


# Frozen weights


FREEZE = [(kind, name) for kind in MAKE for name, _ in made(kind).named_parameters() if name != "batch_threshold"]


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(("kind", "name"), FREEZE)
def test_a_frozen_weight_keeps_its_bits(kind, name, normalised, tmp_path):
    sae = made(kind)
    with torch.no_grad():
        for other in (sae.b_enc, sae.b_dec):
            other.add_(0.01 * torch.randn_like(other))
        if normalised:
            sae.b_dec.zero_()
    weight = getattr(sae, name).requires_grad_(False)
    before, rest = weight.detach().clone(), state(sae)
    options = {"unit_encoder": name != "W_enc", "l0": 3.0 if kind == "l1" else None}
    fit(sae, 30 * rows(), checkpoint=tmp_path, steps=13, **options)
    assert_same(weight.detach(), before)
    moved = {key for key, a in sae.state_dict().items() if not torch.equal(a, rest[key])}
    assert moved >= {"W_enc", "W_dec"} - {name}
    fit(sae, 30 * rows(), checkpoint=tmp_path, steps=13, **options)  # and where a run that has ended is resumed
    assert_same(weight.detach(), before)


def test_frozen_atoms_may_have_any_norm_and_stay_as_they_are():
    sae, x = made(), rows()
    with torch.no_grad():
        sae.W_dec.mul_(3)
    with pytest.raises(px.Error, match="scale the rows of W_dec to norm 1 first, or freeze W_dec"):
        fit(sae)
    sae.W_dec.requires_grad_(False)
    before, want = px.evaluate(sae, x)["nmse"], sae.W_dec.detach().clone()
    fit(sae, steps=100)
    assert_same(sae.W_dec.detach(), want)
    assert px.evaluate(sae, x)["nmse"] < before


@KINDS
def test_an_sae_is_trained_with_its_frozen_b_dec_and_not_with_the_mean(kind):
    sae, x = made(kind), rows() + 2
    sae.b_dec.requires_grad_(False)
    told = fit(sae, x, steps=150)
    assert not sae.b_dec.any()
    error, energy = (a.detach().square().sum() for a in (sae(x) - x, x))
    assert float(error / energy) == pytest.approx(told["nmse"], rel=0.3)


def test_frozen_biases_stay_where_a_run_is_stopped_and_resumed(tmp_path, monkeypatch):
    x = 30 * rows()

    def frozen():
        sae = made()
        with torch.no_grad():
            sae.b_enc.add_(torch.randn(24))
        sae.b_enc.requires_grad_(False)
        return sae

    whole, sae = frozen(), frozen()
    fit(whole, x)
    want, write = sae.b_enc.detach().clone(), files.write

    def stopped(*arguments):
        write(*arguments)
        raise px.Error("the disk is full")  # noqa: EM101

    monkeypatch.setattr(files, "write", stopped)
    with pytest.raises(px.Error, match="the disk is full"):
        fit(sae, x, checkpoint=tmp_path, every=5)
    assert_same(sae.b_enc.detach(), want)
    monkeypatch.undo()
    fit(again := frozen(), x, checkpoint=tmp_path, every=5)
    assert_states(again, state(whole))


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "threshold"])
def test_atoms_are_not_scaled_where_what_goes_with_them_is_frozen(name):
    sae = made("l0")
    with torch.no_grad():
        sae.W_dec.mul_(3)
    getattr(sae, name).requires_grad_(False)
    before = state(sae)
    with pytest.raises(px.Error, match=f"that scales {name} too, and what is frozen stays as it is"):
        fit(sae)
    assert_states(sae, before)


def test_what_leaves_nothing_to_train_is_refused():
    with pytest.raises(px.Error, match=r"every weight is frozen.*sae\.requires_grad_\(True\)"):
        fit(made("batch").requires_grad_(False))
    sae = made()
    sae.W_enc.requires_grad_(False)
    with pytest.raises(px.Error, match="unit_encoder=True scales W_enc, which is frozen"):
        fit(sae, unit_encoder=True)


def test_a_batch_selection_that_was_thawed_as_a_whole_trains_and_resumes(tmp_path):
    sae = made("batch").requires_grad_(False).requires_grad_(True)
    got = fit(sae, checkpoint=tmp_path)
    assert float(sae.batch_threshold.detach()) > 0
    assert fit(sae, checkpoint=tmp_path) == got


# Gradients that are switched off


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode, lambda: torch.set_grad_enabled(False)])
@KINDS
def test_training_does_not_depend_on_what_the_caller_has_switched_off(kind, off, tmp_path):
    sae, other = made(kind), made(kind)
    want = fit(sae)
    with off():
        assert fit(other) == want
        assert not torch.is_grad_enabled()
    assert_states(other, state(sae))


def test_weights_of_inference_mode_are_refused_and_their_copy_trains():
    with torch.inference_mode():
        sae, x = made(), rows()
    with pytest.raises(px.Error, match=r"inference_mode\(\), which autograd cannot train: copy\.deepcopy\(sae\) can"):
        fit(sae)
    fit(copy.deepcopy(sae), x)


# Parametrisations


class Doubled(nn.Module):
    def forward(self, W):
        return 2 * W

    def right_inverse(self, W):
        return W / 2


PARAMETRISE = {
    "weight_norm": lambda sae, name: parametrizations.weight_norm(sae, name, dim=0),
    "weight_norm over rows": lambda sae, name: parametrizations.weight_norm(sae, name, dim=1),
    "own": lambda sae, name: parametrize.register_parametrization(sae, name, Doubled()),
}


@pytest.mark.parametrize("name", ["W_dec", "W_enc"])
@pytest.mark.parametrize("how", PARAMETRISE)
@pytest.mark.parametrize("kind", ["k-sparse", "l0", "learned"])
def test_a_parametrised_weight_goes_through_everything(kind, how, name, tmp_path):
    sae, x = made(kind), rows()
    want = {steps: sae.unrolled(steps)(x).detach() for steps in (1, 3)}
    PARAMETRISE[how](sae, name)
    for steps, a in want.items():
        assert_close(sae.unrolled(steps)(x).detach(), a, 1e-5)
    before = px.evaluate(sae, x)["nmse"]
    fit(sae, steps=60)
    assert px.evaluate(sae, x)["nmse"] < before
    assert_close(sae.W_dec.detach().norm(dim=1), torch.ones(24), 1e-5)
    sae.save(tmp_path / "sae")
    trained = sae(x).detach()
    for one in (px.load(tmp_path / "sae"), copy.deepcopy(sae)):
        assert_close(one(x).detach(), trained, 1e-6)
    parametrize.remove_parametrizations(sae, name)
    assert type(sae) is px.SAE
    assert_close(sae(x).detach(), trained, 1e-6)


@pytest.mark.parametrize("register", [parametrizations.orthogonal, parametrizations.spectral_norm])
@pytest.mark.parametrize("kind", ["k-sparse", "l0"])
def test_a_parametrisation_that_does_not_take_unit_atoms_is_refused_and_kept(register, kind):
    sae, x = made(kind), rows()
    register(sae, "W_dec")
    sae.eval()
    want = sae(x).detach()
    with pytest.raises(px.Error, match=r"remove_parametrizations\(sae, 'W_dec'\)|atoms have norms"):
        fit(sae)
    assert_same(sae(x).detach(), want)
    for part in sae.parametrizations.W_dec.parameters():
        part.requires_grad_(False)
    fit(sae)  # frozen, they need not have norm 1
    assert not torch.equal(sae(x).detach(), want)


# Hooks, and what every module has


@KINDS
def test_hooks_of_a_twin_are_heard_there_only_and_gone_once_removed(kind):
    sae = made(kind)
    deep, heard = sae.twin(), []
    handles = [
        deep.register_forward_pre_hook(lambda module, given: heard.append("before")),
        deep.register_forward_hook(lambda module, given, found: heard.append("after")),
        deep.register_full_backward_pre_hook(lambda module, into: heard.append("gradient in")),
        deep.register_full_backward_hook(lambda module, into, out: heard.append("gradient out")),
    ]
    x = rows().requires_grad_()
    sae(x).sum().backward()
    deep.twin()(x).sum().backward()
    assert heard == []
    deep(x).sum().backward()
    assert heard == ["before", "after", "gradient in", "gradient out"]
    for handle in handles:
        handle.remove()
    deep(x).sum().backward()
    assert len(heard) == 4


def test_a_hook_on_a_gradient_belongs_to_the_parameter_which_is_shared():
    sae, heard = made(), []
    handle = sae.W_dec.register_hook(lambda grad: heard.append(grad.shape))
    sae.unrolled(2)(rows()).sum().backward()
    handle.remove()
    sae.unrolled(2)(rows()).sum().backward()
    assert heard == [(24, 8)]


@KINDS
def test_what_every_module_has(kind):
    sae, x = made(kind), rows()
    want = sae(x).detach()
    both = nn.ModuleList([sae, sae.twin()])
    assert len(list(both.parameters())) == len(list(sae.parameters()))  # once, though there are two
    assert_same(nn.Sequential(sae, nn.Identity())(x).detach(), want)
    seen = []
    assert sae.apply(seen.append) is sae
    assert seen == [sae]
    assert all(parameter.is_shared() for parameter in copy.deepcopy(sae).share_memory().parameters())
    for again in (copy.deepcopy(sae), pickle.loads(pickle.dumps(sae)), sae.cpu(), sae.train().eval()):
        assert_same(again(x).detach(), want)
    assert_close(copy.deepcopy(sae).double()(x.double()).detach().float(), want, 1e-4)
    assert copy.deepcopy(sae).to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    half = copy.deepcopy(sae).half()
    assert half(x.half()).dtype == torch.float16
    assert half.W_enc.is_contiguous()
    stream = io.BytesIO()
    torch.save(sae.state_dict(), stream)
    stream.seek(0)
    other = made(kind, seed=4)
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert_same(other(x).detach(), want)


# Two processes: DDP and FSDP2


def test_two_processes_have_the_gradients_of_one(tmp_path):
    process = launch(2, "tests/module_worker.py", str(tmp_path))
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert "UserWarning" not in told  # FSDP2 warns of reconstructions that are views
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for name in module_worker.MAKE:
        xhat, grads, weights = module_worker.gradients(lambda sae: sae, name, slice(0, module_worker.ROWS))
        sae, x = module_worker.made(name)
        for rank in ranks:
            assert torch.equal(rank[name]["codes"], sae.encode(x))
            assert "the weights are sharded by torch, but train takes the whole SAE" in rank[name]["refused"]
        for how in ("ddp", "fsdp"):
            assert_close(torch.cat([rank[name][how][0] for rank in ranks]), xhat, 1e-12, f"{name} {how}")
            for rank in ranks:
                for key, a in grads.items():
                    assert_close(rank[name][how][1][key], a, 1e-12, f"{name} {how} gradient of {key}")
                    assert_close(rank[name][how][2][key], weights[key], 1e-12, f"{name} {how} {key}")
