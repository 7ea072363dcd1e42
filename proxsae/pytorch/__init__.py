"""The fast wing: the operators, the iteration and the solvers in torch, on CPU and CUDA, with gradients.

Each room has its oracle in `proxsae.reference` or `proxsae.penalties`; `tests/twins/` holds one against the other.
"""
