"""Files of every kind are found and read in batches; a broken one is named with its line."""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from compass_ray.config import Source
from compass_ray.corpora import sources
from compass_ray.corpora.sources import (
    FileRef,
    is_blank,
    list_files,
    parse_line,
    read_batches,
    read_files,
)
from compass_ray.errors import UserError
from compass_ray.records import Normalised, Role


def source_of(path: str, language: str | None = "en", **options: Any) -> Source:
    return Source(path=path, language=language, **options)


def records(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(start, start + count)]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def write(path: Path, data: bytes | list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else jsonl(data))
    return path


def read(path: Path | str, batch_rows: int = 4096, **options: Any) -> list[dict[str, Any]]:
    refs = list_files(source_of(str(path), **options))
    return [row for ref in refs for _, batch in read_batches(ref, batch_rows) for row in batch]


def rows_of(entry: Source, role: Role = "train") -> pa.Table:
    return pa.concat_tables(part.rows for part in read_files(list_files(entry), entry, role))


def names(refs: list[FileRef]) -> list[str]:
    return [Path(ref.uri).name for ref in refs]


@pytest.mark.parametrize("extension", [".jsonl", ".json", ".ndjson", ".JSONL"])
def test_json_lines_are_read_under_all_their_extensions(tmp_path: Path, extension: str) -> None:
    assert read(write(tmp_path / f"a{extension}", records(3))) == records(3)


@pytest.mark.parametrize(("extension", "codec"), [("gz", "gzip"), ("zst", "zstd")])
def test_compressed_json_lines_are_read(tmp_path: Path, extension: str, codec: str) -> None:
    path = tmp_path / f"a.jsonl.{extension}"
    with pafs.LocalFileSystem().open_output_stream(str(path), compression=codec) as stream:
        stream.write(jsonl(records(5000)))
    assert read(path) == records(5000)


def test_parquet_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(records(10)), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == records(10)


@pytest.mark.parametrize("extension", ["jsonl", "parquet"])
def test_batches_say_where_they_begin(tmp_path: Path, extension: str) -> None:
    path = write(tmp_path / "a.jsonl", records(10))
    if extension == "parquet":
        path = tmp_path / "a.parquet"
        pq.write_table(pa.Table.from_pylist(records(10)), path)
    (ref,) = list_files(source_of(str(path)))
    batches = list(read_batches(ref, 4))
    assert [(first, len(batch)) for first, batch in batches] == [(0, 4), (4, 4), (8, 2)]


def test_a_file_larger_than_the_chunk_is_cut_at_its_line_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_CHUNK_BYTES", 7)
    assert read(write(tmp_path / "a.jsonl", records(20))) == records(20)


def test_blank_lines_a_byte_order_mark_and_a_missing_last_newline_do_no_harm(
    tmp_path: Path,
) -> None:
    text = '\ufeff{"text": "a"}\r\n\n  \n{"text": "b\u2028c"}'
    assert read(write(tmp_path / "a.jsonl", text.encode())) == [{"text": "a"}, {"text": "b\u2028c"}]


