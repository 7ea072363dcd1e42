"""The report as one self-contained web page, light and dark, for screen, phone and print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from proxsae.report.rows import COLUMNS, Row, cell, findings, groups

_CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --page: #fff; --line: #d0d7de;
  --head: #f3f5f7 }
@media print { .scroll { max-height: none !important } }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --soft: #a3acb5; --page: #14181d; --line: #3a424b; --head: #20262d } }
body { margin: 0; color: var(--ink); background: var(--page); font: 1rem/1.5 system-ui, sans-serif }
main { margin: 0 auto; max-width: 76rem; padding: 1rem }
figure { margin: 0 } figcaption { margin-top: 1rem } figure .scroll { background: #fff }
svg { display: block; box-sizing: border-box; padding: .5rem; width: 100%; min-width: 48rem; height: auto }
.scroll { overflow: auto; max-height: 90vh; border: 1px solid var(--line); border-radius: 6px }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap }
th:first-child, td:nth-child(2), th:nth-child(2) { text-align: left }
thead th { position: sticky; top: 0; background: var(--head); vertical-align: top }
thead span { display: block; color: var(--soft); font-weight: normal }
tbody tr:first-child > * { border-top: 1px solid var(--line) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem }
dt { font-weight: 600 } dd { margin: 0; overflow-wrap: anywhere } .formula { font-size: 1.15rem }
ul { padding-left: 1.2rem } sub, sup { line-height: 0 }
"""


def html(rows: Sequence[Row], meta: Row, svg: str) -> str:
    """Return the whole page, with the figure inlined; it loads nothing from anywhere."""

    def pairs(items: Iterable[tuple[str, Any]]) -> str:
        texts = ((key, ", ".join(map(str, v)) if isinstance(v, list | tuple) else str(v)) for key, v in items)
        return "\n".join(f"<dt>{escape(key)}</dt><dd>{escape(text)}</dd>" for key, text in texts)

    def line(row: Row) -> str:
        first, *others = (escape(cell(row.get(c.key))) for c in COLUMNS)
        return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>\n'

    head = "".join(f'<th scope="col">{escape(c.heading)}<span>{escape(c.unit)}</span></th>' for c in COLUMNS)
    body = "".join(f"<tbody>\n{''.join(map(line, group))}</tbody>\n" for group in groups(rows))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>proxsae depth: {escape(str(meta.get("data", "not named")))}</title>
<style>{_CSS}</style>
</head>
<body>
<main>
<h1>What more encoder steps change</h1>
<p>The encoder of each autoencoder is one proximal-gradient step. Here it takes more.</p>
<figure>
<div class="scroll" tabindex="0" role="region" aria-label="Figure: nmse against steps and against cost">
{svg}</div>
<figcaption><ul>
{"".join(f"<li>{escape(sentence)}</li>" for sentence in findings(rows))}
</ul></figcaption>
</figure>
<h2>How to read this</h2>
<p class="formula">z<sup>+</sup> = prox<sub>&mu;R</sub>(z &minus; &mu; D<sup>T</sup>(D z + b &minus; x))</p>
<p>x is a row of data, z its code, D the dictionary, b the bias, R the penalty and &mu; the step size mu.</p>
<dl>
{pairs((c.heading, c.meaning) for c in COLUMNS)}
</dl>
<h2>Measurements</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Measurements">
<table>
<thead><tr>{head}</tr></thead>
{body}</table>
</div>
<h2>About the run</h2>
<dl>
{pairs(meta.items())}
</dl>
</main>
</body>
</html>
"""
