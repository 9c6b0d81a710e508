"""One light adapter per language: data, adapters, loop, and their launch on Ray Train."""
