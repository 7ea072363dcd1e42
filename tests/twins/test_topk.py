"""The k largest magnitudes of long rows, where groups of latents are looked at first, against a stable sort."""

import numpy as np
import pytest
import torch

from proxsae.pytorch import topk
from proxsae.pytorch.topk import GROUP, largest, top_k, top_k_of_blocks
from proxsae.testing import assert_same

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def sorted_first(u, k, nonneg):
    """Indices (n, k) of the k largest |u|, or max(u, 0), NaN first, by one stable sort in float64."""
    size = u.double().cpu().numpy()
    size = np.where(size < 0, 0, size) if nonneg else np.abs(size)
    order = np.lexsort((-size, ~np.isnan(size)), axis=-1)
    return torch.tensor(np.sort(order[:, :k], axis=-1))


def adversarial(P, k, dtype, seed=0):
    """Rows (14, P): Gaussian, ties of all kinds, winners in one group, monotone, few positive, infinite, all zero."""
    rng = np.random.default_rng(seed)
    rows = [rng.normal(size=P), rng.integers(-2, 3, P), rng.integers(-9, 10, P), np.zeros(P), -np.zeros(P), np.ones(P)]
    clustered = 0.01 * rng.normal(size=P)
    clustered[GROUP : GROUP + k] = 5 + rng.normal(size=k)
    straddling = np.zeros(P)
    straddling[P // 2 - k : P // 2 + k] = 3.0
    few = -np.abs(rng.normal(size=P))
    few[rng.choice(P, k // 2, replace=False)] = 1.0
    infinite = rng.normal(size=P)
    infinite[rng.choice(P, k + 3, replace=False)] = np.inf
    infinite[5] = -np.inf
    alternate = np.tile([2.0, -2.0], P // 2)
    rows += [clustered, straddling, few, infinite, alternate, np.arange(P), -np.arange(P), np.abs(rng.normal(size=P))]
    return torch.tensor(np.array(rows)).to(dtype)


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("P", "k"), [(1024, 1), (1024, 8), (4096, 7), (4096, 32), (1000, 5), (96, 40)])
def test_it_is_a_stable_sort(P, k, dtype, nonneg, device):
    u = adversarial(P, k, dtype).to(device)
    want = sorted_first(u, k, nonneg).to(device)
    assert_same(top_k(u, k, nonneg), want)


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("nans", [1, 3, 200])
def test_nan_comes_first_lowest_index_among_them(nans, nonneg, device):
    u = torch.randn(6, 2048, generator=torch.Generator().manual_seed(nans))
    at = torch.stack([torch.randperm(2048, generator=torch.Generator().manual_seed(i))[:nans] for i in range(6)])
    u = u.scatter(-1, at, torch.nan)
    u[0, 7] = torch.inf
    want = sorted_first(u, 8, nonneg).to(device)
    assert_same(top_k(u.to(device), 8, nonneg), want)


def test_groups_change_no_bit_of_the_answer(device):
    """The same rows by groups and by one look at every entry."""
    u = torch.randint(-50, 51, (200, 4096), generator=torch.Generator().manual_seed(0)).float().to(device)
    assert_same(top_k(u, 16), largest(u.abs(), 16))
    assert_same(top_k(u, 16, nonneg=True), largest(u.relu(), 16))


def in_one_place(u, width):
    """The blocks of u from left to right, each where the one before it lay."""
    place = u.new_empty(u.shape[0] * width)
    for part in u.split(width, dim=1):
        yield place[: part.numel()].view(part.shape).copy_(part)


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("P", "k", "width"), [(1024, 1, 128), (4096, 7, 448), (4096, 7, 4096), (1088, 8, 256)])
def test_rows_in_blocks_have_the_same_k_first(P, k, width, dtype, nonneg, device):
    u = adversarial(P, k, dtype).to(device)
    for rows in (u, u[:1], u[:0], u[[0, 13]]):
        want = sorted_first(rows, k, nonneg).to(device)
        indices, values = top_k_of_blocks(in_one_place(rows, width), P, k, nonneg)
        assert_same(indices, want)
        assert_same(values, rows.gather(-1, want))


@pytest.mark.parametrize("nans", [1, 3, 200])
def test_blocks_keep_nan(nans, device):
    u = torch.randn(6, 2048, generator=torch.Generator().manual_seed(nans))
    at = torch.stack([torch.randperm(2048, generator=torch.Generator().manual_seed(i))[:nans] for i in range(6)])
    u = u.scatter(-1, at, torch.nan).to(device)
    for nonneg in (False, True):
        indices, values = top_k_of_blocks(in_one_place(u, 256), 2048, 8, nonneg)
        want = sorted_first(u, 8, nonneg).to(device)
        assert_same(indices, want)
        assert_same(values.isnan(), u.gather(-1, want).isnan())


def test_of_ordinary_rows_little_is_kept(monkeypatch):
    """About k entries a row each time that the columns double: else blocks would save nothing."""
    kept = []
    reaching = topk._reaching
    monkeypatch.setattr(topk, "_reaching", lambda *a: (r := reaching(*a), kept.append(len(r[0])))[0])
    u = torch.randn(64, 32 * 512, generator=torch.Generator().manual_seed(0))
    top_k_of_blocks(in_one_place(u, 512), u.shape[1], 4)
    assert len(kept) == 32
    assert 64 * 4 <= kept[0] < 64 * 4 * 1.3
    assert sum(kept) < 64 * 4 * 1.3 * (1 + 5)


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("odd", ["equal", "negative", "NaN", "rising", "spread"])
def test_one_row_in_which_all_reach_the_bar_widens_no_other(odd, nonneg, monkeypatch):
    """Of such a row the k first of each block are kept, so that the table of all rows stays narrow."""
    P, k, width = 16384, 4, 512
    u = torch.randn(64, P, generator=torch.Generator().manual_seed(0))
    u[5] = {
        "equal": torch.zeros(P),
        "negative": -u[5].abs(),
        "NaN": torch.where(torch.arange(P) % 40 == 0, torch.nan, u[5]),
        "rising": torch.arange(P) / P,
        "spread": torch.where(torch.arange(P) % 64 < 20, 9 + torch.arange(P) % 7, u[5]),
    }[odd]
    widths = []
    choose = topk.largest
    monkeypatch.setattr(topk, "largest", lambda size, k: widths.append(size.shape[1]) or choose(size, k))
    indices, _ = top_k_of_blocks(in_one_place(u, width), P, k, nonneg)
    assert_same(indices, sorted_first(u, k, nonneg))
    assert widths[-1] <= 4 * k * P // width


@pytest.mark.parametrize("shape", [(0, 4096), (2, 0, 4096), (4096,), (2, 3, 4096)], ids=str)
def test_leading_axes_are_batch(shape, device):
    u = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    got = top_k(u, 4)
    assert got.shape == (*shape[:-1], 4)
    flat = u.reshape(u[..., 0].numel(), 4096)
    assert_same(got.reshape(flat.shape[0], 4), largest(flat.abs(), 4))


def test_rows_may_lie_anywhere_in_memory(device):
    u = torch.randn(4096, 6, generator=torch.Generator().manual_seed(0)).to(device)
    assert_same(top_k(u.T, 4), top_k(u.T.contiguous(), 4))
    assert_same(top_k(u.T[::2], 4), top_k(u.T[::2].contiguous(), 4))
    wide = torch.randn(5, 4097, generator=torch.Generator().manual_seed(0)).to(device)
    assert_same(top_k(wide[:, 1:], 4), top_k(wide[:, 1:].contiguous(), 4))
