"""The first quarter of an hour on a GPU: what it is, whether all is right on it, and the tables of speed.

Each part is a process of its own with a time limit, and all share --minutes: a part that hangs or fails takes nothing
from the others.  Each line is written when it comes, to results.jsonl and, as tables, to results.md.  The largest
questions come first.  Nothing is asked of a network.

    python benchmarks/first_hour.py --device cuda --minutes 12 --out first-hour
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROW = re.compile(r"\s{0,2}(\S.*?)\s{2,}(-?\d.*)")  # of a table: a name, and its figures
MACHINE = "name,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,driver_version"
KERNELS = ("tests/twins/test_kernels.py",)  # compiled, against plain torch and NumPy
TESTS = (
    "tests/twins/test_ksparse_encoder.py", "tests/twins/test_codes.py", "tests/twins/test_certified_topk.py",
    "tests/twins/test_topk.py", "tests/test_training.py", "tests/twins/test_prox.py", "tests/twins/test_iteration.py",
    "tests/twins/test_lasso.py", "tests/test_sae.py", "tests/test_laws.py",
)  # fmt: skip
GRACE = 5.0  # seconds between the request to end and the end
SIZES = {  # of rows, width, latents, k and rounds
    "large": {"rows": 4096, "d-in": 2304, "d-sae": 65536, "k": 64, "rounds": 9},
    "middle": {"rows": 8192, "d-in": 768, "d-sae": 16384, "k": 32, "rounds": 15},
    "small": {"rows": 64, "d-in": 32, "d-sae": 512, "k": 4, "rounds": 2},
}


@dataclass(frozen=True)
class Part:
    """One process: what it is called, its command, and how many seconds it may take."""

    name: str
    command: list[str]
    limit: float


def parts(device: str, small: bool) -> list[Part]:
    """All parts, the largest questions first."""

    def script(name: str, size: str, limit: float, *further: str) -> Part:
        chosen = dict(SIZES["small" if small else size])
        if name == "topk":
            chosen = {"rows": chosen["rows"], "width": chosen["d-sae"], "k": chosen["k"], "rounds": chosen["rounds"]}
        sizes = [word for key, value in chosen.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, "-u", str(HERE / f"{name}.py"), "--device", device, *sizes, *further]
        return Part(" ".join([name, "small" if small else size, *further]), command, limit)

    def tests(name: str, limit: float, files: Iterable[str]) -> Part:
        chosen = ["--device", device, "-n", "4", "--no-header", "--tb", "short", "-p", "no:cacheprovider", *files]
        return Part(name, [sys.executable, "-u", "-m", "pytest", *chosen], limit)

    sizes = ["--rows", "64", "--d-in", "32", "--d-sae", "512", "--k", "4"] if small else ["--rows", "8192"]
    bench = [sys.executable, "-u", "-m", "proxsae", "bench", "--device", device, *sizes]
    found = [
        Part("machine", [sys.executable, "-m", "torch.utils.collect_env"], 40),
        tests("kernels against their references", 120, KERNELS),
        script("encode", "middle", 60),
        script("train_step", "middle", 60),
        script("step", "middle", 60),
        script("encode", "large", 60, "--dtype", "bfloat16"),
        script("encode", "large", 60),
        script("train_step", "large", 60),
        script("step", "large", 60),
        tests("tests of what is computed", 150, TESTS),
        script("memory", "middle", 40),
        script("topk", "middle", 40),
        script("train_step", "middle", 60, "--steps", "4"),
        Part("the model of costs", bench, 40),
    ]
    if shutil.which("nvidia-smi"):
        found.insert(1, Part("clocks", ["nvidia-smi", f"--query-gpu={MACHINE}", "--format=csv"], 20))
    return list({part.name: part for part in found}.values())  # of small ones, some are the same


class Results:
    """The two files, to which each line is written when it comes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lines, self._page = folder / "results.jsonl", folder / "results.md"
        for path in (self._lines, self._page):
            path.write_text("", encoding="utf-8")
        self._in_table = False

    def begin(self, part: Part) -> None:
        """The heading of a part."""
        self._to_page(f"\n## {part.name}\n\n`{' '.join(part.command)}`\n")
        self._in_table = False

    def line(self, part: Part, text: str) -> None:
        """A line that the part printed: a row of a table if it has figures, else as it is."""
        print(f"  {text}", flush=True)
        _write(self._lines, json.dumps({"part": part.name, "line": text}))
        row = ROW.fullmatch(text)
        if row and part.name != "machine":
            if not self._in_table:
                self._to_page("\n| | |\n|---|---|")
            self._to_page(f"| {row[1]} | {row[2]} |")
        elif text.strip():
            self._to_page(("\n" if self._in_table else "") + f"    {text}")
        self._in_table = bool(row) and part.name != "machine"

    def end(self, part: Part, how: str, seconds: float) -> None:
        """How a part ended."""
        print(f"{part.name}: {how}, {seconds:.0f} s", flush=True)
        _write(self._lines, json.dumps({"part": part.name, "ended": how, "seconds": round(seconds, 1)}))
        self._to_page(f"\n{how}, {seconds:.0f} s")

    def _to_page(self, text: str) -> None:
        _write(self._page, text)


def _write(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def run(chosen: Iterable[Part], results: Results, seconds: float) -> None:
    """Run the parts one after the other, each to its limit, and all within `seconds`."""
    end = time.monotonic() + seconds
    for part in chosen:
        results.begin(part)
        start, limit = time.monotonic(), min(part.limit, end - time.monotonic())
        how = "no time left" if limit <= 0 else _run(part, results, limit)
        results.end(part, how, time.monotonic() - start)


def _run(part: Part, results: Results, limit: float) -> str:
    """How the part ended."""
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    there = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    late = threading.Event()
    with subprocess.Popen(
        part.command, cwd=HERE.parent, env=there, text=True, errors="replace", start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip

        def ask() -> None:  # pytest then says what has failed
            late.set()
            process.send_signal(signal.SIGINT)

        def kill() -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the compilers that it started, too

        timers = threading.Timer(limit, ask), threading.Timer(limit + GRACE, kill)
        for timer in timers:
            timer.start()
        try:
            for line in process.stdout or ():
                results.line(part, line.rstrip())
            status = process.wait()
        finally:
            for timer in timers:
                timer.cancel()
    if late.is_set():
        return f"stopped at its limit of {limit:.0f} s"
    return "done" if status == 0 else f"failed with exit status {status}"


def main() -> None:
    """Run everything."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--device", default="cuda")
    made.add_argument("--minutes", type=float, default=12.0, help="for everything (default: 12)")
    made.add_argument("--out", type=Path, default=Path("first-hour"), help="folder of the results")
    made.add_argument("--small", action="store_true", help="sizes that take a CPU seconds: whether the script works")
    given = made.parse_args()
    run(parts(given.device, given.small), Results(given.out), 60 * given.minutes)
    print(f"written to {given.out}: results.md, results.jsonl")


if __name__ == "__main__":
    main()
