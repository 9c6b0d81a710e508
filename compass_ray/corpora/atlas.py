"""The built-in corpus: short questions and answers in twenty languages, made at run time.

Countries, currencies, languages, scripts, units and the calendar are asked for as CLDR names
them; every row has its subject, so the truth about clusters is known. Auxiliary rows are of all
subjects, a language's own rows of about half, and users ask mostly for the other half: the gap
that the pipeline is to find and fill. No fact of the evaluation is in the rows of any other role.

The same arguments make the same rows, with the same versions of ``babel`` and ``num2words``.
Knows nothing of configuration, files or Ray. What is true is in ``atlas_facts``, how it is asked
in ``atlas_texts``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from compass_ray.corpora import atlas_facts, atlas_texts
from compass_ray.corpora.atlas_facts import SUBJECTS, Fact, Split
from compass_ray.errors import UserError
from compass_ray.records import SCHEMA, Normalised, row_id, to_rows

__all__ = ["LANGUAGES", "SUBJECTS", "TRAIN_SUBJECTS", "VERSION", "item_rows", "items", "rows"]

VERSION = 2
"""Changes with the content, so that what was made from another one is not reused."""

# fmt: off
LANGUAGES = (
    "en", "de", "fr", "es", "it", "pt", "nl", "sv", "pl", "tr",
    "id", "vi", "sw", "zu", "am", "ar", "hi", "ru", "zh", "ja",
)
# fmt: on

TRAIN_SUBJECTS = frozenset(
    {"number_words", "weekday_after", "language_name", "script_name", "unit_name"}
)

_DEFAULT_ROWS = {"auxiliary": 400, "train": 200, "usage": 300}
_DEFAULT_ITEMS = 100
_SPLITS: dict[str, Split] = {"auxiliary": "training", "train": "training", "usage": "usage"}
_LETTERS = "ABCD"

# What users ask for. The last two shares are divided evenly among their subjects.
_MOST_ASKED = {"currency_of_country": 0.30, "date_long": 0.30}
_OTHER_MISSING_SHARE = 0.20
_TRAIN_SHARE = 0.20

_ITEM_SCHEMA = pa.schema(
    [
        pa.field(name, pa.string(), nullable=False)
        for name in (
            "sample_id",
            "language",
            "subject",
            "question",
            *(f"option_{letter.lower()}" for letter in _LETTERS),
            "answer",
        )
    ]
)


@dataclass(frozen=True)
class _Question:
    fact: Fact
    phrasing: int
    prompt: str


def rows(
    role: str, languages: Sequence[str], rows_per_language: int | None = None, seed: int = 0
) -> pa.Table:
    """Rows in ``records.SCHEMA``, language after language in the order given.

    ``auxiliary`` rows are of all subjects, ``train`` rows of ``TRAIN_SUBJECTS``, in equal shares
    as far as the facts go; the endless subjects (dates most of all) fill up what others leave.
    ``usage`` prompts ask in four of five cases for the other subjects, for currencies and dates
    above all. Where a subject runs out of prompts its share of the rows goes to the other missing
    subjects, and weights keep the mix: the weights of a subject sum to its share. Otherwise every
    weight is 1.

    Args:
        role: ``auxiliary``, ``train`` or ``usage``.
        languages: Codes out of ``LANGUAGES``.
        rows_per_language: Most rows of a language; fewer where there are no more. None is 400,
            200 and 300 in the order of the roles.
        seed: Chooses the facts, the phrasings and the order, not the split.

    Raises:
        UserError: The role or a language is not known.
    """
    if role not in _DEFAULT_ROWS:
        known = ", ".join(_DEFAULT_ROWS)
        raise UserError(f"atlas has no rows for role {role}; expected one of {known}")
    wanted = _DEFAULT_ROWS[role] if rows_per_language is None else rows_per_language
    columns: dict[str, list[object]] = {name: [] for name in SCHEMA.names}
    for language in _checked(languages):
        questions = _questions(role, _SPLITS[role], language, wanted, seed)
        weights = _weights(questions) if role == "usage" else {}
        for question in questions:
            fact, prompt = question.fact, question.prompt
            response = None if role == "usage" else fact.answer
            columns["id"].append(row_id(language, prompt, response))
            columns["language"].append(language)
            columns["prompt"].append(prompt)
            columns["response"].append(response)
            columns["subject"].append(fact.subject)
            columns["source"].append("atlas")
            columns["weight"].append(weights.get(fact.subject, 1.0))
            columns["timestamp"].append(None)
    return pa.table(columns, schema=SCHEMA)


def items(
    languages: Sequence[str], items_per_language: int | None = None, seed: int = 0
) -> pa.Table:
    """Multiple-choice items in the shape of Global-MMLU, of the subjects that users ask for.

    The wrong options are answers to other questions of the subject in the language, from all
    splits. The four letters are right equally often. ``sample_id`` is the same in all languages
    for the same fact in the same phrasing.

    Args:
        languages: Codes out of ``LANGUAGES``.
        items_per_language: Most items of a language; fewer where there are no more. None is 100.
        seed: Chooses the facts, the phrasings, the options and the order, not the split.

    Raises:
        UserError: A language is not known.
    """
    wanted = _DEFAULT_ITEMS if items_per_language is None else items_per_language
    columns: dict[str, list[str]] = {name: [] for name in _ITEM_SCHEMA.names}
    for language in _checked(languages):
        questions = _questions("evaluation", "evaluation", language, wanted, seed)
        rights = [i % len(_LETTERS) for i in range(len(questions))]
        random.Random(f"{seed}/letters/{language}").shuffle(rights)
        for question, right in zip(questions, rights, strict=True):
            fact = question.fact
            options = _wrong_options(language, question, seed)
            options.insert(right, fact.answer)
            columns["sample_id"].append(f"{fact.subject}/{fact.entity}/{question.phrasing}")
            columns["language"].append(language)
            columns["subject"].append(fact.subject)
            columns["question"].append(question.prompt)
            for letter, option in zip(_LETTERS, options, strict=True):
                columns[f"option_{letter.lower()}"].append(option)
            columns["answer"].append(_LETTERS[right])
    return pa.table(columns, schema=_ITEM_SCHEMA)


def item_rows(languages: Sequence[str], items_per_language: int | None = None) -> Normalised:
    """``items`` as rows of the role evaluation."""
    made = items(languages, items_per_language)
    return to_rows(made, format="global_mmlu", role="evaluation", language=None, source="atlas")


def _checked(languages: Sequence[str]) -> list[str]:
    for language in languages:
        if language not in LANGUAGES:
            known = ", ".join(sorted(LANGUAGES))
            raise UserError(f"atlas has no language {language}; it has {known}")
    return list(dict.fromkeys(languages))


def _questions(role: str, split: Split, language: str, total: int, seed: int) -> list[_Question]:
    """Questions of a role in one language, their subjects mixed."""
    streams = {
        subject: _stream(
            language, subject, split, total, random.Random(f"{seed}/{role}/{language}/{subject}")
        )
        for subject in SUBJECTS
    }
    if role == "auxiliary":
        found = _take(streams, _apportion(dict.fromkeys(SUBJECTS, 1.0), total))
    elif role == "train":
        found = _take(streams, _apportion(dict.fromkeys(_in_order(TRAIN_SUBJECTS), 1.0), total))
    else:
        quota = _apportion(_usage_shares(), total)
        own = {s: n for s, n in quota.items() if s in TRAIN_SUBJECTS}
        missing = {s: n for s, n in quota.items() if s not in TRAIN_SUBJECTS}
        found = _take(streams, missing)
        if len(found) < sum(missing.values()):
            # The missing subjects have run out: fewer rows, not another mix.
            own = _apportion(own, round(len(found) * _TRAIN_SHARE / (1 - _TRAIN_SHARE)))
        found += _take(streams, own)
    random.Random(f"{seed}/{role}/{language}").shuffle(found)
    return found


def _stream(
    language: str, subject: str, split: Split, most: int, rng: random.Random
) -> Iterator[_Question]:
    """Every fact of a split in one phrasing each, then every fact in another, and so on."""
    entities = atlas_facts.entities(subject, split)
    facts: list[Fact] = []
    phrasings = len(atlas_texts.phrasings(language, subject))

    def put(place: int, fact: Fact, turn: int) -> Iterator[_Question]:
        phrasing = (place + turn) % phrasings
        prompt = atlas_texts.ask(language, subject, phrasing, fact.shown)
        # A question that holds its answer asks for nothing.
        if fact.answer.casefold() not in prompt.casefold():
            yield _Question(fact, phrasing, prompt)

    for entity in rng.sample(entities, min(most, len(entities))):
        fact = atlas_facts.fact(language, subject, entity)
        if fact is not None:
            yield from put(len(facts), fact, 0)
            facts.append(fact)
    for turn in range(1, phrasings):
        for place, fact in enumerate(facts):
            yield from put(place, fact, turn)


def _take(
    streams: Mapping[str, Iterator[_Question]], quota: Mapping[str, float]
) -> list[_Question]:
    """So many questions of each subject; what one lacks, the others give in the same proportion."""
    taken: list[_Question] = []
    total = int(sum(quota.values()))
    left = dict(quota)
    while left and len(taken) < total:
        for subject, wanted in _apportion(left, total - len(taken)).items():
            found = list(islice(streams[subject], wanted))
            taken += found
            if len(found) < wanted or not left[subject]:
                del left[subject]
    return taken


def _apportion(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers in proportion to the shares (largest remainders), with the given sum."""
    scale = total / (sum(shares.values()) or 1.0)
    exact = {name: share * scale for name, share in shares.items()}
    whole = {name: int(number) for name, number in exact.items()}
    by_remainder = sorted(exact, key=lambda name: whole[name] - exact[name])
    for name in by_remainder[: total - sum(whole.values())]:
        whole[name] += 1
    return whole


