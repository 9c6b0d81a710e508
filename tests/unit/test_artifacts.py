from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from compass_ray import artifacts
from compass_ray.artifacts import COMMIT_FILE, Storage
from compass_ray.errors import UserError


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(str(tmp_path / "s"))


def test_a_fingerprint_depends_on_content_and_not_on_the_order_of_keys() -> None:
    assert artifacts.fingerprint(a=1, b=[2]) == artifacts.fingerprint(b=[2], a=1)
    assert artifacts.fingerprint(a=1) != artifacts.fingerprint(a=2)


def test_nothing_is_found_before_the_commit_and_everything_after(storage: Storage) -> None:
    draft = artifacts.begin(storage, "embed", "f00")
    draft.write_table("rows.parquet", pa.table({"x": [1, 2, 3]}))
    draft.write_bytes("deep/er.bin", b"abc")
    assert artifacts.find(storage, "embed", "f00") is None
    draft.commit({"rows": 3})
    found = artifacts.find(storage, "embed", "f00")
    assert found is not None
    assert found.summary == {"rows": 3}
    assert found.read_table("rows.parquet")["x"].to_pylist() == [1, 2, 3]
    assert found.read_bytes("deep/er.bin") == b"abc"


def test_the_commit_lists_files_with_rows_and_checksums(storage: Storage, tmp_path: Path) -> None:
    draft = artifacts.begin(storage, "embed", "f00")
    draft.write_table("rows.parquet", pa.table({"x": [1, 2, 3]}))
    draft.write_bytes("a.bin", b"abc")
    draft.commit()
    commit = json.loads((tmp_path / "s/cache/embed/f00" / COMMIT_FILE).read_text())
    files = {entry["path"].split("/")[1]: entry for entry in commit["files"]}
    assert files["rows.parquet"]["rows"] == 3
    assert files["a.bin"]["rows"] is None
    assert files["a.bin"]["bytes"] == 3
    # blake2b of b"abc" with 16 bytes, from hashlib's reference implementation.
    assert files["a.bin"]["blake2b"] == "cf4ab791c62b8d2b2109c90275287816"


def test_two_writers_of_one_entry_do_not_mix(storage: Storage) -> None:
    first = artifacts.begin(storage, "embed", "f00")
    second = artifacts.begin(storage, "embed", "f00")
    first.write_bytes("x", b"first")
    second.write_bytes("x", b"second")
    assert first.commit().read_bytes("x") == b"first"
    assert second.commit().read_bytes("x") == b"second"


def test_an_entry_that_lost_a_file_counts_as_not_there(storage: Storage, tmp_path: Path) -> None:
    draft = artifacts.begin(storage, "embed", "f00")
    draft.write_bytes("x", b"1")
    artifact = draft.commit()
    Path(storage.path(artifact.path("x"))).unlink()
    assert artifacts.find(storage, "embed", "f00") is None


def test_of_many_entries_those_are_found_that_are_committed(storage: Storage) -> None:
    for number in range(0, 100, 2):
        artifacts.begin(storage, "embed", f"{number:02d}").commit({"number": number})
    artifacts.begin(storage, "embed", "01").write_bytes("half", b"done")
    asked = [f"{number:02d}" for number in range(100)] * 2
    found = artifacts.find_all(storage, "embed", asked)
    assert list(found) == [f"{number:02d}" for number in range(0, 100, 2)]
    assert all(entry.summary["number"] == int(key) for key, entry in found.items())


def test_a_replaced_file_leaves_no_staging_file(storage: Storage, tmp_path: Path) -> None:
    storage.write_bytes("runs/a/b.txt", b"1")
    storage.write_bytes("runs/a/b.txt", b"2")
    assert storage.list_files("runs") == ["a/b.txt"]
    assert storage.read_bytes("runs/a/b.txt") == b"2"


def test_a_folder_comes_down_unchanged(storage: Storage, tmp_path: Path) -> None:
    storage.write_bytes("runs/up/inner/a", b"A")
    storage.download_dir("runs/up", tmp_path / "down")
    assert (tmp_path / "down/inner/a").read_bytes() == b"A"


def test_a_local_path_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Storage.open("outputs").uri == str(tmp_path / "outputs")


def test_options_of_a_uri_stay_at_its_end() -> None:
    storage = Storage.open("s3://bucket/root?region=us-east-1&endpoint_override=127.0.0.1:1")
    assert storage.path("runs/a") == "bucket/root/runs/a"
    assert storage.location("runs", "a") == (
        "s3://bucket/root/runs/a?region=us-east-1&endpoint_override=127.0.0.1:1"
    )


def test_an_unknown_scheme_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"run.storage 'ftpx://host/x'"):
        Storage.open("ftpx://host/x")
