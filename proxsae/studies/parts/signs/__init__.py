"""Signs: concepts with two sides, and steering along a latent."""
