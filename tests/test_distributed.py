"""Several processes hold one SAE: its codes, its gradients and its training are those of one process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae.sae.team import join
from proxsae.testing import assert_close, assert_same
from proxsae.training import files
from tests import team_worker

LAYOUTS = [(2, 1), (2, 2), (4, 2), (4, 4)]  # processes, shards
ROOT = Path(__file__).parent.parent


def launch(processes, *command, cwd=ROOT):
    """Torchrun with that many processes of one thread."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*torchrun, *command], cwd=cwd, env=environment, **pipes)


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: f"{layout[0]} processes, {layout[1]} shards")
def found(request, tmp_path_factory):
    processes, shards = request.param
    folder = tmp_path_factory.mktemp("team")
    process = launch(processes, "tests/team_worker.py", str(shards), str(folder))
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(processes)], folder


def test_every_rank_has_the_codes_of_one_process(found):
    ranks, _ = found
    for i, case in enumerate(team_worker.CODES):
        z, xhat = team_worker.codes(*case)
        for rank in ranks:
            got, decoded = rank["codes"][i]
            kind, steps, rule = case
            if steps == 1 or (kind == "ties" and rule is not None):  # where no sum is rounded in another order
                assert_same(got, z, f"codes of {case}")
            assert_same(got != 0, z != 0, f"support of {case}")
            assert_close(got, z, 1e-5)
            assert_close(decoded, xhat, 1e-5)


def test_every_rank_has_the_gradients_of_one_process(found):
    ranks, _ = found
    cases = [(kind, steps) for kind in ("random", "nonneg") for steps in (1, 3)]
    for i, case in enumerate(cases):
        want = team_worker.gradients(*case)
        for rank in ranks:
            for name, a in want.items():
                assert_close(rank["gradients"][i][name], a, 1e-9, f"{name} of {case}")


@pytest.mark.parametrize("name", team_worker.TRAINED)
def test_training_follows_the_curve_of_one_process(found, name, tmp_path):
    ranks, folder = found
    metrics, weights = team_worker.trained(name, tmp_path)
    tables = [at / files.METRICS for at in (folder / f"run-{name}", tmp_path)]
    curve, want = (np.loadtxt(table, delimiter=",", skiprows=1) for table in tables)
    np.testing.assert_allclose(curve, want, rtol=2e-3, atol=1e-6)
    for rank in ranks:
        got, theirs = rank["trained"][name]
        assert got == ranks[0]["trained"][name][0]
        assert got["nmse"] == pytest.approx(metrics["nmse"], rel=1e-3)
        for key, a in weights.items():
            assert_same(theirs[key], ranks[0]["trained"][name][1][key], key)  # ranks agree to the bit
            assert_close(theirs[key], a, 5e-3, key)
    state, tensors = files.read(folder / f"run-{name}", {})
    assert state["step"] == team_worker.RECIPE["steps"]
    assert tensors["W_dec"].shape == (32, 16)


def test_what_cannot_be_split_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(px.Error, match="shards=3 must divide the number of processes, 4"):
        join(3, "cpu")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join(1, "cpu") is None
    with pytest.raises(px.Error, match="shards=2 must divide"):
        join(2, "cpu")


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_one_rank_killed_or_stopped_stops_all_and_the_same_command_continues(how, tmp_path):
    rows = px.data.planted(n=600, d_in=16, d_sae=32, k=3, seed=1).x.astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    small = ["--d-sae", "32", "--k", "3", "--batch-size", "64", "--every", "5", "--shards", "2"]

    def command(out, steps=300):
        where = ["-m", "proxsae", "train", str(tmp_path / "rows.npy"), "--out", str(tmp_path / out)]
        return launch(2, *where, *small, "--steps", str(steps), cwd=tmp_path)

    process = command("out")
    end = time.monotonic() + 120
    while not (tmp_path / "out" / files.CHECKPOINT).exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)
    victim = workers_of(process.pid)[-1]
    os.kill(victim, signal.SIGKILL if how == "kill" else signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode != 0
    if how == "kill":
        assert "proxsae: a rank has gone or does not answer" in told
        assert "the checkpoint of step" in told
    else:  # they agree on the step, and save it
        assert told.count("interrupted at step") == 1
        assert "a rank has gone" not in told
    state, _ = files.read(tmp_path / "out", {})
    assert 5 <= state["step"] < 300
    if how == "interrupt":  # on one process now: the same run, to rounding
        again = subprocess.run(
            [sys.executable, "-m", "proxsae", "train", "rows.npy", "--out", "out", *small[:-2], "--steps", "300"],
            cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "last tenth of 300 steps" in again.stdout
        curve = np.loadtxt(tmp_path / "out" / files.METRICS, delimiter=",", skiprows=1)
        assert curve[-1, 0] == 300
        assert curve[-1, 2] < 0.3  # measured 0.21, and 0.62 at the first step
        return
    again, whole = command("out"), command("whole")
    for process in (again, whole):
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, told
    assert same_files(tmp_path / "out", tmp_path / "whole")


def test_ranks_that_do_not_begin_alike_are_refused(tmp_path):
    script = tmp_path / "unseeded.py"
    script.write_text("""
import numpy as np, torch, proxsae as px
from proxsae.sae.team import join
from proxsae.training import train
team = join(1, "cpu")
torch.manual_seed(team.rank)
train(px.topk_sae(4, 8, 2), np.eye(4, dtype=np.float32), 3, 2, team=team)
""")
    process = launch(2, str(script), cwd=tmp_path)
    _, told = process.communicate(timeout=120)
    assert process.returncode
    assert "the ranks do not begin alike" in told


def workers_of(launcher):
    """Processes that torchrun has started, by age."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return sorted(map(int, children))


def same_files(one, other):
    return all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in ("sae/sae.safetensors", files.METRICS)
    )
