"""The claims of the founding paper, of its reviewers and of those who came after, each against what was measured here.

A verdict is "holds" or "does not hold" only where what was measured leaves no doubt at 95 %; else it is "undecided
here".  What needs a language model to run, or a judge to read, cannot be tested on hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxsae.report.section import Section, Table
from proxsae.studies.parts.claims.errors import CANNOT, NO, OPEN, PAPER, TESTED, YES, Claim
from proxsae.studies.parts.claims.signs import SIGNS
from proxsae.studies.task import Row

TESTS = {**TESTED, "signs": SIGNS}  # what is said of the rows of each part
UNTESTABLE = (
    ("AbsTopK keeps more of the model's loss (Loss Recovered)", PAPER, "needs the model's forward pass with x̂ for x"),
    ("AbsTopK does better at unlearning, absorption, SCR, TPP, RAVEL and sparse probing (SAEBench)", PAPER,
     "needs the model, its tokens and the benchmark's data"),
    ("Clamped AbsTopK latents steer MMLU and HarmBench at least as well as the difference in means", PAPER,
     "needs generation; here rows are steered, not texts"),
    ("A language model reads two opposite meanings in a share of the latents", PAPER, "needs that judge"),
    ("Signed latents are as monosemantic, by automatic interpretation", "asked by reviewer 2", "needs that judge"),
    ("The same holds in other layers, in attention and MLPs, and in models of 10B parameters",
     "asked by reviewers 1 and 4", "these rows are of one layer of one model; any others can be given"),
)  # fmt: skip


def section(rows: Sequence[Row], command: str) -> Section:
    """All claims, with what repeats each row: `command` with the part, into a folder of its own."""
    found = claims(rows)
    lines = [
        [
            c.text,
            c.verdict,
            c.measured,
            c.source,
            f"--parts {c.part} --out depth-{c.part}" if c.part in TESTS else c.part,
        ]
        for c in found
    ]
    caption = (
        "The founding paper is Zhu, Khalili and Zhu, AbsTopK (arXiv 2510.00404), and the reviewers are those of its "
        "public reviews; Nelson, Karaletsos and Locatello, Toward Identifiable SAEs (2026); Barin-Pacela et al., Stop "
        "Probing, Start Coding (2603.28744); O'Neill, Gumran and Klindt (2411.13117); Tropp (2004). Brackets are "
        "Student's 95 % intervals over seeds, and a verdict asks that all of one lies on the side of the claim. Other "
        "verdicts: on which SAE tells two-sided concepts apart, also Holm's test over words; on stability the "
        "agreement of all pairs of five seeds; on theorems every single measurement. Errors are compared where "
        "densities differ by 5 % at most. "
        f"To repeat a row: {command} with its last column, where that begins with --parts."
    )
    table = Table("claims", caption, ["claim", "verdict", "measured here", "said or asked by", "to repeat"], lines)
    counts = {each: sum(claim.verdict == each for claim in found) for each in (YES, NO, OPEN, CANNOT)}
    return Section(
        "claims",
        "What is claimed, and what was found",
        "Which claims about these SAEs hold on these rows, after this much training?",
        [
            f"Of {len(found)} claims {counts[YES]} hold, {counts[NO]} do not, {counts[OPEN]} are undecided here, and "
            f"{counts[CANNOT]} cannot be tested here. The claims are the same for every data set.",
            "Verdicts are not adjusted for each other: at 95 %, one interval in twenty misses by chance.",
        ],
        [table],
    )


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The claims that the rows can test, then those that no rows here can."""
    by_part = {part: [row for row in rows if row["part"] == part] for part in TESTS}
    tests = [(test, by_part[part]) for part, some in TESTS.items() if by_part[part] for test in some]
    tested = [claim for test, part in tests for claim in test(part)]
    proved = Claim(
        "ReLU, JumpReLU, TopK and AbsTopK encoders are one step of proximal gradient from 0 (Lemma 1)", PAPER,
        "proved (prop-one-step-is-an-sae), and checked to the bit", YES, "proxsae statements prop-one-step-is-an-sae",
    )  # fmt: skip
    return [proved, *tested, *(Claim(text, source, why, CANNOT, "") for text, source, why in UNTESTABLE)]
