"""What every report keeps to: whatever the data say, and however far the run came."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from compass_ray.artifacts import Storage
from compass_ray.errors import UserError
from compass_ray.evaluation.scores import SCORES_SCHEMA
from compass_ray.report import build_report, write_report
from compass_ray.report.page import STAGES
from tests.unit.report.made_up_run import (
    PROMPTS,
    RUN,
    SCRIPT,
    manifest,
    score,
)
from tests.unit.report.parsed import Parsed, body, read, shown, svgs


def test_text_of_the_data_never_becomes_markup(page: str) -> None:
    tags = {tag for tag, _ in Parsed(page).tags}
    assert not tags & {"script", "b", "iframe", "object"}
    cells = [cell for rows in Parsed(page).tables.values() for row in rows for cell in row]
    assert any(SCRIPT in cell for cell in cells)
    assert "&lt;worker&gt; 3 was killed" in page
    assert "https://example.org/&lt;data&gt;.jsonl" in page


def test_every_script_is_shown_as_it_is_and_takes_its_own_direction(page: str) -> None:
    assert f'<td class="text" dir="auto">{PROMPTS["ar"]}' in page
    assert f'<td class="text" dir="auto">{PROMPTS["am"]}' in page


def test_the_page_asks_for_nothing_but_itself_and_stays_small(page: str) -> None:
    assert len(page.encode()) < 2_000_000
    for tag, attrs in Parsed(page).tags:
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
    counts = Counter(attrs["id"] for _, attrs in Parsed(page).tags if "id" in attrs)
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
    assert ("gaps-de" in Parsed(page).tables) == (reached > STAGES.index("sample"))
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


def test_the_report_needs_neither_ray_nor_torch() -> None:
    code = "import sys, compass_ray.report; print({'ray', 'torch'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
