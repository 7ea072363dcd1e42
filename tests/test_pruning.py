"""Leave-one-out pruning: on either backend, in every dtype, with gradients through what is kept, and bad input."""

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae.testing import assert_close, assert_same


def problem(dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((12, 6))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    z = np.where(rng.random((2, 5, 12)) < 0.4, rng.standard_normal((2, 5, 12)), 0)
    x = z @ D + 0.3 * rng.standard_normal((2, 5, 6))
    return tuple(a.astype(dtype) for a in (x, D, z))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_kept_is_as_it_was_on_both_backends(dtype):
    x, D, z = problem(dtype)
    kept = px.leave_one_out(x, D, z, 0.5)
    assert kept.dtype == dtype
    assert kept.shape == z.shape
    on = kept != 0
    assert_same(kept[on], z[on])
    assert 0 < on.sum() < (z != 0).sum()
    tensors = [torch.from_numpy(a) for a in (x, D, z)]
    assert_same(px.leave_one_out(*tensors, 0.5).numpy(), kept)
    half = [a.bfloat16() for a in tensors]
    assert px.leave_one_out(*half, 0.5).dtype == torch.bfloat16


def test_the_true_code_is_kept_and_a_false_latent_is_not():
    rng = np.random.default_rng(1)
    D = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    true = np.array([1.0, -2.0, 0.7, 0, 0, 0, 0, 0])
    found = true + np.array([0, 0, 0, 0.9, -0.4, 0, 0, 0])  # two latents that x does not have
    assert_same(px.leave_one_out(true @ D, D, found, 0.5), true)
    assert_close(px.leave_one_out(true @ D, D, found, 0.8), np.where(np.abs(true) > 0.8, true, 0), 0.0)


def test_signed_codes_lose_what_has_the_wrong_sign_and_zeros_stay_zeros():
    D = np.eye(3)
    z = np.array([0.5, -0.5, -0.0])
    assert_same(px.leave_one_out(np.array([-3.0, -3.0, 3.0]), D, z, 0.1), np.array([0.0, -0.5, 0.0]))


def test_gradients_flow_through_what_is_kept():
    x, D, z = (torch.from_numpy(a) for a in problem())
    z.requires_grad_()
    kept = px.leave_one_out(x, D, z, 0.5)
    kept.sum().backward()
    assert_same(z.grad, (kept != 0).double())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, D, z: (x, D, z, -1.0), "tau=-1.0 must be finite and >= 0, a threshold"),
        (lambda x, D, z: (x, D, z, np.nan), "tau=nan must be finite"),
        (lambda x, D, z: (x, D, z[..., 1:], 0.1), r"z has shape \(2, 5, 11\)"),
        (lambda x, D, z: (x, D.T, z, 0.1), "atoms are rows"),
        (lambda x, D, z: (x * np.inf, D, z, 0.1), "x holds 60 NaN or infinite"),
        (lambda x, D, z: (x, D, z.astype(np.float32), 0.1), "share library, dtype and device"),
    ],
)
def test_bad_input_is_one_sentence(change, message):
    with pytest.raises(px.Error, match=message):
        px.leave_one_out(*change(*problem()))
