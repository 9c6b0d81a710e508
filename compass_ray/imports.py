"""Libraries without what they import wherever it is installed, though a worker has no use for it.

Together that is a third of what a worker of training imports, by time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


def load_peft(quantised: bool) -> None:
    """Import PEFT, with bitsandbytes only if ``quantised``: else it knows no QLoRA from here on."""
    with _not_importable(*([] if quantised else ["bitsandbytes"])):
        from peft.import_utils import is_bnb_4bit_available, is_bnb_available

        # Whatever these say is remembered.
        is_bnb_available()
        is_bnb_4bit_available()


def load_deepspeed() -> None:
    """Import DeepSpeed without MLflow, which is for its autotuner."""
    with _not_importable("mlflow"):
        import deepspeed  # noqa: F401


@contextmanager
def _not_importable(*names: str) -> Iterator[None]:
    """What is not loaded yet cannot be, inside."""
    hidden = [name for name in names if name not in sys.modules]
    # An import that finds None there is an ImportError.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
