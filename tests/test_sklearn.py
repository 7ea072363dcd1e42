"""The scikit-learn estimators: scikit-learn's own checks, its own sparse coder beside ours, pipelines and files."""

import importlib
import pickle
import sys

import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.decomposition import SparseCoder as Theirs
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks, get_tags
from sklearn.utils.validation import check_is_fitted

import proxsae as px
from proxsae.reference.pursuit import omp
from proxsae.sklearn import SparseAutoencoder, SparseCoder
from proxsae.testing import assert_same

DATA = px.data.planted(n=40, d_in=20, d_sae=40, k=3)


# scikit-learn's checks. Rows have another width in each, to which a dictionary has to fit; 3 where none is named.
WIDTHS = {
    **dict.fromkeys(("check_estimators_overwrite_params", "check_estimators_fit_returns_self"), 2),
    **dict.fromkeys(("check_readonly_memmap_input", "check_fit_idempotent", "check_fit_check_is_fitted"), 2),
    **dict.fromkeys(("check_n_features_in_after_fitting", "check_positive_only_tag_during_fit"), 4),
    **dict.fromkeys(("check_estimators_dtypes", "check_transformers_unfitted_stateless"), 5),
    **dict.fromkeys(("check_dtype_object", "check_fit2d_1sample", "check_array_api_input"), 10),
    "check_n_features_in": 2,
    "check_fit2d_1feature": 1,
    "check_set_output_transform": 5,
}


def coder(**arguments):
    return lambda width: SparseCoder(np.random.default_rng(0).normal(size=(5, width)), **arguments)


def autoencoder(penalty):
    return lambda width: SparseAutoencoder(4, penalty, train_steps=5, batch_size=16, random_state=0)


ESTIMATORS = {
    "coder-solve": coder(penalty=px.L1(0.1)),
    "coder-steps": coder(penalty=px.KSparse(2), steps=3, step=px.ExactStep()),
    "autoencoder": autoencoder(px.KSparse(2, nonneg=True)),
    "autoencoder-batch": autoencoder(px.BatchKSparse(2)),
}


def checks():
    more = [estimator_checks.check_set_output_transform, estimator_checks.check_transformer_get_feature_names_out]
    for name, make in ESTIMATORS.items():
        for _, check in estimator_checks.estimator_checks_generator(make(3)):
            yield pytest.param(make, check, id=f"{name}-{check.func.__name__}")
        for check in more:  # which scikit-learn asks of its own estimators only
            yield pytest.param(make, lambda e, check=check: check("ours", e), id=f"{name}-{check.__name__}")


@pytest.mark.parametrize(("make", "check"), list(checks()))
def test_scikit_learns_check(make, check, request, monkeypatch):
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")  # without it one check is skipped
    check(make(WIDTHS.get(request.node.callspec.id.split("-")[-1], 3)))


# Beside scikit-learn's own SparseCoder


def objective(z, lam):
    return 0.5 * ((DATA.x - z @ DATA.D) ** 2).sum(axis=1) + lam * np.abs(z).sum(axis=1)


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("algorithm", ["lasso_cd", "lasso_lars"])
@pytest.mark.parametrize("lam", [0.1, 0.5])
def test_the_lasso_is_theirs_with_the_same_number(algorithm, lam, nonneg):
    theirs = Theirs(
        DATA.D, transform_algorithm=algorithm, transform_alpha=lam, positive_code=nonneg, transform_max_iter=10**5
    ).transform(DATA.x)
    ours = SparseCoder(DATA.D, px.L1(lam, nonneg=nonneg), tol=1e-10).transform(DATA.x)
    assert np.abs(ours).max() > 1
    coarse = algorithm == "lasso_cd" and sklearn.__version__[:3] == "1.6"  # ends at a gap of 1e-4, 1.9 at 1e-8
    assert np.abs(ours - theirs).max() < (2e-3 if coarse else 1e-6)
    assert (objective(ours, lam) <= objective(theirs, lam) + 1e-12).all()


def test_their_threshold_is_one_step():
    theirs = Theirs(DATA.D, transform_algorithm="threshold", transform_alpha=0.3).transform(DATA.x)
    ours = SparseCoder(DATA.D, px.L1(0.3), steps=1).transform(DATA.x)
    assert np.abs(ours * px.lipschitz(DATA.D) - theirs).max() < 1e-13


def test_their_pursuit_is_ours_and_finds_what_steps_find():
    theirs = Theirs(DATA.D, transform_algorithm="omp", transform_n_nonzero_coefs=3).transform(DATA.x)
    assert np.abs(omp(DATA.x, DATA.D, k=3) - theirs).max() < 1e-12
    ours = SparseCoder(DATA.D, px.KSparse(3)).transform(DATA.x)
    found = [np.abs(z - DATA.z).max(axis=1) < 1e-10 for z in (ours, theirs)]
    assert min(map(sum, found)) > 30  # of 40 rows
    both = found[0] & found[1]
    assert both.sum() >= 30
    assert np.abs(ours - theirs)[both].max() < 1e-10
    assert not np.allclose(ours, theirs)  # two searches: elsewhere they end apart


