"""Data: packaged activations and contrast pairs, the user's own files, planted dictionaries.

NumPy only, but for `.pt` files, which torch reads.
"""

from proxsae.data.contrasts import Contrast, contrasts
from proxsae.data.files import packaged, read
from proxsae.data.planted import Planted, planted
from proxsae.data.rows import Rows, open_rows
from proxsae.data.shuffle import Shuffle
from proxsae.data.survey import Survey, survey

__all__ = [
    "Contrast", "Planted", "Rows", "Shuffle", "Survey", "contrasts", "open_rows", "packaged", "planted", "read",
    "survey",
]  # fmt: skip
