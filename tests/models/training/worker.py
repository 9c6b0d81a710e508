"""One of several training workers, started by torchrun; the argument is a file that says what.

``runs`` is a list of ``{"training": settings, "out": folder, "resume": checkpoint or null}``. Each
leaves ``step-<n>`` checkpoints in its folder, ``losses.json``, and ``logits.pt``: what the trained
model makes of the tokens 0 to 19.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from compass_ray.config import Training
from compass_ray.training.group import join_group
from compass_ray.training.loop import Step, train


class Folder:
    """A reporter that keeps every checkpoint."""

    def __init__(self, folder: Path, resume: str | None) -> None:
        self._folder, self._resume = folder, resume

    def resume_from(self) -> Path | None:
        return Path(self._resume) if self._resume else None

    def on_step(self, step: Step, total: int) -> None:
        pass

    def save(self, folder: Path | None, metrics: Mapping[str, Any]) -> None:
        if folder:
            shutil.copytree(folder, self._folder / f"step-{metrics['step']}")
        dist.barrier()


def main(spec: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    join_group(on_gpu=False)
    for run in spec["runs"]:
        out = Path(run["out"])
        reporter = Folder(out, run.get("resume"))
        settings = Training.model_validate(run["training"])
        engine = train(settings, spec["prompts"], spec["responses"], 0, reporter)
        engine.eval()
        with torch.no_grad():
            logits = engine(input_ids=torch.arange(20)[None]).logits
        if dist.get_rank() == 0:
            torch.save(logits, out / "logits.pt")
        engine.destroy()
    # gloo aborts a worker whose peer goes while it is still taking leave; what counts is on disk.
    dist.barrier()
    time.sleep(1)
    os._exit(0)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
