"""Learned layers: each begins as the iteration that it replaces parts of, is trained, and comes back from files."""

import contextlib
import json
import math

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae.cli import main
from proxsae.learned import NAMED, LearnedRule
from proxsae.pytorch import learned
from proxsae.testing import assert_close, assert_same

P, D_IN, T = 24, 8, 4
PENALTIES = [px.L1(0.1), px.L1(0.1, True), px.L0(0.05), px.KSparse(3), px.KSparse(3, True), px.ElasticNet(0.1, 0.2)]
AS_ISTA = [px.LearnedSteps(), px.LearnedSteps(thresholds=False), px.LISTA(), px.LISTA(shared=False), px.LISTACP(),
           px.TiLISTA()]  # fmt: skip
ALL = [rule for rule in NAMED.values() if isinstance(rule, LearnedRule)]
EACH = pytest.mark.parametrize("R", PENALTIES, ids=repr)


def problem(n=30, seed=0):
    draw = torch.Generator().manual_seed(seed)
    D = torch.nn.functional.normalize(torch.randn(P, D_IN, generator=draw, dtype=torch.float64), dim=1)
    return torch.randn(n, D_IN, generator=draw, dtype=torch.float64), D


def an_sae(R, seed=0):
    """Tied, with offsets: then a layer with the encoder's map is a layer with the dictionary's."""
    torch.manual_seed(seed)
    sae = px.SAE(D_IN, P, R).double()
    with torch.no_grad():
        sae.b_dec.normal_(0, 0.2)
    return sae


@EACH
@pytest.mark.parametrize("rule", AS_ISTA, ids=repr)
def test_each_begins_as_ista_in_an_sae(R, rule):
    sae, (x, _) = an_sae(R), problem()
    deep = sae.unrolled(T, rule)
    assert deep.W_dec is sae.W_dec
    assert_close(deep.encode(x).detach(), sae.unrolled(T).encode(x).detach(), 1e-10)


@EACH
@pytest.mark.parametrize("rule", AS_ISTA, ids=repr)
def test_each_begins_as_ista_from_zero_on_a_known_dictionary(R, rule):
    x, D = problem()
    want = px.ista(x.numpy(), D.numpy(), R, steps=T, keep="all")
    net = px.Unrolled(D, R, T, rule)
    assert_close(net(x).detach(), torch.from_numpy(want.codes), 1e-10)
    for point, code in zip(net.walk(x), want.steps[1:], strict=True):
        assert_close(point.z.detach(), torch.from_numpy(code), 1e-10)


def test_an_encoder_that_is_not_tied_tells_what_replaces_the_encoder_from_what_replaces_the_dictionary():
    sae, (x, _) = an_sae(px.KSparse(3)), problem()
    with torch.no_grad():
        sae.W_enc += 0.3 * torch.randn_like(sae.W_enc)
    by_dictionary = sae.unrolled(T).encode(x)
    for rule in (px.LISTA(shared=False), px.LISTACP(), px.TiLISTA(), px.LearnedSteps()):
        assert_close(sae.unrolled(T, rule).encode(x).detach(), by_dictionary.detach(), 1e-10)
    assert not torch.allclose(sae.unrolled(T, px.LISTA()).encode(x), by_dictionary)


@EACH
def test_with_s_zero_every_layer_gives_the_code_of_the_encoder(R):
    sae, (x, _) = an_sae(R), problem()
    with torch.no_grad():
        sae.b_enc.normal_(0, 0.1)
    for point in sae.unrolled(T, px.LISTA(start="zero")).walk(x):
        assert_same(point.z.detach(), sae.encode(x).detach())


def test_s_equal_to_i_minus_w_d_is_the_step_by_the_encoder():
    """z + W (x - b - D z), the form in which the iSAE is written as a gradient step."""
    sae, (x, _) = an_sae(px.KSparse(3)), problem()
    with torch.no_grad():
        sae.W_enc += 0.1 * torch.randn_like(sae.W_enc)
    deep = sae.unrolled(2, px.LISTA(start="zero"))
    with torch.no_grad():
        deep.S_step[0] = torch.eye(P) - (sae.W_dec @ sae.W_enc).T
    z = sae.encode(x)
    want = px.KSparse(3).prox((z + (x - sae.b_dec - z @ sae.W_dec) @ sae.W_enc).detach())
    assert_close(deep.encode(x).detach(), want, 1e-10)


