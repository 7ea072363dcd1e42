"""The shape of the house: imports go only down, the NumPy floor has no torch, the public names are the public names."""

import ast
import graphlib
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import proxsae as px

PACKAGE = Path(px.__file__).parent

# A room may import the rooms above it in this list, and nothing below.
ROOMS = [
    "conventions", "disk", "hub", "theory", "penalties", "steps", "learned", "certificates", "minimal_coherence",
    "reference", "pytorch", "metrics", "testing", "formats", "data", "sae", "training", "sklearn", "models", "report",
    "studies", "statements", "cli", "__main__",
]  # fmt: skip
NUMPY_FLOOR = {
    "conventions",
    "disk",
    "hub",
    "theory",
    "penalties",
    "steps",
    "learned",
    "certificates",
    "reference",
    "data",
}
RUN_TIME = {"numpy", "scipy", "torch", "proxsae", *sys.stdlib_module_names}


def rooms():
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.parent.name == "provenance":  # builders of the packaged data, which are no part of the package
            continue
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            yield room, file


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "proxsae":
                yield from (f"proxsae.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize(("room", "file"), list(rooms()), ids=lambda v: v.name if isinstance(v, Path) else v)
def test_imports_go_only_down_the_list(room, file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "a file says in its first lines why it exists"
    for name in imports(tree):
        if name.startswith("proxsae.") and name != "proxsae.__version__":
            other = name.split(".")[1]
            assert ROOMS.index(other) <= ROOMS.index(room), f"{file.name} imports {name} from a floor below it"
        if room in NUMPY_FLOOR:
            assert name.split(".")[0] != "torch"


def test_no_files_import_each_other_in_a_circle():
    """Neither through imports inside functions nor through those for types; `__init__` files only pass names on."""
    files = {".".join(("proxsae", *file.relative_to(PACKAGE).with_suffix("").parts)): file for _, file in rooms()}
    files = {name: file for name, file in files.items() if file.stem != "__init__"}
    graph = {}
    for name, file in files.items():
        nodes = [n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
        found = {node.module for node in nodes} | {f"{n.module}.{alias.name}" for n in nodes for alias in n.names}
        graph[name] = found & set(files)
    assert sum(map(len, graph.values())) > 300
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle


@pytest.mark.parametrize(("room", "file"), list(rooms()), ids=lambda v: v.name if isinstance(v, Path) else v)
def test_only_run_time_dependencies_are_imported_at_the_top(room, file):
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name in imports(ast.Module([node], [])):
                kernel = file.parent.name == "kernels" and file.stem != "__init__"
                assert name.split(".")[0] in RUN_TIME | ({"triton"} if kernel else set())


def test_every_public_name_exists_and_is_explained():
    assert len(set(px.__all__)) == len(px.__all__)
    for name in px.__all__:
        assert getattr(px, name).__doc__, name
    with pytest.raises(AttributeError, match="nonsense"):
        px.nonsense  # noqa: B018


# What rooms of one name in `reference/` and `pytorch/` have in common: functions with equal arguments and defaults.
WINGS = {"iteration": ["ista", "solve"], "refit": ["refit"]}


def arguments(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_the_two_wings_have_the_same_rooms_names_and_signatures():
    oracle, fast = ({file.stem for file in (PACKAGE / wing).glob("[a-z]*.py")} for wing in ("reference", "pytorch"))
    assert oracle & fast == set(WINGS)
    for room, names in WINGS.items():
        mine, twin = (importlib.import_module(f"proxsae.{wing}.{room}") for wing in ("reference", "pytorch"))
        for name in names:
            assert arguments(getattr(mine, name)) == arguments(getattr(twin, name)), name
    mine, twin = (importlib.import_module(f"proxsae.{wing}.iteration") for wing in ("reference", "pytorch"))
    mine, twin = mine.Iteration, twin.iterate
    more = arguments(twin)[len(arguments(mine)) :]  # what an SAE needs
    assert arguments(mine) == arguments(twin)[: -len(more)]
    assert [(name, default) for name, _, default in more] == [("spent", 0.0), ("tilt", None)]


def test_torch_twins_of_penalties_take_the_same_arguments():
    from proxsae.pytorch import prox as torch_prox

    for name in ("prox", "value", "slope"):
        mine = list(inspect.signature(getattr(px.Penalty, name)).parameters)
        assert mine[1:] == list(inspect.signature(getattr(torch_prox, name)).parameters)[1:]


def test_import_loads_neither_torch_nor_any_extra():
    code = """
import sys, time
start = time.perf_counter()
import proxsae, proxsae.testing
for name in ("torch", "matplotlib", "triton", "scipy", "hypothesis", "tqdm", "safetensors", "sklearn"):
    assert name not in sys.modules, name
import numpy as np
proxsae.ista(np.ones(2), np.eye(2), proxsae.L1(0.5), 3)
proxsae.testing.check_prox(proxsae.KSparse(1))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_modules_import_on_their_own():
    for room in ROOMS[:-1]:
        importlib.import_module(f"proxsae.{room}")
