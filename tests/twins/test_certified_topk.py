"""Certified codes beyond the checks of their statements: every stage, stale weights, flags, devices and bad input."""

from itertools import product

import pytest
import torch

from proxsae import L1, SAE, KSparse
from proxsae.conventions import Error
from proxsae.pytorch import certified_topk
from proxsae.pytorch.certified_topk import Redone, certified_top_k, exact_scores, half_product, round_weights
from proxsae.pytorch.topk import top_k
from proxsae.testing import assert_close, assert_same


def draw(n=6, P=300, d=70, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((n, d), (P, d), (P,))
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


def of_all_scores(x, W, bias, k, nonneg=False):
    s = exact_scores(x, W, bias)
    code = torch.relu(s) if nonneg else s
    indices = top_k(code, k)
    values = code.gather(-1, indices)
    return indices, torch.where(values != 0, values, 0)


def check(x, W, bias, k, nonneg=False, **given):
    """Judge a call by the top k of all scores, and return what was redone."""
    indices, values, redone = certified_top_k(x, W, bias, k, nonneg, **given)
    want = of_all_scores(x, W, bias, k, nonneg)
    assert_same(indices, want[0], "indices")
    assert_same(values, want[1], "values")
    return redone


def cancelling(n, P, device):
    """Sums whose large terms cancel, so that float32 scores show the order in which float64 added them."""
    x, W, bias = draw(n, P, 300, device)
    x[:, 1::2], W[:, 1::2] = x[:, ::2], -W[:, ::2]
    W[:, 2:] *= 2.0**20
    W[:, 0] += 2.0**-20
    return x, W, 1e-9 * bias


def lowest_sum(a, b):
    """The least float32 number that a sum may be after as many truncated additions as it has products but one."""
    terms = a.double()[:, None] * b.double()
    doubt = ((terms != 0).sum(-1) - 1).clamp(min=0) * 2.0**-23 * terms.abs().sum(-1)
    least = terms.sum(-1) - doubt
    near = least.float()
    return torch.where(near < least, near.nextafter(torch.full_like(near, torch.inf)), near)


def test_the_bound_holds_for_the_worst_sum_and_needs_what_the_bias_loses(monkeypatch):
    monkeypatch.setattr(certified_topk, "_product", lowest_sum)
    for x, W, b in (
        (1.0, 2.0**-12, 1 + 2049 * 2.0**-23),  # two float16 numbers do not hold these 24 bits
        (1e38, 0.0, 1e-44),  # beside this x nothing is left of it
    ):
        x, W, bias = torch.tensor([[x]]), torch.tensor([[W]]), torch.tensor([b])
        u, bound, unit = half_product(x, round_weights(W, bias))
        off = abs(u.double() - unit * (x.double() * W.double() + bias.double()))
        assert 0.99 * bound <= off <= bound


def test_a_score_has_the_same_bits_however_it_is_asked_for(device, monkeypatch):
    x, W, bias = cancelling(7, 41, device)
    want = exact_scores(x, W, bias)
    assert not torch.equal((x.double() @ W.double().T + bias.double()).float(), want), "the order does not show"
    alone = [exact_scores(x[i : i + 1], W[j : j + 1], bias[j : j + 1]) for i, j in product(range(7), range(41))]
    assert_same(torch.cat(alone).reshape(7, 41), want, "one by one")
    assert_same(exact_scores(x, W.T.contiguous().T, bias), want, "W_enc.T")
    indices = torch.arange(41, device=device).flip(0).expand(7, -1)
    assert_same(exact_scores(x, W, bias, indices), want.flip(1), "by index")
    for size in (1, 299, 301, 1000, 10**4):
        monkeypatch.setattr(certified_topk, "_block", lambda a, size=size: size)
        assert_same(exact_scores(x, W, bias), want, f"{size} products at once")
        assert_same(exact_scores(x, W, bias, indices[:, :10]), want.flip(1)[:, :10], f"{size} at once, by index")


def test_a_score_has_the_same_bits_on_two_threads(device):
    x, W, bias = cancelling(40, 500, device)
    threads = torch.get_num_threads()
    one = exact_scores(x, W, bias)
    try:
        torch.set_num_threads(2)
        assert_same(exact_scores(x, W, bias), one)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("nonneg", [False, True])
def test_random_rows_are_certified_at_once(nonneg, device):
    x, W, bias = draw(n=50, P=2000, d=64, device=device)
    for k in (1, 20):
        assert check(x, W, bias, k, nonneg) == Redone(0, 0, 0)
        assert check(x, W.T.contiguous().T, bias, k, nonneg) == Redone(0, 0, 0)


def near_ties(P, equal, device, ulps):
    """One row, and `equal` latents whose scores are that many float32 units apart, above the others'."""
    x = torch.ones(1, 64, device=device)
    W = torch.zeros(P, 64, device=device)
    W[:equal] = 1 / 64
    W[:equal, 0], W[:equal, 1] = 0, 2 / 64
    W[:equal, 0] += torch.arange(equal, device=device) * (ulps * 2.0**-23)
    return x, W, torch.zeros(P, device=device)


@pytest.mark.parametrize(
    ("equal", "ulps", "redone"),
    [(5, 1, (0, 0, 0)), (20, 1, (1, 0, 0)), (100, 1, (1, 1, 0)), (100, 0.003, (1, 1, 1)), (100, 0, (1, 1, 1))],
)
@pytest.mark.parametrize("nonneg", [False, True])
def test_each_stage_is_reached_and_right(equal, ulps, redone, nonneg, device):
    """k = 4 takes 12 candidates, then 48; float64 sees units apart.  Scores that round to one number need all latents:
    of these float64 prefers the last, and the rule the first.
    """
    data = near_ties(200, equal, device, ulps)
    assert check(*data, 4, nonneg) == Redone(*redone)
    many = (torch.cat([data[0], draw(n=5, d=64, device=device)[0]]), *data[1:])
    check(*many, 4, nonneg)


def test_rows_with_fewer_than_k_positive_scores_are_certified(device):
    x, W, bias = draw(n=20, P=500, d=64, device=device)
    for shift, lowest in ((20.0, 0), (1000.0, 0)):
        k = 12
        positive = (exact_scores(x, W, bias - shift) > 0).sum(dim=-1)
        assert int(positive.min()) == lowest < k
        assert check(x, W, bias - shift, k, nonneg=True).exact == 0
    assert check(0 * x, W, 0 * bias, 5) == Redone(0, 0, 0)  # a zero row
    assert check(0 * x, W, 0 * bias, 5, nonneg=True) == Redone(0, 0, 0)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan, 3e38])
