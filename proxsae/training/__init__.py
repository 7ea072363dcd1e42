"""Training: the loop, what it minimises, its files; dictionary learning without a gradient; distilled encoders."""

from proxsae.training.dictionary import learn_dictionary
from proxsae.training.distilling import distill
from proxsae.training.loop import train

__all__ = ["distill", "learn_dictionary", "train"]
