"""The report as one self-contained web page, light and dark, for screen, phone and print."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

from proxsae.report.rows import Row, as_csv, table_csv
from proxsae.report.section import Picture, Section, Table
from proxsae.report.summary import labels, stem, value_text

# A dark page inverts its figures and turns their hues back: what was told apart stays so, also white on a dark cell
# of a heat map, which no exchange of single colours would keep.  --page in the dark is white as inverted.
_CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --page: #fff; --line: #d0d7de;
  --head: #f3f5f7; --link: #0a58a8 }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #a8adb3; --page: #1a1a1a; --line: #444; --head: #262626; --link: #7cb8f2 }
  svg { filter: invert(.9) hue-rotate(180deg) } }
* { box-sizing: border-box }
body { margin: 0; color: var(--ink); background: var(--page); font: 1rem/1.5 system-ui, sans-serif;
  overflow-wrap: break-word }
main { margin: 0 auto; max-width: 74rem; padding: 1rem }
p, ul, nav, figcaption, dl { max-width: 56rem }
h1 { line-height: 1.2; margin: .5rem 0 1rem } a { color: var(--link) }
h2 { line-height: 1.25; margin: 3rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line) }
.question, .note { color: var(--soft) } .question { font-style: italic; margin: 0 0 1rem } .note { font-size: .9rem }
ul, ol { padding-left: 1.4rem } li { margin: .3rem 0 }
nav { background: var(--head); border-radius: 6px; padding: .3rem 1rem; margin-bottom: 1.2rem; max-width: none }
nav ol { display: flex; flex-wrap: wrap; gap: 0 1.2rem; list-style: none; margin: .2rem 0; padding: 0 }
section:first-of-type > h2 { margin-top: 0; padding-top: 0; border: 0 }
details > summary { cursor: pointer } summary > h2 { display: inline; border: 0; padding: 0 }
.part > summary { margin-top: 1.5rem; padding-top: 1rem; border-top: 1px solid var(--line) }
.part > summary > .question { display: block; margin: .2rem 0 0 1.1rem }
.body { scroll-margin-top: 6rem; padding-top: .2rem }
figure { margin: 2rem 0 } figcaption { font-size: .9rem; margin: .5rem 0 }
figcaption b { margin-right: .3rem } .data { color: var(--soft) }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px }
.picture .scroll { max-width: calc(var(--width) * .111rem) }
svg { display: block; width: 100%; height: auto; padding: .4rem; min-width: calc(var(--width) * .066rem) }
svg * { stroke-linejoin: round; stroke-linecap: butt }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: left; vertical-align: top; white-space: nowrap }
thead th { background: var(--head); vertical-align: bottom; white-space: normal }
tbody th { font-weight: 600 } tbody tr { border-top: 1px solid var(--line) }
.number { text-align: right } tbody .prose { min-width: 14rem; white-space: normal; font-weight: normal }
dl { display: grid; grid-template-columns: minmax(5rem, max-content) 1fr; gap: .2rem 1rem }
dt { font-weight: 600 } dd { margin: 0; overflow-wrap: anywhere }
@media (max-width: 30rem) { dl { display: block } dd { margin-bottom: .6rem } }
@media print {
  @page { margin: 15mm } :root { color-scheme: light; font-size: 10pt }
  main, p, ul, figcaption, dl { max-width: none } main { padding: 0 } nav, .data a { display: none }
  h2, .table figcaption { break-after: avoid } .picture, figcaption, tr, li { break-inside: avoid }
  svg { min-width: 0; padding: 0 } .picture .scroll { max-width: calc(var(--width) * 1pt) }
  .scroll { overflow: visible; border: 0 } table { font-size: 8pt }
  details::details-content { content-visibility: visible; display: block; block-size: auto }
  .part > summary { list-style: none; break-after: avoid } .fold > summary { display: none }
  th, td { padding: .15rem .3rem; white-space: normal } tbody .prose { min-width: 0 } }
"""
_NUMBER = re.compile(r"[-+\u2212\u00b1\u00d7]?\.?\d")


