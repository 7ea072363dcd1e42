"""Rows are read where they are asked for, their shuffling is a formula, and a hostile file gives an error or data."""

import io
import os
import pickle
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

import proxsae as px
from proxsae.data import Shuffle, open_rows
from proxsae.data.files import Part
from proxsae.data.readers import CHUNK, DEFLATE, sentence
from proxsae.sae.evaluation import encode_rows
from proxsae.testing import assert_same
from tests.mutate import mutants, zip_mutants
from tests.test_data import FOREIGN, ROWS, write

FORTRAN = np.asfortranarray(ROWS.reshape(2, 5, 4, 4))


def refuses(call, *says):
    """The one sentence with which a call is refused."""
    with pytest.raises(px.Error) as error:
        call()
    text = str(error.value)
    assert text.isprintable()
    for part in says:
        assert str(part) in text
    return text


# Reading


def parts_of(folder):
    np.save(folder / "a.npy", ROWS[:11])
    np.savez(folder / "b.npz", ROWS[11:12])
    save_file({"x": ROWS[12:30]}, folder / "c.safetensors")
    np.save(folder / "d.npy", ROWS[30:].reshape(2, 5, 4))
    return folder


def file_of(suffix, rows=ROWS):
    return lambda folder: write(folder / f"rows{suffix}", rows) or folder / f"rows{suffix}"


