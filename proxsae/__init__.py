"""proxsae: the encoder of a sparse autoencoder is one step of proximal gradient; take more steps.

The operators with their proofs, the iteration, SAEs; in NumPy and in torch, which are tested against each other.
Torch loads only when a name that needs it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from proxsae.certificates import coherence, duality_gap, fixed_point_residual, lambda_max, lipschitz
from proxsae.conventions import Error, did_you_mean
from proxsae.learned import ALISTA, LISTA, LISTACP, OMP, Accumulated, LearnedSteps, MatchingPursuit, TiLISTA
from proxsae.minimal_coherence import minimal_coherence
from proxsae.penalties import L0, L1, MCP, SCAD, BatchKSparse, ElasticNet, GroupL2, KSparse, Penalty, SortedL1
from proxsae.penalties.published import PUBLISHED
from proxsae.pruning import leave_one_out
from proxsae.reference.iteration import ista, solve
from proxsae.steps import Backtracking, ExactStep, FixedStep, Lipschitz, Refit, Solution, Trace

if TYPE_CHECKING:
    from proxsae import data, models, studies, testing
    from proxsae.pytorch.codes import SparseCodes
    from proxsae.pytorch.unrolled import Unrolled
    from proxsae.sae import SAE, abstopk_sae, jumprelu_sae, load, relu_sae, topk_sae
    from proxsae.sae.evaluation import evaluate
    from proxsae.training import distill, learn_dictionary, train

__version__ = "0.1.0"

# Names that load torch (or much else), and where they live.
_LAZY = {
    **dict.fromkeys(("SAE", "abstopk_sae", "jumprelu_sae", "load", "relu_sae", "topk_sae"), "proxsae.sae"),
    "SparseCodes": "proxsae.pytorch.codes",
    "Unrolled": "proxsae.pytorch.unrolled",
    "distill": "proxsae.training",
    "evaluate": "proxsae.sae.evaluation",
    "learn_dictionary": "proxsae.training",
    "train": "proxsae.training",
}

__all__ = [  # noqa: RUF022  (grouped by what they are)
    # penalties
    "L1", "L0", "KSparse", "ElasticNet", "MCP", "SCAD", "GroupL2", "SortedL1", "BatchKSparse", "Penalty",
    # the iteration and its step rules
    "ista", "solve", "Trace", "Solution", "Lipschitz", "FixedStep", "Backtracking", "ExactStep", "Refit",
    # steps of an encoder that no theorem computes: learned, and greedy
    "LearnedSteps", "LISTA", "LISTACP", "TiLISTA", "ALISTA", "Accumulated", "MatchingPursuit", "OMP", "Unrolled",
    # certificates
    "duality_gap", "fixed_point_residual", "lambda_max", "lipschitz", "coherence", "minimal_coherence",
    "leave_one_out",
    # sparse autoencoders
    "SAE", "relu_sae", "jumprelu_sae", "topk_sae", "abstopk_sae", "SparseCodes", "load", "train", "evaluate",
    "learn_dictionary", "distill",
    # the rest
    "data", "models", "studies", "testing", "Error",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in ("data", "models", "studies", "testing"):
        return importlib.import_module(f"proxsae.{name}")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    msg = f"module 'proxsae' has no attribute {name!r}{_hint(name)}"
    raise AttributeError(msg)


def _hint(name: str) -> str:
    """What to write in place of a name that is not there: the penalty of a published SAE, or the nearest name."""
    for key, one in PUBLISHED.items():
        if name.lower().removesuffix("sae").strip("_") == one.title.replace(" ", "").lower():
            argument = "k" if "KSparse" in one.family.__name__ else "lam"
            penalty = f"px.{one.family.__name__}({argument}{', nonneg=True' if one.nonneg else ''})"
            whole = f"px.{key}_sae" if f"{key}_sae" in __all__ else "px.SAE"
            return f": as a penalty it is {penalty}, and as an autoencoder {whole}(...)"
    return did_you_mean(name, __all__).replace("mean ", "mean px.")


def __dir__() -> list[str]:
    return sorted(__all__)
