"""Write what is generated in the docs: docs/statements.md, and the box under every statement in docs/theory.

    python docs/write_statements.py

Run it after a change to a statement, a law, a planted error or a machine proof; a test fails until it has been run.
"""

import re
from pathlib import Path

from proxsae import statements

DOCS = Path(__file__).parent
BOX = re.compile(r"\n*:::\{admonition\} Where it stands\n.*?\n:::\n", re.S)


def with_boxes(text: str) -> str:
    """A theory page with a fresh box at the end of every statement's proof."""
    head, *sections = re.split(r"^(?=\([a-z0-9-]+\)=\n)", BOX.sub("\n", text), flags=re.M)
    return head + "".join(with_box(section) for section in sections)


def with_box(section: str) -> str:
    """The section of a statement with its box after the paragraph on the literature; other sections as they are."""
    label = section[1 : section.index(")=")]
    if label not in statements.STATEMENTS:
        return section
    box = statements.box(statements.STATEMENTS[label])
    found = re.search(r"\*\*(Literature|What is true instead)\.\*\*.*?(?=\n\n|\Z)", section, re.S)
    end = found.end() if found else len(section.rstrip())
    return f"{section[:end].rstrip()}\n\n{box}{section[end:].rstrip() and chr(10) + section[end:].strip()}\n\n"


def pages() -> dict[Path, str]:
    """Every generated file with its text as it should be."""
    theory = sorted({s.page for s in statements.STATEMENTS.values()})
    fresh = {DOCS / "theory" / f"{page}.md": "" for page in theory}
    for path in fresh:
        fresh[path] = with_boxes(path.read_text(encoding="utf-8")).rstrip() + "\n"
    return {DOCS / "statements.md": statements.markdown(), **fresh}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
