"""A run that is killed, stopped, or fed bad files ends in the same bits, or in one sentence with nothing lost."""

import os

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae import disk
from proxsae.cli import main
from proxsae.testing import assert_close, assert_same
from proxsae.training import files, loop, recipe

ROWS = px.data.planted(n=600, d_in=16, d_sae=32, k=3, seed=1).x.astype(np.float32)
MAKE = {
    "abstopk": lambda: px.abstopk_sae(16, 32, 3),
    "relu to an l0": lambda: px.relu_sae(16, 32, 0.3),
    "jumprelu": lambda: px.jumprelu_sae(16, 32, 0.5, bandwidth=0.3),
    "two weights": lambda: px.SAE(16, 32, px.L0(0.1, bandwidth=0.3, lam_minus=[0.05, np.inf] * 16)),
    "batchtopk": lambda: px.SAE(16, 32, px.BatchKSparse(3, nonneg=True)),
    "learned steps": lambda: px.SAE(16, 32, px.KSparse(3), 3, px.LearnedSteps()),
    "layer norm": lambda: px.SAE(16, 32, px.KSparse(3), normalize="layer_norm"),
}
OPTIONS = {
    "relu to an l0": {"l0": 4},
    "abstopk": {"ks": (1,), "widths": (8, 16), "unit_encoder": True},
    "layer norm": {"bfloat16": True},
    "two weights": {"l0": 4, "bfloat16": True},
}


def fresh(name):
    torch.manual_seed(0)
    return MAKE[name]()


def run(sae, folder, name="abstopk", rows=ROWS, **more):
    options = {"steps": 30, "batch_size": 64, "every": 4, "progress": False} | OPTIONS.get(name, {}) | more
    return px.train(sae, rows, checkpoint=folder, **options)


class Killed(BaseException):
    """What no handler expects."""


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("at", [1, 10, 28])
def test_a_run_that_dies_between_two_steps_ends_in_the_same_bits(name, at, tmp_path, monkeypatch):
    whole = fresh(name)
    want = run(whole, tmp_path / "whole", name)
    step, calls = loop._step, []

    def dying(*arguments):
        calls.append(1)
        if len(calls) == at + 1:
            raise Killed
        return step(*arguments)

    monkeypatch.setattr(loop, "_step", dying)
    with pytest.raises(Killed):
        run(fresh(name), tmp_path / "cut", name)
    again = fresh(name)
    got = run(again, tmp_path / "cut", name)
    assert len(calls) == at + 1 + 30 - at // 4 * 4
    assert got == want
    for key, a in whole.state_dict().items():
        assert_same(again.state_dict()[key], a, key)
    assert again.penalty == whole.penalty or isinstance(again.penalty, px.L0)
    for file in (files.CHECKPOINT, files.METRICS):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_finished_run_is_not_run_again(tmp_path, monkeypatch):
    whole = fresh("abstopk")
    want = run(whole, tmp_path)
    monkeypatch.setattr(loop, "_step", lambda *a: pytest.fail("a step was taken"))
    again = fresh("abstopk")
    assert run(again, tmp_path) == want
    assert_same(again.W_dec.detach(), whole.W_dec.detach())


