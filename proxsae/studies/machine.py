"""Where a run computes: the device, the processor, and the versions of what computes."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from proxsae.conventions import Error


def device_named(name: str) -> str:
    """Return the name of a device that torch can compute on, or raise `Error`."""
    import torch

    try:
        torch.zeros(1, device=name).tolist()
    except (RuntimeError, AssertionError) as problem:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
            msg = f"--device {name} must be cpu, cuda or cuda:N"
            raise Error(msg) from None
        msg = f"--device {name} is not there: {str(problem).splitlines()[0]}"
        raise Error(msg) from None
    return name


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