def hub_of(folder):
    """A folder as the cache of a model hub has it: its files are links to files without a suffix, elsewhere."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name in sorted(file.name for file in parts_of(folder).iterdir() if file.suffix):
        (folder / name).rename(blobs / name[0])
        (snapshot / name).symlink_to(f"../../blobs/{name[0]}")
    return snapshot


def torch_of(wrapped, rows=ROWS, name="rows.pt"):
    return lambda folder: torch.save(wrapped(torch.tensor(rows)), folder / name) or folder / name


SOURCES = {
    "array": lambda folder: ROWS,
    "columns": lambda folder: np.asfortranarray(ROWS),
    "axes": lambda folder: FORTRAN,
    "npy": file_of(".npy"),
    "npz": file_of(".npz"),
    "safetensors": file_of(".safetensors"),
    "npy by columns": file_of(".npy", np.asfortranarray(ROWS)),
    "npy with axes by columns": file_of(".npy", FORTRAN),
    "folder": parts_of,
    "hub": hub_of,
    "tensor": lambda folder: torch.tensor(ROWS),
    "tensor that needs gradients": lambda folder: torch.tensor(ROWS, requires_grad=True),
    "pt": torch_of(lambda a: a),
    "pt by columns": torch_of(lambda a: a.T.contiguous().T),
    "pt with axes": torch_of(lambda a: a.view(2, 5, 4, 4)),
    "pt, a parameter": torch_of(torch.nn.Parameter),
    "pth, a dict": torch_of(lambda a: {"layer": 3, "acts": a, "model": "m"}, name="rows.pth"),
    "pt, a list": torch_of(lambda a: [a]),
}


@pytest.mark.parametrize("source", SOURCES)
def test_rows_are_those_asked_for_in_that_order(source, tmp_path):
    rows = open_rows(SOURCES[source](tmp_path))
    assert (rows.shape, rows.dtype, len(rows)) == ((40, 4), np.float32, 40)
    indices = np.random.default_rng(1).integers(0, 40, 100)  # unsorted, some twice
    for which in (
        slice(None),
        slice(9, 33),
        slice(30, 5, -3),
        slice(-3, None),
        slice(7, 7),
        indices,
        indices[:1],
        indices[:0],
    ):
        assert_same(rows[which], ROWS[which])
    assert_same(rows[[39, 0]], ROWS[[39, 0]])
    for one in (0, 39, -1, -40, np.int64(7), torch.tensor(5)):
        assert_same(rows[one], ROWS[int(one)])
    assert_same(rows[[-1, 3, -40]], ROWS[[-1, 3, -40]])
    for mask in (ROWS[:, 0] > 0, ROWS[:, 0] > 9):
        for given in (mask, mask.tolist(), torch.tensor(mask)):
            assert_same(rows[given], ROWS[mask])
    assert_same(np.stack(list(rows)), ROWS)
    assert open_rows(rows) is rows


BFLOAT16 = {
    "safetensors": lambda folder, a: save_tensors({"acts": a}, folder / "a.safetensors") or folder / "a.safetensors",
    "pt": lambda folder, a: torch.save(a, folder / "a.pt") or folder / "a.pt",
    "pth, by columns, in a dict": lambda folder, a: (
        torch.save({"acts": a.T.contiguous().T}, folder / "a.pth") or folder / "a.pth"
    ),
    "tensor": lambda folder, a: a,
}


@pytest.mark.parametrize("kind", BFLOAT16)
def test_bfloat16_is_float32_and_every_one_of_its_numbers_is_kept(kind, tmp_path):
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    finite = every[every.isfinite()].reshape(-1, 4)
    source = BFLOAT16[kind](tmp_path, finite)
    rows = open_rows(source)
    assert (rows.shape, rows.dtype) == ((len(finite), 4), np.float32)
    assert_same(rows[:].view(np.int32), finite.float().numpy().view(np.int32))  # -0.0 too
    assert_same(rows[[9, 2]], finite.float().numpy()[[9, 2]])
    if kind != "tensor":
        assert_same(px.data.read(source), finite.float().numpy())
        np.save(tmp_path / "b.npy", np.ones((1, 4), np.float16))
        assert_same(open_rows(tmp_path)[[-2, -1]], np.stack([finite[-1].float().numpy(), np.ones(4, np.float32)]))
    assert len(open_rows(every[:8].reshape(2, 4))) == 2
    refuses(lambda: open_rows(BFLOAT16[kind](tmp_path, every.reshape(-1, 4)))[:], "NaN or infinite")


@pytest.mark.parametrize("source", SOURCES)
def test_rows_that_go_to_another_process_are_the_same_and_mapped_ones_are_not_copied(source, tmp_path):
    rows = open_rows(SOURCES[source](tmp_path))
    sent = pickle.dumps(rows)
    assert_same(pickle.loads(sent)[:], ROWS)
    if source.startswith(("npy", "safetensors", "pt")):
        assert ROWS[3].tobytes() not in sent
        assert ROWS.T[2, 3:9].tobytes() not in sent
    assert rows.fingerprint() == pickle.loads(sent).fingerprint()


def test_a_file_that_is_replaced_before_the_other_process_opens_it_is_an_error(tmp_path):
    for name in ("rows.npy", "rows.pt", "rows.safetensors"):
        file = write(tmp_path / name, ROWS) or tmp_path / name
        sent = pickle.dumps(open_rows(file))
        replaced(file)
        refuses(lambda: pickle.loads(sent), file, "after it was opened")  # noqa: B023


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_rows_are_a_dataset_of_torch(start, tmp_path):
    rows = open_rows(parts_of(tmp_path))
    if start not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} here")
    loader = torch.utils.data.DataLoader(rows, 7, num_workers=1, multiprocessing_context=start)
    assert_same(torch.cat(list(loader)), torch.tensor(ROWS))


def test_a_batch_is_a_new_array_and_an_array_is_not_copied():
    x = ROWS.copy()
    rows = open_rows(x)
    batch = rows[:]
    batch[:] = 0
    assert_same(x, ROWS)
    x[3] = 7
    assert (rows[3:4] == 7).all()


@pytest.mark.parametrize(
    ("dtypes", "common"),
    [
        (("f2", "f4"), "f4"),
        ((">f4", "f4"), "f4"),
        ((">f8", "f2"), "f8"),
        ((np.longdouble, "f4"), "f8"),
        (("f2", "f2"), "f2"),
    ],
)
def test_files_of_several_dtypes_give_the_one_that_holds_all(dtypes, common, tmp_path):
    exact = ROWS.astype(np.float16)  # in every one of them
    for name, dtype, rows in zip("ab", dtypes, np.split(exact, 2), strict=True):
        np.save(tmp_path / f"{name}.npy", rows.astype(dtype))
    rows = open_rows(tmp_path)
    assert_same(rows[:], exact.astype(common))
    assert_same(rows[:], px.data.read(tmp_path))


def test_a_part_is_read_from_front_to_back(monkeypatch, tmp_path):
    asked = []
    take = Part.take
    monkeypatch.setattr(Part, "take", lambda part, rows: asked.append(rows) or take(part, rows))
    open_rows(parts_of(tmp_path))[np.array([39, 5, 0, 20, 5])]
    assert [rows.tolist() for rows in asked] == [[0, 5, 5], [8], [9]]


OUTSIDE = [[40], 40, [-41], -41, [0.0], 0.0, [True], [True] * 41, True, [[1]], (1, 2), "a", np.uint64([2**63]), None]


@pytest.mark.parametrize("which", OUTSIDE, ids=str)
def test_rows_that_are_not_there_are_refused(which):
    refuses(lambda: open_rows(ROWS)[which], "row")


@pytest.mark.parametrize("case", [case for case in FOREIGN if case not in ("NaN", "infinity")])
def test_opening_refuses_what_reading_refuses(case, tmp_path):
    path = FOREIGN[case][0](tmp_path)
    text = refuses(lambda: open_rows(path), path, FOREIGN[case][1])
    assert text == refuses(lambda: px.data.read(path))


@pytest.mark.parametrize(
    "wrong", [ROWS[0], ROWS[:0], ROWS.astype(int), "none.npy", None, [[1.0], [1.0, 2.0]], 3.0], ids=repr
)
def test_arrays_that_are_no_rows_are_refused(wrong):
    refuses(lambda: open_rows(wrong))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_row_is_found_when_it_is_read_and_named_within_its_file(value, tmp_path):
    parts_of(tmp_path)
    bad = ROWS[12:30].copy()
    bad[7, 2] = value
    save_file({"x": bad}, tmp_path / "c.safetensors")
    rows = open_rows(tmp_path)
    assert_same(rows[20:], ROWS[20:])
    refuses(lambda: rows[np.array([21, 19, 3])], "row 7 of c.safetensors")
    refuses(lambda: px.data.read(tmp_path), "c.safetensors", "(7, 2)")
    refuses(lambda: open_rows(np.array([[0.0], [value]]))[:], "row 1 ")


def test_a_row_is_named_within_its_file(tmp_path):
    rows = open_rows(parts_of(tmp_path))
    named = [rows.where(row) for row in (0, 10, 11, 12, 29, 39)]
    assert named == [
        "row 0 of a.npy",
        "row 10 of a.npy",
        "row 0 of b.npz",
        "row 0 of c.safetensors",
        "row 17 of c.safetensors",
        "row 9 of d.npy",
    ]
    assert open_rows(ROWS).where(39) == "row 39"
    refuses(lambda: rows.where(40), "40")


def replaced(file):
    content = file.read_bytes()
    os.rename(file, file.with_suffix(".old"))
    file.write_bytes(content)


CHANGES = {
    "removed": lambda file: file.unlink(),
    "cut": lambda file: os.truncate(file, 200),
    "emptied": lambda file: os.truncate(file, 0),
    "extended": lambda file: os.truncate(file, 5000),
    "replaced": replaced,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_after_it_was_opened_is_an_error_not_a_crash(change, tmp_path, monkeypatch):
    parts_of(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    rows = open_rows(tmp_path.name)
    monkeypatch.chdir("/")  # the working folder may change too
    CHANGES[change](tmp_path / "d.npy")
    refuses(lambda: rows[:], tmp_path / "d.npy", "after it was opened")
    refuses(rows.fingerprint, tmp_path / "d.npy")
    assert_same(rows[:30], ROWS[:30])  # the other files are still there


def test_a_fingerprint_tells_other_data_apart(tmp_path):
    parts_of(tmp_path)
    first = open_rows(tmp_path).fingerprint()
    assert first == open_rows(tmp_path).fingerprint()
    assert len(first) == 16
    seen = {first}
    for row in (0, 10):
        changed = ROWS[:11].copy()
        changed[row, 1] += 1
        np.save(tmp_path / "a.npy", changed)
        seen.add(open_rows(tmp_path).fingerprint())
    np.save(tmp_path / "a.npy", ROWS[:11].astype(np.float64))
    seen.add(open_rows(tmp_path).fingerprint())
    np.save(tmp_path / "a.npy", ROWS[:10])
    seen.add(open_rows(tmp_path).fingerprint())
    np.save(tmp_path / "a.npy", ROWS[:11])
    (tmp_path / "a.npy").rename(tmp_path / "aa.npy")
    seen.add(open_rows(tmp_path).fingerprint())
    (tmp_path / "aa.npy").unlink()
    seen.add(open_rows(tmp_path).fingerprint())
    assert len(seen) == 7


def test_a_file_larger_than_memory_is_opened_and_only_asked_rows_are_read(tmp_path):
    pytest.importorskip("resource")
    code = """
