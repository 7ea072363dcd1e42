"""Several processes hold one SAE: its codes, its gradients and its training are those of one process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae.sae.team import join
from proxsae.testing import assert_close, assert_same
from proxsae.training import files
from tests import team_worker

LAYOUTS = [(4, 2)]  # processes, shards; `long/test_distributed.py` has the others
ROOT = Path(__file__).parent.parent


def launch(processes, *command, cwd=ROOT):
    """Torchrun with that many processes of one thread."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*torchrun, *command], cwd=cwd, env=environment, **pipes)


def pytest_generate_tests(metafunc):
    if "found" in metafunc.fixturenames:
        layouts = metafunc.module.LAYOUTS
        ids = [f"{processes} processes, {shards} shards" for processes, shards in layouts]
        metafunc.parametrize("found", layouts, indirect=True, scope="module", ids=ids)


@pytest.fixture(scope="module")
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
