"""Read every corpus into parts of canonical rows, a file at a time, all files side by side.

A part is what later stages schedule, cache and lose: ``corpora.rows_per_part`` rows in one
parquet file. A source that has not changed is not read again.

Of auxiliary and own rows that repeat each other, in whichever files, the first stays. What users
ask and what is scored is taken as it is: a prompt asked twice is asked more.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import pyarrow as pa

from compass_ray import artifacts
from compass_ray.artifacts import Artifact, Draft, Storage
from compass_ray.config import ROLES, Cleaning, Config, Role, Source
from compass_ray.corpora import atlas
from compass_ray.corpora.cleaning import DUPLICATE, NOT_LISTED, clean, first_seen
from compass_ray.corpora.sources import FileRef, list_files, read_files
from compass_ray.errors import UserError
from compass_ray.parallel import map_parts
from compass_ray.progress import Progress
from compass_ray.records import REJECTED_SCHEMA, Normalised

log = logging.getLogger(__name__)

STAGE = "records"
VERSION = 3
REJECTED = "rejected.parquet"
MAX_REJECTED = 10_000
"""Rejected records of one reading that are kept; all are counted."""
CLEANED: tuple[Role, ...] = ("auxiliary", "train")


@dataclass(frozen=True)
class Part:
    """Rows of one role in one file.

    Attributes:
        role: what they are for.
        path: of the file in the storage.
        rows: how many.
        languages: rows by language.
        content: hash of their ids in order, all that their vectors depend on.
        values: hash of what the ids leave out and later stages use: weights, answers, subjects.
        labels: hash of subjects, sources and timestamps, which no stage uses but subsets keep.
    """

    role: Role
    path: str
    rows: int
    languages: dict[str, int]
    content: str
    values: str
    labels: str = ""

    def identity(self) -> list[str]:
        """What everything but vectors and clusters depends on."""
        return [self.content, self.values]


@dataclass(frozen=True)
class Corpus:
    """All parts, in the order of the configuration, whatever order they were read in."""

    parts: tuple[Part, ...]
    rejected: dict[Role, int]
    dropped: dict[Role, dict[str, int]]
    reused: int
    computed: int

    def of(self, *roles: Role) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.role in roles)

    def rows(self, *roles: Role) -> int:
        return sum(part.rows for part in self.of(*roles))

    def languages(self, *roles: Role) -> Counter[str]:
        counts: Counter[str] = Counter()
        for part in self.of(*roles):
            counts.update(part.languages)
        return counts


@dataclass(frozen=True)
class _Reading:
    """One unit of reading: a file, or one language of atlas, or files under one row limit."""

    role: Role
    source: Source
    files: tuple[FileRef, ...]
    language: str | None
    rows_per_part: int
    cleaning: Cleaning
    storage: Storage

    @property
    def fingerprint(self) -> str:
        return artifacts.fingerprint(
            stage=STAGE,
            version=VERSION,
            role=self.role,
            source=self.source.identity(),
            files=[asdict(file) for file in self.files],
            language=self.language,
            atlas=atlas.VERSION if not self.files else None,
            rows_per_part=self.rows_per_part,
            cleaning=self.cleaning.reading_identity(),
        )


@dataclass(frozen=True)
class _Merging:
    """All readings of one role, of whose repeated rows the first is kept."""

    role: Role
    readings: tuple[str, ...]
    parts: tuple[Part, ...]
    storage: Storage

    @property
    def fingerprint(self) -> str:
        return artifacts.fingerprint(stage=STAGE, version=VERSION, merged=self.readings)


def read_corpora(config: Config, storage: Storage) -> Corpus:
    """Read, or find in the cache, every source of the configuration.

    Raises ``UserError`` for a source that cannot be read, and when more than
    ``corpora.max_rejected`` of a role's rows fit no format.
    """
    readings = _all_readings(config, storage)
    found = _look_up(storage, readings)
    missing = [reading for reading in readings if reading.fingerprint not in found]
    if missing:
        progress = Progress("read", len(missing), "sources")
        for done, artifact in enumerate(map_parts(missing, _read), start=1):
            found[artifact.fingerprint] = artifact
            progress.at(done)
    committed = _committed(readings, found)
    _check_rejected(config, committed)
    mergings = _mergings(committed)
    merged = _look_up(storage, mergings)
    unmerged = [merging for merging in mergings if merging.fingerprint not in merged]
    for artifact in map_parts(unmerged, _merge):
        merged[artifact.fingerprint] = artifact
    corpus = _corpus(committed, _committed(mergings, merged), computed=len(missing))
    for role in CLEANED:
        if repeated := corpus.dropped[role].get(DUPLICATE):
            log.info("corpora.%s: %s %s dropped", role, f"{repeated:,}", DUPLICATE)
    return corpus


def find_corpora(config: Config, storage: Storage) -> Corpus | None:
    """What ``read_corpora`` gives, if all of it is in the cache; raises what that raises."""
    readings = _all_readings(config, storage)
    found = _look_up(storage, readings)
    if any(reading.fingerprint not in found for reading in readings):
        return None
    committed = _committed(readings, found)
    _check_rejected(config, committed)
    mergings = _mergings(committed)
    merged = _look_up(storage, mergings)
    if any(merging.fingerprint not in merged for merging in mergings):
        return None
    return _corpus(committed, _committed(mergings, merged), computed=0)


def count_cached(config: Config, storage: Storage) -> tuple[int, int]:
    """Files, and languages of atlas, that the corpora consist of, and how many are read already.

    Raises ``UserError`` for a source that is not there.
    """
    readings = _all_readings(config, storage)
    found = _look_up(storage, readings)
    return len(readings), sum(reading.fingerprint in found for reading in readings)


def _all_readings(config: Config, storage: Storage) -> list[_Reading]:
    return [
        reading
        for role, sources in config.corpora.sources(config.languages).items()
        for source in sources
        for reading in _readings(config, storage, role, source)
    ]


def _readings(config: Config, storage: Storage, role: Role, source: Source) -> list[_Reading]:
    size = config.corpora.rows_per_part
    cleaning = config.corpora.cleaning if role in CLEANED else Cleaning()
    if source.path != "atlas":
        files = list_files(source)
        groups = [tuple(files)] if source.rows else [(file,) for file in files]
        return [_Reading(role, source, group, None, size, cleaning, storage) for group in groups]
    everyone = atlas.LANGUAGES if role == "auxiliary" else config.languages
    return [
        _Reading(role, source, (), language, size, cleaning, storage)
        for language in source.languages or everyone
    ]


_Work = TypeVar("_Work", _Reading, _Merging)


def _look_up(storage: Storage, work: Sequence[_Work]) -> dict[str, Artifact]:
    return artifacts.find_all(storage, STAGE, (item.fingerprint for item in work))


def _committed(
    work: Sequence[_Work], found: Mapping[str, Artifact]
) -> list[tuple[_Work, Artifact]]:
    return [(item, found[item.fingerprint]) for item in work]


def _mergings(committed: list[tuple[_Reading, Artifact]]) -> list[_Merging]:
    mergings = []
    for role in CLEANED:
        mine = [(reading, artifact) for reading, artifact in committed if reading.role == role]
        parts = _parts(mine)
        if parts:
            keys = tuple(reading.fingerprint for reading, _ in mine)
            mergings.append(_Merging(role, keys, parts, mine[0][0].storage))
    return mergings


def _parts(committed: Iterable[tuple[_Reading, Artifact]]) -> tuple[Part, ...]:
    return tuple(
        Part(reading.role, artifact.path(part["file"]), **_without(part, "file"))
        for reading, artifact in committed
        for part in artifact.summary["parts"]
    )


def _corpus(
    committed: list[tuple[_Reading, Artifact]],
    merged: list[tuple[_Merging, Artifact]],
    computed: int,
) -> Corpus:
    by_role: dict[Role, list[tuple[_Reading, Artifact]]] = {
        role: [(reading, artifact) for reading, artifact in committed if reading.role == role]
        for role in ROLES
    }
    parts = {role: _parts(mine) for role, mine in by_role.items()}
    dropped = {role: _added(a.summary["dropped"] for _, a in by_role[role]) for role in ROLES}
    for merging, artifact in merged:
        parts[merging.role] = _merged_parts(merging, artifact)
        dropped[merging.role] = _added([dropped[merging.role], artifact.summary["dropped"]])
    return Corpus(
        parts=tuple(part for role in ROLES for part in parts[role]),
        rejected={role: sum(a.summary["rejected"] for _, a in by_role[role]) for role in ROLES},
        dropped=dropped,
        reused=len(committed) - computed,
        computed=computed,
    )


def _merged_parts(merging: _Merging, artifact: Artifact) -> tuple[Part, ...]:
    """The role's parts as they were read, but for those that were written anew."""
    parts = []
    for part, written in zip(merging.parts, artifact.summary["parts"], strict=True):
        if written is None:
            parts.append(part)
        elif written["rows"]:
            path = artifact.path(written["file"])
            parts.append(Part(merging.role, path, **_without(written, "file")))
    return tuple(parts)


