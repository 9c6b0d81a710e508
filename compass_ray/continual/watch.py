"""Watching a usage log: new prompts in, windows judged, and a state that survives a kill.

A window is judged when it is full: by its number of prompts, or, if it is a time, when a later
prompt is there. A look that is the last for now judges what is left over, too, as far as it goes;
those prompts go on waiting, and the full window's verdict will replace the one so far. Few prompts
show little, so a verdict so far may raise an alarm, but does not end that of a full window.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from compass_ray import formats, metrics, records
from compass_ray.clustering.novelty import is_novel
from compass_ray.continual.drift import Located
from compass_ray.continual.monitor import DriftMonitor
from compass_ray.continual.performance import LossMeter, compare_losses
from compass_ray.continual.runfolder import Locator, RunFolder
from compass_ray.continual.state import PENDING_SCHEMA, read_pending, read_state, write_state
from compass_ray.continual.usagelog import Bookmark, Chunk, new_records
from compass_ray.continual.windows import Window, by_number, by_time
from compass_ray.errors import UserError

EXAMPLES, EXAMPLE_CHARS = 3, 200
MANY_RECORDS = 20
"""At the head of a file: if most of so many are no prompts, it is no usage log."""


@dataclass
class Look:
    """What one look at the log brought.

    Attributes:
        prompts: new prompts by language.
        windows: windows judged now.
        messages: what a person should know, a line each.
        standing: verdict of each language's newest window against its current adapter; a window
            that is not full and stable does not take the place of a full one.
    """

    prompts: Counter[str] = field(default_factory=Counter)
    windows: list[dict[str, Any]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    standing: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def drifted(self) -> bool:
        return any(verdict["drifted"] or verdict.get("worse") for verdict in self.standing.values())


class Watch:
    """Looks at a log again and again.

    Args:
        run: the finished run.
        examples: keep prompts as examples; without it no text is written anywhere, but for what
            ``losses`` and ``keep_drifted`` need until a window is full.
        losses: also compare the adapter's loss on answers that are in the log.
        keep_drifted: write the prompts of windows that drifted to ``monitor/drifted/``.

    Raises:
        UserError: no language of the run has an adapter.
    """

    def __init__(
        self,
        run: RunFolder,
        examples: bool = True,
        losses: bool = False,
        keep_drifted: bool = False,
    ) -> None:
        self._run = run
        self._examples = examples
        self._keep_drifted = keep_drifted
        self._meter = LossMeter(run) if losses else None
        self._window = run.config.continual.window
        self._locator = Locator(run)
        languages = run.languages()
        if not languages:
            raise UserError(f"run {run.name}: no language has an adapter, so nothing to watch")
        self._monitors = {lang: DriftMonitor(run, lang, self._locator) for lang in languages}
        self._state = read_state(run)

    def look(self, path: str, close: bool) -> Look:
        """Count what is new in ``path`` and judge every window that is full.

        Args:
            path: file, folder or glob of the log.
            close: judge the prompts that are left over, too, and a time that is over by the clock.

        Raises:
            UserError: there is no such file, or most records at the head of one are no prompts;
                windows judged before it stay judged, and nothing is counted twice.
        """
        look = Look()
        self._refresh()
        bookmarks = [Bookmark(**mark) for mark in self._state.bookmarks]
        pending, news = read_pending(self._run, self._state), False
        for chunk in new_records(path, bookmarks):
            pending, news = self._take(chunk, pending, look), True
            if isinstance(self._window, int):
                pending = self._judge(pending, look, close=False)
        if close or (news and isinstance(self._window, str)):
            self._judge(pending, look, close)
        self._tell(path, look)
        return look

    def _refresh(self) -> None:
        """Take notice of versions that became current in the meantime."""
        for language in self._monitors:
            if self._run.current(language).number != self._monitors[language].version.number:
                self._monitors[language] = DriftMonitor(self._run, language, self._locator)

    def _take(self, chunk: Chunk, pending: pa.Table, look: Look) -> pa.Table:
        """The prompts that wait, with those of the chunk."""
        source = self._run.usage_source(chunk.name)
        found = formats.rename(chunk.records, source.columns)
        try:
            rows = records.to_rows(
                found,
                format=source.format,
                role="usage",
                language=source.language,
                source=chunk.name,
            )
        except UserError as error:  # none of the records has the columns of a known format
            if self._is_no_log(chunk):
                raise UserError(f"{chunk.name}: {error}") from None
            rows = records.to_rows([], role="usage", language=None, source=chunk.name)
            refused = [f"{chunk.name}:{number}: {error}; set aside" for number in chunk.numbers]
        else:
            refused = [
                f"{chunk.name}:{chunk.numbers[bad['row']]}: {bad['reason']}; set aside"
                for bad in rows.rejected.to_pylist()
            ]
        usable = rows.rows
        if self._meter and usable.num_rows:
            answers = _answers(found, source.format, set(rows.rejected["row"].to_pylist()))
            index = usable.schema.get_field_index("response")
            usable = usable.set_column(index, usable.schema.field(index), answers)
        problems = [*chunk.broken, *refused]
        if len(problems) > (len(found) + len(chunk.broken)) / 2 and self._is_no_log(chunk):
            raise UserError(f"{problems[0]} ({len(problems):,} such records; is it a usage log?)")
        look.messages += [*problems[:5], *([chunk.waiting] if chunk.waiting else [])]
        if len(problems) > 5:
            look.messages.append(f"{chunk.name}: {len(problems) - 5} more records set aside")
        counts = Counter(usable["language"].to_pylist())
        located = [self._locate(usable, language) for language in counts]
        look.prompts += counts
        self._state.bookmarks = [asdict(bookmark) for bookmark in chunk.bookmarks]
        self._state.counted = dict(Counter(self._state.counted) + counts)
        self._state.set_aside += len(problems)
        return pa.concat_tables([pending, *(table for table in located if table is not None)])

    def _is_no_log(self, chunk: Chunk) -> bool:
        """Whether a file that begins with bad records is a mistake, rather than a log with some."""
        many = len(chunk.records) + len(chunk.broken) >= MANY_RECORDS
        return chunk.begins and (many or not self._state.counted)

    def _locate(self, rows: pa.Table, language: str) -> pa.Table | None:
        if language not in self._monitors:
            return None
        mine = rows.filter(pc.equal(rows["language"], language))
        weights = mine["weight"].to_pylist()
        located = self._locator.locate(mine["prompt"].to_pylist(), language, weights)
        table = mine.append_column("cluster", pa.array(located.clusters_N))
        table = table.append_column("distance", pa.array(located.distances_N))
        if not (self._examples or self._keep_drifted or self._meter):
            index = table.schema.get_field_index("prompt")
            table = table.set_column(index, "prompt", pa.nulls(table.num_rows, pa.string()))
        return table.select(PENDING_SCHEMA.names).cast(PENDING_SCHEMA)

    def _judge(self, pending: pa.Table, look: Look, close: bool) -> pa.Table:
        """Judge full windows, and write the state with what is left, which is returned."""
        left = []
        languages = pending["language"].to_pylist()
        for language in dict.fromkeys(languages):
            rows = pending.filter(pc.equal(pending["language"], language))
            *full, (rest, end) = self._cut(rows, language, close)
            for window, until in full:
                self._add(self._verdict(language, window, until), look)
            if close and self._is_worth_a_look(language, rest.num_rows):
                self._add(self._verdict(language, rest, end, partial=True), look)
            left.append(rest)
        remaining = pa.concat_tables(left) if left else pending
        write_state(self._run, self._state, remaining)
        return remaining

    def _add(self, verdict: dict[str, Any], look: Look) -> None:
        """Note a verdict, in the place of one so far."""
        kept = [
            other
            for other in self._state.windows
            if other["language"] != verdict["language"] or not other.get("partial")
        ]
        self._state.windows = [*kept, verdict]
        look.windows.append(verdict)

    def _windows(self, language: str) -> list[dict[str, Any]]:
        return [verdict for verdict in self._state.windows if verdict["language"] == language]

    def _so_far(self, language: str) -> dict[str, Any] | None:
        """What the current version's window that is filling came to when it was last judged."""
        newest = (self._windows(language) or [{}])[-1]
        current = newest.get("version") == self._monitors[language].version.name
        return newest if newest.get("partial") and current else None

    def _is_worth_a_look(self, language: str, rows: int) -> bool:
        """Each look at a window spends of alpha, so the next one waits for twice the prompts."""
        so_far = self._so_far(language)
        return rows >= 2 * so_far["rows"] if so_far else rows > 0

    def _cut(self, rows: pa.Table, language: str, close: bool) -> Iterator[Window]:
        """Full windows, each with the end of its time, then what is left of the last one."""
        if isinstance(self._window, int):
            return by_number(rows, self._window)
        ends = [
            verdict.get("until")
            for verdict in self._windows(language)
            if not verdict.get("partial")
        ]
        judged = max((datetime.fromisoformat(end) for end in ends if end), default=None)
        return by_time(rows, self._window, judged, datetime.now(UTC) if close else None)

    def _verdict(
        self, language: str, rows: pa.Table, until: datetime | None, partial: bool = False
    ) -> dict[str, Any]:
        monitor = self._monitors[language]
        located = Located(
            rows["cluster"].to_numpy(), rows["distance"].to_numpy(), rows["weight"].to_numpy()
        )
        so_far = self._so_far(language)
        looks = so_far.get("looks", 1) if so_far else 0
        alpha = self._run.config.continual.alpha
        # A window alarms at a rate of at most alpha, however often it is looked at: a quarter, an
        # eighth, … for the looks before it is full, and then what they leave for certain.
        alpha /= 2 ** (looks + 2) if partial else 2 ** (looks > 0)
        if self._meter:
            alpha /= 2  # the other half is for the losses
        report = monitor.check(located, alpha)
        number = 1 + sum(not verdict.get("partial") for verdict in self._windows(language))
        stamps = [stamp for stamp in rows["timestamp"].to_pylist() if stamp is not None]
        verdict = {
            "language": language,
            "window": number,
            "partial": partial,
            "looks": looks + partial,
            "until": until.isoformat() if until else None,
            "version": monitor.version.name,
            "judged": datetime.now(UTC).isoformat(timespec="seconds"),
            "first": min(stamps).isoformat() if stamps else None,
            "last": max(stamps).isoformat() if stamps else None,
            "drifted": report.drifted,
            **asdict(report),
            **self._loss(language, rows, partial, alpha),
        }
        if self._examples:
            for move in verdict["moves"]:
                move["examples"] = _examples(rows, rows["cluster"].to_numpy() == move["cluster"])
            far = is_novel(rows["distance"].to_numpy(), report.cutoff)
            verdict["novel_examples"] = _examples(rows, far)
        if self._keep_drifted and report.drifted:
            verdict["kept"] = f"monitor/drifted/{language}-{number:04d}.parquet"
            kept = rows.select(["language", "prompt", "weight", "timestamp"])
            # Prompts that were counted with --no-examples are not known any more.
            kept = kept.filter(pc.is_valid(kept["prompt"]))
            self._run.storage.write_table(self._run.path(verdict["kept"]), kept)
        for name in ("divergence", "threshold", "novel_share", "drifted"):
            metrics.record(f"compass_drift_{name}", float(verdict[name]), language=language)
        return verdict

    def _loss(self, language: str, rows: pa.Table, partial: bool, alpha: float) -> dict[str, Any]:
        """Losses of the window's answers against those of the version's first full one with any."""
        answered = rows.filter(pc.is_valid(rows["response"]))
        if self._meter is None or not answered.num_rows:
            return {"worse": False}
        losses = self._meter.losses(
            answered["prompt"].to_pylist(), answered["response"].to_pylist(), language
        )
        if not len(losses):
            return {"worse": False}
        version = self._monitors[language].version.name
        known = self._state.losses.get(language)
        if known is None or known["version"] != version:
            if not partial:
                self._state.losses[language] = {"version": version, "values": losses.tolist()}
            return {"worse": False}
        report = compare_losses(known["values"], losses, alpha, self._run.config.run.seed)
        return {"worse": report.worse, "loss": asdict(report)}

    def _tell(self, path: str, look: Look) -> None:
        for language, count in look.prompts.items():
            if language not in self._monitors:
                look.messages.append(
                    f"{language}: {count:,} prompts, but run {self._run.name} has no adapter for "
                    f"it (it has {', '.join(self._monitors)}); counted, not judged"
                )
        if not look.prompts:
            total = sum(self._state.counted.values())
            look.messages.append(
                f"{path}: nothing new; the {total:,} prompts counted before stay counted once"
                if total
                else f"{path}: no prompts, an empty window says nothing"
            )
        for language, monitor in self._monitors.items():
            for verdict in self._windows(language):
                alarms = verdict["drifted"] or verdict.get("worse")
                settles = alarms or not verdict.get("partial") or language not in look.standing
                if verdict["version"] == monitor.version.name and settles:
                    look.standing[language] = verdict


