"""Words and numbers that all sections say alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from proxsae.studies.statistics import Interval
from proxsae.studies.task import Row

TITLES = {
    "relu": "ReLU (l1, z ≥ 0)", "soft": "soft threshold (l1)", "jumprelu": "JumpReLU (l0, z ≥ 0)",
    "jumprelu2": "two-sided JumpReLU (l0)", "topk": "TopK (k-sparse, z ≥ 0)", "abstopk": "AbsTopK (k-sparse)",
}  # fmt: skip
GLOSSARY = (
    "Error, nmse: sum of ||x - x̂||² over the sum of ||x||², on rows that were not trained on; 0 is perfect.",
    "l0: non-zeros of a code, mean over rows; k is how many were asked for. lam: the weight of the penalty.",
    "Steps: of proximal gradient on ½||x - b - Dz||² + R(z). The first is the learned encoder, the others use the "
    "decoder's atoms D. Steps in training: with how many an SAE was trained. Steps at inference: with how many it is "
    "used, on the same weights.",
    "Step rules: lipschitz is 1/L, L the squared norm of D, which is always safe; exact is the line minimum on the "
    "support, shortened where the objective could rise; refit adds least squares on the support.",
    "Encoder products: what codes cost, in multiplications by D; an encoder is one.",
    "Gap: F(z) - F*, how far the objective of a code is above the lowest. OMP: orthogonal matching pursuit, a greedy "
    "search for k-sparse codes. IoU: of two supports, what both have over what either has.",
    "TopK (2P): a TopK SAE with twice as many latents. AUC: how often a positive example ranks above a negative one.",
)
STUDENT = "Student's 95 % interval of the mean over seeds, cut at 0 and 1 for shares"
SEED = "a seed sets weights and batches, the data stays the same"
INTERVAL = f"Bars are {STUDENT}; {SEED}. One seed has none."


def penalties_of(rows: Sequence[Row]) -> list[str]:
    """The penalties that have rows, in the order of `TITLES`."""
    return [name for name in TITLES if any(row["penalty"] == name for row in rows)]


def steps(number: int) -> str:
    """A number of encoder steps."""
    return "one step" if number == 1 else f"{number} steps"


def seeds(number: int) -> str:
    """A number of seeds."""
    return "one seed" if number == 1 else f"{number} seeds"


def seeds_of(rows: Iterable[Row]) -> str:
    """How many seeds the rows have."""
    return seeds(len({row["seed"] for row in rows if row.get("seed") is not None}))


def times(found: Interval) -> str:
    """A ratio, with its interval where it has one."""
    return f"×{found.mean:.3f}" + (f" [{found.low:.3f}, {found.high:.3f}]" if found.n > 1 else "")


def percent(found: Interval) -> str:
    """A share with its interval, where it has one and it is of any width."""
    said = _percent(found.mean)
    return f"{said} [{_percent(found.low)}, {_percent(found.high)}]" if found.low < found.high else said


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 or share <= 0 else f"{100 * share:.1g}%"
