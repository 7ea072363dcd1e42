"""Proved rates against what the steps of an SAE reach."""
