"""Studies of encoder steps: `depth` measures what more of them change, and every part returns rows of measurements.

Torch loads only when `depth` is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxsae.studies.depth_study import depth

__all__ = ["depth"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("proxsae.studies.depth_study"), name)
    msg = f"module 'proxsae.studies' has no attribute {name!r}"
    raise AttributeError(msg)
