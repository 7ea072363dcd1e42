"""`proxsae train` as a process of its own, killed or stopped, ends in the same bits as one that was not."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from proxsae.training import files
from tests.test_survive import ROWS

SMALL = ["--d-sae", "32", "--k", "3", "--steps", "400", "--batch-size", "64", "--every", "7"]


def start(folder, *more):
    command = [sys.executable, "-m", "proxsae", "train", "rows.npy", "--out", "out", *SMALL, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(file, process, seconds=120):
    end = time.monotonic() + seconds
    while not file.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    np.save(folder / "rows.npy", ROWS)
    process = start(folder)
    printed, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert "last tenth of 400 steps: loss" in printed
    return {name: (folder / "out" / name).read_bytes() for name in ("sae/sae.safetensors", files.METRICS)}


def same(folder, undisturbed):
    return all((folder / "out" / name).read_bytes() == content for name, content in undisturbed.items())


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_the_same_command_after_a_kill_or_ctrl_c_gives_the_same_bits(how, undisturbed, tmp_path, figures):
    np.save(tmp_path / "rows.npy", ROWS)
    process = start(tmp_path)
    wait_for(tmp_path / "out" / files.CHECKPOINT, process)
    process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGINT)
    _, told = process.communicate(timeout=60)
    if how == "interrupt" and process.returncode:
        assert process.returncode == 130
        assert "interrupted at step" in told.splitlines()[-1]
        assert "the same command continues" in told.splitlines()[-1]
    process = start(tmp_path)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert same(tmp_path, undisturbed)
    figures("`proxsae train` killed or stopped, resumed to the bit")
