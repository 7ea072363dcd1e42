"""Every Python block in the README and the docs runs; every link between pages leads somewhere."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

import proxsae as px
from tests.checkpoint_files import WRITERS

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "proxsae").rglob("*.md"))]


def examples(page):
    """The Python of a page, one piece a block; a block that imports nothing goes on where the one before it ended."""
    found = []
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M):
        if re.search(r"^(import|from) ", code, re.M) or not found:
            found.append(code)
        else:
            found[-1] += code
    return found


BLOCKS = [pytest.param(code, id=f"{page.name}-{i}") for page in PAGES for i, code in enumerate(examples(page))]


# What a reader of the guides has: small files in other libraries' layouts, and rows.
FILES = {
    "my-saelens-sae": "saelens topk, rescaled",
    "gemma-scope": "gemma scope 1",
    "sparsify-sae": "sparsify",
    "sparsify-signed-sae": "sparsify, signed",
}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    for folder, name in FILES.items():
        (tmp_path / folder).mkdir()
        WRITERS[name](tmp_path / folder)
    np.save(tmp_path / "activations.npy", px.data.planted(n=512, d_in=16, d_sae=64, k=4).x.astype(np.float32))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("code", BLOCKS)
def test_block_runs(code):
    exec(compile(code, "<docs>", "exec"), {"__name__": "docs"})


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_two_commands_are_in_the_readme_word_for_word():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\npip install -c constraints.txt '.[study]' && proxsae depth\n" in text
    assert "\npip install -c constraints.txt -e '.[test]' && pytest\n" in text


def test_the_address_of_the_repository_is_one_field():
    """It is `Repository` in pyproject.toml; README and CITATION.cff have it too, and no address while there is none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = project.get("urls", {}).get("Repository")
    for name, mark in (("README.md", "git clone "), ("CITATION.cff", "repository-code: ")):
        found = re.findall(rf"^{mark}(\S+)", (ROOT / name).read_text(encoding="utf-8"), re.M)
        assert found == ([address] if address else []), name


def test_the_gain_in_the_readme_is_that_of_the_study():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    study = (ROOT / "docs" / "study.md").read_text(encoding="utf-8").replace("\N{MINUS SIGN}", "-")
    for name, percent in re.findall(r"(AbsTopK|TopK|JumpReLU|ReLU)(?: sparse autoencoder)? by (\d+) %", readme):
        line = next(line for line in study.splitlines() if line.startswith(f"| {name} |"))
        assert f"| -{percent} % [" in line, name
    gain = re.search(r"AbsTopK sparse autoencoder by (\d+ % \[\d+, \d+\])", readme)[1]
    assert f"of an AbsTopK SAE by {gain} at equal density" in study
    assert "3 seeds" in study
