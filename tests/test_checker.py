"""The public checker: it accepts what is right, and says of what is wrong which law, where, and what is better."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.optimize import isotonic_regression

import proxsae as px
from proxsae import testing as pt


def soft(u, step):
    return np.sign(u) * np.maximum(np.abs(u) - u.dtype.type(step), 0) + u.dtype.type(0)


def l1(z):
    return np.abs(z).sum(axis=-1)


CLAIMS = {"convex": True, "separable": True, "even": True, "symmetric": True}


def test_a_right_operator_passes_every_law_that_applies():
    results = pt.check_prox(pt.operator(soft, l1, **CLAIMS))
    assert {"form", "optimal", "rows", "nan", "firm", "monotone", "step", "shrinks", "odd", "permutation"} == {
        r.law for r in results
    }
    assert all(r.problem is None for r in results)


WRONG = {
    "shrinks too little": (lambda u, step: soft(u, step / 2), l1, "optimal"),
    "hard": (lambda u, step: np.where(np.abs(u) > step, u, u.dtype.type(0)), l1, "optimal"),
    "upcasts": (lambda u, step: soft(u, step).astype(np.float64), l1, "form"),
    "writes": (lambda u, step: _writes(u), l1, "form"),
    "crashes on empty rows": (lambda u, step: soft(u, step) + 0 * u.max(axis=-1, keepdims=True), l1, "form"),
    "off by a hair at the tie": (
        lambda u, step: np.where(np.abs(u) == u.dtype.type(step), -u, soft(u, step)),
        l1,
        "optimal",
    ),
    "wrong value": (soft, lambda z: 2 * np.abs(z).sum(axis=-1), "optimal"),
    "looks at the batch": (lambda u, step: soft(u, step) * u.dtype.type(1 + 1e-3 * (len(u) > 1)), l1, "rows"),
    "steps from 0.31 to 0.9": (lambda u, step: soft(u, step * (0.9 if 0.31 < step < 0.9 else 1)), l1, "optimal"),
    "steps from 50 to 140": (lambda u, step: soft(u, step * (0.9 if 50 < step < 140 else 1)), l1, "optimal"),
    "entries above 1000": (lambda u, step: np.where(np.abs(u) > 1000, 0 * u, soft(u, step)), l1, "optimal"),
    "entries below 1e-3": (lambda u, step: np.where(np.abs(u) < 1e-3, u, soft(u, step)), l1, "optimal"),
    "rows of size 1e-3": (lambda u, step: _if(np.abs(u) < 1e-3, u, soft(u, step)), l1, "optimal"),
    "rows wider than 5": (lambda u, step: soft(u, step * (1 if u.shape[-1] <= 5 else 0.9)), l1, "optimal"),
    "past the fifth entry": (
        lambda u, step: np.concatenate([soft(u[..., :5], step), soft(u[..., 5:], step / 2)], -1),
        l1,
        "optimal",
    ),
    "batches of three axes": (lambda u, step: soft(u, step * (1 if u.ndim < 3 else 2)), l1, "rows"),
    "batches of four axes": (lambda u, step: soft(u, step * (1 if u.ndim < 4 else 2)), l1, "rows"),
    "NaN becomes 0": (lambda u, step: np.nan_to_num(soft(u, step)), l1, "nan"),
    "NaN spreads": (lambda u, step: soft(u, step) + 0 * u.sum(axis=-1, keepdims=True), l1, "nan"),
}


def _if(entries, yes, no):
    return np.where(entries.all(axis=-1, keepdims=True), yes, no)


def _writes(u):
    u += 1
    return u


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_operator_is_refused_by_the_law(name):
    prox, value, law = WRONG[name]
    op = pt.operator(prox, value, **CLAIMS, name=name)
    with pytest.raises(pt.LawViolation):
        pt.check_prox(op)
    assert any(r.violation for r in pt.results(op, n=200, laws=[law]))  # up to the first that does


def test_a_violation_names_the_law_the_input_and_a_better_point():
    R = pt.operator(lambda u, step: soft(u, step / 2), l1, **CLAIMS, name="mine")
    with pytest.raises(pt.LawViolation, match="mine breaks the law 'optimal'") as caught:
        pt.check_prox(R, laws=["optimal"])
    violation = caught.value
    assert isinstance(violation, AssertionError)
    assert violation.law == "optimal"
    u, z, step = violation.input.astype(np.float64), violation.better.point, violation.step
    cost = [step * l1(a) + 0.5 * ((a - u) ** 2).sum() for a in (z, violation.got.astype(np.float64))]
    pt.assert_close(np.array(cost), np.array([violation.better.objective, violation.better.objective_of_got]), 1e-12)
    assert cost[0] < cost[1]
    assert np.array_equal(violation.got, R.prox(violation.input, step))


@pytest.mark.parametrize("mutant", [pt.MUTANTS[1], pt.MUTANTS[10], pt.MUTANTS[24]], ids=lambda m: m.name)
def test_the_snippet_in_the_message_runs_and_fails_the_same_way(mutant):
    violation = next(r.violation for r in pt.results(mutant) if r.violation)
    snippet = str(violation).split("\n\n", 1)[1]
    with pytest.raises(pt.LawViolation, match=f"law '{violation.law}'"):
        exec(snippet, {"R": mutant})


def test_a_snippet_of_our_own_penalty_stands_alone(monkeypatch):
    monkeypatch.setattr(px.L1, "_prox", lambda self, u, step: u.copy())
    violation = next(r.violation for r in pt.results(px.L1(np.array([0.5, 1.0]))) if r.violation)
    snippet = str(violation).split("\n\n", 1)[1]
    with pytest.raises(pt.LawViolation):
        exec(snippet, {})


def test_expected_failures_are_strict():
    wrong = pt.operator(lambda u, step: soft(u, step).astype(np.float64), l1, **CLAIMS)
    results = pt.check_prox(wrong, laws=["form", "firm"], expected_failures={"form": "it upcasts"})
    assert {r.expected for r in results if r.violation} == {"it upcasts"}
    with pytest.raises(AssertionError, match=r"'firm' was expected to fail \(a guess\), but it holds"):
        pt.check_prox(pt.operator(soft, l1, **CLAIMS), laws=["form"], expected_failures={"firm": "a guess"})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"laws": ["nonsense"]}, "no law is called 'nonsense'"),
        ({"expected_failures": {"nonsense": "why"}}, "no law is called 'nonsense'"),
        ({"on_fail": "shrug"}, "on_fail='shrug'"),
    ],
)
def test_bad_arguments(arguments, says):
    with pytest.raises(px.Error, match=says):
        pt.check_prox(px.L1(1.0), **arguments)
    with pytest.raises(px.Error, match="must be one of"):
        pt.check_law("optimal", px.L1(1.0), np.ones(2), backend="numpy-float8")


def test_the_oracle_is_global_for_penalties_that_are_not_convex():
    """min(|z|, 1): the prox at step 2 jumps at |u| = 2, and a map that is right only locally stays in its well."""

    def capped(z):
        return np.minimum(np.abs(z), 1).sum(axis=-1)

    def right(u, step):
        shrunk = soft(u, step)
        cost = [step * np.minimum(np.abs(z), 1) + 0.5 * (z - u) ** 2 for z in (shrunk, u)]
        return np.where(cost[0] <= cost[1], shrunk, u) + u.dtype.type(0)

    pt.check_prox(pt.operator(right, capped, separable=True, even=True, symmetric=True))
    with pytest.raises(pt.LawViolation, match="optimal"):
        pt.check_prox(pt.operator(soft, capped, separable=True, even=True, symmetric=True))


def test_thresholds_of_an_operator_without_parameters_are_found():
    """A tie rule broken at one float, 0.7 * step, which no parameter names: only watching the output finds it."""

    def slips(u, step):
        t = u.dtype.type(0.7 * step)
        return np.where(np.abs(u) == np.nextafter(t, u.dtype.type(9)), -u, soft(u, 0.7 * step))

    with pytest.raises(pt.LawViolation):
        pt.check_prox(pt.operator(slips, lambda z: 0.7 * l1(z), **CLAIMS))


def test_row_functions_and_torch_functions_are_operators():
    def simplex_free(u, step):  # one row at a time: the projection on ||z|| <= 1
        norm = np.linalg.norm(u)
        return u if norm <= 1 else (u / norm).astype(u.dtype)

    def ball(z):
        return np.where(np.linalg.norm(z) <= 1 + 1e-6, 0.0, np.inf)

    pt.check_prox(
        pt.operator(lambda u, s: simplex_free(u, s) + u.dtype.type(0), ball, convex=True, batched=False, widths=(1, 3)),
        laws=["form", "optimal", "rows", "firm", "monotone"],
        backends=pt.NUMPY[:1],  # the ball is 1e-6 too large, so that rounded points are in it
    )

    def prox(u, step):
        return torch.where(u > step, u - step, torch.where(u < -step, u + step, 0 * u))

    right = pt.operator(prox, lambda z: z.abs().sum(-1), **CLAIMS)
    assert {r.backend for r in pt.check_prox(right, n=40)} == {"torch-cpu-float32", "torch-cpu-float64"}
    wrong = pt.operator(lambda u, step: prox(u, step / 2), lambda z: z.abs().sum(-1), **CLAIMS)
    with pytest.raises(pt.LawViolation, match="torch-cpu-float32"):
        pt.check_prox(wrong)


def test_an_operator_of_one_row_gets_fewer_rows_and_the_result_says_so():
    calls = []

    def isotonic(u, step):
        calls.append(1)
        return isotonic_regression(u.astype(np.float64)).x.astype(u.dtype)

    def increasing(z):
        calls.append(1)
        return 0.0 if (np.diff(z) >= -1e-5).all() else np.inf

    few = pt.operator(isotonic, increasing, convex=True, indicator=True, batched=False)
    (result,) = pt.check_prox(few, laws=["optimal"], backends=pt.NUMPY[1])
    (usual,) = pt.check_prox(pt.operator(soft, l1, separable=True), laws=["optimal"], backends=pt.NUMPY[1])
    assert 300 < result.rows < usual.rows / 20
    assert 100 * result.rows < len(calls) < 500 * result.rows  # the oracle's work for each row is the same
    backwards = pt.operator(lambda u, step: isotonic(u[::-1], step)[::-1], increasing, indicator=True, batched=False)
    with pytest.raises(pt.LawViolation):
        pt.check_prox(backwards, laws=["optimal"])


def test_check_backend_sees_a_backend_that_differs(device):
    good, bad = pt.torch_backends(device)[0], px.L0(0.5)
    for R in (px.KSparse(2), px.SortedL1(0.5)):
        pt.check_backend(R, good)
    with pytest.raises(AssertionError, match="differ"):
        pt.check_backend(px.L0(0.51), good, reference=bad)
    with pytest.raises(AssertionError, match="differ"):
        pt.check_backend(px.SortedL1(0.51), good, reference=px.SortedL1(0.5))


def test_parametrize_with_laws_makes_one_test_a_law():
    mark = pt.parametrize_with_laws([px.L1(0.5), pt.MUTANTS[0]], n=10)
    ids = [case.id for case in mark.args[1]]
    assert len(ids) == len(set(ids)) > 20
    failed = set()
    for case in mark.args[1]:
        try:
            case.values[0]()
        except pt.LawViolation as violation:
            failed.add((violation.operator, violation.law))
    assert {law for _, law in failed} == {"optimal", "convention", "moreau"}
    assert len({who for who, _ in failed}) == 1


def test_ids_hold_no_addresses_and_are_the_same_in_every_run():
    class Mine:
        def prox(self, u, step=1.0):
            return u

        def value(self, z):
            return 0 * z.sum(-1)

    operators = [Mine(), px.L1(0.5), pt.MUTANTS[0], Mine()]
    ids = [case.id for case in pt.parametrize_with_laws(operators).args[1]]
    assert ids == [case.id for case in pt.parametrize_with_laws([Mine(), *operators[1:3], Mine()]).args[1]]
    assert len(ids) == len(set(ids))
    assert {"Mine 1-form-numpy-float32", "Mine 2-form-numpy-float32"} <= set(ids)
    assert not any("0x" in name for name in ids)


@pytest.mark.parametrize("call", [pt.check_prox, lambda op: pt.check_backend(op, pt.NUMPY[0])])
def test_a_function_is_refused_with_what_to_write(call):
    with pytest.raises(px.Error, match=r"soft is no operator.* wrap it: px.testing.operator\(prox=soft, value=...\)"):
        call(soft)
    with pytest.raises(px.Error, match=r"make one, L1\(...\)"):
        call(px.L1)


def test_a_law_that_is_misspelt_gets_the_nearest_name():
    with pytest.raises(px.Error, match=r"called 'optmal': did you mean optimal\? laws are"):
        pt.check_prox(px.L1(1.0), laws=["optmal"])


def test_the_checker_needs_numpy_only():
    code = """
import sys
sys.modules["torch"] = sys.modules["pytest"] = sys.modules["hypothesis"] = sys.modules["z3"] = None
import numpy as np, proxsae as px
px.testing.check_prox(px.MCP(0.5), n=10)
px.testing.check_prox(px.testing.operator(lambda u, s: u / u.dtype.type(1 + s), lambda z: 0.5 * (z * z).sum(-1)), n=10)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_every_law_reaches_an_operator_and_every_operator_three_laws():
    reached = {law.name for law in pt.LAWS for R in pt.OPERATORS.values() if law.applies(R, pt.torch_backends()[0])}
    assert reached == {law.name for law in pt.LAWS}
    assert {type(R) for R in pt.OPERATORS.values()} == set(px.penalties.FAMILIES.values())


def test_flags_imply_one_another():
    for R in pt.OPERATORS.values():
        assert R.rowwise or not R.separable
        assert not (R.separable and R.indicator)
        if R.indicator:
            assert set(np.unique(R.value(np.eye(5)))) <= {0.0, np.inf}
