"""The other layouts of `tests/test_distributed.py`, and ranks that are killed or stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import proxsae as px
from proxsae.training import files
from tests.test_distributed import (  # noqa: F401  (collected here, with the layouts of this file)
    found,
    launch,
    pytest_generate_tests,
    test_every_rank_has_the_codes_of_one_process,
    test_every_rank_has_the_gradients_of_one_process,
    test_training_follows_the_curve_of_one_process,
)

LAYOUTS = [(2, 1), (2, 2), (4, 4)]


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_one_rank_killed_or_stopped_stops_all_and_the_same_command_continues(how, tmp_path, figures):
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
        figures("ranks stopped: the others saved the same step, and one process continued")
        return
    again, whole = command("out"), command("whole")
    for process in (again, whole):
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, told
    assert same_files(tmp_path / "out", tmp_path / "whole")
    figures("ranks killed: the others ended with one sentence, and the run resumed to the bit")


def workers_of(launcher):
    """Processes that torchrun has started, by age."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return sorted(map(int, children))


def same_files(one, other):
    return all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in ("sae/sae.safetensors", files.METRICS)
    )