def html(sections: Sequence[Section], meta: Row, title: str, drawn: Mapping[str, bytes]) -> str:
    """Return the whole page; it loads nothing from anywhere.  `drawn` is the SVG of each picture, by its name."""
    named = labels(sections)
    first = next((i for i, section in enumerate(sections) if section.folded), 0)
    parts = [_section(section, named, drawn) for section in sections]
    entries = [*((section.anchor, section.title) for section in sections[first:]), ("about", "About the run")]
    contents = "".join(f'<li><a href="#{escape(anchor)}">{escape(text)}</a></li>\n' for anchor, text in entries)
    pairs = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value_text(value))}</dd>\n" for key, value in meta.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{"".join(parts[:first])}<nav aria-label="Contents"><ol>
{contents}</ol></nav>
{"".join(parts[first:])}<section>
<h2 id="about">About the run</h2>
<dl>
{pairs}</dl>
<p>Every measurement is in rows.csv and in rows.json, which lie beside this page.</p>
</section>
</main>
</body>
</html>
"""


def _section(section: Section, named: Mapping[str, str], drawn: Mapping[str, bytes]) -> str:
    findings = "".join(f"<li>{escape(sentence)}</li>\n" for sentence in section.findings)
    shown = "".join(
        _picture(item, named[stem(item)], drawn[item.name])
        if isinstance(item, Picture)
        else _table(item, named[stem(item)])
        for item in section.shown
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>\n' for note in section.notes)
    body = f"{f'<ul>{chr(10)}{findings}</ul>{chr(10)}' if findings else ''}{shown}{notes}"
    anchor, heading = f'id="{escape(section.anchor)}"', escape(section.title)
    tag = "span" if section.folded else "p"  # a summary holds no paragraphs
    asked = f'<{tag} class="question">{escape(section.question)}</{tag}>\n' if section.question else ""
    if not section.folded:
        return f"<section>\n<h2 {anchor}>{heading}</h2>\n{asked}{body}</section>\n"
    # A link to what lies inside of <details> opens it, one to its summary would not: so the anchor is that of the body.
    return f"""<section><details class="part">
<summary><h2>{heading}</h2>
{asked}</summary>
<div {anchor} class="body">
{body}</div>
</details></section>
"""


def _picture(picture: Picture, label: str, svg: bytes) -> str:
    width = 72 * picture.figure.get_figwidth()  # in points, as the SVG has it
    return f"""<figure class="picture" id="figure-{escape(picture.name)}" style="--width: {width:g}">
<div class="scroll" tabindex="0" role="region" aria-label="{label}">
{_inline(svg, picture.name, f"{label}: {picture.caption}")}</div>
{_caption(picture, label, as_csv(picture.data))}</figure>
"""


def _inline(svg: bytes, name: str, label: str) -> str:
    """The SVG as a part of the page: without heading, comments and style sheet, which would hold for all the page."""
    text = svg[svg.index(b"<svg") :].decode()
    text = re.sub(r"<!--.*?-->\s*|<style.*?</style>\s*", "", text, flags=re.DOTALL)
    # Two figures may use the same ids, and a page that has an id twice draws a part of the wrong one.
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1svg-{name}-", text)
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-label="{escape(label)}"'
    return re.sub(r"<svg .*? (?=viewBox=)", lambda _: f"{head} ", text, count=1)


def _table(table: Table, label: str) -> str:
    columns = list(zip(*table.lines, strict=True)) or [()] * len(table.headings)
    kinds = [_kind(column) for column in columns]

    def line(cells: Sequence[str]) -> str:
        first, *others = (f'class="{kind}">{escape(text)}' for kind, text in zip(kinds, cells, strict=True))
        return f'<tr><th scope="row" {first}</th>{"".join(f"<td {other}</td>" for other in others)}</tr>\n'

    head = "".join(
        f'<th scope="col" class="{kind}">{escape(text)}</th>' for kind, text in zip(kinds, table.headings, strict=True)
    )
    fold = (f'<details class="fold"><summary>{len(table.lines)} rows</summary>\n', "</details>\n")
    before, after = fold if table.folded else ("", "")
    return f"""<figure class="table" id="table-{escape(table.name)}">
{_caption(table, label, table_csv(table.headings, table.lines))}{before}<div class="scroll" tabindex="0" role="region" \
aria-label="{label}">
<table>
<thead><tr>{head}</tr></thead>
<tbody>
{"".join(map(line, table.lines))}</tbody>
</table>
</div>
{after}</figure>
"""


def _kind(column: Sequence[str]) -> str:
    """How a column is set: numbers to the right, so that digits line up; long text in several lines."""
    filled = [text for text in column if text not in ("", "-")]
    if any(len(text) > 30 for text in filled):
        return "prose"
    return "number" if filled and all(map(_NUMBER.match, filled)) else "word"


def _caption(shown: Picture | Table, label: str, data: bytes) -> str:
    path = f"{stem(shown)}.csv"
    link = f'<a download="{escape(shown.name)}.csv" href="data:text/csv;base64,{b64encode(data).decode()}">CSV</a>'
    return f"""<figcaption><b>{label}.</b> {escape(shown.caption)}
<span class="data">Data: {escape(path)} {link}</span></figcaption>
"""