# The coder


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_codes_are_those_of_ista_and_solve(kind):
    x, D, R = DATA.x.astype(kind), DATA.D.astype(kind), px.KSparse(3)
    made = SparseCoder(DATA.D, R, steps=4, step=px.ExactStep()).fit(x)
    trace = px.ista(torch.tensor(x), torch.tensor(D), R, 4, px.ExactStep())
    assert_same(made.transform(x), trace.codes.numpy())
    given = SparseCoder(torch.nn.Parameter(torch.tensor(D)), R)  # as sae.W_dec is
    assert_same(given.components_, D)
    solution = px.solve(torch.tensor(x).double(), torch.tensor(D).double(), R)
    assert_same(given.transform(x), solution.codes.numpy().astype(kind))
    back = made.inverse_transform(trace.codes.numpy())
    assert back.dtype == kind
    assert np.allclose(back, trace.codes.numpy() @ D)
    assert_same(made.components_, DATA.D)  # in its own dtype, whatever that of the rows


def test_the_coder_needs_no_fit():
    made = SparseCoder(DATA.D, px.L1(0.1))
    check_is_fitted(made)
    assert_same(make_pipeline(made).transform(DATA.x), clone(made).fit(DATA.x).transform(DATA.x))


def test_the_coder_says_what_does_not_fit():
    x, D, R = DATA.x, DATA.D, px.L1(0.1)
    for made, words in (
        (SparseCoder(D[:, :5], R), "atoms are rows"),
        (SparseCoder(0 * D, R), "all zeros"),
        (SparseCoder(D, 0.1), "must be a penalty"),
        (SparseCoder(D, px.BatchKSparse(3)), "couples the rows"),
        (SparseCoder(D, R, steps=4, tol=1e-3), "give one of them"),
        (SparseCoder(D, R, step=px.ExactStep()), "solve has its own"),
        (SparseCoder(D, R, steps=-1), "steps=-1"),
        (SparseCoder(D, R, tol=0), "tol=0"),
        (SparseCoder(D, R, steps=2, step=9.0), "thm-ista-descent"),
    ):
        with pytest.raises(px.Error, match=words):
            made.fit(x)
        with pytest.raises(px.Error, match=words):
            made.transform(x)
    with pytest.raises(px.Error, match="7 columns, but this dictionary has 40 atoms"):
        SparseCoder(D, R).inverse_transform(np.ones((2, 7)))


def test_codes_without_a_certificate_are_told():
    with pytest.warns(ConvergenceWarning, match="2 of 2 rows have no certificate for tol=1e-20") as told:
        SparseCoder(DATA.D, px.L1(0.1), tol=1e-20).transform(DATA.x[:2])
    assert told[0].filename == __file__


# The autoencoder


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_fit_is_train_and_the_rest_is_the_sae(kind):
    x = DATA.x.astype(kind)
    made = SparseAutoencoder(24, px.KSparse(3), steps=2, train_steps=7, batch_size=8, lr=1e-2, random_state=3)
    before = torch.get_rng_state()
    z = made.fit_transform(x)
    assert torch.equal(torch.get_rng_state(), before)
    seed = int(np.random.RandomState(3).randint(2**31 - 1))
    torch.manual_seed(seed)
    sae = px.SAE(20, 24, px.KSparse(3), steps=2).to(torch.tensor(x).dtype)
    assert made.metrics_ == px.train(sae, x, steps=7, batch_size=8, lr=1e-2, seed=seed)
    assert_same(z, sae.encode(x).detach().numpy())
    assert_same(made.inverse_transform(z), sae(x).detach().numpy())
    assert_same(made.components_, sae.W_dec.detach().numpy())
    assert_same(made.intercept_, sae.b_dec.detach().numpy())
    assert made.transform(x.astype(np.float32)).dtype == np.float32
    assert made.inverse_transform(z.astype(np.float64)).dtype == np.float64


def test_random_state_decides_the_weights():
    made = [SparseAutoencoder(8, px.KSparse(2), train_steps=3, random_state=s).fit(DATA.x) for s in (1, 1, 2, None)]
    weights = [one.components_ for one in made]
    assert_same(weights[0], weights[1])
    assert all(np.abs(weights[0] - other).max() > 1e-3 for other in weights[2:])


def test_l0_is_reached_by_changing_lam_of_the_sae_only():
    R = px.L1(1.0, nonneg=True)
    made = SparseAutoencoder(24, R, train_steps=150, batch_size=32, l0=4, random_state=0).fit(DATA.x)
    assert 3 < (made.transform(DATA.x) != 0).sum(axis=1).mean() < 5
    assert made.penalty == px.L1(1.0, nonneg=True) != made.sae_.penalty


def test_a_batch_selection_encodes_single_rows():
    made = SparseAutoencoder(24, px.BatchKSparse(3, nonneg=True), train_steps=20, random_state=0).fit(DATA.x)
    assert isinstance(made.sae_.penalty, px.L0)
    together, alone = made.transform(DATA.x), np.concatenate([made.transform(row[None]) for row in DATA.x])
    assert_same(together != 0, alone != 0)
    assert np.abs(together - alone).max() < 1e-12
    with pytest.raises(px.Error, match="steps=4 leaves no threshold"):
        made.set_params(steps=4).fit(DATA.x)


