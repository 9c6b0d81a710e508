"""From one entry of ``corpora`` in the config to files, and from files to rows.

Reads JSON lines and Parquet on any pyarrow filesystem and datasets on the hub, in batches, so
that memory does not grow with a file. Knows nothing of what the columns mean (``formats``,
``records``) nor of the built-in corpus ``atlas``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlencode

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from compass_ray import languages, records
from compass_ray.config import Source
from compass_ray.corpora.places import Place
from compass_ray.errors import UserError, first_line, shown
from compass_ray.formats import find_format, rename
from compass_ray.records import Normalised, Role

T = TypeVar("T")
Record = dict[str, Any]

# Extension → kind and compression.
_EXTENSIONS: dict[str, tuple[str, str | None]] = {".parquet": ("parquet", None)}
for _extension in (".jsonl", ".json", ".ndjson"):
    _EXTENSIONS[_extension] = ("jsonl", None)
    _EXTENSIONS[f"{_extension}.gz"] = ("jsonl", "gzip")
    _EXTENSIONS[f"{_extension}.zst"] = ("jsonl", "zstd")

MAX_LINE_BYTES = 64 << 20
"""A file with a longer line is not JSON lines, and reading on would fill the memory."""

_BATCH_ROWS = 4096
_CHUNK_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HUB = re.compile(r"hf:(?P<dataset>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, order=True)
class FileRef:
    """One file, or one split of a hub dataset, as ``read_batches`` takes it on any machine.

    Attributes:
        uri: Absolute path, or a URI; for the hub ``hf:owner/name?split=…&subset=…&revision=…``.
        kind: ``jsonl``, ``parquet`` or ``hub``.
        size: Bytes; 0 for the hub.
        mtime_ns: Time of the last change; 0 where it is not known, as on the hub.
    """

    uri: str
    kind: str
    size: int
    mtime_ns: int

    @property
    def name(self) -> str:
        """The uri as it may be shown and stored: without the credentials it may carry."""
        return shown(self.uri)


def list_files(source: Source) -> list[FileRef]:
    """The files an entry stands for, sorted by name.

    ``path`` is a file, a folder (all files in it with a known extension, at any depth, except
    those whose name begins with ``.`` or ``_``), a glob (``*``, ``?``, ``[…]``, and ``**`` for any
    number of folders) or ``hf:owner/dataset`` with an optional ``@revision``.

    Raises:
        UserError: There is no such file, or none of a known kind.
    """
    if source.path == "atlas":
        raise ValueError("atlas is made, not read; ask corpora.atlas for it")
    if source.path.startswith("hf:") and not source.path.startswith("hf://"):
        return [_hub_ref(source)]
    if source.split or source.subset:
        raise UserError(
            f"{shown(source.path)}: split and subset are of hub datasets (hf:owner/name); "
            "choose files by their path"
        )
    place = Place.of(source.path)
    try:
        found = list(place.files())
    except OSError as error:
        raise UserError(f"{shown(source.path)}: cannot be listed ({first_line(error)})") from error
    refs = [
        FileRef(place.uri(info.path), kind[0], info.size or 0, info.mtime_ns or 0)
        for info in found
        if (kind := file_kind(info.path))
    ]
    if refs:
        return sorted(refs)
    extensions = ", ".join(_EXTENSIONS)
    if found:
        raise UserError(f"{shown(source.path)}: no file of a known kind; expected {extensions}")
    raise UserError(f"{shown(source.path)}: no such file or folder, and no file matches it")


def read_batches(ref: FileRef, batch_rows: int = _BATCH_ROWS) -> Iterator[tuple[int, list[Record]]]:
    """Read a file in batches: the number of the first record, counted from 0, and the records.

    Raises:
        UserError: The file is not what its name says; names the file and, for JSON lines, the line.
    """
    first = 0
    for batch in _READERS[ref.kind](ref, batch_rows):
        yield first, batch
        first += len(batch)


def is_blank(line: bytes) -> bool:
    """Whether a line of JSON lines holds nothing to parse."""
    return not line.removeprefix(_BYTE_ORDER_MARK).strip()


def parse_line(line: bytes) -> Record:
    """The object that a line of JSON lines holds, with or without the line's end.

    A byte order mark before it is passed over: files that were put together have one inside.

    Raises:
        ValueError: It is no object of JSON in UTF-8; the message says what it is, in one line.
    """
    line = line.removeprefix(_BYTE_ORDER_MARK)
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise ValueError(f"not valid UTF-8 (byte {byte:#04x} at {error.start + 1})") from None
    except (ValueError, RecursionError) as error:
        reason = first_line(error)
        raise ValueError(f"not valid JSON ({reason}); expected one object a line") from None
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}; expected one object a line")
    return value


def open_stream(ref: FileRef) -> pa.NativeFile:
    """The bytes of a file as they are stored, from the start.

    Raises:
        UserError: The file cannot be opened.
    """
    place = Place.of(ref.uri)
    try:
        return place.filesystem.open_input_stream(place.path, compression=None)
    except OSError as error:
        raise UserError(f"{ref.name}: cannot be read ({first_line(error)})") from error


def read_files(files: Sequence[FileRef], source: Source, role: Role) -> Iterator[Normalised]:
    """Read files of an entry as rows, up to ``source.rows`` records in all, each file its share.

    Raises:
        UserError: As ``read_batches`` and ``records.to_rows``.
    """
    left = source.rows
    files = reading_order(files, left)
    for number, ref in enumerate(files):
        for part in read_file(ref, source, role, rows=next_share(left, len(files) - number)):
            yield part
            if left is not None:
                left -= part.rows.num_rows + part.rejected.num_rows
        if left is not None and left <= 0:
            return


def reading_order(files: Sequence[FileRef], rows: int | None) -> Sequence[FileRef]:
    """Under a limit the smallest come first: what one lacks of its share, the larger ones have."""
    return files if rows is None else sorted(files, key=lambda ref: ref.size)


def next_share(left: int | None, files: int) -> int | None:
    """Most rows of the next of so many files, where so many are left for all of them."""
    return None if left is None else -(-left // files)


def read_file(
    ref: FileRef, source: Source, role: Role, *, rows: int | None = None
) -> Iterator[Normalised]:
    """Read one file as rows: columns renamed, format found once, weight multiplied.

    Args:
        ref: The file.
        source: The entry it belongs to.
        role: What the rows are for.
        rows: Most records to take, at least 1; those that are rejected count, those in a language
            that ``source.languages`` does not list do not.
    """
    format_ = source.format
    language = source.language
    batch_rows = _BATCH_ROWS if rows is None or source.languages else min(_BATCH_ROWS, rows)
    left = rows
    for first, batch in read_batches(ref, batch_rows):
        try:
            if first == 0:
                check_renames(source, batch)
            batch = rename(batch, source.columns)
            if format_ == "auto":
                format_ = records.detect_format(set[str]().union(*batch))
            language = language or _language_of_subset(ref, source, format_)
            part = records.to_rows(
                batch,
                format=format_,
                role=role,
                language=language,
                source=ref.name,
                first_row=first,
            )
        except UserError as error:
            raise UserError(f"{ref.name}: {error}") from None
        part = taken(part, source.languages, left, first_row=first)
        yield _weighted(part, source.weight)
        if left is not None:
            left -= part.rows.num_rows + part.rejected.num_rows
            if left <= 0:
                return


def check_renames(source: Source, batch: list[Record]) -> None:
    """Raise ``UserError`` for a column to rename that no record of the batch has."""
    seen = set[str]().union(*batch)
    if missing := sorted(set(source.columns) - seen):
        raise UserError(
            f"columns renames {', '.join(missing)}; the columns are {', '.join(sorted(seen))}"
        )


def taken(
    part: Normalised, listed: Sequence[str] | None, most: int | None, *, first_row: int = 0
) -> Normalised:
    """Of records in their order, the first ``most`` that are in a listed language or rejected.

    Args:
        part: All of the records from number ``first_row`` on.
        listed: Languages; None: any.
        most: None: no limit.
        first_row: As in ``records.to_rows``.
    """
    count = part.rows.num_rows + part.rejected.num_rows
    if not listed and (most is None or count <= most):
        return part
    rejected_N = np.zeros(count, bool)
    rejected_N[part.rejected["row"].to_numpy() - first_row] = True
    counts_N = np.ones(count, bool)
    if listed:
        counts_N[~rejected_N] = np.isin(part.rows["language"].to_pylist(), listed)
    before_limit_N = np.cumsum(counts_N) - counts_N < (count if most is None else most)
    kept_N = counts_N & before_limit_N
    return Normalised(
        part.rows.filter(pa.array(kept_N[~rejected_N])),
        part.rejected.filter(pa.array(kept_N[rejected_N])),
        int((before_limit_N & ~counts_N).sum()),
    )


def file_kind(path: str) -> tuple[str, str | None] | None:
    """Kind and compression of a file by its extension."""
    name = path.lower()
    return next((kind for end, kind in _EXTENSIONS.items() if name.endswith(end)), None)


def _hub_ref(source: Source) -> FileRef:
    match = _HUB.fullmatch(source.path)
    if match is None:
        raise UserError(f"{source.path}: expected hf:owner/dataset or hf:owner/dataset@revision")
    chosen = [
        ("revision", match["revision"]),
        ("split", source.split or "train"),
        ("subset", source.subset),
    ]
    query = urlencode([(key, value) for key, value in chosen if value])
    return FileRef(f"hf:{match['dataset']}?{query}", "hub", 0, 0)


def _read_jsonl(ref: FileRef, batch_rows: int) -> Iterator[list[Record]]:
    return _chunks(_objects(_lines(ref), ref.name), batch_rows)


def _lines(ref: FileRef) -> Iterator[bytes]:
    place = Place.of(ref.uri)
    _, compression = file_kind(place.path) or (None, None)
    number, rest = 0, b""
    try:
        with place.filesystem.open_input_stream(place.path, compression=compression) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                number += len(lines)
                if len(rest) > MAX_LINE_BYTES:
                    raise UserError(
                        f"{ref.name}:{number + 1}: line longer than {MAX_LINE_BYTES >> 20} MiB; "
                        "expected one object a line"
                    )
                yield from lines
    except OSError as error:
        raise UserError(f"{ref.name}: cannot be read ({first_line(error)})") from error
    yield rest


def _objects(lines: Iterable[bytes], name: str) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if is_blank(line):
            continue
        try:
            record = parse_line(line)
        except ValueError as error:
            raise UserError(f"{name}:{number}: {error}") from None
        yield record


def _read_parquet(ref: FileRef, batch_rows: int) -> Iterator[list[Record]]:
    place = Place.of(ref.uri)
    try:
        with (
            place.filesystem.open_input_file(place.path) as file,
            pq.ParquetFile(file) as parquet,
        ):
            for batch in parquet.iter_batches(batch_rows):
                yield records.as_records(batch)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{ref.name}: not a readable Parquet file ({first_line(error)})") from error


def _read_hub(ref: FileRef, batch_rows: int) -> Iterator[list[Record]]:
    import datasets

    dataset, _, query = ref.uri.removeprefix("hf:").partition("?")
    chosen = {key: values[0] for key, values in parse_qs(query).items()}
    try:
        rows = datasets.load_dataset(
            dataset,
            chosen.get("subset"),
            split=chosen["split"],
            revision=chosen.get("revision"),
            streaming=True,
        )
        yield from _chunks(rows, batch_rows)
    except (OSError, ValueError, OverflowError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{ref.name}: cannot be read from the hub ({first_line(error)})") from error


_READERS = {"jsonl": _read_jsonl, "parquet": _read_parquet, "hub": _read_hub}


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _language_of_subset(ref: FileRef, source: Source, format_: str) -> str | None:
    """The benchmarks on the hub name the language by the subset only."""
    if ref.kind != "hub" or not source.subset or not find_format(format_).multiple_choice:
        return None
    return languages.find(source.subset)


def _weighted(part: Normalised, weight: float) -> Normalised:
    if weight == 1.0 or "weight" not in part.rows.column_names:
        return part
    i = part.rows.schema.get_field_index("weight")
    weights = pc.multiply(part.rows.column(i), weight)
    return replace(part, rows=part.rows.set_column(i, part.rows.schema.field(i), weights))
