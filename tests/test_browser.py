"""The report as a browser shows it: drawn, silent, self-contained, readable in the dark, on a phone and on paper."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proxsae import report
from tests.browser import Browser, find
from tests.test_report import META, TITLE, make_folded, make_rows, make_sections

PHONE = 360
CONTRAST = 4.5  # WCAG 2.2, level AA, for text of any size

# Every element with text of its own, its colour and that of what lies behind it.
COLOURS = r"""[...document.querySelectorAll("main *:not(svg, svg *)")]
  .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && e.getClientRects().length)
  .map(e => {
    let behind = e;
    while (/, 0\)$/.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
    return [e.tagName, getComputedStyle(e).color, getComputedStyle(behind).backgroundColor];
  })"""
BOX = """(selector => { const box = document.querySelector(selector).getBoundingClientRect();
  return [box.left + scrollX, box.top + scrollY, box.width, box.height] })"""


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    named = request.config.getoption("--browser")
    executable = find() if named is None else find([named])
    if executable is None:
        pytest.skip("no browser is installed")
    with Browser(executable) as started:
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report.write_report(make_sections(), META, make_rows(), folder, title=TITLE)
    return folder / "report.html"


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folded")
    report.write_report(make_folded(), META, make_rows(), folder, title=TITLE)
    return folder / "report.html"


def luminance(colour: Any) -> Any:
    """Relative luminance of sRGB in [0, 1], as WCAG defines it."""
    colour = np.asarray(colour)
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def contrast(one: Any, other: Any) -> float:
    low, high = sorted([float(luminance(one)), float(luminance(other))])
    return (high + 0.05) / (low + 0.05)


def rgb(text: str) -> list[float]:
    return [float(part) / 255 for part in text[text.index("(") + 1 : -1].split(",")[:3]]


def pixels(browser: Browser, selector: str, scale: float = 4) -> Any:
    """What is drawn where the element is, (n, 3) in [0, 1]: with every filter applied."""
    from matplotlib.image import imread

    box = browser.evaluate(f"{BOX}({selector!r})")
    assert min(box[2:]) > 0, f"{selector} is not drawn"
    return imread(io.BytesIO(browser.screenshot(box, scale)))[..., :3].reshape(-1, 3)


def strange(page: Path, addresses: list[str]) -> list[str]:
    return [address for address in addresses if address != page.as_uri() and not address.startswith("data:")]


def test_the_report_is_drawn_and_says_and_asks_for_nothing(browser: Browser, page: Path) -> None:
    browser.look()
    browser.open(page)
    assert browser.evaluate("document.querySelector('h1').innerText") == TITLE
    assert browser.evaluate("document.querySelector('h1').getClientRects().length") == 1
    sizes = browser.evaluate("""[...document.querySelectorAll('svg')].map(svg => {
        const box = svg.getBoundingClientRect(); return [box.width, box.height] })""")
    assert len(sizes) == 2
    assert min(map(min, sizes)) > 200
    for name in ("first", "second"):  # each draws its own lines, not those of another figure, or none
        seen = pixels(browser, f"#figure-{name} svg", 1)
        blue, green = (np.abs(seen - rgb(colour)).max(1) < 0.02 for colour in ("(0, 114, 178)", "(0, 158, 115)"))
        assert min(blue.sum(), green.sum()) > 100
    assert browser.said() == []
    assert strange(page, browser.requests()) == []
    assert page.as_uri() in browser.requests()


def test_what_a_page_says_or_asks_for_is_seen(browser: Browser, page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for planted, said, asked in (
        ("<script>console.error('planted')</script>", "planted", None),
        ("<script>console.log('planted')</script>", "planted", None),
        ("<script>throw Error('planted')</script>", "planted", None),
        ("<script>Promise.reject('planted')</script>", "planted", None),
        ("<img src='http://127.0.0.1:9/a.png'>", "", "http://127.0.0.1:9/a.png"),
        ("<style>@font-face { font-family: a; src: url(none.woff) } h1 { font-family: a }</style>", "", "none.woff"),
    ):
        (tmp_path / "planted.html").write_text(text.replace("</main>", f"{planted}</main>"), encoding="utf-8")
        browser.open(tmp_path / "planted.html")
        assert said in " ".join(browser.said()), planted
        assert browser.said(), planted
        others = strange(tmp_path / "planted.html", browser.requests())
        assert (len(others), not asked or asked in others[0]) == (1 if asked else 0, True), planted


def test_links_lead_to_what_they_name(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert (
        browser.evaluate("""[...document.querySelectorAll('nav a')]
        .map(a => document.querySelector(a.getAttribute('href')).innerText === a.innerText)""")
        == [True] * 3
    )


SEEN = "[...document.querySelectorAll('#figure-inside, #table-long table')].map(e => e.checkVisibility())"


def test_a_link_opens_the_part_that_it_leads_to(browser: Browser, folded: Path) -> None:
    browser.look(width=1280, height=1000)
    browser.open(folded)
    bottom = browser.evaluate("document.querySelector('#figure-opening svg').getBoundingClientRect().bottom")
    assert 0 < bottom < 1000, "the first picture is in the first screen of a laptop"
    assert browser.evaluate(SEEN) == [False, False]
    browser.evaluate("document.querySelector('a[href=\"#part\"]').click()")
    browser.settle()
    assert browser.evaluate(SEEN) == [True, False]
    assert browser.evaluate("document.querySelectorAll('summary')[0].getBoundingClientRect().top") >= 0, "and its title"
    browser.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert browser.evaluate(SEEN) == [True, True]
    assert browser.said() == []


def test_paper_shows_what_is_folded(browser: Browser, folded: Path) -> None:
    browser.look(width=700, media="print")
    browser.open(folded)
    assert browser.evaluate("document.querySelectorAll('details[open]').length") == 0
    assert browser.evaluate(SEEN) == [True, True]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_wide_widens_a_phone(browser: Browser, page: Path, scheme: str) -> None:
    browser.look(width=PHONE, height=740, scheme=scheme)
    browser.open(page)
    assert browser.evaluate("innerWidth") == PHONE
    assert browser.evaluate("document.documentElement.scrollWidth") <= PHONE
    boxes = browser.evaluate("[...document.querySelectorAll('.scroll')].map(b => [b.clientWidth, b.scrollWidth])")
    assert len(boxes) == 3
    for shown, whole in boxes:
        assert shown < PHONE < whole, "a wide thing keeps a readable size and scrolls in its own box"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(browser: Browser, page: Path, scheme: str) -> None:
    browser.look(scheme=scheme)
    browser.open(page)
    found = browser.evaluate(COLOURS)
    assert {"H1", "H2", "P", "LI", "A", "FIGCAPTION", "B", "SPAN", "TH", "TD", "DT", "DD"} <= {
        tag for tag, _, _ in found
    }
    for tag, ink, behind in found:
        assert contrast(rgb(ink), rgb(behind)) >= CONTRAST, (tag, ink, behind)
    paper = rgb(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (luminance(paper) < 0.05) == (scheme == "dark")
    # Text of a figure is looked at as it is drawn: a filter changes what no style says.
    for part in ("text_1", "matplotlib\\.axis_2", "legend_1"):
        seen = pixels(browser, f"#svg-second-{part}")
        values = luminance(seen)
        assert contrast(seen[values.argmin()], seen[values.argmax()]) >= CONTRAST, part
        median = np.median(seen, axis=0)
        assert np.abs(median - paper).max() < 2 / 255, "a figure lies on the page without an edge"


def test_the_report_can_be_printed(browser: Browser, page: Path) -> None:
    browser.look(width=700, scheme="dark", media="print")
    browser.open(page)
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("getComputedStyle(document.querySelector('svg')).filter") == "none"
    hidden = browser.evaluate("[...document.querySelectorAll('nav, a')].every(e => !e.getClientRects().length)")
    assert hidden, "paper has no links"
    boxes = browser.evaluate("[...document.querySelectorAll('.scroll')].every(b => b.scrollWidth <= b.clientWidth)")
    assert boxes, "paper cannot be scrolled"
    assert browser.evaluate("getComputedStyle(document.querySelector('.picture')).breakInside") == "avoid"
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF-")
    assert len(pdf) > 10_000


def test_a_browser_that_fails_is_an_error(browser: Browser, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="planted"):
        browser.evaluate("(() => { throw Error('planted') })()")
    with pytest.raises(RuntimeError, match=r"No\.Such"):
        browser.send("No.Such")
    (tmp_path / "silent").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "silent").chmod(0o700)
    with pytest.raises(TimeoutError, match=r"did not answer within 0\.2 seconds"):
        Browser(str(tmp_path / "silent"), patience=0.2)
    (tmp_path / "silent").write_text("#!/bin/sh\n")
    with pytest.raises((RuntimeError, BrokenPipeError)):
        Browser(str(tmp_path / "silent"))
