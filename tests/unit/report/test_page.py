"""The report of a run that the test made up: what it shows."""

from __future__ import annotations

import html
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from compass_ray.artifacts import Storage
from compass_ray.report import build_report
from tests.unit.report.made_up_run import (
    CLUSTERS,
    RUN,
    SAMPLED,
    SUBJECTS,
    item_table,
    loss_table,
    manifest,
    score,
    write_run,
)
from tests.unit.report.parsed import body, read, shown, svgs


def test_the_headline_shows_the_numbers_of_the_tables(storage: Storage, page: str) -> None:
    rows = body(page, "headline")
    for row, score_row in zip(rows, read(storage, "scores").to_pylist(), strict=True):
        told = SAMPLED[score_row["language"]]
        gain = [shown(score_row[f"gain{end}"]) for end in ("", "_low", "_high")]
        low = gain[1] if gain[1].startswith("−") else f"+{gain[1]}"
        assert row[1:] == [
            shown(score_row["base"]),
            shown(score_row["adapter"]),
            f"+{gain[0]} [{low}, +{gain[2]}]",
            f"{shown(told['js_before'])} → {shown(told['js_after'])}",
            "300",
            "1,200",
        ]
    assert [row[0] for row in rows] == ["Amharic global_mmlu", "German global_mmlu"]


def test_rows_that_were_dropped_are_counted_by_reason(page: str) -> None:
    auxiliary, *others = body(page, "rows")
    dropped = "7 shorter than min_chars, 1,234 exact duplicates"
    assert auxiliary == ["auxiliary", "54,321", "12", dropped]
    assert [row[3] for row in others] == ["", "", ""]
    left_out = [["atlas", "4,321"], ["/data/<a>.jsonl", "5"]]
    assert body(page, "near-duplicates") == left_out
    assert "is over 0.98, by the encoder’s own vectors" in page


def test_novel_rows_are_told_by_role(page: str) -> None:
    told = [["auxiliary", "54,321", "543", "0.010"], ["usage", "900", "90", "0.100"]]
    assert body(page, "novel") == told


