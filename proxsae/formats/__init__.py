"""Other libraries' checkpoints: read into the one form of `proxsae.SAE`, and written in SAELens's.

Every format has a file here whose first lines give its layout and its encoder.  What a format does beyond

    u = (x' - b_dec) W_enc + b_enc,   z = prox_R(u),   xhat' = z W_dec + b_dec

is folded into these tensors in float64 and rounded once, or refused.  Files are taken to be hostile (`files.py`).
"""

from proxsae.formats.parts import DTYPES, Found
from proxsae.formats.recognise import read
from proxsae.formats.write import model_metadata, saelens_cfg, saelens_layout, write_saelens

__all__ = ["DTYPES", "Found", "model_metadata", "read", "saelens_cfg", "saelens_layout", "write_saelens"]
