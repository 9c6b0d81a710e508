"""Usage logs that grow: what is new in them since they were last read, each record once.

A file is known by its content, not its name: what was read of it is a prefix with a digest, and
any file that begins with a prefix that was read goes on behind it. So a log that grew, was
renamed by a rotation or is given twice is never counted twice, and one that was cut and begun anew
under its old name is read from its start. Knows nothing of languages, clusters or windows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from compass_ray.config import Source
from compass_ray.corpora.sources import (
    MAX_LINE_BYTES,
    FileRef,
    Record,
    is_blank,
    list_files,
    open_stream,
    parse_line,
    read_batches,
)
from compass_ray.errors import UserError

_BATCH = 1024
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Bookmark:
    """How far a file was read.

    Attributes:
        name: as it was called then.
        size: in bytes, then; with ``mtime_ns`` it tells a file that has not changed since. Until a
            file is read to its end, ``mtime_ns`` is 0.
        position: bytes read of a growing file; all of them, of one that is read whole.
        records: records taken, broken ones counted.
        digest: of the first ``position`` bytes.
    """

    name: str
    size: int
    mtime_ns: int
    position: int
    records: int
    digest: str


@dataclass(frozen=True)
class Chunk:
    """Records of one file.

    Attributes:
        name: of the file.
        records: objects, and ``numbers`` their lines (from 1) or rows (from 0) in the file.
        broken: lines that are no objects, a message each.
        waiting: what is left for the next time, empty if nothing is.
        begins: whether these are the first records of the file.
        bookmarks: where reading is to go on once this chunk is dealt with, of all files.
    """

    name: str
    records: list[Record]
    numbers: list[int]
    broken: list[str]
    waiting: str
    begins: bool
    bookmarks: tuple[Bookmark, ...]


def new_records(path: str, bookmarks: Sequence[Bookmark]) -> Iterator[Chunk]:
    """What the files of ``path`` (file, folder or glob) hold behind the bookmarks, in name order.

    Files of JSON lines may grow; a last line that is not whole yet waits. Parquet and compressed
    files are read whole.

    Raises:
        UserError: there is no such file, or one is not what its name says.
    """
    if path == "atlas" or path.startswith("hf:"):
        raise UserError(f"{path}: no log; expected a file, folder or glob of jsonl or parquet")
    known = tuple(bookmarks)
    for ref in list_files(Source(path=path)):
        if any(_unchanged(ref, bookmark) for bookmark in known):
            continue
        found = _longest_prefix(ref, known)
        start = found or Bookmark(ref.name, ref.size, ref.mtime_ns, 0, 0, "")
        start = replace(start, name=ref.name, size=ref.size, mtime_ns=ref.mtime_ns)
        others = tuple(mark for mark in known if mark is not found and mark.position)
        for read in _read_lines(ref, start) if _grows(ref) else _read_whole(ref, start):
            begins, known = start.records == 0, (*others, read.bookmark)
            start = read.bookmark
            yield Chunk(
                ref.name, read.records, read.numbers, read.broken, read.waiting, begins, known
            )


@dataclass
class _Read:
    bookmark: Bookmark
    records: list[Record] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    waiting: str = ""


def _unchanged(ref: FileRef, bookmark: Bookmark) -> bool:
    seen = (bookmark.name, bookmark.size, bookmark.mtime_ns)
    return seen == (ref.name, ref.size, ref.mtime_ns) and ref.mtime_ns > 0


def _grows(ref: FileRef) -> bool:
    return ref.kind == "jsonl" and not ref.name.lower().endswith((".gz", ".zst"))


def _longest_prefix(ref: FileRef, known: Sequence[Bookmark]) -> Bookmark | None:
    """The bookmark whose prefix this file begins with; the longest, should there be several."""
    growing = _grows(ref)
    by_position: dict[int, list[Bookmark]] = {}
    for bookmark in known:
        fits = bookmark.position <= ref.size if growing else bookmark.position == ref.size
        if bookmark.position and fits:
            by_position.setdefault(bookmark.position, []).append(bookmark)
    found, read, digest = None, 0, _hasher()
    with open_stream(ref) as stream:
        for position in sorted(by_position):
            while read < position and (data := stream.read(min(_CHUNK, position - read))):
                digest.update(data)
                read += len(data)
            for bookmark in by_position[position]:
                if bookmark.digest == digest.hexdigest():
                    found = bookmark
    return found


def _read_lines(ref: FileRef, start: Bookmark) -> Iterator[_Read]:
    """Whole lines behind the bookmark, in chunks; also a last one without an end that is JSON."""
    digest = _hasher()
    read = _Read(start)
    with open_stream(ref) as stream:
        _skip(stream, start.position, digest)
        for number, (line, ended) in enumerate(_lines(stream, ref.name), start.records + 1):
            value: Record | None = None
            problem = ""
            if not is_blank(line):
                try:
                    value = parse_line(line)
                except ValueError as error:
                    problem = str(error)
            if not ended and value is None:
                if problem:
                    read.waiting = f"{ref.name}:{number}: {problem}; a last line, it may grow"
                break
            digest.update(line)
            if value is not None:
                read.records.append(value)
                read.numbers.append(number)
            elif problem:
                read.broken.append(f"{ref.name}:{number}: {problem}; set aside")
            read.bookmark = replace(
                start, position=read.bookmark.position + len(line), records=number
            )
            if len(read.records) + len(read.broken) >= _BATCH:
                read.bookmark = replace(read.bookmark, digest=digest.hexdigest(), mtime_ns=0)
                yield read
                read = _Read(read.bookmark)
    if read.records or read.broken or read.waiting:
        read.bookmark = replace(read.bookmark, digest=digest.hexdigest(), mtime_ns=ref.mtime_ns)
        yield read


def _lines(stream: Any, name: str) -> Iterator[tuple[bytes, bool]]:
    """Lines with their ends, and whether they have one."""
    rest = b""
    while data := stream.read(_CHUNK):
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise UserError(
                f"{name}: a line over {MAX_LINE_BYTES >> 20} MiB; expected one object a line"
            )
        yield from ((line + b"\n", True) for line in lines)
    if rest:
        yield rest, False


def _read_whole(ref: FileRef, start: Bookmark) -> Iterator[_Read]:
    digest = _hasher()
    with open_stream(ref) as stream:
        size = _skip(stream, ref.size, digest)
    # Its end is not known before it is reached, so such a file is digested at every look.
    behind = replace(start, position=size, digest=digest.hexdigest(), mtime_ns=0)
    for first, batch in read_batches(ref, _BATCH):
        fresh = batch[max(0, start.records - first) :]
        if fresh:
            end = first + len(batch)
            bookmark = replace(behind, records=end)
            yield _Read(bookmark, fresh, list(range(end - len(fresh), end)))


def _skip(stream: Any, count: int, digest: Any) -> int:
    """Read and digest ``count`` bytes; returns how many there were."""
    read = 0
    while read < count and (data := stream.read(min(_CHUNK, count - read))):
        digest.update(data)
        read += len(data)
    return read


def _hasher() -> Any:
    return hashlib.blake2b(digest_size=16)