def test_the_sources_of_many_near_duplicates_are_told_together(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    told = manifest()
    told["stages"]["cluster"]["near_duplicates"] = {f"{n}.jsonl": n for n in range(1, 31)}
    storage.write_json(f"runs/{RUN}/manifest.json", told)
    rows = body(build_report(storage, RUN), "near-duplicates")
    assert [rows[0], rows[-1]] == [["30.jsonl", "30"], ["10 other sources", "55"]]
    told["stages"]["cluster"]["near_duplicates"] = None
    storage.write_json(f"runs/{RUN}/manifest.json", told)
    assert "near-duplicates" not in build_report(storage, RUN)


def test_the_verdict_says_in_words_whether_the_gain_is_real(storage: Storage, page: str) -> None:
    verdicts = re.findall(r'<li class="(\w[\w ]*)"><strong>\w+</strong>(.*?)</li>', page, re.S)
    for (outcome, text), row in zip(verdicts, read(storage, "scores").to_pylist(), strict=True):
        assert outcome == ("better" if row["gain_low"] > 0 else "no clear difference")
        assert f"accuracy {shown(row['base'])} → {shown(row['adapter'])} on 120 items" in text
        assert f"a gain of +{shown(row['gain'])} [" in text
        assert html.unescape(text).replace("\xa0", " ").endswith("p (Holm) < 0.001.")


def test_what_is_better_only_among_many_is_no_clear_difference(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    told = manifest(("am", "de", "sw"))
    told["config"]["evaluation"] = {"confidence": 0.9}
    storage.write_json(f"runs/{RUN}/manifest.json", told)
    items = item_table(np.random.default_rng(3))
    rows = [
        score(language, items) | {"gain_low": 0.01, "p_value": 0.01, "p_holm": p_holm}
        for language, p_holm in (("am", 0.42), ("de", 0.09), ("sw", 0.11))
    ]
    storage.write_table(f"runs/{RUN}/scores.parquet", pa.Table.from_pylist(rows))
    page = build_report(storage, RUN)
    verdicts = re.findall(r'<li class="(\w[\w ]*)"><strong>\w+</strong>', page)
    assert verdicts == ["no clear difference", "better", "no clear difference"]
    assert "95 %" not in page
    assert "90 % intervals by bootstrap" in page and "it must be under 0.1," in page


def test_no_two_languages_share_a_line(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    codes = ("am", "ar", "bn", "cs", "de", "el", "en", "es", "fa", "fil", "fr", "ha", "he", "hi")
    codes += ("id", "ig", "it", "ja", "ko", "ky")
    storage.write_json(f"runs/{RUN}/manifest.json", manifest(codes))
    for code in codes:
        table = loss_table(np.random.default_rng(4), 20)
        storage.write_table(f"runs/{RUN}/losses/{code}.parquet", table)
    page = build_report(storage, RUN)
    legends = re.findall(r'<p class="legend">(?:<span><i style="border-top: 3px.*?)</p>', page)
    assert [legend.count("<span>") for legend in legends] == [18, 2]
    for legend in legends:
        styles = re.findall(r'style="(.*?)"', legend)
        assert len(set(styles)) == len(styles)
    assert "Training loss by step: Amharic to Japanese" in page


def test_items_that_rows_were_not_compared_with_are_named(tmp_path: Path, page: str) -> None:
    assert 'id="unchecked"' not in page
    storage = Storage.open(str(tmp_path))
    write_run(storage, ("de",))
    told = manifest(("de",))
    told["stages"]["sample"]["unchecked"] = ["global_mmlu", "mmlu_prox"]
    storage.write_json(f"runs/{RUN}/manifest.json", told)
    some = build_report(storage, RUN)
    assert "rows repeat items of global_mmlu, mmlu_prox. Rows are compared with" in some
    assert body(some, "subsets")[0][-1] == "6"
    told["stages"]["records"]["rows"]["evaluation"] = 0
    storage.write_json(f"runs/{RUN}/manifest.json", told)
    none = build_report(storage, RUN)
    assert "items of corpora.evaluation, and there are none." in none
    assert body(none, "subsets")[0][-1] == "not checked"


@pytest.mark.parametrize("language", ["am", "de"])
def test_the_gap_table_holds_the_largest_filled_gaps_with_their_best_row(
    storage: Storage, page: str, language: str
) -> None:
    gaps = [row for row in read(storage, f"gaps/{language}").to_pylist() if row["added"] > 0]
    largest = sorted(gaps, key=lambda row: row["before"] - row["target"])[:10]
    rows = read(storage, f"subsets/{language}").to_pylist()
    for cells, gap in zip(body(page, f"gaps-{language}"), largest, strict=True):
        mine = [r for r in rows if r["cluster"] == gap["cluster"] and r["strategy"] != "own"]
        best = max(mine, key=lambda r: r["score"])["prompt"]
        assert cells[0].split()[0] == str(gap["cluster"])
        assert SUBJECTS[gap["cluster"] % len(SUBJECTS)] in cells[0]
        assert cells[1:4] == [shown(gap[column]) for column in ("target", "before", "after")]
        assert cells[4] == str(gap["added"])
        assert best.startswith(cells[5].rstrip("…"))


def test_a_search_shows_its_trials_and_the_front(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    told = manifest()
    told["config"]["search"] = {
        "space": {"sampling.budget": [1, 2]},
        "metric": ["accuracy", "tokens"],
    }
    storage.write_json(f"runs/{RUN}/manifest.json", told)
    same = {"status": "finished", "loss": 1.25, "steps": 7, "seconds": 70.0, "cause": None}
    rows = [
        {**same, "sampling.budget": 2, "accuracy": 0.7, "tokens": 2000, "device_hours": 0.5},
        {**same, "sampling.budget": 1, "accuracy": None, "tokens": None, "device_hours": None},
    ]
    rows[0]["pareto"], rows[1]["pareto"] = True, False
    rows[1] |= {"status": "failed", "cause": "no <room>"}
    storage.write_table(f"runs/{RUN}/search.parquet", pa.Table.from_pylist(rows))
    assert body(build_report(storage, RUN), "trials") == [
        ["★", "2", "0.700", "1.250", "2,000", "0.500", "7", "1 min 10 s", "finished"],
        ["", "1", "–", "1.250", "–", "–", "7", "1 min 10 s", "failed: no <room>"],
    ]


def test_what_lies_beyond_the_rows_is_the_sum_of_gaps(storage: Storage, page: str) -> None:
    for language in ("am", "de"):
        gaps = read(storage, f"gaps/{language}")
        target, before, after = (gaps[c].to_numpy() for c in ("target", "before", "after"))
        short = [shown(np.maximum(target - share, 0).sum()) for share in (before, after)]
        assert f"<p>A share of {short[0]} of what users ask" in page
        assert f"after picking, {short[1]}.</p>" in page


def test_example_rows_come_from_the_largest_filled_gaps(storage: Storage, page: str) -> None:
    rows = {row["prompt"]: row for row in read(storage, "subsets/de").to_pylist()}
    clusters = {cells[0].split()[0] for cells in body(page, "gaps-de")}
    examples = body(page, "examples-de")
    assert len(examples) == 10
    assert {row[3] for row in examples} <= clusters
    whole = [row for row in examples if not row[0].endswith("…")]
    assert len(whole) > 2
    for prompt, *_, gap, score_ in whole:
        assert (gap, score_) == (shown(rows[prompt]["gap"]), shown(rows[prompt]["score"]))
    assert all(len(row[0]) <= 241 for row in examples)


def test_accuracy_by_subject_is_that_of_the_items(storage: Storage, page: str) -> None:
    items = read(storage, "items/am").to_pylist()
    rows = {cells[0]: cells[2:] for cells in body(page, "subjects-am")}
    assert rows.keys() == {item["subject"] for item in items}
    for subject, cells in rows.items():
        mine = [item for item in items if item["subject"] == subject]
        base, adapter = (
            np.mean([item[who] for item in mine]) for who in ("base_correct", "adapter_correct")
        )
        gain = shown(adapter - base) if adapter <= base else f"+{shown(adapter - base)}"
        assert cells == [str(len(mine)), shown(base), shown(adapter), gain]


def test_the_heat_map_counts_picked_rows_by_source(storage: Storage, page: str) -> None:
    drawing = next(s for s in svgs(page) if "by source language" in s.attrib["aria-label"])
    numbers = Counter(text for text in drawing.itertext() if text.strip().isdigit())
    expected: Counter[str] = Counter()
    for language in ("am", "de"):
        picked = read(storage, f"subsets/{language}").filter(pc.field("strategy") != "own")
        expected.update(str(n) for n in Counter(picked["language"].to_pylist()).values())
    assert numbers == expected


def test_the_map_of_clusters_has_a_dot_each_and_says_what_the_gaps_are(
    storage: Storage, page: str
) -> None:
    gaps = read(storage, "gaps/de")
    gap = gaps["target"].to_numpy() - gaps["before"].to_numpy()
    figures = re.findall(r"<svg.*?</svg>", page, re.S)
    mine = next(f for f in figures if f"German: rows are missing in {(gap > 0).sum()} of 40" in f)
    assert f"most in cluster {gap.argmax()}, {shown(gap.max())}" in mine
    assert mine.count("stroke: var(--muted)") == CLUSTERS
    by_language = next(f for f in figures if "most frequent language of a cluster" in f)
    assert by_language.count("stroke: var(--muted)") == CLUSTERS


def test_the_choice_of_k_shows_what_was_tried(page: str) -> None:
    assert "DBCV by number of clusters. 20: 0.210, 40: 0.340, 75: −0.050. Chosen: 40." in page
    assert "1,234 of 9,876 rows fitted were noise" in page
    assert "a leakage of 0.012 here" in page


def test_what_was_refused_and_left_unspent_is_told_with_its_reason(page: str) -> None:
    rows = {row[0]: row for row in body(page, "subsets")}
    assert rows["Amharic"][4:] == ["100", "17", "250", "6"]
    reason = (
        "100 of 400 rows unspent: 567 rows of other languages could be picked, of which 250 are"
    )
    assert f"Amharic: {reason} too far from usage, 17 are near duplicates." in page
    assert "Amharic: 3 of its own rows repeat evaluation items" in page
    assert "German: 0" not in page
