"""ISTA, FISTA and IHT against their proved bounds."""
