"""`benchmarks/first_hour.py` from end to end, on the CPU and with small sizes."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "first_hour.py"


def test_every_part_ends_and_leaves_its_lines(device, tmp_path):
    small = ["--small", "--device", device, "--minutes", "30", "--out", str(tmp_path)]
    subprocess.run([sys.executable, str(SCRIPT), *small], check=True, capture_output=True)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    ends = {line["part"]: line["ended"] for line in lines if "ended" in line}
    assert {"machine", "kernels against their references", "encode small", "memory small"} < set(ends)
    slow = {"tests of what is computed"}  # of which the kernels' interpreter makes minutes
    assert {end for part, end in ends.items() if part not in slow} == {"done"}, ends
    for part in set(ends) - slow:
        assert any(line["part"] == part and "line" in line for line in lines), part
