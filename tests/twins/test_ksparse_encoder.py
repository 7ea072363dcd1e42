"""The k-sparse encoder on supports against dense steps under autograd: codes, gradients, and what it keeps."""

import pytest
import torch

import proxsae as px
from proxsae.certificates import squared_norm
from proxsae.pytorch import cost_model, ksparse_encoder
from proxsae.sae.encoders import squared_norm_of
from proxsae.testing import assert_close, assert_same

RULES = {
    "Lipschitz": lambda L: px.Lipschitz(),
    "FixedStep": lambda L: px.FixedStep(1.3 / L),
    "Backtracking": lambda L: px.Backtracking(),
    "ExactStep": lambda L: px.ExactStep(),
}


def make(k, nonneg=False, d=10, P=96, seed=0, device="cpu"):
    """An untied SAE with biases, in float64; two of its atoms nearly agree, so that step sizes are halved."""
    torch.manual_seed(seed)
    sae = px.SAE(d, P, px.KSparse(k, nonneg)).double().to(device)
    with torch.no_grad():
        sae.W_enc += 0.1 * torch.randn(P, d, dtype=torch.float64, device=device).T
        sae.W_dec[1] = sae.W_dec[0] + 0.05 * torch.randn_like(sae.W_dec[0])
        sae.b_enc.normal_(0, 0.05)
        sae.b_dec.normal_(0, 0.2)
    return sae


def rows(n=30, d=10, seed=1, device="cpu"):
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x[3] = 0
    return x.to(device)


def gradients(sae, x, run, weight):
    """Codes, reconstruction, and the gradients of a loss of both in x and in all four weights."""
    for a in (x, *sae.parameters()):
        a.grad = None
    z, xhat = run(sae, x)
    ((xhat - x).square().sum() + (z * weight).sum()).backward()
    return z.detach(), xhat.detach(), *(a.grad for a in (x, *sae.parameters()))


def by_supports(sae, x):
    xhat, codes = sae.reconstruct(x)
    return codes.to_dense(), xhat


def by_dense_steps(sae, x):
    z = sae.refine(x, sae.penalty.prox(sae.pre_activations(x)))
    return z, sae.decode(z)


