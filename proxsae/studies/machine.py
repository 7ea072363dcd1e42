"""What a run is described by: the processor, and the versions of what computes."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def machine() -> str:
    """The processor and how many cores it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def versions() -> str:
    """The versions of what computes."""
    import torch

    from proxsae import __version__

    return f"proxsae {__version__}, torch {torch.__version__}, Python {platform.python_version()}"


def about_machine() -> dict[str, Any]:
    """What a report says of the machine."""
    import torch

    return {"threads": torch.get_num_threads(), "machine": machine(), "versions": versions()}
