"""What a file says of an SAE beside its tensors: `sae.json`, and the description that a training run is known by."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, cast

import numpy as np

from proxsae.penalties import L0
from proxsae.penalties.base import check_dataclass
from proxsae.sae.parameters import Parameters


def describe(sae: Parameters) -> dict[str, Any]:
    """Everything about an SAE that its tensors do not say, as JSON has it."""
    R = check_dataclass(sae.common.penalty, "written to a file")
    parameters = {f.name: np.asarray(getattr(R, f.name)).tolist() for f in fields(R)}
    if isinstance(R, L0):
        del parameters["lam"]  # it is in the trained threshold
    step = sae.encoding.step
    return {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "penalty": {"family": type(R).__name__, **parameters},
        "steps": "inf" if sae.encoding.endless else int(sae.encoding.steps),
        "step": {"rule": type(step).__name__, **asdict(cast(Any, step))},
        "analysis": sae.encoding.analysis,
        "b_enc": sae.encoding.b_enc,
        "normalize": sae.normalize,
        "metadata": sae.metadata,
    }
