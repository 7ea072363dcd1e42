"""The page, the code, the check and the machine proof of every statement agree, and its planted errors are caught."""

import ast
import functools
import importlib.util
import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import proxsae as px
from proxsae import testing as pt
from proxsae.statements import PLANTED, STATEMENTS, Kit, run
from proxsae.testing import proofs, statements

ROOT = Path(__file__).parent.parent
THEORY = ROOT / "docs" / "theory"
LABEL = re.compile(r"\b(?:def|lem|prop|thm|false)-[a-z0-9]+(?:-[a-z0-9]+)*\b")
CHECKED = [label for label, s in STATEMENTS.items() if s.check]


@pytest.mark.parametrize("label", CHECKED)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_check_of_a_statement_passes(label, seed):
    run(label, seed=seed)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda p: f"{p.killed_by}: {p.name}")
def test_a_planted_error_is_caught_by_the_check_it_names(planted):
    with pytest.raises(AssertionError):
        run(planted.killed_by, Kit(**planted.functions))


def test_the_formulas_that_checks_share_import_nothing_of_the_library():
    tree = ast.parse(Path(statements.plain.__file__).read_text(encoding="utf-8"))
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= {"numpy", *sys.stdlib_module_names}


# A formula of plain.py, a wrong one made of the right one, and a statement whose check must then fail.
WRONG_FORMULAS = [
    ("keep_largest", lambda right, u, k, key=None: right(u[..., ::-1], k)[..., ::-1], "lem-backtracking"),
    ("top", lambda right, key, k: right(np.nan_to_num(key), k), "lem-group-maxima"),
    ("soft", lambda right, u, t: right(u, t / 2), "def-ista"),
    ("hard", lambda right, u, t: np.where(np.abs(u) >= t, u, 0.0), "prop-threshold-gradient"),
    ("clipped", lambda right, u, nonneg: u, "prop-abstopk-closer"),
    ("squared_norm", lambda right, D: right(D) ** 0.5, "def-lipschitz"),
    ("longest", lambda right, D: right(D) ** 0.5, "lem-backtracking"),
    ("restricted_lipschitz", lambda right, D, s: right(D, s - 1), "thm-restricted-descent"),
    ("gradient", lambda right, c, D, z: -right(c, D, z), "def-fixed-point"),
    ("squared_error", lambda right, c, D, z: right(c, D, z) / 2, "def-ista"),
    ("l1_objective", lambda right, c, D, z, lam: right(c, D, z, lam / 2), "thm-duality-gap"),
    ("extrapolations", lambda right: (k / (k + 3) for k in itertools.count()), "thm-fista-rate"),
    ("l1_optimum", lambda right, *problem: 1.01 * right(*problem), "thm-l1-optimality"),
    ("hard_optimum", lambda right, *problem: 1.01 * right(*problem), "thm-optimal-is-stationary"),
]


@pytest.mark.parametrize(("name", "wrong", "label"), WRONG_FORMULAS, ids=[name for name, *_ in WRONG_FORMULAS])
def test_a_wrong_formula_that_checks_share_fails_a_check(name, wrong, label, monkeypatch):
    right = getattr(statements.plain, name)
    for module in [m for key, m in sys.modules.items() if key.startswith("proxsae.statements.")]:
        if getattr(module, name, None) is right:
            monkeypatch.setattr(module, name, functools.partial(wrong, right))
    with pytest.raises(AssertionError):
        run(label)


def test_a_planted_error_replaces_what_a_check_can_use():
    with pytest.raises(px.Error, match="lipshitz"):
        Kit(lipshitz=len)


@pytest.mark.parametrize("s", STATEMENTS.values(), ids=STATEMENTS)
def test_a_statement_stands_in_all_its_places(s):
    page = (THEORY / f"{s.page}.md").read_text(encoding="utf-8")
    section = re.search(rf"^\({s.label}\)=\n## .+  ·  `{s.label}`\n(.*?)(?=^\([a-z0-9-]+\)=|\Z)", page, re.S | re.M)
    assert section, "no section on its page"
    text = section[1]
    if s.label.startswith("false-"):
        parts = ("The claim", "Why it tempts", "Counterexample", "What is true instead")
    else:
        parts = ("Definition", "Literature") if s.label.startswith("def-") else ("Claim", "Proof", "Literature")
        assert s.label.startswith("def-") or "∎" in text, "the proof has no end"
    for part in parts:
        assert f"**{part}.**" in text, f"no {part}"
    assert s.laws or s.check or s.no_check, "neither a law, nor a check, nor a reason"
    assert set(s.laws) <= {law.name for law in pt.LAWS}
    assert s.label.startswith("false-") or statements.machine(s) or s.on_paper, "not said why no solver proves it"
    assert s.check is None or s.label.startswith("false-") or any(p.killed_by == s.label for p in PLANTED)
    assert s.claim.endswith(".")
    assert s.source
    for name in s.code:
        assert s.label in explained(name), f"{name} does not name its label"


def explained(name):
    """The docstrings of what a dotted name leads to, and of what encloses it."""
    found, texts = px, []
    for part in name.split("."):
        if hasattr(found, "__path__") and not hasattr(found, part):
            importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
        texts.append(found.__doc__ or "")
    return "\n".join(texts)


def test_labels_in_pages_and_in_code_are_statements():
    for page in THEORY.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        if page.stem in statements.table.TITLES:
            assert text.startswith(f"# {statements.table.TITLES[page.stem]}\n")
        targets = re.findall(r"^\(([a-z0-9-]+)\)=", text, re.M)
        assert targets == [s.label for s in STATEMENTS.values() if s.page == page.stem], page.name
    files = [*ROOT.glob("proxsae/**/*.py"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md")]
    for file in files:
        for label in LABEL.findall(file.read_text(encoding="utf-8")):
            assert label in STATEMENTS, f"{file.name} cites {label}"


def test_there_are_as_many_as_promised():
    assert len([s for s in STATEMENTS if not s.startswith("false-")]) >= 40
    assert len(proofs.PROOFS) >= 25
    assert len(pt.MUTANTS) >= 30
    assert {proof.statement for proof in proofs.PROOFS.values()} <= set(STATEMENTS)
    cited = {law for s in STATEMENTS.values() for law in s.laws}
    conventions = {"form", "rows", "nan"}  # of the library, not of mathematics
    assert cited | conventions >= {law.name for law in pt.LAWS}


def test_every_theorem_that_is_a_function_is_stated():
    for name in dir(px.theory):
        function = getattr(px.theory, name)
        if callable(function) and function.__module__ == "proxsae.theory" and not name.startswith("_"):
            assert any(f"theory.{name}" in s.code for s in STATEMENTS.values()), name


def test_what_is_generated_in_the_docs_is_fresh():
    spec = importlib.util.spec_from_file_location("write_statements", ROOT / "docs" / "write_statements.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for path, text in script.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run `python docs/write_statements.py`"
    broken = script.with_boxes((THEORY / "signs.md").read_text(encoding="utf-8").replace("optimal", "best"))
    assert script.with_boxes(broken) == broken  # writing twice changes nothing
