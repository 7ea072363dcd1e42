"""Theory beside measurement: which bounds hold, how loose they are, and what a certificate is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from proxsae.report.section import Picture, Section, Table
from proxsae.report.style import band, canvas, house, legend, log_axis
from proxsae.studies.statistics import pick
from proxsae.studies.task import Row
from proxsae.studies.words import LOG, STYLES, TITLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATES = {
    "thm-ista-rate": "ISTA", "thm-fista-rate": "FISTA", "thm-stationarity-rate": "IHT, step 0.9/L",
}  # fmt: skip
STARTS = {"ISTA": "ISTA from z = 0", "FISTA": "FISTA from z = 0", "encoder": "learned encoder, exact steps"}
SEEN = 1e-9  # of its certificate: a smaller gap is rounding
SOURCES = {"sae": "trained SAEs", "rates": "made problems"}


@house()
def section(rows: Sequence[Row]) -> Section:
    """The part on bounds, from the rows of `measure`."""
    rates = [row for row in rows if row["source"] == "sae" and row["statement"] in RATES]
    gaps = pick(rows, statement="thm-duality-gap")
    shown: list[Picture | Table] = [_verdicts(rows)]
    if rates:
        shown.append(_rates(rates))
    if gaps:
        shown.append(_certificates(gaps))
    return Section(
        "bounds", "Theory and measurement",
        "Do the theorems hold on the SAEs that were trained, how loose are their bounds, and how much of a certified "
        "gap is real?",
        findings(rows), shown,
    )  # fmt: skip


def findings(rows: Sequence[Row]) -> list[str]:
    """Whether everything holds, how loose rates and certificates are, and how exact the linear phase is."""
    broken = [row for row in rows if not row["holds"]]
    told = [f"{len(rows) - len(broken)} of {len(rows)} comparisons obey their statement."]
    told += [
        f"BROKEN: {row['statement']}, {row['method']} on {_problem(row)} after {row['steps']} steps: measured "
        f"{row['measured']:.4g}, {row['kind']} {row['theory']:.4g}."
        for row in broken
    ]
    for statement, method in RATES.items():
        same = [row for row in rows if row["source"] == "sae" and row["statement"] == statement and row["median"]]
        if same:
            least, most = (end(1 / row["median"] for row in same) for end in (min, max))
            told.append(
                f"On trained SAEs the bound of {method} is {_times(least)} to {_times(most)} the measured value, "
                "depending on the number of steps (medians over rows): it holds, but is too loose to say how many are "
                "enough."
            )
    for row in rows:
        ours = row["statement"] == "thm-duality-gap" and row["method"] == "encoder" and row["steps"] in (1, 16)
        if ours and row["median"]:
            code = "the learned encoder's code" if row["steps"] == 1 else f"the code after {row['steps']} steps"
            told.append(
                f"{_problem(row)}: {code} is certified to lack no more than {row['theory']:.3g}; it lacks "
                f"{row['measured']:.3g} (means over {row['n']} rows); the median certificate is "
                f"{_times(1 / row['median'])} the true gap."
            )
    for row in rows:
        if row["source"] == "sae" and row["statement"] == "thm-linear-phase":
            told.append(
                f"{_problem(row)}: once the signs stay, after {row['settled']:.0f} steps of 1/L on average, a step "
                f"multiplies the error by {row['measured']:.4f}, where the support allows {row['theory']:.4f} "
                f"({row['n']} rows)."
            )
    return told


def _verdicts(rows: Sequence[Row]) -> Table:
    lines = []
    keys = dict.fromkeys((row["statement"], row["source"], row["kind"]) for row in rows)
    for statement, source, kind in sorted(keys, key=lambda key: (key[0], key[1] != "sae", key[2])):
        same = pick(rows, statement=statement, source=source, kind=kind)
        ratios = [row["largest"] for row in same if row["largest"] is not None]
        hold = f"{sum(row['holds'] for row in same)} of {len(same)}"
        lines.append([statement, SOURCES[source], kind, hold, _tightest(kind, ratios)])
    caption = (
        "How many comparisons obey each statement. An upper bound is tight where the largest measured / theory is near "
        "1, a lower bound where the smallest is; a value that is known exactly has the ratio 1. On trained SAEs a "
        "comparison holds if it does for every held-out row; the made problems are those of proxsae rates. A theorem "
        "needs no intervals."
    )
    return Table("bounds-verdicts", caption, ["statement", "on", "kind", "hold", "tightest measured / theory"], lines)


def _tightest(kind: str, ratios: Sequence[float]) -> str:
    if not ratios:
        return "-"
    if kind == "tight":
        return f"1 {max((ratio - 1 for ratio in ratios), key=abs):+.0e}"
    return f"{max(ratios) if kind == 'upper' else min(ratios):.4g}"


def _rates(rows: Sequence[Row]) -> Picture:
    present = [statement for statement in RATES if any(row["statement"] == statement for row in rows)]
    figure, axes = canvas(columns=len(present), height=3.2, sharex=True)
    for ax, statement in zip(axes.flat, present, strict=True):
        _pair(ax, pick(rows, statement=statement), "bound")
        ax.set_title(RATES[statement])
        ax.set_ylabel(("shortest step$^2$" if statement == "thm-stationarity-rate" else "$F(z_t) - F^\\star$") + LOG)
    _finish(figure, axes)
    caption = (
        f"Measured (lines with markers) and proved (dashed), means over {_counted(rows)} held-out rows, from z = 0, on "
        "one SAE each. For L1, F* is certified, and the gap of its certificate is added to the measurement. No "
        "intervals: a theorem holds for every row."
    )
    return Picture("bounds-rates", caption, figure, _data(rows))


def _certificates(rows: Sequence[Row]) -> Picture:
    present = [method for method in STARTS if any(row["method"] == method for row in rows)]
    figure, axes = canvas(columns=len(present), height=3.2, sharex=True, sharey=True)
    for ax, method in zip(axes.flat, present, strict=True):
        seen = [row for row in rows if row["method"] == method and row["measured"] > SEEN * row["theory"]]
        _pair(ax, seen, "certified")
        ax.set_title(STARTS[method])
    axes[0, 0].set_ylabel("gap to the optimum" + LOG)
    _finish(figure, axes)
    caption = (
        f"True gap F(z_t) - F* (lines with markers) and the duality gap that certifies it (dashed), means over "
        f"{_counted(rows)} held-out rows, on one SAE each. Gaps of the size of rounding are left out. No intervals: a "
        "certificate holds for every row."
    )
    return Picture("bounds-certificates", caption, figure, _data(rows))


def _pair(ax: Axes, rows: Sequence[Row], name: str) -> None:
    """Measured and theory against steps, for each problem of the rows."""
    for problem in dict.fromkeys(row["problem"] for row in rows):
        points = pick(rows, problem=problem)
        steps = [row["steps"] for row in points]
        for key, look, label in (
            ("measured", {"linestyle": "-"}, TITLES[problem]),
            ("theory", {"linestyle": "--", "marker": None}, f"{name}, {TITLES[problem]}"),
        ):
            nothing = [None] * len(points)
            band(ax, steps, [row[key] for row in points], nothing, nothing, label, **(STYLES[problem] | look))
    log_axis(ax, "x")
    log_axis(ax, "y")


def _finish(figure: Figure, axes: Any) -> None:
    for ax in axes[-1]:
        ax.set_xlabel("steps t" + LOG)
    legend(figure, axes, 2)


def _data(rows: Sequence[Row]) -> list[Row]:
    keys = ("statement", "problem", "method", "steps", "measured", "theory", "largest", "median", "holds", "n")
    return [{key: row[key] for key in keys} for row in rows]


def _counted(rows: Sequence[Row]) -> str:
    return " or ".join(str(n) for n in sorted({row["n"] for row in rows}))


def _problem(row: Row) -> str:
    return str(TITLES.get(row["problem"], row["problem"]))


def _times(ratio: float) -> str:
    return f"×{ratio:.3g}" if ratio < 100 else f"×{ratio:,.0f}"
