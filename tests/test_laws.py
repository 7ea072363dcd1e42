"""The product of laws and operators on every backend, and the proof that the laws can fail."""

import itertools

import numpy as np
import pytest

import proxsae as px
import proxsae.testing as pt


@pytest.mark.parametrize("name", pt.OPERATORS)
def test_an_operator_obeys_its_laws(name, backend):
    R = pt.OPERATORS[name]
    found = list(pt.results(R, [backend]))
    broken = [result.problem for result in found if result.violation]
    assert not broken, "\n\n".join(broken)
    assert len(found) >= 3
    all_backends = (*pt.NUMPY, *pt.torch_backends())
    laws = {law.name for law in pt.LAWS if any(law.applies(R, one) for one in all_backends)}
    assert laws - {result.law for result in found} <= {"gradient"}  # which needs a backend with gradients


@pytest.mark.parametrize("mutant", pt.MUTANTS, ids=lambda m: m.name)
def test_wrong_operator_is_killed_by_its_law(mutant, device):
    assert mutant.killed_by in pt.killers(mutant, device)


def test_every_law_kills_a_mutant():
    assert {law.name for law in pt.LAWS} == {mutant.killed_by for mutant in pt.MUTANTS}


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (np.array([0.0]), np.array([-0.0])),
        (np.array([1.0]), np.array([np.nan])),
        (np.array([1.0], np.float32), np.array([1.0])),
        (np.array([1.0]), np.array([[1.0]])),
        ([1.0], np.array([1.0])),
        (np.array([1.0]), np.array([np.nextafter(1, 2)])),
    ],
)
def test_assert_same_can_fail(got, want):
    with pytest.raises(AssertionError):
        pt.assert_same(got, want)


@pytest.mark.parametrize(("got", "want"), [(1.1, 1.0), (np.nan, 1.0), (np.inf, 1.0), (np.inf, -np.inf)])
def test_assert_close_can_fail(got, want):
    with pytest.raises(AssertionError):
        pt.assert_close(np.array([got]), np.array([want]), 1e-3)
    pt.assert_close(np.array([want]), np.array([want]), 1e-3)


def test_lattice_has_ties_thresholds_and_specials():
    R = px.L0(0.5)
    u = np.concatenate([rows.ravel() for rows in pt.lattice.rows(R, 0.5, np.float32, specials=True)])
    t = np.float32(np.sqrt(0.5))
    for point in (t, -t, np.nextafter(t, np.float32(1)), np.nextafter(t, np.float32(0)), np.inf, -np.inf):
        assert (u == point).any()
    assert np.isnan(u).any()
    assert np.signbit(u[u == 0]).any()


def test_drawn_inputs_meet_every_interval_of_steps_and_every_scale():
    for seed in range(100):  # rounded to three digits
        steps = [1e-3, *pt.lattice.steps(seed), 1e3]
        assert all(a <= b <= 2.52 * a for a, b in itertools.pairwise(steps)), seed
    for seed in range(5):
        drawn = list(pt.lattice.inputs(px.L1(0.5), np.float64, 200, seed))
        assert set(pt.lattice.steps(seed)) < {step for step, _ in drawn}
        assert {1, 2, 3, 5} < {u.shape[1] for _, u in drawn}
        assert max(u.shape[1] for _, u in drawn) > 16
        largest = np.concatenate([np.abs(u).max(axis=1, initial=0) for _, u in drawn])
        assert (largest > 1e3).sum() > 50
        assert ((largest < 1e-3) & (largest > 0)).sum() > 50
