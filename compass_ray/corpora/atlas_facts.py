"""The facts that the built-in corpus asks for, and the split that each belongs to.

A fact is an entity of a subject, the same in all languages, with what is shown and what is
answered in one of them. Knows nothing of phrasings, roles or tables.
"""

from __future__ import annotations

import datetime
import hashlib
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

from num2words import num2words

from compass_ray.corpora import atlas_cldr, atlas_texts
from compass_ray.corpora.atlas_cldr import Cldr, cldr

Split = Literal["training", "usage", "evaluation"]
SPLITS: tuple[Split, ...] = get_args(Split)

# What fills each placeholder of a phrasing, and the answer; None where the language has no name.
_Content = tuple[dict[str, str | None], str | None]

# Chosen so that no subject, however small, is far from the shares: a hash alone left 4 of the 72
# months to usage.
_SALT = 1469

_FIRST_DAY = datetime.date(1950, 1, 1)
_DAYS = 36_525  # to the end of 2049
_LARGEST_NUMBER = 999
_MONTHS_LATER = range(1, 7)
# A week later is the day that was asked about.
_DAYS_LATER = tuple(k for k in range(1, 14) if k != 7)

# CLDR's Portuguese is that of Brazil, and num2words has another name for it.
_NUM2WORDS = {"pt": "pt_BR"}

# Codes for no currency, for testing, for metals and for units of account; the rest of X is shared.
_SHARED_CURRENCIES = frozenset({"XAF", "XCD", "XCG", "XOF", "XPF"})
# Not scripts: symbols, emoji, mathematics, what is unknown, inherited, unwritten or common, and
# the two kinds of Chinese characters and Zawgyi, which are named as variants.
_NO_SCRIPT = "Hans Hant Qaag Zinh Zmth Zsye Zsym Zxxx Zyyy Zzzz"
_NO_LANGUAGE = frozenset({"mis", "mul", "root", "und", "zxx"})


@dataclass(frozen=True)
class Fact:
    """One fact in one language.

    Attributes:
        subject: Name of the subject.
        entity: What the fact is about; the same in every language.
        shown: What the phrasings insert.
        answer: The answer in the language.
    """

    subject: str
    entity: str
    shown: Mapping[str, str]
    answer: str


def fact(language: str, subject: str, entity: str) -> Fact | None:
    """The fact in a language, or None where CLDR has no name for what is shown or answered."""
    shown, answer = _SUBJECTS[subject].content(language, entity)
    known = {name: value for name, value in shown.items() if value}
    if not answer or len(known) < len(shown):
        return None
    return Fact(subject, entity, known, answer)


@cache
def entities(subject: str, split: Split | None = None) -> tuple[str, ...]:
    """The entities of a subject, in one split or in all, in a fixed order."""
    found = _SUBJECTS[subject].entities()
    return tuple(e for e in found if split is None or split_of(subject, e) == split)


def split_of(subject: str, entity: str) -> Split:
    """70 % of facts are for training, 10 % for usage, 20 % for evaluation.

    A hash of the fact decides, not its language: what is asked in an evaluation was not taught in
    any language.
    """
    digest = hashlib.blake2b(f"{_SALT}/{subject}/{entity}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") % 100
    if place < 70:
        return "training"
    return "usage" if place < 80 else "evaluation"


def wrong_answers(language: str, right: Fact, rng: random.Random) -> Iterator[str]:
    """Answers to other questions of the subject, as they come up by chance; some may be the same.

    An answer that is right for many entities comes up as often as it is right, so that nothing is
    gained by always choosing the euro. Numbers and dates come with those that look like them.
    """
    near = _SUBJECTS[right.subject].near
    others = near(right.entity) if near else list(entities(right.subject))
    rng.shuffle(others)
    for entity in others:
        other = fact(language, right.subject, entity)
        if other is not None:
            yield other.answer


def _currency_of_country(language: str, country: str) -> _Content:
    names = cldr(language)
    currency = atlas_cldr.legal_tender()[country]
    return {"country": names.territories.get(country)}, names.currencies.get(currency)


def _official_language(language: str, country: str) -> _Content:
    names = cldr(language)
    spoken = atlas_cldr.official_languages()[country]
    return {"country": names.territories.get(country)}, _unqualified(names.languages.get(spoken))


def _month_after(language: str, entity: str) -> _Content:
    start, later = _step(entity)
    months = cldr(language).months
    return {"month": months[start], "k": str(later)}, months[(start + later) % 12]


