"""The campaigns `fuzz.py` and `kills.py` find nothing; PROXSAE_FUZZ and PROXSAE_KILLS, if set, are their sizes.

Of `mutation.py`, which takes hours, it is tested that it can find something.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxsae import metrics
from tests.long import mutation

if not hasattr(os, "fork") or not Path("/proc/self/status").exists():
    pytest.skip("needs fork and /proc", allow_module_level=True)

ROOT = Path(__file__).parents[2]


def campaign(name, *options, cwd):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"tests.long.{name}", *options]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_no_hostile_file_is_judged_wrong(tmp_path, seed, figures):
    count = os.environ.get("PROXSAE_FUZZ", "2000")
    table = campaign(
        "fuzz", "--count", count, "--seed", str(seed), "--keep", str(tmp_path / "violations"), cwd=tmp_path
    )
    all_formats = table.splitlines()[-1].split()
    assert all_formats[0] == "all"
    assert int(all_formats[1]) >= int(count)
    assert int(all_formats[4]) == 0
    for what, number in zip(("tried", "refused by a sentence", "read as right"), all_formats[1:4], strict=True):
        figures(f"hostile files {what}", int(number))


def test_killed_runs_end_in_the_bits_of_undisturbed_ones(tmp_path, seed, figures):
    kills = os.environ.get("PROXSAE_KILLS", "20")
    printed = campaign("kills", "--kills", kills, "--seed", str(seed), cwd=tmp_path)
    assert int(printed.split()[0]) >= int(kills)
    assert "; 0 ended in other bits" in printed
    figures("kills of training in one process, resumed to the bit", int(printed.split()[0]))


def test_the_map_of_planted_errors_knows_which_test_enters_a_function(tmp_path):
    test, notes = "tests/test_metrics.py::test_cosine_is_a_mean_over_rows", tmp_path / "map.json"
    environment = os.environ | {"PYTHONPATH": str(ROOT), mutation.NOTES: str(notes)}
    assert mutation.run_pytest(ROOT, ["-p", "tests.long.mutation", test], 300, environment) == 0
    entered = json.loads(notes.read_text(encoding="utf-8"))
    lines = {f.__name__: f.__code__.co_firstlineno for f in (metrics.cosine, metrics.match)}
    assert mutation.concerned(entered, "proxsae/metrics.py", lines["cosine"], 30) == [test]
    assert mutation.concerned(entered, "proxsae/metrics.py", lines["match"], 30) == []
    assert mutation.concerned(entered, "proxsae/metrics.py", 0, 30) == [test]
    line = metrics.dead_fraction.__code__.co_firstlineno
    planted = list(mutation.mutants("proxsae/metrics.py", set(range(line, line + 4))))
    assert {what for _, _, _, what, _ in planted} >= {"z != 0 -> (z == 0)", "1 -> 2", "0 -> 1"}
    assert {function for _, _, function, _, _ in planted} == {line}
