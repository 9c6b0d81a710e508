"""What needles are hidden in, and the words they are named by. Pure but for reading text files."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compass_ray import languages
from compass_ray.errors import UserError
from compass_ray.evaluation.oneruler.templates import UNSPACED, Templates

_SENTENCE_END = re.compile(r"(?<=[.?!])\s+|(?<=[。！？।۔؟])\s*")
_WORD = re.compile(r"[^\W\d_](?:[^\W\d_]|[\u0300-\u036f\u0900-\u0dff\u200c'’-])+")
_VOCABULARIES = ("vocab", "vocabs")
# Fewer words than this name too few needles.
_FEWEST_WORDS = 40


@dataclass(frozen=True)
class Material:
    """All that items of one language are made of.

    Attributes:
        language: our code.
        templates: what is said around the haystack.
        sentences: the haystack, in order; at least one.
        nouns: names for needles.
        words: words to count; ``nouns`` are among them.
    """

    language: str
    templates: Templates
    sentences: tuple[str, ...]
    nouns: tuple[str, ...]
    words: tuple[str, ...]


def material(language: str, templates: Templates, texts: Iterable[str]) -> Material:
    """Haystack and words from texts of the language; names that CLDR knows are its nouns."""
    joined = [" ".join(text.split()) for text in texts]
    sentences = tuple(part for text in joined for part in _SENTENCE_END.split(text) if part)
    if not sentences:
        raise UserError(f"evaluation.oneruler.text: no text in {languages.name(language)}")
    return _with_words(language, templates, sentences, _names(language))


def published_material(
    folder: Path, language: str, templates: Templates, texts: Iterable[str]
) -> Material:
    """As ``material``, with the nouns and the dictionary of the published data folder."""
    made = material(language, templates, texts)
    vocabulary = next((folder / name for name in _VOCABULARIES if (folder / name).is_dir()), None)
    if vocabulary is None:
        return made
    nouns = _column(vocabulary / "100_noun_list_translated.tsv", "\t", language)
    name = "Sesotho" if language == "st" else languages.name(language)
    dictionary = vocabulary / "dictionaries" / name / f"{name}.csv"
    words = _column(dictionary, ",", "words") if dictionary.exists() else made.words
    return Material(language, templates, made.sentences, _distinct(nouns), _distinct(words))


def read_texts(folder: Path, language: str, key: str) -> list[str]:
    """The text files ``<language>/**/*.txt`` of a folder.

    Raises:
        UserError: There are none, or one is no UTF-8 text.
    """
    files = sorted((folder / language).rglob("*.txt"))
    if not files:
        raise UserError(f"{key}: no {language}/*.txt below {folder}")
    try:
        return [file.read_text(encoding="utf-8") for file in files]
    except UnicodeDecodeError as error:
        raise UserError(f"{key}: a file of {folder / language} is no UTF-8 text: {error}") from None


def _with_words(
    language: str, templates: Templates, sentences: Sequence[str], names: Sequence[str]
) -> Material:
    found = names
    if language not in UNSPACED:
        # Without spaces, telling words apart would take a dictionary.
        found = [*names, *(word for text in sentences for word in _WORD.findall(text))]
    words = _distinct(found)
    nouns = _distinct(names) if len(names) >= _FEWEST_WORDS else words
    if len(nouns) < _FEWEST_WORDS:
        raise UserError(
            f"evaluation.oneruler.text: {len(words)} different words in "
            f"{languages.name(language)}; at least {_FEWEST_WORDS} are needed"
        )
    return Material(language, templates, tuple(sentences), nouns, words)


def _names(language: str) -> list[str]:
    """One-word names of territories, languages and currencies, as CLDR has them."""
    from babel import Locale

    locale = Locale.parse("nb" if language == "no" else language)
    tables = (locale.territories, locale.languages, locale.currencies)
    return sorted(
        {name for table in tables for name in table.values() if name and _WORD.fullmatch(name)}
    )


def _distinct(words: Iterable[str]) -> tuple[str, ...]:
    """Words that differ in more than their capitals: answers are compared without."""
    return tuple({word.casefold().strip(): word.strip() for word in words if word}.values())


def _column(file: Path, delimiter: str, name: str) -> list[str]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = list(csv.DictReader(opened, delimiter=delimiter))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    if not rows or name not in rows[0]:
        raise UserError(f"{file}: no column {name}")
    found = [row[name] for row in rows if row.get(name)]
    return [word for word in found if not any(character.isdigit() for character in word)]
