"""Storage, the content-addressed cache, and atomic commits.

A cache entry is a folder ``cache/<stage>/<fingerprint>/``. A writer puts its files into a
sub-folder of its own and publishes them by writing ``_COMMITTED`` last, so a reader sees a whole
result or none, and two writers of one entry never mix their files. What a writer that died has
left stays in its sub-folder until the cache is deleted, since nobody can tell it from one that
still writes. Knows nothing of what the files mean.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from compass_ray.errors import UserError, shown

COMMIT_FILE = "_COMMITTED"
_LOOKUPS = 32


def fingerprint(**inputs: Any) -> str:
    """Stable 20-digit hex hash of JSON-able inputs; equal inputs, equal fingerprint."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


@dataclass(frozen=True)
class Storage:
    """A root folder on any pyarrow filesystem; paths are relative to it and use ``/``."""

    uri: str

    @classmethod
    def open(cls, uri: str) -> Storage:
        """Resolve a local path to an absolute one, so that every worker means the same place."""
        if "://" not in uri:
            uri = str(Path(uri).expanduser().resolve())
        storage = cls(uri.rstrip("/"))
        storage._resolved()
        return storage

    def _resolved(self) -> tuple[pafs.FileSystem, str]:
        try:
            filesystem, root = pafs.FileSystem.from_uri(self.uri)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                shown(f"run.storage {self.uri!r} is no pyarrow filesystem URI: {error}")
            ) from None
        return filesystem, root

    def make(self) -> None:
        """Make the root folder if it is not there.

        Raises:
            UserError: it cannot be made; an object store has no such bucket, or does not answer.
        """
        filesystem, root = self._resolved()
        try:
            filesystem.create_dir(root, recursive=True)
        except OSError as error:
            raise UserError(
                shown(f"run.storage {self.uri!r} cannot be written to: {error}")
            ) from None

    @property
    def filesystem(self) -> pafs.FileSystem:
        return self._resolved()[0]

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def path(self, *parts: str) -> str:
        """Path on ``filesystem``, without a scheme."""
        return "/".join((self._resolved()[1].rstrip("/"), *parts))

    def location(self, *parts: str) -> str:
        """The path or URI a person or another library can open."""
        base, mark, options = self.uri.partition("?")
        return "/".join((base.rstrip("/"), *parts)) + mark + options

    def exists(self, path: str) -> bool:
        info = self.filesystem.get_file_info(self.path(path))
        return bool(info.type != pafs.FileType.NotFound)

    def read_bytes(self, path: str) -> bytes:
        with self.filesystem.open_input_stream(self.path(path)) as stream:
            return bytes(stream.read())

    def write_bytes(self, path: str, data: bytes) -> None:
        """Replace a file in one step: object stores do so themselves, local files by rename."""
        filesystem, target = self.filesystem, self.path(path)
        staged = target
        if self.is_local:  # object stores have no folders, and a request for each would be spent
            filesystem.create_dir(target.rpartition("/")[0], recursive=True)
            staged = f"{target}.{secrets.token_hex(4)}"
        with filesystem.open_output_stream(staged) as stream:
            stream.write(data)
        if staged != target:
            Path(staged).replace(target)

    def read_json(self, path: str) -> Any:
        return json.loads(self.read_bytes(path))

    def write_json(self, path: str, value: Any) -> None:
        self.write_bytes(path, json.dumps(value, indent=1, ensure_ascii=False).encode())

    def read_table(self, path: str, columns: list[str] | None = None) -> pa.Table:
        return pq.read_table(self.path(path), columns=columns, filesystem=self.filesystem)

    def write_table(self, path: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(path, sink.getvalue().to_pybytes())

    def list_files(self, path: str) -> list[str]:
        """Every file below ``path``, relative to it, sorted; none if it does not exist."""
        base = self.path(path)
        selector = pafs.FileSelector(base, recursive=True, allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        files = [info.path for info in found if info.type == pafs.FileType.File]
        return sorted(file[len(base) :].lstrip("/") for file in files)

    def delete_dir(self, path: str) -> None:
        if self.exists(path):
            self.filesystem.delete_dir(self.path(path))

    def download_dir(self, path: str, local: str | Path) -> None:
        for name in self.list_files(path):
            target = Path(local, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            source = self.filesystem.open_input_stream(self.path(path, name))
            with source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 22)

    @contextmanager
    def as_local_dir(self, path: str) -> Iterator[str]:
        """A local folder with what is below ``path``; a temporary copy unless it is local."""
        if self.is_local:
            yield self.path(path)
            return
        with tempfile.TemporaryDirectory() as folder:
            self.download_dir(path, folder)
            yield folder


@dataclass(frozen=True)
class Artifact:
    """A committed cache entry: immutable, complete, cheap to pass to any process."""

    storage: Storage
    stage: str
    fingerprint: str
    attempt: str
    files: tuple[str, ...]
    summary: Mapping[str, Any]

    def path(self, name: str) -> str:
        """Where ``name`` is, relative to the storage root."""
        return f"{entry_path(self.stage, self.fingerprint)}/{self.attempt}/{name}"

    def folder(self) -> str:
        return f"{entry_path(self.stage, self.fingerprint)}/{self.attempt}"

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        return self.storage.read_table(self.path(name), columns)

    def read_json(self, name: str) -> Any:
        return self.storage.read_json(self.path(name))

    def read_bytes(self, name: str) -> bytes:
        return self.storage.read_bytes(self.path(name))


@dataclass(frozen=True)
class Draft:
    """A cache entry being written; ``commit`` publishes it."""

    storage: Storage
    stage: str
    fingerprint: str
    attempt: str

    def path(self, name: str) -> str:
        return f"{entry_path(self.stage, self.fingerprint)}/{self.attempt}/{name}"

    def write_table(self, name: str, table: pa.Table) -> None:
        self.storage.write_table(self.path(name), table)

    def write_json(self, name: str, value: Any) -> None:
        self.storage.write_json(self.path(name), value)

    def write_bytes(self, name: str, data: bytes) -> None:
        self.storage.write_bytes(self.path(name), data)

    def commit(self, summary: Mapping[str, Any] | None = None) -> Artifact:
        """List, checksum and publish what was written."""
        entry = entry_path(self.stage, self.fingerprint)
        names = self.storage.list_files(f"{entry}/{self.attempt}")
        listed = [self._describe(name) for name in names]
        commit = {"attempt": self.attempt, "files": listed, "summary": dict(summary or {})}
        self.storage.write_json(f"{entry}/{COMMIT_FILE}", commit)
        artifact = find(self.storage, self.stage, self.fingerprint)
        assert artifact is not None
        return artifact

    def _describe(self, name: str) -> dict[str, Any]:
        digest = hashlib.blake2b(digest_size=16)
        size = 0
        with self.storage.filesystem.open_input_stream(
            self.storage.path(self.path(name))
        ) as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
                size += len(chunk)
        rows = None
        if name.endswith(".parquet"):
            path, filesystem = self.storage.path(self.path(name)), self.storage.filesystem
            rows = pq.read_metadata(path, filesystem=filesystem).num_rows
        return {
            "path": f"{self.attempt}/{name}",
            "bytes": size,
            "rows": rows,
            "blake2b": digest.hexdigest(),
        }


def entry_path(stage: str, fingerprint: str) -> str:
    return f"cache/{stage}/{fingerprint}"


def find_all(storage: Storage, stage: str, fingerprints: Iterable[str]) -> dict[str, Artifact]:
    """Those of the entries that are committed, by fingerprint.

    Looked up side by side: an object store takes three answers for each, and a large corpus has
    tens of thousands.
    """
    distinct = list(dict.fromkeys(fingerprints))
    with ThreadPoolExecutor(_LOOKUPS) as lookups:
        found = lookups.map(partial(find, storage, stage), distinct)
        return {key: entry for key, entry in zip(distinct, found, strict=True) if entry}


def find(storage: Storage, stage: str, fingerprint: str) -> Artifact | None:
    """The committed entry, or None when there is none or a file of it is gone."""
    entry = entry_path(stage, fingerprint)
    if not storage.exists(f"{entry}/{COMMIT_FILE}"):
        return None
    commit = storage.read_json(f"{entry}/{COMMIT_FILE}")
    attempt = commit["attempt"]
    names = tuple(str(file["path"]).removeprefix(f"{attempt}/") for file in commit["files"])
    if not set(names) <= set(storage.list_files(f"{entry}/{attempt}")):
        return None
    return Artifact(storage, stage, fingerprint, attempt, names, commit["summary"])


def begin(storage: Storage, stage: str, fingerprint: str) -> Draft:
    """Start writing an entry, in a sub-folder no other writer uses."""
    return Draft(storage, stage, fingerprint, f"attempt-{secrets.token_hex(4)}")
