"""Patient-level differential privacy: training, its randomness, and what it costs."""
