"""Whatever the size of x and D, in every dtype: the objective never rises, or one sentence says why, in both wings."""

import numpy as np
import pytest
import torch

import proxsae as px

RULES = [px.Lipschitz(), px.Backtracking(), px.ExactStep(), px.Refit()]
PENALTIES = {
    "L1": lambda D, x: px.L1(0.3 * D * x),
    "L1 nonneg": lambda D, x: px.L1(0.3 * D * x, nonneg=True),
    "L0": lambda D, x: px.L0(0.1 * x * x),
    "KSparse": lambda D, x: px.KSparse(4),
    "KSparse nonneg": lambda D, x: px.KSparse(4, nonneg=True),
}
SIZES = {  # of D and of x
    torch.float16: [(1e-3, 1), (0.03, 1), (0.3, 1), (30, 1), (300, 1), (0.03, 100), (3e-4, 1000)],
    torch.bfloat16: [(1e-30, 1), (1e-20, 1), (1e20, 1), (1, 1e20), (1, 1e-20), (1e20, 1e20)],
    torch.float32: [
        (1e-30, 1),
        (1e-20, 1),
        (1e20, 1),
        (1, 1e20),
        (1, 1e-20),
        (1e20, 1e20),
        (1e10, 1e20),
        (1e-20, 1e20),
    ],
}
CASES = [(dtype, D, x) for dtype, sizes in SIZES.items() for D, x in sizes]
HOPELESS = [(3e-4, 1000), (1e20, 1e20), (1e-20, 1e20)]  # codes, or gradients, that are no numbers of the dtype


def problem(dtype, D, x):
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((40, 16))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    return [torch.tensor(a).to(dtype) for a in (x * rng.standard_normal((6, 16)), D * atoms)]


def objectives(x, D, R, steps):
    """F of each code, in float64."""
    x, D = x.double(), D.double()
    return torch.stack([0.5 * (x - z.double() @ D).square().sum(-1) + R.value(z.double()) for z in steps])


def check_descent(F, dtype, hopeless=False):
    assert bool(F.isfinite().all())
    assert float(F.diff(dim=0).max()) <= 40 * torch.finfo(dtype).eps * float(F[0].max())
    assert hopeless or bool((F[-1] < 0.9 * F[0]).any())


def says_so(run):
    """The steps, or None where one sentence says that they left the range of the dtype."""
    try:
        return [torch.as_tensor(z).detach() for z in run().steps]
    except px.Error as error:
        assert "left the range of" in str(error)  # noqa: PT017
        return None


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid", "ignore:divide")  # NumPy's, of what is then refused
@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize(("dtype", "D", "x"), CASES, ids=str)
def test_the_objective_never_rises(dtype, D, x, name, rule, device):
    R, hopeless = PENALTIES[name](D, x), (D, x) in HOPELESS
    rows, atoms = problem(dtype, D, x)
    found = [says_so(lambda: px.ista(rows.to(device), atoms.to(device), R, 6, rule, keep="all"))]
    if dtype != torch.bfloat16:
        found.append(says_so(lambda: px.ista(rows.numpy(), atoms.numpy(), R, 6, rule, keep="all")))
    assert hopeless or None not in found
    F = [objectives(rows, atoms, R, [z.cpu() for z in steps]) for steps in found if steps is not None]
    for one in F:
        check_descent(one, dtype, hopeless)
    if len(F) == 2 and R.convex and not hopeless:
        assert float((F[0] - F[1]).abs().max()) <= 100 * torch.finfo(dtype).eps * float(F[0].max())


@pytest.mark.parametrize("rule", RULES[1:], ids=repr)
@pytest.mark.parametrize("name", ["L1", "L1 nonneg", "KSparse", "KSparse nonneg"])
@pytest.mark.parametrize(("D", "x"), [(1e100, 1e-120), (1e115, 1e-138)], ids=str)
def test_nor_where_the_squares_of_a_move_underflow(D, x, name, rule, device):
    """0 <= 0 says nothing of a trial; of float64 itself, since the squares of other dtypes are taken in it."""
    R, (rows, atoms) = PENALTIES[name](D, x), problem(torch.float64, D, x)
    codes = [px.ista(rows.to(device), atoms.to(device), R, 6, rule, keep="all").steps]
    codes.append(px.ista(rows.numpy(), atoms.numpy(), R, 6, rule, keep="all").steps)
    if name.startswith("KSparse") and rule != px.Refit():
        sae = px.SAE(16, 40, R).to(device, torch.float64)
        with torch.no_grad():
            sae.W_dec.copy_(atoms), sae.W_enc.copy_((atoms / D / D / 8).T)
            codes.append([sae.unrolled(t, rule).encode(rows.to(device)) for t in (1, 2, 4, 7)])
    for steps in codes:
        check_descent(objectives(rows, atoms, R, [torch.as_tensor(z).cpu() for z in steps]), torch.float64, True)


ENCODERS = [{"step": rule} for rule in RULES] + [{"step": px.LearnedSteps()}, {"analysis": "encoder"}]


@pytest.mark.parametrize("encoder", ENCODERS, ids=str)
@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize(
    ("dtype", "D", "x"), [case for case in CASES if case[1:] not in [*HOPELESS, (1e10, 1e20)]], ids=str
)
def test_nor_does_it_in_an_sae(dtype, D, x, name, encoder, device):
    rows, atoms = (a.to(device) for a in problem(dtype, D, x))
    R = PENALTIES[name](D, x)
    sae = px.SAE(16, 40, R).to(device, dtype)
    with torch.no_grad():
        sae.W_dec.copy_(atoms)
        sae.W_enc.copy_((atoms.double() / D / D / 8).to(dtype).T)
    if "LearnedSteps" in str(encoder) and not 1e-15 < D < 1e15 and dtype != torch.float16:
        with pytest.raises(px.Error, match="out of the range of"):
            sae.unrolled(2, **encoder)
        return
    zero = torch.zeros(6, 40, dtype=dtype, device=device)
    codes = [zero, *(sae.unrolled(t, **encoder).encode(rows).detach() for t in (2, 4, 7))]
    F = objectives(rows.cpu(), atoms.cpu(), R, [z.cpu() for z in codes])
    if R.convex or name.startswith("KSparse"):  # else the first step, of size 1, need not fall
        check_descent(F[1:], dtype, hopeless=True)
    assert bool(F.isfinite().all())
