"""CUDA kernels in Triton, and the cost model that chooses between ways to multiply.

Nothing here loads Triton: the modules that hold kernels (`topk`, `decode`, `gradients`, `encode`, `scores`) import it,
and their callers import them on first use, for CUDA tensors.  Each kernel is deterministic: no atomics, and sums in a
fixed order.
"""
