"""What is said of an SAE that somebody brings, and what is measured of it, against plain NumPy."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import proxsae as px
from proxsae.cli import main
from proxsae.learned import LearnedSteps
from proxsae.pytorch import cost_model
from proxsae.sae import evaluation, inspection
from proxsae.sae.evaluation import encode_rows, evaluate_depths
from proxsae.sae.inspection import compare, inspect
from proxsae.testing import assert_close

pytestmark = pytest.mark.filterwarnings("ignore::proxsae.conventions.Note")  # of `rows_of`, one stands out

PENALTIES = {
    "relu": px.L1(0.4, nonneg=True),
    "soft": px.L1(0.4),
    "jumprelu": px.L0(0.2, nonneg=True),
    "hard": px.L0(np.linspace(0.1, 0.4, 24)),
    "topk": px.KSparse(3, nonneg=True),
    "abstopk": px.KSparse(3),
}
STEPS = (1, 2, 5)


def sae_of(R, seed=0, d_in=8, d_sae=24):
    """Untied weights and biases, as training leaves them, and a dead latent."""
    torch.manual_seed(seed)
    sae = px.SAE(d_in, d_sae, R).double()
    with torch.no_grad():
        for parameter in (sae.W_enc, sae.b_enc, sae.b_dec):
            parameter.add_(0.1 * torch.randn_like(parameter))
        sae.W_enc[:, 0], sae.b_enc[0] = 0, 0  # dead at the first step
    return sae


def rows_of(n=50, d=8, seed=1):
    """Rows whose lengths differ a hundredfold, in order: a mean over batches is not a mean over rows."""
    return np.random.default_rng(seed).standard_normal((n, d)) * np.geomspace(0.1, 10, n)[:, None]


def close(found, want, rel=1e-9):
    assert found.keys() == want.keys()
    for key, value in want.items():
        near = 1e-6 if key == "support_change" else rel  # shares of a row are float32
        assert found[key] == (None if value is None else pytest.approx(value, rel=near, abs=1e-12)), key


def plain(x, codes, D, b, R, before):
    """Every measure by its definition, from all codes at once."""
    xhat = codes @ D + b
    error = ((x - xhat) ** 2).sum()
    up, down = (codes > 0).any(axis=0), (codes < 0).any(axis=0)
    change = None
    if before is not None:
        pairs = [(set(np.flatnonzero(p)), set(np.flatnonzero(q))) for p, q in zip(before, codes, strict=True)]
        change = np.mean([1 - len(p & q) / len(p | q) if p | q else 0.0 for p, q in pairs])
    return {
        "nmse": error / (x**2).sum(),
        "explained_variance": 1 - error / ((x - x.mean(axis=0)) ** 2).sum(),
        "l0": np.mean([np.count_nonzero(code) for code in codes]),
        "cosine": ((x * xhat).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(xhat, axis=1)).mean(),
        "dead": np.mean([not code.any() for code in codes.T]),
        "two_sided": (up & down).sum() / (up | down).sum(),
        "support_change": change,
        "objective": np.mean(((x - xhat) ** 2).sum(axis=1) / 2 + R.value(codes)),
    }


# Where one latent is on, ExactStep meets its test of safety with equality, and rounding decides: not for two backends.
CASES = [("abstopk", px.ExactStep())]
CASES += [(name, rule) for name in PENALTIES for rule in (px.Lipschitz(), px.Backtracking(), px.Refit())]


@pytest.mark.parametrize(("name", "rule"), CASES, ids=str)
def test_every_measure_is_that_of_plain_numpy(name, rule):
    sae, x = sae_of(PENALTIES[name]), rows_of()
    R = px.L0(np.asarray(sae.threshold.detach()) ** 2 / 2, R.nonneg) if isinstance(R := PENALTIES[name], px.L0) else R
    W, D, b_enc, b = (a.detach().numpy() for a in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec))
    first = R.prox((x - b) @ W + b_enc)
    trace = px.ista(x, D, R, steps=STEPS[-1] - 1, step=rule, z0=first, bias=b, keep="all")
    before = None
    for row in evaluate_depths(sae, x, STEPS, rule, batch_size=7):
        codes = trace.steps[row.pop("steps") - 1]
        assert row.pop("cost") >= 1
        close(row, plain(x, codes, D, b, R, before))
        before = codes


@pytest.mark.parametrize("name", [*PENALTIES, "batchtopk"])
def test_it_measures_what_evaluate_measures(name):
    R = PENALTIES.get(name, px.BatchKSparse(3))
    sae, x = sae_of(R), rows_of()
    for row in evaluate_depths(sae, x, STEPS if R.rowwise else (1,), batch_size=50):
        rule = px.ExactStep() if R.affine else None
        want = px.evaluate(sae.unrolled(row["steps"], rule), x)
        del want["sign_balance"]
        close({key: row[key] for key in want}, want, 1e-6)


@pytest.mark.parametrize("depths", [False, True])
def test_k_sparse_codes_are_never_dense(depths, monkeypatch):
    """Nothing that is made while rows are measured has an entry for each latent and each row of a batch."""
    sae, x, sizes = px.SAE(8, 2048, px.KSparse(3)), rows_of(200), []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, given=(), named=None):
            out = function(*given, **(named or {}))
            sizes.extend(a.numel() for a in torch.utils._pytree.tree_leaves(out) if isinstance(a, torch.Tensor))
            return out

    monkeypatch.setitem(cost_model.AREA, "cpu", 1)  # blocks of 384 latents
    with Sizes():
        evaluate_depths(sae, x, STEPS, batch_size=100) if depths else px.evaluate(sae, x, batch_size=100)
    assert max(sizes) <= 100 * 384


@pytest.mark.parametrize("analysis", ["dictionary", "encoder"])
def test_batches_do_not_show(analysis):
    sae, x = sae_of(PENALTIES["abstopk"]), rows_of()
    whole, *others = (evaluate_depths(sae, x, STEPS, analysis=analysis, batch_size=n) for n in (1000, 50, 13, 1))
    for other in others:
        for found, want in zip(other, whole, strict=True):
            close(found, want)


def test_steps_are_sorted_and_cost_grows():
    rows = evaluate_depths(sae_of(PENALTIES["topk"]), rows_of(), [8, 1, 8, 2], px.Lipschitz())
    assert [row["steps"] for row in rows] == [1, 2, 8]
    assert [row["cost"] for row in rows] == [1, 3, 15]  # a gradient and a residual each
    assert [row["support_change"] is None for row in rows] == [True, False, False]
    assert rows[0]["objective"] > rows[1]["objective"] > rows[2]["objective"]


@pytest.mark.parametrize(("dtype", "mean"), [(np.float32, 1e4), (np.float64, 1e9)])
def test_explained_variance_survives_a_mean_that_dwarfs_the_deviation(dtype, mean):
    x = (mean + np.random.default_rng(0).standard_normal((500, 8))).astype(dtype)
    sae = sae_of(PENALTIES["abstopk"]).to(torch.from_numpy(x).dtype)
    with torch.no_grad():
        sae.b_dec.fill_(mean)
    (row,) = evaluate_depths(sae, x, [1], batch_size=64)
    with torch.no_grad():
        xhat = sae(torch.from_numpy(x)).numpy().astype(np.longdouble)
    wide = x.astype(np.longdouble)
    want = 1 - ((wide - xhat) ** 2).sum() / ((wide - wide.mean(axis=0)) ** 2).sum()
    assert 0.05 < want < 0.9
    assert row["explained_variance"] == pytest.approx(float(want), abs=1e-6)


class Lazy:
    """Rows that only come in slices, as a file larger than memory gives them."""

    def __init__(self, rows):
        self.rows, self.shape, self.largest = rows, rows.shape, 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, part):
        assert isinstance(part, slice)
        self.largest = max(self.largest, part.stop - part.start)
        return self.rows[part]


def test_only_a_batch_of_rows_is_read_at_a_time_and_progress_is_told():
    lazy, told = Lazy(rows_of()), []
    found = evaluate_depths(
        sae_of(PENALTIES["relu"]), lazy, [1, 2], batch_size=20, progress=lambda *done: told.append(done)
    )
    assert lazy.largest == 20
    assert told == [(20, 50), (40, 50), (50, 50)]
    assert found == evaluate_depths(sae_of(PENALTIES["relu"]), rows_of(), [1, 2], batch_size=20)


def test_the_default_batch_shrinks_as_codes_grow(monkeypatch):
    sae, lazy = sae_of(PENALTIES["relu"]), Lazy(rows_of())
    monkeypatch.setattr(evaluation, "ENTRIES", 10 * sae.d_sae)
    evaluate_depths(sae, lazy, [1])
    assert lazy.largest == 10


NAN = rows_of()
NAN[37, 2] = np.nan


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        (np.ones((4, 5)), {}, "width 8"),
        (np.ones((0, 8)), {}, "n >= 1"),
        (np.ones(8), {}, r"\(8,\)"),
        (NAN, {"batch_size": 10}, r"row 37 of the data"),
        (rows_of(), {"steps": [0, 1]}, "steps=0"),
        (rows_of(), {"steps": []}, "steps is empty"),
        (rows_of(), {"steps": [1.5]}, "1.5"),
        (rows_of(), {"batch_size": 0}, "batch_size=0"),
        (rows_of(), {"analysis": "encoder", "step": px.ExactStep()}, "analysis"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(rows, options, says):
    with pytest.raises(px.Error, match=says) as error:
        evaluate_depths(sae_of(PENALTIES["topk"]), rows, **options)
    assert "\n" not in str(error.value)


def test_b_enc_in_every_step_is_a_part_of_the_objective():
    sae, x = sae_of(PENALTIES["abstopk"]), rows_of()
    (row,) = evaluate_depths(sae, x, [3], b_enc="every")
    with torch.no_grad():
        z = sae.unrolled(3, px.ExactStep(), b_enc="every").encode(torch.from_numpy(x))
        residual = torch.from_numpy(x) - sae.b_dec - z @ sae.W_dec
        want = residual.square().sum(1) / 2 - z @ sae.b_enc
    assert row["objective"] == pytest.approx(float(want.mean()))


def test_learned_steps_are_measured_as_they_are():
    sae, x = sae_of(PENALTIES["relu"]), rows_of()
    deep = sae.unrolled(4, LearnedSteps())
    with torch.no_grad():
        deep.log_step.sub_(0.7)
    rows = evaluate_depths(deep, x, [1, 2, 4], LearnedSteps(), batch_size=9)
    assert rows[2]["nmse"] == pytest.approx(px.evaluate(deep, x)["nmse"], rel=1e-6)
    assert rows[0] == evaluate_depths(sae, x, [1], batch_size=9)[0]
    for model, steps in ((deep, [5]), (sae, [2])):
        with pytest.raises(px.Error, match=r"learned|needs an SAE trained with it"):
            evaluate_depths(model, x, steps, LearnedSteps())


def test_rows_of_zeros_give_no_nan():
    (row,) = evaluate_depths(px.topk_sae(8, 24, 3), np.zeros((3, 8)), [1])
    assert (row["nmse"], row["l0"], row["dead"], row["two_sided"]) == (0, 0, 1, 0)


def test_normalised_rows_are_decoded_in_the_units_of_the_data():
    sae, x = sae_of(PENALTIES["abstopk"]), rows_of()
    sae.normalize = "layer_norm"
    before = None
    for row in evaluate_depths(sae, x, STEPS, batch_size=9):
        deep = sae.unrolled(row["steps"], px.ExactStep())
        with torch.no_grad():
            z, xhat = deep.encode(torch.from_numpy(x)), deep(torch.from_numpy(x)).numpy()
            inside = torch.from_numpy((x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + 1e-5))
            residual = inside - sae.b_dec - z @ sae.W_dec
        assert row["nmse"] == pytest.approx(((x - xhat) ** 2).sum() / (x**2).sum())
        assert row["objective"] == pytest.approx(float(residual.square().sum(1).mean() / 2))
        assert before is None or row["objective"] < before
        before = row["objective"]


def test_codes_of_rows_are_padded_to_one_width():
    for R in PENALTIES.values():
        sae, x = sae_of(R), rows_of()
        found = encode_rows(sae, x, batch_size=4)  # the supports of short rows are small
        codes = px.SparseCodes(*(torch.from_numpy(found[key]).to(t) for key, t in KINDS), int(found["d_sae"]))
        with torch.no_grad():
            want = sae.encode(torch.from_numpy(x))
        assert_close(codes.to_dense(), want, 1e-12)
        assert found["indices"].dtype == np.int32
        assert (np.diff(found["indices"]) > 0).all()
        assert found["values"].shape[1] == (want != 0).sum(dim=1).max()


KINDS = (("indices", torch.int64), ("values", torch.float64))


def test_codes_that_do_not_fit_are_refused_early(monkeypatch):
    monkeypatch.setattr(evaluation, "memory", lambda: 1000.0)
    with pytest.raises(px.Error, match="GiB of memory"):
        encode_rows(sae_of(PENALTIES["relu"]), rows_of(), batch_size=1)


# --- inspect


def facts(sae):
    return dict(inspect(sae))


@pytest.mark.parametrize(
    ("R", "name"),
    [
        (px.L1(0.5, nonneg=True), "ReLU (codes >= 0)"),
        (px.L1(0.5), "soft threshold (signed codes)"),
        (px.L0(0.5, nonneg=True), "JumpReLU (codes >= 0)"),
        (px.L0(0.5), "two-sided JumpReLU (signed codes)"),
        (px.KSparse(3, nonneg=True), "TopK (codes >= 0)"),
        (px.KSparse(3), "AbsTopK (signed codes)"),
        (px.BatchKSparse(3, nonneg=True), "BatchTopK (codes >= 0)"),
        (px.BatchKSparse(3), "BatchAbsTopK (signed codes)"),
        (px.ElasticNet(0.5, 0.1), "ElasticNet (signed codes)"),
    ],
    ids=repr,
)
def test_a_penalty_gets_its_published_name(R, name):
    told = facts(px.SAE(4, 6, R))
    assert told["encoder"] == name
    assert R.statement in told["penalty"]
    assert ("as R is convex" in told["||D||^2"]) == R.convex


def made(D, E=None, R=None):
    """An SAE of this dictionary, atoms as rows, and encoder, one latent a row."""
    sae = px.SAE(len(D[0]), len(D), px.KSparse(1) if R is None else R)
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor(D))
        sae.W_enc.copy_(torch.tensor(D if E is None else E).T)
    return sae


def test_a_dictionary_worked_out_by_hand():
    told = facts(made([[3.0, 0], [0, 2], [0, 0], [3, 0]]))
    assert told["encoder weights"] == "tied: W_enc = W_dec^T exactly"
    assert told["||D||^2"].startswith("L = 18: no step up to 1/L = 0.05556 raises")  # 3^2 + 3^2
    assert told["atom norms"] == "min 0, median 2, max 3"
    assert told["coherence"].startswith("1.0000, ")
    assert told["coherence"].endswith("2 atoms have one above 0.99")
    assert told["idle latents"] == "1 zero atoms, 1 zero encoder columns, 1 atoms that repeat another bit for bit"


def test_tied_but_for_lengths_and_untied():
    D = [[1.0, 0], [0, 1]]
    told = facts(made(D, [[0.5, 0], [0, 3]]))["encoder weights"]
    assert told == "tied but for their lengths: ||column|| / ||atom|| min 0.5, median 0.5, max 3"
    told = facts(made(D, [[1.0, 1], [0, 1]]))["encoder weights"]
    assert told.startswith(f"untied: mean cosine of a column of W_enc with its atom {(0.5**0.5 + 1) / 2:.4f}; ")
    assert "no latent has both" in facts(made(D, [[0.0, 0], [0, 0]]))["encoder weights"]


def test_a_threshold_per_latent_is_told_by_its_spread():
    told = facts(made(np.eye(3, dtype=np.float32), R=px.L0(np.array([0.5, 2, 8]), nonneg=True)))
    assert told["penalty"] == "L0: threshold min 1, median 2, max 4; lam = threshold^2 / 2 (thm-prox-l0)"
    assert facts(px.relu_sae(4, 6, 0.25))["penalty"] == "L1: lam 0.25 (thm-prox-l1)"
    assert facts(px.topk_sae(4, 6, 5))["penalty"] == "KSparse: at most k = 5 of 6 latents a row (thm-prox-ksparse)"


def test_steps_and_dtype_are_told():
    sae = px.abstopk_sae(4, 6, 2).bfloat16()
    assert facts(sae)["sizes"] == "d_in 4, d_sae 6 (1.5 latents per input dimension), bfloat16"
    assert facts(sae)["steps"] == "1, the published encoder (prop-one-step-is-an-sae)"
    assert facts(sae.unrolled(4, px.ExactStep()))["steps"] == (
        "4: the learned first step, then 3 with the dictionary and ExactStep()"
    )
    assert facts(sae.unrolled(2, analysis="encoder"))["steps"].endswith("then 1 with the learned encoder")


def test_coherence_is_that_of_the_whole_gram_matrix_whatever_the_blocks(monkeypatch):
    sae = sae_of(PENALTIES["topk"])
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.5, 3, 24)[:, None])
    whole = facts(sae)
    assert whole["coherence"].startswith(f"{px.coherence(sae.W_dec):.4f}, ")
    monkeypatch.setattr(inspection, "BLOCK", 5)
    assert facts(sae) == whole
    monkeypatch.setattr(inspection, "COMPARED", 23)
    assert facts(sae)["coherence"].startswith("not worked out for more than 23 latents")


def test_an_sae_of_zeros_is_described_all_the_same():
    told = facts(made([[0.0, 0], [0, 0]]))
    assert told["idle latents"].startswith("2 zero atoms, 2 zero encoder columns")
    assert "||D||^2" not in told


def test_metadata_are_told():
    sae = px.topk_sae(4, 6, 2)
    notes = ["b_dec was not subtracted.", "Folded."]
    sae.metadata = {"format": "other", "notes": notes, "hook_name": "blocks.3", "hook_layer": 3}
    sae.normalize = "layer_norm"
    told = inspect(sae)
    assert ("metadata", "hook_name: blocks.3; hook_layer: 3") in told
    assert [text for name, text in told if name == "note"] == notes
    assert "divided by its deviation" in dict(told)["input"]
    assert "equivalently, after folding" in dict(told)["input"]


def test_compare_sees_another_code_and_knows_doubled_ones():
    sae = sae_of(PENALTIES["abstopk"])
    difference, rows, compared = compare(sae, sae)
    assert (difference, rows, compared) == (0, 64, 64 * 3)
    doubled = sae_of(px.KSparse(3, nonneg=True), d_sae=48)
    with torch.no_grad():
        for name, dim in (("W_enc", 1), ("W_dec", 0), ("b_enc", 0)):
            half = getattr(sae, name)
            getattr(doubled, name).copy_(torch.cat([half, -half], dim))
        doubled.b_dec.copy_(sae.b_dec)
        assert compare(sae, doubled)[0] < 1e-12
        doubled.b_dec[0] += 0.1
    assert compare(sae, doubled)[0] > 1e-3


# --- the commands


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with an SAE of each of two penalties, and rows."""
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", rows_of().astype(np.float32))
    for name in ("relu", "abstopk"):
        sae_of(PENALTIES[name]).float().save(name)
    px.SAE(8, 24, px.BatchKSparse(3)).save("batch")
    return tmp_path


