"""Encoders side by side on one dictionary: computed steps, greedy pursuit, learned layers, distilled steps."""
