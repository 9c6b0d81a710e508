from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compass_ray.continual.usagelog import Bookmark, new_records
from compass_ray.errors import UserError


def lines(*texts: str) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def read(
    path: Path, bookmarks: tuple[Bookmark, ...] = ()
) -> tuple[list[str], tuple[Bookmark, ...]]:
    texts = []
    for chunk in new_records(str(path), bookmarks):
        texts += [record["text"] for record in chunk.records]
        bookmarks = chunk.bookmarks
    return texts, bookmarks


def test_a_log_that_grows_gives_only_what_is_new(tmp_path: Path) -> None:
    log = tmp_path / "usage.jsonl"
    log.write_text(lines("a", "b"))
    texts, marks = read(log)
    assert texts == ["a", "b"]
    assert read(log, marks)[0] == []
    with log.open("a") as file:
        file.write(lines("c"))
    texts, marks = read(log, marks)
    assert texts == ["c"] and len(marks) == 1


def test_the_same_content_under_another_name_is_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(lines("a", "b"))
    _, marks = read(tmp_path / "b.jsonl")
    (tmp_path / "a.jsonl").write_text(lines("a", "b"))
    assert read(tmp_path, marks)[0] == []


def test_a_rotated_log_goes_on_under_its_new_name_and_the_new_one_starts(tmp_path: Path) -> None:
    log = tmp_path / "a.jsonl"
    log.write_text(lines("a", "b"))
    _, marks = read(tmp_path)
    log.rename(tmp_path / "old.jsonl")
    with (tmp_path / "old.jsonl").open("a") as file:
        file.write(lines("c"))
    log.write_text(lines("x"))
    texts, marks = read(tmp_path, marks)
    assert texts == ["x", "c"]
    assert read(tmp_path, marks)[0] == []


def test_a_half_written_last_line_waits_until_it_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "usage.jsonl"
    log.write_text(lines("a") + '{"text": "b')
    (chunk,) = new_records(str(log), ())
    assert [r["text"] for r in chunk.records] == ["a"] and chunk.broken == []
    assert "usage.jsonl:2" in chunk.waiting
    with log.open("a") as file:
        file.write('c"}\n')
    assert read(log, chunk.bookmarks)[0] == ["bc"]


def test_a_last_line_without_an_end_counts_once(tmp_path: Path) -> None:
    log = tmp_path / "usage.jsonl"
    log.write_text(lines("a") + '{"text": "b"}')
    texts, marks = read(log)
    assert texts == ["a", "b"]
    with log.open("a") as file:
        file.write("\n" + lines("c"))
    assert read(log, marks)[0] == ["c"]


def test_broken_lines_are_set_aside_by_their_number(tmp_path: Path) -> None:
    log = tmp_path / "usage.jsonl"
    log.write_text(lines("a") + "\n{broken\n[1]\n" + lines("b"))
    (chunk,) = new_records(str(log), ())
    assert [r["text"] for r in chunk.records] == ["a", "b"]
    assert chunk.numbers == [1, 5]
    assert ["usage.jsonl:3" in chunk.broken[0], "usage.jsonl:4" in chunk.broken[1]] == [True, True]
    assert list(new_records(str(log), chunk.bookmarks)) == []


def test_stopping_between_chunks_loses_and_repeats_nothing(tmp_path: Path) -> None:
    texts = [f"prompt {number}" for number in range(2500)]
    (tmp_path / "a.jsonl").write_text(lines(*texts))
    pq.write_table(pa.table({"text": texts}), tmp_path / "b.parquet")
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write(lines(*texts))
    seen, marks = [], ()
    while chunk := next(new_records(str(tmp_path), marks), None):
        seen += [record["text"] for record in chunk.records]
        marks = chunk.bookmarks
    assert seen == 3 * texts


def test_a_path_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        list(new_records(str(tmp_path / "none.jsonl"), ()))
