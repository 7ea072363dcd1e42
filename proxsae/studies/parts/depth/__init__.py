"""Error against the number of encoder steps, in training and after it."""
