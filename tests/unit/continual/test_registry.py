from __future__ import annotations

from pathlib import Path

import pytest

from compass_ray.artifacts import Storage
from compass_ray.continual.registry import Registry, Version
from compass_ray.errors import UserError


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(Storage.open(str(tmp_path)), "run", "de")


def add(registry: Registry, fingerprint: str, parent: int | None = None) -> Version:
    about = {"kind": "update" if parent else "run", "parent": parent, "fingerprint": fingerprint}
    return registry.add({"weights": fingerprint.encode()}, about)


def test_a_new_version_is_not_current_until_it_is_made_so(registry: Registry) -> None:
    assert registry.current() is None
    first = add(registry, "a")
    assert first.name == "v0001" and registry.current() is None
    registry.make_current(first, "first")
    second = add(registry, "b", parent=1)
    assert registry.current() == first
    registry.make_current(second, "better")
    assert registry.current() == second
    assert registry.find("b") == second and registry.find("c") is None


@pytest.mark.parametrize("after", range(6))
def test_killed_at_any_write_there_is_one_whole_current_version(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    registry.make_current(add(registry, "a"), "first")
    writes = 0
    write_bytes = Storage.write_bytes

    def dying(self: Storage, path: str, data: bytes) -> None:
        nonlocal writes
        if writes == after:
            raise KeyboardInterrupt
        writes += 1
        write_bytes(self, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write_bytes", dying)
        try:
            about = {"kind": "update", "parent": 1, "fingerprint": "b"}
            version = registry.add({"weights": b"b", "anchors": b"c"}, about)
            registry.make_current(version, "better")
        except KeyboardInterrupt:
            pass
    current = registry.current()
    assert current is not None
    assert current.name == ("v0001" if after < 4 else "v0002")
    assert registry.storage.read_bytes(f"{current.folder}/weights") == (b"a" if after < 4 else b"b")
    following = add(registry, "c", parent=1)
    assert following.number == (2 if after < 3 else 3)
    names = registry.storage.list_files(following.folder)
    assert names == ["version.json", "weights"]


def test_rollback_goes_to_the_parent_or_where_it_is_told(registry: Registry) -> None:
    first = add(registry, "a")
    registry.make_current(first, "first")
    with pytest.raises(UserError, match="not made by an update"):
        registry.rollback()
    second = add(registry, "b", parent=1)
    registry.make_current(second, "better")
    assert registry.rollback() == (second, first)
    assert registry.current() == first and registry.was_current(second)
    assert registry.rollback("v0002") == (first, second)
    with pytest.raises(UserError, match="no version v0009; there are v0001, v0002"):
        registry.rollback("v0009")


def test_nothing_to_roll_back(registry: Registry) -> None:
    with pytest.raises(UserError, match="no adapter"):
        registry.rollback()


def test_the_line_of_a_version_is_what_it_was_updated_from(registry: Registry) -> None:
    a, b = add(registry, "a"), add(registry, "b", parent=1)
    c, d = add(registry, "c", parent=2), add(registry, "d")
    assert registry.line_of(c) == [a, b, c]
    assert registry.line_of(d) == [d]
