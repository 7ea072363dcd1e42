"""`benchmarks/first_hour.py`: what hangs or fails takes nothing from the rest, and its scripts run on a GPU."""

import json
import sys
from pathlib import Path

import pytest
import torch

from proxsae.pytorch import codes
from tests.pretend_cuda import pretend_cuda

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_import_each_other(monkeypatch):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == BENCHMARKS:
            del sys.modules[name]


def python(text):
    return [sys.executable, "-u", "-c", text]


def test_a_part_that_hangs_or_fails_takes_nothing_from_the_others(tmp_path, monkeypatch):
    import first_hour

    monkeypatch.setattr(first_hour, "GRACE", 0.5)
    hang = "import signal, subprocess; signal.signal(signal.SIGINT, signal.SIG_IGN); print('  first   1.00')"
    hang += "; subprocess.run(['sleep', '99'])"
    chosen = [
        first_hour.Part("hangs", python(hang), 1),
        first_hour.Part("fails", python("print('  second  2.00  (1.00 to 3.00)'); raise SystemExit(3)"), 20),
        first_hour.Part("works", python("print('a title'); print('  third   3.00')"), 20),
    ]
    first_hour.run(chosen, first_hour.Results(tmp_path), 60)
    first_hour.run(chosen[2:], first_hour.Results(tmp_path / "late"), 0)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    ends = {line["part"]: line["ended"] for line in lines if "ended" in line}
    assert ends == {"hangs": "stopped at its limit of 1 s", "fails": "failed with exit status 3", "works": "done"}
    assert [line["line"].split()[0] for line in lines if "line" in line] == ["first", "second", "a", "third"]
    page = (tmp_path / "results.md").read_text()
    assert "| second | 2.00  (1.00 to 3.00) |" in page
    assert "    a title\n\n| | |\n|---|---|\n| third | 3.00 |" in page
    assert "no time left" in (tmp_path / "late" / "results.md").read_text()


def test_every_part_names_files_that_are_there(device):
    import first_hour

    for part in first_hour.parts(device, small=False):
        for word in part.command:
            assert not word.endswith(".py") or (BENCHMARKS.parent / word).is_file(), word


@pytest.mark.parametrize("script", ["encode", "step", "train_step", "topk", "memory"])
def test_the_scripts_run_on_a_gpu_and_wait_for_it(script, device, monkeypatch, capsys):
    if device != "cpu":
        pytest.skip("the real device is there")
    import first_hour

    (part,) = (p for p in first_hour.parts("cuda", small=True) if p.name == f"{script} small")
    monkeypatch.setattr(sys, "argv", [*part.command[2:], "--threads", "1"])
    monkeypatch.setattr(torch, "compile", lambda call: call)
    monkeypatch.setattr(codes.Pages, "take", codes.Pages.take)  # which memory.py replaces
    module = __import__(script)
    with pretend_cuda() as counted:
        module.main()
    rows = [first_hour.ROW.fullmatch(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(row is not None for row in rows) >= 5
    assert script == "memory" or counted["the caller", "synchronize"] > 10