def _answers(found: list[dict[str, Any]], name: str, rejected: set[int]) -> pa.Array:
    """The response of each record that is a prompt, null where it has none."""
    name = records.detect_format(set[str]().union(*found)) if name == "auto" else name
    read = formats.find_format(name).read
    taken = [record for number, record in enumerate(found) if number not in rejected]
    answers = []
    for record in taken:
        fields = read(record)
        # What was asked last in a chat has no answer yet.
        answers.append(fields.response or record.get("response") if fields.asked is None else None)
    return pa.array([a if isinstance(a, str) and a.strip() else None for a in answers], pa.string())


def _examples(rows: pa.Table, chosen_N: np.ndarray) -> list[str]:
    prompts = rows["prompt"].filter(pa.array(chosen_N)).drop_null()[:EXAMPLES].to_pylist()
    return [p if len(p) <= EXAMPLE_CHARS else f"{p[:EXAMPLE_CHARS]}…" for p in prompts]


def looks(watch: Watch, path: str, every: float | None) -> Iterator[Look]:
    """One look that closes the last window, or, every so many seconds, looks that brought news.

    Raises:
        UserError: as ``Watch.look``.
    """
    if every is None:
        yield watch.look(path, close=True)
        return
    while True:
        look = watch.look(path, close=False)
        if look.prompts or look.windows:
            yield look
        time.sleep(every)
