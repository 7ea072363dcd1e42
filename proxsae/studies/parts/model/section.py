"""Whether more steps help the model: its loss, its predictions and the error, against the number of encoder steps."""

from __future__ import annotations

from collections.abc import Sequence

from proxsae.report.section import Picture, Section, Table
from proxsae.report.style import canvas, house, legend, log_axis, means, styles
from proxsae.studies.parts.model.contexts import HALF, TOLD
from proxsae.studies.parts.model.measure import SIGNED
from proxsae.studies.statistics import Interval, by_seed, grouped, mean_of, over_seeds, pick
from proxsae.studies.task import Row
from proxsae.studies.words import (
    LOG,
    NAMES,
    STUDENT,
    STYLES,
    bars,
    counted,
    densities,
    number_of_seeds,
    penalties_of,
    percent,
    seeds_of,
    steps,
    title,
    unequal,
)  # fmt: skip

MEASURES = {
    "recovered_mean": "loss recovered",
    "kl": "KL to the model, in nats",
    "unexplained": "unexplained variance",
}


@house()
def section(rows: Sequence[Row]) -> Section:
    """The part on the model, from the rows of `measure`."""
    losses = pick(rows, kind="loss")
    size = f"{losses[0]['tokens']} predictions, {seeds_of(losses)}. {bars(losses)}".rstrip()
    return Section(
        "model", "Does it help the model?",
        "With the reconstruction in place of the activation, what does the model lose, and do more steps of the same "
        "weights give it back?",
        findings(rows), [_picture(losses, size), _table(losses, size)],
        ["Loss recovered: (loss with the mean in place - that with the SAE) / (loss with the mean - its own); "
         "the mean is that of the activations on the texts. Unexplained variance: the squared error of the SAE there, "
         "over that of the mean."],
    )  # fmt: skip


def findings(rows: Sequence[Row]) -> list[str]:
    """What an SAE costs the model after one step and after the most; then whether the two signs are two things."""
    told, losses = [], pick(rows, kind="loss")
    first, last = (end(row["steps"] for row in losses) for end in (min, max))
    itself = losses[0]
    told.append(
        f"The model's own loss is {itself['loss']:.3f} nats a token, {itself['loss_mean']:.3f} with the mean in place "
        f"and {itself['loss_zero']:.3f} with zeros."
    )
    for penalty in penalties_of(losses):
        parts = []
        for depth in sorted({row["train_depth"] for row in pick(losses, penalty=penalty)}):
            same = pick(losses, penalty=penalty, train_depth=depth)
            before, after = (grouped(same, ("steps",), "excess").get((t,)) for t in (first, last))
            back = given_back(losses, penalty, depth)
            if before and after and back.n:
                used = ({"penalty": penalty, "train_depth": depth, "steps": t} for t in (first, last))
                parts.append(
                    f"trained with {steps(depth)}: {before} after {steps(first)}, {after} after "
                    f"{last}, so that {share(back)} of that comes back{unequal(densities(losses, *used))}"
                )
        if parts:
            told.append(f"{title(penalty)}, loss beyond the model's own: {'; '.join(parts)}.")
    return told + _about_probes(rows) + _about_signs(rows)


def _about_probes(rows: Sequence[Row]) -> list[str]:
    told, probed = [], pick(rows, kind="probe")
    first, last = (end((row["steps"] for row in probed), default=0) for end in (min, max))
    for penalty, depth in dict.fromkeys((row["penalty"], row["train_depth"]) for row in probed):
        same = pick(probed, penalty=penalty, train_depth=depth)
        parts = [
            f"{number}: {mean_of(same, 'f1', k=number, steps=first)} and {mean_of(same, 'f1', k=number, steps=last)}"
            for number in dict.fromkeys(row["k"] for row in same)
        ]
        told.append(
            f"{title(penalty)}, trained with {steps(depth)}: F1 of probes on labelled texts, after {steps(first)} and "
            f"after {last}, by the number of latents {'; '.join(parts)}."
        )
    return told


def _about_signs(rows: Sequence[Row]) -> list[str]:
    told = []
    for penalty in SIGNED:
        for t in sorted({row["steps"] for row in pick(rows, kind="contexts", penalty=penalty)}):
            of = pick(rows, kind="contexts", penalty=penalty, steps=t)
            number = over_seeds(row["latents"] for row in of).mean
            probe, tokens, shared = (mean_of(of, name) for name in ("by_probe", "by_tokens", "shared"))
            if tokens.n:
                judged = f"by a probe on the input of the module {percent(probe)}, " if probe.n else ""
                told.append(
                    f"{NAMES[penalty]}, {steps(t)}: {number:.0f} latents have {counted(HALF, 'context')} of either sign"
                    f" in either half of the texts. Told apart at an AUC of {TOLD:g} or more: {judged}by the tokens "
                    f"alone {percent(tokens)}; chance gives 1.6%. Both signs share {percent(shared)} of their tokens."
                )
        of = pick(rows, kind="steering", penalty=penalty)
        own, other = (mean_of(of, name) for name in ("steered", "steered_other"))
        if own.n:
            told.append(
                f"{NAMES[penalty]}: +v against -v in a latent makes what follows on its positive contexts likelier "
                f"than what follows on its negative ones, for {percent(own)} of the latents that were steered; with "
                f"the contexts of another latent, for {percent(other)}."
            )
    return told


