"""The built-in corpus: what each role asks, in every language, and what never leaks."""

from __future__ import annotations

import datetime
import re
from collections import Counter

import babel
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from compass_ray import languages as tags
from compass_ray.corpora import atlas, atlas_cldr, atlas_facts, atlas_texts
from compass_ray.corpora.atlas import LANGUAGES, SUBJECTS, TRAIN_SUBJECTS
from compass_ray.corpora.atlas_facts import SPLITS, Fact
from compass_ray.errors import UserError
from compass_ray.records import SCHEMA, row_id, to_rows

ROLES = ("auxiliary", "train", "usage")
SEED = 7
EVERYTHING = 100_000


def some_facts(language: str, subject: str) -> list[Fact]:
    """Up to some 600 facts, spread over the subject."""
    entities = atlas_facts.entities(subject)
    step = max(1, len(entities) // 300)
    found = (atlas_facts.fact(language, subject, entity) for entity in entities[::step])
    return [fact for fact in found if fact is not None]


def entity_of_prompt(language: str) -> dict[str, tuple[str, str]]:
    """Every prompt of a language but those for dates → its subject and entity."""
    return {
        atlas_texts.ask(language, subject, phrasing, fact.shown): (subject, entity)
        for subject in SUBJECTS
        if subject != "date_long"
        for entity in atlas_facts.entities(subject)
        if (fact := atlas_facts.fact(language, subject, entity))
        for phrasing in range(len(atlas_texts.phrasings(language, subject)))
    }


def asked(table: pa.Table, language: str) -> set[tuple[str, str]]:
    """The subject and entity of each row's prompt."""
    known = entity_of_prompt(language)
    found = set()
    for prompt in table["prompt"].to_pylist():
        date = re.search(r"\d{4}-\d\d-\d\d", prompt)
        found.add(("date_long", date[0]) if date else known[prompt])
    return found


def options(item: dict[str, str]) -> list[str]:
    return [item[f"option_{letter}"] for letter in "abcd"]


@pytest.mark.parametrize("role", ROLES)
def test_the_same_arguments_make_the_same_rows(role: str) -> None:
    first = atlas.rows(role, ["de", "am"], 150, seed=SEED)
    assert atlas.rows(role, ["de", "am"], 150, seed=SEED).equals(first)
    assert not atlas.rows(role, ["de", "am"], 150, seed=SEED + 1).equals(first)


def test_the_same_arguments_make_the_same_items() -> None:
    first = atlas.items(["sw"], seed=SEED)
    assert atlas.items(["sw"], seed=SEED).equals(first)
    assert not atlas.items(["sw"], seed=SEED + 1).equals(first)


@pytest.mark.parametrize("role", ROLES)
def test_a_language_has_the_same_rows_alone_as_among_others(role: str) -> None:
    together = atlas.rows(role, ["zh", "sw", "de"], 80, seed=SEED)
    alone = [atlas.rows(role, [language], 80, seed=SEED) for language in ("zh", "sw", "de")]
    assert together.equals(pa.concat_tables(alone))


def test_there_are_twenty_languages_with_our_codes_and_eleven_subjects() -> None:
    assert len(set(LANGUAGES)) == 20
    assert [tags.normalise(language) for language in LANGUAGES] == list(LANGUAGES)
    assert len(set(SUBJECTS)) == 11
    assert set(SUBJECTS) > TRAIN_SUBJECTS
    assert TRAIN_SUBJECTS.isdisjoint({"currency_of_country", "date_long"})


@pytest.mark.parametrize("role", ROLES)
def test_rows_are_canonical(role: str) -> None:
    table = atlas.rows(role, LANGUAGES, 60, seed=SEED)
    assert table.schema == SCHEMA
    assert Counter(table["language"].to_pylist()) == dict.fromkeys(LANGUAGES, 60)
    for row in table.to_pylist():
        assert row["id"] == row_id(row["language"], row["prompt"], row["response"])
        assert (row["response"] is None) == (role == "usage")
        assert row["source"] == "atlas"
        assert row["timestamp"] is None
    assert len(set(table["id"].to_pylist())) == table.num_rows


def test_items_are_read_as_global_mmlu() -> None:
    table = atlas.items(LANGUAGES, 20, seed=SEED)
    read = to_rows(table, role="evaluation", language=None, source="atlas")
    assert read.rejected.num_rows == 0
    assert read.rows.num_rows == table.num_rows == 20 * len(LANGUAGES)
    assert read.rows["language"].to_pylist() == table["language"].to_pylist()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_subject_has_three_phrasings_that_show_all_and_tell_nothing(language: str) -> None:
    for subject in SUBJECTS:
        phrasings = atlas_texts.phrasings(language, subject)
        assert len(set(phrasings)) == len(phrasings) >= 3
        fact = some_facts(language, subject)[0]
        for number in range(len(phrasings)):
            prompt = atlas_texts.ask(language, subject, number, fact.shown)
            assert not re.search(r"[{}]", prompt)
            assert all(shown in prompt for shown in fact.shown.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_subject_shows_each_thing_once(language: str) -> None:
    for subject in SUBJECTS:
        facts = some_facts(language, subject)
        assert len(facts) >= 30
        assert len({tuple(fact.shown.values()) for fact in facts}) == len(facts)
        assert len({fact.answer for fact in facts}) >= 7


def test_the_answer_is_not_in_the_question() -> None:
    for language in LANGUAGES:
        for row in atlas.rows("auxiliary", [language], 500, seed=SEED).to_pylist():
            assert row["response"].casefold() not in row["prompt"].casefold()


def test_a_fact_belongs_to_one_split_near_the_shares() -> None:
    for subject in SUBJECTS:
        parts = [atlas_facts.entities(subject, split) for split in SPLITS]
        every = atlas_facts.entities(subject)
        assert sorted(entity for part in parts for entity in part) == sorted(every)
        for part, share in zip(parts, (0.7, 0.1, 0.2), strict=True):
            assert len(part) / len(every) == pytest.approx(share, rel=0.2)


@pytest.mark.parametrize("language", ["de", "sw", "am", "zh"])
def test_no_fact_of_the_evaluation_is_in_other_rows_of_any_language(language: str) -> None:
    items = atlas.items([language], 1500, seed=SEED)
    ids = [sample.rsplit("/", 1)[0] for sample in items["sample_id"].to_pylist()]
    evaluated = {tuple(name.split("/", 1)) for name in ids}
    assert all(atlas_facts.split_of(*fact) == "evaluation" for fact in evaluated)
    for role in ROLES:
        table = atlas.rows(role, [language], 1500, seed=SEED)
        assert set(table["prompt"].to_pylist()).isdisjoint(items["question"].to_pylist())
        # The split knows no language, so what is checked in each holds across them.
        split = "usage" if role == "usage" else "training"
        found = asked(table, language)
        assert found.isdisjoint(evaluated)
        assert {atlas_facts.split_of(*fact) for fact in found} == {split}


def test_auxiliary_rows_are_of_all_subjects_in_equal_shares() -> None:
    table = atlas.rows("auxiliary", ["de", "sw"], 440, seed=SEED)
    assert Counter(table["subject"].to_pylist()) == dict.fromkeys(SUBJECTS, 80)
    first = table["subject"].to_pylist()[:60]
    assert len(set(first)) == len(SUBJECTS)


def test_train_rows_are_of_the_train_subjects_only() -> None:
    table = atlas.rows("train", LANGUAGES, 200, seed=SEED)
    per_language = 200 // len(TRAIN_SUBJECTS) * len(LANGUAGES)
    counts = Counter(table["subject"].to_pylist())
    assert set(counts) == TRAIN_SUBJECTS
    # Zulu has CLDR names for few units, and gives the difference to other subjects.
    assert all(count == pytest.approx(per_language, rel=0.05) for count in counts.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_users_ask_mostly_for_what_the_own_rows_lack(language: str) -> None:
    table = atlas.rows("usage", [language], seed=SEED)
    subjects, weights = table["subject"].to_pylist(), table["weight"].to_pylist()
    counts, weighed = Counter(subjects), Counter[str]()
    for subject, weight in zip(subjects, weights, strict=True):
        weighed[subject] += weight
    assert table.num_rows == 300
    assert sum(counts[subject] for subject in TRAIN_SUBJECTS) == 60
    assert sum(weights) == pytest.approx(300)
    assert weighed["currency_of_country"] == pytest.approx(90)
    assert weighed["date_long"] == pytest.approx(90)
    assert sum(weighed[subject] for subject in TRAIN_SUBJECTS) == pytest.approx(60)
    assert {name for name, _ in weighed.most_common(2)} == {"currency_of_country", "date_long"}


def test_weights_are_one_while_the_prompts_last() -> None:
    table = atlas.rows("usage", LANGUAGES, 100, seed=SEED)
    assert set(table["weight"].to_pylist()) == {1.0}
    counts = Counter(table["subject"].to_pylist())
    assert counts["currency_of_country"] == 30 * len(LANGUAGES)
    assert counts["date_long"] == 30 * len(LANGUAGES)


def test_when_prompts_run_out_fewer_come_and_none_twice() -> None:
    table = atlas.rows("usage", ["de"], EVERYTHING, seed=SEED)
    assert table.num_rows < EVERYTHING
    assert len(set(table["id"].to_pylist())) == table.num_rows


def test_items_ask_what_users_ask() -> None:
    subjects = Counter(atlas.items(["de", "am"], 100, seed=SEED)["subject"].to_pylist())
    assert subjects["currency_of_country"] == 60
    assert subjects["date_long"] == 60
    assert sum(subjects[subject] for subject in TRAIN_SUBJECTS) == 40


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_letter_of_an_item_points_to_the_answer(language: str) -> None:
    for item in atlas.items([language], seed=SEED).to_pylist():
        subject, entity, phrasing = item["sample_id"].split("/")
        fact = atlas_facts.fact(language, subject, entity)
        assert fact is not None
        assert item["question"] == atlas_texts.ask(language, subject, int(phrasing), fact.shown)
        assert options(item)["ABCD".index(item["answer"])] == fact.answer
        assert len({option.casefold() for option in options(item)}) == 4
        assert not any(o.casefold() in item["question"].casefold() for o in options(item))


def test_each_letter_is_right_equally_often() -> None:
    letters = Counter(atlas.items(["de"], 120, seed=SEED)["answer"].to_pylist())
    assert letters == dict.fromkeys("ABCD", 30)


def test_the_answer_given_most_often_is_also_the_wrong_option_most_often() -> None:
    table = atlas.items(["en"], 500, seed=SEED)
    money = table.filter(pc.equal(table["subject"], "currency_of_country")).to_pylist()
    offered = [item for item in money if "Euro" in options(item)]
    right = [item for item in offered if options(item)["ABCD".index(item["answer"])] == "Euro"]
    assert len(offered) > 2 * len(right) > 0


def test_a_hundred_thousand_rows_are_all_different() -> None:
    table = atlas.rows("auxiliary", LANGUAGES, 5000, seed=SEED)
    assert table.num_rows == 100_000
    assert pc.count_distinct(table["id"]).as_py() == 100_000


def test_languages_come_in_the_order_given_and_once() -> None:
    table = atlas.rows("train", ["sw", "de", "sw"], 5, seed=SEED)
    assert table["language"].to_pylist() == ["sw"] * 5 + ["de"] * 5


def test_no_languages_and_no_rows_are_empty_tables() -> None:
    assert atlas.rows("usage", []).equals(SCHEMA.empty_table())
    assert atlas.rows("usage", ["de"], 0).num_rows == 0
    assert atlas.items(["de"], 0).num_rows == 0


def test_an_unknown_language_is_named_with_those_known() -> None:
    for make in (lambda: atlas.rows("train", ["de", "xx"]), lambda: atlas.items(["xx"])):
        with pytest.raises(UserError, match=r"^atlas has no language xx; it has am, ar, de, .*zu$"):
            make()


def test_an_unknown_role_is_named_with_those_known() -> None:
    with pytest.raises(UserError, match="role test; expected one of auxiliary, train, usage"):
        atlas.rows("test", ["de"])


def test_another_use_of_babel_does_not_change_the_names() -> None:
    # babel shares what languages inherit: asking Swahili first gives everyone its days.
    assert babel.Locale("sw").days["stand-alone"]["wide"][0] == "Jumatatu"
    fresh = atlas_cldr.cldr.__wrapped__("am")
    assert fresh.weekdays[0] == "ሰኞ"


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("en", "three hundred and forty-seven"),
        ("ar", "ثلاثمائة وسبعة وأربعون"),
        ("sw", "mia tatu na arobaini na saba"),
        ("zu", "amakhulu amathathu namashumi amane nesikhombisa"),
        ("hi", "तीन सौ सैंतालीस"),
        ("zh", "三百四十七"),
    ],
)
def test_numbers_are_put_in_words(language: str, expected: str) -> None:
    fact = atlas_facts.fact(language, "number_words", "347")
    assert fact is not None and fact.answer == expected


def test_numbers_in_words_are_all_different() -> None:
    for language, words in atlas_texts.number_words().items():
        assert len({words.say(number) for number in range(1, 1000)}) == 999, language


def test_chinese_numbers_say_their_zeros() -> None:
    say = atlas_texts.number_words()["zh"].say
    assert " ".join(map(say, (10, 12, 105, 110, 600))) == "十 十二 一百零五 一百一十 六百"


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("en", "March 7, 2024"),
        ("es", "7 de marzo de 2024"),
        ("pl", "7 marca 2024"),
        ("ru", "7 марта 2024 г."),
        ("vi", "7 tháng 3, 2024"),
        ("ja", "2024年3月7日"),
    ],
)
def test_dates_are_written_out_with_the_month_in_its_case(language: str, expected: str) -> None:
    assert atlas_cldr.cldr(language).long_date(datetime.date(2024, 3, 7)) == expected


def test_counted_nouns_take_the_form_their_number_asks_for() -> None:
    def month_later(language: str, k: int) -> str:
        fact = atlas_facts.fact(language, "month_after", f"0+{k}")
        assert fact is not None
        return atlas_texts.ask(language, "month_after", 0, fact.shown)

    assert month_later("de", 1) == "Welcher Monat kommt 1 Monat nach Januar?"
    assert "через 2 месяца" in month_later("ru", 2)
    assert "через 5 месяцев" in month_later("ru", 5)
    assert "miezi 3" in month_later("sw", 3)
