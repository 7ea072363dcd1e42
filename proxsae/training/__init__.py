"""Training: the loop, what it minimises, and its files; and dictionary learning, which needs no gradient."""

from proxsae.training.dictionary import learn_dictionary
from proxsae.training.loop import train

__all__ = ["learn_dictionary", "train"]
