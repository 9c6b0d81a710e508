"""A package, since only one of those ends a fixture of its own scope with its last test."""