def test_weights_that_are_not_finite_or_overflow_follow_the_conventions(bad, device):
    x, W, bias = draw(n=4, P=100, d=8, device=device)
    W[30, 2] = W[60, 3] = bad
    for nonneg in (False, True):
        check(x * 5, W, bias, 3, nonneg)
    bias[7] = bad
    check(x, draw(P=100, d=8, device=device)[1], bias, 3)


@pytest.mark.parametrize(
    ("n", "P", "d", "k"), [(0, 50, 3, 2), (3, 1, 3, 2), (2, 12, 1, 3), (2, 13, 9, 4), (3, 50, 6, 0), (3, 5, 6, 9)]
)
def test_small_shapes(n, P, d, k, device):
    check(*draw(n, P, d, device), k)


def test_rounded_weights_may_be_kept_until_the_weights_change(device):
    x, W_enc, bias = draw(device=device)
    W_enc = torch.nn.Parameter(W_enc.T.contiguous())
    kept = round_weights(W_enc.T, bias)
    assert check(x, W_enc.T, bias, 5, rounded=kept) == Redone(0, 0, 0)  # another view of the same weights
    with torch.no_grad():
        W_enc[0, 0] += 1
    with pytest.raises(Error, match="round_weights"):
        certified_top_k(x, W_enc.T, bias, 5, rounded=kept)
    kept = round_weights(W_enc.T, bias)
    with pytest.raises(Error, match="round_weights"):
        certified_top_k(x, W_enc.T.clone(), bias, 5, rounded=kept)
    bias.mul_(2)
    with pytest.raises(Error, match="round_weights"):
        certified_top_k(x, W_enc.T, bias, 5, rounded=kept)
    short_lived = torch.randn(64, 40000)
    kept, place = round_weights(short_lived, torch.zeros(64)), short_lived.data_ptr()
    del short_lived
    assert all(torch.randn(64, 40000).data_ptr() != place for _ in range(3))  # the address cannot be given away
    del kept
    with torch.inference_mode():
        fixed = [a.clone() for a in (x, W_enc.T, bias)]
        check(*fixed, 5, rounded=round_weights(*fixed[1:]))


def test_inputs_are_not_written_and_nothing_is_differentiated(device):
    data = [a.requires_grad_() for a in draw(device=device)]
    before = [a.detach().clone() for a in data]
    indices, values, _ = certified_top_k(*data, 5)
    assert not values.requires_grad
    assert indices.dtype == torch.int64
    assert bool((indices.diff(dim=-1) > 0).all())
    for a, b in zip(data, before, strict=True):
        assert_same(a.detach(), b)


