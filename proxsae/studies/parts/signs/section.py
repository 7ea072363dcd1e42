"""The question about signs: does a signed latent carry a concept and its opposite?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from proxsae.report.section import Picture, Section, Table
from proxsae.report.style import band, canvas, house, legend, styles
from proxsae.studies.parts.signs.findings import SAES, TITLES, findings, names_of, selectivity
from proxsae.studies.parts.signs.measure import OPPOSED, TWO_SIDED
from proxsae.studies.statistics import Interval, mean_of, pick
from proxsae.studies.task import Row
from proxsae.studies.words import STUDENT, STYLES, seeds_of

LOOKS = styles(("abstopk", "topk", "jumprelu", "dim", "topk2"), STYLES)
SEEDS = f"intervals are {STUDENT}"
SLANTED = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
WORDS = "intervals are 95 % bootstrap over held-out words, the SAEs held fixed"


@house()
def section(rows: Sequence[Row]) -> Section:
    """The part on signs, from the rows of `measure`."""
    shown: list[Picture | Table] = []
    for kind, makers in _MAKERS.items():
        if pick(rows, kind=kind):
            shown += [make(rows) for make in makers]
    return Section(
        "signs", "Signs: two sides in one latent",
        "An AbsTopK latent may be negative. Does it then carry a concept and its opposite, for which a TopK or "
        "JumpReLU code needs two latents, and can a row be steered to either side by it?",
        findings(rows), shown,
    )  # fmt: skip


def _latents(rows: Sequence[Row]) -> Picture:
    keys = {
        "two_sided": "two-sided latents\n(share of the live)", "balance": "sign balance\n(mean over the live)",
        "fragmented": "opposite partner\n(share of the live)", "opposed": "most negative cosine\n(mean over atoms)",
        "dead": "dead latents\n(share of all)", "nmse": "error on held-out\nrows (nmse)",
    }  # fmt: skip
    names = names_of(pick(rows, kind="latents"))
    figure, axes = canvas(columns=3, rows=2, height=4.4, sharex=True)
    data = []
    for ax, (key, title) in zip(axes.flat, keys.items(), strict=True):
        for i, name in enumerate(names):
            found = mean_of(rows, key, kind="latents", sae=name)
            look = LOOKS[name] | {"linestyle": "none"}
            band(ax, [i], [found.mean], [found.low], [found.high], TITLES[name], **look)
            data.append({"measure": key, "sae": name, **found._asdict()})
        ax.set_ylabel(title)
        ax.set_xticks(range(len(names)), [TITLES[name] for name in names], **SLANTED)
        ax.set_xlim(-0.5, len(names) - 0.5)
        if key not in ("opposed", "nmse"):  # shares that are all 0 are drawn at the bottom, not in the middle
            top = max(0.05, ax.get_ylim()[1])
            ax.set_ylim(-0.04 * top, top)
    return Picture(
        "signs-latents",
        f"Signs of the codes of {pick(rows, kind='latents')[0]['rows']} held-out rows, and directions of the atoms, by "
        f"SAE; {seeds_of(rows)}; {SEEDS}. Sign balance: how often the rarer sign of a latent fires, over how often the "
        f"other does; two-sided: a balance of at least {TWO_SIDED:g}; opposite partner: another live atom with a "
        f"cosine below {OPPOSED:g}. TopK and JumpReLU have no negative codes, so that their balance is 0.",
        figure, data,
    )  # fmt: skip


def _concepts(rows: Sequence[Row]) -> Picture:
    means = pick(rows, kind="mean")
    names = names_of(means, (*SAES, "dim"))
    figure, (axes,) = canvas(height=3.6)
    concepts = _in_order(means)
    for i, name in enumerate(names):
        found = {row["concept"]: row for row in pick(means, sae=name)}
        x = [j + (i - (len(names) - 1) / 2) * 0.16 for j, title in enumerate(concepts) if title in found]
        mean, low, high = (
            [found[title][key] for title in concepts if title in found] for key in ("auc", "low", "high")
        )
        band(axes[0], x, mean, low, high, TITLES[name], **LOOKS[name] | {"linestyle": "none"})
    two = sum(concepts.values())
    axes[0].axhline(0.5, color="black", linewidth=0.8)
    if 0 < two < len(concepts):
        axes[0].axvline(two - 0.5, color="black", linewidth=0.8, linestyle=":")
    axes[0].set_xticks(range(len(concepts)), list(concepts), **SLANTED)
    axes[0].set_ylabel("AUC on held-out words")
    legend(figure, axes, len(names), handlelength=1)
    words = sorted(row["words"] for row in means)
    return Picture(
        "signs-concepts",
        "How well the best single latent tells the two sides of a concept apart on held-out words, beside the "
        "supervised difference in means; right of the dotted line are one-sided controls. Means over "
        f"{seeds_of(rows)}; {WORDS}, {words[0]} to {words[-1]} of them. Latents and signs were chosen on other words "
        "in the same sentence frames. A latent that fires on one side only can have an AUC of 1 too.",
        figure, [{key: row[key] for key in ("concept", "two_sided", "sae", "auc", "low", "high", "words")}
                 for row in means if row["sae"] in names],
    )  # fmt: skip


def _in_order(rows: Sequence[Row]) -> dict[str, int]:
    """The concepts, two-sided first, and whether each is."""
    return {row["concept"]: row["two_sided"] for row in sorted(rows, key=lambda row: -row["two_sided"])}


def _steering(rows: Sequence[Row]) -> Picture:
    found = pick(rows, kind="steering")
    names = names_of(found)
    figure, axes = canvas(columns=len(names), height=3.0, sharex=True, sharey=True)
    data = []
    for ax, name in zip(axes.flat, names, strict=True):
        for by, look in (("latent", LOOKS[name]), ("dim", LOOKS["dim"])):
            for direction in "+-":
                which: dict[str, Any] = {"sae": name, "by": by, "direction": direction}
                points = []
                for title in _in_order(found):
                    shift, damage = (mean_of(found, key, concept=title, **which) for key in ("shift", "damage"))
                    points.append({"concept": title, **which, "shift": shift.mean, "low": shift.low,
                                   "high": shift.high, "damage": damage.mean, "seeds": shift.n})  # fmt: skip
                x, y = ([row[key] for row in points] for key in ("damage", "shift"))
                label = f"{'the latent' if by == 'latent' else TITLES['dim']}, towards {direction}"
                ax.plot(x, y, label=label, color=look["color"] if by == "dim" else LOOKS["abstopk"]["color"],
                        marker=look["marker"] if by == "dim" else "o", linestyle="none", markersize=4,
                        markerfacecolor=None if direction == "+" else "white")  # fmt: skip
                data += points
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_yscale("symlog", linthresh=0.1)
        ax.set_yticks([-1, -0.1, 0, 0.1, 1], ["-1", "-0.1", "0", "0.1", "1"])
        ax.set_title(TITLES[name])
        ax.set_xlabel("damage")
    axes[0, 0].set_ylabel("shift of the concept\n(log scale beyond ±0.1)")
    legend(figure, axes, 2, handlelength=1)
    return Picture(
        "signs-steering",
        "Clamping the best latent of each two-sided concept to +q or -q (0 where codes are non-negative) on its "
        f"held-out pairs{_pairs(rows)}, q its mean |z| on the training side. Shift: how far the concept's linear probe "
        "moves, 1 being the distance between the sides. Damage: the root mean square shift of the probes of all other "
        f"concepts. A point is a concept, the mean over {seeds_of(found)}; {SEEDS}, and are in the data. The "
        "difference in means takes steps of the same norm.",
        figure, data,
    )  # fmt: skip


def _pairs(rows: Sequence[Row]) -> str:
    """How many held-out pairs a concept has."""
    found = sorted({row["pairs"] for row in pick(rows, kind="concept")})
    return f" ({found[0]} to {found[-1]} a concept)" if found else ""


def _comparisons(rows: Sequence[Row]) -> Table:
    found = pick(rows, kind="comparison")
    lines = [
        [row["concept"], "two" if row["two_sided"] else "one", TITLES[row["peer"]], f"{row['difference']:+.3f}",
         f"[{row['low']:+.3f}, {row['high']:+.3f}]", f"{row['p']:.2g}", f"{row['p_holm']:.2g}"]
        for row in found
    ]  # fmt: skip
    return Table(
        "signs-comparisons",
        f"AUC of the best AbsTopK latent less that of the best latent of a peer, on held-out words, means over "
        f"{seeds_of(rows)}; {WORDS}. p: two-sided, by flipping the signs of the words' jackknife pseudo-values, so "
        f"that it holds for other words, not for other seeds; Holm: adjusted over all {len(found)} comparisons.",
        ["concept", "sides", "peer", "difference", "interval", "p", "Holm"], lines, folded=True,
    )  # fmt: skip


def _aucs(rows: Sequence[Row]) -> Table:
    means = pick(rows, kind="mean")
    names, lines = names_of(means, TITLES), []
    for title, two in _in_order(means).items():
        found = {row["sae"]: Interval(row["auc"], row["low"], row["high"], row["words"])
                 for row in pick(means, concept=title)}  # fmt: skip
        cells = [str(found[name]) if name in found else "-" for name in names]
        lines.append([title, "two" if two else "one", *cells])
    return Table(
        "signs-auc",
        "AUC on held-out words of the best single latent, and of two supervised directions, means over "
        f"{seeds_of(rows)}; {WORDS}.",
        ["concept", "sides", *(TITLES[name] for name in names)], lines,
    )  # fmt: skip


def _sides(rows: Sequence[Row]) -> Table:
    found = pick(rows, kind="concept", sae="abstopk")
    keys = ("accuracy", "positive_up", "positive_zero", "negative_zero", "negative_down", "opposite", "opposite_best")
    lines = [
        [title, "two" if two else "one", *(str(mean_of(found, key, concept=title)) for key in keys)]
        for title, two in _in_order(found).items()
    ]
    return Table(
        "signs-sides",
        "The best AbsTopK latent of each concept on the held-out words, turned so that the concept's positive side is "
        "up: balanced accuracy at the threshold of the training side, shares of rows by their sign, and the share of "
        f"pairs that are above zero on the positive side and below on the negative; {seeds_of(found)}; {SEEDS}.",
        ["concept", "sides", "accuracy", "+ side: z > 0", "+ side: z = 0", "- side: z = 0", "- side: z < 0",
         "opposite signs", "chosen for them"], lines,
    )  # fmt: skip


def _steering_table(rows: Sequence[Row]) -> Table:
    found = pick(rows, kind="steering")
    lines = []
    for name in names_of(found):
        for by in ("latent", "dim"):
            for direction in "+-":
                which: dict[str, Any] = {"sae": name, "by": by, "direction": direction}
                cells = [str(mean_of(found, key, **which)) for key in ("shift", "damage", "norm")]
                lines.append([TITLES[name], "latent" if by == "latent" else TITLES["dim"], direction, *cells,
                              str(selectivity(found, **which))])  # fmt: skip
    number = len({row["concept"] for row in found})
    return Table(
        "signs-steering-means",
        f"Steering, means over {number} two-sided concepts; {seeds_of(found)}; {SEEDS}. Norm is that of the change of "
        "a row; selectivity is the sum of |shift| over that of damage.",
        ["sae", "steered by", "towards", "shift", "damage", "norm", "selectivity"], lines,
    )  # fmt: skip


_MAKERS: dict[str, tuple[Callable[[Sequence[Row]], Picture | Table], ...]] = {
    "latents": (_latents,),
    "mean": (_concepts, _aucs),
    "comparison": (_comparisons,),
    "concept": (_sides,),
    "steering": (_steering, _steering_table),
}
