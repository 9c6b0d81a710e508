"""Where the Fisher information of an adapter lies, for all who handle the file without torch."""

from __future__ import annotations

FISHER_FILE = "fisher.safetensors"
