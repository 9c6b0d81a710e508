"""The gap sampler: from distributions over clusters to one training subset per language."""
