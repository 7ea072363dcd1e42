"""Studies: each returns its measurements as rows."""
