"""The CUDA kernels on adversarial input: under Triton's interpreter on the CPU, compiled with `--device cuda`.

The interpreter runs programs one after another and knows no shared memory, so races and missing barriers show only on
a GPU.  It rounds to bfloat16 by truncation and multiplies bfloat16 wrongly, so bfloat16 is only read here.
"""

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae import testing as pt
from proxsae.pytorch.prox import top_k

triton = pytest.importorskip("triton")

from proxsae.pytorch import certified_topk  # noqa: E402
from proxsae.pytorch import codes as sparse_codes  # noqa: E402
from proxsae.pytorch import topk as selection  # noqa: E402
from proxsae.pytorch.kernels import decode, gradients, scores, topk  # noqa: E402

HALF = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, *HALF)


@pytest.fixture(autouse=True)
def _the_interpreter_runs_on_cpu_only(device):
    torch.manual_seed(0)
    interpreted = not isinstance(topk._top_k, triton.runtime.JITFunction)
    assert interpreted == (device == "cpu"), "conftest.py sets TRITON_INTERPRET before Triton is imported"


def first_by_sorting(u, k, positive=False):
    """The oracle: a stable sort by size in NumPy, NaN first, indices ascending."""
    u = pt.numpy_of(u).astype(np.float64)
    size = np.where(np.isnan(u), np.inf, np.where(u > 0, u, 0) if positive else np.abs(u))
    order = np.lexsort((-size, ~np.isnan(u)), axis=-1)
    return torch.tensor(np.sort(order[:, :k], axis=-1))