def test_an_empty_file_has_no_batches(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.jsonl", b"")) == []


def test_a_folder_gives_its_known_files_at_any_depth_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/z.jsonl.gz", "README.md", "_tmp/x.jsonl", ".cache/y.jsonl"):
        write(tmp_path / name, b"")
    assert names(list_files(source_of(str(tmp_path)))) == ["z.jsonl.gz", "b.jsonl"]


def test_a_glob_gives_what_it_matches_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.parquet", "deep/er/d.jsonl", ".git/e.jsonl"):
        write(tmp_path / name, b"")
    assert names(list_files(source_of(f"{tmp_path}/*.jsonl"))) == ["a.jsonl", "b.jsonl"]
    assert names(list_files(source_of(f"{tmp_path}/[ac].*"))) == ["a.jsonl", "c.parquet"]
    assert names(list_files(source_of(f"{tmp_path}/**/*.jsonl"))) == [
        "a.jsonl",
        "b.jsonl",
        "d.jsonl",
    ]
    assert names(list_files(source_of(f"{tmp_path}/d*/*/d.jsonl"))) == ["d.jsonl"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    write(tmp_path / "a[1].jsonl", b"")
    assert names(list_files(source_of(f"{tmp_path}/a[1].jsonl"))) == ["a[1].jsonl"]


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "data" / "a.jsonl", records(1))
    monkeypatch.chdir(tmp_path)
    (ref,) = list_files(source_of("data/*.jsonl"))
    assert ref.uri == str(path)
    assert (ref.kind, ref.size, ref.mtime_ns) == (
        "jsonl",
        path.stat().st_size,
        path.stat().st_mtime_ns,
    )


def test_a_uri_of_a_file_system_is_listed_and_read(tmp_path: Path) -> None:
    write(tmp_path / "with space & 100%" / "a.jsonl", records(2))
    entry = f"file://{tmp_path}/with space & 100%/*.jsonl"
    (ref,) = list_files(source_of(entry))
    assert ref.uri.startswith("file:///")
    assert read(entry) == records(2)


@pytest.mark.parametrize("name", ["none.jsonl", "none", "*.jsonl", "none/**/*.jsonl"])
def test_a_path_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no such file or folder") as caught:
        list_files(source_of(f"{tmp_path}/{name}"))
    assert str(caught.value).startswith(f"{tmp_path}/{name}: ")


def test_a_file_of_no_known_kind_is_refused_with_the_kinds(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", b"a,b\n")
    for path in (tmp_path, tmp_path / "a.csv", tmp_path / "*"):
        with pytest.raises(UserError, match=r"no file of a known kind; expected \.parquet, "):
            list_files(source_of(str(path)))


def test_an_unknown_storage_is_refused() -> None:
    with pytest.raises(UserError, match=r"ftp://host/a\.jsonl: no storage that can be read"):
        list_files(source_of("ftp://host/a.jsonl"))


def test_credentials_in_a_uri_are_neither_shown_nor_stored() -> None:
    ref = FileRef("s3://KEY:SECRET@bucket/a.jsonl?region=x", "jsonl", 0, 0)
    assert ref.name == "s3://bucket/a.jsonl?region=x"
    with pytest.raises(UserError) as caught:
        list_files(source_of("ftp://me:SECRET@host/a.jsonl"))
    assert "SECRET" not in str(caught.value)


def test_split_and_subset_of_a_local_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="split and subset are of hub datasets"):
        list_files(source_of(str(write(tmp_path / "a.jsonl", b"")), split="train"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": "a"', "not valid JSON (Expecting ',' delimiter"),
        (b"{'text': 'a'}", "not valid JSON ("),
        (b"[" * 100_000, "not valid JSON ("),
        (b"1" * 5000, "not valid JSON ("),
        (b"[1, 2]", "a list; expected one object a line"),
        (b'"text"', "a str; expected one object a line"),
        (b'{"text": "caf\xe9"}', "not valid UTF-8 (byte 0xe9 at 14)"),
    ],
)
def test_a_broken_line_is_named_with_its_number(tmp_path: Path, line: bytes, expected: str) -> None:
    path = write(tmp_path / "data.jsonl", jsonl(records(15)) + b"\n" + line + b"\n")
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:17: {expected}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_line_is_parsed_with_or_without_its_end_and_a_byte_order_mark(mark: bytes) -> None:
    assert parse_line(mark + b'{"text": "a"}\r\n') == {"text": "a"}
    assert is_blank(mark + b" \r\n") and not is_blank(mark + b"0")
    with pytest.raises(ValueError, match=r"^not valid UTF-8 \(byte 0xe9 at 1\)$"):
        parse_line(mark + b"\xe9")


def test_a_line_without_end_stops_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 1 << 20)
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n' + b" " * (3 << 20))
    with pytest.raises(UserError, match=r"a\.jsonl:2: line longer than 1 MiB"):
        read(path)


def test_a_compressed_file_that_is_cut_off_or_none_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(jsonl(records(1000)))
    for data in (whole[: len(whole) // 2], b"no gzip at all"):
        path = write(tmp_path / "a.jsonl.gz", data)
        with pytest.raises(UserError, match=r"a\.jsonl\.gz: cannot be read \("):
            read(path)


def test_a_corrupt_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(records(1000)), path)
    whole = path.read_bytes()
    for data in (b"", b"hello", whole[:-20], b"PAR1" + b"\xff" * 300 + whole[304:]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet file \("):
            read(path)


def test_a_source_is_read_as_rows_with_its_weight_and_language(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*records(2), {"prompt": "q", "completion": ""}])
    entry = source_of(str(path), language="Swahili", weight=0.5)
    (part,) = read_files(list_files(entry), entry, "train")
    assert isinstance(part, Normalised)
    assert part.rows["language"].to_pylist() == ["sw", "sw"]
    assert part.rows["weight"].to_pylist() == [0.5, 0.5]
    assert part.rows["source"].to_pylist() == [str(path)] * 2
    assert part.rejected["row"].to_pylist() == [2]


def test_columns_are_renamed_before_the_format_is_recognised(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"frage": "q", "antwort": "a", "prompt": "not this"}])
    table = rows_of(source_of(str(path), columns={"frage": "prompt", "antwort": "response"}))
    assert (table["prompt"].to_pylist(), table["response"].to_pylist()) == (["q"], ["a"])


def test_a_rename_of_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", records(1))
    with pytest.raises(UserError, match="renames frage; the columns are completion, prompt"):
        rows_of(source_of(str(path), columns={"frage": "prompt"}))


def test_unknown_columns_are_refused_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"body": "x"}, {"title": "y"}])
    with pytest.raises(UserError, match="columns body, title fit no known format") as caught:
        rows_of(source_of(str(path)))
    assert str(caught.value).startswith(f"{path}: ")