def test_float32_products_that_round_their_factors_are_not_trusted():
    """bfloat16 inside a float32 product would round what float16 has kept; then float64 proposes."""
    x, W, bias = draw()
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert check(x, W, bias, 5) == Redone(0, 6, 0)
    finally:
        torch.set_float32_matmul_precision(precision)


def test_autocast_changes_nothing():
    x, W, bias = draw()
    with torch.autocast("cpu", torch.bfloat16):
        assert check(x, W, bias, 5) == Redone(0, 0, 0)
        u = half_product(x, round_weights(W, bias))[0]
    assert_same(u, half_product(x, round_weights(W, bias))[0])


def test_the_bound_is_about_its_leading_term(device):
    """For Gaussian data 2e-4 |x| max |w| from each rounding, and 2^-23 (d + 1) times that for the sum."""
    d = 768
    x, W, bias = draw(n=3, P=50, d=d, device=device)
    _, bound, unit = half_product(x, round_weights(W, 0 * bias))
    sizes = x.double().norm(dim=-1) * W.double().norm(dim=-1).amax()
    ratio = bound / unit / sizes
    about = 2 * 2e-4 + (d + 1) * 2.0**-23
    assert bool((ratio > 0.8 * about).all())
    assert bool((ratio < 1.1 * about).all())
    _, bound, unit = half_product(0 * x, round_weights(W, 1e3 * bias))  # 22 bits of the bias are kept
    ratio = bound / unit / (1e3 * bias).abs().amax()
    assert bool((ratio < 1.1 * (2.0**-22 + (d + 1) * 2.0**-23)).all())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 3, dtype=torch.float64)}, "x is torch.float64"),
        ({"x": torch.zeros(3)}, r"x is torch.float32 \(3,\)"),
        ({"W": torch.zeros(4, 3).half()}, "W is torch.float16"),
        ({"bias": torch.zeros(4, 1)}, "bias is torch.float32"),
        ({"bias": None}, "bias is NoneType"),
        ({"bias": torch.zeros(5)}, "do not fit"),
        ({"W": torch.zeros(4, 2)}, "do not fit"),
        ({"W": torch.zeros(0, 3), "bias": torch.zeros(0)}, "do not fit"),
        ({"x": torch.zeros(2, 0), "W": torch.zeros(4, 0)}, "do not fit"),
        ({"x": torch.zeros(0, 2**20 + 1), "W": torch.zeros(4, 1).expand(4, 2**20 + 1)}, "do not fit"),
        ({"k": -1}, "k=-1"),
        ({"k": 1.5}, "k=1.5"),
    ],
)
def test_bad_input_is_named(change, words):
    given = {"x": torch.zeros(2, 3), "W": torch.zeros(4, 3), "bias": torch.zeros(4), "k": 1} | change
    with pytest.raises(Error, match=words):
        certified_top_k(**given)


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("shape", [(40, 24), (2, 3, 24), (24,), (0, 24)], ids=str)
def test_an_sae_gives_certified_codes(shape, nonneg, device):
    torch.manual_seed(0)
    sae = SAE(24, 512, KSparse(6, nonneg)).to(device)
    torch.nn.init.normal_(sae.b_enc, std=0.1)
    torch.nn.init.normal_(sae.b_dec)
    x = torch.randn(shape, device=device)
    codes = sae.encode_sparse(x, exact="certified")
    scores = exact_scores((x - sae.b_dec).reshape(-1, 24), sae.W_enc.T.detach(), sae.b_enc.detach())
    assert_same(codes.indices, top_k(scores, 6, nonneg).reshape(*shape[:-1], 6))
    assert_close(codes.values, sae.encode_sparse(x).values.detach(), 1e-5)


def test_certified_codes_are_for_one_float32_step_of_ksparse():
    sae = SAE(24, 512, KSparse(6))
    for wrong, exact in ((sae.unrolled(2), "certified"), (SAE(24, 512, L1(0.1)), "certified"), (sae, "yes")):
        with pytest.raises(Error, match="must be 'certified', for one step of KSparse"):
            wrong.encode_sparse(torch.zeros(2, 24), exact=exact)
    with pytest.raises(Error, match="float64"):
        SAE(24, 512, KSparse(6)).double().encode_sparse(torch.zeros(2, 24, dtype=torch.float64), exact="certified")
