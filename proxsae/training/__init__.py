"""Training: the loop, what it minimises, and its files."""

from proxsae.training.loop import train

__all__ = ["train"]