import resource, sys, tracemalloc
import numpy as np
from proxsae.data import Shuffle, open_rows
file = np.lib.format.open_memmap(sys.argv[1], "w+", np.float32, (2**21, 1024))  # 8 GiB, of which nothing is written
for row in (0, 2**20, 2**21 - 1):
    file[row] = row
del file
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)
before = peak()
tracemalloc.start()
rows = open_rows(sys.argv[1])
rows.fingerprint()
for start in range(0, 300, 100):
    assert rows[Shuffle(len(rows), 0).positions(start, 100)].shape == (100, 1024)
assert rows[np.array([2**21 - 1, 0, 2**20])][:, 5].tolist() == [2**21 - 1, 0, 2**20]
assert tracemalloc.get_traced_memory()[1] < 4 * 2**20, tracemalloc.get_traced_memory()
assert peak() - before < 200 * 2**10, peak() - before  # KiB: mapped pages come with their neighbours
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path / "large.npy")], check=True)
    (tmp_path / "large.npy").unlink()


# One door: what one takes, all take

DOOR = SOURCES | {
    "backwards": lambda folder: np.ascontiguousarray(ROWS[::-1])[::-1],
    "every second": lambda folder: np.repeat(np.repeat(ROWS, 2, axis=0), 2, axis=1)[::2, ::2],
    "other byte order": lambda folder: ROWS.astype(ROWS.dtype.newbyteorder(">")),
    "longdouble": lambda folder: ROWS.astype(np.longdouble),
    "lists": lambda folder: ROWS.tolist(),
    "tuples": lambda folder: tuple(map(tuple, ROWS.tolist())),
    "text": lambda folder: str(SOURCES["npz"](folder)),
    "rows": lambda folder: open_rows(SOURCES["folder"](folder)),
    "float64 tensor": lambda folder: torch.tensor(ROWS).double(),
    "tensor with axes": lambda folder: torch.tensor(ROWS).view(2, 5, 4, 4),
    "float64 npy": file_of(".npy", ROWS.astype(np.float64)),
}


