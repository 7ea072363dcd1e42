"""The sections of a depth study, each from the rows of its part."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from proxsae.report.section import Section
from proxsae.studies.parts.apart import section as apart
from proxsae.studies.parts.bounds import section as bounds
from proxsae.studies.parts.claims import section as claims
from proxsae.studies.parts.depth import section as depth
from proxsae.studies.parts.recovery import section as recovery
from proxsae.studies.parts.signs import section as signs
from proxsae.studies.task import Row
from proxsae.studies.words import GLOSSARY

TITLE = "What more encoder steps change"
PARTS: dict[str, Callable[[list[Row]], Section]] = {
    "depth": depth.section,
    "apart": apart.section,
    "recovery": recovery.section,
    "stability": recovery.stability_section,
    "signs": signs.section,
    "bounds": bounds.section,
}


def sections(
    rows: Sequence[Row], command: str, packaged: bool = True, done: tuple[int, int] | None = None
) -> list[Section]:
    """One for each part that has rows; before them the claims that they test, and what words mean.

    `command` is what repeats the study.
    """
    parts = {name: [row for row in rows if row["part"] == name] for name in PARTS}
    words = Section("words", "Words", "What is meant by the names on this page?", GLOSSARY)
    return [claims.section(rows, command), words, *(PARTS[name](part) for name, part in parts.items() if part)]
