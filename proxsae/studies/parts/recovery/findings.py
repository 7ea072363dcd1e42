"""What the part on recovery found, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxsae.studies.parts.recovery.measure import holds
from proxsae.studies.statistics import Interval, by_seed, grouped, over_seeds, pick
from proxsae.studies.task import Row
from proxsae.studies.words import NAMES, steps

PROBLEM = ("data", "signs", "range", "sae")
NAMED = 3  # problems that go the other way are named, where they are no more than this


def method_of(row: Row) -> str:
    """How the codes of a row of "separation" were found."""
    if row["method"] == "omp":
        return "OMP"
    if row["steps"] == 1:
        return "one step"
    return f"{row['steps']} {row['method']} steps"


def about_separation(rows: Sequence[Row]) -> list[str]:
    """What each method finds with a known dictionary, and whether theory keeps its promise."""
    if not rows:
        return []
    promised = [row for row in rows if row["theory"] is not None]
    said = [
        f"With a known dictionary, theory promises every support at {len(promised)} of the points that were measured, "
        f"and {sum(map(holds, promised))} of them have every support."
    ]
    for k in sorted({row["k"] for row in rows}):
        shares: dict[str, list[tuple[float, float]]] = {}
        for row in pick(rows, k=k):
            shares.setdefault(method_of(row), []).append((row["measured"], row["range"]))
        one = shares.pop("one step")
        exact = max((spread for share, spread in one if share == 1), default=None)
        edge = next(row["edge"] for row in pick(rows, k=k) if row["edge"] is not None)
        least = ", ".join(f"{min(found)[0]:.1%} ({name})" for name, found in shares.items())
        reached = "at none" if exact is None else f"at those measured up to {exact:.3g}"
        said.append(
            f"k = {k}: one step is promised every support at dynamic ranges below {edge:.3g}, has it {reached}, and "
            f"finds {min(one)[0]:.1%} at a range of {min(one)[1]:.4g}. The others, each at its own worst range, find "
            f"{least}."
        )
    return said


def about_learned(rows: Sequence[Row]) -> list[str]:
    """What more steps change, at inference and in training; and whether the dictionary or inference costs more."""
    if not rows:
        return []
    last = max(row["steps"] for row in pick(rows, method="exact"))
    one, many = ({"method": "exact", "steps": T} for T in (1, last))
    depths = sorted({row["train_depth"] for row in rows} - {None})
    said = []
    for T in depths:
        f1, error = (_changes(rows, value, many, one, train_depth=T) for value in ("f1", "error"))
        said.append(
            f"SAEs trained with {steps(T)}, {last} steps at inference against one: support F1 {_counted(f1)}; the "
            f"coefficient error {_counted(error)}."
        )
    if len(depths) > 1:
        deep, shallow = {"train_depth": depths[-1]}, {"train_depth": depths[0]}
        said += [
            f"Trained with {steps(depths[-1])} instead of {steps(depths[0])}, at {steps(T)} of inference: "
            f"support F1 {_counted(_changes(rows, 'f1', deep, shallow, method='exact', steps=T))}."
            for T in (1, last)
        ]
        said.append(
            f"The matched cosine of the dictionary, trained with {steps(depths[-1])} instead of "
            f"{steps(depths[0])}, {_counted(_changes(rows, 'cosine', deep, shallow, **one))}."
        )
    for T in depths:
        here = {"dictionary": "learned", "train_depth": T}
        gains = _changes(rows, "f1", many, one, **here)
        true = _changes(rows, "f1", {"dictionary": "true"}, here, **many)
        larger = [name for name in gains if name in true and true[name].mean > gains[name].mean]
        said.append(
            f"Trained with {steps(T)}: in {len(larger)} of {len(gains)} problems the dictionary costs more F1 than "
            f"inference, that is, at {last} steps the true dictionary would add more than those steps add to one step "
            "with the learned one."
        )
    return said


def _changes(rows: Sequence[Row], value: str, after: Row, before: Row, **which: Any) -> dict[str, Interval]:
    """For each problem the mean difference of a value, paired by seed."""
    found = {}
    for problem in grouped(rows, PROBLEM, value):
        same = which | dict(zip(PROBLEM, problem, strict=True))
        late, early = by_seed(rows, value, **same, **after), by_seed(rows, value, **same, **before)
        change = over_seeds(late[seed] - early[seed] for seed in early if seed in late)
        if change.n:
            data, signs, spread, sae = problem
            found[f"{NAMES[sae]} on {signs} {data} data of range {spread:g}"] = change
    return found


def _counted(changes: dict[str, Interval]) -> str:
    """How many changes are up and down beyond their intervals, between which means they are, and the rarer by name."""
    if not changes:
        return "was not measured"
    alone = next(iter(changes.values())).n < 2  # and has no interval
    up = [name for name, change in changes.items() if (change.mean if alone else change.low) > 0]
    down = [name for name, change in changes.items() if (change.mean if alone else change.high) < 0]
    rarer = min(up, down, key=len)
    names = f"; it {'rises' if rarer is up else 'falls'} for {', '.join(rarer)}" if 0 < len(rarer) <= NAMED else ""
    means = [change.mean for change in changes.values()]
    beyond = "" if alone else "beyond the 95 % interval over seeds "
    return (
        f"rises in {len(up)} and falls in {len(down)} of {len(changes)} problems {beyond}(mean changes from "
        f"{min(means):+.3f} to {max(means):+.3f}{names})"
    )
