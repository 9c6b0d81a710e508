"""What watching keeps between two looks at a log, and how it survives a kill.

``<run>/monitor/state.json`` holds how far each file was read, which prompts wait for their window
to fill (in ``pending-*.parquet``) and what every window came to. It is replaced in one step after
each chunk of prompts, so a chunk is counted whole or not at all; where windows are times, of which
each file may hold a part, after all chunks of a look.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from compass_ray.continual.runfolder import RunFolder

STATE = "monitor/state.json"

PENDING_SCHEMA = pa.schema(
    [
        pa.field("language", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("response", pa.string()),
        pa.field("weight", pa.float64()),
        pa.field("timestamp", pa.timestamp("us", tz="UTC")),
        pa.field("cluster", pa.int32()),
        pa.field("distance", pa.float32()),
    ]
)


@dataclass
class State:
    """What is kept between two looks at the log.

    Attributes:
        bookmarks: how far each file was read.
        pending: file of the prompts that wait, None if none do.
        windows: what each window came to, in the order they were judged; with ``partial``, what one
            that is not full came to so far.
        counted: prompts counted by language, those without an adapter too.
        set_aside: records that were no prompts.
        losses: by language, the version and the losses of its first full window with answers.
    """

    bookmarks: list[dict[str, Any]] = field(default_factory=list)
    pending: str | None = None
    windows: list[dict[str, Any]] = field(default_factory=list)
    counted: dict[str, int] = field(default_factory=dict)
    set_aside: int = 0
    losses: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_state(run: RunFolder) -> State:
    """The state that the last look left; a new one where there was none."""
    path = run.path(STATE)
    return State(**run.storage.read_json(path)) if run.storage.exists(path) else State()


def read_pending(run: RunFolder, state: State) -> pa.Table:
    """The prompts that wait, as ``PENDING_SCHEMA`` has them."""
    if state.pending is None:
        return PENDING_SCHEMA.empty_table()
    return run.storage.read_table(run.path(f"monitor/{state.pending}"))


def write_state(run: RunFolder, state: State, pending: pa.Table) -> None:
    """New pending prompts under a new name, then the state that names them, in one step."""
    storage, before = run.storage, state.pending
    number = int(before.split("-")[1].split(".")[0]) + 1 if before else 1
    state.pending = f"pending-{number:06d}.parquet"
    storage.write_table(run.path(f"monitor/{state.pending}"), pending)
    storage.write_json(run.path(STATE), asdict(state))
    for name in storage.list_files(run.path("monitor")):
        if name.startswith("pending-") and name != state.pending:
            storage.filesystem.delete_file(storage.path(run.path(f"monitor/{name}")))
