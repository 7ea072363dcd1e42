"""The packaged rows are those of the provenance page, planted problems keep their word, foreign files are refused."""

import gc
import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import proxsae as px
from proxsae.testing import assert_close, assert_same

FOLDER = Path(px.data.__file__).parent
ROWS = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
TENSOR = torch.tensor(ROWS)

# Packaged


def test_packaged_rows_are_float32_and_finite():
    train, test = px.data.packaged()
    assert (train.shape, test.shape) == ((8192, 384), (2048, 384))
    for side in (train, test):
        assert side.dtype == np.float32
        assert np.isfinite(side).all()
        assert len(np.unique(side, axis=0)) == len(side)
        assert np.linalg.norm(side, axis=1).mean() == pytest.approx(12.05, abs=0.05)  # as PROVENANCE.md says


def test_packaged_files_are_those_of_the_provenance_page():
    page = (FOLDER / "PROVENANCE.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\S+\.npy)` \| (\d+) \| ([\d,]+) \| `([0-9a-f]{64})` \|$", page, flags=re.M)
    assert sorted(name for name, *_ in listed) == sorted(f.name for f in FOLDER.glob("*.npy"))
    assert len(listed) == 3
    for name, count, size, digest in listed:
        content = (FOLDER / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
        assert len(content) == int(size.replace(",", ""))
        assert len(np.load(FOLDER / name, mmap_mode="r", allow_pickle=False)) == int(count)
    assert sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file()) < 13_000_000


# Planted


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("dynamic_range", [1.0, 10.0])
def test_planted_rows_are_their_codes_times_their_atoms(signed, dynamic_range):
    data = px.data.planted(n=200, d_in=16, d_sae=48, k=5, signed=signed, dynamic_range=dynamic_range, seed=2)
    assert (data.x.shape, data.D.shape, data.z.shape) == ((200, 16), (48, 16), (200, 48))
    assert data.x.dtype == data.D.dtype == data.z.dtype == np.float64
    assert_same(data.x, data.z @ data.D)
    assert_close(np.linalg.norm(data.D, axis=1), np.ones(48), 1e-14)
    assert ((data.z != 0).sum(axis=1) == 5).all()
    assert ((data.z != 0).sum(axis=0) > 0).all()  # 200 rows of 5 use each of 48 latents
    positive = (data.z > 0).sum() / (data.z != 0).sum()
    assert 0.4 < positive < 0.6 if signed else positive == 1
    sizes = np.abs(data.z[data.z != 0])
    assert sizes.min() >= 1
    assert sizes.max() <= dynamic_range * (1 + 1e-15)
    assert sizes.max() >= 0.95 * dynamic_range


def test_noise_has_the_deviation_that_is_asked_for():
    data = px.data.planted(n=2000, d_in=16, d_sae=48, k=5, noise=0.3, seed=2)
    assert (data.x - data.z @ data.D).std() == pytest.approx(0.3, rel=0.02)


def test_a_seed_repeats_a_planted_problem_and_another_does_not():
    one, two, other = (px.data.planted(n=9, d_in=8, d_sae=16, k=3, seed=seed) for seed in (1, 1, 2))
    for name in ("x", "D", "z"):
        assert_same(getattr(one, name), getattr(two, name))
        assert not np.array_equal(getattr(one, name), getattr(other, name))


def test_flat_draws_are_those_of_every_version():
    data = px.data.planted(n=30, d_in=8, d_sae=20, k=3, dynamic_range=7.0, noise=0.1, seed=11)
    rng = np.random.default_rng(11)
    D = rng.standard_normal((20, 8))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    support = np.argsort(rng.random((30, 20)), axis=1)[:, :3]
    sizes = np.exp(rng.uniform(0, np.log(7.0), (30, 3))) * rng.choice([-1.0, 1.0], (30, 3))
    z = np.zeros((30, 20))
    for row, places, values in zip(z, support, sizes, strict=True):
        row[places] = values
    assert_same(data.D, D)
    assert_same(data.z, z)
    assert_same(data.x, z @ D + 0.1 * rng.standard_normal((30, 8)))


