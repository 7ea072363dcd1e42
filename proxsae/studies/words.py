"""Names, colours and phrases that all sections of a study share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from proxsae.penalties.published import PUBLISHED
from proxsae.report.style import look
from proxsae.studies.statistics import Interval, by_seed, over_seeds
from proxsae.studies.task import SIX, Row

NAMES = {name: PUBLISHED[name].title for name in SIX}
TITLES = {name: PUBLISHED[name].long for name in SIX}
FAMILIES = {"k-sparse codes": ("abstopk", "topk"), "l0 penalty": ("jumprelu2", "jumprelu"),
            "l1 penalty": ("soft", "relu")}  # fmt: skip
RULES = {"lipschitz": "safe step 1/L", "exact": "exact line step", "refit": "least-squares refit"}
STYLES = {
    "relu": look("#0072B2", "o", "-"),
    "soft": look("#56B4E9", "P", (0, (5, 1))),
    "jumprelu": look("#D55E00", "s", "--"),
    "jumprelu2": look("#E69F00", "v", (0, (3, 1, 1, 1, 1, 1))),
    "topk": look("#009E73", "^", "-."),
    "abstopk": look("#CC79A7", "D", ":"),
    RULES["lipschitz"]: look("#0072B2", "o", "-"),
    RULES["exact"]: look("#D55E00", "s", "--"),
    RULES["refit"]: look("#009E73", "^", "-."),
}
LOG = " (log scale)"
ANEW = "λ set anew to keep the density"
GLOSSARY = (
    "Error (nmse): sum of ||x - x̂||² over the sum of ||x||²; 0 is perfect. SAEs that a study trains are measured on "
    "held-out rows, which they were not trained on.",
    "l0: non-zeros of a code, mean over rows; k is how many were asked for. λ (lam): the weight of the penalty. Where "
    "it is above 0, it is set anew for each number of steps, so that all codes have the same density: a code with more "
    "non-zeros has a lower error for that reason alone. This is why errors of l1 codes rise from one step to two.",
    "Steps: of proximal gradient on ½||x - b - Dz||² + R(z). The first is the learned encoder, the others use the "
    "decoder's atoms D. Steps in training: with how many an SAE was trained. Steps at inference: with how many it is "
    "used, on the same weights.",
    "Step rules: the safe step is 1/L, L the squared norm of D; the exact line step goes to the minimum on the "
    "support, and is shortened where the objective could rise; the refit adds least squares on the support.",
    "Encoder products: the cost of a code in products with D; a one-step encoder costs one.",
    "Gap: F(z) - F*, how far the objective of a code is above the lowest. OMP: orthogonal matching pursuit, a greedy "
    "search for k-sparse codes. IoU: of two supports, the size of the intersection over that of the union.",
    "TopK (2P): a TopK SAE with twice as many latents. AUC: how often a positive example ranks above a negative one.",
    "Intervals are Student's, at 95 %, for the mean over seeds; those of shares are cut at 0 and 1. A seed sets "
    "weights and batches, and on planted data the problem; the rows of real data stay the same. With one seed there "
    "are no error bars.",
)
STUDENT = "95 % over seeds (Student)"
INTERVAL = "Bars are 95 % intervals over seeds."
GIVEN = "as given"
SAME_DENSITY = 1.05  # ratio of l0 up to which errors are compared


def penalties_of(rows: Sequence[Row]) -> list[str]:
    """The penalties that have rows: those with a name here in its order, then any others."""
    there = dict.fromkeys(row["penalty"] for row in rows)
    return [*(name for name in TITLES if name in there), *(name for name in there if name not in TITLES)]


def title(penalty: str) -> str:
    """The name of an SAE with its penalty; a name that is not one of the six is its own title."""
    return TITLES.get(penalty, penalty)


def steps(number: int) -> str:
    """A number of encoder steps."""
    return "one step" if number == 1 else f"{number} steps"


def seeds_of(rows: Iterable[Row]) -> str:
    """How many seeds the rows have."""
    number = number_of_seeds(rows)
    return "one seed" if number == 1 else f"{number} seeds"


def number_of_seeds(rows: Iterable[Row]) -> int:
    """How many seeds the rows have."""
    return len({row["seed"] for row in rows if row.get("seed") is not None})


def counted(number: int, what: str) -> str:
    """A number of things: "1 seed", "2 seeds"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def rows_of(rows: Sequence[Row]) -> str:
    """How many rows were measured, and that they were held out, where the study trained the SAEs itself."""
    return f"{rows[0]['rows']} {'held-out ' if 'train_seconds' in rows[0] else ''}rows"


def trained_with(rows: Sequence[Row], number: int) -> str:
    """With how many encoder steps SAEs were trained, where the study trained them; of a given SAE it is not known."""
    return f"trained with {steps(number)}" if "train_seconds" in rows[0] else GIVEN


def bars(rows: Sequence[Row], said: str = INTERVAL) -> str:
    """What is said of intervals over seeds, where there are any."""
    return said if number_of_seeds(rows) > 1 else ""


def times(found: Interval) -> str:
    """A ratio, with its interval where it has one."""
    return f"×{found.mean:.3f}" + (f" [{found.low:.3f}, {found.high:.3f}]" if found.n > 1 else "")


def percent(found: Interval) -> str:
    """A share with its interval, where it has one and it is of any width."""
    said = _percent(found.mean)
    return f"{said} [{_percent(found.low)}, {_percent(found.high)}]" if found.low < found.high else said


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 or share <= 0 else f"{100 * share:.1g}%"


def change(ratio: Interval) -> str:
    """A ratio as a change in whole percent, with its interval where it has one: `-36 % [-37, -35]`."""
    mean, low, high = map(_signed, ratio[:3])
    return f"{mean} %" + (f" [{low}, {high}]" if ratio.n > 1 else "")


def _signed(ratio: float) -> str:
    whole = f"{100 * (ratio - 1):+.0f}".replace("-", "\N{MINUS SIGN}") if ratio == ratio else ""
    return "0" if whole[1:] == "0" else whole


def unequal(l0: Sequence[float]) -> str:
    """What `densities` found, in brackets after a ratio of errors."""
    return f" (at l0 {' and '.join(f'{n:.1f}' for n in l0)})" if l0 else ""


def densities(rows: Sequence[Row], *which: Mapping[str, Any]) -> list[float]:
    """The mean l0 of each selection of rows where they differ too much for errors to be compared, else nothing."""
    l0 = [over_seeds(by_seed(rows, "l0", **each).values()).mean for each in which]
    return [] if max(l0) <= SAME_DENSITY * min(l0) else l0
