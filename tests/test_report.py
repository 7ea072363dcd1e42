"""The report tells what the rows say, the same way every time, and leaves no half-written file behind."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proxsae import report
from proxsae.conventions import Error

META: dict[str, Any] = {
    "data": "<script>alert('x')</script> & \"more\" $_{$ \u6570",
    "rows": 4096,
    "versions": ["numpy 2", "<b>torch</b>"],
    "seconds": 12.5,
}
FILES = ["depth.png", "depth.svg", "report.html", "rows.csv", "rows.json"]


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
    report.write_report(make_rows(), META, made)
    return made


# Table


def test_table_is_aligned_and_grouped() -> None:
    lines = report.table(make_rows()).splitlines()
    assert lines[0].split() == [column.heading for column in report.COLUMNS]
    assert lines.count("") == 12, "one blank line above each of the 12 groups"
    body = [line for line in lines[2:] if line]
    assert len(body) == 36
    assert body[0].split()[:5] == ["relu", "lipschitz", "1", "0.3100", "0.6590"]
    assert len({len(line) for line in body}) == 1, "every number ends in the column of its heading"
    assert lines[0].index("nmse") + 4 == body[0].index("0.3100") + 6


@pytest.mark.parametrize("value", [-1.2345678e-300, 1.23456e9, math.nan, None, 0.25])
def test_table_is_at_most_110_wide(value: float | None) -> None:
    wild = {column.key: value for column in report.COLUMNS[4:]}
    row = make_row("jumprelu", "lipschitz", 16, 0.123456)
    for rows in ([row | wild], make_rows()):
        text = report.table(rows)
        assert max(map(len, text.splitlines())) <= 110
        assert "..." not in text
    assert report.table([]).count("\n") == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.2, "0.2000"), (31.0, "31.00"), (1234.0, "1234"), (0.00123456, "0.001235"), (0.000123456, "1.235e-4"),
     (123456.0, "1.235e5"), (9999.9, "1.000e4"), (-0.5, "-0.5000"), (0.0, "0"), (math.nan, "nan"),
     (None, "-"), (16, "16"), (np.float32(0.25), "0.2500")],
)  # fmt: skip
def test_numbers_have_four_digits(value: Any, text: str) -> None:
    shown = report.table([make_row("topk", "exact", 1, 0.5, cost=value)]).splitlines()[-1].split()
    assert shown[10] == text


# CSV and JSON


def test_csv_gives_every_number_back(tmp_path: Path) -> None:
    rows = make_rows()
    rows[0]["nmse"] = np.float64(0.1) + np.float64(0.2)
    rows[1]["steps"] = np.int64(2)
    report.write_csv(rows, tmp_path / "rows.csv")
    text = (tmp_path / "rows.csv").read_bytes().decode()
    assert text.endswith("\n")
    assert "\r" not in text
    read = list(csv.DictReader(text.splitlines()))
    assert list(read[0]) == [column.key for column in report.COLUMNS]
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
    report.write_json(rows, meta, tmp_path / "rows.json")
    text = (tmp_path / "rows.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    read = json.loads(text, parse_constant=lambda token: pytest.fail(f"{token} is not JSON"))
    rows[1] |= {"objective": None, "cost": None}
    assert read == {"meta": META | {"bound": None, "path": "here", "sizes": [1, 2]}, "rows": rows}
    assert list(read["rows"][0]) == list(rows[0])


def test_csv_keeps_a_quantity_it_has_not_heard_of(tmp_path: Path) -> None:
    report.write_csv([make_row("topk", "exact", 1, 0.5), make_row("topk", "exact", 2, 0.4, new=1 / 7)],
                     tmp_path / "rows.csv")  # fmt: skip
    first, second = csv.DictReader((tmp_path / "rows.csv").read_text().splitlines())
    assert (first["new"], float(second["new"])) == ("", 1 / 7)


def test_csv_and_json_that_cannot_be_written_are_errors(tmp_path: Path) -> None:
    with pytest.raises(Error, match=r"cannot write .*/none/rows\.csv: No such file"):
        report.write_csv(make_rows(), tmp_path / "none" / "rows.csv")
    with pytest.raises(Error, match=r"cannot write .*: Is a directory"):
        report.write_json(make_rows(), META, tmp_path)


# Findings


def test_findings_say_what_the_rows_say() -> None:
    rows = [
        make_row("topk", "lipschitz", 1, 0.2), make_row("topk", "lipschitz", 16, 0.25, l0=40.0),
        make_row("topk", "exact", 1, 0.2), make_row("topk", "exact", 16, 0.1),
        make_row("relu", "exact", 16, 0.3), make_row("relu", "exact", 1, 0.3),
        make_row("relu", "exact", 4, 0.2),
        make_row("relu", "refit", 1, 0.3), make_row("relu", "refit", 16, math.nan),
        make_row("jumprelu", "refit", 4, 0.5),
    ]  # fmt: skip
    topk, relu, jumprelu = report.findings(rows)
    rises, falls = topk.split("; ")
    assert rises == ("topk: from 1 to 16 lipschitz steps nmse rises from 0.2000 to 0.2500 "
                     "(x1.25, 31.00 encoder products, l0 from 32.00 to 40.00)")  # fmt: skip
    assert falls == ("from 1 to 16 exact steps nmse falls from 0.2000 to 0.1000 "
                     "(x0.5, 31.00 encoder products).")  # fmt: skip
    stays, diverges = relu.split("; ")
    assert "from 1 to 16 exact steps nmse stays at 0.3000" in stays
    assert "lowest 0.2000 at steps=4" in stays
    assert "rises from 0.3000 to inf (31.00 encoder products)" in diverges
    assert jumprelu == "jumprelu: refit was measured at one depth only, nmse 0.5000 at steps=4."


# Figure


def test_figure_shows_every_row_by_depth_and_by_cost() -> None:
    rows = make_rows()
    drawn = report.figure(rows, META)
    assert len(drawn.axes) == 8
    for place, ax in enumerate(drawn.axes):
        sae, key = ("relu", "jumprelu", "topk", "abstopk")[place % 4], ("steps", "cost")[place // 4]
        mine = [row for row in rows if row["sae"] == sae]
        assert [x for line in ax.lines for x in np.asarray(line.get_xdata())] == [row[key] for row in mine]
        assert [y for line in ax.lines for y in np.asarray(line.get_ydata())] == [row["nmse"] for row in mine]
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
        assert ax.get_title() == (sae if place < 4 else "")
        for style in ("get_color", "get_marker", "get_linestyle"):
            assert len({getattr(line, style)() for line in ax.lines}) == 3, "rules differ in each way"
    legend = drawn.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["lipschitz", "exact", "refit"]
    assert [line.get_color() for line in legend.get_lines()] == [line.get_color() for line in ax.lines]


def test_a_rule_looks_the_same_in_every_figure() -> None:
    rows = make_rows()
    whole, part = report.figure(rows, {}), report.figure(rows[6:9], {})
    assert part.axes[0].lines[0].get_color() == whole.axes[0].lines[2].get_color()


@pytest.mark.parametrize(
    "values",
    [(0.5,), (0.2, 0.21), (1e-9, 1e6), (math.nan,), (math.inf, 0.0, -1.0), (0.0, math.inf, None, 0.3)],
)
def test_figure_survives_strange_numbers(values: tuple[float | None, ...], tmp_path: Path) -> None:
    rows = [make_row("topk", "own", 2**i, value) for i, value in enumerate(values)]
    rows += [make_row("relu", "own", 1, math.nan)]
    report.write_report(rows, META, tmp_path)  # warnings are errors
    ax = report.figure(rows, META).axes[0]
    low, high = ax.get_ylim()
    if any(value is not None and 0 < value < math.inf for value in values):
        assert any(low <= tick <= high for tick in ax.get_yticks()), "an axis without a number says nothing"


def test_figure_needs_rows_and_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(Error, match="there are no rows"):
        report.write_report([], META, tmp_path / "report")
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Error, match=r"matplotlib is missing: pip install 'proxsae\[study\]'"):
        report.write_report(make_rows(), META, tmp_path / "report")
    assert not list(tmp_path.iterdir())
    assert report.table(make_rows())


# The whole report


def test_report_is_five_files_and_nothing_else(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["report"]
    assert (folder / "depth.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((folder / "rows.json").read_text())["rows"]) == 36


def test_same_rows_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    report.write_report(make_rows()[:1], META, tmp_path)
    assert (tmp_path / "depth.svg").read_bytes() != (folder / "depth.svg").read_bytes()
    report.write_report(make_rows(), META, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES, "the second report replaces the first"
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    assert "<dc:date>" not in (folder / "depth.svg").read_text()


def test_page_holds_all_rows_and_escapes_what_it_was_given(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [], "every element is closed"
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "b", "link", "iframe", "img"} & set(tags)
    assert page.texts["title"] == f"proxsae depth: {META['data']}"
    assert META["data"] in page.texts["dd"]
    assert "numpy 2, <b>torch</b>" in page.texts["dd"]
    assert text.startswith("<!DOCTYPE html>\n")
    assert ("html", {"lang": "en"}) in page.tags
    assert any(tag == "meta" and attributes.get("name") == "viewport" for tag, attributes in page.tags)
    assert tags.count("svg") == 1
    assert (text.count("<!DOCTYPE"), text.count("<?xml")) == (1, 0), "the XML heading stays outside"
    shown = [line for line in report.table(make_rows()).splitlines()[3:] if line]
    assert page.lines[1:] == [line.split() for line in shown]
    assert page.lines[0] == [c.heading + c.unit for c in report.COLUMNS]
    for sentence in report.findings(make_rows()):
        assert sentence in page.texts["li"]
    for column in report.COLUMNS:
        assert column.meaning in page.texts["dd"]


def test_page_escapes_rows(tmp_path: Path) -> None:
    report.write_report([make_row("<i>", "a&b", 1, 0.5)], {"<u>": "\udcff"}, tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not {"i", "u"} & {tag for tag, _ in page.tags}
    assert page.lines[1][:2] == ["<i>", "a&b"]


def test_page_loads_nothing(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    for tag, attributes in Page(text).tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                assert (value or "").startswith("#"), f"<{tag} {name}={value}> leaves the page"
            assert "url(" not in (value or "").replace("url(#", ""), f"<{tag} {name}={value}> leaves the page"
    assert "@import" not in text
    assert "url(" not in Page(text).texts["style"]


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
        report.write_report(make_rows()[:1], META, tmp_path / where)
    assert isinstance(caught.value.__cause__, OSError)
    assert ".proxsae-" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_disk_that_fills_up_leaves_the_old_report(folder: Path, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    write = Path.write_bytes

    def write_until_full(path: Path, content: bytes) -> int:
        if path.name == "depth.svg":
            write(path, content[:100])
            raise OSError(28, "No space left on device", str(path))
        return write(path, content)

    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "rows.csv").write_text("old")
    monkeypatch.setattr(Path, "write_bytes", write_until_full)
    for name in ("old", "new"):
        with pytest.raises(Error, match=f"cannot write .*/{name}: No space left on device"):
            report.write_report(make_rows()[:1], META, tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "old", tmp_path / "old" / "rows.csv"]
    assert (tmp_path / "old" / "rows.csv").read_text() == "old"


def test_a_name_that_is_taken_is_named(tmp_path: Path) -> None:
    (tmp_path / "depth.png").mkdir()
    with pytest.raises(Error, match=r"cannot write .*/depth\.png: Is a directory"):
        report.write_report(make_rows()[:1], META, tmp_path)
    assert not list(tmp_path.glob(".proxsae-*"))


def test_draft_lies_on_the_disk_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file cannot be moved into a mount from outside, and the folder, or what it links to, may be a mount.
    (tmp_path / "mount").mkdir()
    (tmp_path / "link").symlink_to("mount")
    move, drafts = os.replace, []

    def move_and_tell(source: Path, target: Path) -> None:
        drafts.append(source.parent.parent.resolve())
        move(source, target)

    monkeypatch.setattr(os, "replace", move_and_tell)
    report.write_report(make_rows()[:1], META, tmp_path / "link")
    assert drafts == [tmp_path / "mount"] * 5
    assert sorted(path.name for path in (tmp_path / "mount").iterdir()) == FILES
