"""Plant errors in the lines that changed since a revision, and name those that no test sees.

    python -m tests.long.mutation --since v0.9 --count 60 --seed 0

A first pass runs the tests once and notes which functions of `proxsae/` each test enters.  It is kept in --map, by
default a file of its own for every state of the repository, since functions are known by their lines.  Then `count`
mutants, drawn by the seed, are planted one at a time in a copy of the repository: another comparison, sign, number or
truth, a statement removed.  Each is shown to the quickest tests that enter its function, up to --seconds of them.  Exit
status 1 if one survives: a test lacks, or the line is idle.
"""

import argparse
import ast
import collections
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTES = "PROXSAE_MUTATION_NOTES"  # where the first pass writes, as a plugin of pytest
SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--since", required=True, metavar="REV", help="plant errors in lines changed since then")
    parser.add_argument("--count", type=int, default=60, help="mutants at most (default 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=30, help="of tests for each mutant (default 30)")
    state = hashlib.sha256((git("rev-parse", "HEAD") + git("diff", "HEAD")).encode()).hexdigest()[:12]
    parser.add_argument("--map", type=Path, default=Path(tempfile.gettempdir()) / f"proxsae-mutation-{state}.json")
    parser.add_argument("tests", nargs="*", help="tests of the first pass (default: all)")
    given = parser.parse_args()
    if not given.map.exists():
        print(f"which test enters which function: one run of the tests, kept in {given.map}", flush=True)
        environment = os.environ | {NOTES: str(given.map.absolute()), "PYTHONPATH": str(ROOT)}
        if run_pytest(ROOT, ["-p", "tests.long.mutation", *given.tests], None, environment) != 0:
            given.map.unlink(missing_ok=True)
            sys.exit("the tests do not pass as they are, so that none can tell of a planted error")
    entered = json.loads(given.map.read_text(encoding="utf-8"))
    every = [mutant for file, lines in changed(given.since).items() for mutant in mutants(file, lines)]
    chosen = random.Random(given.seed).sample(every, min(given.count, len(every)))
    print(f"{len(every)} mutants of the lines changed since {given.since}; {len(chosen)} are tried, seed {given.seed}")
    came = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="proxsae-mutation-") as place:
        copy = Path(place)
        for name in git("ls-files", "--cached", "--others", "--exclude-standard").splitlines():
            if (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copy / name)
        for file, line, function, what, source in sorted(chosen):
            began, tests = time.monotonic(), concerned(entered, file, function, given.seconds)
            good = (copy / file).read_bytes()
            (copy / file).write_bytes(source)
            status = run_pytest(copy, ["-x", *tests], 60 + 6 * given.seconds) if tests else None
            (copy / file).write_bytes(good)
            outcome = {None: "UNTESTED", 0: "SURVIVES", 1: "dies", -1: "hangs"}.get(status, "dies")
            came[outcome] += 1
            print(
                f"{outcome:8} {file}:{line} {what}  ({len(tests)} tests, {time.monotonic() - began:.0f} s)", flush=True
            )
    print(", ".join(f"{n} {outcome}" for outcome, n in sorted(came.items())))
    return int(came["SURVIVES"] + came["UNTESTED"] > 0)


def git(*command):
    return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def run_pytest(folder, options, seconds, environment=None):
    """The exit status of pytest in a folder, in one process; -1 if it takes longer."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *options]
    environment = environment or os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            timeout=seconds,
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: os.nice(10),
        )
    except subprocess.TimeoutExpired:
        return -1
    return done.returncode


def changed(since):
    """For each file of the package, the lines that are new since a revision."""
    lines, file = collections.defaultdict(set), None
    for line in git("diff", "-U0", "--no-renames", since, "--", "proxsae/*.py", "proxsae/**/*.py").splitlines():
        if line.startswith("+++ "):
            file = line[6:] if line[4:] != "/dev/null" else None
        elif file and (hunk := re.match(r"@@ -\S+ \+(\d+)(?:,(\d+))? @@", line)):
            lines[file] |= set(range(int(hunk[1]), int(hunk[1]) + int(hunk[2] or 1)))
    return lines


def mutants(file, lines):
    """Every planted error in some lines of a file: (file, line, first line of its function or 0, what, source)."""
    source = (ROOT / file).read_bytes()
    starts = [0, *(match.end() for match in re.finditer(rb"\n", source))]

    def walk(node, function):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        for child in ast.iter_child_nodes(node):
            yield from ((child, function, instead) for instead in changes(child) if child.lineno in lines)
            yield from walk(child, function)

    for node, function, instead in walk(ast.parse(source), 0):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        new = source[:begin] + instead.encode() + source[end:]
        what = " -> ".join(" ".join(text.split())[:60] for text in (source[begin:end].decode(), instead))
        yield file, node.lineno, function, what, new


def changes(node):
    """What may stand in place of a node, as source."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield f"({ast.unparse(ast.Compare(node.left, [SWAPS[type(node.ops[0])](), *node.ops[1:]], node.comparators))})"
    elif isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        yield f"({ast.unparse(ast.BinOp(node.left, SWAPS[type(node.op)](), node.right))})"
    elif isinstance(node, ast.BoolOp):
        yield f"({ast.unparse(ast.BoolOp(SWAPS[type(node.op)](), node.values))})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        yield str({bool: not node.value, int: node.value + 1, float: 2 * node.value or 1.0}[type(node.value)])
    elif isinstance(node, (ast.AugAssign, ast.Raise)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield "pass"


def concerned(entered, file, function, seconds):
    """The quickest tests that enter a function, or any of the file for what stands in none."""
    keys = [key for key in entered["tests"] if key.startswith(f"{file}:") and function in (0, int(key.split(":")[1]))]
    tests = {test for key in keys for test in entered["tests"][key]}
    chosen, left = [], seconds
    for test in sorted(tests, key=entered["seconds"].get):
        left -= entered["seconds"][test]
        if left < 0 and chosen:
            break
        chosen.append(test)
    return chosen


class Notes:
    """What the first pass notes: functions by test; what a fixture enters counts for all tests of its file."""

    def __init__(self):
        self.tests, self.shared = collections.defaultdict(set), collections.defaultdict(set)
        self.seconds, self.codes = {}, set()

    def enter(self, frame, event, arg):  # for calls only, as it returns None
        self.codes.add(frame.f_code)

    @contextlib.contextmanager
    def noting(self):
        self.codes = set()
        sys.settrace(self.enter)
        try:
            yield
        finally:
            sys.settrace(None)

    def keys(self):
        for code in self.codes:
            if code.co_filename.startswith(str(ROOT / "proxsae")) and code.co_name != "<module>":
                yield f"{Path(code.co_filename).relative_to(ROOT)}:{code.co_firstlineno}"

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item):
        with self.noting():
            result = yield
        self.shared[item.nodeid.split("::")[0]] |= set(self.keys())
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        with self.noting():
            result = yield
        for key in self.keys():
            self.tests[key].add(item.nodeid)
        return result

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration

    def pytest_sessionfinish(self):
        for test in self.seconds:
            for key in self.shared[test.split("::")[0]]:
                self.tests[key].add(test)
        told = {"tests": {key: sorted(names) for key, names in self.tests.items()}, "seconds": self.seconds}
        Path(os.environ[NOTES]).write_text(json.dumps(told), encoding="utf-8")


def pytest_configure(config):
    config.pluginmanager.register(Notes())


if __name__ == "__main__":
    sys.exit(main())