def plain_soft(u, t):
    return np.sign(u) * np.maximum(np.abs(u) - t, 0)


def test_layers_are_their_formulas():
    """Each formula once more in NumPy, a row at a time, with weights that are not those of the start."""
    x, D = problem(n=6)
    R, rng = px.L1(0.3), np.random.default_rng(1)
    drawn = {"W_step": 0.3, "S_step": 0.2, "log_step": 0.3, "log_lam_factor": 0.3}
    for rule in (
        px.LISTA(),
        px.LISTA(shared=False),
        px.LISTACP(select=0.1, most=0.15),
        px.TiLISTA(),
        px.LearnedSteps(),
    ):
        net = px.Unrolled(D, R, 3, rule)
        w = {
            name: a.detach().numpy() + drawn[name] * rng.standard_normal(a.shape) for name, a in net.named_parameters()
        }
        net.load_state_dict({"D": D} | {name: torch.from_numpy(a) for name, a in w.items()})
        got, A = net(x).detach().numpy(), D.numpy()
        for row, code in zip(x.numpy(), got, strict=True):
            z = np.zeros(P)
            for t in range(3):
                r, mu = A.T @ z - row, np.exp(w["log_step"][t])
                theta = mu * 0.3 * (np.exp(w["log_lam_factor"][t]) if "log_lam_factor" in w else 1)
                of = {name: a[min(t, len(a) - 1)] for name, a in w.items()}
                if rule == px.LISTA():
                    v = of["S_step"] @ z + mu * of["W_step"] @ row
                elif rule == px.LISTA(shared=False):
                    v = of["S_step"] @ z + of["W_step"] @ row
                elif isinstance(rule, px.LISTACP):
                    v = z - of["W_step"] @ r
                elif isinstance(rule, px.TiLISTA):
                    v = z - mu * of["W_step"] @ r
                else:
                    v = z - mu * A @ r
                z = plain_soft(v, theta)
                if isinstance(rule, px.LISTACP):
                    best = np.argsort(-np.abs(v))[: int(min(0.1 * (t + 1), 0.15) * P)]
                    z[best] = np.where(np.abs(v[best]) > theta, v[best], 0)
            assert_close(code, z, 1e-9)


def test_accumulated_pre_activations_are_their_formula():
    sae, (x, _) = an_sae(px.KSparse(3, True)), problem(n=5)
    deep, h = sae.unrolled(3, px.Accumulated(eta=0.2)), sae.pre_activations(x)
    z = px.KSparse(3, True).prox(h.detach())
    for _ in range(2):
        h = h + 0.2 * (x - sae.b_dec - z @ sae.W_dec) @ sae.W_enc
        z = px.KSparse(3, True).prox(h.detach())
    assert_close(deep.encode(x).detach(), z, 1e-10)
    assert not deep.log_step.requires_grad
    assert sae.unrolled(3, px.Accumulated(learned=True)).log_step.requires_grad


@pytest.mark.parametrize("rule", ALL, ids=repr)
@pytest.mark.parametrize("R", [px.L1(0.1), px.KSparse(3)], ids=repr)
def test_each_is_trained_and_comes_back_from_files(R, rule, tmp_path):
    data = px.data.planted(n=400, d_in=D_IN, d_sae=P, k=3, seed=1).x
    torch.manual_seed(0)
    sae = px.SAE(D_IN, P, R, 3, rule).double()
    names = set(learned.shapes_of(rule, 2, sae.W_dec, R))
    assert names <= set(sae.weights())
    before = {name: getattr(sae, name).detach().clone() for name in names}

    def objective():
        *_, last = sae.walk(data)
        return float(last.objective(R).detach().mean())

    started = objective()
    px.train(sae, data, steps=40, batch_size=100, progress=False)
    for name in names:
        moved = not torch.equal(before[name], getattr(sae, name))
        assert moved == (name not in rule.fixed), name
    assert objective() < started
    sae.save(tmp_path / "sae")
    again = px.load(tmp_path / "sae")
    assert again.step == rule
    assert {name for name in names if getattr(again, name).requires_grad} == names - set(rule.fixed)
    assert_same(again.encode(torch.from_numpy(data)).detach(), sae.encode(torch.from_numpy(data)).detach())