def _weekday_after(language: str, entity: str) -> _Content:
    start, later = _step(entity)
    days = cldr(language).weekdays
    return {"weekday": days[start], "k": str(later)}, days[(start + later) % 7]


def _number_words(language: str, entity: str) -> _Content:
    return {"number": entity}, _in_words(language, int(entity))


def _date_long(language: str, entity: str) -> _Content:
    return {"date": entity}, cldr(language).long_date(datetime.date.fromisoformat(entity))


def _unit_name(language: str, unit: str) -> _Content:
    return {"symbol": atlas_cldr.unit_symbols()[unit]}, cldr(language).units.get(unit)


def _named(names: Callable[[Cldr], Mapping[str, str]]) -> Callable[[str, str], _Content]:
    def content(language: str, code: str) -> _Content:
        return {"code": code}, _unqualified(names(cldr(language)).get(code))

    return content


def _unqualified(name: str | None) -> str | None:
    """A name that needs no bracket to tell it from another."""
    return None if name is None or re.search(r"[(（]", name) else name


def _steps(starts: int, later: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"{start}+{k}" for k in later for start in range(starts))


def _step(entity: str) -> tuple[int, int]:
    start, _, later = entity.partition("+")
    return int(start), int(later)


def _numbers() -> tuple[str, ...]:
    return tuple(str(number) for number in range(1, _LARGEST_NUMBER + 1))


def _dates() -> tuple[str, ...]:
    return tuple((_FIRST_DAY + datetime.timedelta(i)).isoformat() for i in range(_DAYS))


def _languages() -> tuple[str, ...]:
    codes = set(cldr("en").languages) - _NO_LANGUAGE
    return tuple(sorted(code for code in codes if re.fullmatch("[a-z]{2,3}", code)))


def _scripts() -> tuple[str, ...]:
    return tuple(sorted(set(cldr("en").scripts) - set(_NO_SCRIPT.split())))


def _currencies() -> tuple[str, ...]:
    codes = cldr("en").currencies
    return tuple(sorted(c for c in codes if c in _SHARED_CURRENCIES or not c.startswith("X")))


def _near_number(entity: str) -> list[str]:
    """The same digits in another order, or one of them another."""
    number = int(entity)
    found = {number + step for step in (-100, -10, -1, 1, 10, 100)}
    found |= {int(entity[::-1]), int(entity[1:] + entity[0])}
    return [str(n) for n in sorted(found - {number}) if 1 <= n <= _LARGEST_NUMBER]


def _near_date(entity: str) -> list[str]:
    """The same date but for the month, the day or the year."""
    date = datetime.date.fromisoformat(entity)
    day = min(date.day, 28)
    found = {date.replace(month=month, day=day) for month in range(1, 13)}
    found |= {date.replace(day=other) for other in range(1, 29)}
    found |= {date.replace(year=date.year + years, day=day) for years in (-10, -1, 1, 10)}
    return [other.isoformat() for other in sorted(found - {date})]


@dataclass(frozen=True)
class _Subject:
    entities: Callable[[], Iterable[str]]
    content: Callable[[str, str], _Content]
    near: Callable[[str], list[str]] | None = None


_SUBJECTS = {
    "currency_of_country": _Subject(atlas_cldr.legal_tender, _currency_of_country),
    "month_after": _Subject(lambda: _steps(12, _MONTHS_LATER), _month_after),
    "weekday_after": _Subject(lambda: _steps(7, _DAYS_LATER), _weekday_after),
    "number_words": _Subject(_numbers, _number_words, _near_number),
    "date_long": _Subject(_dates, _date_long, _near_date),
    "language_name": _Subject(_languages, _named(lambda names: names.languages)),
    "country_name": _Subject(atlas_cldr.countries, _named(lambda names: names.territories)),
    "script_name": _Subject(_scripts, _named(lambda names: names.scripts)),
    "unit_name": _Subject(atlas_cldr.unit_symbols, _unit_name),
    "currency_name": _Subject(_currencies, _named(lambda names: names.currencies)),
    "official_language": _Subject(atlas_cldr.official_languages, _official_language),
}
SUBJECTS = tuple(_SUBJECTS)


def _in_words(language: str, number: int) -> str:
    written = atlas_texts.number_words().get(language)
    if written is not None:
        return written.say(number)
    words: str = num2words(number, lang=_NUM2WORDS.get(language, language))
    # In Arabic "and" is written as one with the word after it; num2words puts a space.
    return words.replace(" و ", " و")
