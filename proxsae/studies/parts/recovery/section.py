"""What was recovered where the truth is known: supports with a known dictionary, planted dictionaries and codes."""

from __future__ import annotations

from collections.abc import Sequence

from proxsae.report.section import Picture, Section, Table
from proxsae.report.style import band, canvas, house, legend, log_axis, means, styles
from proxsae.studies.parts.recovery.findings import PROBLEM, about_learned, about_separation, method_of
from proxsae.studies.parts.recovery.measure import D_IN, D_SAE, K
from proxsae.studies.statistics import grouped, pick
from proxsae.studies.task import Row
from proxsae.studies.words import LOG, NAMES, STUDENT, seeds_of, steps

FITS = {"signed": "abstopk", "non-negative": "topk"}  # the SAE whose codes have the signs of the data
WAY = ("dictionary", "train_depth", "method", "steps")
SEEDS = f"intervals are {STUDENT}, each with another dictionary"


@house()
def section(rows: Sequence[Row]) -> Section:
    """The part on recovery, from the rows of `measure`."""
    separation, learned = pick(rows, kind="separation"), pick(rows, kind="learned")
    shown: list[Picture | Table] = [_separation(separation)] if separation else []
    usual = pick(learned, range=10.0)
    for signs in dict.fromkeys(row["signs"] for row in usual):
        shown.append(_learned(pick(usual, signs=signs), signs))
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
        ax.set_xlabel("dynamic range" + LOG)
    axes[0, 0].set_ylabel("share of rows with\nthe exact support")
    legend(figure, axes, 4)
    return Picture(
        "recovery-separation",
        f"Share of {rows[0]['rows']} rows whose support is found exactly, from zero, with the known D = [I, H/√256] "
        "(coherence 1/16), against the dynamic range: the largest over the smallest magnitude of a row. Left of the "
        "dotted line one step finds every support (thm-one-step-support); OMP does so everywhere (Tropp 2004). One "
        f"draw of rows, with a standard error of at most {0.5 / rows[0]['rows'] ** 0.5:.1%}.",
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
        f"Codes of {rows[0]['rows']} new planted rows ({signs}, dynamic range 10, k = {K}, {D_SAE} atoms in {D_IN} "
        "dimensions) compared with the true ones, after atoms were matched one to one by |cosine|: F1 of supports, "
        "where a wrong sign is a miss, and ||ẑ - z|| / ||z||. Exact line steps of the same weights, and OMP on the "
        f"same dictionary. Means over {seeds_of(rows)}; {SEEDS}.",
        figure, _data(rows, tuple(measures)),
    )  # fmt: skip


def _ranges(rows: Sequence[Row]) -> Picture:
    panels = list(dict.fromkeys(row["signs"] for row in rows))
    rows = [row for row in pick(rows, data="flat", method="exact") if row["sae"] == FITS[row["signs"]]]
    depths = sorted({row["steps"] for row in rows})
    ends = depths[0], depths[-1]

    def named(line: str, T: int) -> str:
        return f"{line.split(', ')[1]}, {'one' if T == 1 else T} at inference"

    looks = styles(named(line, T) for line in _lines(rows) for T in ends)
    figure, axes = canvas(columns=len(panels), height=3.2, sharey=True)
    for ax, signs in zip(axes[0], panels, strict=True):
        for line, of in _lines(pick(rows, signs=signs)).items():
            for T in ends:
                found = grouped(sorted(pick(of, steps=T), key=lambda row: row["range"]), ("range",), "f1")
                label = named(line, T)
                means(ax, [key[0] for key in found], list(found.values()), label, **looks[label])
        log_axis(ax, "x")
        ax.set_title(f"{signs}: {NAMES[FITS[signs]]}")
        ax.set_xlabel("dynamic range" + LOG)
    axes[0, 0].set_ylabel("support F1")
    legend(figure, axes, 2)
    return Picture(
        "recovery-range",
        f"F1 of the supports of {rows[0]['rows']} new flat planted rows against the dynamic range, by training depth, "
        f"at the fewest and the most inference steps. Means over {seeds_of(rows)}; {SEEDS}.",
        figure, [row for row in _data(rows, ("f1",)) if row["steps"] in ends],
    )  # fmt: skip


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
    caption = f"Every planted problem, {rows[0]['rows']} new rows: means over {seeds_of(rows)}; {SEEDS}."
    return Table("recovery-learned", caption, headings, lines, folded=True)
