"""Working sets against coordinate descent in plain NumPy and the KKT conditions, on ordinary and awkward rows."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae import testing as pt
from proxsae.certificates import l1_gap
from proxsae.pytorch import lasso_working_sets
from proxsae.testing.compare import numpy_of
from tests.twins.test_iteration import problem, tensors


def coordinate_descent(x, D, lam, nonneg, sweeps):
    """One row, one coordinate at a time, until nothing moves; an upper bound on the optimum before that."""
    z, r, lam = np.zeros(len(D)), x.copy(), np.broadcast_to(lam, len(D))
    for _ in range(sweeps):
        largest = 0.0
        for j, d in enumerate(D):
            square = d @ d
            if square:
                u = z[j] + d @ r / square
                new = max(u - lam[j] / square, 0) if nonneg else np.sign(u) * max(abs(u) - lam[j] / square, 0)
                r, largest, z[j] = r - (new - z[j]) * d, max(largest, abs(new - z[j])), new
        if largest < 1e-13:
            break
    return z


def kkt_violation(x, D, z, lam, nonneg):
    """How far D^T r is from lam_j sign(z_j) on the support and from [-lam_j, lam_j] off it, worst entry of each row."""
    slope, lam = (x - z @ D) @ D.T, np.broadcast_to(lam, z.shape)
    off = np.maximum((slope if nonneg else np.abs(slope)) - lam, 0)
    return np.where(z != 0, np.abs(slope - lam * np.sign(z)), off).max(axis=-1)


def assert_bounds(gap, x, D, z, R):
    """No gap is below the plain one, or above it by more than is allowed for rounding (lem-sure-gap)."""
    gap, plain = gap.cpu().numpy(), l1_gap(x, D, z, R)[2]
    size = np.linalg.norm(x, axis=-1) + np.abs(z) @ np.linalg.norm(D, axis=-1)
    assert (gap >= plain).all()
    assert (gap <= plain + 1e-12 * size**2).all()


def run(x, D, R, device="cpu", tol=1e-9, max_steps=1000, dtype=torch.float64):
    codes, gap, steps, converged, _, left = lasso_working_sets.solve(*tensors(device, x, D), R, tol, max_steps, dtype)
    return codes, gap, steps, converged, left


def atoms(name, rng, d=12, P=30):
    D = rng.standard_normal((P, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    if name == "duplicates":
        D[P // 2 :], D[0] = D[: P - P // 2], 0.0
    elif name == "opposites":
        D[P // 2 :] = -D[: P - P // 2]
    elif name == "scaled":
        D *= np.exp(rng.uniform(-5, 3, (P, 1)))
    elif name == "coherent":
        D = 0.05 * D + D[0]
    elif name == "few":
        D = D[:5]
    elif name == "one dimension":
        D = D[:, :1]
    elif name == "rank two":
        D = rng.standard_normal((P, 2)) @ rng.standard_normal((2, d))
    return D


KINDS = ["plain", "duplicates", "opposites", "scaled", "coherent", "few", "one dimension", "rank two"]


@pytest.fixture(params=["gram", "products"])
def way(request, monkeypatch):
    """Both ways to a Gram matrix: of the whole dictionary, with float64 products, or row by row, with float32 ones."""
    monkeypatch.setattr(lasso_working_sets, "GRAM_ATOMS", 0 if request.param == "products" else 10**9)
    monkeypatch.setattr(lasso_working_sets, "FIRST", 3 if request.param == "products" else 100)
    return request.param


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_solutions_fulfil_kkt_and_are_as_good_as_coordinate_descent(kind, nonneg, way, device):
    rng = np.random.default_rng(KINDS.index(kind))
    D = atoms(kind, rng)
    x = rng.standard_normal((7, D.shape[1])) * np.exp(rng.uniform(-2, 2, (7, 1)))
    x[0] = 0
    top = np.abs(x @ D.T).max(axis=1)
    for lam in (0.05 * np.median(top), 0.4 * np.median(top), np.full(len(D), 0.1) * np.arange(1, len(D) + 1)):
        R = px.L1(lam, nonneg)
        codes, gap, steps, converged, left = run(x, D, R, device)
        pt.assert_same(left, ~converged)
        assert kind == "coherent" or bool(converged.all())  # atoms 3 degrees apart are left to the general iteration
        z, done = codes.cpu().numpy(), converged.cpu().numpy()
        objective = 0.5 * ((x - z @ D) ** 2).sum(-1) + R.value(z)
        oracle = np.stack([coordinate_descent(row, D, lam, nonneg, 100) for row in x])
        assert (objective <= 0.5 * ((x - oracle @ D) ** 2).sum(-1) + R.value(oracle) + 1e-9 * objective)[done].all()
        assert (kkt_violation(x, D, z, lam, nonneg) <= 1e-4 * np.max(lam))[done].all()
        assert_bounds(gap, x, D, z, R)
        assert not z[0].any()
        assert ((steps >= 1) & (steps <= lasso_working_sets.ROUNDS)).all()


def test_codes_equal_coordinate_descent_where_they_are_unique(way, device):
    x, D, _ = problem(n=3, d=20, P=60)
    for lam, nonneg in ((0.5, False), (0.5, True), (np.linspace(0.2, 1.5, 60), False)):
        codes = run(x, D, px.L1(lam, nonneg), device, tol=1e-12)[0]
        oracle = np.stack([coordinate_descent(row, D, lam, nonneg, 2000) for row in x])
        pt.assert_close(codes, torch.tensor(oracle, device=device), 1e-6)


def test_float32_certificates_are_true_and_of_the_returned_codes(way, device):
    """The float32 product only selects: a gap that it hides would show in `duality_gap`, worked out in float64."""
    rng = np.random.default_rng(3)
    D = atoms("plain", rng, 64, 600)
    x = rng.standard_t(2, (200, 64))
    x, D = x.astype(np.float32).astype(np.float64), D.astype(np.float32).astype(np.float64)
    R = px.L1(0.3 * float(np.median(px.lambda_max(x, D))))
    codes, gap, steps, converged, _ = run(x, D, R, device, 1e-6, dtype=torch.float32)
    z = codes.cpu().numpy().astype(np.float64)
    assert codes.dtype == torch.float32
    assert bool(converged.all())
    exact = px.duality_gap(x, D, z, R)
    assert_bounds(gap, x, D, z, R)
    assert (exact <= 1e-6 * (0.5 * ((x - z @ D) ** 2).sum(-1) + R.value(z))).all()
    assert 1 < float(steps.double().mean()) < 6


def test_zero_lam_of_independent_atoms_is_least_squares(device):
    """Working sets find no gap of their own there; that of the code, off all atoms, is small (lem-unpenalised)."""
    rng = np.random.default_rng(0)
    D, x = rng.standard_normal((5, 12)), rng.standard_normal((4, 12))
    codes, _, _, converged, left = run(x, D, px.L1(0.0), device)
    pt.assert_close(codes, torch.tensor(np.linalg.lstsq(D.T, x.T, rcond=None)[0].T, device=device), 1e-9)
    assert bool(converged.all())
    assert not left.any()
    assert run(x, D, px.L1(0.0), device, max_steps=5)[2].tolist() == [5] * 4


@pytest.mark.parametrize("nonneg", [False, True])
def test_unpenalised_latents_are_certified_and_no_worse_than_coordinate_descent(nonneg, device):
    x, D, _ = problem(n=6, d=16, P=40)
    lam = np.full(40, 0.4)
    lam[[3, 8, 20]] = 0.0
    R, at = px.L1(lam, nonneg), tensors(device, x, D)
    oracle = np.stack([coordinate_descent(row, D, lam, nonneg, 2000) for row in x])
    least = 0.5 * ((x - oracle @ D) ** 2).sum(-1) + R.value(oracle)
    for found in (px.solve(*at, R), px.solve(*at, px.L1(torch.tensor(lam, device=device), nonneg)), px.solve(x, D, R)):
        assert bool(found.converged.all())
        assert int(found.steps.max()) < 1000
        z = numpy_of(found.codes)
        F = 0.5 * ((x - z @ D) ** 2).sum(-1) + R.value(z)
        assert (F - least <= numpy_of(found.gap) + 1e-12 * F).all()
        assert z[:, lam == 0].any()
    assert nonneg or int(px.solve(*at, R).steps.max()) < 15  # the rest is a lasso for working sets
    float32 = px.solve(*(a.float() for a in at), R, tol=1e-5)
    assert bool(float32.converged.all())
    hopeless = px.solve(*(a.float() for a in at), R, tol=1e-10)
    assert bool(hopeless.at_rounding.all())


def test_dependent_unpenalised_atoms_leave_the_bound_true(device):
    """Their least squares has no code of its own, and no gap but F is proved; nothing is called converged."""
    x, D, _ = problem(n=3, d=16, P=40)
    lam = np.full(40, 0.4)
    lam[:3], D[2] = 0.0, D[1]
    R = px.L1(lam)
    found = px.solve(*tensors(device, x, D), R, max_steps=60)
    assert not found.converged.any()
    z = numpy_of(found.codes)
    pt.assert_close(px.duality_gap(x, D, z, R), 0.5 * ((x - z @ D) ** 2).sum(-1) + R.value(z), 1e-9)


def test_steps_bound_the_work_and_unfinished_rows_say_so(way, device):
    x, D, _ = problem(n=6, d=16, P=40)
    R = px.L1(0.5)
    before = np.full(6, np.inf)
    for max_steps in range(4):
        codes, gap, steps, converged, left = run(x, D, R, device, max_steps=max_steps)
        assert int(steps.max()) <= max_steps
        assert not left.any()
        z = codes.cpu().numpy()
        assert_bounds(gap, x, D, z, R)
        objective = 0.5 * ((x - z @ D) ** 2).sum(-1) + R.value(z)
        assert (objective <= before + 1e-12).all()
        before = objective
        if max_steps == 0:
            assert not codes.any()
            assert not converged.any()
    none = run(x, D, px.L1(1e3), device, max_steps=0)
    assert bool(none[3].all())
    assert none[2].tolist() == [0] * 6


def test_empty_batches_pieces_and_threads_change_nothing(monkeypatch, device):
    x, D, _ = problem(n=40, d=16, P=40)
    R = px.L1(0.4)
    assert run(x[:0], D, R, device)[0].shape == (0, 40)
    whole = run(x, D, R, device)
    monkeypatch.setattr(lasso_working_sets, "FEW_ROWS", 7)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        parts = run(x, D, R, device)
        with ThreadPoolExecutor(1) as pool:  # a thread started later gets what the process was set to
            assert torch.get_num_threads() == pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(lasso_working_sets, "PIECE", 200)
    monkeypatch.setattr(lasso_working_sets, "GROUP", 64)
    monkeypatch.setattr(lasso_working_sets, "CHUNK", 64)
    monkeypatch.setattr(lasso_working_sets, "PRODUCT_ROWS", 1)
    small = run(x, D, R, device)
    for other in (parts, small):
        pt.assert_close(other[0], whole[0], 1e-7)
        assert bool(other[3].all())


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_units_do_not_matter(scale, way, device):
    x, D, _ = problem(n=5, d=16, P=40)
    want = run(x, D, px.L1(0.4), device)[0]
    codes, _, _, converged, _ = run(scale * x, D, px.L1(0.4 * scale), device)
    assert bool(converged.all())
    pt.assert_close(codes / scale, want, 1e-7)
    codes, _, _, converged, _ = run(x, scale * D, px.L1(0.4 * scale), device)
    assert bool(converged.all())
    pt.assert_close(codes * scale, want, 1e-7)


def test_hopeless_tolerance_ends_where_only_rounding_is_left(device):
    x, D, _ = problem(n=5, d=16, P=40)
    x, D = x.astype(np.float32).astype(np.float64), D.astype(np.float32).astype(np.float64)
    _, _, steps, converged, left = run(x, D, px.L1(0.5), device, 1e-12, dtype=torch.float32)
    assert not converged.any()
    assert not left.any()
    assert int(steps.max()) < lasso_working_sets.ROUNDS
    x, D = (a.astype(np.float32) for a in (x, D))
    for at in (tensors(device, x, D), (x, D)):
        for tol, max_steps, at_rounding in ((1e-12, 3000, True), (1e-5, 3000, False), (1e-12, 1, False)):
            found = px.solve(*at, px.L1(0.5), tol=tol, max_steps=max_steps)
            assert found.at_rounding.tolist() == [at_rounding] * 5
            assert found.converged.tolist() == [tol == 1e-5] * 5


def test_what_rounding_to_float32_costs_is_not_certified(way, device):
    """At a tolerance between the gaps that rounding leaves, rows above it say that they have not converged."""
    x, D, _ = problem(n=200, d=20, P=60)
    R = px.L1(0.5)

    def relative_gaps(tol):
        codes, _, _, converged, _ = run(x, D, R, device, tol=tol, dtype=torch.float32)
        z = codes.double().cpu().numpy()
        return px.duality_gap(x, D, z, R) / (0.5 * ((x - z @ D) ** 2).sum(-1) + R.value(z)), converged.cpu().numpy()

    tol = float(np.median(relative_gaps(1e-12)[0]))
    gaps, converged = relative_gaps(tol)
    assert 20 < converged.sum() < 180
    assert (gaps[converged] <= (1 + 1e-6) * tol).all()  # one row is the median itself


def test_no_two_columns_of_rows_share_memory(monkeypatch):
    """A verdict that was written over another one once certified rows whose rounding cost more than tol."""
    seen = []
    taken = lasso_working_sets._round
    monkeypatch.setattr(lasso_working_sets, "_round", lambda rows, *a: seen.append(rows) or taken(rows, *a))
    x, D, _ = problem(n=6, d=16, P=40)
    run(x, D, px.L1(0.5))
    for rows in seen:
        columns = [c.data_ptr() for c in vars(rows).values() if c.numel()]
        assert len(set(columns)) == len(columns)


def test_an_atom_that_only_rounding_makes_a_violator_counts(device):
    """The code 1/2 + 3 2^-26 is rounded up to float32, and d_1^T r, which was 2^-30 below lam, rises above it."""
    lam, up = 0.5, 2.0**-26
    D = np.array([[1.0, 0, 0], [-0.8, 0.6, 0]])
    r = np.array([lam, (1.8 * lam - 2.0**-30) / 0.6, 0.1])
    x = (r + (0.5 + 3 * up) * D[0])[None]
    tol = 1.3 * 0.5 * up / (0.5 * r @ r + 0.25)  # the gap is 1 on atom 0, and 1.8 on both, in units of up / 2
    assert bool(run(x, D, px.L1(lam), device, tol=tol)[3].all())
    codes, gap, _, converged, _ = run(x, D, px.L1(lam), device, tol=tol, dtype=torch.float32)
    z = codes.double().cpu().numpy()
    assert ((x - z @ D) @ D[1] > lam).all()
    assert 1.7 < float(gap[0]) / (0.5 * up) < 1.9
    assert_bounds(gap, x, D, z, px.L1(lam))
    assert not converged.any()


def test_a_violator_that_the_float32_product_hides_is_found(monkeypatch, device):
    """d_1^T r is above lam by less than the rounding of the product that looks for such atoms, in every row."""
    monkeypatch.setattr(lasso_working_sets, "GRAM_ATOMS", 0)
    monkeypatch.setattr(lasso_working_sets, "FIRST", 1)  # it is not taken up before it is a violator
    rng = np.random.default_rng(0)
    D = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    over = 0.5 * (1 + rng.uniform(1e-9, 4e-8, (300, 1)))
    x = 2 * D[:1] + over * D[1:2] + rng.uniform(0.1, 0.3, (300, 8)) @ D[2:10]
    R = px.L1(0.5)
    codes, gap, _, converged, _ = run(x, D, R, device, tol=1e-10)
    assert bool(converged.all())
    assert_bounds(gap, x, D, codes.cpu().numpy(), R)


@pytest.mark.parametrize("rows", [20, 300])
def test_inference_mode_and_autocast_change_nothing(rows, device):
    x, D, _ = problem(n=rows, d=16, P=200)
    x, D = (a.float() for a in tensors(device, x, D))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        want = px.solve(x, D, px.L1(0.5))
        with torch.inference_mode():
            inside = px.solve(x, D, px.L1(0.5))
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            cast = px.solve(x, D, px.L1(0.5))
    finally:
        torch.set_num_threads(threads)
    for other in (inside, cast):
        pt.assert_same(other.codes.clone(), want.codes)
        pt.assert_same(other.converged.clone(), want.converged)


@pytest.mark.parametrize("rows", [20, 300])
def test_nothing_is_recorded_for_gradients(rows, device, monkeypatch):
    x, D, _ = problem(n=rows, d=16, P=200)
    x, D = (a.requires_grad_() for a in tensors(device, x, D))
    seen = []
    taken = lasso_working_sets._round
    monkeypatch.setattr(
        lasso_working_sets, "_round", lambda rows, *a: seen.append(rows.z.requires_grad) or taken(rows, *a)
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        px.solve(x, D, px.L1(0.5))
    finally:
        torch.set_num_threads(threads)
    assert len(seen) >= 2
    assert not any(seen)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this torch has only the older interface")
def test_precision_that_is_set_by_the_newer_interface_is_understood(device):
    x, D, _ = problem(n=4, d=16, P=200)
    before = torch.backends.fp32_precision
    try:
        torch.backends.fp32_precision = "tf32"
        assert bool(px.solve(*tensors(device, x, D), px.L1(0.5)).converged.all())
    finally:
        torch.backends.fp32_precision = before


def test_rows_beyond_the_floats_leave_the_others_alone(device):
    """A code or objective that overflows, or is lost to underflow, is not certified and does not stop the others."""
    x, D, _ = problem(n=5, d=16, P=40)
    want, others = px.solve(*tensors(device, x, D), px.L1(0.5)), [0, 1, 3, 4]
    large = x * np.array([1, 1, 1e160, 1, 1])[:, None]
    got = px.solve(*tensors(device, large, D), px.L1(0.5), max_steps=50)
    assert got.converged.tolist() == [True, True, False, True, True]
    pt.assert_close(got.codes[others], want.codes[others], 1e-9)
    faint = px.solve(*tensors(device, 1e-165 * x, D), px.L1(1e-166), max_steps=50)
    assert not faint.converged.any()
    half = px.solve(*(a.half() for a in tensors(device, 1e3 * x, 1e-2 * D)), px.L1(0.1), max_steps=5)
    assert not half.codes.isfinite().all()
    assert not half.converged[half.gap.isinf()].any()


@pytest.mark.parametrize("P", [40, 200])
def test_tiny_atoms_give_no_nan(P, way, device):
    x, D, _ = problem(n=5, d=16, P=P)
    want = run(x, D, px.L1(0.5), device)[0]
    codes, _, _, converged, _ = run(x, 1e-160 * D, px.L1(0.5e-160), device)
    assert bool(converged.all())
    pt.assert_close(1e-160 * codes, want, 1e-7)