def test_an_sae_whose_run_was_stopped_continues_it(tmp_path, monkeypatch):
    """In a notebook the object at hand is the half-trained one."""
    whole, sae = (fresh("relu to an l0") for _ in range(2))
    want = run(whole, None, "relu to an l0")
    step, calls = loop._step, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(loop, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(sae, tmp_path, "relu to an l0")
    assert run(sae, tmp_path, "relu to an l0") == want
    assert sae.penalty == whole.penalty
    assert_same(sae.W_dec.detach(), whole.W_dec.detach())


@pytest.mark.parametrize("name", ["abstopk", "relu to an l0", "batchtopk", "learned steps"])
def test_atoms_of_other_norms_are_refused_where_they_would_make_another_sae(name):
    sae = fresh(name)
    with torch.no_grad():
        sae.W_dec.mul_(2)
    before = {key: a.clone() for key, a in sae.state_dict().items()}
    with pytest.raises(px.Error, match="atoms have norms from 2 to 2"):
        run(sae, None, name)
    for key, a in sae.state_dict().items():
        assert_same(a, before[key], key)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_refused(dtype):
    with pytest.raises(px.Error, match="train in float32, and with bfloat16=True"):
        run(fresh("abstopk").to(dtype), None)


def test_numpy_numbers_and_any_metadata_are_fine(tmp_path):
    sae = fresh("abstopk")
    sae.metadata = {"a": (1, 2), "b": float("nan")}
    options = {"steps": np.int64(8), "seed": np.int64(3), "lr": np.float32(1e-3), "batch_size": np.int32(16)}
    want = run(sae, tmp_path, **options)
    again = fresh("abstopk")
    again.metadata = {"a": (1, 2), "b": float("nan")}
    assert run(again, tmp_path, **options) == want


def test_another_sae_is_not_taken_for_the_one_that_a_run_has_left(tmp_path):
    sae = fresh("abstopk")
    run(sae, tmp_path, steps=8)
    with pytest.raises(px.Error, match="is of another run, with encoder steps=1 and not 3"):
        run(sae.unrolled(3), tmp_path, steps=8)
    with torch.no_grad():
        sae.W_enc.mul_(2)
    with pytest.raises(px.Error, match="is of another run, with initial weights="):
        run(sae, tmp_path, steps=8)


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    with disk.held(tmp_path), pytest.raises(px.Error, match="is in use by another run"):
        run(fresh("abstopk"), tmp_path)


@pytest.mark.parametrize("folder", ["rows.npy/out", "/proc/nothing"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(folder, tmp_path, monkeypatch):
    np.save(tmp_path / "rows.npy", ROWS)
    monkeypatch.setattr(loop, "_step", lambda *a: pytest.fail("a step was taken"))
    with pytest.raises(px.Error, match=f"cannot write to .*{folder}"):
        run(fresh("abstopk"), tmp_path / folder)


@pytest.mark.parametrize("kind", ["jumprelu", "plain relu"])
def test_atoms_of_any_norm_are_brought_to_norm_1_without_changing_the_reconstruction(kind):
    sae = fresh("jumprelu") if kind == "jumprelu" else px.relu_sae(16, 32, 0.0)
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.5, 3, 32)[:, None])
        sae.b_dec.fill_(0.1)
    x = torch.tensor(ROWS)
    before = sae(x).detach()
    run(sae, None, kind, steps=1, lr=1e-12)
    assert_close(sae(x).detach(), before, 1e-4)
    assert_close(sae.W_dec.detach().norm(dim=1), torch.ones(32), 1e-6)


def test_metrics_are_in_the_folder_as_they_go(tmp_path):
    run(fresh("abstopk"), tmp_path)
    lines = (tmp_path / files.METRICS).read_text().splitlines()
    assert lines[0] == "step,loss,nmse,l0,dead,lr,lam"
    assert [int(line.split(",")[0]) for line in lines[1:]] == list(range(1, 31))
    assert not [f for f in tmp_path.iterdir() if f.suffix == ".part"]


OTHER = {
    "seed": {"seed": 1},
    "lr": {"lr": 0.5},
    "steps": {"steps": 31},
    "batch_size": {"batch_size": 32},
    "unit_encoder": {"unit_encoder": False},
    "ks": {"ks": (2,)},
    "data": {"rows": ROWS[::-1].copy()},
    "sae": {"sae": lambda: px.topk_sae(16, 32, 3)},
    "d_sae": {"sae": lambda: px.abstopk_sae(16, 64, 3)},
    "k": {"sae": lambda: px.abstopk_sae(16, 32, 4)},
    "encoder rule": {"sae": lambda: fresh("abstopk").unrolled(1, px.ExactStep())},
    "initial weights": {"sae": lambda: px.abstopk_sae(16, 32, 3)},
}


@pytest.mark.parametrize("what", OTHER)
def test_the_checkpoint_of_another_run_is_refused_by_name(what, tmp_path):
    run(fresh("abstopk"), tmp_path, steps=8)
    before = (tmp_path / files.CHECKPOINT).read_bytes()
    change = dict(OTHER[what])
    sae = change.pop("sae", lambda: fresh("abstopk"))()
    with pytest.raises(px.Error, match=rf"{files.CHECKPOINT} is of another run, with {what}=") as error:
        run(sae, tmp_path, **({"steps": 8} | change))
    assert "\n" not in str(error.value)
    assert (tmp_path / files.CHECKPOINT).read_bytes() == before


def test_a_torn_or_edited_checkpoint_is_refused_by_name(tmp_path):
    run(fresh("abstopk"), tmp_path, steps=8)
    file = tmp_path / files.CHECKPOINT
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[-5] ^= 1
    changed = content.replace(b'\\"step\\": 8', b'\\"step\\": 7')
    assert changed != content
    for bad in (content[:-3], content[:40], b"", bytes(flipped), changed, b"{}" * 40):
        file.write_bytes(bad)
        with pytest.raises(px.Error, match=rf"{files.CHECKPOINT} is torn or no checkpoint.*delete it") as error:
            run(fresh("abstopk"), tmp_path, steps=8)
        assert "\n" not in str(error.value)
        assert file.read_bytes() == bad


@pytest.mark.parametrize(
    "bad", [[], 3, {"sae": {"penalty": {"family": [], "nonneg": {}}}}, {"sae": [1]}, {"steps": 10**400}]
)
def test_a_checkpoint_whose_kind_is_anything_is_refused_in_one_sentence(bad, tmp_path):
    run(fresh("abstopk"), tmp_path, steps=8)
    state, tensors = files.read(tmp_path, {})
    files.write(tmp_path, bad, state, tensors)
    with pytest.raises(px.Error, match=files.CHECKPOINT) as error:
        run(fresh("abstopk"), tmp_path, steps=8)
    assert "\n" not in str(error.value)


def test_a_full_disk_ends_in_a_sentence_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    write, calls = os.fsync, []

    def full(number):
        calls.append(number)
        if len(calls) > 8:
            raise OSError(28, "No space left on device")
        write(number)

    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(px.Error, match=r"cannot write a checkpoint of step 12 .*: No space left on device"):
        run(fresh("abstopk"), tmp_path)
    monkeypatch.undo()
    state, _ = files.read(tmp_path, {})
    assert state["step"] == 8
    assert {f.name for f in tmp_path.iterdir()} == {files.CHECKPOINT, files.METRICS}
    again, whole = fresh("abstopk"), fresh("abstopk")
    run(again, tmp_path)
    run(whole, tmp_path / "whole")
    assert_same(again.W_dec.detach(), whole.W_dec.detach())


@pytest.mark.filterwarnings("ignore::proxsae.conventions.Note")
def test_a_loss_that_turns_nan_names_step_and_rows_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    rows = ROWS.copy()
    rows[300] = 1e30  # its square is not a float32
    np.save(tmp_path / "rows.npy", rows)
    order = list(px.data.Shuffle(600, 0).positions(0, 600))
    at = order.index(300) // 64
    assert at > 0
    # as if mean and spread came from a sample without the bad row, so that only its batch overflows
    monkeypatch.setattr(recipe.Source, "mean_and_spread", lambda self: (torch.zeros(16), 1.0))
    says = rf"the loss is (inf|nan) at step {at}: .*row 300 of rows.npy.*; the checkpoint of step {at} stays"
    with pytest.raises(px.Error, match=says):
        run(fresh("abstopk"), tmp_path / "out", rows=tmp_path / "rows.npy", every=1)
    state, tensors = files.read(tmp_path / "out", {})
    assert state["step"] == at
    assert bool(tensors["W_dec"].isfinite().all())


@pytest.mark.filterwarnings("ignore::proxsae.conventions.Note")
def test_a_gradient_whose_square_overflows_stops_the_run_before_adam_sees_it(tmp_path, monkeypatch):
    rows = ROWS.copy()
    rows[300] = 1e15  # the loss is a number, and so is the gradient
    monkeypatch.setattr(recipe.Source, "mean_and_spread", lambda self: (torch.zeros(16), 1.0))
    with pytest.raises(px.Error, match=r"its gradient overflows.*the largest is row 300\)"):
        run(fresh("abstopk"), tmp_path, rows=rows, every=1)
    _, tensors = files.read(tmp_path, {})
    assert all(bool(a.isfinite().all()) for a in tensors.values())


def test_rows_are_streamed_from_a_file_as_from_memory(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    one, two = fresh("abstopk"), fresh("abstopk")
    assert run(one, None, rows=tmp_path / "rows.npy") == run(two, None)
    assert_same(one.W_enc.detach(), two.W_enc.detach())


def test_a_file_that_goes_away_ends_in_a_sentence(tmp_path, monkeypatch):
    np.save(tmp_path / "rows.npy", ROWS)
    step = loop._step

    def removing(state, *arguments):
        if state.step == 9:
            (tmp_path / "rows.npy").unlink()
        return step(state, *arguments)

    monkeypatch.setattr(loop, "_step", removing)
    with pytest.raises(px.Error, match=r"rows.npy.*; the checkpoint of step 8 stays"):
        run(fresh("abstopk"), tmp_path / "out", rows=tmp_path / "rows.npy")


# The command.

WRONG = {
    "missing data": (["none.npy"], "none.npy"),
    "k above d_sae": (["rows.npy", "--k", "33"], "--k 33 must not exceed --d-sae 32"),
    "k of 0": (["rows.npy", "--k", "0"], "--k=0"),
    "no steps": (["rows.npy", "--steps", "0"], "--steps=0"),
    "learned first step": (["rows.npy", "--encoder-rule", "learned"], "--encoder-steps of 2 or more"),
    "no levels": (["rows.npy", "--ks", ""], "--ks ''"),
    "init with other norms": (["rows.npy", "--init", "ours"], "atoms have norms from 2 to 2"),
    "init and kind": (["rows.npy", "--init", "x", "--kind", "topk"], "--kind cannot go with --init"),
    "levels that are no numbers": (["rows.npy", "--ks", "1,x"], "--ks '1,x'"),
    "level above k": (["rows.npy", "--ks", "3", "--k", "3"], "must lie below k=3"),
    "shards without processes": (["rows.npy", "--shards", "2"], "shards=2 must divide the number of processes, 1"),
    "out is a file": (["rows.npy", "--out", "rows.npy"], "rows.npy is a file"),
    "NaN": (["nan.npy"], "row 3 of nan.npy"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_ends_in_one_sentence_and_writes_nothing(case, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "rows.npy", ROWS)
    np.save(tmp_path / "nan.npy", np.where(np.arange(600)[:, None] == 3, np.float32(np.nan), ROWS))
    monkeypatch.chdir(tmp_path)
    sae = fresh("abstopk")
    with torch.no_grad():
        sae.W_dec.mul_(2)
    sae.save("ours")
    monkeypatch.setattr(loop, "_step", lambda *a: pytest.fail("a step was taken"))
    arguments, says = WRONG[case]
    sizes = [] if "--init" in arguments else ["--d-sae", "32"]
    assert main(["train", "--out", "out", *sizes, *arguments]) == 2
    printed, told = capsys.readouterr()
    assert printed == ""
    *before, last = told.splitlines()
    assert last.startswith("proxsae: ")
    assert says in last
    assert all(line.startswith("600 rows of 16; SAE(") for line in before)  # what would be trained
    assert sorted(f.name for f in tmp_path.iterdir()) == ["nan.npy", "ours", "rows.npy"]
