"""Which products a k-sparse encoder multiplies out, and which it gathers: one cost model, one function, its reasons.

Costs are in units of the product x W of as many rows, 2 d P flops a row.  With rho = F / (2 W), F the flops a second of
a product and W the bytes a second of memory, and s bytes a number, gathering k rows a code costs

    decode, k rows of d numbers          rho s k / P     against a dense product's 1
    Gram rows, k rows of P numbers       rho s k / d     against decode and product
    one pass over the pre-activations    rho s / d

All three follow from counting bytes; the page *What a step costs* derives them and says how far they hold.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache

# rho s, the multiply-adds of a product in the time that one number takes to move: two AVX-512 cores at 225 Gflop/s and
# 14 GB/s in float32 (measured; half of each in float64); an H200 by published ceilings of copies and products.
RHO_S = {"cpu": 32.0, "cuda float32": 25.6, "cuda half": 183.8}
# Entries of the work area that holds pre-activations.  A GPU takes whole rows, as many as keep its product busy; a CPU
# takes blocks of columns that stay in its cache, of ROWS rows, for memory that is fresh costs a page fault every 4 KiB.
AREA = {"cpu": 2**22, "cuda": 2**27}
ROWS = 1024
MIN_ROWS = 128  # of whole rows; below, the product reads its weights too often
GROUP = 32  # latents of which a top-k looks at the maximum first: reducing 32 floats runs at the speed of memory
MEMORY_SHARE = 0.25  # of the memory that is free: what a Gram matrix may take


@dataclass(frozen=True)
class Plan:
    """What `plan` chose, and why.

    rows     rows that are taken together
    columns  latents of them whose pre-activations are the work area, (rows, columns)
    decode   "sparse" or "dense": how codes are multiplied by the dictionary
    product  "residual" (decode, then multiply by D^T) or "gram" (gather rows of D^T D)
    reasons  one sentence a choice
    """

    rows: int
    columns: int
    decode: str
    product: str
    reasons: tuple[str, ...]


@cache
def has_kernels(device: str) -> bool:
    """Whether the Triton kernels of `kernels/` run on a torch device type."""
    return device == "cuda" and importlib.util.find_spec("triton") is not None


def kind_of(device: str, bytes_per_number: int) -> str:
    """The key of `RHO_S` for a torch device type and a number's size."""
    if device != "cuda":
        return "cpu"
    return "cuda half" if bytes_per_number == 2 else "cuda float32"


def gather_cost(k: int, d_sae: int, kind: str) -> float:
    """What decoding k entries a code by gathering costs, in dense products."""
    return RHO_S[kind] * k / d_sae


def look_cost(d_in: int, kind: str) -> float:
    """What one pass over the pre-activations costs, in products: none on a CPU, which looks at blocks in its cache."""
    return RHO_S[kind] / d_in if kind != "cpu" else 0.0


def plan(
    rows: int,
    d_in: int,
    d_sae: int,
    k: int,
    steps: int,
    *,
    kind: str = "cpu",
    bytes_per_number: int = 4,
    constant_step: bool = True,
    frozen: bool = True,
    free_bytes: float = 0.0,
) -> Plan:
    """The cheapest way to take `steps` k-sparse steps on `rows` rows, by the cost model above, with its reasons.

    What a step by Gram rows is and costs: prop-gram-step.  kind is a key of `RHO_S`.  A Gram matrix serves constant
    steps on frozen weights only, and only if its d_sae^2 numbers fit in MEMORY_SHARE of `free_bytes`.
    """
    gather = gather_cost(k, d_sae, kind)
    decode = "sparse" if gather < 1 else "dense"
    why_decode = f"decode: {decode}, since rho s k / P = {gather:.3g} {'<' if gather < 1 else '>='} 1 product"
    product, why = _product(rows, d_in, d_sae, k, steps, RHO_S[kind], min(gather, 1.0), bytes_per_number, free_bytes)
    if steps > 1 and not constant_step:
        product, why = "residual", "step sizes differ from row to row and step to step"
    elif steps > 1 and not frozen:
        product, why = "residual", "trained weights change their Gram matrix at every batch"
    elif steps > 1 and bytes_per_number == 2:
        product, why = "residual", "D^T x - D^T D z cancels, which half precision cannot afford"
    piece, columns = _area(rows, d_sae, k, kind)
    reasons = (
        f"rows: {piece} at a time, {columns} of {d_sae} latents,"
        f" a work area of {piece * columns * bytes_per_number / 2**20:.0f} MiB",
        why_decode,
        f"further steps: {why}" if steps < 2 else f"further steps: {product}, since {why}",
    )
    return Plan(piece, columns, decode, product, reasons)


def _area(rows: int, d_sae: int, k: int, kind: str) -> tuple[int, int]:
    """Rows and columns of the work area: blocks of columns where they leave 4 k groups or more to select among."""
    area = AREA["cpu" if kind == "cpu" else "cuda"]
    piece = max(1, min(rows, ROWS))
    columns = max(area // piece, 4 * k * GROUP) // GROUP * GROUP
    if kind != "cpu" or not k or d_sae % GROUP or columns >= d_sae:
        return max(1, min(rows, max(MIN_ROWS, area // d_sae))), d_sae
    return piece, columns


def _product(
    rows: int, d: int, P: int, k: int, steps: int, rho_s: float, decode: float, size: int, free: float
) -> tuple[str, str]:
    """The cheaper of residual and Gram for all further steps, and why."""
    if steps < 2:
        return "residual", "none"
    build, further = P / max(rows, 1), steps - 1
    residual = further * (1 + decode)
    gram = 1 + build + further * (rho_s * k / d + 3 * rho_s / d)  # D^T x and D^T D once; then gather, subtract, write
    costs = f"{gram:.2f} products by Gram rows (1 for D^T x, {build:.2f} for D^T D) against {residual:.2f} by residuals"
    if gram >= residual:
        return "residual", f"the model says {costs}"
    if P * P * size > MEMORY_SHARE * free:
        need, may = P * P * size / 2**30, MEMORY_SHARE * free / 2**30
        return "residual", f"D^T D needs {need:.1f} GiB and may take {may:.1f} ({MEMORY_SHARE:.0%} of what is free)"
    return "gram", f"the model says {costs}"