def test_the_format_is_recognised_once_for_each_file(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*records(5000), {"inputs": "q", "targets": "a"}])
    write(tmp_path / "b.jsonl", [{"inputs": "q", "targets": "a"}])
    entry = source_of(str(tmp_path))
    parts = list(read_files(list_files(entry), entry, "train"))
    assert [part.rows.num_rows for part in parts] == [4096, 904, 1]
    assert parts[1].rejected["row"].to_pylist() == [5000]


@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (7, 7), (10, 10), (13, 13), (99, 20)])
def test_a_limit_counts_over_all_files_of_a_source(
    tmp_path: Path, limit: int, expected: int
) -> None:
    write(tmp_path / "a.jsonl", records(10))
    write(tmp_path / "b.jsonl", records(10, start=10))
    assert rows_of(source_of(str(tmp_path), rows=limit)).num_rows == expected


def test_a_limit_is_shared_by_the_files_and_what_a_short_one_lacks_comes_from_others(
    tmp_path: Path,
) -> None:
    for name, count in (("a", 100), ("b", 4), ("c", 100)):
        write(tmp_path / f"{name}.jsonl", records(count))
    found = rows_of(source_of(str(tmp_path), rows=90)).to_pylist()
    told = Counter(Path(row["source"]).stem for row in found)
    assert told == {"a": 43, "b": 4, "c": 43}
    assert [row["prompt"] for row in found if row["source"].endswith("a.jsonl")][-1] == "q42"


@pytest.mark.parametrize(("limit", "numbers"), [(None, (1, 3, 5, 7)), (3, (1, 3)), (2, (1,))])
def test_only_rows_in_listed_languages_are_taken_and_counted(
    tmp_path: Path, limit: int | None, numbers: tuple[int, ...]
) -> None:
    mixed = [{**row, "language": ("de", "sw")[i % 2]} for i, row in enumerate(records(8))]
    mixed.insert(3, {"prompt": " ", "completion": "a", "language": "sw"})
    path = write(tmp_path / "a.jsonl", mixed)
    entry = source_of(str(path), languages=["sw"], rows=limit)
    (part,) = read_files(list_files(entry), entry, "train")
    assert part.rows["prompt"].to_pylist() == [f"q{number}" for number in numbers]
    assert part.rejected["row"].to_pylist() == [3]
    assert part.not_listed == (2 if limit else 4)


def test_a_question_weighs_nothing(tmp_path: Path) -> None:
    item = {"question": "q", **{f"option_{c}": c for c in "abcd"}, "answer": "A"}
    path = write(tmp_path / "a.jsonl", [item])
    assert rows_of(source_of(str(path), weight=2.0), "evaluation")["answer"].to_pylist() == [0]


def test_atlas_is_not_for_this_module() -> None:
    with pytest.raises(ValueError, match="atlas"):
        list_files(source_of("atlas"))


class Hub:
    """Stands in for the package datasets."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.exceptions = SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {}))

    def load_dataset(self, path: str, name: str | None, **options: Any) -> Iterator[dict[str, Any]]:
        if path == "no/where":
            raise self.exceptions.DatasetsError("Dataset 'no/where' doesn't exist\nmore lines")
        self.asked = {"path": path, "name": name, **options}
        item = {"question": "q", **{f"option_{c}": c for c in "abcd"}, "answer": "A"}
        return iter([item] * 3)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub()
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return fake


def test_a_hub_dataset_is_streamed_and_its_subset_names_the_language(hub: Hub) -> None:
    entry = source_of("hf:CohereLabs/Global-MMLU@v1", language=None, subset="sw", split="test")
    (ref,) = list_files(entry)
    assert ref.kind == "hub"
    assert ref.uri == "hf:CohereLabs/Global-MMLU?revision=v1&split=test&subset=sw"
    assert rows_of(entry, "evaluation")["language"].to_pylist() == ["sw"] * 3
    assert hub.asked == {
        "path": "CohereLabs/Global-MMLU",
        "name": "sw",
        "split": "test",
        "revision": "v1",
        "streaming": True,
    }


def test_a_hub_dataset_that_cannot_be_read_is_named_in_one_line(hub: Hub) -> None:
    with pytest.raises(UserError) as caught:
        rows_of(source_of("hf:no/where"))
    expected = (
        "hf:no/where?split=train: cannot be read from the hub (Dataset 'no/where' doesn't exist)"
    )
    assert str(caught.value) == expected


def test_a_hub_path_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="expected hf:owner/dataset"):
        list_files(source_of("hf:a/b/c"))
