from __future__ import annotations

import math
from importlib.resources import files

import numpy as np
import pytest

from compass_ray.errors import UserError
from compass_ray.sampling import similarity
from compass_ray.sampling.similarity import KINDS, TextProfile, uriel_distances, word_hashes


def words(text: str) -> int:
    return TextProfile.of([text]).tokens


@pytest.mark.parametrize("kind", ["genetic", "featural", "geographic", "syntactic"])
def test_zulu_is_nearer_to_swahili_than_german_is(kind: str) -> None:
    distances = uriel_distances("sw", ["zu", "de"])[kind]
    assert distances["zu"] < distances["de"]


@pytest.mark.parametrize("kind", ["genetic", "featural", "geographic", "syntactic"])
def test_spanish_is_the_nearest_to_portuguese(kind: str) -> None:
    distances = uriel_distances("pt", ["de", "es", "sw", "ja", "ru", "ar"])[kind]
    assert min(distances, key=lambda language: distances[language]) == "es"


def test_distances_are_those_of_the_package() -> None:
    querying = pytest.importorskip("urielplus.urielplus_querying")
    codes = {"sw": "swh", "zu": "zul", "de": "deu", "ja": "jpn"}
    matrices = []
    for name in ("family_features", "features", "geocoord_features"):
        path = files("urielplus") / "database" / "original_uriel" / f"{name}.npz"
        with path.open("rb") as stream:
            matrix = dict(np.load(stream))
        rows = [matrix["langs"].tolist().index(code) for code in codes.values()]
        matrices.append({**matrix, "langs": matrix["langs"][rows], "data": matrix["data"][rows]})
    columns = [[m[key] for m in matrices] for key in ("feats", "langs", "data", "sources")]
    package = querying.URIELPlusQuerying(*columns, codes="Iso")

    ours = uriel_distances("sw", ["zu", "de", "ja"])
    for kind in KINDS:
        for other, distance in ours[kind].items():
            theirs = package.new_distance(kind, ["swh", codes[other]])
            assert distance == pytest.approx(theirs, abs=2e-4), (kind, other)


def test_every_kind_and_language_is_answered_within_0_and_1() -> None:
    others = ["en", "ar", "lv", "sk", "zh-Hant", "yue"]
    distances = uriel_distances("sw", others)
    assert tuple(distances) == KINDS
    for by_language in distances.values():
        assert list(by_language) == others
        assert all(math.isnan(d) or 0 <= d <= 1 for d in by_language.values())


def test_what_uriel_does_not_know_is_nan() -> None:
    distances = uriel_distances("sw", ["sk"])
    assert math.isnan(distances["syntactic"]["sk"])
    assert not math.isnan(distances["genetic"]["sk"])


def test_what_is_known_under_the_macrolanguage_code_is_found() -> None:
    assert uriel_distances("en", ["lv"])["featural"]["lv"] > 0  # known as lav, not as lvs


def test_distance_is_symmetric_and_zero_to_itself_in_any_script() -> None:
    there, back = uriel_distances("sw", ["de"]), uriel_distances("de", ["sw"])
    assert {k: d["de"] for k, d in there.items()} == {k: d["sw"] for k, d in back.items()}
    for same in uriel_distances("zh", ["zh", "zh-Hant"]).values():
        assert set(same.values()) == {0.0}


def test_no_languages_to_compare_is_no_error() -> None:
    assert uriel_distances("sw", []) == {kind: {} for kind in KINDS}


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(UserError, match="klingonish"):
        uriel_distances("sw", ["klingonish"])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Habari ya asubuhi?", 3),
        ("हिन्दी में क्या है", 4),  # vowel signs and viramas do not end a word
        ("می‌خواهم", 1),  # neither does the joiner
        ("한국어 문장", 2),
        ("日本語のテスト", 7),
        ("ที่นี่", 2),  # each consonant with its marks
        ("GDP在2020年", 4),
        ("?! …", 0),
        ("❤\ufe0f 👩\u200d🚀 ndiyo", 1),  # marks and joiners of emoji are no words
        ("", 0),
    ],
)
def test_text_is_split_as_its_script_is_written(text: str, count: int) -> None:
    assert words(text) == count


def test_case_and_composition_do_not_make_another_word() -> None:
    assert len(TextProfile.of(["VIỆT việt Vie\u0323\u0302t"]).types) == 1


def test_hashes_never_change() -> None:
    rows, hashes = word_hashes(["habari ya", "日"])
    assert rows.tolist() == [0, 0, 1]
    assert [f"{value:016x}" for value in hashes.tolist()] == [
        "61055ac5ed52e833",
        "091801712d6c8ef5",
        "8ea8b7a564d28462",
    ]


def test_line_breaks_and_empty_texts_keep_the_count_of_rows() -> None:
    rows, _ = word_hashes(["", "one\ntwo", "", "three"])
    assert rows.tolist() == [1, 1, 3]


def test_profiles_of_parts_add_up_to_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["moja mbili tatu", "mbili nne", "", "tano moja"]
    whole = TextProfile.of(texts)
    monkeypatch.setattr(similarity, "_BLOCK_CHARACTERS", 8)
    for profile in (TextProfile.of(texts[:2]) + TextProfile.of(texts[2:]), TextProfile.of(texts)):
        assert (profile.rows, profile.tokens) == (whole.rows, whole.tokens) == (4, 7)
        assert profile.types.tolist() == whole.types.tolist()
    assert whole.ttr == pytest.approx(5 / 7)
    assert math.isnan(TextProfile.of([]).ttr)
