"""NumPy and torch agree bit for bit, also where Hypothesis looks, and top_k obeys its tie rule at any size."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import proxsae as px
from proxsae import testing as pt
from proxsae.functional import k_sparse, top_k


@st.composite
def problems(draw):
    """A penalty, a step, and rows on its threshold lattice: the parameter first, then the data."""
    nonneg, width = draw(st.booleans()), draw(st.integers(0, 6))
    lam = draw(st.sampled_from([0.0, 0.125, 0.3, 0.5, 1.0]))
    k = draw(st.integers(0, 7))
    R = draw(st.sampled_from([px.L1(lam, nonneg), px.L0(lam, nonneg), px.KSparse(k, nonneg)]))
    step, dtype = draw(st.sampled_from([0.1, 0.5, 1.0, 3.0])), draw(st.sampled_from([np.float32, np.float64]))
    special = st.sampled_from([np.nan, np.inf, -np.inf])
    near = st.sampled_from(pt.lattice.points(R, step, dtype))
    element = st.one_of(near, st.floats(-10, 10, width=32), near, special)
    rows = draw(st.integers(1, 4))
    u = draw(st.lists(element, min_size=rows * width, max_size=rows * width))
    return R, step, np.array(u, dtype=dtype).reshape(rows, width)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(problems())
def test_torch_is_numpy_bit_for_bit(problem):
    R, step, u = problem
    pt.assert_same(R.prox(torch.tensor(u), step), torch.tensor(R.prox(u, step)))


def test_torch_is_numpy_on_the_asked_device(device):
    for R in pt.OPERATORS.values():
        for step in pt.lattice.STEPS:
            for dtype in (np.float32, np.float64):
                for u in pt.lattice.rows(R, step, dtype, n=50, specials=True):
                    want = torch.tensor(R.prox(u, step), device=device)
                    pt.assert_same(R.prox(torch.tensor(u, device=device), step), want)


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
