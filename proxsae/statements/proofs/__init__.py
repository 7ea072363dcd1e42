"""Machine proofs: what real arithmetic can state, z3 proves over *all* reals, every parameter a symbol.

For separable penalties the formulas are not copied: a proof calls the `entry_value` and `entry_prox` that NumPy runs,
with symbols for numbers (`RealArithmetic`), so what is proved is what runs, but for rounding.  Code that sorts cannot
run on symbols: sparse.py and groups.py state its formula anew, which tests hold to the code.  The `scope` of a proof
says how much of its statement it proves.  Next to each stands a false variant with a planted error; z3 must refute it,
and the numbers it finds are worked out again in floats, without z3.

    prox.py         every prox is the minimiser of smallest magnitude, signed and non-negative
    groups.py       the radial problem of GroupL2, and SortedL1 for two entries
    inequalities.py what holds of every scalar prox: monotone, odd, shrinking, firmly nonexpansive, Moreau
    sparse.py       keeping the k largest magnitudes, for P <= 3
    identities.py   descent, step sizes, certificates and fixed points, with one latent
    learned.py      ALISTA, coupled weights, leave-one-out: one entry or one latent
    arithmetic.py   the symbols, and how z3 is asked; solver.py: what a proof is

Needs `pip install 'proxsae[test]'`; without z3 the package imports, and `prove` raises `Error`.

>>> [p.statement for p in PROOFS.values() if p.name == "prox-l0-nonneg"]
['lem-nonneg']
"""

from proxsae.statements.proofs import (  # noqa: F401, I001  (each registers its proofs, in this order)
    prox,
    groups,
    inequalities,
    sparse,
    identities,
    learned,
)
from proxsae.statements.proofs.arithmetic import RealArithmetic
from proxsae.statements.proofs.solver import PROOFS, WHOLE, Goal, Proof, prove, refute, violated

__all__ = ["PROOFS", "WHOLE", "Goal", "Proof", "RealArithmetic", "prove", "refute", "violated"]