@pytest.mark.parametrize("kind", ["flat", "correlated", "hierarchical"])
def test_fresh_rows_of_given_atoms(kind):
    one = px.data.planted(n=50, d_in=8, d_sae=20, k=3, kind=kind, seed=1)
    kept = one.D.copy()
    other = px.data.planted(n=50, d_in=8, d_sae=20, k=3, kind=kind, seed=2, D=one.D)
    assert_same(other.D, kept)
    assert_same(one.D, kept)
    assert_same(other.x, other.z @ kept)
    assert not np.array_equal(one.z, other.z)


@pytest.mark.parametrize("kind", ["correlated", "hierarchical"])
@pytest.mark.parametrize(("d_sae", "k"), [(64, 5), (21, 4), (17, 17), (8, 3), (3, 2), (1, 1), (9, 0)])
def test_every_row_of_every_kind_has_k_latents(kind, d_sae, k):
    data = px.data.planted(n=300, d_in=6, d_sae=d_sae, k=k, kind=kind, dynamic_range=10, signed=False, seed=3)
    assert ((data.z != 0).sum(axis=1) == k).all()
    assert_same(data.x, data.z @ data.D)


def together(z):
    """How often two latents fire together, over what independent ones of the same rates would: all pairs (P, P)."""
    fires = (z != 0).astype(float)
    rates = fires.mean(axis=0)
    return fires.T @ fires / len(fires) / np.outer(rates, rates)


def test_correlated_latents_fire_with_their_group():
    P, group = 64, np.arange(64) // 8
    same = (group[:, None] == group) & ~np.eye(P, dtype=bool)
    apart = group[:, None] != group
    found = {
        kind: px.data.planted(n=8000, d_in=4, d_sae=P, k=6, kind=kind, seed=5).z for kind in ("correlated", "flat")
    }
    lift = together(found["correlated"])
    assert lift[same].min() > 2  # for every pair of every group
    assert lift[apart].mean() < 0.8
    rates = (found["correlated"] != 0).mean(axis=0)
    assert rates.min() > 0.75 * 6 / P
    assert rates.max() < 1.25 * 6 / P
    flat = together(found["flat"])
    assert flat[same].mean() == pytest.approx(5 * P / (6 * (P - 1)), rel=0.05)  # k latents leave k - 1 places


@pytest.mark.parametrize("d_sae", [64, 61, 57])
def test_a_child_fires_only_with_its_parent(d_sae):
    fires = px.data.planted(n=4000, d_in=4, d_sae=d_sae, k=4, kind="hierarchical", seed=6).z != 0
    parent = np.arange(d_sae) // 8 * 8
    child = parent != np.arange(d_sae)
    assert not (fires & ~fires[:, parent]).any()
    assert 0.6 < fires[:, child].sum() / fires.sum() < 0.7  # without the root of u_child it is half
    rates = fires.mean(axis=0)
    assert rates[child].min() > 0
    assert rates[child].max() < 0.5 * rates[~child].min()
    alone = fires[:, 0] & ~fires[:, 1:8].any(axis=1)
    assert 0.1 < alone.sum() / fires[:, 0].sum() < 0.8  # parents fire without children, too


def test_planted_problems_may_be_empty():
    assert px.data.planted(n=0, d_in=8, d_sae=16, k=3).x.shape == (0, 8)
    assert not px.data.planted(n=4, d_in=8, d_sae=16, k=0).x.any()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"k": 17}, "k=17"), ({"k": -1}, "k=-1"), ({"n": -1}, "n=-1"), ({"d_in": 0}, "d_in=0"),
        ({"d_sae": 1.5}, "d_sae=1.5"), ({"dynamic_range": 0.5}, "dynamic_range=0.5"),
        ({"dynamic_range": np.inf}, "dynamic_range=inf"), ({"dynamic_range": np.nan}, "dynamic_range=nan"),
        ({"noise": -0.1}, "noise=-0.1"), ({"noise": np.nan}, "noise=nan"), ({"kind": "tree"}, "kind='tree'"),
        ({"D": np.ones((8, 16))}, r"D has shape \(8, 16\), but must be \(d_sae, d_in\) = \(16, 8\)"),
    ],
    ids=str,
)  # fmt: skip
def test_planted_problems_that_cannot_be_are_refused_in_one_sentence(wrong, says):
    with pytest.raises(px.Error, match=says) as error:
        px.data.planted(**({"n": 4, "d_in": 8, "d_sae": 16, "k": 3} | wrong))
    assert "\n" not in str(error.value)


