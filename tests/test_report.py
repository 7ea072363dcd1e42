"""The report tells what it was given, the same way every time, and leaves no half-written file behind."""

from __future__ import annotations

import base64
import csv
import json
import math
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proxsae import report
from proxsae.conventions import Error
from proxsae.report.rows import as_csv, cell
from proxsae.report.section import Picture, Section, Table
from proxsae.report.style import band, canvas, house, image, legend, log_axis, means, styles
from proxsae.studies.statistics import Interval
from proxsae.studies.words import STYLES

META: dict[str, Any] = {
    "data": "<script>alert('x')</script> & \"more\" $_{$ \u6570",
    "rows": 4096,
    "versions": ["numpy 2", "<b>torch</b>"],
    "seconds": 12.5,
}
HOSTILE = META["data"]
TITLE = f"Steps {HOSTILE}"
FILES = [
    "figures/first.csv", "figures/first.svg", "figures/second.csv", "figures/second.svg", "report.html", "rows.csv",
    "rows.json", "summary.md", "tables/claims.csv",
]  # fmt: skip


def make_row(sae: str, rule: str, steps: int, nmse: Any, **changes: Any) -> dict[str, Any]:
    made = {
        "sae": sae, "rule": rule, "steps": steps, "nmse": nmse, "explained_variance": 0.659, "l0": 32.0,
        "objective": 812.3, "fixed_point_residual": 1 / 3 / steps,
        "support_change": None if steps == 1 else 0.1,
        "dead": 1 / 32, "cost": 2.0 * steps - 1, "seconds": 0.1 * steps,
    }  # fmt: skip
    return made | changes


def make_rows() -> list[dict[str, Any]]:
    factors = {"lipschitz": 0.9, "exact": 0.8, "refit": 0.7}
    return [
        make_row(sae, rule, steps, start * factor**power)
        for sae, start in (("relu", 0.31), ("jumprelu", 0.22), ("topk", 0.205), ("abstopk", 0.213))
        for rule, factor in factors.items()
        for power, steps in enumerate((1, 2, 4))
    ]


@house()
def make_picture(name: str, values: tuple[float, ...] = (0.31, 0.2, 0.1)) -> Picture:
    figure, axes = canvas()
    steps = [2**power for power in range(len(values))]
    data: list[dict[str, Any]] = []
    for scale, (label, style) in enumerate(styles(["relu", "topk"], STYLES).items(), 1):
        mean = [scale * value for value in values]
        low, high = ([factor * value for value in mean] for factor in (0.9, 1.1))
        band(axes[0, 0], steps, mean, low, high, label, **style)
        data += [
            {"penalty": label, "steps": step, "nmse": number, "low": least, "high": most, "note": HOSTILE}
            for step, number, least, most in zip(steps, mean, low, high, strict=True)
        ]
    log_axis(axes[0, 0], "x")
    log_axis(axes[0, 0], "y")
    axes[0, 0].set_title(HOSTILE.encode("ascii", "replace").decode(), parse_math=False)
    axes[0, 0].set_xlabel("steps")
    axes[0, 0].legend()
    return Picture(name, f"{name} | {HOSTILE}", figure, data)


def make_sections() -> list[Section]:
    wide = ["0.3100 [0.2900, 0.3300]"] * 6
    lines = [[HOSTILE, "0.25 [0.2, 0.3]", "-", *wide], ["long " * 30, "-", "no\nopinion *at* `all`", *wide]]
    claims = Table("claims", f"claims {HOSTILE}", ["claim <i>", "nmse | x", "verdict", *"abcdef"], lines)
    findings = [f"found {HOSTILE}", "* a [link](http://x.example)"]
    return [
        Section("depth", f"Depth {HOSTILE}", f"Why {HOSTILE}?", findings, [make_picture("first"), claims]),
        Section("again", "Again", "The same once more?", shown=[make_picture("second")]),
    ]


