"""CUDA kernels in Triton: top-k, sparse decode and its adjoint, weight gradients, exact scores.

Nothing here loads Triton: the modules that hold kernels import it, and their callers import them on first use, for
CUDA tensors.  Each kernel is deterministic: no atomics, and sums in a fixed order.
`proxsae.pytorch.cost_model` decides where they run.
"""