@pytest.mark.parametrize("decoder", ["sparse", "dense"])
@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("steps", "k"), [(1, 5), (2, 5), (4, 5), (4, 1), (3, 60), (3, 96), (3, 200), (2, 0)])
def test_codes_and_gradients_are_those_of_dense_steps(steps, k, rule, nonneg, decoder, device, monkeypatch):
    for kind in cost_model.RHO_S:
        monkeypatch.setitem(cost_model.RHO_S, kind, 1e-3 if decoder == "sparse" else 1e3)
    sae = make(k, nonneg, device=device)
    sae = sae.unrolled(steps, RULES[rule](px.lipschitz(sae.W_dec)))
    assert sae.plan(30).decode == decoder or k == 0
    x = rows(device=device).requires_grad_()
    weight = torch.randn(30, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(device)
    got, want = (gradients(sae, x, run, weight) for run in (by_supports, by_dense_steps))
    for name, one, other in zip(("z", "xhat", "x", "W_dec", "W_enc", "b_enc", "b_dec"), got, want, strict=True):
        if other is None:  # k = 0, or no step back to the encoder
            assert one is None or not one.any(), name
        else:
            assert_close(one, other, 1e-10, name)


def test_the_two_halves_apart_have_the_gradients_of_the_whole(device):
    sae = make(5, device=device).unrolled(3)
    x = rows(device=device).requires_grad_()
    weight = torch.zeros(30, 96, dtype=torch.float64, device=device)
    apart = gradients(sae, x, lambda sae, x: (torch.zeros_like(weight), sae.decode(sae.encode_sparse(x))), weight)
    whole = gradients(sae, x, lambda sae, x: (torch.zeros_like(weight), sae(x)), weight)
    for one, other in zip(apart, whole, strict=True):
        assert_close(one, other, 1e-12)


def test_step_sizes_are_halved_in_these_problems():
    """Else the tests above would not see the trials of `_safe_step`."""
    sae = make(5)
    L = px.lipschitz(sae.W_dec)
    deep = sae.unrolled(4, px.Backtracking())
    how = ksparse_encoder.Steps(sae.penalty, 4, deep.step, L, deep.plan(30), decode=False, keep=False)
    walk = ksparse_encoder._walk(
        rows() - sae.b_dec.detach(), sae.W_enc.detach(), sae.b_enc.detach(), sae.W_dec.detach(), how,
        torch.empty(30 * 96, dtype=torch.float64), None,
    )  # fmt: skip
    first, *later = [mu for _, _, mu, _ in walk]
    assert first == 1 / L
    assert len({round(float(m), 9) for mu in later for m in mu}) >= 2


@pytest.mark.parametrize("steps", [1, 4])
def test_nothing_of_size_batch_by_latents_is_kept(steps):
    sae, kept = make(5).unrolled(steps), []
    with torch.autograd.graph.saved_tensors_hooks(lambda a: kept.append(a) or a, lambda a: a):
        xhat, codes = sae.reconstruct(rows())
        loss = (xhat - rows()).square().sum()
    assert not codes.indices.requires_grad
    weights = {p.untyped_storage().data_ptr() for p in sae.parameters()}
    sizes = [a.numel() for a in kept if a.untyped_storage().data_ptr() not in weights]
    assert max(sizes) <= max(30 * 10, steps * 30 * 5)
    loss.backward()


@pytest.mark.parametrize("rule", RULES)
def test_rows_are_taken_in_pieces(rule, device, monkeypatch):
    sae = make(5, device=device)
    sae = sae.unrolled(3, RULES[rule](px.lipschitz(sae.W_dec)))
    x = rows(device=device).requires_grad_()
    weight = torch.randn(30, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(device)
    whole = gradients(sae, x, by_supports, weight)
    monkeypatch.setattr(cost_model, "AREA", {"cpu": 7 * 96, "cuda": 7 * 96})
    monkeypatch.setattr(cost_model, "MIN_ROWS", 7)
    assert (sae.plan(30).rows, sae.plan(30).columns) == (7, 96)
    for one, other in zip(gradients(sae, x, by_supports, weight), whole, strict=True):
        assert_close(one, other, 1e-12)


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_latents_are_taken_in_blocks(rule, nonneg, monkeypatch):
    """Nine blocks of columns, the last one short, that share their memory; only a CPU takes them so."""
    sae = make(2, nonneg, P=2080)
    sae = sae.unrolled(3, RULES[rule](px.lipschitz(sae.W_dec)))
    x = rows().requires_grad_()
    weight = torch.randn(30, 2080, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    whole = gradients(sae, x, by_supports, weight)
    assert sae.plan(30).columns == 2080
    monkeypatch.setitem(cost_model.AREA, "cpu", 1)
    monkeypatch.setattr(cost_model, "ROWS", 11)
    assert (sae.plan(30).rows, sae.plan(30).columns) == (11, 256)
    for one, other in zip(gradients(sae, x, by_supports, weight), whole, strict=True):
        assert_close(one, other, 1e-12)


@pytest.mark.parametrize("rule", ["Lipschitz", "FixedStep"])
@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize(("P", "width"), [(96, 96), (96, 10), (416, 100)])
def test_gram_rows_take_the_same_steps(P, width, rule, nonneg, device, monkeypatch):
    """Also in pieces of columns, and, with 416 latents, in blocks of 256 and the rest."""
    monkeypatch.setattr(ksparse_encoder, "GRAM_PIECE", P * width)
    if P > 256:
        monkeypatch.setitem(cost_model.AREA, "cpu", 1)
    sae = make(2, nonneg, d=200, P=P, device=device)
    sae = sae.unrolled(6, RULES[rule](px.lipschitz(sae.W_dec)))
    x = rows(5000, 200, device=device)
    monkeypatch.setattr(ksparse_encoder, "free_bytes", lambda device: 0.0)
    with torch.no_grad():
        assert sae.plan(5000).product == "residual"
        residual = sae.encode_sparse(x)
        monkeypatch.setattr(ksparse_encoder, "free_bytes", lambda device: 1e9)
        for kind in cost_model.RHO_S:
            monkeypatch.setitem(cost_model.RHO_S, kind, 10.0)
        assert sae.plan(5000).product == "gram"
        gathered, decode = [], ksparse_encoder.decode
        monkeypatch.setattr(ksparse_encoder, "decode", lambda at, z, W: gathered.append(W.shape) or decode(at, z, W))
        gram = sae.encode_sparse(x)
    assert gathered.count((P, width)) >= 5  # rows of D^T D, in five further steps
    assert_same(gram.indices, residual.indices)
    assert_close(gram.values, residual.values, 1e-11)


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_the_walk_on_supports_counts_products_as_the_dense_one_does(rule, nonneg, device):
    sae, x = make(5, nonneg, device=device), rows(device=device)
    deep = sae.unrolled(6, RULES[rule](px.lipschitz(sae.W_dec)))
    for (codes, spent), point in zip(deep._walk_on_supports(x), deep.walk(x), strict=True):
        assert_close(codes.to_dense(), point.z.detach(), 1e-10)
        assert_same(spent, point.spent)


@pytest.mark.parametrize("rule", ["Lipschitz", "FixedStep"])
def test_a_frozen_stream_makes_its_gram_matrix_once_and_again_for_other_weights(rule, device, monkeypatch):
    monkeypatch.setattr(ksparse_encoder, "free_bytes", lambda device: 1e9)
    for kind in cost_model.RHO_S:
        monkeypatch.setitem(cost_model.RHO_S, kind, 10.0)
    made, blocks = [], ksparse_encoder.gram_blocks
    monkeypatch.setattr(ksparse_encoder, "gram_blocks", lambda D, width: made.append(width) or blocks(D, width))
    sae = make(2, d=200, device=device)
    sae = sae.unrolled(6, RULES[rule](px.lipschitz(sae.W_dec)))
    x = rows(40, 200, device=device)
    deep = sae.frozen(rows=10_000)
    assert deep.plan(7).product == deep.plan(10_000).product == "gram" != sae.plan(15).product
    for change in (1.0, 0.9):
        sae.W_dec.data *= change  # by a road that no counter of changes sees
        for batch in x.split(15):
            got, want = deep.encode_sparse(batch), sae.encode_sparse(batch)
            assert not got.values.requires_grad
            assert_same(got.indices, want.indices)
            assert_close(got.values, want.values.detach(), 1e-11)
    assert len(made) == 2, "once for each dictionary"
    xhat, codes = deep.reconstruct(x)
    assert_close(xhat, deep.decode(codes).detach(), 1e-12)
    assert len(made) == 2
    assert deep.unrolled(2).stream is None, "another number of steps is another plan"


def test_what_cannot_be_frozen_says_so():
    with pytest.raises(px.Error, match=r"frozen is for k-sparse steps by the dictionary, not L1\(lam=0.1"):
        px.SAE(4, 8, px.L1(0.1)).frozen(10)
    with pytest.raises(px.Error, match="rows=0"):
        make(2).frozen(0)


def test_codes_under_gradients_do_not_hang_on_memory(device, monkeypatch):
    """Nor do others, but for those by Gram rows, which are the same to rounding."""
    sae = make(2, d=200, device=device).float().unrolled(6)
    x = rows(5000, 200, device=device).float()
    found = {}
    for kind in cost_model.RHO_S:
        monkeypatch.setitem(cost_model.RHO_S, kind, 10.0)
    for free in (0.0, 1e9):
        monkeypatch.setattr(ksparse_encoder, "free_bytes", lambda device, free=free: free)
        found["gradients", free] = sae.encode_sparse(x)
        with torch.no_grad():
            found[sae.plan(5000).product, free] = sae.encode_sparse(x)
    first = found["residual", 0.0]
    for codes in (found["gradients", 0.0], found["gradients", 1e9]):
        assert_same(codes.values.detach(), first.values)
        assert_same(codes.indices, first.indices)
    assert_same(found["gram", 1e9].indices, first.indices)
    assert_close(found["gram", 1e9].values, first.values, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("steps", [1, 3])
def test_other_dtypes_stay_what_they_are_and_near_float64(dtype, steps, device):
    sae, x = make(5, device=device), rows(device=device)
    deep = sae.unrolled(steps)
    want = deep(x)
    want.square().sum().backward()
    want, grads = want.detach(), [p.grad for p in deep.parameters()]
    deep.zero_grad()
    deep.to(dtype)
    codes = deep.encode_sparse(x.to(dtype))
    xhat = deep(x.to(dtype))
    assert codes.values.dtype == xhat.dtype == dtype
    xhat.float().square().sum().backward()
    assert all(p.grad.dtype == dtype for p in deep.parameters())
    most = {torch.float32: 1e-10, torch.bfloat16: 0.03, torch.float16: 1e-3}[dtype]
    for got, exact in zip((xhat.detach(), *(p.grad for p in deep.parameters())), (want, *grads), strict=True):
        assert float((got.double() - exact).square().sum() / exact.square().sum()) < most


@pytest.mark.parametrize("shape", [(10,), (2, 3, 10), (0, 10), (2, 0, 10)], ids=str)
def test_leading_axes_are_batch(shape, device):
    sae = make(5, device=device).unrolled(3, px.ExactStep())
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    codes = sae.encode_sparse(x)
    assert codes.indices.shape == codes.values.shape == (*shape[:-1], 5)
    assert sae(x).shape == sae.decode(codes).shape == shape
    sae(x).sum().backward()


def test_the_lipschitz_constant_is_kept_until_the_dictionary_changes(monkeypatch):
    from proxsae.sae import encoders as module

    calls = []
    monkeypatch.setattr(module, "squared_norm", lambda D: calls.append(1) or squared_norm(D))
    sae = make(5)
    for deep in (sae.unrolled(2), sae.unrolled(3)):
        deep.encode_sparse(rows())
    assert len(calls) == 1
    sae.W_dec.data[7, 3] += 1e-3  # in place, and unseen by autograd's counter
    before = sae.unrolled(2).encode(rows())
    assert len(calls) == 2
    sae.W_dec.data *= 3
    sae.unrolled(2).encode_sparse(rows())
    assert len(calls) == 3
    sae.W_dec.data /= 3
    assert_close(sae.unrolled(2).encode(rows()), before, 1e-12)
    one = px.SAE(4, 4, px.KSparse(2))
    one.W_dec.data.copy_(torch.eye(4))
    assert module.squared_norm_of(one.W_dec, one.common)[1] == pytest.approx(1)
    one.W_dec.data.copy_(torch.eye(4)[[0, 0, 0, 0]])  # every atom has the norm and the sum that it had
    assert module.squared_norm_of(one.W_dec, one.common)[1] == pytest.approx(4)


def test_a_turn_of_single_atoms_that_leaves_every_mark_is_seen_by_the_counter_of_changes():
    """Atoms turned about the vector of the marks keep norm and product with it, and may become parallel."""
    sae, axis = px.SAE(3, 2, px.KSparse(1)), torch.tensor([1.0, 2.0, 3.0]).cos()
    axis = axis / axis.norm()
    one = torch.linalg.cross(axis, torch.tensor([1.0, 0, 0]))
    one, other = one / one.norm(), torch.linalg.cross(axis, one / one.norm())

    def turned(angle):
        return axis + one * angle.cos() + other * angle.sin()

    def bounds(angle):
        with torch.no_grad():
            sae.W_dec[1] = turned(angle)
        return squared_norm_of(sae.W_dec, sae.common)[1]

    apart = torch.tensor(3.0)
    with torch.no_grad():
        sae.W_dec[0] = turned(torch.tensor(0.0))
    for angle in torch.linspace(0.01, 1, 1000):  # some keep every bit of the marks
        before = bounds(apart)
        marks, after = sae.common.norm[1], bounds(angle)
        assert after > 1.2 * before
        if torch.equal(sae.common.norm[1], marks):
            return
    pytest.fail("no angle left the marks as they were: the test shows nothing")


@pytest.mark.parametrize("scale", [1e-18, 1e20])
def test_step_sizes_of_float32_dictionaries_of_any_scale(scale, device):
    """The squares of large norms are no float32, and the first trial step was 0."""
    sae = make(3, device=device).float()
    with torch.no_grad():
        sae.W_enc /= scale
        sae.b_enc /= scale
        sae.W_dec *= scale
    x = rows(device=device).float()
    first, last = ((x - sae.unrolled(t, px.Backtracking())(x)).square().sum().item() for t in (1, 4))
    assert last < 0.9 * first


def test_no_k_needs_no_blocks(monkeypatch):
    monkeypatch.setitem(cost_model.AREA, "cpu", 1)
    assert px.SAE(4, 2080, px.KSparse(0)).encode_sparse(torch.randn(3, 4)).values.shape == (3, 0)


def test_plans_give_their_reasons():
    small = cost_model.plan(1024, 768, 16384, 32, 4)
    assert (small.rows, small.columns, small.decode, small.product) == (1024, 4096, "sparse", "residual")
    assert small.reasons[1] == "decode: sparse, since rho s k / P = 0.0625 < 1 product"
    many = cost_model.plan(10**6, 2304, 16384, 32, 16, free_bytes=16e9)
    assert many.product == "gram"
    assert "products by Gram rows" in many.reasons[2]
    assert (
        "may take 3.7 (25% of what is free)" in cost_model.plan(10**6, 2304, 32768, 32, 16, free_bytes=16e9).reasons[2]
    )
    assert "differ from row to row" in cost_model.plan(10**6, 2304, 16384, 32, 16, constant_step=False).reasons[2]
    assert "trained" in cost_model.plan(10**6, 2304, 16384, 32, 16, frozen=False, free_bytes=16e9).reasons[2]
    assert cost_model.plan(10**6, 768, 16384, 32, 1).reasons[2] == "further steps: none"
    assert cost_model.plan(8192, 2304, 16384, 128, 2, kind="cuda half", bytes_per_number=2).decode == "dense"
    wide = cost_model.plan(8192, 2304, 131072, 128, 2, kind="cuda half", bytes_per_number=2)
    assert (wide.rows, wide.columns) == (1024, 131072)
    assert cost_model.plan(1024, 768, 16385, 32, 1).columns == 16385  # no whole number of groups
    assert cost_model.plan(1024, 768, 16384, 128, 1).columns == 16384  # too few groups to select among in less
    assert cost_model.plan(1024, 768, 16384, 33, 1).columns == 4224


def test_the_iteration_gathers_where_that_is_cheaper(device):
    """`ista` on tensors multiplies sparse codes by their support; its oracle in NumPy multiplies them out."""
    D, x = make(3, P=400).W_dec.detach(), rows()
    for rule in (px.Lipschitz(), px.ExactStep(), px.Refit()):
        want = px.ista(x.numpy(), D.numpy(), px.KSparse(3), 5, rule)
        got = px.ista(x.to(device), D.to(device), px.KSparse(3), 5, rule)
        assert_close(got.codes.cpu(), torch.tensor(want.codes), 1e-10)
        assert_close(got.objective.cpu(), torch.tensor(want.objective), 1e-10)


@pytest.mark.parametrize("nonneg", [False, True])
def test_an_exact_step_from_zero_may_open_the_latents_that_pad_it(nonneg, device):
    """Rows whose first code is 0 are padded with the lowest indices; the step from there is the reference's."""
    sae = make(4, nonneg, device=device)
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.b_enc.zero_()
    x = rows(200, device=device)
    deep = sae.unrolled(2, px.ExactStep())
    want = px.ista(
        x.cpu().numpy(),
        sae.W_dec.detach().cpu().numpy(),
        sae.penalty,
        1,
        px.ExactStep(),
        bias=sae.b_dec.detach().cpu().numpy(),
    )
    got = deep.encode(x).detach().cpu()
    assert_close(got, torch.tensor(want.codes), 1e-10)
    assert int((got[:, :4] != 0).any(dim=-1).sum()) > 5
