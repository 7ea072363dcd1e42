"""The claims about these SAEs that the rows can test, each with what was measured and a verdict.

A verdict is "holds" or "does not hold" only where what was measured leaves no doubt at 95 %; else it is "undecided
here".  What needs a language model to run, or a judge to read, cannot be tested on hidden states; what a model in the
loop can test is tested where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from proxsae.report.section import Section, Table
from proxsae.studies.parts.claims.statistics import CANNOT, NO, OPEN, YES, longest, verdict
from proxsae.studies.parts.claims.table import BIBLIOGRAPHY, CLAIMS, IN_MODEL, PAPER, UNTESTABLE
from proxsae.studies.statistics import pick
from proxsae.studies.task import Row
from proxsae.studies.words import counted

VERDICTS = (YES, NO, OPEN, CANNOT)
CAPTION = (
    "Decided claims first. Brackets are Student's 95 % intervals over seeds; a verdict needs all of one on one side of "
    "the claim, at densities that differ by 5 % at most; on stability it also needs the agreement of all pairs of five "
    "seeds, on theorems every measurement"
)
CONCEPTS = ", on which SAE tells two-sided concepts apart Holm's test over words"


class Tested(NamedTuple):
    """One row of the table: what is said, by whom, what was measured, whether it holds, and which part shows it."""

    text: str
    source: str
    measured: str
    verdict: str
    part: str


def section(rows: Sequence[Row], command: str, packaged: bool = True) -> Section:
    """All claims; `command`, where there is one, repeats a row with its part as --parts."""
    found, literature = claims(rows, packaged), packaged or _in_model(rows)
    columns = {"claim": "text", "verdict": "verdict", "measured here": "measured", "said or asked by": "source",
               "part": "part"}  # fmt: skip
    if not literature:  # who says or asks it is a matter of the literature, not of the user's rows
        del columns["said or asked by"]
    lines = [[str(getattr(claim, field)) for field in columns.values()]
             for verdict in VERDICTS for claim in found if claim.verdict == verdict]  # fmt: skip
    counts = {each: sum(claim.verdict == each for claim in found) for each in VERDICTS}
    rest = f"{counts[OPEN]} {'is' if counts[OPEN] == 1 else 'are'} undecided here"
    rest += f", and {counts[CANNOT]} cannot be tested here" if literature else ""
    told = [
        f"Of {counted(len(found), 'claim')} {counts[YES]} {'holds' if counts[YES] == 1 else 'hold'}, {counts[NO]} "
        f"{'does' if counts[NO] == 1 else 'do'} not, {'' if literature else 'and '}{rest}.",
        "Verdicts are not adjusted for each other: at 95 %, one interval in twenty misses by chance.",
    ]
    repeat = f"To repeat a row, run {command} --parts PART --out depth-PART with the part of the row for PART."
    return Section(
        "claims",
        "Which claims hold",
        "Which claims about these SAEs hold on these rows, after this much training?",
        told,
        [Table("claims", f"{CAPTION}{CONCEPTS if packaged else ''}.", list(columns), lines)] if lines else [],
        [*([repeat] if command else []), *([BIBLIOGRAPHY] if literature else [])],
    )


def claims(rows: Sequence[Row], packaged: bool = True) -> list[Tested]:
    """The claims that the rows can test, and of the packaged rows, or with a model, what is proved or out of reach."""
    found = []
    for claim in (*CLAIMS, *IN_MODEL):
        part = pick(rows, part=claim.part)
        measured = claim.statistic(part) if part else None
        if measured is not None:
            judged = verdict(measured.interval, claim.below, claim.above, claim.refutable) if measured.fair else OPEN
            text = claim.text.format(**longest(part))
            found.append(Tested(text, claim.source, measured.measured, judged, claim.part))
    model = _in_model(rows)
    if not packaged and not model:
        return found
    proved = Tested(
        "ReLU, JumpReLU, TopK and AbsTopK encoders are one step of proximal gradient from 0 (Lemma 1)", PAPER,
        "proved (prop-one-step-is-an-sae), and checked to the bit", YES, "",
    )  # fmt: skip
    left = ((text, source, reasons[model]) for text, source, *reasons in UNTESTABLE)
    return [proved, *found, *(Tested(text, source, why, CANNOT, "") for text, source, why in left if why)]


def _in_model(rows: Sequence[Row]) -> bool:
    return bool(pick(rows, part="model"))
