"""Planted problems: what is found again of a known dictionary and known codes."""
