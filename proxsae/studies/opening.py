"""How the report opens: the answer in a few sentences, one picture, one small table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from proxsae.report.section import Picture, Section, Table
from proxsae.studies.parts.apart.section import bottleneck
from proxsae.studies.parts.depth.section import by_exact_steps, curve, curve_rows, error_ratio, points, taken
from proxsae.studies.parts.model.section import answer as in_the_model
from proxsae.studies.statistics import Interval, grouped, mean_of, pick
from proxsae.studies.task import Row
from proxsae.studies.words import (
    GIVEN,
    NAMES,
    change,
    densities,
    number_of_seeds,
    penalties_of,
    percent,
    rows_of,
    seeds_of,
    steps,
    trained_with,
    unequal,
)  # fmt: skip

HERO = ("abstopk", "topk")  # the sentences are about the first of these that has rows
MOST = 0.8  # of the gain counts as most of it


def opening(
    rows: Sequence[Row],
    told: Sequence[Section],
    done: tuple[int, int] | None = None,
    remarks: Sequence[str] = (),
) -> tuple[Section, ...]:
    """The answer, and the sections that were told without what the answer took from them.

    rows     of all parts
    told     the sections of the parts, in order
    done     how many tasks have ended, of how many
    remarks  on the SAE and the data, for the notes

    Without rows of the part on depth the answer is the first finding of each section, and the first picture.
    """
    depth = pick(rows, part="depth")
    answer = _answer(depth, pick(rows, part="model"), pick(rows, part="apart")) if depth else None
    if answer is None:
        answer, told = _first_of(told)
    notes = []
    if done is not None and done[0] < done[1]:
        notes.append(f"{done[0]} of {done[1]} tasks are done. What is missing here follows when they end.")
    if number_of_seeds(rows) == 1:
        notes.append("One seed: numbers, no verdicts. There are no error bars with one seed.")
    notes += remarks
    notes.append("These results hold for these SAEs and these rows only.")
    return replace(answer, notes=notes), *told


def _answer(depth: Sequence[Row], model: Sequence[Row], apart: Sequence[Row]) -> Section | None:
    """The gain, its cost, what it means to a model, what holds back the rest; nothing without more steps."""
    drawn = curve_rows(depth)
    trained, last = drawn[0]["train_depth"], max(row["steps"] for row in drawn)
    gains = {name: error_ratio(drawn, name, (trained, last), (trained, 1)) for name in penalties_of(drawn)}
    gains = {name: gain for name, gain in gains.items() if gain.n}
    if last == 1 or not gains:
        return None
    hero = next((name for name in HERO if name in gains), next(iter(gains)))
    many = f"{last} {taken(drawn)}"
    l0 = {name: densities(drawn, *({"penalty": name, "steps": t} for t in (1, last))) for name in gains}
    name = NAMES.get(hero, hero)
    sae = f"{'an' if name[0] in 'AEIOU' or name == 'MCP' else 'a'} {name} SAE"
    if trained_with(drawn, trained) == GIVEN:
        sae = f"the given {name} SAE"
    elif trained > 1:
        sae += f" trained with {steps(trained)}"
    helped = in_the_model(model, hero)
    sentences = [_gain(hero, sae, many, gains, l0), _cost(drawn, hero, trained, last), *([helped] if helped else [])]
    sentences += _rest(depth, apart, hero, trained, last)
    lines = []
    for name, gain in gains.items():
        error, cost = (grouped(pick(drawn, penalty=name), ("steps",), value) for value in ("nmse", "cost"))
        lines.append(
            [NAMES.get(name, name), str(error[1,]), str(error[last,]), change(gain) + unequal(l0[name]),
             f"{cost[last,].mean:.1f}"]
        )  # fmt: skip
    said = f"{rows_of(drawn)}, {seeds_of(drawn)}"
    said += "; bars and brackets are 95 % intervals." if number_of_seeds(drawn) > 1 else "."
    picture = Picture(
        "depth-steps",
        f"Error of SAEs {trained_with(drawn, trained)}, used with more {taken(drawn)} of the same weights; {said}",
        curve(depth), points(drawn),
    )  # fmt: skip
    headings = ["SAE", "error (nmse), one step", many, "change", f"cost of {last}, in encoders"]
    return Section(
        "answer",
        "The answer",
        "",
        sentences,
        [picture, Table("answer", f"The same in numbers: {said}", headings, lines)],
    )


def _gain(hero: str, sae: str, many: str, gains: dict[str, Interval], l0: dict[str, list[float]]) -> str:
    """The gain of an SAE, and the range of those of all kinds, where their densities allow to compare errors."""
    found, others = gains[hero], [gain.mean for name, gain in gains.items() if not l0[name]]
    what = f"the error of {sae}"
    if _unclear(found):
        said = f"{many} of the same weights do not clearly change {what} ({change(found)})"
    else:
        said = f"{many} of the same weights {'cut' if found.mean < 1 else 'raise'} {what} by {_size(found)}"
    if l0[hero]:
        few, late = (f"{n:.1f}" for n in l0[hero])
        return f"{said} at densities {few} and {late}, so that the errors cannot be compared."
    ends = [change(Interval(end, math.nan, math.nan, 1)) for end in (max(others), min(others))]
    among = f" ({len(others)} kinds of SAE: {ends[0]} to {ends[1]})" if others[1:] else ""
    return f"{said} at equal density, with no retraining{among}."


def _cost(rows: Sequence[Row], hero: str, trained: int, last: int) -> str:
    """The fewest steps with most of the gain, where there clearly is one, and what they and all steps cost."""

    def clear(t: int) -> bool:
        return not _unclear(found[t]) and not densities(rows, *({"penalty": hero, "steps": s} for s in (1, t)))

    cost = grouped(pick(rows, penalty=hero), ("steps",), "cost")
    more = sorted(t for (t,) in cost if t > 1)
    found = {t: error_ratio(rows, hero, (trained, t), (trained, 1)) for t in more}
    least = MOST * (1 - found[last].mean)
    enough = next(t for t in more if t == last or (1 - found[t].mean >= least > 0 and clear(t)))
    if enough == last or not clear(last):
        return f"{last} steps cost as much as {cost[last,].mean:.0f} encoders."
    return (
        f"Most of that comes early: after {enough} steps it {_moves(found[enough])}, at the "
        f"cost of {cost[enough,].mean:.0f} encoders; {last} steps cost {cost[last,].mean:.0f}."
    )


def _rest(depth: Sequence[Row], apart: Sequence[Row], hero: str, trained: int, last: int) -> list[str]:
    """What else lowers the error: a better code, or a dictionary that was trained with more steps."""
    most = max(row["train_depth"] for row in depth)
    found = bottleneck(apart, hero, trained, most)
    if found is not None:
        return [
            f"With the best code known for the same dictionary the error {_moves(found.code)}; with a dictionary "
            f"trained with {steps(most)}, best code against best code, it {_moves(found.dictionary)}: {found.verdict}."
        ]
    exact = by_exact_steps(depth)
    more = error_ratio(exact, hero, (most, last), (trained, last))
    if most > trained and more.n:
        used = ({"penalty": hero, "train_depth": t, "steps": last} for t in (trained, most))
        return [f"Trained with {steps(most)} instead of {steps(trained)}, the error after {last} steps "
                f"{_moves(more)}{unequal(densities(exact, *used))}."]  # fmt: skip
    left = mean_of(apart, "share", kind="frozen", penalty=hero, train_depth=trained, method="encoder", steps=1)
    said = f"The learned encoder leaves at least {percent(left)} of the gain that a better code could reach."
    return [said] if left.n else []


def _first_of(told: Sequence[Section]) -> tuple[Section, list[Section]]:
    """The first finding of each section and the first picture, and the sections without that picture."""
    findings = [section.findings[0] for section in told if section.findings][:3]
    for i, section in enumerate(told):
        for item in section.shown:
            if isinstance(item, Picture):
                rest = replace(section, shown=[other for other in section.shown if other is not item])
                return Section("answer", "The answer", "", findings, [item]), [*told[:i], rest, *told[i + 1 :]]
    return Section("answer", "The answer", "", findings), list(told)


def _unclear(ratio: Interval) -> bool:
    """Whether the interval of a ratio contains 1, so that it has no direction; a single value has no interval."""
    return ratio.low <= 1 <= ratio.high


def _moves(ratio: Interval) -> str:
    """How an error with that ratio to an earlier one moves, and by how much."""
    if _unclear(ratio):
        return f"does not clearly change ({change(ratio)})"
    return f"{'falls' if ratio.mean < 1 else 'rises'} by {_size(ratio)}"


def _size(ratio: Interval) -> str:
    """By how many percent a ratio moves, with the interval of that where it has one: `36 % [35, 37]`."""
    sign = 100 if ratio.mean >= 1 else -100
    mean, *ends = (sign * (end - 1) for end in ratio[:3])
    return f"{mean:.0f} %" + (f" [{min(ends):.0f}, {max(ends):.0f}]" if ratio.n > 1 else "")