def taken(rows):
    """What all that take activations make of them."""
    sae = px.topk_sae(4, 8, k=2)
    with torch.no_grad():
        sae.W_dec.copy_(torch.linspace(-1, 1, 32).view(8, 4).cos()), sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        sae.W_enc.copy_(sae.W_dec.T)
    evaluated, found = px.evaluate(sae, rows, batch_size=9), encode_rows(sae, rows, 9)
    studied = px.studies.depth(sae, rows, steps=(1, 3), progress=False).rows
    # Tensors stay what they are in `encode`, with their dtype and their axes.
    given = rows.to(sae.dtype) if isinstance(rows, torch.Tensor) else rows
    codes = sae.encode(given).detach().reshape(-1, 8)
    trained = px.train(sae, rows, steps=3, batch_size=16, progress=False)
    assert not isinstance(rows, torch.Tensor) or rows.grad is None
    return evaluated, studied, trained, [*found.values(), codes, *(a.detach() for a in sae.parameters())]


@pytest.fixture(scope="module")
def plain_rows():
    return taken(ROWS)


@pytest.mark.parametrize("source", DOOR)
def test_all_that_take_activations_take_them_from_everywhere(source, tmp_path, plain_rows):
    *numbers, arrays = taken(DOOR[source](tmp_path))
    *want, plain = plain_rows
    assert numbers[::2] == want[::2]
    assert [row["nmse"] for row in numbers[1]] == [row["nmse"] for row in want[1]]
    for mine, other in zip(arrays, plain, strict=True):
        assert_same(mine, other)