def test_the_autoencoder_says_what_does_not_fit():
    fresh = SparseAutoencoder(8, px.KSparse(2))
    for method in (fresh.transform, fresh.inverse_transform, fresh.get_feature_names_out):
        with pytest.raises(NotFittedError):
            method(DATA.x)
    assert not hasattr(fresh, "components_")
    for wrong, words in (
        ({"penalty": 2}, "Penalty"),
        ({"n_components": 0}, "d_sae=0"),
        ({"train_steps": 0}, "steps=0"),
    ):
        with pytest.raises(px.Error, match=words):
            clone(fresh).set_params(**wrong).fit(DATA.x)
    with pytest.raises(px.Error, match="latents"):
        fresh.set_params(train_steps=1).fit(DATA.x).inverse_transform(np.ones((2, 7)))


# Among scikit-learn's tools


def test_a_grid_search_over_a_pipeline_chooses_penalties_steps_and_widths():
    concept = (np.abs(DATA.z).argmax(axis=1) % 2).astype(int)
    trained = make_pipeline(
        SparseAutoencoder(8, px.KSparse(1), train_steps=3, batch_size=16, random_state=0), LogisticRegression()
    )
    grid = {"sparseautoencoder__penalty": [px.KSparse(1), px.L1(0.3)], "sparseautoencoder__n_components": [8, 12]}
    search = GridSearchCV(trained, grid, cv=2).fit(DATA.x, concept)
    assert len(search.cv_results_["params"]) == 4
    assert search.best_estimator_[0].penalty == search.best_params_["sparseautoencoder__penalty"]
    given = make_pipeline(SparseCoder(DATA.D, px.KSparse(3)), LogisticRegression())
    grid = {"sparsecoder__steps": [1, None], "sparsecoder__penalty": [px.KSparse(1), px.KSparse(3)]}
    search = GridSearchCV(given, grid, cv=2, n_jobs=1).fit(DATA.x, concept)
    assert search.predict(DATA.x).shape == (40,)
    assert search.best_params_["sparsecoder__penalty"] in (px.KSparse(1), px.KSparse(3))


@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
def test_scikit_learn_is_told_which_dtypes_are_kept(make):
    assert get_tags(make(3)).transformer_tags.preserves_dtype == ["float64", "float32"]


@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
def test_pickles_and_clones_are_equal(make):
    x = DATA.x[:, :3]
    made = make(3).fit(x)
    assert_same(pickle.loads(pickle.dumps(made)).transform(x), made.transform(x))
    copy = clone(made)
    assert not hasattr(copy, "n_features_in_")
    assert copy.penalty == made.penalty
    assert_same(copy.fit(x).transform(x), made.transform(x))


def test_names_of_columns():
    made = SparseCoder(DATA.D[:2], px.L1(0.1)).fit(DATA.x)
    assert list(made.get_feature_names_out()) == ["sparsecoder0", "sparsecoder1"]


def test_without_scikit_learn_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.delitem(sys.modules, "proxsae.sklearn")
    with pytest.raises(px.Error, match=r"scikit-learn \(1.6 or newer\) is missing: pip install 'proxsae\[sklearn\]'"):
        importlib.import_module("proxsae.sklearn")


@pytest.mark.parametrize("turned", [DATA.x[::-1], np.asfortranarray(DATA.x), DATA.x.astype(np.float32)[::-1, ::-1]])
def test_rows_and_atoms_of_any_order_are_taken(turned):
    plain, atoms = np.array(turned), DATA.D[:, ::-1]
    for model in (SparseCoder(atoms, px.L1(0.1)), SparseCoder(np.array(atoms), px.KSparse(3), steps=2)):
        assert_same(model.fit_transform(turned), model.fit_transform(plain))
    model = autoencoder(px.KSparse(2))(20).fit(turned)
    assert_same(model.components_, autoencoder(px.KSparse(2))(20).fit(plain).components_)
    assert_same(model.transform(turned), model.transform(plain))


def test_the_atoms_of_an_sae_in_bfloat16_are_a_dictionary():
    atoms = torch.tensor(DATA.D).bfloat16()
    model = SparseCoder(atoms, px.KSparse(3), steps=2)
    assert_same(model.fit_transform(DATA.x), SparseCoder(atoms.float(), px.KSparse(3), steps=2).fit_transform(DATA.x))


def test_a_mask_is_not_lost():
    masked = np.ma.masked_array(DATA.x, DATA.x > 1)
    for call in (
        lambda: SparseCoder(DATA.D, px.L1(0.1)).transform(masked),
        lambda: autoencoder(px.KSparse(2))(20).fit(masked),
        lambda: SparseCoder(np.ma.masked_array(DATA.D, DATA.D > 1), px.L1(0.1)).transform(DATA.x),
    ):
        with pytest.raises(px.Error, match="is a MaskedArray, of which only the numbers would be used"):
            call()
