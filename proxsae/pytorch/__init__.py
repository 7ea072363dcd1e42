"""The fast wing: the operators, the iteration and the solvers in torch, on CPU and CUDA, with gradients.

Its oracle is NumPy, in `proxsae.reference` and `proxsae.penalties`; `tests/twins/` compares the two.
"""