# Shuffling


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 17, 64, 65, 1000, 4096, 4097])
@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_every_epoch_is_a_permutation(n, seed):
    epochs = Shuffle(n, seed).positions(0, 6 * n).reshape(6, n)
    assert epochs.dtype == np.int64
    assert_same(np.sort(epochs, axis=1), np.tile(np.arange(n), (6, 1)))


@pytest.mark.parametrize("n", [1, 3, 65, 1000])
def test_a_batch_depends_on_its_place_alone(n):
    whole = Shuffle(n, 5).positions(0, 2500)
    for start, count in ((0, 1), (n - 1, 2), (n, n), (64, 7), (999, 512), (2400, 100), (11, 0)):
        assert_same(Shuffle(n, 5).positions(start, count), whole[start : start + count])
    assert_same(np.concatenate([Shuffle(n, 5).positions(start, 125) for start in range(0, 2500, 125)]), whole)


def test_seeds_and_epochs_have_their_own_orders():
    orders = {order.tobytes() for seed in range(50) for order in Shuffle(20, seed).positions(0, 1000).reshape(50, 20)}
    assert len(orders) == 2500


def deviation(values, cells):
    """Of counts from equal ones, in standard deviations of chi-square."""
    counts = np.bincount(values.ravel(), minlength=cells)
    assert len(counts) == cells
    expected = values.size / cells
    return (((counts - expected) ** 2 / expected).sum() - (cells - 1)) / np.sqrt(2 * (cells - 1))


def deviations(epochs):
    """The largest of three statistics of epochs (E, n), all of which are below 5 for fair permutations."""
    n = epochs.shape[1]
    return max(
        deviation(epochs * n + np.arange(n), n * n),  # who stands where
        deviation(np.diff(epochs, axis=1)[:, ::2] % n - 1, n - 1),  # who follows whom
        deviation(np.diff(epochs, axis=0) % n, n),  # one epoch and the next
    )


@pytest.mark.parametrize("n", [16, 61, 64, 100])
def test_epochs_look_like_fair_permutations_and_poor_ones_do_not(n):
    epochs = Shuffle(n, 3).positions(0, 2000 * n).reshape(2000, n)
    assert deviations(epochs) < 5
    identity, rng = np.tile(np.arange(n), (2000, 1)), np.random.default_rng(0)
    assert deviations(rng.permuted(identity, axis=1)) < 5  # the judge is fair
    shifted = (identity + rng.integers(0, n, (2000, 1))) % n  # each entry uniform, and yet no shuffle
    same = np.tile(epochs[0], (2000, 1))
    turned = (epochs[0] + np.arange(2000)[:, None]) % n  # fair entries, epochs that follow one another
    for poor in (identity, shifted, same, turned):
        assert deviations(poor) > 50


def test_epochs_share_no_round():
    """Rounds 2, 3, ... of one epoch as rounds 1, 2, ... of the next would pair x with a round of x, twice as often."""
    epochs = Shuffle(256, 3).positions(0, 400 * 256).reshape(400, 16, 16)  # by left and right half of the entry
    here, there = epochs[:-1], epochs[1:]
    pairs = np.einsum("elrv,ersv->", one_hot(here & 15), one_hot(there >> 4))
    assert abs(pairs / here.size - 1) < 0.02


