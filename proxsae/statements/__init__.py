"""Statements, one file a page of docs/theory: what is claimed, what implements it, and the check that can fail.

The checks share the formulas of plain.py and the k-sparse encoder of dense_encoder.py, both in NumPy.
"""

from proxsae.statements import (  # noqa: F401, I001  (in the order of the docs; each registers its statements)
    proximal, one_step, signs, descent, certificates, hard, steps, gradients, sparse_steps, mixed_precision, more_steps,
    learned, false,
)  # fmt: skip
from proxsae.statements.registry import PLANTED, STATEMENTS, Kit, Planted, Statement, problem, run
from proxsae.statements.table import box, caught, checked_by, details, machine, markdown, proof_status, proved_whole

__all__ = [
    "PLANTED", "STATEMENTS", "Kit", "Planted", "Statement", "box", "caught", "checked_by", "details", "machine",
    "markdown", "problem", "proof_status", "proved_whole", "run",
]  # fmt: skip
