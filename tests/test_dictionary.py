"""Dictionary learning: each update against plain NumPy, what it recovers, and what it leaves in the SAE."""

import math

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae import metrics
from proxsae.reference.pursuit import omp
from proxsae.testing import assert_close, assert_same
from proxsae.training import dictionary

D_IN, P, K = 20, 24, 2


def planted(n=400, seed=1):
    return px.data.planted(n=n, d_in=D_IN, d_sae=P, k=K, seed=seed)


def made(steps=K, step=None, R=None, seed=0):
    torch.manual_seed(seed)
    return px.SAE(D_IN, P, R or px.KSparse(K), steps, px.OMP() if step is None and steps == K else step).double()


def test_a_round_on_all_rows_is_least_squares_of_the_rows_on_their_codes():
    sae, x = made(), planted().x
    with torch.no_grad():
        sae.b_dec.normal_(0, 0.1)
    before, b = sae.W_dec.detach().numpy().copy(), sae.b_dec.detach().numpy().copy()
    told = px.learn_dictionary(sae, x, rounds=1)
    z = omp(x - b, before, K)
    D = np.linalg.lstsq(z, x - b, rcond=None)[0]
    fired = (z != 0).any(axis=0)
    assert fired.sum() > P / 2
    assert_close(sae.W_dec.detach().numpy()[fired], (D / np.linalg.norm(D, axis=1, keepdims=True))[fired], 1e-4)
    assert_same(sae.b_dec.detach().numpy(), b)
    assert told["nmse"] == pytest.approx(((x - b - z @ before) ** 2).sum() / (x**2).sum())
    assert (told["l0"], told["rounds"]) == (K, 1.0)


def test_rounds_of_batches_are_sums_that_forget_and_a_sweep():
    """As in the paper: A = sum z z^T and B = sum z x^T, late batches weighing more, then each atom once."""
    from proxsae.data import Shuffle

    sae, x = made(), planted(900).x
    with torch.no_grad():
        sae.b_dec.fill_(1e-9)  # not 0, so that it stays
    D, b, order = sae.W_dec.detach().numpy().copy(), sae.b_dec.detach().numpy(), Shuffle(len(x), 3)
    A, B = np.zeros((P, P)), np.zeros((P, D_IN))
    for t in range(1, 4):
        rows = x[order.positions((t - 1) * 300, 300)] - b
        z = omp(rows, D, K)
        A, B = (1 - 1 / t) * A + z.T @ z, (1 - 1 / t) * B + z.T @ rows
        if not (np.diag(A) > 0).all():
            pytest.fail("every latent should fire here, or rows take the place of atoms")
        for j in range(P):
            u = D[j] + (B[j] - A[j] @ D) / A[j, j]
            D[j] = u / max(1, np.linalg.norm(u))
        D /= np.linalg.norm(D, axis=1, keepdims=True)
    px.learn_dictionary(sae, x, rounds=3, batch_size=300, seed=3)
    assert_close(sae.W_dec.detach().numpy(), D, 1e-8)


@pytest.mark.parametrize("batch_size", [None, 100])
@pytest.mark.parametrize("encoder", ["omp", "solved", "steps", "l1"])
def test_planted_atoms_are_found(encoder, batch_size):
    data = planted(n=1500)
    how = {
        "omp": {},
        "solved": {"steps": math.inf},
        "steps": {"steps": 6, "step": px.ExactStep()},
        "l1": {"steps": math.inf, "R": px.L1(0.3)},
    }
    sae = made(**how[encoder])
    start = metrics.recovery(sae.W_dec.detach(), torch.from_numpy(data.D))
    told = px.learn_dictionary(sae, data.x, rounds=25 if batch_size is None else 150, batch_size=batch_size)
    assert metrics.recovery(sae.W_dec.detach(), torch.from_numpy(data.D)) > (0.85 if encoder != "l1" else start + 0.05)
    assert told["nmse"] < 0.3
    assert_close(sae.W_dec.detach().norm(dim=1), torch.ones(P).double(), 1e-9)
    assert_same(sae.W_enc.detach(), sae.W_dec.detach().T)


def test_it_ends_where_the_dictionary_no_longer_changes():
    data = px.data.planted(n=400, d_in=D_IN, d_sae=P, k=1, seed=1)  # one atom a row, which pursuit cannot miss
    sae = made(1, px.OMP())
    with torch.no_grad():
        sae.W_dec.copy_(torch.from_numpy(data.D))
        sae.b_dec.fill_(1e-12)
    assert px.learn_dictionary(sae, data.x, rounds=30)["rounds"] <= 2
    assert metrics.recovery(sae.W_dec.detach(), torch.from_numpy(data.D)) > 0.999


def test_an_atom_that_never_fires_becomes_what_is_left_of_a_row():
    error = torch.from_numpy(np.random.default_rng(0).standard_normal((30, D_IN)))
    D = torch.nn.functional.normalize(torch.randn(P, D_IN).double(), dim=1)
    fired = torch.ones(P).double()
    fired[[3, 7]] = 0
    alive = dictionary._alive(D.clone(), fired, error, D, torch.Generator().manual_seed(0))
    cosines = torch.nn.functional.normalize(error, dim=1) @ alive[[3, 7]].T
    assert bool((cosines.max(dim=0).values > 1 - 1e-12).all())
    assert int(cosines[:, 0].argmax()) != int(cosines[:, 1].argmax())
    kept = [j for j in range(P) if j not in (3, 7)]
    assert_close(alive[kept], D[kept], 1e-12)


def test_it_is_an_initialiser_of_a_run_that_trains():
    data = planted(n=1500)
    plain, begun = (px.SAE(D_IN, P, px.KSparse(K)).double() for _ in range(2))
    px.learn_dictionary(begun.unrolled(K, px.OMP()), data.x, rounds=15)
    for sae in (plain, begun):
        px.train(sae, data.x, steps=50, batch_size=200, progress=False)
    nmse = [px.evaluate(sae, data.x)["nmse"] for sae in (plain, begun)]
    assert nmse[1] < 0.7 * nmse[0]


def test_b_dec_begins_at_the_mean_and_streams_are_taken(tmp_path):
    x = planted().x + 5
    np.save(tmp_path / "rows.npy", x)
    sae = made()
    px.learn_dictionary(sae, tmp_path / "rows.npy", rounds=2, batch_size=50)
    assert_close(sae.b_dec.detach().numpy(), x.mean(axis=0), 1e-9)


def test_what_cannot_be_is_one_sentence():
    x = planted().x
    with pytest.raises(px.Error, match="rounds=0 must be a whole number >= 1"):
        px.learn_dictionary(made(), x, rounds=0)
    frozen = made()
    frozen.W_dec.requires_grad_(False)
    with pytest.raises(px.Error, match="W_dec is frozen"):
        px.learn_dictionary(frozen, x)
    with pytest.raises(px.Error, match=r"must be a px\.SAE"):
        px.learn_dictionary("sae", x)
    with pytest.raises(px.Error, match="are equal"):
        px.learn_dictionary(made(), np.ones((9, D_IN)))