# Reading


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt"])
def test_what_was_written_is_read(suffix, dtype, tmp_path):
    file, rows = tmp_path / f"rows{suffix}", ROWS.astype(dtype)
    write(file, rows)
    for path in (file, str(file)):
        assert_same(np.asarray(px.data.read(path)), rows)
    write(file, rows.reshape(2, 5, 4, 4))
    assert_same(np.asarray(px.data.read(file)), rows)  # rows over the last axis


def write(file, rows):
    if file.suffix == ".npy":
        np.save(file, rows)
    elif file.suffix == ".npz":
        np.savez_compressed(file, acts=rows)
    elif file.suffix == ".pt":
        torch.save(torch.tensor(rows), file)
    else:
        save_file({"acts": rows}, file)


def test_npy_files_are_memory_mapped_and_read_only(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS.reshape(2, 20, 4))
    rows = px.data.read(tmp_path / "rows.npy")
    mapped = rows
    while mapped is not None and not isinstance(mapped, np.memmap):
        mapped = mapped.base
    assert isinstance(mapped, np.memmap)
    assert not rows.flags.writeable


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path):
    np.save(tmp_path / "b.npy", ROWS[10:25])
    np.savez(tmp_path / "a.npz", ROWS[:10])
    save_file({"x": ROWS[25:]}, tmp_path / "c.safetensors")
    (tmp_path / "README.md").write_text("not activations")
    assert_same(np.asarray(px.data.read(tmp_path)), ROWS)


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f8"])
def test_files_of_either_byte_order_can_be_trained_on(dtype, tmp_path):
    np.save(tmp_path / "rows.npy", ROWS.astype(dtype))
    rows = px.data.read(tmp_path / "rows.npy")
    assert_close(np.asarray(rows, dtype=np.float32), ROWS, 1e-7)
    px.train(px.topk_sae(4, 8, 2), rows.copy(), steps=1, progress=False)


@pytest.mark.parametrize("names", [("a.npz", "a.npy"), ("a.npy", "a.npz")])
def test_content_decides_between_npy_and_npz_not_the_name(names, tmp_path):
    assert_same(np.asarray(px.data.read(renamed(*names)(tmp_path))), ROWS)


def save(name, array, **options):
    return lambda folder: np.save(folder / name, array, **options) or folder / name


def cut(name, keep, rows=ROWS):
    def make(folder):
        write(folder / name, rows)
        (folder / name).write_bytes((folder / name).read_bytes()[:keep])
        return folder / name

    return make


def saved(value, **options):
    return lambda folder: torch.save(value, folder / "x.pt", **options) or folder / "x.pt"


def raw(name, content):
    return lambda folder: (folder / name).write_bytes(content) * 0 or folder / name


def renamed(old, new):
    def make(folder):
        write(folder / old, ROWS)
        return shutil.move(folder / old, folder / new)

    return make


def two_arrays(folder):
    np.savez(folder / "two.npz", x=ROWS, y=ROWS)
    return folder / "two.npz"


def torn_zip(folder):
    np.savez_compressed(folder / "torn.npz", x=ROWS)
    content = bytearray((folder / "torn.npz").read_bytes())
    content[120:140] = bytes(20)
    (folder / "torn.npz").write_bytes(content)
    return folder / "torn.npz"


def pickle_in_a_zip(folder):
    np.savez(folder / "pickle.npz", x=np.array([[{}]], dtype=object))
    return folder / "pickle.npz"


def widths(folder):
    np.save(folder / "a.npy", ROWS)
    np.save(folder / "b.npy", ROWS[:, :3])
    return folder


def with_nan(dtype=np.float32, value=np.nan):
    bad = ROWS.astype(dtype)
    bad[7, 2] = value
    return bad


