"""The report of a run that the test made up: what it shows, and what it must never do."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from compass_ray.artifacts import Storage
from compass_ray.errors import UserError
from compass_ray.evaluation.scores import SCORES_SCHEMA
from compass_ray.report import build_report, write_report
from compass_ray.report.page import STAGES
from tests.unit.report.made_up_run import (
    CLUSTERS,
    PROMPTS,
    RUN,
    SAMPLED,
    SCRIPT,
    SUBJECTS,
    item_table,
    loss_table,
    manifest,
    score,
    write_run,
)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    root = Storage.open(str(tmp_path_factory.mktemp("run")))
    write_run(root)
    return root


@pytest.fixture(scope="module")
def page(storage: Storage) -> str:
    return build_report(storage, RUN)


class _Parsed(HTMLParser):
    """Every tag with its attributes, and the text of every cell of a table by the table's id."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._rows: list[list[str]] = []
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._rows = self.tables[dict(attrs).get("id") or ""] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self._rows[-1][-1] += data


def body(page: str, table: str) -> list[list[str]]:
    return [[cell.strip() for cell in row] for row in _Parsed(page).tables[table][1:]]


def shown(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def read(storage: Storage, name: str) -> pa.Table:
    return storage.read_table(f"runs/{RUN}/{name}.parquet")


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


def test_text_of_the_data_never_becomes_markup(page: str) -> None:
    tags = {tag for tag, _ in _Parsed(page).tags}
    assert not tags & {"script", "b", "iframe", "object"}
    cells = [cell for rows in _Parsed(page).tables.values() for row in rows for cell in row]
    assert any(SCRIPT in cell for cell in cells)
    assert "&lt;worker&gt; 3 was killed" in page
    assert "https://example.org/&lt;data&gt;.jsonl" in page


def test_every_script_is_shown_as_it_is_and_takes_its_own_direction(page: str) -> None:
    assert f'<td class="text" dir="auto">{PROMPTS["ar"]}' in page
    assert f'<td class="text" dir="auto">{PROMPTS["am"]}' in page


def test_the_page_asks_for_nothing_but_itself_and_stays_small(page: str) -> None:
    assert len(page.encode()) < 2_000_000
    for tag, attrs in _Parsed(page).tags:
        assert tag not in ("link", "img", "iframe", "script")
        values = [value for name, value in attrs.items() if not name.startswith("xmlns")]
        assert not any("://" in (value or "") for value in values), (tag, attrs)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_figures_are_well_formed_and_say_in_words_what_they_show(page: str) -> None:
    drawings = svgs(page)
    # Gaps, map and subjects a language; sources, loss, accuracy, languages, choice of k.
    assert len(drawings) == 3 * 2 + 5
    for drawing in drawings:
        assert drawing.attrib["role"] == "img"
        assert len(drawing.attrib["aria-label"]) > 40
        assert any((text or "").strip() for text in drawing.itertext())
    assert page.count("<figcaption>") == len(drawings)
    assert not re.search(r"(?:fill|stroke): #", page), "a colour that does not follow the theme"


def test_bars_are_as_long_as_the_shares_they_stand_for(storage: Storage, page: str) -> None:
    gaps = read(storage, "gaps/am")
    order = np.argsort(gaps["before"].to_numpy() - gaps["target"].to_numpy(), kind="stable")
    drawing = next(s for s in svgs(page) if s.attrib["aria-label"].startswith("Amharic: wanted"))
    for column in ("before", "after"):
        fill = [e for e in drawing.iter() if e.get("style") == f"fill: var(--{column})"]
        edges = [[float(x) for x in re.findall(r"[ML] ([\d.]+)", e.attrib["d"])] for e in fill]
        lengths = np.array([max(xs) - min(xs) for xs in edges])
        shares = gaps[column].to_numpy()[order]
        expected = np.append(shares[:30], shares[30:].mean())
        assert np.allclose(lengths / lengths.sum(), expected / expected.sum(), atol=2e-3)


def test_no_two_elements_share_an_id(page: str) -> None:
    counts = Counter(attrs["id"] for _, attrs in _Parsed(page).tags if "id" in attrs)
    assert [name for name, count in counts.items() if count > 1] == []


def test_a_language_that_failed_is_named_at_the_top(page: str) -> None:
    head = page[: page.index("</header>")]
    assert "<strong>Swahili</strong>, in the stage “train”: OutOfMemoryError" in head


@pytest.mark.parametrize("reached", range(len(STAGES)))
def test_a_run_that_stopped_early_shows_what_it_has_and_says_so(
    storage: Storage, tmp_path: Path, reached: int
) -> None:
    early = Storage.open(str(tmp_path))
    told = manifest()
    told["stages"] = {stage: told["stages"][stage] for stage in STAGES[:reached]}
    early.write_json(f"runs/{RUN}/manifest.json", told)
    if reached > STAGES.index("sample"):
        for folder in ("gaps", "subsets"):
            early.write_table(f"runs/{RUN}/{folder}/de.parquet", read(storage, f"{folder}/de"))
    page = build_report(early, RUN)
    assert ", ".join(STAGES[reached:]) + ". What there is" in page
    assert "No accuracy: the run did not reach the stage “evaluate”." in page
    assert ("gaps-de" in _Parsed(page).tables) == (reached > STAGES.index("sample"))
    assert [row[0] for row in body(page, "stages")] == [*STAGES[:reached], "whole run"]


def test_a_run_with_an_empty_manifest_still_has_a_page(tmp_path: Path) -> None:
    empty = Storage.open(str(tmp_path))
    empty.write_json(f"runs/{RUN}/manifest.json", {})
    assert "This run is not complete" in build_report(empty, RUN)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_base_not_measured_is_a_dash(storage: Storage, tmp_path: Path, missing: Any) -> None:
    other = Storage.open(str(tmp_path))
    other.write_json(f"runs/{RUN}/manifest.json", manifest(("de",)))
    row = score("de", read(storage, "items/de"))
    nothing = {key: missing for key in row if key.startswith(("base", "gain", "p_", "cohens"))}
    other.write_table(f"runs/{RUN}/scores.parquet", pa.Table.from_pylist([row | nothing]))
    page = build_report(other, RUN)
    assert body(page, "headline")[0][1:4] == ["–", shown(row["adapter"]), "–"]
    assert "was not compared with the base model: accuracy " + shown(row["adapter"]) in page
    assert not re.search(r"\bnan\b", page)


def test_a_language_without_items_is_said_in_the_table(storage: Storage, tmp_path: Path) -> None:
    other = Storage.open(str(tmp_path))
    other.write_json(f"runs/{RUN}/manifest.json", manifest(("de", "am")))
    full = {"base_unparsed": 0.25, "fertility": 1.75, "fertility_unit": "word"}
    rows = [
        score("de", read(storage, "items/de")) | full,
        {"language": "am", "task": "mmlu_prox", "n": 0, "note": "not in mmlu_prox"},
    ]
    table = pa.Table.from_pylist(rows, schema=SCORES_SCHEMA)
    other.write_table(f"runs/{RUN}/scores.parquet", table)
    page = build_report(other, RUN)
    scores = {row[0].split()[0]: row for row in body(page, "scores")}
    assert scores["Amharic"][1] == "not scored: not in mmlu_prox"
    assert scores["German"][4:] == ["< 0.001", "< 0.001", "0.321", "0.013base 0.250", "1.750a word"]
    assert "Amharic</strong>: mmlu_prox was not scored (not in mmlu_prox)." in page


def test_the_report_is_written_into_the_run(storage: Storage, page: str) -> None:
    place = write_report(storage, RUN)
    assert Path(place).read_text() == page
    assert place == storage.location(f"runs/{RUN}/report.html")


def test_a_run_that_is_not_there_is_the_users_error(storage: Storage) -> None:
    with pytest.raises(UserError, match="nowhere"):
        build_report(storage, "nowhere")


def svgs(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.S)]


def test_the_report_needs_neither_ray_nor_torch() -> None:
    code = "import sys, compass_ray.report; print({'ray', 'torch'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
