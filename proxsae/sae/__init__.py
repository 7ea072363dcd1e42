"""Sparse autoencoders: the class, the published choices of its penalty, and files."""

from proxsae.sae.loading import load
from proxsae.sae.model import SAE
from proxsae.sae.published import abstopk_sae, jumprelu_sae, relu_sae, topk_sae

__all__ = ["SAE", "abstopk_sae", "jumprelu_sae", "load", "relu_sae", "topk_sae"]