@pytest.mark.parametrize("rule", ALL, ids=repr)
def test_a_run_goes_on_to_the_bit(rule, tmp_path):
    data = px.data.planted(n=200, d_in=D_IN, d_sae=P, k=3, seed=1).x

    def made():
        torch.manual_seed(0)
        return px.SAE(D_IN, P, px.KSparse(3), 3, rule)

    whole, parts = made(), made()
    px.train(whole, data, steps=6, batch_size=50, progress=False)
    folder = tmp_path / "run"
    with pytest.raises(px.Error, match="disk is full"), stopped_at_its_second_checkpoint():
        px.train(parts, data, steps=6, batch_size=50, progress=False, checkpoint=folder, every=2)
    again = made()
    px.train(again, data, steps=6, batch_size=50, progress=False, checkpoint=folder, every=2)
    for name, a in whole.state_dict().items():
        assert_same(again.state_dict()[name], a)


@contextlib.contextmanager
def stopped_at_its_second_checkpoint():
    """A disk that is full when a run saves for the second time."""
    from proxsae.training import loop

    kept, saves = loop.save, []

    def save(*arguments):
        saves.append(1)
        if len(saves) == 2:
            msg = "the disk is full"
            raise px.Error(msg)
        kept(*arguments)

    loop.save = save
    try:
        yield
    finally:
        loop.save = kept


def test_a_network_on_a_known_dictionary_learns_codes_and_keeps_them():
    planted = px.data.planted(n=600, d_in=D_IN, d_sae=P, k=2, seed=3)
    x, z, D = (torch.from_numpy(a) for a in (planted.x, planted.z, planted.D))
    for rule in (px.LearnedSteps(), px.LISTACP(), px.TiLISTA(), px.LISTA(shared=False)):
        net = px.Unrolled(D, px.L1(0.1), 4, rule)
        start = (net(x) - z).square().mean().item()
        optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
        for _ in range(60):
            optimiser.zero_grad()
            loss = (net(x) - z).square().mean()
            loss.backward()
            optimiser.step()
        assert loss.item() < 0.95 * start
        again = px.Unrolled(D, px.L1(0.1), 4, rule)
        again.load_state_dict(net.state_dict())
        assert_same(again(x).detach(), net(x).detach())


def test_a_plain_rule_and_pursuit_run_on_a_known_dictionary():
    x, D = problem()
    for rule in (px.Lipschitz(), px.ExactStep(), 0.1):
        want = px.ista(x, D, px.KSparse(3), 5, step=rule)
        assert_same(px.Unrolled(D, px.KSparse(3), 5, rule)(x), want.codes)
        *_, last = px.Unrolled(D, px.KSparse(3), 5, rule).walk(x)
        assert_same(last.spent, want.products[-1])
    net = px.Unrolled(D, px.KSparse(3), 3, px.OMP())
    assert not list(net.parameters())
    assert int((net(x) != 0).sum(dim=1).max()) == 3


@pytest.mark.parametrize("rule", [px.LISTA(), px.LISTACP(), px.TiLISTA(), px.LearnedSteps()], ids=repr)
def test_products_spent_are_said(rule):
    sae, (x, _) = an_sae(px.KSparse(3)), problem(n=3)
    *_, last = sae.unrolled(4, rule).walk(x)
    further = P / D_IN if isinstance(rule, px.LISTA) else 2.0
    assert_close(last.spent, torch.full((3,), 1 + 3 * further, dtype=torch.float64), 1e-12)


