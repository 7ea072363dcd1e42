"""What was recovered: supports with a known dictionary, planted dictionaries and codes, and the same latents twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxsae.report.section import Picture, Section, Table
from proxsae.report.style import band, canvas, house, legend, log_axis, means, styles
from proxsae.studies.parts.recovery.findings import (
    NAMES,
    PROBLEM,
    about_learned,
    about_separation,
    about_stability,
    method_of,
    spans,
)
from proxsae.studies.parts.recovery.measure import D_IN, D_SAE, K
from proxsae.studies.statistics import grouped, pick
from proxsae.studies.task import Row
from proxsae.studies.words import STUDENT, TITLES, seeds_of, steps

if TYPE_CHECKING:
    pass

WAY = ("dictionary", "train_depth", "method", "steps")
SEEDS = f"each seed draws another dictionary, other rows, weights and batches; intervals are {STUDENT}"


@house()
def section(rows: Sequence[Row]) -> Section:
    """The part on recovery, from the rows of `studies.recovery`."""
    separation, learned = pick(rows, kind="separation"), pick(rows, kind="learned")
    shown: list[Picture | Table] = [_separation(separation)] if separation else []
    for signs in dict.fromkeys(row["signs"] for row in learned):
        shown.append(_learned(pick(learned, signs=signs, range=10.0), signs))
    if len({row["range"] for row in learned}) > 1:
        shown.append(_ranges(learned))
    if learned:
        shown.append(_table(learned))
    return Section(
        "recovery", "What is recovered where the truth is known",
        "Do more encoder steps find the true supports, and do SAEs trained with more steps find the true dictionary?",
        [*about_separation(separation), *about_learned(learned)], shown,
    )  # fmt: skip


# Known dictionary


def _separation(rows: Sequence[Row]) -> Picture:
    sparsities = sorted({row["k"] for row in rows})
    looks = styles(dict.fromkeys(map(method_of, rows)))
    figure, axes = canvas(columns=len(sparsities), height=2.8, sharey=True)
    for ax, k in zip(axes[0], sparsities, strict=True):
        here = pick(rows, k=k)
        for name, look in looks.items():
            points = [row for row in here if method_of(row) == name]
            shares = [row["measured"] for row in points]
            gaps = [None] * len(shares)
            band(ax, [row["range"] for row in points], shares, gaps, gaps, name, **look)
        for edge in {row["edge"] for row in here} - {None}:
            ax.axvline(edge, color="black", linestyle=":", linewidth=1, label="promise of one step ends")
        log_axis(ax, "x")
        ax.set_title(f"k = {k}")
        ax.set_xlabel("dynamic range")
    axes[0, 0].set_ylabel("share of rows with\nthe exact support")
    legend(figure, axes, 4)
    return Picture(
        "recovery-separation",
        f"Share of {rows[0]['rows']} rows whose support is found exactly, from zero, with the known D = [I, H/√256] "
        "(coherence 1/16), against the ratio of the largest to the smallest magnitude of a row. Left of the dotted "
        "line one step finds every support (thm-one-step-support); OMP does so everywhere, since k < (1 + 1/m)/2 "
        "(Tropp 2004). One draw of rows: no interval; a share has a standard error of at most "
        f"{0.5 / rows[0]['rows'] ** 0.5:.1%}.",
        figure,
        [{key: row[key] for key in ("k", "range", "method", "steps", "measured", "f1", "theory", "edge")}
         for row in rows],
    )  # fmt: skip


# Learned dictionary


def _lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each line of a figure: an SAE and its training depth, or a penalty with the true dictionary."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        how = "true D" if row["dictionary"] == "true" else f"trained with {steps(row['train_depth'])}"
        found.setdefault(f"{NAMES[row['sae']]}, {how}", []).append(row)
    return found


def _data(rows: Sequence[Row], values: Sequence[str]) -> list[Row]:
    keys = (*PROBLEM, *WAY)
    return [
        dict(zip(keys, key, strict=True)) | {"measure": value} | found._asdict()
        for value in values
        for key, found in grouped(rows, keys, value).items()
    ]


def _learned(rows: Sequence[Row], signs: str) -> Picture:
    kinds = list(dict.fromkeys(row["data"] for row in rows))
    measures = {"f1": "support F1", "error": "coefficient error"}
    lines = _lines(rows)
    looks = styles(lines)
    depths = sorted({row["steps"] for row in pick(rows, method="exact")})
    figure, axes = canvas(columns=len(kinds), rows=2, sharex=True, sharey="row")
    for (measure, title), across in zip(measures.items(), axes, strict=True):
        for ax, kind in zip(across, kinds, strict=True):
            for label, of in lines.items():
                found = grouped(pick(of, data=kind), ("method", "steps"), measure)
                walked = [(i, found["exact", T]) for i, T in enumerate(depths) if ("exact", T) in found]
                if walked:
                    means(ax, [i for i, _ in walked], [each for _, each in walked], label, **looks[label])
                if ("omp", None) in found:
                    means(ax, [len(depths)], [found["omp", None]], "_", **looks[label] | {"linestyle": "none"})
            ax.set_xticks(range(len(depths) + 1), [*map(str, depths), "OMP"])
        across[0].set_ylabel(title)
    for ax, kind in zip(axes[0], kinds, strict=True):
        ax.set_title(kind)
    for ax in axes[1]:
        ax.set_xlabel("inference steps")
    legend(figure, axes, 2)
    return Picture(
        f"recovery-{signs}",
        f"Codes of {rows[0]['rows']} fresh planted rows ({signs}, dynamic range 10, k = {K}, {D_SAE} atoms in {D_IN} "
        "dimensions) against the true "
        "ones, after atoms were matched one to one by |cosine|: F1 of supports, where an entry of the wrong sign is a "
        "miss, and ||ẑ - z|| / ||z||. Exact steps of the same weights, and OMP on the same dictionary; with the true D "
        f"all steps are from zero. Means over {seeds_of(rows)}; {SEEDS}.",
        figure, _data(rows, tuple(measures)),
    )  # fmt: skip


def _ranges(rows: Sequence[Row]) -> Picture:
    panels = list(dict.fromkeys(row["signs"] for row in rows))
    rows = [row for row in pick(rows, data="flat", method="exact") if _fits(row)]
    depths = sorted({row["steps"] for row in rows})
    names = {
        f"{label.split(', ')[1]}, {'one' if T == 1 else T} at inference": None
        for label in _lines(rows)
        for T in (depths[0], depths[-1])
    }
    looks = styles(names)
    figure, axes = canvas(columns=len(panels), height=3.2, sharey=True)
    for ax, signs in zip(axes[0], panels, strict=True):
        for line, of in _lines(pick(rows, signs=signs)).items():
            for T in (depths[0], depths[-1]):
                found = grouped(sorted(pick(of, steps=T), key=lambda row: row["range"]), ("range",), "f1")
                label = f"{line.split(', ')[1]}, {'one' if T == 1 else T} at inference"
                means(ax, [key[0] for key in found], list(found.values()), label, **looks[label])
        log_axis(ax, "x")
        ax.set_title(f"{signs}: {NAMES[_FITS[signs]]}")
        ax.set_xlabel("dynamic range")
    axes[0, 0].set_ylabel("support F1")
    legend(figure, axes, 2)
    return Picture(
        "recovery-range",
        f"F1 of the supports of {rows[0]['rows']} fresh flat planted rows against the largest ratio of magnitudes, by "
        f"training depth, at the fewest and the most inference steps. Means over {seeds_of(rows)}; {SEEDS}.",
        figure, [row for row in _data(rows, ("f1",)) if row["steps"] in (depths[0], depths[-1])],
    )  # fmt: skip


_FITS = {"signed": "abstopk", "non-negative": "topk"}


def _fits(row: Row) -> bool:
    return row["sae"] == _FITS[row["signs"]]


def _table(rows: Sequence[Row]) -> Table:
    last = max(row["steps"] for row in pick(rows, method="exact"))
    lines = []
    keys = (*PROBLEM, "dictionary", "train_depth")
    for key, cosine in grouped(rows, keys, "cosine").items():
        which = dict(zip(keys, key, strict=True))
        found = grouped(pick(rows, **which), ("method", "steps"), "f1")
        error, nmse = (grouped(pick(rows, **which, method="exact", steps=last), keys, v) for v in ("error", "nmse"))
        how = "true D" if which["dictionary"] == "true" else str(which["train_depth"])
        cells = [found.get(way) for way in (("exact", 1), ("exact", last), ("omp", None))]
        cells += [error.get(key), nmse.get(key)]
        lines.append([
            which["data"], which["signs"], f"{which['range']:g}", NAMES[which["sae"]], how,
            "1" if how == "true D" else str(cosine), *("-" if c is None else str(c) for c in cells),
        ])  # fmt: skip
    headings = [
        "data", "codes", "range", "SAE", "steps in training", "matched cosine", "F1, one step", f"F1, {last} steps",
        "F1, OMP", f"coefficient error, {last} steps", f"nmse, {last} steps",
    ]  # fmt: skip
    caption = f"Every planted problem, {rows[0]['rows']} fresh rows: means over {seeds_of(rows)}; {SEEDS}."
    return Table("recovery-learned", caption, headings, lines)


# Stability


@house()
def stability_section(rows: Sequence[Row]) -> Section:
    """The part on stability, from the rows of `studies.stability`."""
    pairs = len({(row["seed"], row["other"]) for row in rows})
    said = f"{pairs} pair{'s' if pairs != 1 else ''} of seeds"
    return Section(
        "stability", "Whether two seeds find the same latents",
        "Two SAEs that differ by their seed only: do they have the same atoms, and do more steps make their codes more "
        "alike, or less?",
        about_stability(rows), [_stability(rows, said)],
    )  # fmt: skip


def _stability(rows: Sequence[Row], pairs: str) -> Picture:
    measures = {"cosine": "matched decoder cosine", "iou": "code IoU"}
    depths = sorted({row["train_depth"] for row in rows})
    taken = sorted({row["steps"] for row in rows})
    penalties = list(dict.fromkeys(row["penalty"] for row in rows))
    looks = styles(penalties)
    figure, axes = canvas(columns=len(depths), rows=2, sharex=True, sharey="row")
    for (measure, title), across in zip(measures.items(), axes, strict=True):
        found = spans(rows, measure)
        for ax, depth in zip(across, depths, strict=True):
            for i, penalty in enumerate(penalties):
                here = {j: found[penalty, depth, T] for j, T in enumerate(taken) if (penalty, depth, T) in found}
                x = [j + 0.03 * (i - (len(penalties) - 1) / 2) for j in here]  # side by side, so that bars are seen
                means(ax, x, list(here.values()), TITLES[penalty], **looks[penalty])
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
        "negative. Above: the mean of that cosine, over matches of which at least one latent fires at that number of "
        "steps. Below: the share of latents that fire in both codes of a held-out row, of those that fire in either. "
        f"{rows[0]['rows']} held-out rows; codes have the same number of non-zeros. Means over {pairs}; bars are the "
        "least and the largest pair, no confidence intervals: pairs share their seeds, and are not independent.",
        figure, data,
    )  # fmt: skip
