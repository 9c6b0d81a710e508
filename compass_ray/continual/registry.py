"""Versions of each language's adapter in a run directory, and which of them is current.

``adapters/<language>/v0001/`` is whole once it holds ``version.json``, which is written last and
never changed. ``adapters/<language>/current.json`` names the current version and is replaced in
one step, so whatever is killed whenever, there is one current version and it is whole. One process
at a time updates a language. Knows nothing of how adapters come about.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from compass_ray.artifacts import Storage
from compass_ray.errors import UserError

VERSION_FILE = "version.json"
CURRENT_FILE = "current.json"


@dataclass(frozen=True)
class Version:
    """A whole version.

    Attributes:
        number: 1 for ``v0001``.
        folder: its path in the storage; PEFT loads from there.
        about: lineage: ``parent`` (number or None), ``fingerprint`` of the training, ``kind``
            (``run`` or ``update``), and for an update its data, drift, scores and verdict.
    """

    number: int
    folder: str
    about: Mapping[str, Any]

    @property
    def name(self) -> str:
        return version_name(self.number)


class Registry:
    """The versions of one language in one run."""

    def __init__(self, storage: Storage, run: str, language: str) -> None:
        self.storage = storage
        self.language = language
        self._folder = f"runs/{run}/adapters/{language}"

    def versions(self) -> list[Version]:
        """All whole versions, oldest first."""
        numbers = {
            int(match[1])
            for file in self.storage.list_files(self._folder)
            if (match := re.fullmatch(rf"v(\d{{4,}})/{VERSION_FILE}", file))
        }
        return [self._read(number) for number in sorted(numbers)]

    def current(self) -> Version | None:
        """The version in use, None before there is any."""
        told = self._pointer()
        return self._read(told["history"][-1]["version"]) if told else None

    def was_current(self, version: Version) -> bool:
        """Whether the version is, or ever was, the current one."""
        told = self._pointer()
        return bool(told) and any(e["version"] == version.number for e in told["history"])

    def find(self, fingerprint: str) -> Version | None:
        """The version of that training, if there is one."""
        return next((v for v in self.versions() if v.about["fingerprint"] == fingerprint), None)

    def named(self, name: str) -> Version:
        """The version of that name, such as ``v0001``; ``UserError`` if it is not there."""
        known = {version.name: version for version in self.versions()}
        if name not in known:
            there = ", ".join(known) or "none"
            raise UserError(f"{self.language}: no version {name}; there are {there}")
        return known[name]

    def line_of(self, version: Version) -> list[Version]:
        """The version and those it was updated from, oldest first."""
        line = [version]
        while (parent := line[0].about["parent"]) is not None:
            line.insert(0, self._read(parent))
        return line

    def add(self, files: Mapping[str, bytes], about: Mapping[str, Any]) -> Version:
        """Write a new version; it is there once this returns, and not current."""
        known = self.versions()
        number = known[-1].number + 1 if known else 1
        folder = f"{self._folder}/{version_name(number)}"
        # What a killed writer left has no version.json and belongs to nobody.
        self.storage.delete_dir(folder)
        for name, data in files.items():
            self.storage.write_bytes(f"{folder}/{name}", data)
        written = {"version": number, "created": _now(), **about}
        self.storage.write_json(f"{folder}/{VERSION_FILE}", written)
        return self._read(number)

    def make_current(self, version: Version, reason: str) -> None:
        """Point at a version, in one step; who was current when, and why, is kept."""
        told = self._pointer() or {"history": []}
        entry = {"version": version.number, "at": _now(), "reason": reason}
        self.storage.write_json(
            f"{self._folder}/{CURRENT_FILE}",
            {"version": version.name, "history": [*told["history"], entry]},
        )

    def rollback(self, to: str | None = None) -> tuple[Version, Version]:
        """Make an earlier version current again: the one named, or the current one's parent.

        Returns the version that was current and the one that is. Raises ``UserError`` for a
        version that is not there, and when there is none to go back to.
        """
        was = self.current()
        if was is None:
            raise UserError(f"{self.language}: this run has no adapter to roll back")
        if to is None:
            parent = was.about["parent"]
            if parent is None:
                known = [version.name for version in self.versions()]
                raise UserError(
                    f"{self.language}: {was.name} was not made by an update, so there is none to "
                    f"go back to; name one with --to: {', '.join(known)}"
                )
            to = version_name(parent)
        version = self.named(to)
        self.make_current(version, f"rolled back from {was.name}")
        return was, version

    def _pointer(self) -> dict[str, Any]:
        path = f"{self._folder}/{CURRENT_FILE}"
        told: dict[str, Any] = self.storage.read_json(path) if self.storage.exists(path) else {}
        return told

    def _read(self, number: int) -> Version:
        folder = f"{self._folder}/{version_name(number)}"
        return Version(number, folder, self.storage.read_json(f"{folder}/{VERSION_FILE}"))


def version_name(number: int) -> str:
    """The folder of a version: ``v0001``."""
    return f"v{number:04d}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
