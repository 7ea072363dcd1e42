"""Data: packaged real activations, the user's own files, and planted dictionaries with known truth.  NumPy only."""

from proxsae.data.files import packaged, read
from proxsae.data.planted import Planted, planted
from proxsae.data.rows import Rows, open_rows
from proxsae.data.shuffle import Shuffle

__all__ = ["Planted", "Rows", "Shuffle", "open_rows", "packaged", "planted", "read"]
