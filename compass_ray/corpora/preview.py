"""What the corpora hold, told cheaply: rows by language, and a sample to measure their length.

Parquet files tell their number of rows; JSON lines are counted, and above ``EXACT_BYTES`` a source
estimated from the beginning of a file; the hub is not asked. Languages are those of rows spread
evenly over a file, all of them where it is small. Knows nothing of Ray or the cache.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from compass_ray.config import Role, Source
from compass_ray.corpora import atlas
from compass_ray.corpora.places import Place
from compass_ray.corpora.sources import (
    FileRef,
    Record,
    check_renames,
    file_kind,
    is_blank,
    list_files,
    next_share,
    parse_line,
    reading_order,
    taken,
)
from compass_ray.errors import UserError, first_line
from compass_ray.formats import rename
from compass_ray.records import EVALUATION_SCHEMA, SCHEMA, as_records, to_rows

EXACT_BYTES = 64 << 20
"""JSON lines of a source are counted up to so many bytes."""
HEAD_BYTES = 4 << 20
"""Of a larger file, so much is read to estimate the rest."""
SAMPLE_ROWS = 4096
"""Rows of a source whose language and length are looked at."""

_MAX_FILES = 64
_CHUNK_BYTES = 1 << 20
_ROW_COLUMNS = ("language", "prompt", "response")
_ITEM_COLUMNS = ("language", "question", "options")

Certainty = Literal["exact", "estimated", "at least", "unknown"]


@dataclass(frozen=True)
class Preview:
    """Rows of one role.

    Attributes:
        rows: accepted rows; None where nothing is known.
        languages: rows by language.
        certainty: of ``rows``: ``at least`` where some sources are known and some are not.
        languages_certain: whether ``languages`` is counted, not estimated.
        sample: some rows: ``language``, ``prompt``, ``response``; of evaluation items
            ``language``, ``question``, ``options``.
        rejected: share of the rows looked at that fit no format, and the reason of the first.
    """

    rows: int | None
    languages: dict[str, int]
    certainty: Certainty
    languages_certain: bool
    sample: pa.Table
    rejected: tuple[float, str] | None = None


@dataclass
class _Tally:
    """Rows as they are counted, source by source."""

    rows: float = 0.0
    languages: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    samples: list[pa.Table] = field(default_factory=list)
    exact: bool = True
    languages_exact: bool = True
    known: int = 0
    unknown: int = 0
    looked_at: int = 0
    rejected: int = 0
    reason: str = ""

    def add(self, rows: pa.Table, stands_for: float, *, certain: bool = True) -> None:
        """Count a sample that stands for so many rows."""
        self.rows += stands_for
        self.languages_exact &= certain
        for language, count in Counter(rows["language"].to_pylist()).items():
            self.languages[language] += count * stands_for / rows.num_rows
        self.samples.append(rows)

    def stretch(self, factor: float) -> None:
        """Let what was counted stand for so many times as much."""
        self.exact = self.languages_exact = False
        self.rows *= factor
        for language in self.languages:
            self.languages[language] *= factor

    def merge(self, other: _Tally) -> None:
        self.rows += other.rows
        for language, count in other.languages.items():
            self.languages[language] += count
        self.samples += other.samples
        self.exact &= other.exact
        self.languages_exact &= other.languages_exact
        self.known += other.known
        self.unknown += other.unknown
        self.looked_at += other.looked_at
        self.rejected += other.rejected
        self.reason = self.reason or other.reason

    def close(self, role: Role) -> Preview:
        empty = no_sample(role)
        certainty: Certainty = "exact" if self.exact else "estimated"
        if self.unknown:
            certainty = "at least" if self.known else "unknown"
        return Preview(
            rows=round(self.rows) if certainty != "unknown" else None,
            languages={name: round(count) for name, count in sorted(self.languages.items())},
            certainty=certainty,
            languages_certain=self.languages_exact and certainty == "exact",
            sample=pa.concat_tables([empty, *(s.select(empty.column_names) for s in self.samples)]),
            rejected=(self.rejected / self.looked_at, self.reason) if self.rejected else None,
        )


def preview(role: Role, sources: Sequence[Source], targets: Sequence[str]) -> Preview:
    """Count and sample the rows of a role.

    Args:
        role: What the rows are for.
        sources: The entries of ``corpora.<role>``.
        targets: ``languages`` of the configuration.

    Raises:
        UserError: A source is not there, cannot be read, or is in no known format.
    """
    tally = _Tally()
    for source in sources:
        built_in = source.path == "atlas"
        tally.merge(_atlas(role, source, targets) if built_in else _files(role, source))
    return tally.close(role)


def no_sample(role: Role) -> pa.Table:
    """A sample of no rows, which says what columns one has."""
    items = role == "evaluation"
    empty = (EVALUATION_SCHEMA if items else SCHEMA).empty_table()
    return empty.select(_ITEM_COLUMNS if items else _ROW_COLUMNS)


def sample_of(table: pa.Table, rows: int) -> pa.Table:
    """At most so many rows, spread evenly over the table."""
    if table.num_rows <= rows:
        return table
    return table.take([i * table.num_rows // rows for i in range(rows)])


def _atlas(role: Role, source: Source, targets: Sequence[str]) -> _Tally:
    languages = source.languages or (atlas.LANGUAGES if role == "auxiliary" else targets)
    if role == "evaluation":
        made = atlas.item_rows(languages, source.rows).rows
    else:
        made = atlas.rows(role, languages, source.rows)
    tally = _Tally(known=1)
    if made.num_rows:
        tally.add(made, made.num_rows)
    return tally


def _files(role: Role, source: Source) -> _Tally:
    files = reading_order(list_files(source), source.rows)
    if any(file.kind == "hub" for file in files):
        return _Tally(unknown=1)
    tally = _Tally(known=1)
    most = SAMPLE_ROWS // min(len(files), _MAX_FILES)
    left = source.rows
    countable, opened_in_part = EXACT_BYTES, False
    opened = skipped = 0
    for number, file in enumerate(files):
        whole = file.kind == "parquet" or file.size <= countable
        if number >= _MAX_FILES or (opened_in_part and not whole):
            skipped += file.size
            continue
        opened += file.size
        opened_in_part |= not whole
        if file.kind == "jsonl" and whole:
            countable -= file.size
        head = _read_head(file, None if whole else HEAD_BYTES, most)
        rows = _add_head(tally, role, source, file, head, next_share(left, len(files) - number))
        if left is not None:
            left -= rows
            if left <= 0:
                return tally
    if skipped and tally.rows:
        # What was not opened is taken to be like what was.
        more = tally.rows * skipped / opened
        tally.stretch(1 + (more if left is None else min(more, left)) / tally.rows)
    return tally


@dataclass(frozen=True)
class _Head:
    """What was read of a file: ``share`` of its bytes, with so many ``rows``, some of them kept."""

    rows: int
    share: float
    kept: list[Record]

    @property
    def all_kept(self) -> bool:
        return self.share == 1 and len(self.kept) == self.rows


def _add_head(
    tally: _Tally, role: Role, source: Source, file: FileRef, head: _Head, most: int | None
) -> int:
    """Count a file by its head; returns the records it stands for, at most ``most``."""
    if not head.kept:
        return 0
    try:
        check_renames(source, head.kept)
        normalised = to_rows(
            rename(head.kept, source.columns),
            format=source.format,
            role=role,
            language=source.language,
            source=file.name,
        )
    except UserError as error:
        raise UserError(f"{file.name}: {error}") from None
    normalised = taken(normalised, source.languages, most)
    accepted, rejected = normalised.rows, normalised.rejected
    found = accepted.num_rows + rejected.num_rows
    looked_at = found + normalised.not_listed
    tally.looked_at += looked_at
    if rejected.num_rows:
        tally.reason = tally.reason or f"{file.name}: {rejected['reason'][0].as_py()}"
        tally.rejected += rejected.num_rows
    tally.exact &= head.share == 1 and (head.all_kept or found == accepted.num_rows == looked_at)
    total: int = round(head.rows / head.share * found / looked_at)
    if most is not None:
        total = min(total, most)
    if accepted.num_rows:
        tally.add(accepted, total * accepted.num_rows / found, certain=head.all_kept)
    return total


def _read_head(file: FileRef, limit: int | None, most: int) -> _Head:
    try:
        place = Place.of(file.uri)
        if file.kind == "parquet":
            return _parquet_head(place, most)
        return _jsonl_head(place, file, limit, most)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file.name}: cannot be read ({first_line(error)})") from None


def _parquet_head(place: Place, most: int) -> _Head:
    with place.filesystem.open_input_file(place.path) as stream, pq.ParquetFile(stream) as parquet:
        rows = parquet.metadata.num_rows
        groups = _spread(parquet.metadata.num_row_groups, 8) if rows > most else None
        each = max(1, most // len(groups)) if groups else most
        kept: list[Record] = []
        for group in [[g] for g in groups] if groups else [None]:
            for batch in parquet.iter_batches(each, row_groups=group):
                kept += as_records(batch)
                if groups:
                    break
        return _Head(rows, 1.0, kept)


def _jsonl_head(place: Place, file: FileRef, limit: int | None, most: int) -> _Head:
    stride, rows, rest = 1, 0, b""
    kept: list[tuple[int, bytes]] = []
    number = 0
    with place.filesystem.open_input_file(place.path) as raw:
        stream = _decompressed(raw, place.path)
        while chunk := stream.read(_CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                number += 1
                if not is_blank(line):
                    if rows % stride == 0:
                        kept.append((number, line))
                    rows += 1
            if len(kept) > 2 * most:
                # Every second line goes, so that what stays is spread over all that was read.
                kept, stride = kept[::2], stride * 2
            if limit is not None and raw.tell() >= limit:
                share = min(1.0, raw.tell() / max(file.size, 1))
                return _Head(rows, share, _parsed(_thinned(kept, most), file))
    if not is_blank(rest):
        kept.append((number + 1, rest))
        rows += 1
    return _Head(rows, 1.0, _parsed(_thinned(kept, most), file))


def _decompressed(raw: Any, path: str) -> Any:
    _, compression = file_kind(path) or (None, None)
    return pa.CompressedInputStream(raw, compression) if compression else raw


def _parsed(lines: Iterable[tuple[int, bytes]], file: FileRef) -> list[Record]:
    records = []
    for number, line in lines:
        try:
            records.append(parse_line(line))
        except ValueError as error:
            raise UserError(f"{file.name}:{number}: {error}") from None
    return records


def _spread(count: int, most: int) -> list[int]:
    return list(range(count)) if count <= most else [i * count // most for i in range(most)]


def _thinned(lines: list[tuple[int, bytes]], most: int) -> list[tuple[int, bytes]]:
    return [lines[i] for i in _spread(len(lines), most)]