def _merge(merging: _Merging) -> Artifact:
    storage = merging.storage
    ids = (storage.read_table(part.path, ["id"])["id"].to_pylist() for part in merging.parts)
    draft = artifacts.begin(storage, STAGE, merging.fingerprint)
    written: list[dict[str, Any] | None] = []
    repeated = 0
    for number, (part, fresh) in enumerate(zip(merging.parts, first_seen(ids), strict=True)):
        again = int((~fresh).sum())
        rows = storage.read_table(part.path).filter(pa.array(fresh)) if again else None
        written.append(None if rows is None else _write(draft, number, rows))
        repeated += again
    return draft.commit({"parts": written, "dropped": {DUPLICATE: repeated} if repeated else {}})


def _read(reading: _Reading) -> Artifact:
    draft = artifacts.begin(reading.storage, STAGE, reading.fingerprint)
    parts: list[dict[str, Any]] = []
    rejected: list[pa.Table] = []
    dropped: Counter[str] = Counter()
    total = refused = 0
    waiting: list[pa.Table] = []
    for batch in _batches(reading):
        total += batch.rows.num_rows + batch.rejected.num_rows + batch.not_listed
        if batch.rejected.num_rows and refused < MAX_REJECTED:
            rejected.append(batch.rejected[: MAX_REJECTED - refused])
        refused += batch.rejected.num_rows
        rows, gone = clean(batch.rows, reading.cleaning)
        dropped += gone + Counter({NOT_LISTED: batch.not_listed})
        waiting.append(rows)
        while sum(table.num_rows for table in waiting) >= reading.rows_per_part:
            rows = pa.concat_tables(waiting)
            parts.append(_write(draft, len(parts), rows[: reading.rows_per_part]))
            waiting = [rows[reading.rows_per_part :]]
    if sum(table.num_rows for table in waiting):
        parts.append(_write(draft, len(parts), pa.concat_tables(waiting)))
    if rejected:
        draft.write_table(REJECTED, pa.concat_tables(rejected))
    return draft.commit(
        {
            "parts": parts,
            "total": total,
            "rejected": refused,
            "dropped": dropped,
        }
    )