def given_back(rows: Sequence[Row], penalty: str, train_depth: int) -> Interval:
    """The share of what an SAE costs at the fewest steps that it does not cost at the most, where it costs."""
    return over_seeds(1 - after / before for before, after in costs(rows, penalty, train_depth) if before > 0)


def costs(rows: Sequence[Row], penalty: str, train_depth: int) -> list[tuple[float, float]]:
    """What an SAE costs at the fewest steps and at the most, in nats a token, a pair for each seed that has both."""
    before, after = (
        by_seed(rows, "excess", penalty=penalty, train_depth=train_depth, steps=end(row["steps"] for row in rows))
        for end in (min, max)
    )
    return [(before[seed], after[seed]) for seed in before if seed in after]


def answer(rows: Sequence[Row], penalty: str) -> str:
    """The finding on one SAE as a sentence of the answer; "" where there is none."""
    losses = pick(rows, kind="loss")
    if not pick(losses, penalty=penalty):
        return ""
    depth, ends = min(row["train_depth"] for row in losses), [end(row["steps"] for row in losses) for end in (min, max)]
    back = given_back(losses, penalty, depth)
    if not back.n:
        return ""
    said = f"In the model {ends[1]} steps give back {share(back)} of the loss that the SAE costs"
    if back.low <= 0 <= back.high:
        said = (
            f"In the model {ends[1]} steps do not clearly change the loss that the SAE costs ({share(back)} comes back)"
        )
    used = ({"penalty": penalty, "train_depth": depth, "steps": t} for t in ends)
    return f"{said}{unequal(densities(losses, *used))}."


def share(found: Interval) -> str:
    """A share of a loss, which may be below 0 or above 1, in percent."""
    if not found.n:
        return "-"
    return f"{100 * found.mean:.0f} %" + (f" [{100 * found.low:.0f}, {100 * found.high:.0f}]" if found.n > 1 else "")


def _picture(rows: Sequence[Row], size: str) -> Picture:
    """A row of panels for each number of steps in training, a panel for each measure, a line for each SAE."""
    depths = sorted({row["train_depth"] for row in rows})
    figure, axes = canvas(columns=len(MEASURES), rows=len(depths), sharex=True, sharey="col")
    looks, data = styles(penalties_of(rows), STYLES), []
    for across, depth in zip(axes, depths, strict=True):
        for ax, (measure, name) in zip(across, MEASURES.items(), strict=True):
            for penalty in penalties_of(rows):
                same = pick(rows, penalty=penalty, train_depth=depth)
                found = {t: each for (t,), each in grouped(same, ("steps",), measure).items()}
                means(ax, list(found), list(found.values()), NAMES[penalty], **looks[penalty])
                data += [
                    {"measure": measure, "penalty": penalty, "train_depth": depth, "steps": t, "mean": each.mean,
                     "low": each.low, "high": each.high, "seeds": each.n}
                    for t, each in found.items()
                ]  # fmt: skip
            ax.set_title(name if depth == depths[0] else None)
            log_axis(ax, "x")
        across[0].set_ylabel(f"trained with {steps(depth)}")
    for ax in axes[-1]:
        ax.set_xlabel("encoder steps" + LOG)
    legend(figure, axes, 4)
    caption = "What the model loses with an SAE in place, and the error of the SAE, by exact steps of the same weights"
    return Picture("model", f"{caption}, at equal density; {size}", figure, data)


def _table(rows: Sequence[Row], size: str) -> Table:
    """For each SAE the measures after the fewest steps and after the most, and what came back."""
    first, last = (end(row["steps"] for row in rows) for end in (min, max))
    lines = []
    for penalty, depth in dict.fromkeys((row["penalty"], row["train_depth"]) for row in rows):
        same = pick(rows, penalty=penalty, train_depth=depth)
        cells = [grouped(same, ("steps",), name).get((t,)) for name in ("excess", *MEASURES) for t in (first, last)]
        density = [f"{row['l0']:.1f}" for row in same]
        spread = min(density, key=float), max(density, key=float)
        lines.append([NAMES[penalty], str(depth), *map(str, cells), share(given_back(rows, penalty, depth)),
                      spread[0] if spread[0] == spread[1] else " to ".join(spread)])  # fmt: skip
    headings = ["SAE", "steps in training"]
    headings += [
        f"{name}, {steps(t)}" for name in ("loss beyond the model's", *MEASURES.values()) for t in (first, last)
    ]
    caption = f"The same in numbers: {size}"
    if number_of_seeds(rows) > 1:
        caption += f" Brackets are {STUDENT}."
    return Table("model", caption, [*headings, "of its cost comes back", "l0"], lines, folded=True)
