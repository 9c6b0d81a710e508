"""Ray Tune over any keys of the configuration; trials share the cache."""
