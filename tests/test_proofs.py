"""Machine proofs: each claim is proved over all reals, each planted error refuted, and what is proved is what runs."""

import numpy as np
import pytest

import proxsae as px
from proxsae import testing as pt
from proxsae.penalties import FAMILIES, Separable
from proxsae.statements.proofs import PROOFS, WHOLE, prove, refute
from proxsae.testing import proofs, statements

SEPARABLE = [family for family in FAMILIES.values() if issubclass(family, Separable)]


@pytest.mark.parametrize("name", PROOFS)
def test_the_claim_is_proved(name):
    prove(PROOFS[name])


@pytest.mark.parametrize("name", PROOFS)
def test_the_planted_error_is_refuted_and_the_numbers_violate_it_in_floats(name):
    assert refute(PROOFS[name])


def test_every_scalar_prox_is_proved_with_both_signs():
    assert len(PROOFS) >= 25
    for family in SEPARABLE:
        name = f"prox-{family.__name__.lower()}"
        assert PROOFS[name].statement == family.statement
        assert PROOFS[f"{name}-nonneg"].statement == "lem-nonneg"
        assert f"falls-{family.__name__.lower()}" in PROOFS
        assert f"monotone-{family.__name__.lower()}" in PROOFS
        assert not family.convex or f"firm-{family.__name__.lower()}" in PROOFS


def test_what_is_proved_is_what_runs(monkeypatch):
    """One source: a wrong threshold in the formula that NumPy evaluates breaks the proof, and the law."""
    right = px.L0.entry_prox
    wrong = staticmethod(lambda o, u, mu, *lams: right(o, u, mu, *(lam / 2 for lam in lams)))
    monkeypatch.setattr(px.L0, "entry_prox", wrong)
    with pytest.raises(AssertionError, match=r"prox-l0 is refuted by .*mu = "):
        prove(PROOFS["prox-l0"])
    with pytest.raises(pt.LawViolation):
        pt.check_prox(px.L0(0.5), laws=["optimal"])


def test_the_rank_formula_of_the_proofs_is_the_sort_that_runs():
    """The solver cannot sort, so `sparse.keep` counts who comes first; on floats it must be KSparse.prox, ties too."""
    from proxsae.statements.proofs.arithmetic import AtPoint
    from proxsae.statements.proofs.sparse import keep, keep_positive

    for P in (1, 2, 3):
        for u in np.array(np.meshgrid(*[[-2.0, -1, 0, 1, 2]] * P)).reshape(P, -1).T:
            for k in range(P + 1):
                pt.assert_same(np.array(keep(AtPoint({}), list(u), k), float), px.KSparse(k).prox(u))
                positive = np.array(keep_positive(AtPoint({}), list(u), k), float)
                pt.assert_same(positive, px.KSparse(k, nonneg=True).prox(u))


def test_the_pair_formulas_of_the_proofs_are_what_runs():
    from proxsae.statements.proofs import groups
    from proxsae.statements.proofs.arithmetic import AtPoint

    o, values = AtPoint({}), [-3.0, -1.25, -1, 0, 0.5, 1, 3]
    for u in np.array(np.meshgrid(values, values)).reshape(2, -1).T:
        for t in ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (1.5, 0.75), (4.0, 0.25)):
            group, ordered = px.GroupL2(t[0], size=2), px.SortedL1(np.array(t))
            with np.errstate(all="ignore"):
                got = np.array(groups.group_prox(o, u, t[0])) + 0
            pt.assert_close(got, group.prox(u), 1e-15)
            pt.assert_close(np.array(groups.sorted_prox(o, u, t)) + 0, ordered.prox(u), 1e-15)
            pt.assert_close(np.asarray(groups.group_value(o, u, t[0])), group.value(u), 1e-15)
            pt.assert_close(np.asarray(groups.sorted_value(o, u, t)), ordered.value(u), 1e-15)


def test_claims_are_sentences_for_a_table():
    for proof in PROOFS.values():
        assert proof.claim.endswith(".")
        assert len(proof.claim) <= 120
        assert proof.wrong_name
        assert len(proof.scope) <= 35  # a column of `proxsae statements --prove`


def test_a_proof_is_whole_only_where_it_runs_the_formula_of_its_own_statement_over_all_parameters():
    """Special cases are counted apart: what is marked whole is the prox of a separable family, and nothing else."""
    whole = {proof.statement for proof in PROOFS.values() if proof.scope == WHOLE}
    assert whole == {family.statement for family in SEPARABLE}
    for s in statements.STATEMENTS.values():
        status = statements.proof_status(s)
        for proof in statements.machine(s):
            assert f"({proof.scope})" in status
            assert f"({proof.scope})" in statements.box(s)
        assert ("special cases" in status) == (bool(statements.machine(s)) and s.label not in whole)


def test_a_special_case_of_a_statement_says_why_the_rest_is_on_paper():
    for s in statements.STATEMENTS.values():
        assert statements.proved_whole(s) or s.label.startswith("false-") or s.on_paper


def test_what_is_false_what_is_true_of_nothing_and_an_error_that_is_none_are_each_said():
    def root(claim, *hypotheses):
        def goal(o):
            (x,) = o.reals("x")
            return [h(x) for h in hypotheses], claim(o, x)

        return goal

    def proof(goal, wrong):
        return proofs.Proof("test", "lem-test", "one x", "A test.", goal, "none", wrong)

    true = root(lambda o, x: o.sqrt(x * x) == o.abs(x))
    false = root(lambda o, x: x / x == 1)  # at 0, where any value will do
    nothing = root(lambda o, x: x > 2, lambda x: x > 1, lambda x: x * x < 1)
    assert prove(proof(true, false)) >= 0
    with pytest.raises(AssertionError, match=r"test is refuted by x = 0: A test\."):
        prove(proof(false, false))
    with pytest.raises(AssertionError, match="test is vacuous"):
        prove(proof(nothing, false))
    with pytest.raises(AssertionError, match="the planted error 'none' was proved"):
        refute(proof(true, true))


def test_without_the_solver_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "z3", None)
    with pytest.raises(px.Error, match=r"z3 is missing: pip install 'proxsae\[test\]'"):
        proofs.prove(PROOFS["prox-l1"])