def contents(folder):
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*"))


def test_inspect_prints_aligned_facts(place, capsys, device):
    assert main(["inspect", "abstopk", "--device", device]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["file", "abstopk"]
    assert lines[1].split() == ["format", "proxsae"]
    assert lines[2].split(maxsplit=1) == ["encoder", "AbsTopK (signed codes)"]
    assert all(line[15:17] == "  " and line[17] != " " and len(line) <= 110 for line in lines)


def test_eval_prints_a_table_and_writes_it(place, capsys, device):
    before = contents(place)
    assert main(["eval", "abstopk", "rows.npy", "--steps", "4,1,2", "--device", device]) == 0
    title, head, *lines = capsys.readouterr().out.splitlines()
    assert (
        title
        == "AbsTopK (signed codes), 24 latents, on 50 rows of width 8; further steps by the dictionary, step exact"
    )
    assert head.split()[:4] == ["steps", "nmse", "ev", "l0"]
    table = [line.split() for line in lines[:3]]
    assert [(line[0], line[3]) for line in table] == [("1", "3.000"), ("2", "3.000"), ("4", "3.000")]
    assert len({len(line) for line in (head, *lines[:3])}) == 1
    assert lines[3].startswith("support: mean Jaccard distance")
    assert contents(place) == before
    assert main(["eval", "abstopk", "rows.npy", "--steps", "4,1,2", "--batch-size", "9", "--out", "new/out"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == head
    assert contents(place / "new") == ["out", "out/rows.csv", "out/rows.json"]
    rows = list(csv.DictReader((place / "new/out/rows.csv").read_text().splitlines()))
    assert [row["steps"] for row in rows] == ["1", "2", "4"]
    told = json.loads((place / "new/out/rows.json").read_text())
    assert [row["nmse"] for row in told["rows"]] == [float(row["nmse"]) for row in rows]
    assert (told["meta"]["step"], told["meta"]["batch size"], told["meta"]["rows"]) == ("exact", 9, 50)


@pytest.mark.parametrize(("more", "step"), [(["--analysis", "encoder"], "unit"), ([], "exact")])
def test_eval_records_the_step_that_was_taken(more, step, place):
    assert main(["eval", "abstopk", "rows.npy", "--steps", "1,2", "--out", "out", *more]) == 0
    assert json.loads((place / "out/rows.json").read_text())["meta"]["step"] == step


def test_eval_takes_the_learned_encoder_and_rules(place, capsys):
    assert main(["eval", "relu", "rows.npy", "--steps", "1,2", "--analysis", "encoder"]) == 0
    assert "further steps by the learned encoder" in capsys.readouterr().out
    assert main(["eval", "relu", "rows.npy", "--steps", "1,2", "--step", "backtracking"]) == 0
    assert "further steps by the dictionary, step backtracking" in capsys.readouterr().out


def test_eval_says_where_codes_depend_on_the_batch(place, capsys):
    assert main(["eval", "batch", "rows.npy"]) == 0
    printed = capsys.readouterr().out
    assert "depend on the rows that share one: 50 here" in " ".join(printed.split())


def test_eval_of_an_sae_saved_with_more_steps(place, capsys):
    deep = px.load("relu").unrolled(3, LearnedSteps())
    deep.save("deep")
    assert main(["eval", "deep", "rows.npy", "--steps", "1,2"]) == 0
    assert "saved with 3 steps, which these take the place of" in " ".join(capsys.readouterr().out.split())
    assert main(["eval", "deep", "rows.npy", "--step", "learned"]) == 0
    printed = capsys.readouterr().out
    assert "step learned" in printed
    assert "saved with" not in printed
    assert [line.split()[0] for line in printed.splitlines()[2:4]] == ["1", "2"]


def test_eval_wonders_about_rows_of_another_model(place, capsys):
    sae = px.load("abstopk")
    with torch.no_grad():
        sae.b_dec.fill_(100)
    sae.save("far")
    assert main(["eval", "far", "rows.npy", "--steps", "1,2"]) == 0
    assert "hardly what this SAE was trained on" in " ".join(capsys.readouterr().out.split())


def test_a_relu_sae_without_lam_is_pointed_to_b_enc(place, capsys):
    sae_of(px.L1(0.0, nonneg=True)).save("free")
    assert "sparse by b_enc" in facts(px.load("free"))["penalty"]
    for more, told in ((["1,2"], True), (["1"], False), (["1,2", "--b-enc", "every"], False)):
        assert main(["eval", "free", "rows.npy", "--steps", *more]) == 0
        assert ("try --b-enc every" in " ".join(capsys.readouterr().out.split())) == told


def test_convert_repeats_the_notes_of_the_file(place, capsys):
    sae = px.load("relu")
    sae.metadata = {"format": "other", "notes": ["Something was folded."]}
    sae.save("noted")
    assert main(["convert", "noted", "copy"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "note     Something was folded."


def test_nothing_in_a_file_commands_the_terminal(place, capsys):
    sae, evil = px.load("relu"), "\x1b[2J\x9b\r\n"
    sae.metadata = {"format": evil + "f", "notes": [evil + "n"], "hook" + evil: {"a": evil}}
    sae.save("evil")
    for command in (["inspect", "evil"], ["convert", "evil", "copy"]):
        assert main(command) == 0
        assert all(c.isprintable() or c == "\n" for c in capsys.readouterr().out)


def test_infinity_is_null_in_json(place):
    sae = px.relu_sae(8, 24, 1.0)
    with torch.no_grad():
        sae.b_dec.fill_(1)
    sae.save("ones")
    np.save("zeros.npy", np.zeros((4, 8)))
    assert main(["eval", "ones", "zeros.npy", "--steps", "1", "--out", "out"]) == 0
    text = (place / "out/rows.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["rows"][0]["nmse"] is None


def test_encode_writes_the_codes(place, capsys, device):
    for steps in (1, 3):
        more = ["--steps", str(steps), "--step", "lipschitz", "--batch-size", "7", "--device", device]
        assert main(["encode", "relu", "rows.npy", "--out", "out/codes.npz", *more]) == 0
        printed = capsys.readouterr().out
        assert f"d_sae = 24, steps = {steps}" in printed
        with np.load("out/codes.npz") as found:
            codes = px.SparseCodes(
                torch.from_numpy(found["indices"]).long(), torch.from_numpy(found["values"]), int(found["d_sae"])
            )
        sae = px.load("relu")
        with torch.no_grad():
            want = sae.unrolled(steps).encode(torch.from_numpy(np.load("rows.npy")))
        torch.testing.assert_close(codes.to_dense(), want, atol=1e-5, rtol=1e-4)
    assert contents(place / "out") == ["codes.npz"]
    assert main(["encode", "batch", "rows.npy", "--out", "b.npz"]) == 0
    assert "depend on the rows that share one" in capsys.readouterr().out


def test_encode_takes_the_steps_that_were_saved(place, capsys):
    deep = px.load("relu").unrolled(3, LearnedSteps(), b_enc="every")
    with torch.no_grad():
        deep.log_step.sub_(0.7)
    deep.save("deep")
    want = encode_rows(deep, np.load("rows.npy"))
    for steps in ([], ["--steps", "3"]):
        assert main(["encode", "deep", "rows.npy", "--out", "c.npz", *steps]) == 0
        printed = capsys.readouterr().out
        assert (
            "steps = 3: the learned first step, then 2 with the dictionary and LearnedSteps(thresholds=True)" in printed
        )
        assert "take the place" not in printed
        with np.load("c.npz") as found:
            assert all(np.array_equal(found[key], want[key]) for key in want)
    for more in (["--steps", "2"], ["--step", "lipschitz"]):
        assert main(["encode", "deep", "rows.npy", "--out", "c.npz", *more]) == 0
        told = capsys.readouterr().out
        assert ("Lipschitz()" in told.splitlines()[0]) == (more[0] == "--step") != ("and ExactStep()" in told)
        assert "take the place of the steps that the SAE was saved with: 3: " in told


def test_convert_reads_back_what_it_wrote(place, capsys):
    assert main(["convert", "abstopk", "copy"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["read", "written", "checked"]
    assert lines[0][1] == "abstopk: proxsae; AbsTopK (signed codes), 8 to 24, float32"
    assert "are the same (192 non-zeros compared)" in lines[2][1]
    want = px.load("abstopk").state_dict()
    assert all(torch.equal(a, want[name]) for name, a in px.load("copy").state_dict().items())


def test_convert_exits_with_1_where_codes_differ(place, capsys, monkeypatch):
    def forgets(self, folder):
        with torch.no_grad():
            self.b_enc.mul_(0.5)
        save(self, folder)
        with torch.no_grad():
            self.b_enc.mul_(2)

    save = px.SAE.save
    monkeypatch.setattr(px.SAE, "save", forgets)
    assert main(["convert", "abstopk", "copy"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("The codes differ")


def test_convert_to_saelens_and_back(place, capsys):
    assert main(["convert", "abstopk", "lens", "--to", "saelens"]) == 0
    assert (place / "lens" / "cfg.json").is_file()
    printed = capsys.readouterr().out
    assert "lens: SAELens 6, abstopk; AbsTopK (signed codes), 8 to 24, float32" in printed
    assert "are the same (192 non-zeros compared)" in printed
    assert main(["convert", "lens", "back"]) == 0
    assert "back: proxsae, converted from SAELens 6, abstopk; AbsTopK" in " ".join(capsys.readouterr().out.split())


def test_convert_to_saelens_takes_the_threshold_of_a_batch(place, capsys):
    sae = px.SAE(8, 24, px.BatchKSparse(3, nonneg=True))
    sae.batch_threshold.fill_(0.25)
    sae.save("batch")
    assert main(["convert", "batch", "lens", "--to", "saelens"]) == 0
    printed = capsys.readouterr().out
    assert "note     The threshold 0.25 of training replaces the selection over a batch." in printed
    assert "JumpReLU" in printed
    x = torch.from_numpy(np.load("rows.npy"))
    with torch.no_grad():
        torch.testing.assert_close(px.load("lens").encode(x), sae.thresholded().encode(x))


def test_ctrl_c_does_not_deny_what_was_written(place, capsys, monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(inspection, "compare", stopped)
    assert main(["convert", "relu", "copy"]) == 130
    assert (place / "copy").is_dir()
    assert capsys.readouterr().err == "\nproxsae: interrupted\n"


def test_convert_to_saelens_doubles_signed_codes(place, capsys):
    assert main(["convert", "abstopk", "lens", "--to", "saelens", "--double"]) == 0
    printed = capsys.readouterr().out
    assert "TopK (codes >= 0), 8 to 48" in printed
    assert "192 non-zeros compared" in printed


WRONG = {
    "no SAE": (["inspect", "none"], "none"),
    "SAE is data": (["eval", "rows.npy", "rows.npy"], "rows.npy"),
    "rows to inspect": (["inspect", "nan.npy"], "nan.npy holds NaN"),
    "empty SAE": (["inspect", ""], "SAE is empty"),
    "unknown device": (["inspect", "relu", "--device", "toaster"], "toaster"),
    "no data": (["eval", "relu", "none.npy"], "none.npy"),
    "empty data": (["eval", "relu", ""], "DATA is empty"),
    "width": (["eval", "relu", "wide.npy"], "width 8"),
    "NaN": (["eval", "relu", "nan.npy"], "37"),
    "no steps": (["eval", "relu", "rows.npy", "--steps", "0"], "--steps '0'"),
    "steps of words": (["eval", "relu", "rows.npy", "--steps", "1,x"], "--steps '1,x'"),
    "steps of nothing": (["eval", "relu", "rows.npy", "--steps", ""], "--steps ''"),
    "a rule for the encoder": (["eval", "relu", "rows.npy", "--analysis", "encoder", "--step", "exact"], "analysis"),
    "no batch": (["eval", "relu", "rows.npy", "--batch-size", "0"], "--batch-size=0"),
    "out below a file": (["eval", "relu", "rows.npy", "--out", "rows.npy/out"], "rows.npy"),
    "empty out": (["eval", "relu", "rows.npy", "--out", ""], "--out is empty"),
    "codes not npz": (["encode", "relu", "rows.npy", "--out", "codes.npy"], "must end in .npz"),
    "codes below a file": (["encode", "relu", "rows.npy", "--out", "rows.npy/c.npz"], "rows.npy"),
    "codes on a folder": (["encode", "relu", "rows.npy", "--out", "full.npz"], "full.npz"),
    "codes of no steps": (["encode", "relu", "rows.npy", "--steps", "0", "--out", "c.npz"], "--steps=0"),
    "codes of no batch": (["encode", "relu", "rows.npy", "--batch-size", "0", "--out", "c.npz"], "--batch-size=0"),
    "codes of wide rows": (["encode", "relu", "wide.npy", "--out", "c.npz"], "width 8"),
    "on itself": (["convert", "relu", "./relu"], "SRC and DST"),
    "on a file": (["convert", "relu", "rows.npy"], "rows.npy"),
    "on a foreign folder": (["convert", "relu", "full.npz"], "full.npz"),
    "double of our own": (["convert", "relu", "copy", "--double"], "--double"),
    "seed": (["convert", "relu", "copy", "--seed", "-1"], "seed=-1"),
    "codes on the data": (["encode", "relu", "rows.npz", "--out", "./rows.npz"], "is DATA or lies in it"),
    "codes in the data": (["encode", "relu", "full.npz", "--out", "full.npz/c.npz"], "is DATA or lies in it"),
    "codes in the SAE": (["encode", "relu", "rows.npy", "--out", "relu/c.npz"], "is SAE or lies in it"),
    "codes on the SAE": (["encode", "rows.npz", "rows.npy", "--out", "rows.npz"], "is SAE or lies in it"),
    "on its folder": (["convert", "lens/sae_weights.safetensors", "lens", "--to", "saelens"], "SRC lies in it"),
    "on another SAE": (["convert", "abstopk", "lens", "--to", "saelens"], "choose a new folder"),
    "several steps": (["convert", "deep", "new", "--to", "saelens"], "--to proxsae only"),
    "no threshold": (["convert", "batch", "new", "--to", "saelens"], "BatchKSparse"),
    "no learned steps": (["eval", "relu", "rows.npy", "--step", "learned"], "choose another --step (exact"),
    "learned by the encoder": (
        ["eval", "deep", "rows.npy", "--step", "learned", "--analysis", "encoder"],
        "leave --analysis",
    ),
    "learned with b_enc": (["eval", "deep", "rows.npy", "--step", "learned", "--b-enc", "every"], "leave --analysis"),
    "nothing to read": (["convert", "none", "copy"], "none"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_ends_in_one_sentence_and_status_2(case, place, capsys):
    np.save("nan.npy", NAN)
    np.save("wide.npy", np.ones((4, 9)))
    (place / "full.npz").mkdir()
    (place / "full.npz" / "mine").touch()
    (place / "full.npz" / "rows.npy").symlink_to(place / "rows.npy")
    np.savez("rows.npz", rows_of())
    px.load("abstopk").export("lens")
    px.load("relu").unrolled(3, LearnedSteps()).save("deep")
    before = contents(place)
    bytes_before = [f.read_bytes() for f in place.rglob("*") if f.is_file()]
    arguments, says = WRONG[case]
    assert main(arguments) == 2
    printed, told = capsys.readouterr()
    assert printed == ""
    assert told.startswith("proxsae: ")
    assert told.count("\n") == 1
    assert says in told
    assert contents(place) == before
    assert [f.read_bytes() for f in place.rglob("*") if f.is_file()] == bytes_before


@pytest.mark.parametrize("command", [["eval"], ["encode"]], ids=str)
def test_ctrl_c_and_a_full_disk_leave_nothing(command, place, capsys, monkeypatch):
    out = [*command, "relu", "rows.npy", "--out", "out" if command == ["eval"] else "out.npz"]
    before = contents(place)

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "batches", stopped)
        assert main(out) == 130
    assert contents(place) == before
    monkeypatch.setattr("os.replace", full)
    assert main(out) == 2
    assert "cannot write" in capsys.readouterr().err.splitlines()[-1]
    assert [name for name in contents(place) if name != "out"] == before


def test_commands_take_rows_as_torch_and_hubs_keep_them(place, capsys):
    rows, told = torch.tensor(np.load("rows.npy")).bfloat16(), []
    np.save("plain.npy", rows.float().numpy())
    torch.save({"acts": rows, "layer": 3}, "acts.pt")
    (place / "blobs").mkdir()
    (place / "snapshot").mkdir()
    save_file({"acts": rows}, place / "blobs" / "0a1b")
    (place / "snapshot" / "acts.safetensors").symlink_to("../blobs/0a1b")
    for data in ("plain.npy", "acts.pt", "snapshot"):
        assert main(["eval", "abstopk", data, "--steps", "1,2"]) == 0
        assert main(["encode", "abstopk", data, "--out", "codes.npz"]) == 0
        told.append((capsys.readouterr().out, np.load("codes.npz")["values"].tobytes()))
    assert told[0] == told[1] == told[2]


def test_help_waits_for_no_torch():
    code = (
        "import sys\nfrom proxsae.cli import main\n"
        "try:\n    main(['eval', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_k_that_keeps_everything_and_arrays_of_three_axes_are_told(place, capsys):
    px.SAE(8, 6, px.KSparse(10)).save("wide")
    assert "k is not less than d_sae, so it limits nothing" in facts(px.load("wide"))["penalty"]
    assert "k is not" not in facts(px.load("abstopk"))["penalty"]
    np.save("cube.npy", np.load("rows.npy").reshape(5, 10, 8))
    assert main(["eval", "wide", "cube.npy", "--steps", "1"]) == 0
    printed = capsys.readouterr().out
    assert "on 50 rows of width 8 (arrays of 3 axes, all but the last taken as rows); further" in printed
    assert "k = 10 is not less than d_sae = 6, so it limits nothing." in printed
    assert main(["eval", "abstopk", "rows.npy", "--steps", "1"]) == 0
    printed = capsys.readouterr().out
    assert "axes" not in printed
    assert "is not less" not in printed
