"""How does the time of a k-sparse code grow with B, P, k and T?  Measured exponents beside those of the cost model.

Each axis is varied alone around B 512, d 768, P 16384, k 32, T 4; the exponent is the slope of log(seconds) against
log(size), by least squares over the medians of each size, and its spread that of the rounds.

    python benchmarks/exponents.py --threads 2 --out docs/figures/step-exponents.svg
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import begin, parser, seconds

import proxsae as px
from proxsae.pytorch.cost_model import gather_cost, kind_of, look_cost
from proxsae.report.style import band, canvas, house, image, legend, look

BASE = {"B": 512, "P": 16384, "k": 32, "T": 4}
AXES = {"B": (128, 256, 512, 1024, 2048), "P": (4096, 8192, 16384, 32768, 65536), "k": (8, 16, 32, 64, 128),
        "T": (1, 2, 4, 8, 16)}  # fmt: skip
NAMES = {"B": "rows B", "P": "latents P", "k": "non-zeros k", "T": "steps T"}


def main() -> None:
    """Measure every point in turn, round by round, print the exponents and draw the picture."""
    made = parser(__doc__, d_in=768, rounds=5)
    made.add_argument("--out", type=Path, metavar="FILE", help="write the picture there, as .svg or .png")
    given = made.parse_args()
    begin(given)
    points = list(dict.fromkeys(at(axis, size) for axis, sizes in AXES.items() for size in sizes))
    with torch.no_grad():
        calls = {point: encoder(point, given) for point in points}
        for call in calls.values():
            call()
        times = {point: [] for point in points}
        for _ in range(given.rounds):
            for point, call in calls.items():
                times[point].append(seconds(call, given.device))
    found = {axis: [times[at(axis, size)] for size in sizes] for axis, sizes in AXES.items()}
    modelled = {axis: [model(at(axis, size), given) for size in sizes] for axis, sizes in AXES.items()}
    for axis, sizes in AXES.items():
        rounds = [slope(sizes, column) for column in zip(*found[axis], strict=True)]
        low, high = np.quantile(rounds, (0.25, 0.75))
        measured, expected = slope(sizes, np.median(found[axis], axis=1)), slope(sizes, modelled[axis])
        print(f"  {NAMES[axis]:14} {measured:5.2f}  ({low:.2f} to {high:.2f})   model {expected:.2f}")
    if given.out:
        draw(found, modelled, given.out)


def at(axis: str, size: int) -> tuple[int, ...]:
    """The sizes (B, P, k, T) with one of them changed."""
    return tuple((BASE | {axis: size}).values())


def encoder(point: tuple[int, ...], given: argparse.Namespace) -> Callable[[], object]:
    """The call that is timed."""
    B, P, k, T = point
    torch.manual_seed(0)
    x = torch.randn(B, given.d_in, device=given.device)
    deep = px.SAE(given.d_in, P, px.KSparse(k)).to(given.device).unrolled(T)
    return lambda: deep.encode_sparse(x)


def model(point: tuple[int, ...], given: argparse.Namespace) -> float:
    """Multiply-adds that the cost model counts: T products, T - 1 decoders, and on a GPU looks at u."""
    B, P, k, T = point
    kind = kind_of(torch.device(given.device).type, 4)
    return B * P * given.d_in * (T * (1 + look_cost(given.d_in, kind)) + (T - 1) * min(1.0, gather_cost(k, P, kind)))


def slope(sizes: Sequence[float], times: Any) -> float:
    """The exponent of a power law through the points."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


@house()
def draw(found: dict[str, list[list[float]]], modelled: dict[str, list[float]], file: Path) -> None:
    """One panel an axis: medians with quartiles, and the model through the middle one."""
    figure, panels = canvas(4, sharey=True)
    for ax, (axis, sizes) in zip(panels[0], AXES.items(), strict=True):
        low, middle, high = np.quantile(found[axis], (0.25, 0.5, 0.75), axis=1)
        base = sizes.index(BASE[axis])
        line = np.array(modelled[axis]) * middle[base] / modelled[axis][base]
        ax.plot(sizes, line, label="cost model", color="#000000", linestyle="--")
        band(ax, sizes, middle, low, high, "measured", **look("#0072B2", "o", ""))
        ax.set(xscale="log", yscale="log", xlabel=NAMES[axis])
        ax.set_xticks(sizes[::2], [f"{size:g}" for size in sizes[::2]])
        ax.minorticks_off()
        ax.set_title(f"{slope(sizes, middle):.2f} (model {slope(sizes, line):.2f})")
    panels[0, 0].set_ylabel("seconds")
    legend(figure, panels, 2)
    file.write_bytes(image(figure, file.suffix[1:]))


if __name__ == "__main__":
    main()
