"""Every public function, with each argument replaced by what does not belong there: one sentence, or it works."""

import os
import tempfile

import numpy as np
import pytest
import torch
from scipy import sparse

import proxsae as px
from proxsae import metrics, theory
from proxsae.reference import pursuit
from proxsae.testing import assert_same
from tests.test_models import Model, tokens

RNG = np.random.default_rng(0)
X, D, Z = RNG.standard_normal((4, 6)), RNG.standard_normal((8, 6)), RNG.standard_normal((4, 8))
B, LAM = np.zeros(6), np.full(8, 0.5)
R, INDICES = px.L1(0.5), torch.tensor([[0, 3], [1, 2]])


def sae(**options):
    return px.SAE(6, 8, px.KSparse(2), **options).double()


def trained(**options):
    return px.train(**{"sae": sae(), "activations": X, "steps": 2, "batch_size": 4, "progress": False} | options)


def codes(**options):
    made = px.SparseCodes(**{"indices": INDICES, "values": torch.ones(2, 2).double(), "d_sae": 8} | options)
    return sae().decode(made), made.to_dense()


def depth(**options):
    return px.studies.depth(**{"sae_or_rows": sae(), "activations": X, "steps": (1, 2), "progress": False} | options)


def collected(**options):
    return px.models.collect(**LOOP | {"out": tempfile.mkdtemp(dir=".")} | options)


def spliced(**options):
    given = LOOP | {"sae": WIDE} | options
    with px.models.splice(**{name: a for name, a in given.items() if name != "batches"}):
        MODEL(*given["batches"])


def steered(**options):
    given = LOOP | {"sae": WIDE} | options
    with px.models.steer(**{name: a for name, a in given.items() if name != "batches"}):
        MODEL(*given["batches"])


MODEL, WIDE = Model().eval(), px.abstopk_sae(12, 30, k=4)
LOOP = {"model": MODEL, "module": "blocks.1", "batches": [tokens()]}
WHERE = {"model": MODEL, "module": "blocks.1", "at": "output", "skip": 0}

STRANGE = {
    "None": None,
    "text": "a",
    "bytes": b"a",
    "complex": 1j,
    "huge": 10**400,
    "longer than Python prints": 10**5000,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "negative": -1,
    "a list": [1.0, 2.0],
    "a dict": {"a": 1},
    "a set": {1},
    "0-d": np.array(1.0),
    "0-d tensor": torch.tensor(1.0),
    "empty": np.zeros(0),
    "no rows": np.zeros((0, 6)),
    "ragged": [[1.0], [2.0, 3.0]],
    "whole numbers": np.arange(6),
    "truths": np.ones((4, 6), bool),
    "complex array": np.ones((4, 6), complex),
    "objects": np.array([None, "a"]),
    "masked": np.ma.masked_array(np.ones((4, 6)), np.zeros((4, 6))),
    "matrix": np.ones((4, 6)).view(np.matrix),
    "three axes": np.ones((2, 3, 6)),
    "half": np.ones((4, 6), np.float16),
    "big-endian": np.ones((4, 6), ">f8"),
    "longdouble": np.ones((4, 6), np.longdouble),
    "backwards": np.ones((4, 6))[::-1, ::-1],
    "float8": torch.ones(4, 6).to(torch.float8_e4m3fn),
    "sparse": torch.ones(4, 6).to_sparse(),
    "with a gradient": torch.ones(4, 6, dtype=torch.float64, requires_grad=True),
    "one with a gradient": torch.tensor(1.0, requires_grad=True),
    "meta": torch.ones(4, 6, device="meta"),
    "0-d meta": torch.ones((), device="meta"),
    "complex tensor": torch.ones(4, 6, dtype=torch.cfloat),
    "an object": object(),
    "a class": px.L1,
}

