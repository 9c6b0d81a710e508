"""What a GPU can do, by its name."""

from __future__ import annotations

import re

from compass_ray.costs import GPU_UTILISATION

# Part of the name → dense bfloat16 TFLOP/s, and GB where the name gives no size. First match wins.
_GPUS: tuple[tuple[str, float, float | None], ...] = (
    ("H200", 990, 141),
    ("H100", 990, 80),
    ("A100", 312, 40),
    ("L40S", 362, 48),
    ("A10G", 70, 24),
    ("A10", 125, 24),
    ("4090", 165, 24),
)
_OTHER_GPU_TFLOPS = 100.0


def gpu_flops(name: str) -> float:
    """Operations a second that training is taken to reach on a GPU of this name."""
    peak = next((tflops for part, tflops, _ in _GPUS if part in name), _OTHER_GPU_TFLOPS)
    return peak * 1e12 * GPU_UTILISATION


def gpu_bytes(name: str) -> int | None:
    """Memory of a GPU by its name; None if the name is not known."""
    known = next((gigabytes for part, _, gigabytes in _GPUS if part in name), None)
    written = re.search(r"(?<![A-Za-z0-9])(\d+) ?GB?\b", name)
    gigabytes = float(written[1]) if written else known
    return round(gigabytes * 1e9) if gigabytes else None
