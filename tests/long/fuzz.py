"""The long campaign against hostile files; `tests/test_hostile.py` is the short one.

    python -m tests.long.fuzz --count 100000 --seed 0 [--format NAME]

The campaign makes `count` changed copies of good files of every format, reads each, and judges the result
(`tests/hostile.py` has the edits and the judge).  Files are judged in processes that may be killed and that get little
more memory than they begin with, so that a crash, an endless read and an allocation by a forged size are seen too.
A file that is judged wrong is kept in the folder --keep, with the reason; then the exit status is 1.  A changed copy
depends on seed, file and number alone, so that a campaign can be repeated.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path

import torch

from tests import hostile

PIECE = 250  # mutants that a process judges, at most
ROOM = 512 * 2**20  # bytes of address space beyond those at the start
SECONDS = 20  # for one file


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=100_000, help="mutants in all (default 100000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another campaign (default 0)")
    parser.add_argument("--format", default="", help="only formats whose name contains this text")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="at once (default: one a core)")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-violations"), help="where offending files go")
    parser.add_argument("--list", action="store_true", help="only list the formats")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="proxsae-fuzz-") as scratch:
        every = list(hostile.targets(Path(scratch)))
        pool = [content for target in every for content in target.files.values()]
        chosen = [target for target in every if given.format.lower() in target.format.lower()]
        if given.list or not chosen:
            print("\n".join(sorted({target.format for target in every})))
            return int(not chosen)
        warm(chosen, Path(scratch))
        return campaign(chosen, pool, given, Path(scratch))


def warm(chosen, scratch):
    """Import and cache everything before memory is counted, and read the good files once."""
    (scratch / "warm").mkdir()
    judge = hostile.Judge(scratch / "warm")
    hostile.results_of_all(judge, chosen)
    global TRUTHS
    TRUTHS = judge.truths


def pieces(chosen, count):
    """(target, start, count): an equal share for each format, and within it for each file."""
    formats = defaultdict(list)
    for target in chosen:
        formats[target.format].append(target)
    out, due = [], Fraction(0)
    for of_format in formats.values():
        for target in of_format:
            before, due = due, due + Fraction(count, len(formats) * len(of_format))
            whole = round(due) - round(before)
            out += [(target, start, min(PIECE, whole - start)) for start in range(0, whole, PIECE)]
    return sorted(out, key=lambda piece: piece[1])


def campaign(chosen, pool, given, scratch):
    """Judge all pieces, several at a time, and print the table; after Ctrl-C, the table of the pieces so far."""
    queue, running = pieces(chosen, given.count)[::-1], {}
    table = defaultdict(lambda: {"tried": 0, "refused": 0, "read": 0, "bad": 0, "slowest": 0.0, "peak": 0})
    total, begun, wrong = sum(count for *_, count in queue), time.monotonic(), Counter()
    try:
        for number in itertools.count():
            while queue and len(running) < given.processes:
                start_piece(queue.pop(), pool, given, scratch / f"piece-{number}-{len(running)}", running)
            if not running:
                break
            time.sleep(0.02)
            for process in list(running):
                if process.is_alive() and time.monotonic() < running[process][2]:
                    continue
                end_piece(process, *running.pop(process)[:2], given, queue, table, wrong)
                tell(table, total, begun)
    except KeyboardInterrupt:
        for process in running:
            process.kill()
    print(file=sys.stderr)
    show(table, wrong, given)
    return int(any(row["bad"] for row in table.values()))


def start_piece(piece, pool, given, folder, running):
    folder.mkdir()
    process = multiprocessing.get_context("fork").Process(target=work, args=(piece, pool, given, folder))
    process.start()
    running[process] = piece, folder, time.monotonic() + 2 * SECONDS + piece[2]


def end_piece(process, piece, folder, given, queue, table, wrong):
    """Count the outcomes of a piece; if its process died or hangs, the rest of the piece goes back to the queue."""
    target, start, count = piece
    process.kill()
    process.join()
    found = outcomes(folder)
    done = len(found)
    if done < count:
        why = f"ended the process: {process.exitcode}"
        keep(given.keep, folder / "mutant", target, start + done, why)
        found.append({"outcome": "bad", "why": why, "s": 0.0, "peak": 0})
        if count - done > 1:
            queue.append((target, start + done + 1, count - done - 1))
    row = table[target.format]
    for each in found:
        row["tried"] += 1
        row[each["outcome"]] += 1
        row["slowest"], row["peak"] = max(row["slowest"], each["s"]), max(row["peak"], each["peak"])
        if each["outcome"] == "bad":
            wrong[target.format, re.sub(r"\d+|'[^']*'|\"[^\"]*\"|/\S+", "_", each["why"])[:200]] += 1
    shutil.rmtree(folder, ignore_errors=True)


def tell(table, total, begun):
    tried, bad = (sum(row[key] for row in table.values()) for key in ("tried", "bad"))
    line = f"{tried}/{total} files, {bad} violations, {tried / (time.monotonic() - begun):.0f} a second"
    print(line.ljust(70), end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)


def show(table, wrong, given):
    names = ("tried", "refused", "read as right", "violations", "slowest, ms", "peak, MiB")
    print(f"seed {given.seed}")
    print(f"{'format':22}" + "".join(f"{name:>15}" for name in names))
    rows = sorted(table.items())
    every = [row for _, row in rows]
    total = {key: sum(row[key] for row in every) for key in ("tried", "refused", "read", "bad")}
    total |= {key: max(row[key] for row in every) for key in ("slowest", "peak")}
    for name, row in [*rows, ("all", total)]:
        numbers = (row["tried"], row["refused"], row["read"], row["bad"])
        rest = f"{row['slowest'] * 1000:15.0f}{row['peak'] / 2**20:15.0f}"
        print(f"{name:22}" + "".join(f"{n:15d}" for n in numbers) + rest)
    for (form, why), count in wrong.most_common(60):
        print(f"{count:6d} x {form}: {why}")
    if wrong:
        print(f"offending files are in {given.keep}")


def outcomes(folder):
    file = folder / "outcomes"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


def work(piece, pool, given, folder):
    """Judge a piece; each outcome is written to a file at once, so that none is lost when this process dies."""
    target, start, count = piece
    judge = hostile.Judge(folder)
    judge.truths = TRUTHS
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        os.close(0)
    if target.format == hostile.DATA:
        tracemalloc.start()
    with hostile.limited(ROOM), (folder / "outcomes").open("a", encoding="utf-8") as out:
        for number, make in hostile.stream(target, given.seed, start, count, judge.marker, pool):
            made = make()
            begun, before = time.perf_counter(), status("VmHWM")
            outcome, why = "bad", ""
            try:
                with hostile.within(SECONDS), warnings.catch_warnings():
                    warnings.simplefilter("error" if number % 2 else "ignore")
                    outcome = judge(target, made)
            except hostile.Endless:
                why = f"{made.how}: took more than {SECONDS} s"
            except hostile.Violation as problem:
                why = f"{made.how}: {problem}"
            except Exception as problem:  # of the judge, or of codes of what was read
                why = f"{made.how}: {type(problem).__name__}: {problem}"
            seconds, peak = time.perf_counter() - begun, status("VmHWM") - before
            if why:
                judge.clear()
                hostile.place(judge.folder, made.files)
                keep(given.keep, judge.folder, target, number, why)
                judge.clear()
            line = {"outcome": outcome, "why": why, "s": seconds, "peak": peak}
            out.write(json.dumps(line) + "\n")
            out.flush()


def status(name):
    """Bytes of this process as the kernel counts them; 0 if /proc cannot be read."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return int(re.search(rf"{name}:\s+(\d+)", text)[1]) * 1024


def keep(where, mutant, target, number, why):
    """Keep an offending folder, without its pipes and its holes."""
    to = where / f"{target.format} {target.name} {number}".replace("/", " ")
    with contextlib.suppress(OSError):
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir(parents=True)
        for file in mutant.iterdir() if mutant.is_dir() else ():
            if file.is_file() and not file.is_symlink() and file.stat().st_size < 2**24:
                shutil.copy(file, to)
        (to / "why.txt").write_text(why + "\n", encoding="utf-8", errors="replace")


if __name__ == "__main__":
    sys.exit(main())
