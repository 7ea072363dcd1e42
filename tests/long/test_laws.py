"""Laws, backends and planted errors on more inputs than `tests/test_laws.py` takes, drawn by `--seed`."""

import pytest

import proxsae.testing as pt
from tests.test_cli import laws_of_ksparse


def test_laws_of_one_family_hold_and_leave_no_survivor(capsys, device):
    laws_of_ksparse(capsys, device)


@pytest.mark.parametrize("name", pt.OPERATORS)
def test_operators_obey_their_laws_and_agree_on_all_backends(name, device, seed, figures):
    R = pt.OPERATORS[name]
    for result in pt.results(R, n=20 if R.rowwise else 1, seed=seed):  # a batch is searched as one problem, slowly
        assert result.violation is None, result.problem
        figures("rows on which a law of an operator was tried (operators x laws x dtypes)", result.rows)
    for backend in (*pt.NUMPY, *pt.torch_backends(device)):
        pt.check_backend(R, backend, n=200, seed=seed)
        sizes = (u.size for _, u in pt.lattice.inputs(R, backend.dtype, 200, seed, specials=True))
        figures("values that came out as the reference's (operators x dtypes x backends)", sum(sizes))


@pytest.mark.parametrize("mutant", pt.MUTANTS, ids=lambda m: m.name)
def test_planted_errors_die_on_other_inputs_too(mutant, device, seed, figures):
    backends = pt.torch_backends(device) if mutant.torch else pt.NUMPY
    found = [r.violation for r in pt.results(mutant, backends, n=60, seed=seed, laws=[mutant.killed_by])]
    assert any(found)
    figures("planted wrong operators that died; none survived")