def one_hot(values):
    return (values[..., None] == np.arange(16)).astype(np.float32)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_all_orders_of_a_few_rows_come_equally_often(n):
    epochs = Shuffle(n, 3).positions(0, 20_000 * n).reshape(-1, n)
    _, order = np.unique(epochs, axis=0, return_inverse=True)
    assert deviation(order, [1, 1, 2, 6, 24][n]) < 5


@pytest.mark.parametrize("n", [2**40, 2**40 + 1, 2**62])
def test_huge_data_is_shuffled_in_the_memory_of_a_batch(n):
    tracemalloc.start()
    got = np.concatenate([Shuffle(n, 1).positions(start, 1000) for start in (0, n - 500, 2**62 + 500)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    assert got.min() >= 0
    assert got.max() < n
    assert len(np.unique(got)) > 2990
    assert deviation((got // (n // 8)).clip(max=7), 8) < 5


@pytest.mark.parametrize("n", [0, 2**62 + 1, 2.0])
def test_shuffles_of_no_or_too_many_rows_are_refused(n):
    refuses(lambda: Shuffle(n, 1), f"n={n}")


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, -2), (2**63 - 1, 2)])
def test_positions_that_cannot_be_are_refused(start, count):
    refuses(lambda: Shuffle(3, 1).positions(start, count), "must be")
    for seed in (-1, 2**63):
        refuses(lambda: Shuffle(3, seed), f"seed={seed}")  # noqa: B023


# Hostile files


def npy(array=ROWS, **header):
    """An .npy whose header may say something else than its data."""
    out = io.BytesIO()
    truth = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(out, truth | header)
    return out.getvalue() + array.tobytes()


def zipped(content, method=zipfile.ZIP_DEFLATED, **fields):
    """A zip of one member, whose two records of it may say something else than its data."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("x.npy", content)
        for name, value in fields.items():
            setattr(archive.filelist[0], name, value)
    return out.getvalue()


def tensors(shape, end, length=None):
    """A .safetensors of 640 bytes of data whose header says something else."""
    header = b'{"x":{"dtype":"F32","shape":%s,"data_offsets":[0,%d]}}' % (str(list(shape)).encode(), end)
    return (len(header) if length is None else length).to_bytes(8, "little") + header + bytes(640)


HUGE, BYTES, STORED = (2**28, 2**10), 2**40, zipfile.ZIP_STORED  # a tebibyte of float32
CLAIM = {"file_size": BYTES + 128, "compress_size": BYTES + 128}
FORGED = {
    "npy shape": (".npy", npy(shape=HUGE), "1099511627776 bytes, and 640 bytes follow"),
    "npy shape that overflows": (".npy", npy(shape=(2**62, 4)), "640 bytes follow"),
    "npy shape of negatives": (".npy", npy(shape=(-40, -4)), "640 bytes follow"),
    "npy shape too small": (".npy", npy(shape=(39, 4)), "640 bytes follow"),
    "npy shape of one row more": (".npy", npy(shape=(41, 4)), "640 bytes follow"),
    "npy header length": (".npy", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{}", "2147483647 bytes of header"),
    "npy version": (".npy", b"\x93NUMPY\x09\x00" + npy()[8:], "version (9, 0)"),
    "npy records": (".npy", npy(descr=[("a", "<f4")]), "activations are floats"),
    "npy objects": (".npy", npy(descr="|O"), "never unpickled"),
    "npz shape": (".npz", zipped(npy(shape=HUGE)), "640 bytes follow"),
    "npz shape, stored": (".npz", zipped(npy(shape=HUGE), STORED), "640 bytes follow"),
    "npz shape and size": (".npz", zipped(npy(shape=HUGE), file_size=BYTES + 128), "hold at most"),
    "npz sizes, stored": (".npz", zipped(npy(shape=HUGE), STORED, **CLAIM), "bytes of the file are left"),
    "npz method": (".npz", zipped(npy(), zipfile.ZIP_LZMA), "compression method 14"),
    "npz objects": (".npz", zipped(npy(descr="|O")), "never unpickled"),
    "safetensors shape": (".safetensors", tensors(HUGE, BYTES), "truncated or not"),
    "safetensors shape beyond its data": (".safetensors", tensors(HUGE, 640), "truncated or not"),
    "safetensors header length": (".safetensors", tensors((40, 4), 640, 2**62), "truncated or not"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_header_is_refused_and_allocates_nothing(case, tmp_path):
    suffix, content, says = FORGED[case]
    file = tmp_path / f"forged{suffix}"
    file.write_bytes(content)
    for reader in (px.data.read, open_rows):
        refuses(lambda: reader(file))  # noqa: B023 - imports are done
        tracemalloc.start()
        refuses(lambda: reader(file), file, says)  # noqa: B023
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 * CHUNK


def test_forged_files_are_read_within_a_limit_that_numpy_exceeds(tmp_path):
    pytest.importorskip("resource")
    for case, (suffix, content, _) in FORGED.items():
        (tmp_path / f"{case}{suffix}").write_bytes(content)
    code = """
import pathlib, resource, sys
import numpy as np
import safetensors.numpy
from proxsae import Error
from proxsae.data import read
mapped = sum(int(a, 16) - int(b, 16) for b, a in (line.split()[0].split("-") for line in open("/proc/self/maps")))
resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**26, mapped + 2**26))
for file in pathlib.Path(sys.argv[1]).iterdir():
    try:
        read(file)
    except Error as error:
        assert "llocat" not in str(error) and "emory" not in str(error), error
    else:
        raise SystemExit(f"{file} was read")
