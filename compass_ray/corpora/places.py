"""A file, a folder or a glob on any pyarrow filesystem, and paths there as URIs again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from compass_ray.errors import UserError, first_line, shown

_URI = re.compile(r"(?P<root>[a-z][a-z0-9+.-]*://[^/?]*)(?P<path>[^?]*)(?P<query>\?.*)?")
_PATTERN = re.compile(r"[*?[]")


@dataclass(frozen=True)
class Place:
    """A path on a filesystem, and how to write paths of that filesystem as URIs again."""

    filesystem: pafs.FileSystem
    path: str
    prefix: str
    query: str

    @classmethod
    def of(cls, path: str) -> Place:
        match = _URI.fullmatch(path)
        if match is None:
            local = Path(path).expanduser()
            absolute = (local if local.is_absolute() else Path.cwd() / local).as_posix()
            return cls(pafs.LocalFileSystem(), absolute, "", "")
        query = match["query"] or ""
        try:
            # The root alone, so that a key is never read as an escaped URI.
            filesystem, root = pafs.FileSystem.from_uri(f"{match['root']}/{query}")
        except (pa.ArrowException, OSError, ImportError) as error:
            raise UserError(
                f"{shown(path)}: no storage that can be read ({first_line(error)})"
            ) from error
        root = root.rstrip("/")
        prefix = match["root"].removesuffix(root)
        key = match["path"].strip("/")
        return cls(filesystem, f"{root}/{key}" if key else root or "/", prefix, query)

    def uri(self, path: str) -> str:
        return f"{self.prefix}{path}{self.query}"

    def files(self) -> Iterator[pafs.FileInfo]:
        info = self.filesystem.get_file_info(self.path)
        if info.type == pafs.FileType.File:
            yield info
        elif info.type == pafs.FileType.Directory:
            yield from self._below(self.path, ["**"], hidden=(".", "_"))
        else:
            parts = self.path.split("/")
            fixed = list(takewhile(lambda part: not _PATTERN.search(part), parts))
            if len(fixed) < len(parts):
                yield from self._below("/".join(fixed) or "/", parts[len(fixed) :], hidden=(".",))

    def _below(
        self, folder: str, patterns: list[str], hidden: tuple[str, ...]
    ) -> Iterator[pafs.FileInfo]:
        deep = len(patterns) > 1 or patterns == ["**"]
        selector = pafs.FileSelector(folder, recursive=deep, allow_not_found=True)
        for info in self.filesystem.get_file_info(selector):
            parts = info.path.removeprefix(folder).strip("/").split("/")
            if info.type != pafs.FileType.File or any(part.startswith(hidden) for part in parts):
                continue
            if _matches(parts, patterns):
                yield info


def _matches(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_matches(parts[i:], patterns[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])
