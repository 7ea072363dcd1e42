"""The sections of a depth study: the answer, one for each part that has rows, the claims, and what words mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from proxsae.report.section import Section
from proxsae.studies.opening import opening
from proxsae.studies.parts.apart import section as apart
from proxsae.studies.parts.bounds import section as bounds
from proxsae.studies.parts.claims import section as claims
from proxsae.studies.parts.depth import section as depth
from proxsae.studies.parts.encoders import section as encoders
from proxsae.studies.parts.model import section as model
from proxsae.studies.parts.recovery import section as recovery
from proxsae.studies.parts.signs import section as signs
from proxsae.studies.parts.stability import section as stability
from proxsae.studies.statistics import pick
from proxsae.studies.task import Row
from proxsae.studies.words import GLOSSARY

TITLE = "What more encoder steps change"
PARTS: dict[str, Callable[[list[Row]], Section]] = {
    "depth": depth.section,
    "model": model.section,
    "apart": apart.section,
    "encoders": encoders.section,
    "recovery": recovery.section,
    "stability": stability.section,
    "signs": signs.section,
    "bounds": bounds.section,
}


def sections(
    rows: Sequence[Row],
    command: str,
    packaged: bool = True,
    done: tuple[int, int] | None = None,
    remarks: Sequence[str] = (),
) -> list[Section]:
    """Return the report of a study, of all of its rows or of those that there are by now: the answer comes first.

    command    repeats one part with --parts PART added to it; "" where no command does
    packaged   whether the rows are of the packaged data: then claims have their sources in the literature beside them
    done       how many tasks have ended, of how many; the answer says so while some are left
    remarks    on the SAE and the data, for the notes of the answer
    """
    told = [PARTS[name](part) for name in PARTS if (part := pick(rows, part=name))]
    words = Section("words", "Words", "What do the names on this page mean?", GLOSSARY)
    answer, *parts = opening(rows, told, done, remarks)
    claimed = claims.section(rows, command, packaged)
    last = [claimed, words] if claimed.shown else [words]
    return [answer, *(replace(section, folded=True) for section in [*parts, *last])]
