"""Scores of base and adapters per item, on lm-evaluation-harness, and honest statistics."""