try:  # the limit is one
    np.load(pathlib.Path(sys.argv[1], "npz shape.npz"))["x"]
except MemoryError:
    print("limited")
"""
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("needs /proc")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    assert done.stdout == "limited\n"


def test_a_zip_of_many_members_is_refused_by_its_directory(tmp_path):
    with zipfile.ZipFile(tmp_path / "many.npz", "w") as archive:
        for i in range(20_000):
            archive.writestr(f"{i}.npy", b"")
    refuses(lambda: px.data.read(tmp_path / "many.npz"), "many.npz", "truncated or not")  # a directory of 1.1 MB
    with zipfile.ZipFile(tmp_path / "names.npz", "w") as archive:
        for i in range(30):
            archive.writestr(f"\x1b[2J\n../{i}" * 99, b"")
    assert len(refuses(lambda: px.data.read(tmp_path / "names.npz"), "and 21 more")) < 500


def test_what_a_stranger_wrote_is_quoted_on_one_short_line():
    assert sentence("a\x1b[2J\n\u2028 b\x00") == "a?[2J b?"
    assert len(sentence("word " * 999)) <= 200


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt", ".pth", ".txt"])
def test_a_file_name_that_a_terminal_would_obey_is_quoted_without_it(tmp_path, suffix):
    file = tmp_path / f"a\n\x1b[2J{suffix}"
    file.write_bytes(b"{}")
    text = refuses(lambda: px.data.read(file), f"a??[2J{suffix}")
    assert text.isprintable()
    assert text.count(str(tmp_path)) == 1


def test_a_link_stands_for_its_file(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside.npy"
    inside.mkdir()
    np.save(inside / "a.npy", ROWS[:20])
    np.save(outside, ROWS[20:])
    (inside / "b.npy").symlink_to(inside / "a.npy")
    assert_same(px.data.read(inside), np.concatenate([ROWS[:20], ROWS[:20]]))
    (tmp_path / "folder").symlink_to(inside)
    assert len(open_rows(tmp_path / "folder")) == 40  # the folder itself may be a link
    (inside / "c.npy").symlink_to(outside)
    assert_same(px.data.read(inside), np.concatenate([ROWS[:20], ROWS[:20], ROWS[20:]]))
    assert len(open_rows(inside / "c.npy")) == 20  # and so may a file that was named
    for target in (inside / "c.npy", tmp_path / "nowhere", "/dev/zero"):
        (inside / "c.npy").unlink()
        (inside / "c.npy").symlink_to(target)
        refuses(lambda: open_rows(inside), inside / "c.npy")


def test_pipes_and_folders_are_no_files(tmp_path):
    (tmp_path / "a.npy").mkdir()
    refuses(lambda: open_rows(tmp_path), tmp_path / "a.npy", "regular file")
    (tmp_path / "a.npy").rmdir()
    os.mkfifo(tmp_path / "a.npy")
    refuses(lambda: open_rows(tmp_path), tmp_path / "a.npy", "regular file")


def judge(file, content):
    """Read a hostile file: True for data that the format's own library agrees with, False for an `Error`."""
    file.write_bytes(content)
    found = []
    for reader in (lambda path: open_rows(path)[:], px.data.read):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            found.append(np.array(reader(file)))
        except px.Error as error:
            text = str(error)
            assert text.isprintable()
            assert file.name in text
            assert len(text) < 1000
        most = DEFLATE if content[:2] == b"PK" else 8
        assert tracemalloc.get_traced_memory()[1] - before < 3 * CHUNK + most * len(content)
    assert len(found) in (0, 2)
    if found:
        rows, again = found
        assert_same(rows, again)
        assert np.isfinite(rows).all()
        assert rows.dtype.kind == "f"
        with np.errstate(all="ignore"):
            assert_same(rows, truth_of(file).astype(rows.dtype))
    return bool(found)


