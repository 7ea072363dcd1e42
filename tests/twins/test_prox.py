"""NumPy and torch agree bit for bit, also where Hypothesis looks, and top_k obeys its tie rule at any size."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings

import proxsae as px
from proxsae import testing as pt
from proxsae.penalties.base import with_lams
from proxsae.pytorch.prox import k_sparse
from proxsae.pytorch.topk import top_k
from proxsae.testing import strategies


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(strategies.problems())
def test_torch_is_numpy_bit_for_bit(problem):
    R, step, u = problem
    if isinstance(R, (px.GroupL2, px.SortedL1)):  # sums, alike to rounding
        want, out = R.prox(u, step), R.prox(torch.tensor(u), step)
        lost = np.isnan(want)
        pt.assert_same(out.isnan(), torch.tensor(lost))
        finite = np.where(np.isfinite(want), want, 0)
        pt.assert_close(out.where(torch.tensor(np.isfinite(want)), 0), torch.tensor(finite), 16 * np.finfo(u.dtype).eps)
    else:
        pt.assert_same(R.prox(torch.tensor(u), step), torch.tensor(R.prox(u, step)))


@pytest.mark.parametrize("name", pt.OPERATORS)
def test_torch_is_numpy_on_the_asked_device(name, device):
    for backend in pt.torch_backends(device):
        pt.check_backend(pt.OPERATORS[name], backend, n=50)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "name", [name for name, R in pt.OPERATORS.items() if not isinstance(R, (px.GroupL2, px.SortedL1))]
)
def test_tensors_of_lam_and_of_steps_give_the_same_bits(name, dtype, device):
    R = pt.OPERATORS[name]
    twin = with_lams(R, lambda lam: torch.tensor(lam, dtype=torch.float64, device=device))
    for u in pt.lattice.rows(R, 0.7, dtype, 40, 0, specials=True):
        rows, steps = torch.tensor(u, device=device), np.linspace(0.1, 6, len(u))
        for one in (0.7, steps) if R.rowwise else (0.7,):
            many = torch.tensor(one, dtype=torch.float64, device=device)
            pt.assert_same(twin.prox(rows, many), torch.tensor(R.prox(u, one), device=device))


@pytest.mark.parametrize("levels", [1, 2, 3, 10, 10**6])
@pytest.mark.parametrize("k", [1, 7, 64, 255, 256, 300])
def test_top_k_takes_the_lowest_index_among_ties_in_wide_rows(levels, k, device):
    rng = np.random.default_rng(levels)
    u = rng.integers(-levels, levels + 1, size=(20, 256)).astype(np.float32)
    u[3, ::5] = np.nan
    u[4] = np.nan
    u[5, 7] = np.inf
    want = np.sort(np.lexsort((-np.abs(u), ~np.isnan(u)), axis=-1)[:, :k], axis=-1)
    pt.assert_same(top_k(torch.tensor(u, device=device), k), torch.tensor(want, device=device))


def test_torch_topk_alone_has_no_tie_rule():
    """Why `top_k` corrects it: should torch ever gain the rule, this fails, and the correction can go."""
    u = torch.tensor([[1.0, 1, 1, 1, 0, 0]])
    assert u.topk(2).indices.sort().values.tolist() != [[0, 1]]


def test_gradients_pass_through_k_sparse_as_a_mask(device):
    u = torch.randn(5, 9, dtype=torch.float64, device=device, requires_grad=True)
    weight = torch.randn(5, 9, dtype=torch.float64, device=device)
    (k_sparse(u, 4) * weight).sum().backward()
    pt.assert_same(u.grad, torch.where(k_sparse(u, 4) != 0, weight, 0).detach())
