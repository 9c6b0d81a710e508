"""The records stage from files to parts; the passes that Ray spreads run in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from compass_ray.artifacts import Storage
from compass_ray.config import Config
from compass_ray.corpora import sources, stage
from compass_ray.corpora.cleaning import DUPLICATE, NOT_LISTED, TOO_SHORT
from compass_ray.corpora.stage import Corpus, find_corpora, read_corpora
from compass_ray.errors import UserError
from compass_ray.loading import build_config

Row = tuple[str, str]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "map_parts", lambda items, work: map(work, items))


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., Config]:
    """A configuration whose sources are given by role: rows of (prompt, completion) a file."""

    def make(cleaning: dict[str, Any] | None = None, **roles: Sequence[Sequence[Row]]) -> Config:
        corpora: dict[str, Any] = {"auxiliary": [], "train": [], "usage": [], "evaluation": []}
        for role, files in roles.items():
            for number, rows in enumerate(files):
                path = tmp_path / f"{role}-{number}.jsonl"
                records = [{"prompt": prompt, "completion": text} for prompt, text in rows]
                text = "".join(json.dumps(record) + "\n" for record in records)
                if not path.exists() or path.read_text() != text:
                    path.write_text(text)
                corpora[role].append({"path": str(path), "language": "de"})
        values = {
            "run": {"storage": str(tmp_path / "storage")},
            "languages": ["de"],
            "corpora": {**corpora, "cleaning": cleaning or {}, "rows_per_part": 3},
        }
        return build_config(values, where="test")

    return make


def read(config: Config) -> Corpus:
    return read_corpora(config, Storage.open(config.run.storage))


def prompts(config: Config, corpus: Corpus, role: Any) -> list[list[str]]:
    storage = Storage.open(config.run.storage)
    tables = [storage.read_table(part.path) for part in corpus.of(role)]
    assert [table.num_rows for table in tables] == [part.rows for part in corpus.of(role)]
    return [table["prompt"].to_pylist() for table in tables]


def test_a_row_that_was_there_before_goes_whichever_file_it_is_in(
    configure: Callable[..., Config],
) -> None:
    first = [("a", "1"), ("b", "1"), ("a", "1"), ("c", "1"), ("a", "2")]
    config = configure(
        auxiliary=[first, [("d", "1"), ("b", "1")], [("c", "1")]],
        train=[[("a", "1"), ("a", "1")]],
    )
    corpus = read(config)
    assert prompts(config, corpus, "auxiliary") == [["a", "b"], ["c", "a"], ["d"]]
    assert prompts(config, corpus, "train") == [["a"]]
    assert corpus.dropped["auxiliary"] == {DUPLICATE: 3}
    assert corpus.dropped["train"] == {DUPLICATE: 1}
    assert corpus.languages("auxiliary") == {"de": 5}


def test_a_prompt_that_is_asked_twice_stays_asked_twice(configure: Callable[..., Config]) -> None:
    config = configure(usage=[[("a", ""), ("a", ""), ("b", "")]])
    corpus = read(config)
    assert prompts(config, corpus, "usage") == [["a", "a", "b"]]
    assert corpus.dropped["usage"] == {}


def test_a_part_tells_its_texts_from_their_weights(configure: Callable[..., Config]) -> None:
    config = configure(usage=[[("a", ""), ("b", "")]])
    (part,) = read(config).of("usage")
    heavier = config.corpora.usage[0].model_copy(update={"weight": 2.0})
    corpora = config.corpora.model_copy(update={"usage": [heavier]})
    (weighed,) = read(config.model_copy(update={"corpora": corpora})).of("usage")
    assert weighed.content == part.content
    assert weighed.identity() != part.identity()


def test_duplicates_count_beside_what_cleaning_drops(configure: Callable[..., Config]) -> None:
    files = [[("a", "1"), ("long", "1"), ("long", "1"), ("a", "1")]]
    corpus = read(configure(auxiliary=files, cleaning={"min_chars": 3}))
    assert corpus.dropped["auxiliary"] == {TOO_SHORT: 2, DUPLICATE: 1}


def test_rejected_rows_are_all_counted_and_the_first_are_kept(
    configure: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(stage, "MAX_REJECTED", 3)
    monkeypatch.setattr(sources, "_BATCH_ROWS", 2)
    config = configure(usage=[[(" ", "")] * 7 + [("a", "")]])
    with pytest.raises(UserError, match=r"7 of 8 rows rejected.*; 3 of them in .*rejected.parquet"):
        read(config)
    lenient = config.corpora.model_copy(update={"max_rejected": 1.0})
    assert read(config.model_copy(update={"corpora": lenient})).rejected["usage"] == 7
    kept = Path(caplog.messages[-1].rpartition(" in ")[2])
    assert pq.read_table(kept)["row"].to_pylist() == [0, 1, 2]


def test_rows_in_a_language_that_is_not_listed_are_dropped_and_counted(
    configure: Callable[..., Config],
) -> None:
    config = configure(usage=[[("a", ""), ("b", "")]])
    listed = config.corpora.usage[0].model_copy(update={"languages": ["sw"]})
    corpora = config.corpora.model_copy(update={"usage": [listed]})
    corpus = read(config.model_copy(update={"corpora": corpora}))
    assert (corpus.rows("usage"), corpus.dropped["usage"]) == (0, {NOT_LISTED: 2})


def test_parts_without_repeated_rows_stay_the_same_parts(configure: Callable[..., Config]) -> None:
    alone = configure(auxiliary=[[("a", "1"), ("b", "1")]])
    (part,) = read(alone).of("auxiliary")
    grown = read(configure(auxiliary=[[("a", "1"), ("b", "1")], [("b", "1"), ("c", "1")]]))
    assert grown.of("auxiliary")[0] == part
    assert grown.of("auxiliary")[1].rows == 1


def test_what_was_read_is_found_whole_or_not_at_all(configure: Callable[..., Config]) -> None:
    config = configure(auxiliary=[[("a", "1"), ("a", "1")]], usage=[[("a", "")]])
    storage = Storage.open(config.run.storage)
    assert find_corpora(config, storage) is None
    corpus = read(config)
    again = read(config)
    assert (corpus.computed, again.computed, again.reused) == (2, 0, 2)
    assert find_corpora(config, storage) == again
    assert (again.parts, again.dropped) == (corpus.parts, corpus.dropped)
    storage.delete_dir(corpus.of("auxiliary")[0].path.rpartition("/")[0])
    assert find_corpora(config, storage) is None
    assert read(config).dropped == corpus.dropped