PROBLEM = {"x": X, "D": D, "R": R}
PENALTIES = {
    "L1": (px.L1, {"lam": 0.5, "nonneg": False}),
    "L0": (px.L0, {"lam": 0.5, "bandwidth": 0.1}),
    "KSparse": (px.KSparse, {"k": 2}),
    "ElasticNet": (px.ElasticNet, {"lam": 0.5, "alpha": 1.0}),
    "MCP": (px.MCP, {"lam": 0.5, "gamma": 3.0}),
    "SCAD": (px.SCAD, {"lam": 0.5, "a": 3.7}),
    "GroupL2": (px.GroupL2, {"lam": 0.5, "size": 2}),
    "SortedL1": (px.SortedL1, {"lam": LAM}),
    "BatchKSparse": (px.BatchKSparse, {"k": 2}),
}
CALLS = PENALTIES | {
    "prox": (R.prox, {"u": Z, "step": 0.5}),
    "prox per latent": (px.MCP(LAM).prox, {"u": Z, "step": np.ones(4)}),
    "prox of k": (px.KSparse(2).prox, {"u": Z, "step": 0.5}),
    "prox of tensors": (R.prox, {"u": torch.tensor(Z), "step": 0.5}),
    "value": (R.value, {"z": Z}),
    "slope": (R.slope, {"z": Z}),
    "slope of tensors": (px.L1(LAM).slope, {"z": torch.tensor(Z)}),
    "ista": (px.ista, PROBLEM | {"steps": 2, "step": 0.01, "momentum": None, "z0": Z, "bias": B, "keep": "all"}),
    "ista on tensors": (
        px.ista,
        {"x": torch.tensor(X), "D": torch.tensor(D), "R": R, "steps": 2, "step": 0.01, "z0": torch.tensor(Z)},
    ),
    "solve": (px.solve, PROBLEM | {"tol": 1e-3, "max_steps": 50, "bias": B}),
    "FixedStep": (px.FixedStep, {"mu": 0.1}),
    "omp": (pursuit.omp, {"x": X, "D": D, "k": 2}),
    "duality_gap": (px.duality_gap, PROBLEM | {"z": Z, "bias": B}),
    "fixed_point_residual": (px.fixed_point_residual, PROBLEM | {"z": Z, "step": 0.01, "bias": B}),
    "lambda_max": (px.lambda_max, {"x": X, "D": D}),
    "lipschitz": (px.lipschitz, {"D": D}),
    "coherence": (px.coherence, {"D": D}),
    "SAE": (
        px.SAE,
        {"d_in": 6, "d_sae": 8, "penalty": R, "steps": 2, "step": px.Lipschitz(), "analysis": "dictionary"}
        | {"b_enc": "first", "normalize": "none"},
    ),
    "relu_sae": (px.relu_sae, {"d_in": 6, "d_sae": 8, "lam": 0.5}),
    "jumprelu_sae": (px.jumprelu_sae, {"d_in": 6, "d_sae": 8, "threshold": 0.5, "bandwidth": 0.1}),
    "topk_sae": (px.topk_sae, {"d_in": 6, "d_sae": 8, "k": 2}),
    "abstopk_sae": (px.abstopk_sae, {"d_in": 6, "d_sae": 8, "k": 2}),
    "SparseCodes": (
        codes,
        {"indices": torch.tensor([[0, 3], [1, 2]]), "values": torch.ones(2, 2).double(), "d_sae": 8},
    ),
    "encode": (lambda x: sae().encode(x), {"x": X}),
    "encode_sparse": (lambda x, exact: sae().encode_sparse(x, exact), {"x": X, "exact": None}),
    "decode": (lambda z, like: sae().decode(z, like), {"z": Z, "like": X}),
    "forward": (lambda x: sae(normalize="layer_norm")(x), {"x": X}),
    "unrolled": (
        lambda **a: sae().unrolled(**a).encode(X),
        {"steps": 2, "step": px.Lipschitz(), "analysis": "dictionary", "b_enc": "first"},
    ),
    "load": (px.load, {"path": "nowhere"}),
    "train": (
        trained,
        {"sae": sae(), "activations": X, "steps": 2, "batch_size": 4, "lr": 1e-3, "seed": 0, "l0": None, "every": 2}
        | {"checkpoint": None, "widths": (), "ks": (), "team": None},
    ),
    "distill": (
        lambda **given: px.distill(sae(), **given),
        {"deep": sae(), "activations": X, "steps": 2, "batch_size": 4, "lr": 1e-3, "seed": 0, "towards": "codes"},
    ),
    "evaluate": (px.evaluate, {"sae": sae(), "activations": X, "batch_size": 4}),
    "depth": (
        depth,
        {"sae_or_rows": sae(), "activations": X, "steps": (1, 2), "budget": None, "parts": (), "d_sae": None, "k": None}
        | {"train_steps": None, "train_depths": (), "seeds": None, "seed": 0, "device": "cpu", "out": None},
    ),
    "planted": (
        px.data.planted,
        {"n": 4, "d_in": 6, "d_sae": 8, "k": 2, "dynamic_range": 2.0, "noise": 0.1, "seed": 0, "kind": "flat", "D": D},
    ),
    "open_rows": (
        lambda **given: px.data.open_rows(**given)[0:2],
        {"source": X, "outliers": "clip", "above": 10.0},
    ),
    "read": (px.data.read, {"path": "nowhere"}),
    "Shuffle": (px.data.Shuffle, {"n": 5, "seed": 0}),
}
RATE = {"L": 2.0, "distance": 1.0, "t": 3}
CALLS |= {
    name: (getattr(theory, name), given)
    for name, given in {
        "ista_descent": {"L": 2.0, "step": 0.1, "move": 1.0},
        **dict.fromkeys(("ista_rate", "ista_worst", "fista_rate", "fista_worst", "first_order_floor"), RATE),
        "fista_travel": {"t": 3},
        "stationarity_rate": {"L": 2.0, "step": 0.1, "drop": 1.0, "t": 3},
        "linear_phase_rate": {"step": 0.1, "smallest": 0.5, "largest": 2.0},
        "lipschitz_floor": {"d_in": 6, "d_sae": 8},
        "one_step_sparsity": {"coherence": 0.1, "dynamic_range": 2.0},
    }.items()
}
TENSORS = {"x": torch.tensor(X), "xhat": torch.tensor(X) + 0.1}
CODES = {"z": torch.tensor(Z), "truth": torch.tensor(Z)}
CALLS |= {
    "nmse": (metrics.nmse, TENSORS),
    "explained_variance": (metrics.explained_variance, TENSORS),
    "cosine": (metrics.cosine, TENSORS),
    "l0": (metrics.l0, {"z": torch.tensor(Z)}),
    "recovery": (metrics.recovery, {"D": torch.tensor(D), "truth": torch.tensor(D)}),
    "support_f1": (metrics.support_f1, CODES),
    "coefficient_error": (metrics.coefficient_error, CODES),
    "check_prox": (px.testing.check_prox, {"op": R, "n": 5, "seed": 0, "laws": ["odd"], "on_fail": "raise"}),
    "check_law": (px.testing.check_law, {"name": "odd", "R": R, "u": X, "step": 1.0, "backend": "numpy-float64"}),
}
MEASURED = WHERE | {"sae": WIDE, "batches": [tokens()], "seed": 0}
CALLS |= {
    "survey": (px.data.survey, {"rows": X, "above": 10.0}),
    "collect": (
        collected,
        WHERE | {"batches": [tokens()], "out": "rows", "rows": 9, "drop": (), "dtype": "float32", "shard_rows": 20},
    ),
    "splice": (spliced, WHERE | {"sae": WIDE}),
    "steer": (steered, WHERE | {"sae": WIDE, "latents": {3: 1.0}}),
    "steer, a latent": (lambda value: steered(latents={3: value}), {"value": 1.0}),
    "loss_recovered": (px.models.loss_recovered, MEASURED),
    "ablate": (px.models.ablate, MEASURED | {"latent": 3}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_a_strange_argument_works_or_is_refused_in_one_sentence(name, tmp_path, monkeypatch):
    """Every argument in turn becomes every strange value; what is not `px.Error` fails, and so does a long message."""
    monkeypatch.chdir(tmp_path)
    call, given = CALLS[name]
    for argument in given:
        for kind, value in STRANGE.items():
            if isinstance(value, (str, bytes, os.PathLike)) and argument in ("out", "checkpoint"):
                continue  # a path
            try:
                call(**given | {argument: value})
            except px.Error as error:
                said = str(error)
            except Exception as error:
                pytest.fail(f"{name}({argument}={kind}) raised {type(error).__name__}: {error}")
            else:
                said = "it works"
            assert "\n" not in said, f"{name}({argument}={kind}): {said}"
            assert len(said) < 500, f"{name}({argument}={kind}): {said}"


LOST = {
    "masked": lambda: np.ma.masked_array(X, X > 1),
    "rows of which one is masked": lambda: [np.ma.masked_array(X[0], X[0] > 1), X[1]],
    "matrix": lambda: X.view(np.matrix),
    "sparse": lambda: sparse.csr_array(X),
    "masked tensor": lambda: torch.masked.masked_tensor(torch.tensor(X), torch.tensor(X < 1)),
}
ENTRIES = {
    "prox": lambda x: R.prox(x),
    "value": lambda x: R.value(x),
    "slope": lambda x: R.slope(x),
    "ista": lambda x: px.ista(x, D, R, 1),
    "solve": lambda x: px.solve(x, D, R),
    "D": lambda x: px.ista(X, x, R, 1),
    "lipschitz": px.lipschitz,
    "coherence": px.coherence,
    "lambda_max": lambda x: px.lambda_max(x, D),
    "omp": lambda x: pursuit.omp(x, D, 2),
    "encode": lambda x: sae().encode(x),
    "decode": lambda x: px.SAE(8, 6, R).decode(x),
    "train": lambda x: trained(activations=x),
    "evaluate": lambda x: px.evaluate(sae(), x),
    "depth": lambda x: depth(activations=x),
    "open_rows": px.data.open_rows,
    "cosine": lambda x: metrics.cosine(x, x),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", LOST)
def test_arrays_that_mean_more_than_their_numbers_are_refused_by_name(entry, kind):
    says = "must be a dense tensor" if kind == "masked tensor" else "of which only the numbers would be used: give"
    with pytest.raises(px.Error, match=says):
        ENTRIES[entry](LOST[kind]())


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_lists_are_taken_wherever_arrays_are(make):
    """Those of one call take the dtype of its arrays; whole numbers in a list are numbers."""
    x, D32, z = (a.astype(np.float32) for a in (X, D, Z))
    given, bias = [make(x), make(D32), R], [0.5, 0, -0.25, 0, 1, 2]
    full = make(np.array(bias, np.float32))
    for steps in (3, np.int64(3)):
        got = px.ista(*given, steps, z0=z.tolist(), bias=bias)
        assert_same(got.codes, px.ista(*given, 3, z0=make(z), bias=full).codes)
        assert_same(px.ista(make(x), D32.tolist(), R, steps).codes, px.ista(*given, 3).codes)
    assert_same(px.solve(*given, bias=bias).codes, px.solve(*given, bias=full).codes)
    gap, residual = px.duality_gap, px.fixed_point_residual
    assert_same(gap(make(x), make(D32), z.tolist(), R, bias), gap(make(x), make(D32), make(z), R, full))
    both = (residual(make(x), make(D32), c, R, 0.01, b) for c, b in ((z.tolist(), bias), (make(z), full)))
    assert_same(*both)
    assert_same(px.ista(X.tolist(), D.tolist(), R, 3, z0=Z.tolist()).codes, px.ista(X, D, R, 3, z0=Z).codes)
    assert R.slope([3, 0, -2]).tolist() == [0.5, 0, -0.5]
    assert R.prox([3, 0, -2]).tolist() == [2.5, 0, -1.5]
    u = make(Z)
    assert_same(R.prox(u, [0.1, 0.2, 0.3, 1]), R.prox(u, make(np.array([0.1, 0.2, 0.3, 1]))))


@pytest.mark.parametrize("form", [">f8", ">f4", "f2", ">f2", "g", "backwards", "strided", "read-only"])
def test_every_layout_that_numpy_has_gives_the_same_numbers(form):
    """Byte orders, widths, strides: NumPy's wing gives what it gives for plain arrays, in the dtype of the input."""

    def made(a):
        if form == "backwards":
            return a[::-1, ::-1].copy()[::-1, ::-1]
        if form == "strided":
            return np.repeat(a, 2, axis=1)[:, ::2]
        if form == "read-only":
            a = a.copy()
            a.setflags(write=False)
            return a
        return a.astype(form)

    x, W, z = made(X), made(D), made(Z)
    plain = [np.ascontiguousarray(a, a.dtype.newbyteorder("=")) for a in (x, W, z)]
    for call in (
        lambda x, W, z: R.prox(z, 0.5),
        lambda x, W, z: R.value(z),
        lambda x, W, z: px.ista(x, W, R, 3, z0=z).codes,
        lambda x, W, z: px.solve(x, W, R, tol=1e-2).codes,
        lambda x, W, z: px.duality_gap(x, W, z, R),
        lambda x, W, z: px.lambda_max(x, W),
        lambda x, W, z: np.float64(px.lipschitz(W)),
        lambda x, W, z: pursuit.omp(x, W, 2),
    ):
        got, want = call(x, W, z), call(*plain)
        np.testing.assert_allclose(got, want, *2 * [64 * np.finfo(want.dtype).eps])  # BLAS adds up by strides
        assert got.dtype.newbyteorder("=") == want.dtype
    one = sae()
    assert_same(one.encode(x), one.encode(torch.tensor(plain[0].astype(np.float64))))
    assert px.evaluate(one, x) == px.evaluate(one, plain[0])


def test_codes_that_no_dictionary_has_are_refused():
    for indices in ([[0, 8]], [[-1, 2]]):
        with pytest.raises(px.Error, match=r"indices of codes go from .* must be in \[0, 8\)"):
            codes(indices=torch.tensor(indices), values=torch.ones(1, 2).double())
        with pytest.raises(px.Error, match=r"indices of codes go from .* must be in \[0, 8\)"):
            px.SparseCodes(torch.tensor(indices), torch.ones(1, 2), 8).to_dense()
    with pytest.raises(px.Error, match="both need"):
        codes(values=torch.ones(2, 3).double())
    assert codes()[1].tolist() == [[1, 0, 0, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]]


def test_an_sae_of_which_nothing_is_trained_is_refused():
    with pytest.raises(px.Error, match="every weight is frozen, so that nothing would be trained"):
        trained(sae=sae().requires_grad_(False))


@pytest.mark.parametrize(
    "option",
    [{"budget": 1}, {"parts": ["depth"]}, {"k": 2}, {"seeds": 2}, {"seed": 1}, {"train_depths": (1, 2)}],
    ids=str,
)
def test_options_of_a_study_that_trains_are_refused_beside_an_sae(option):
    with pytest.raises(px.Error, match="is for a study that trains SAEs"):
        depth(**option)