FOREIGN = {
    "missing .npy": (lambda folder: folder / "none.npy", "No such file"),
    "missing .npz": (lambda folder: folder / "none.npz", "No such file"),
    "missing .pt": (lambda folder: folder / "none.pt", "No such file"),
    "missing .safetensors": (lambda folder: folder / "none.safetensors", "No such file"),
    "missing folder": (lambda folder: folder / "none", "none"),
    "empty folder": (lambda folder: folder, "holds no .npy"),
    "unknown suffix": (raw("rows.csv", b"1,2"), "must end in"),
    "empty .npy": (raw("e.npy", b""), "truncated"),
    "empty .npz": (raw("e.npz", b""), "truncated"),
    "empty .safetensors": (raw("e.safetensors", b""), "truncated"),
    "truncated .npy": (cut("t.npy", -9), "truncated"),
    "truncated head": (cut("t.npy", 30), "truncated"),
    "truncated .npz": (cut("t.npz", 200), "truncated"),
    "truncated .safetensors": (cut("t.safetensors", -9), "truncated"),
    "empty .pt": (raw("e.pt", b""), "no zipped torch file"),
    "truncated .pt": (cut("t.pt", -9), "truncated"),
    "older .pt": (saved(TENSOR, _use_new_zipfile_serialization=False), "older torch files are pickles"),
    "two tensors": (saved({"x": TENSOR, "y": TENSOR}), "holds 2 tensors, but activations are one tensor"),
    "no tensor": (saved({"x": 3}), "holds 0 tensors"),
    "number in a .pt": (saved(3.0), "holds 0 tensors"),
    "integers in a .pt": (saved(TENSOR.int()), "int32"),
    "float8": (saved(TENSOR.to(torch.float8_e5m2)), "no such object"),
    "sparse": (saved(TENSOR.to_sparse()), "no such object"),
    "repeated without memory": (saved(torch.zeros(1, 4).expand(10**9, 4)), "no dense tensor of that size"),
    "a pickle in a .pt": (saved({"x": Path}), "no such object"),
    "text": (raw("text.npy", b"1 2 3\n"), "truncated or not"),
    "torn zip": (torn_zip, "truncated or not"),
    "pickle": (save("p.npy", np.array([[{}]], dtype=object), allow_pickle=True), "truncated or not"),
    "pickle in a zip": (pickle_in_a_zip, "truncated or not"),
    "two arrays": (two_arrays, "['x', 'y']"),
    "integers": (save("i.npy", np.ones((4, 3), dtype=int)), "int64"),
    "booleans": (save("i.npy", np.ones((4, 3), dtype=bool)), "bool"),
    "complex": (save("i.npy", np.ones((4, 3), dtype=complex)), "complex128"),
    "one axis": (save("i.npy", np.ones(4)), "(4,)"),
    "no rows": (save("i.npy", np.ones((0, 4))), "no rows"),
    "no columns": (save("i.npy", np.ones((4, 0))), "no rows"),
    "NaN": (save("n.npy", with_nan()), "(7, 2)"),
    "infinity": (save("n.npy", with_nan(np.float16, np.inf)), "(7, 2)"),
    "widths": (widths, "[3, 4]"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_file_is_refused_in_one_sentence_that_names_it(case, tmp_path):
    make, says = FOREIGN[case]
    path = make(tmp_path)
    with pytest.raises(px.Error) as error:
        px.data.read(path)
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    assert says in text
    del error
    gc.collect()  # a file left open is this test's fault


def test_a_pickle_is_never_run(tmp_path):
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return Path.touch, (ran,)

    np.save(tmp_path / "trap.npy", np.array([[Trap()]], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "trap.npz", x=np.array([[Trap()]], dtype=object))
    for file in ("trap.npy", "trap.npz"):
        with pytest.raises(px.Error):
            px.data.read(tmp_path / file)
    assert not ran.exists()


def test_nan_is_found_beyond_the_first_piece(tmp_path):
    rows = np.ones((2**19 + 9, 2), dtype=np.float32)
    rows[-1, 1] = np.nan
    np.save(tmp_path / "long.npy", rows)
    with pytest.raises(px.Error, match=r"NaN .* \(524296, 1\)"):
        px.data.read(tmp_path / "long.npy")
