"""Sparse codes and their decoder against dense codes and a matrix product, values and gradients."""

import copy

import pytest
import torch

import proxsae as px
from proxsae import SparseCodes
from proxsae.pytorch.codes import Pages, sparse_decode, sparsify
from proxsae.testing import assert_close, assert_same


def codes(shape=(5,), P=12, k=3, seed=0, device="cpu"):
    """Dense codes with at most k non-zeros a row of both signs; the first row has one, and the second none."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.zeros(*shape, P, dtype=torch.float64)
    where = torch.rand(z.shape, generator=generator).topk(k, dim=-1).indices
    z.scatter_(-1, where, torch.randn(where.shape, generator=generator, dtype=torch.float64))
    if z.numel():
        flat = z.view(-1, P)
        flat[0] = 0
        flat[0, 7] = -2.0
        flat[1:2] = 0
    return z.to(device)


def atoms(P=12, d=6, device="cpu"):
    return torch.randn(P, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(device)


def test_to_dense_puts_each_value_at_its_index():
    s = SparseCodes(torch.tensor([[0, 3], [1, 2]]), torch.tensor([[5.0, -6.0], [0.0, 7.0]]), 4)
    assert_same(s.to_dense(), torch.tensor([[5.0, 0, 0, -6.0], [0, 0, 7.0, 0]]))


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 1, 3), (0,), (2, 0), ()], ids=str)
@pytest.mark.parametrize("width", [None, 3, 12])
def test_sparse_and_dense_codes_are_the_same(shape, width, device):
    z, W = codes(shape, device=device), atoms(device=device)
    s = sparsify(z, width)
    assert s.d_sae == 12
    assert s.indices.dtype == torch.int64
    want_width = width if width is not None else int((z != 0).sum(-1).max()) if z.numel() else 0
    assert s.indices.shape == s.values.shape == (*shape, want_width)
    assert_same(s.to_dense(), z)
    decoded = sparse_decode(s, W)
    assert decoded.shape == (*shape, 6)
    assert_close(decoded, z @ W, 1e-13)


@pytest.mark.parametrize("width", [3, 5, 12])
def test_indices_ascend_without_repeats_and_padding_is_zero(width, device):
    z = codes((50,), device=device)
    s = sparsify(z, width)
    assert bool((s.indices.diff(dim=-1) > 0).all())
    assert int(s.indices.min()) >= 0
    assert int(s.indices.max()) < 12
    assert_same((s.values != 0).sum(-1), (z != 0).sum(-1))
    assert int((s.values[0] != 0).sum()) == 1
    assert not s.values[1].any()


def test_codes_without_a_non_zero_have_width_zero(device):
    s = sparsify(torch.zeros(4, 12, dtype=torch.float64, device=device))
    assert s.values.shape == (4, 0)
    assert_same(s.to_dense(), torch.zeros(4, 12, dtype=torch.float64, device=device))
    assert_same(sparse_decode(s, atoms(device=device)), torch.zeros(4, 6, dtype=torch.float64, device=device))


@pytest.mark.parametrize("shape", [(5,), (2, 3)], ids=str)
def test_gradients_are_those_of_the_dense_product(shape, device):
    z, W = codes(shape, device=device), atoms(device=device)
    s = sparsify(z)
    weight = torch.randn(*shape, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(device)
    values, W1 = s.values.clone().requires_grad_(), W.clone().requires_grad_()
    (sparse_decode(SparseCodes(s.indices, values, 12), W1) * weight).sum().backward()
    dense, W2 = z.clone().requires_grad_(), W.clone().requires_grad_()
    ((dense @ W2) * weight).sum().backward()
    assert_close(values.grad, dense.grad.gather(-1, s.indices), 1e-13)
    assert_close(W1.grad, W2.grad, 1e-13)
    assert float(W1.grad.abs().sum()) > 1


@pytest.mark.parametrize("width", [0, 3])
def test_gradients_are_finite_differences(width):
    s, W = sparsify(codes(), width), atoms()
    assert torch.autograd.gradcheck(
        lambda values, W: sparse_decode(SparseCodes(s.indices, values, 12), W).sum() + 0 * (values.sum() + W.sum()),
        (s.values.clone().requires_grad_(), W.clone().requires_grad_()),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_accumulates_in_float32(dtype, device):
    ones = SparseCodes(torch.arange(4096, device=device), torch.ones(4096, dtype=dtype, device=device), 4096)
    W = torch.ones(4096, 1, dtype=dtype, device=device)
    assert_same(sparse_decode(ones, W), torch.tensor([4096.0], dtype=dtype, device=device))


def test_memory_is_given_out_again_once_nobody_holds_it():
    pages, cpu = Pages(), torch.device("cpu")
    first, second = (pages.take(4, 3, torch.float32, cpu) for _ in range(2))
    places = {first.data_ptr(), second.data_ptr()}
    third = pages.take(4, 3, torch.float32, cpu)
    assert third.data_ptr() not in places  # both are held, and no more than two are kept
    row = first[2].fill_(7.0)
    del first, third
    assert pages.take(4, 3, torch.float32, cpu).data_ptr() not in places  # a view holds it as well
    assert_same(row, torch.full((3,), 7.0))
    del row
    again = pages.take(4, 3, torch.float32, cpu)
    assert again.data_ptr() in places - {second.data_ptr()}
    assert pages.take(4, 3, torch.float64, cpu).dtype == torch.float64
    wider = pages.take(4, 5, torch.float32, cpu)
    assert (wider.shape, wider.dtype) == ((4, 5), torch.float32)
    assert copy.deepcopy(pages)._kept == []


def test_gradients_that_are_kept_are_not_written_over(device):
    sae = px.abstopk_sae(6, 12, 3).to(device)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).to(device)
    seen = []
    for scale in (1.0, 2.0, 3.0):
        sae.zero_grad()
        (scale * sae(x)).sum().backward()
        seen.append([sae.W_dec.grad, sae.W_enc.grad[:, 1:]])
    for scale, grads in zip((2.0, 3.0), seen[1:], strict=True):
        for one, other in zip(grads, seen[0], strict=True):
            assert_close(one, scale * other, 1e-6)
    (2 * sae(x)).sum().backward()  # added to what is there
    assert_close(sae.W_dec.grad, 5 * seen[0][0], 1e-6)
