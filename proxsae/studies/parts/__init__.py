"""The parts of the depth study, one folder each: `measure` makes rows, `section` tells of them."""
