"""Check a built site: no page loads anything from elsewhere, and every link inside it leads somewhere.

    python docs/check_site.py docs/_build

Links to other sites are left alone.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {"script": "src", "link": "href", "img": "src", "source": "src", "iframe": "src", "object": "data",
         "embed": "src", "video": "src", "audio": "src", "image": "href", "use": "href"}  # fmt: skip
IN_CSS = re.compile(r"""(?:@import\s*|url\(\s*)["']?(?:https?:)?//""")


class Page(HTMLParser):
    """What a page loads, where it links to, and the anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the addresses and ids of one tag."""
        given = {name: value for name, value in attrs if value is not None}
        if tag in LOADS and LOADS[tag] in given:
            self.loads.append(given[LOADS[tag]])
        self.loads += [part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()]
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.anchors += [given[key] for key in ("id", "name") if key in given and (key == "id" or tag == "a")]


def problems(site: Path) -> list[str]:
    """One sentence for each fault of the site in a folder."""
    pages = {file.resolve(): Page(file.read_text(encoding="utf-8")) for file in sorted(site.rglob("*.html"))}
    found = [] if pages else [f"{site} holds no page"]
    for file, page in pages.items():
        name = file.relative_to(site.resolve())
        for address in page.loads + page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if address in page.loads and parts.scheme != "data":
                    found.append(f"{name} loads {address}")
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if not target.is_file():
                found.append(f"{name} points to {address}, which does not exist")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{name} points to {address}, and that page has no such anchor")
        twice = sorted({anchor for anchor in page.anchors if page.anchors.count(anchor) > 1})
        found += [f"{name} has the anchor {anchor} twice" for anchor in twice]
    for file in sorted(site.rglob("*.css")):
        if IN_CSS.search(file.read_text(encoding="utf-8")):
            found.append(f"{file.relative_to(site)} loads from elsewhere")
    return found


def main(arguments: list[str]) -> int:
    """Print what is wrong, and return 1 if anything is."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    found = problems(Path(arguments[0]))
    print("\n".join(found) or "the site is whole, and loads nothing from elsewhere")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
