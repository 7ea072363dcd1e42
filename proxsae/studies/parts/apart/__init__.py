"""What a trained encoder leaves: the amortisation gap, and density and dictionary told apart from it."""
