"""OneRuler (Kim et al., 2025): long-context retrieval and aggregation in 26 languages."""
