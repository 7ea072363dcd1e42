"""Data: packaged activations and contrast pairs, the user's own files, planted dictionaries.

NumPy only, but for `.pt` files, which torch reads.
"""

from proxsae.data.contrasts import Contrast, contrasts
from proxsae.data.files import packaged, read
from proxsae.data.opening import open_rows, survey
from proxsae.data.planted import Planted, planted
from proxsae.data.rows import Rows
from proxsae.data.shuffle import Shuffle
from proxsae.data.survey import Survey

__all__ = [
    "Contrast", "Planted", "Rows", "Shuffle", "Survey", "contrasts", "open_rows", "packaged", "planted", "read",
    "survey",
]  # fmt: skip
