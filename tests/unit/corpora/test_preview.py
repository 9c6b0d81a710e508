"""Rows are counted without reading a corpus whole, and what is not counted is called estimated."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compass_ray.config import Source
from compass_ray.corpora import atlas, preview
from compass_ray.corpora.preview import preview as look
from compass_ray.errors import UserError


def rows(count: int, languages: tuple[str, ...] = ("de", "sw")) -> list[dict[str, Any]]:
    """So many rows, the languages one after the other: all of the first, then all of the next."""
    each = count // len(languages)
    return [
        {"prompt": f"question {i}", "completion": f"answer {i}", "language": languages[i // each]}
        for i in range(each * len(languages))
    ]


def jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    data = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix.lower() == ".gz" else data)
    return path


def source(path: Path | str, **options: Any) -> Source:
    return Source(path=str(path), **options)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "A.JSONL.GZ"])
def test_a_small_file_is_counted(tmp_path: Path, name: str) -> None:
    seen = look("train", [source(jsonl(tmp_path / name, rows(100)))], ["de"])
    assert (seen.rows, seen.certainty, seen.languages_certain) == (100, "exact", True)
    assert seen.languages == {"de": 50, "sw": 50}
    assert seen.sample.num_rows == 100


def test_blank_lines_and_a_missing_last_newline_do_not_change_the_count(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    text = '{"text": "a", "language": "de"}\n\n \n{"text": "b", "language": "de"}'
    for start in ("\ufeff", "\ufeff\n"):
        path.write_text(start + text)
        assert look("usage", [source(path)], ["de"]).rows == 2


def test_parquet_tells_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows(20_000)), path, row_group_size=1000)
    seen = look("train", [source(path)], ["de"])
    assert (seen.rows, seen.certainty, seen.languages_certain) == (20_000, "exact", False)
    assert seen.languages == {"de": 10_000, "sw": 10_000}
    assert seen.sample.num_rows <= preview.SAMPLE_ROWS


def test_a_date_that_python_has_none_for_does_no_harm_in_a_column_nobody_uses(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.parquet"
    expires = pa.array([3_000_000] * 4, pa.date32())
    pq.write_table(pa.Table.from_pylist(rows(4)).append_column("expires", expires), path)
    assert look("train", [source(path)], ["de"]).rows == 4


def test_languages_of_a_long_file_are_estimated_from_rows_spread_over_it(tmp_path: Path) -> None:
    seen = look("train", [source(jsonl(tmp_path / "a.jsonl", rows(30_000)))], ["de"])
    assert (seen.rows, seen.certainty, seen.languages_certain) == (30_000, "exact", False)
    assert seen.languages["de"] == pytest.approx(15_000, rel=0.01)
    assert sum(seen.languages.values()) == 30_000


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_large_file_is_estimated_from_its_beginning(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Noise, for what packs too well fits whole into the buffer of the decompressor.
    noise = random.Random(0)
    records = [{**row, "prompt": noise.randbytes(150).hex()} for row in rows(12_000)]
    path = jsonl(tmp_path / name, records)
    monkeypatch.setattr(preview, "EXACT_BYTES", 1000)
    monkeypatch.setattr(preview, "HEAD_BYTES", path.stat().st_size // 4)
    monkeypatch.setattr(preview, "_CHUNK_BYTES", 1 << 14)
    seen = look("train", [source(path)], ["de"])
    assert seen.certainty == "estimated"
    assert seen.rows == pytest.approx(12_000, rel=0.15)


def test_of_many_large_files_one_stands_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        jsonl(tmp_path / f"{name}.jsonl", rows(1000))
    monkeypatch.setattr(preview, "EXACT_BYTES", 1000)
    monkeypatch.setattr(preview, "HEAD_BYTES", 1 << 14)
    monkeypatch.setattr(preview, "_CHUNK_BYTES", 1 << 13)
    seen = look("train", [source(tmp_path)], ["de"])
    assert seen.certainty == "estimated"
    assert seen.rows == pytest.approx(3000, rel=0.1)


def test_a_row_limit_of_the_source_is_kept_and_shared_by_its_files(tmp_path: Path) -> None:
    for name, count in (("a", 100), ("b", 100), ("c", 10)):
        jsonl(tmp_path / f"{name}.jsonl", rows(count))
    seen = look("train", [source(tmp_path, rows=130)], ["de"])
    assert (seen.rows, seen.certainty) == (130, "exact")
    assert seen.languages == {"de": 105, "sw": 25}


@pytest.mark.parametrize(("limit", "counted"), [(None, 60), (70, 60), (40, 40)])
def test_only_listed_languages_count(tmp_path: Path, limit: int | None, counted: int) -> None:
    for name in ("a", "b"):
        jsonl(tmp_path / f"{name}.jsonl", rows(60))
    seen = look("train", [source(tmp_path, languages=["swh"], rows=limit)], ["de"])
    assert (seen.rows, seen.certainty, seen.languages) == (counted, "exact", {"sw": counted})


def test_listed_languages_of_a_long_file_are_estimated(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", rows(30_000))
    seen = look("train", [source(path, languages=["sw"])], ["de"])
    assert seen.certainty == "estimated"
    assert seen.rows == pytest.approx(15_000, rel=0.01)


def test_rejected_rows_are_not_counted_and_their_reason_is_kept(tmp_path: Path) -> None:
    records = [*rows(98), {"prompt": " ", "completion": "a", "language": "de"}]
    seen = look("train", [source(jsonl(tmp_path / "a.jsonl", records))], ["de"])
    assert seen.rows == 98
    assert seen.rejected is not None
    share, reason = seen.rejected
    assert share == pytest.approx(1 / 99)
    assert reason.endswith("a.jsonl: no prompt text")


def test_the_hub_is_not_asked(tmp_path: Path) -> None:
    hub = source("hf:owner/name")
    assert look("train", [hub], ["de"]).certainty == "unknown"
    assert look("train", [hub], ["de"]).rows is None
    both = look("train", [hub, source(jsonl(tmp_path / "a.jsonl", rows(10)))], ["de"])
    assert (both.rows, both.certainty) == (10, "at least")


def test_atlas_is_made_and_counted() -> None:
    made = source("atlas", rows=5)
    assert look("train", [made], ["de", "sw"]).languages == {"de": 5, "sw": 5}
    assert look("evaluation", [made], ["de"]).rows == 5
    few = source("atlas", rows=5, languages=["fr", "en"])
    assert look("auxiliary", [few], ["de"]).languages == {"en": 5, "fr": 5}
    with pytest.raises(UserError, match="atlas has no language yo"):
        look("auxiliary", [source("atlas", languages=["yo"])], ["de"])
    assert "de" in atlas.LANGUAGES


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "language": "de"}\n{"text": \n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: not valid JSON"):
        look("usage", [source(path)], ["de"])


def test_a_rename_of_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", rows(10))
    with pytest.raises(UserError, match=r"a\.jsonl: columns renames q; the columns are compl"):
        look("train", [source(path, columns={"q": "prompt"})], ["de"])


def test_columns_of_no_known_format_are_named_with_the_file(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"x": "a"}])
    with pytest.raises(UserError, match=r"a\.jsonl: columns x fit no known format"):
        look("usage", [source(path)], ["de"])