def adversarial(P, dtype, seed=0):
    """Rows whose ties, NaNs, signs and places would mislead a selection by groups."""
    g = torch.Generator().manual_seed(seed)
    normal = torch.randn(P, generator=g)
    rows = {
        "random": normal,
        "heavy ties": (2 * normal).round(),
        "two levels": torch.where(normal > 1, 2.0, -1.0),
        "all equal": torch.full((P,), -3.0),
        "zero, both signs": torch.where(normal > 0, 0.0, -0.0),
        "rising": torch.arange(P) / P,
        "falling": -torch.arange(P, 0, -1) / P,
        "winners in one group": torch.where((torch.arange(P) - P // 2).abs() < 4, 50 + normal, normal / 8),
        "winners at the end": torch.where(torch.arange(P) >= P - 5, 9 + normal, normal / 8),
        "few positive": torch.where(torch.arange(P) % 331 == 7, 1.0, -normal.abs()),
        "none positive": -normal.abs(),
        "NaN of both signs": torch.where(normal > 1, torch.nan, torch.where(normal < -1, -torch.nan, normal)),
        "all NaN": torch.full((P,), torch.nan),
        "infinite": torch.where(normal.abs() > 1, normal.sign() * torch.inf, normal),
        "infinite and NaN": torch.where(normal > 1.5, torch.nan, torch.where(normal < -1, -torch.inf, normal)),
        "smallest numbers": normal.sign() * torch.finfo(dtype).smallest_normal * (1 + torch.arange(P) % 3) / 2,
        "heavy tail": normal.exp().pow(3) * normal.sign(),
    }
    u = torch.stack(list(rows.values())).to(dtype)
    payloads = torch.tensor([1, 7, 0x3F], dtype=torch.int16 if u.element_size() == 2 else torch.int32)
    bits = u.view(payloads.dtype)
    at = list(rows).index("NaN of both signs")
    bits[at, 5::9] ^= torch.where(u[at, 5::9].isnan(), payloads[torch.arange(len(u[at, 5::9])) % 3], 0)
    return u


@pytest.mark.parametrize(
    ("P", "k", "dtype", "positive"),
    [
        *((777, 98, dtype, positive) for dtype in FLOATS for positive in (False, True)),
        (8200, 3, torch.bfloat16, False),
        (2048, 64, torch.float32, True),
        (8, 1, torch.float32, False),
    ],
)
def test_top_k_is_the_stable_sort(P, k, dtype, positive, device):
    u = adversarial(P, dtype)
    got = topk.top_k(u.to(device), k, positive=positive)
    pt.assert_same(got, first_by_sorting(u, k, positive).to(device))
    contract = top_k(torch.relu(u) if positive else u, k)
    pt.assert_same(got.cpu(), contract.contiguous())


@pytest.mark.parametrize(("P", "k"), [(70000, 512), (65536, 1024), (5000, 625), (300000, 64)])
def test_top_k_holds_up_to_its_limits(P, k, device):
    assert topk.supports(torch.empty(0, P), k)
    u = adversarial(P, torch.float32)[[1, 7]]
    pt.assert_same(topk.top_k(u.to(device), k), first_by_sorting(u, k).to(device))


def test_rows_may_lie_anywhere_in_memory(device):
    u = adversarial(1000, torch.float32)[:4].to(device)
    want = first_by_sorting(u.cpu(), 9).to(device)
    odd = torch.full((len(u), 1013), 1e9, device=device)
    odd[:, 3:1003] = u
    pt.assert_same(topk.top_k(odd[:, 3:1003], 9), want)
    pt.assert_same(topk.top_k(u.T.contiguous().T, 9), want)
    pt.assert_same(topk.top_k(u[::2], 9), want[::2])
    pt.assert_same(topk.top_k(u[:1].expand(3, -1), 9), want[:1].expand(3, -1).contiguous())


def test_rows_may_start_beyond_2_to_31(device):
    """Three rows 2^30 entries apart; on the CPU only the touched pages of their 4 GiB exist."""
    on_cpu = device == "cpu"
    bits = (
        torch.from_numpy(np.zeros(2**31 + 2048, np.int16))
        if on_cpu
        else torch.empty(2**31 + 2048, dtype=torch.int16, device=device)
    )
    u = bits.view(torch.bfloat16).as_strided((3, 1024), (2**30 + 64, 1))
    u.copy_(adversarial(1024, torch.bfloat16)[:3])
    pt.assert_same(topk.top_k(u, 9), first_by_sorting(u, 9).to(device))


def test_an_empty_batch_has_no_rows(device):
    pt.assert_same(
        topk.top_k(torch.empty(0, 64, device=device), 3), torch.empty(0, 3, dtype=torch.int64, device=device)
    )


def test_top_k_says_why_it_has_no_kernel(device):
    for u, k, why in [
        (torch.empty(1, 64, dtype=torch.float64), 3, "dtype torch.float64"),
        (torch.empty(1, 64), 9, "k=9 of P=64"),
        (torch.empty(1, 64), 0, "k=0 of P=64"),
        (torch.empty(0, 2**20), 4096, "registers"),
    ]:
        assert not topk.supports(u, k)
        with pytest.raises(px.Error, match=why):
            topk.top_k(u.to(device), k)
    with pytest.raises(px.Error, match="shape"):
        topk.top_k(torch.empty(3, device=device), 1)


def codes(n, k, P, seed=0):
    rng = np.random.default_rng(seed)
    indices = np.sort(np.argsort(rng.random((n, P)), axis=1)[:, :k], axis=1)
    return torch.tensor(indices), torch.tensor(rng.standard_normal((n, k)), dtype=torch.float32)


def dense(indices, values, P):
    """The codes as a float64 matrix, in NumPy."""
    z = np.zeros((len(indices), P))
    np.add.at(z, (np.arange(len(indices))[:, None], indices.numpy()), values.double().numpy())
    return z


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("n", "k", "P", "d"), [(3, 1, 5, 7), (4, 11, 40, 300), (2, 16, 16, 256)])
def test_decode_and_its_adjoint_are_dense_products(n, k, P, d, dtype, device):
    indices, values = codes(n, k, P)
    W, g = torch.randn(P, d).to(dtype), torch.randn(n, d).to(dtype)
    z, W64, g64 = dense(indices, values, P), W.double().numpy(), g.double().numpy()
    on_device = [a.to(device) for a in (indices, values, W, g)]
    got = decode.decode(*on_device[:3], out_dtype=torch.float32)
    pt.assert_close(got, torch.tensor(z @ W64, dtype=torch.float32, device=device), 1e-6)
    want = np.take_along_axis(g64 @ W64.T, indices.numpy(), axis=1)
    got = decode.gather_dot(on_device[0], on_device[2], on_device[3])
    pt.assert_close(got, torch.tensor(want, dtype=torch.float32, device=device), 1e-6)


def test_decode_takes_views_and_rounds_once(device):
    """W from the columns of a wider array and as a transpose; float16 out, where the interpreter rounds rightly."""
    indices, values = codes(4, 9, 30)
    wide = torch.randn(30, 77, device=device)
    for W in (wide[:, 5:70], wide[:, 5:70].T.contiguous().T):
        got = decode.decode(indices.to(device), values.to(device), W, out_dtype=torch.float16)
        want = torch.tensor(dense(indices, values, 30) @ W.double().cpu().numpy()).half()
        pt.assert_close(got, want.to(device), 2**-11)
    assert decode.decode(indices.to(device), values.to(device), wide.half()).dtype == torch.float16


def test_nothing_to_decode(device):
    for n, k, d in [(0, 3, 5), (2, 0, 5), (2, 3, 0)]:
        indices, values = codes(n, k, 10)
        W, g = torch.ones(10, d, device=device), torch.ones(n, d, device=device)
        got = decode.decode(indices.to(device), values.to(device), W)
        want = torch.tensor(dense(indices, values, 10) @ np.ones((10, d)), dtype=torch.float32)
        pt.assert_close(got, want.to(device), 1e-6)
        pt.assert_close(decode.gather_dot(indices.to(device), W, g), torch.full((n, k), float(d), device=device), 1e-6)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_weight_gradient_is_a_dense_product(dtype, device, monkeypatch):
    """Latent 3 fires in every row, twice beyond a piece; latents 8 and above never fire."""
    monkeypatch.setattr(gradients, "SPLIT", 64)
    n, P, d = 137, 12, 131
    indices = torch.stack([torch.full((n,), 3), 4 + torch.arange(n) % 3], dim=1)
    indices[5] = torch.tensor([0, 7])
    values = torch.randn(n, 2)
    g = torch.randn(n, d).to(dtype)
    got = gradients.weight_gradient(indices.to(device), values.to(device), g.to(device), P)
    want = torch.tensor(dense(indices, values, P).T @ g.double().numpy(), dtype=torch.float32)
    pt.assert_close(got, want.to(device), 2e-6)
    assert (got[8:] == 0).all()
    again = gradients.weight_gradient(indices.to(device), values.to(device), g.to(device), P)
    assert torch.equal(got, again)  # always so in the interpreter, which runs one program after another


@pytest.mark.parametrize("split", [1, 2, 3])
def test_pieces_of_any_length_are_enough(split, device, monkeypatch):
    """Lists of 1 ... 9 entries cut at 1, 2 and 3: the bound on the number of pieces holds, and so do their limits."""
    monkeypatch.setattr(gradients, "SPLIT", split)
    indices = torch.tensor([[j] for j in range(9) for _ in range(j + 1)])
    values, g = torch.randn(len(indices), 1), torch.randn(len(indices), 20)
    got = gradients.weight_gradient(indices.to(device), values.to(device), g.to(device), 9)
    want = torch.tensor(dense(indices, values, 9).T @ g.double().numpy(), dtype=torch.float32)
    pt.assert_close(got, want.to(device), 1e-6)


def test_weight_gradients_of_several_steps_are_added(device):
    steps = [(*codes(4, 3, 9, seed), torch.randn(4, 20)) for seed in range(3)]
    want = sum(dense(i, v, 9).T @ g.double().numpy() for i, v, g in steps)
    got = gradients.weight_gradient(*([a.to(device) for a in part] for part in zip(*steps, strict=True)), 9)
    pt.assert_close(got, torch.tensor(want, dtype=torch.float32, device=device), 1e-6)
    onto = torch.ones(9, 20, device=device)
    added = gradients.weight_gradient(*([a.to(device) for a in part] for part in zip(*steps, strict=True)), 9, onto)
    assert added is onto
    pt.assert_close(added, torch.tensor(want + 1, dtype=torch.float32, device=device), 1e-6)
    nothing = gradients.weight_gradient(*(a[:0].to(device) for a in steps[0]), 9)
    pt.assert_same(nothing, torch.zeros(9, 20, device=device))


def test_wrong_codes_are_errors(device):
    indices, values = codes(4, 3, 9)
    indices, values, W = indices.to(device), values.to(device), torch.ones(9, 5, device=device)
    for call, why in [
        (lambda: decode.decode(indices.int(), values, W), "int64"),
        (lambda: decode.decode(indices, values[:, :2], W), "one for each index"),
        (lambda: decode.decode(indices, values, W.double()), "W has dtype torch.float64"),
        (lambda: decode.gather_dot(indices, W, W), "g has shape"),
        (lambda: decode.gather_dot(indices.int(), W, W[:4]), "int64"),
        (lambda: scores.exact_scores(W[:4], W, W[:, 0], indices.int()), "int64"),
        (lambda: decode.decode(indices, values, W.to("meta")), "meta, but the kernel needs them on one device"),
        (lambda: decode.gather_dot(indices.to("meta"), W, W[:4]), "on one device"),
        (lambda: scores.exact_scores(W[:4], W.to("meta"), W[:, 0], indices), "on one device"),
        (lambda: gradients.weight_gradient(indices, values, W[:4].to("meta"), 9), "on one device"),
        (lambda: gradients.weight_gradient(indices, values, W, 9), "sources has shape"),
        (lambda: gradients.weight_gradient(indices, values, W.double()[:4], 9), "sources has dtype"),
        (lambda: gradients.weight_gradient(indices, values, W[:4], 9, W[:8]), "adds to contiguous float32"),
        (lambda: gradients.weight_gradient(indices, values, W[:4], 9, W.half()), "adds to contiguous float32"),
    ]:
        with pytest.raises(px.Error, match=why):
            call()


@pytest.mark.parametrize("d", [1, 70, 128, 300])
def test_scores_have_the_bits_of_their_definition(d, device):
    """Sums whose large terms cancel, so that the order in which float64 adds them shows."""
    g = torch.Generator().manual_seed(d)
    x, W, bias = torch.randn(3, d, generator=g), torch.randn(40, d, generator=g), torch.randn(40, generator=g)
    if d > 1:
        x[:, 1::2], W[:, 1::2] = x[:, : d - 1 : 2], -W[:, : d - 1 : 2] * (1 + 2.0**-20)
        W[:, 2:] *= 2.0**20
    indices = torch.stack([torch.randperm(40, generator=g)[:11] for _ in range(3)])
    want = certified_topk.exact_scores(x, W, 1e-9 * bias, indices)
    got = scores.exact_scores(x.to(device), W.to(device), 1e-9 * bias.to(device), indices.to(device))
    pt.assert_same(got.cpu(), want)
    for one in (torch.stack([bias, x.new_zeros(40)], dim=1)[:, 0], bias[:1].expand(40)):  # of any strides
        got = scores.exact_scores(x.to(device), W.to(device), one.to(device), indices.to(device))
        pt.assert_same(got.cpu(), certified_topk.exact_scores(x, W, one.contiguous(), indices))


@pytest.mark.parametrize("nonneg", [False, True])
def test_the_encoder_finds_the_kernels_and_gives_the_same_codes_and_gradients(nonneg, device, monkeypatch):
    torch.manual_seed(0)
    sae = px.SAE(24, 512, px.KSparse(4, nonneg)).to(device).unrolled(2, px.ExactStep())
    x = torch.randn(6, 24, device=device)

    def run(with_kernels):
        used = []
        for module in (selection, sparse_codes):
            monkeypatch.setattr(module, "has_kernels", lambda kind: used.append(kind) or with_kernels)
        sae.zero_grad()
        xhat, codes = sae.reconstruct(x)
        (xhat - x).square().sum().backward()
        assert used
        return codes, xhat.detach(), [p.grad for p in sae.parameters()]

    calls = []
    for module, name in ((topk, "top_k"), (decode, "decode"), (decode, "gather_dot"), (gradients, "weight_gradient")):
        kernel = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _k=kernel, _n=name, **g: calls.append(_n) or _k(*a, **g))
    codes, xhat, grads = run(with_kernels=False)
    assert not calls
    again, same, others = run(with_kernels=True)
    assert set(calls) == {"top_k", "decode", "gather_dot", "weight_gradient"}
    pt.assert_same(again.indices, codes.indices)
    pt.assert_close(same, xhat, 1e-5)
    for one, other in zip(grads, others, strict=True):
        pt.assert_close(other, one, 1e-4)
