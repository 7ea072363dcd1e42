"""Data: packaged real activations, the user's own files, and planted dictionaries with known truth.  NumPy only."""

from proxsae.data.files import packaged, read
from proxsae.data.planted import Planted, planted

__all__ = ["Planted", "packaged", "planted", "read"]