def _usage_shares() -> dict[str, float]:
    others = [subject for subject in SUBJECTS if subject not in TRAIN_SUBJECTS | set(_MOST_ASKED)]
    return {
        **_MOST_ASKED,
        **dict.fromkeys(others, _OTHER_MISSING_SHARE / len(others)),
        **dict.fromkeys(_in_order(TRAIN_SUBJECTS), _TRAIN_SHARE / len(TRAIN_SUBJECTS)),
    }


def _weights(questions: Sequence[_Question]) -> dict[str, float]:
    """Subject → the weight of each of its prompts, so that the weighted mix is what users ask."""
    counts: dict[str, int] = dict.fromkeys(SUBJECTS, 0)
    for question in questions:
        counts[question.fact.subject] += 1
    shares = _usage_shares()
    even = _apportion(shares, len(questions))
    return {
        subject: 1.0 if count == even[subject] else shares[subject] * len(questions) / count
        for subject, count in counts.items()
        if count
    }


def _wrong_options(language: str, question: _Question, seed: int) -> list[str]:
    fact = question.fact
    rng = random.Random(f"{seed}/options/{language}/{fact.subject}/{fact.entity}")
    prompt = question.prompt.casefold()
    taken = {fact.answer.casefold()}
    found: list[str] = []
    for answer in atlas_facts.wrong_answers(language, fact, rng):
        # The right answer is never in the question, so neither may be a wrong one.
        if answer.casefold() not in taken and answer.casefold() not in prompt:
            taken.add(answer.casefold())
            found.append(answer)
            if len(found) == len(_LETTERS) - 1:
                break
    return found


def _in_order(subjects: frozenset[str]) -> list[str]:
    return [subject for subject in SUBJECTS if subject in subjects]