def written(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class Page(HTMLParser):
    """What a browser would make of a page: tags with attributes, text inside table cells, and any script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.lines: list[list[str]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.lines.append([])
        elif tag in ("td", "th"):
            self.lines[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if not self.open:
            return
        self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data
        if "td" in self.open or "th" in self.open:
            self.lines[-1][-1] += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("home") / "new" / "report"
    assert sorted(report.write_report(make_sections(), META, make_rows(), made, title=TITLE)) == FILES
    return made


# Numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.2, "0.2000"), (31.0, "31.00"), (1234.0, "1234"), (0.00123456, "0.001235"), (0.000123456, "1.235e-4"),
     (123456.0, "1.235e5"), (9999.9, "1.000e4"), (-0.5, "-0.5000"), (0.0, "0"), (math.nan, "nan"),
     (None, "-"), (16, "16"), (np.float32(0.25), "0.2500")],
)  # fmt: skip
def test_numbers_have_four_digits(value: Any, text: str) -> None:
    assert cell(value) == text


# CSV and JSON


def test_csv_gives_every_number_back() -> None:
    rows = make_rows()
    rows[0]["nmse"] = np.float64(0.1) + np.float64(0.2)
    rows[1]["steps"] = np.int64(2)
    text = as_csv(rows).decode()
    assert text.endswith("\n")
    assert "\r" not in text
    read = list(csv.DictReader(text.splitlines()))
    assert list(read[0]) == list(rows[0])
    assert len(read) == len(rows)
    for old, new in zip(rows, read, strict=True):
        for key, value in old.items():
            if value is None:
                assert new[key] == ""
            else:
                assert type(value)(new[key]) == value, key


def test_json_gives_every_number_back_without_nan_tokens(tmp_path: Path) -> None:
    rows = make_rows()
    rows[0] |= {"nmse": np.float64(0.1) + np.float64(0.2), "steps": np.int64(1)}
    rows[1] |= {"objective": math.inf, "cost": np.float32("nan"), "new": 1 / 7}
    meta = META | {"bound": math.nan, "path": Path("here"), "sizes": np.array([1, 2])}
    report.write_report([], meta, rows, tmp_path)
    text = (tmp_path / "rows.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    read = json.loads(text, parse_constant=lambda token: pytest.fail(f"{token} is not JSON"))
    rows[1] |= {"objective": None, "cost": None}
    assert read == {"meta": META | {"bound": None, "path": "here", "sizes": [1, 2]}, "rows": rows}
    assert list(read["rows"][0]) == list(rows[0])


def test_csv_keeps_a_quantity_that_only_some_rows_have() -> None:
    text = as_csv([make_row("topk", "exact", 1, 0.5), make_row("topk", "exact", 2, 0.4, new=1 / 7)]).decode()
    first, second = csv.DictReader(text.splitlines())
    assert (first["new"], float(second["new"])) == ("", 1 / 7)


# Style


@pytest.mark.parametrize("names", [list(STYLES)[:6], list(STYLES)[6:], ["a", "b", "c", "d", "e", "f", "g"]], ids=str)
def test_what_is_drawn_together_differs_in_colour_and_without(names: list[str]) -> None:
    looks = list(styles(names, STYLES).values())
    assert len({look["color"] for look in looks}) == len(names)
    assert len({look["marker"] for look in looks}) == len(names)
    if names[0] in STYLES:
        assert len({str(look["linestyle"]) for look in looks}) == len(names)


def test_a_name_looks_the_same_in_every_figure() -> None:
    one, other = styles(["topk", "mine"], STYLES), styles(["other", "relu", "topk"], STYLES)
    assert one["topk"] == other["topk"] == STYLES["topk"]
    assert one["mine"] == styles(["mine"])["mine"]


def test_means_draw_intervals_and_a_legend_names_each_line_once() -> None:
    figure, axes = canvas(columns=2)
    found = [Interval(1.0, 0.5, 1.5, 3), Interval(2.0, math.nan, math.nan, 1)]
    for ax in axes.flat:
        means(ax, [1, 2], found, "one", **STYLES["topk"])
        means(ax, [], [], "none", **STYLES["relu"])
    ends = axes[0, 0].containers[0].lines[2][0].get_segments()
    assert [list(point) for point in ends[0]] == [[1, 0.5], [1, 1.5]]
    assert list(axes[0, 0].containers[0].lines[0].get_ydata()) == [1, 2]
    legend(figure, axes, 2)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "none"]


def test_a_band_draws_what_it_is_given_and_leaves_gaps() -> None:
    ax = canvas()[1][0, 0]
    low, high = [0.4, None, None, 0.2], [0.7, None, math.inf, math.inf]
    band(ax, [1, 2, 4, 8], [0.5, None, 0.3, math.inf], low, high, "relu", **STYLES["relu"])
    (container,) = ax.containers
    line, _, (bars,) = container.lines
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 4, 8])
    np.testing.assert_array_equal(line.get_ydata(), [0.5, np.nan, 0.3, np.nan])
    np.testing.assert_allclose([ends for ends in bars.get_segments() if len(ends)], [[[1, 0.4], [1, 0.7]]])
    assert (container.get_label(), line.get_color()) == ("relu", STYLES["relu"]["color"])


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    "values",
    [(), (0.5,), (0.2, 0.21), (1e-9, 1e6), (0.17, 1.2), (math.nan,), (math.inf, 0.0, -1.0), (0.0, math.inf, None, 0.3)],
)
def test_a_log_axis_survives_strange_numbers(values: tuple[float | None, ...], first: bool) -> None:
    figure, axes = canvas()
    ax, none = axes[0, 0], [None] * len(values)
    if first:
        log_axis(ax, "x")
        log_axis(ax, "y")
    band(ax, [2**i for i in range(len(values))], values, none, none, "values", **STYLES["relu"])
    if not first:
        log_axis(ax, "x")
        log_axis(ax, "y")
    image(figure, "svg")  # warnings are errors
    low, high = ax.get_ylim()
    ticks = [tick for tick in ax.get_yticks() if low <= tick <= high]
    assert len(ticks) >= 2, "an axis with one number says nothing"
    if any(value is not None and 0 < value < math.inf for value in values):
        assert ax.get_yscale() == "log"


def test_steps_are_marked_at_powers_of_two_and_other_numbers_are_round() -> None:
    figure, axes = canvas(columns=3, rows=2, width=6.25, sharex=True, sharey=True)
    for ax in axes.flat:
        band(ax, [1, 2, 4, 8, 16], [0.5, 0.4, 0.3, 0.2, 0.1], [None] * 5, [None] * 5, "relu")
        log_axis(ax, "x")
        log_axis(ax, "y")
    image(figure, "svg")
    ax = axes[1, 0]
    for which, expected in (("x", ["1", "2", "4", "8", "16"]), ("y", ["0.1", "0.2", "0.3", "0.5"])):
        axis = getattr(ax, f"{which}axis")
        low, high = axis.get_view_interval()
        assert (
            axis.get_major_formatter().format_ticks([t for t in axis.get_majorticklocs() if low <= t <= high])
            == expected
        )


def test_the_users_settings_change_no_figure_and_are_not_changed() -> None:
    import matplotlib

    plain = image(make_picture("first").figure, "svg")
    with matplotlib.rc_context({"font.size": 20, "axes.edgecolor": "red", "svg.fonttype": "none"}):
        before = dict(matplotlib.rcParams)
        assert image(make_picture("first").figure, "svg") == plain
        assert dict(matplotlib.rcParams) == before
    assert b"<text" not in plain, "letters are outlines: no reader needs the font"
    figure = make_picture("first").figure
    image(figure, "svg")  # which makes the labels of the ticks
    bare, axes = canvas()
    image(bare, "svg")
    assert {label.get_fontsize() for label in axes[0, 0].get_xticklabels()} == {8}
    assert {line.get_linewidth() for line in axes[0, 0].get_xgridlines()} == {0.6}
    sizes = {text.get_fontsize() for text in figure.findobj(matplotlib.text.Text) if text.get_text()}
    assert 8 <= min(sizes) <= max(sizes) <= 9, "as a column of a paper wants"
    assert figure.get_figwidth() == 7


def test_figures_need_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Error, match=r"matplotlib is missing: pip install 'proxsae\[study\]'"):
        canvas()


# The whole report


def test_report_is_its_files_and_nothing_else(folder: Path) -> None:
    assert written(folder) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["report"]
    assert len(json.loads((folder / "rows.json").read_text())["rows"]) == 36


def test_same_rows_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    changed = [make_sections()[0], Section("again", "", "", shown=[make_picture("second", (0.3, 0.2))])]
    report.write_report(changed, META, make_rows(), tmp_path, title=TITLE)
    assert (tmp_path / "figures/second.svg").read_bytes() != (folder / "figures/second.svg").read_bytes()
    report.write_report(make_sections(), META, make_rows(), tmp_path, title=TITLE)
    assert written(tmp_path) == FILES, "the second report replaces the first"
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    assert not {"date", "creator"} & set(re.findall(r"<dc:(\w+)", (folder / "figures/first.svg").read_text()))


def test_every_picture_and_table_has_its_data_beside_it_and_in_the_page(folder: Path) -> None:
    links = {
        attributes["download"]: attributes["href"] or ""
        for _, attributes in Page((folder / "report.html").read_text(encoding="utf-8")).tags
        if "download" in attributes
    }
    assert list(links) == ["first.csv", "claims.csv", "second.csv"]
    for section in make_sections():
        for shown in section.shown:
            kind = "figures" if isinstance(shown, Picture) else "tables"
            content = (folder / kind / f"{shown.name}.csv").read_bytes()
            head, _, tail = links[f"{shown.name}.csv"].partition(",")
            assert (head, base64.b64decode(tail)) == ("data:text/csv;base64", content)
            headings, *lines = csv.reader(content.decode().splitlines(keepends=True))
            if isinstance(shown, Picture):
                assert (folder / "figures" / f"{shown.name}.svg").read_bytes().startswith(b"<?xml")
                assert headings == list(shown.data[0])
                kinds = [type(value) for value in shown.data[0].values()]
                assert [[kind(text) for kind, text in zip(kinds, line, strict=True)] for line in lines] == [
                    list(row.values()) for row in shown.data
                ]
            else:
                assert [headings, *lines] == [shown.headings, *shown.lines]


def test_page_holds_everything_and_escapes_what_it_was_given(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    page, sections = Page(text), make_sections()
    assert page.open == [], "every element is closed"
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "i", "link", "iframe", "img"} & set(tags)
    assert page.texts["title"] == page.texts["h1"] == TITLE
    assert text.startswith("<!DOCTYPE html>\n")
    assert ("html", {"lang": "en"}) in page.tags
    assert any(tag == "meta" and attributes.get("name") == "viewport" for tag, attributes in page.tags)
    assert META["data"] in page.texts["dd"]
    assert "numpy 2, <b>torch</b>" in page.texts["dd"]
    for section in sections:
        assert section.title in page.texts["h2"]
        assert section.question in page.texts["p"]
        for sentence in section.findings:
            assert sentence in page.texts["li"]
    for number, name in (("Figure 1.", "first"), ("Table 1.", "claims"), ("Figure 2.", "second")):
        assert number in page.texts["b"]
        assert f"{name} {'| ' if name != 'claims' else ''}{HOSTILE}" in page.texts["figcaption"]
    (claims,) = [shown for shown in sections[0].shown if isinstance(shown, Table)]
    assert page.lines == [claims.headings, *claims.lines]
    scopes = [attributes.get("scope") for tag, attributes in page.tags if tag == "th"]
    assert scopes == ["col"] * 9 + ["row"] * 2
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert [(svg["role"], svg["aria-label"]) for svg in pictures] == [
        ("img", f"Figure {number}: {name} | {HOSTILE}") for number, name in ((1, "first"), (2, "second"))
    ]
    assert (text.count("<!DOCTYPE"), text.count("<?xml"), text.count("<!--")) == (1, 0, 0)


def test_ids_are_unique_and_what_is_named_is_there(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    tags = Page(text).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    values = [(name, value or "") for _, attributes in tags for name, value in attributes.items()]
    named = [value[1:] for name, value in values if name in ("href", "xlink:href") and value.startswith("#")]
    named += [anchor for _, value in values for anchor in re.findall(r"url\(#([^)]*)\)", value)]
    assert {"depth", "again", "about"} <= set(named), "the contents lead to every section"
    assert any(anchor.startswith("svg-second-") for anchor in named), "and a figure to its own clips and glyphs"
    assert set(named) <= set(ids)


def test_page_loads_nothing(folder: Path) -> None:
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                assert (value or "").startswith(("#", "data:")), f"<{tag} {name}={value}> leaves the page"
            assert "url(" not in (value or "").replace("url(#", ""), f"<{tag} {name}={value}> leaves the page"
    assert "@import" not in page.texts["style"]
    assert "url(" not in page.texts["style"]
    assert [tag for tag, _ in page.tags].count("style") == 1, "the style sheet of a figure would hold for all the page"


def test_summary_says_the_same_as_plain_text(folder: Path) -> None:
    text = (folder / "summary.md").read_text(encoding="utf-8")
    escaped = HOSTILE.replace("<", "\\<")
    lines = text.splitlines()
    assert lines[0] == f"# Steps {escaped}"
    assert [line for line in lines if line.startswith("## ")] == [f"## Depth {escaped}", "## Again", "## About the run"]
    assert f"- found {escaped}" in lines
    assert "- \\* a [link\\](http://x.example)" in lines
    assert f"- data: {escaped}" in lines
    assert "- versions: numpy 2, \\<b>torch\\</b>" in lines
    assert re.findall(r"!\[(.*?)\]\((.*?)\)", text) == [
        ("Figure 1", "figures/first.svg"), ("Figure 2", "figures/second.svg")]  # fmt: skip
    for name in re.findall(r"Data: `(.*?)`", text):
        assert (folder / name).is_file()
    wide = ["0.3100 [0.2900, 0.3300]"] * 6
    table = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    assert [[cell.strip() for cell in line] for line in table] == [
        ["claim \\<i>", "nmse \\| x", "verdict", *"abcdef"], ["---"] * 9, [escaped, "0.25 [0.2, 0.3]", "-", *wide],
        [("long " * 30).strip(), "-", "no opinion \\*at\\* \\`all\\`", *wide],
    ]  # fmt: skip


# Folding


def make_folded() -> list[Section]:
    """An answer that stands open, and two folded parts, the second with a folded table."""
    table = Table("long", "Many rows.", ["a"], [["1"], ["2"]], folded=True)
    return [
        Section("answer", "The answer", "", ["It falls."], [make_picture("opening")], ["small print"]),
        Section("part", "A part", "Why?", ["Because."], [make_picture("inside")], folded=True),
        Section("claims", "Claims", "Which?", ["Some."], [table], ["the books"], folded=True),
    ]


def test_the_answer_comes_before_the_contents_and_what_is_folded_after(tmp_path: Path) -> None:
    report.write_report(make_folded(), META, [], tmp_path, title=TITLE)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    order = ["It falls.", 'id="figure-opening"', "small print", "<nav", "</nav>", "<details", "Because.", "the books"]
    places = [text.index(mark) for mark in order]
    assert places == sorted(places)
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a" and "download" not in attributes]
    assert links == ["#part", "#claims", "#about"], "the answer needs no link: it is in sight"
    assert [tag for tag, _ in page.tags].count("details") == 3
    assert "script" not in [tag for tag, _ in page.tags]
    assert not re.search(r"<summary>(?:(?!</summary>).)*<(p|div)\b", text, re.DOTALL)
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert summary.count("<details>") == summary.count("</details>") == 2
    assert re.search(r"## A part\n\n\*Why\?\*\n\n<details>\n.*- Because\.\n.*</details>", summary, re.DOTALL)
    assert "**\n" not in summary.split("## A part")[0], "no empty question"


def test_a_figure_follows_light_and_dark_and_has_no_background(folder: Path) -> None:
    text = (folder / "figures/first.svg").read_text()
    assert text.count("prefers-color-scheme: dark") == 1
    assert '<g id="patch_1">' not in text or "fill: none" in text.split('<g id="patch_1">')[1][:300]


def test_names_that_no_file_can_have_once_are_errors(tmp_path: Path) -> None:
    table = Table("claims", "", ["a"], [["1"]])
    for sections, name in (
        ([Section("depth", "", "", shown=[table, table])], "'tables/claims' appears 2 times"),
        ([Section("depth", "", ""), Section("depth", "", "")], "'depth' appears 2 times"),
        ([Section("about", "", "")], "'about' appears 2 times"),
        (
            [Section("depth", "", "", shown=[Table("../claims", "", ["a"], [])])],
            r"'tables/\.\./claims' appears 1 times",
        ),
        ([Section('"><b', "", "")], "'\"><b' appears 1 times"),
    ):
        with pytest.raises(Error, match=f"^the name {name}, but a report needs"):
            report.write_report(sections, META, [], tmp_path / "report")
    assert not list(tmp_path.iterdir())


def test_what_no_text_file_can_hold_is_spelled_out(tmp_path: Path) -> None:
    odd = "\udcff"
    table = Table("claims", odd, [odd], [[odd]])
    report.write_report([Section("depth", odd, odd, [odd], [table])], {odd: odd}, [{"path": odd}], tmp_path)
    for name in ("report.html", "summary.md", "rows.csv", "tables/claims.csv"):
        assert "\\udcff" in (tmp_path / name).read_text(encoding="utf-8"), name


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("file", "a file is in the way"),
        ("file/report", "a file is in the way"),
        ("file/deep/report", "Not a d"),
    ],
)
def test_folder_that_cannot_be_made_is_an_error(where: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Error, match=f"^cannot write .*{where}: {reason}[^\n]*$") as caught:
        report.write_report([], META, make_rows()[:1], tmp_path / where)
    assert isinstance(caught.value.__cause__, OSError)
    assert ".proxsae-" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_disk_that_fills_up_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def write_until_full(path: Path, content: bytes) -> int:
        if path.name == "second.svg":
            write(path, content[:100])
            raise OSError(28, "No space left on device", str(path))
        return write(path, content)

    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "rows.csv").write_text("old")
    sections = make_sections()
    monkeypatch.setattr(Path, "write_bytes", write_until_full)
    for name in ("old", "new"):
        with pytest.raises(Error, match=f"cannot write .*/{name}: No space left on device"):
            report.write_report(sections, META, make_rows()[:1], tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "old", tmp_path / "old" / "rows.csv"]
    assert (tmp_path / "old" / "rows.csv").read_text() == "old"


@pytest.mark.parametrize(
    ("taken", "reason"),
    [("tables/claims.csv/", "Is a directory"), ("report.html/", "Is a directory"), ("tables", "a file is in the way")],
)
def test_a_name_that_is_taken_is_named_and_nothing_is_written(taken: str, reason: str, tmp_path: Path) -> None:
    if taken.endswith("/"):
        (tmp_path / taken).mkdir(parents=True)
    else:
        (tmp_path / taken).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    sections = [Section("depth", "", "", shown=[Table("claims", "", ["a"], [["1"]])])]
    with pytest.raises(Error, match=f"cannot write .*/{taken.rstrip('/')}: {reason}"):
        report.write_report(sections, META, make_rows()[:1], tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_draft_lies_on_the_disk_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file cannot be moved into a mount from outside, and the folder, or what it links to, may be a mount.
    (tmp_path / "mount").mkdir()
    (tmp_path / "link").symlink_to("mount")
    move, drafts = os.replace, []

    def move_and_tell(source: Path, target: Path) -> None:
        drafts.append(source.resolve())
        move(source, target)

    monkeypatch.setattr(os, "replace", move_and_tell)
    report.write_report(make_sections(), META, make_rows()[:1], tmp_path / "link")
    assert len(drafts) == len(FILES)
    assert all((tmp_path / "mount") in draft.parents for draft in drafts)
    assert written(tmp_path / "mount") == FILES
