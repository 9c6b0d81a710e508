"""Sources and storage on an object store: S3, as moto's server speaks it, through pyarrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from compass_ray import artifacts
from compass_ray.artifacts import COMMIT_FILE, Storage
from compass_ray.config import Source
from compass_ray.continual.runfolder import CENTROIDS, RunFolder
from compass_ray.corpora.sources import list_files, read_files
from compass_ray.errors import UserError

BUCKET = "corpora"
COMPRESSION = {"": None, ".gz": "gzip", ".zst": "zstd"}

# The options are those of a store that is not Amazon's, such as MinIO.
Uri = Callable[[str], str]


@pytest.fixture(scope="module")
def uri() -> Iterator[Uri]:
    """The URI of a key, on a server that holds one empty bucket."""
    from moto.server import ThreadedMotoServer  # slow to import

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    options = f"region=us-east-1&scheme=http&endpoint_override={host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        store, _ = pafs.FileSystem.from_uri(f"s3://{BUCKET}?{options}&allow_bucket_creation=true")
        store.create_dir(BUCKET)
        yield lambda key: f"s3://{BUCKET}/{key}?{options}"
    server.stop()


def rows(count: int) -> pa.Table:
    return pa.table(
        {
            "prompt": [f"q{i}" for i in range(count)],
            "completion": [f"a{i}" for i in range(count)],
        }
    )


def write(uri: Uri, key: str, table: pa.Table) -> None:
    filesystem, _ = pafs.FileSystem.from_uri(uri(""))
    path = f"{BUCKET}/{key}"
    if key.endswith(".parquet"):
        pq.write_table(table, path, filesystem=filesystem)
        return
    lines = "".join(f'{{"prompt": "{p}", "completion": "{c}"}}\n' for p, c in zip(*table, strict=1))
    compression = COMPRESSION[key.partition(".jsonl")[2]]
    with filesystem.open_output_stream(path, compression=compression) as stream:
        stream.write(lines.encode())


def read(path: str) -> pa.Table:
    source = Source(path=path, language="en")
    return pa.concat_tables(part.rows for part in read_files(list_files(source), source, "train"))


@pytest.mark.parametrize("extension", ["parquet", *(f"jsonl{end}" for end in COMPRESSION)])
def test_every_kind_of_file_is_read_and_named(uri: Uri, extension: str) -> None:
    key = f"kinds/rows.{extension}"
    write(uri, key, rows(5000))
    found = read(uri(key))
    assert found["prompt"].to_pylist() == rows(5000)["prompt"].to_pylist()
    assert found["response"].to_pylist() == rows(5000)["completion"].to_pylist()
    assert set(found["source"].to_pylist()) == {uri(key)}


def test_folders_and_globs_give_what_is_below_them(uri: Uri) -> None:
    for key in ("a.jsonl", "b.parquet", "deep/er/c.jsonl", "_tmp/d.jsonl"):
        write(uri, f"pool/{key}", rows(1))

    def names(path: str) -> list[str]:
        return [Path(ref.uri.partition("?")[0]).name for ref in list_files(Source(path=path))]

    assert names(uri("pool")) == names(uri("pool/")) == ["a.jsonl", "b.parquet", "c.jsonl"]
    assert names(uri("pool/*.jsonl")) == ["a.jsonl"]
    assert names(uri("pool/**/*.jsonl")) == ["d.jsonl", "a.jsonl", "c.jsonl"]
    assert read(uri("pool")).num_rows == 3


@pytest.mark.parametrize("name", ["a b", "100%25", "p+q", "Übung", "a#b"])
def test_a_key_is_taken_as_it_is_written(uri: Uri, name: str) -> None:
    write(uri, f"names/{name}.jsonl", rows(2))
    assert read(uri(f"names/{name}.jsonl")).num_rows == 2


def test_a_file_that_was_replaced_is_another_file(uri: Uri) -> None:
    write(uri, "changing.jsonl", rows(1))
    before = list_files(Source(path=uri("changing.jsonl")))
    assert list_files(Source(path=uri("changing.jsonl"))) == before
    write(uri, "changing.jsonl", rows(2))
    assert list_files(Source(path=uri("changing.jsonl"))) != before


def test_credentials_in_a_uri_open_the_store_and_are_not_shown(
    uri: Uri, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(uri, "secret.jsonl", rows(1))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    signed = uri("secret.jsonl").replace("s3://", "s3://key:hush@")
    assert read(signed)["source"].to_pylist() == [uri("secret.jsonl")]
    with pytest.raises(UserError, match="no such file") as missing:
        read(signed.replace("secret.jsonl", "gone.jsonl"))
    with pytest.raises(UserError, match=r"run\.storage") as refused:
        Storage.open(signed.replace(BUCKET, "no-such-bucket")).make()
    assert "hush" not in f"{missing.value} {refused.value}"


def test_what_is_not_there_is_one_line(uri: Uri) -> None:
    for path in (uri("gone.jsonl"), uri("gone/*.parquet"), uri("x").replace(BUCKET, "no-bucket")):
        with pytest.raises(UserError) as error:
            list_files(Source(path=path))
        assert str(error.value) == f"{path}: no such file or folder, and no file matches it"


def test_a_storage_in_a_bucket_that_is_not_there_is_refused_before_anything_is_done(
    uri: Uri,
) -> None:
    Storage.open(uri("made")).make()
    with pytest.raises(UserError, match=r"run\.storage .*Bucket 'no-bucket' not found") as error:
        Storage.open(uri("made").replace(BUCKET, "no-bucket")).make()
    assert "\n" not in str(error.value)


def test_an_entry_is_found_once_it_is_committed_and_reads_back(uri: Uri, tmp_path: Path) -> None:
    storage = Storage.open(uri("root"))
    lost = artifacts.begin(storage, "embed", "f00")
    lost.write_bytes("half.bin", b"half")
    draft = artifacts.begin(storage, "embed", "f00")
    draft.write_table("rows.parquet", rows(3))
    draft.write_json("deep/er.json", {"ä": 1})
    assert artifacts.find(storage, "embed", "f00") is None
    draft.commit({"rows": 3})

    found = artifacts.find(Storage.open(uri("root")), "embed", "f00")
    assert found is not None
    assert found.summary == {"rows": 3}
    assert found.files == ("deep/er.json", "rows.parquet")
    assert found.read_table("rows.parquet", ["prompt"]).equals(rows(3).select(["prompt"]))
    assert found.read_json("deep/er.json") == {"ä": 1}
    with storage.as_local_dir(found.folder()) as folder:
        assert pq.read_table(Path(folder, "rows.parquet")).equals(rows(3))
    commit = storage.read_json(f"cache/embed/f00/{COMMIT_FILE}")
    assert [file["rows"] for file in commit["files"]] == [None, 3]

    storage.filesystem.delete_file(storage.path(found.path("rows.parquet")))
    assert artifacts.find(storage, "embed", "f00") is None
    storage.delete_dir("cache/embed")
    assert not storage.exists("cache/embed/f00")


def test_a_run_opens_at_the_place_it_was_said_to_be_at(uri: Uri) -> None:
    storage = Storage.open(uri("outputs/"))
    storage.write_json("runs/demo/manifest.json", {"config": {"languages": ["de"]}})
    storage.write_bytes(f"runs/demo/{CENTROIDS}", b"")
    run = RunFolder.open(storage.location("runs/demo"))
    assert (run.name, run.config.languages) == ("demo", ["de"])
    with pytest.raises(UserError, match="no run; expected the folder of one"):
        RunFolder.open(storage.location("runs/other"))