def truth_of(file):
    """The rows as the format's own library reads them."""
    if file.suffix == ".safetensors":
        (truth,) = load_tensors(file).values()
    elif file.suffix == ".pt":
        truth = torch.load(file, weights_only=True)
        (truth,) = truth.values() if isinstance(truth, dict) else [truth]
    else:
        truth = np.load(file, allow_pickle=False)
        if not isinstance(truth, np.ndarray):
            with truth:
                (truth,) = truth.values()
    if isinstance(truth, torch.Tensor):
        truth = (truth.float() if truth.dtype == torch.bfloat16 else truth).numpy()
    return truth.reshape(-1, truth.shape[-1])


def sources(folder):
    """Good files, and what changes them."""
    for name, rows in (("plain", ROWS), ("columns", FORTRAN), ("half", ROWS.astype(np.float16))):
        for suffix in (".npy", ".npz", ".safetensors"):
            file = folder / f"{name}{suffix}"
            write(file, np.ascontiguousarray(rows) if suffix == ".safetensors" else rows)
            yield file, mutants
            if suffix == ".npz":
                yield file, zip_mutants
    save_tensors({"acts": torch.tensor(ROWS).bfloat16()}, folder / "bfloat16.safetensors")
    yield folder / "bfloat16.safetensors", mutants
    torch.save({"acts": torch.tensor(ROWS)}, folder / "dict.pt")
    torch.save(torch.tensor(ROWS).bfloat16(), folder / "bfloat16.pt")
    for name in ("dict.pt", "bfloat16.pt"):
        yield folder / name, mutants
        yield folder / name, zip_mutants


def campaign(folder, seed, count):
    """How many of `count` mutants of each source were read, by source: each was data, or an `Error`."""
    tracemalloc.start()
    try:
        read = {}
        for file, mutate in list(sources(folder)):
            rng, good = np.random.default_rng(seed), file.read_bytes()
            assert judge(file, good)
            read[file.name, mutate.__name__] = sum(judge(file, mutant) for mutant in mutate(good, rng, count))
            file.write_bytes(good)
        return read
    finally:
        tracemalloc.stop()


def test_mutants_of_good_files_give_data_or_one_sentence(tmp_path):
    count = 50  # of each of 17 kinds
    read = campaign(tmp_path, 0, count)
    assert len(read) == 17
    for name, good in read.items():
        assert 0 < good < count * 2 / 3, name  # both are reached: some edits leave a file whole


def test_mutants_repeat_and_differ():
    data = npy()
    first, again, other = (list(mutants(data, np.random.default_rng(seed), 3000)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len(set(first)) > 2000
    text = b"".join(first)
    for needle in (b"|O", b"<f16", b"True", str(2**62).encode(), b"cos\nsystem"):
        assert needle in text
