"""The report as Markdown, for a lab log: the same sentences and tables, and the names of the figures' files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from proxsae.report.rows import Row
from proxsae.report.section import Picture, Section, Table

# What Markdown would take for markup; a bracket or a dash alone is none, and stays readable.
_MARKUP = re.compile(r"[\\`*<|~]|^[#>+=-](?=\s)|&(?=#?\w+;)|](?=[(\[:])")


_OPEN = ("<details>", "<summary>Show</summary>")


def stem(shown: Picture | Table) -> str:
    """Return the name of the files of a picture or a table, without the ending."""
    return f"{'figures' if isinstance(shown, Picture) else 'tables'}/{shown.name}"


def labels(sections: Sequence[Section]) -> dict[str, str]:
    """Return `Figure 1`, `Table 1` and so on by the name of the files, counted through the report."""
    counts: Counter[str] = Counter()
    named = {}
    for shown in (shown for section in sections for shown in section.shown):
        kind = "Figure" if isinstance(shown, Picture) else "Table"
        counts[kind] += 1
        named[stem(shown)] = f"{kind} {counts[kind]}"
    return named


def value_text(value: Any) -> str:
    """Return a value of the run's description as text: what a list holds, one after the other."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def markdown(sections: Sequence[Section], meta: Row, title: str) -> str:
    """Return the report as Markdown; it names the files of the figures, which lie beside it.

    What is folded on the page is in `<details>`, which GitHub and Sphinx fold too.
    """
    named = labels(sections)
    blocks = [f"# {_plain(title)}"]
    for section in sections:
        blocks += [f"## {_plain(section.title)}", f"*{_plain(section.question)}*" if section.question else ""]
        inside = ["\n".join(f"- {_plain(sentence)}" for sentence in section.findings)]
        for shown in section.shown:
            inside += _shown(shown, named[stem(shown)])
        inside += [_plain(note) for note in section.notes]
        blocks += [*_OPEN, *inside, "</details>"] if section.folded else inside
    blocks += ["## About the run", "\n".join(f"- {_plain(key)}: {_plain(value_text(v))}" for key, v in meta.items())]
    blocks.append("Every measurement is in `rows.csv` and in `rows.json`.")
    return "\n\n".join(filter(None, blocks)) + "\n"


def _shown(shown: Picture | Table, label: str) -> Iterator[str]:
    if isinstance(shown, Picture):
        yield f"![{label}]({stem(shown)}.svg)"
    yield f"**{label}.** {_plain(shown.caption)} Data: `{stem(shown)}.csv`."
    if isinstance(shown, Table):
        lines = [shown.headings, ["---"] * len(shown.headings), *shown.lines]
        yield "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _plain(text: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))