BAD = {
    "LISTA(start=1)": (lambda: px.LISTA(start=1), "LISTA: start=1 must be 'ista' or 'zero'"),
    "LISTA(shared=2)": (lambda: px.LISTA(shared=2), "LISTA: shared=2 must be True or False"),
    "select": (lambda: px.LISTACP(select=2.0), r"LISTACP: select=2 must be at most 1: it is a share"),
    "negative select": (lambda: px.TiLISTA(select=-1), "TiLISTA: select=-1 must be finite and >= 0"),
    "eta": (lambda: px.Accumulated(eta=0), "Accumulated: eta=0 must be finite and > 0"),
    "select of k": (lambda: px.SAE(8, 24, px.KSparse(3), 3, px.LISTACP(select=0.1)), "is not L1: leave select at 0"),
    "Accumulated on D": (lambda: px.Unrolled(problem()[1], px.L1(0.1), 3, px.Accumulated()), "it is for px.SAE"),
    "b_enc": (lambda: px.SAE(8, 24, px.L1(0.1), 3, px.LISTA(), b_enc="every"), "it knows no linear term"),
    "ista": (lambda: px.ista(*problem(), px.L1(0.1), 3, step=px.LISTA()), "is for px.SAE and px.Unrolled"),
    "inf": (lambda: px.SAE(8, 24, px.L1(0.1), math.inf, px.LISTA()), r"steps=inf with step=LISTA.* need not end"),
    "inf, fixed": (lambda: px.SAE(8, 24, px.L1(0.1), math.inf, px.FixedStep(0.1)), "steps=inf with .* need not end"),
    "no atoms": (lambda: px.Unrolled(torch.zeros(3, 2), px.L1(0.1), 3), "is all zeros"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_one_sentence(name):
    do, message = BAD[name]
    with pytest.raises(px.Error, match=message) as told:
        do()
    assert "\n" not in str(told.value)


def test_files_with_other_weights_are_refused(tmp_path):
    sae = px.SAE(8, 24, px.KSparse(3), 3, px.LISTA())
    kept = sae.S_step.data
    for value, message in (
        (torch.zeros(1, 24, 23), r"S_step has shape \(1, 24, 23\), not \(1, 24, 24\) of 3 steps"),
        (kept.clone().fill_(torch.nan), "S_step holds NaN"),
    ):
        sae.S_step = torch.nn.Parameter(value)
        sae.save(tmp_path / "sae")
        with pytest.raises(px.Error, match=message):
            px.load(tmp_path / "sae")


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", px.data.planted(n=300, d_in=D_IN, d_sae=P, k=3, seed=1).x.astype(np.float32))
    few = ["--d-sae", "24", "--k", "3", "--steps", "3", "--batch-size", "50"]
    for name in (*NAMED, "exact"):
        steps = [] if name in ("mp", "omp") else ["--encoder-steps", "3"]
        assert main(["train", "rows.npy", "--out", name, "--encoder-rule", name, *steps, *few]) == 0
        sae = px.load(name)
        assert sae.steps == 3
        own = ["--step", "learned"] if isinstance(sae.step, LearnedRule) else []
        capsys.readouterr()
        assert main(["eval", name, "rows.npy", "--steps", "1,3", *own]) == 0
        assert capsys.readouterr().out.count("\n") >= 4
        assert main(["inspect", name]) == 0
        assert type(sae.step).__name__ in capsys.readouterr().out
    assert main(["eval", "exact", "rows.npy", "--steps", "1,inf", "--out", "measured"]) == 0
    assert " inf  " in capsys.readouterr().out
    rows = json.loads((tmp_path / "measured" / "rows.json").read_text())["rows"]
    assert [row["steps"] for row in rows] == [1, "inf"]
    assert rows[1]["nmse"] < rows[0]["nmse"]
    assert main(["eval", "exact", "rows.npy", "--step", "omp"]) == 0
    assert capsys.readouterr().out.count("\n") >= 4
