"""Whether two seeds find the same latents: how alike their atoms are, and their codes at one step and at more."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from proxsae.report.section import Picture, Section
from proxsae.report.style import canvas, house, legend, means
from proxsae.studies.statistics import Interval, pick
from proxsae.studies.task import Row
from proxsae.studies.words import STYLES, TITLES, penalties_of, steps


@house()
def section(rows: Sequence[Row]) -> Section:
    """The part on stability, from the rows of `measure`."""
    pairs = len({(row["seed"], row["other"]) for row in rows})
    said = f"{pairs} pair{'s' if pairs != 1 else ''} of seeds"
    return Section(
        "stability", "Whether two seeds find the same latents",
        "Two SAEs that differ by their seed only: do they have the same atoms, and do more steps make their codes more "
        "alike, or less?",
        findings(rows), [_picture(rows, said)],
    )  # fmt: skip


def _picture(rows: Sequence[Row], pairs: str) -> Picture:
    measures = {"cosine": "matched decoder cosine", "iou": "code IoU"}
    depths = sorted({row["train_depth"] for row in rows})
    taken = sorted({row["steps"] for row in rows})
    penalties = penalties_of(rows)
    figure, axes = canvas(columns=len(depths), rows=2, sharex=True, sharey="row")
    for (measure, title), across in zip(measures.items(), axes, strict=True):
        found = spans(rows, measure)
        for ax, depth in zip(across, depths, strict=True):
            for i, penalty in enumerate(penalties):
                here = {j: found[penalty, depth, T] for j, T in enumerate(taken) if (penalty, depth, T) in found}
                x = [j + 0.03 * (i - (len(penalties) - 1) / 2) for j in here]  # side by side, so that bars are seen
                means(ax, x, list(here.values()), TITLES[penalty], **STYLES[penalty])
            ax.set_xticks(range(len(taken)), list(map(str, taken)))
        across[0].set_ylabel(title)
    for ax, depth in zip(axes[0], depths, strict=True):
        ax.set_title(f"trained with {steps(depth)}")
    for ax in axes[1]:
        ax.set_xlabel("inference steps")
    legend(figure, axes, 3)
    data = [
        {"penalty": penalty, "train_depth": depth, "steps": T, "measure": value, "mean": found.mean, "least": found.low,
         "most": found.high, "pairs": found.n}
        for value in measures
        for (penalty, depth, T), found in spans(rows, value).items()
    ]  # fmt: skip
    return Picture(
        "stability",
        "Atoms of two SAEs that differ by seed are matched one to one, by |cosine|, or by cosine where codes cannot be "
        "negative. Above: the mean of that cosine, over matches with a latent that fires. Below: the IoU of the "
        f"latents that fire on a held-out row. {rows[0]['rows']} rows, at equal density; means over {pairs}. Bars are "
        "the least and the largest pair, no confidence intervals: pairs share their seeds.",
        figure, data,
    )  # fmt: skip


def findings(rows: Sequence[Row]) -> list[str]:
    """How alike the codes and atoms of two seeds are, and what more steps change in that."""
    first, last = min(row["steps"] for row in rows), max(row["steps"] for row in rows)
    cosine, iou = spans(rows, "cosine"), spans(rows, "iou")
    said = []
    for penalty, depth in product(penalties_of(rows), sorted({row["train_depth"] for row in rows})):
        if not pick(rows, penalty=penalty, train_depth=depth):
            continue
        before, after, atoms = (
            found.get((penalty, depth, t)) for found, t in ((iou, first), (iou, last), (cosine, first))
        )
        if before and after and atoms:
            change = "rises" if after.mean > before.mean else "falls" if after.mean < before.mean else "stays,"
            overlap = "" if before.high < after.low or after.high < before.low else ", ranges that overlap"
            said.append(
                f"{TITLES[penalty]}, trained with {steps(depth)}: from {steps(first)} to {last} the code IoU {change} "
                f"from {_span(before)} to {_span(after)}{overlap}; the matched cosine at {steps(first)} is "
                f"{_span(atoms)}."
            )
    return [*said, "Brackets are the least and the largest pair of seeds, not confidence intervals: pairs share seeds."]


def spans(rows: Sequence[Row], value: str) -> dict[tuple[Any, ...], Interval]:
    """For each penalty, training depth and number of steps the mean over pairs, between the least and the largest."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if row[value] is not None:  # a pair without a live latent
            found.setdefault((row["penalty"], row["train_depth"], row["steps"]), []).append(row[value])
    return {key: Interval(sum(v) / len(v), min(v), max(v), len(v)) for key, v in found.items()}


def _span(found: Interval) -> str:
    return f"{found.mean:.3f}" if found.n < 2 else f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
