"""What a row of measurements is, and how its numbers read as text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Row = dict[str, Any]  # one measurement; flat, and of what JSON knows: text, numbers, None


def cell(value: Any, digits: int = 4) -> str:
    """Return `value` for a table: floats to `digits` significant digits, scientific at either end."""
    if value is None:
        return "-"
    if not isinstance(value, float | np.floating):
        return str(value)
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    # "#" keeps trailing zeros, so that digits line up; the exponent loses its padding to stay narrow.
    in_full = -3 <= int(exponent) < digits
    return f"{value:#.{digits}g}".rstrip(".") if in_full else f"{mantissa}e{int(exponent)}"
