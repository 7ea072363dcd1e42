"""The documentation site, as far as it can be judged without Sphinx: pages, labels, anchors, what a page may load."""

import hashlib
import importlib.util
import re
from pathlib import Path
from types import FunctionType

import pytest

import proxsae as px

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts]
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}
PROSE = {page: re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.S | re.M) for page, text in TEXT.items()}
TARGET = re.compile(r"^\(([\w-]+)\)=$", re.M)


def script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page):
    """Targets, and headings as GitHub and MyST name them."""
    headings = re.findall(r"^#+ +(.+)$", PROSE[page], re.M)
    return {*TARGET.findall(PROSE[page]), *(re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings)}


def named_in_toctrees(page):
    for block in re.findall(r"^```\{toctree\}\n(.*?)^```", TEXT[page], re.S | re.M):
        for line in block.splitlines():
            if line and not line.startswith(":"):
                yield page.parent / f"{line.removesuffix('.md')}.md"


def test_every_page_is_in_one_table_of_contents():
    named = [target for page in PAGES for target in named_in_toctrees(page)]
    assert len(named) == len(set(named))
    assert {*named, DOCS / "index.md"} == set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())
def test_anchors_in_links_exist(page):
    for path, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", PROSE[page]):
        if "://" not in path:
            target = (page.parent / path).resolve() if path else page
            assert target in TEXT, f"{path}#{anchor}"
            assert anchor in anchors(target), f"{path}#{anchor}"


def test_a_label_names_one_section():
    labels = [label for page in PAGES for label in TARGET.findall(PROSE[page])]
    assert sorted(labels) == sorted(set(labels))


def test_every_public_name_is_in_the_api_pages():
    text = "".join(TEXT[page] for page in PAGES if page.parent.name == "api")
    shown = set(re.findall(r"^\.\. auto\w+:: (\w+)", text, re.M))
    for module in (px, px.testing):
        explained = {n for n in module.__all__ if isinstance(getattr(module, n), (type, FunctionType))}
        assert explained <= shown, explained - shown


def test_sources_of_pages_load_nothing_from_elsewhere():
    for file in [*DOCS.glob("_static/*.*"), *DOCS.glob("_templates/*.*"), *DOCS.glob("figures/*.svg"), *PAGES]:
        if file.suffix in (".html", ".css", ".js", ".svg", ".md"):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"<(script|link|img|image|iframe|use)\b[^>]*(src|href)\s*=\s*[\"']?(https?:)?//", text)
            assert not re.search(r"(@import\s*|url\()\s*[\"']?(https?:)?//", text)
            assert not re.search(r"!\[[^\]]*\]\((https?:)?//", text)


def test_mathjax_is_the_file_it_says_it_is():
    folder = DOCS / "_static" / "mathjax"
    note = (folder / "PROVENANCE.txt").read_text(encoding="utf-8")
    assert hashlib.sha256((folder / "tex-svg-full.js").read_bytes()).hexdigest() in note
    assert "Apache License" in (folder / "LICENSE").read_text(encoding="utf-8")
    assert 'mathjax_path = "mathjax/tex-svg-full.js"' in (DOCS / "conf.py").read_text(encoding="utf-8")


def test_the_check_of_a_built_site_sees_what_is_wrong(tmp_path):
    problems = script(DOCS / "check_site.py").problems
    assert problems(tmp_path)  # no page at all
    (tmp_path / "a.css").write_text("p { color: red }")
    links = '<a href="#x">x</a> <a href="b.html#y">y</a> <a href="https://example.org">elsewhere</a>'
    (tmp_path / "a.html").write_text(f'<link href="a.css"> <p id="x">{links}')
    (tmp_path / "b.html").write_text('<p id="y">')
    assert problems(tmp_path) == []
    for wrong in (
        '<script src="https://example.org/a.js"></script>',
        '<link rel="stylesheet" href="//example.org/a.css">',
        '<img src="http://example.org/a.png">',
        '<img srcset="https://example.org/a.png 2x">',
        '<a href="c.html">gone</a>',
        '<a href="b.html#z">no such anchor</a>',
        '<p id="y"><p id="y">',
    ):
        (tmp_path / "b.html").write_text(f'<p id="y">{wrong}')
        assert len(problems(tmp_path)) == 1, wrong
    (tmp_path / "b.html").write_text('<p id="y">')
    (tmp_path / "a.css").write_text("@import url(https://example.org/a.css);")
    assert len(problems(tmp_path)) == 1


def test_the_prox_figure_is_drawn_from_the_operators(tmp_path):
    prox = script(DOCS / "figures" / "prox.py")
    prox.main(tmp_path / "prox.svg")
    assert "<svg" in (tmp_path / "prox.svg").read_text(encoding="utf-8")
    figure = prox.draw(50)
    assert len(figure.axes) == len(prox.PANELS) >= 6