def _batches(reading: _Reading) -> Iterator[Normalised]:
    source, role = reading.source, reading.role
    if reading.language is None:
        yield from read_files(reading.files, source, role)
    elif role == "evaluation":
        yield atlas.item_rows([reading.language], source.rows)
    else:
        rows = atlas.rows(role, [reading.language], source.rows)
        yield Normalised(rows, REJECTED_SCHEMA.empty_table())


def _write(draft: Draft, number: int, rows: pa.Table) -> dict[str, Any]:
    name = f"part-{number:05d}.parquet"
    draft.write_table(name, rows)
    languages = Counter(rows["language"].to_pylist())
    left_out = ("answer", "subject") if "answer" in rows.column_names else ("weight",)
    labels = {name: rows[name].to_pylist() for name in ("subject", "source")}
    if "timestamp" in rows.column_names:
        labels["timestamp"] = rows["timestamp"].cast(pa.int64()).to_pylist()
    digest = hashlib.blake2b("".join(rows["id"].to_pylist()).encode(), digest_size=16)
    return {
        "file": name,
        "rows": rows.num_rows,
        "languages": dict(sorted(languages.items())),
        "content": digest.hexdigest(),
        "values": artifacts.fingerprint(**{n: rows[n].to_pylist() for n in left_out}),
        "labels": artifacts.fingerprint(**labels),
    }


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


def _check_rejected(config: Config, committed: list[tuple[_Reading, Artifact]]) -> None:
    for role in ROLES:
        mine = [artifact for reading, artifact in committed if reading.role == role]
        rejected = sum(artifact.summary["rejected"] for artifact in mine)
        total = sum(artifact.summary["total"] for artifact in mine)
        if not rejected:
            continue
        worst = max(mine, key=lambda artifact: int(artifact.summary["rejected"]))
        where = worst.storage.location(worst.path(REJECTED))
        kept = worst.read_table(REJECTED)
        first = kept[:1].to_pylist()[0]
        share = "all" if kept.num_rows == rejected else f"{kept.num_rows:,} of them"
        told = (
            f"corpora.{role}: {rejected:,} of {total:,} rows rejected, first "
            f"{first['source']} row {first['row']}: {first['reason']}; {share} in {where}"
        )
        if rejected > config.corpora.max_rejected * total:
            allowed = f"corpora.max_rejected allows {config.corpora.max_rejected:.1%}"
            raise UserError(f"{told} ({allowed})")
        log.warning(told)


def _without(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name != key}
