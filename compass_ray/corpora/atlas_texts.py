"""The texts that the built-in corpus brings along: how questions are put, and number words.

They are data, in ``atlas_templates``: one file a language, and ``number_words`` for the languages
that ``num2words`` does not count in. Knows nothing of what is true.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from compass_ray.corpora.atlas_cldr import cldr


def phrasings(language: str, subject: str) -> Sequence[str]:
    """The ways to ask about a subject, with placeholders in braces."""
    found: list[str] = _read(language)[subject]
    return found


def ask(language: str, subject: str, phrasing: int, shown: Mapping[str, str]) -> str:
    """Put a question.

    Args:
        language: The language to ask in.
        subject: What the question is about.
        phrasing: Number of the phrasing, from 0.
        shown: The text of each placeholder. Next to a count ``k`` the phrasings may use
            ``months`` and ``days``: the count with the noun in the form that it takes.
    """
    template = phrasings(language, subject)[phrasing]
    if "k" in shown:
        shown = {**shown, **_counted(language, int(shown["k"]))}
    return template.format_map(shown)


@dataclass(frozen=True)
class NumberWords:
    """The words for 1 to 999 in one language.

    Attributes:
        below_hundred: 1 to 99.
        hundreds: 100 to 900.
        join: Between a hundred and what follows.
        after_hundred: 1 to 99 as they are said after a hundred.
    """

    below_hundred: Sequence[str]
    hundreds: Sequence[str]
    join: str
    after_hundred: Sequence[str]

    def say(self, number: int) -> str:
        hundreds, rest = divmod(number, 100)
        if not hundreds:
            return self.below_hundred[rest - 1]
        hundred = self.hundreds[hundreds - 1]
        return f"{hundred}{self.join}{self.after_hundred[rest - 1]}" if rest else hundred


@cache
def number_words() -> Mapping[str, NumberWords]:
    """Language → its number words, for the languages they are written down for."""
    return {
        language: NumberWords(**{"after_hundred": words["below_hundred"], **words})
        for language, words in _read("number_words").items()
    }


@cache
def _counted(language: str, count: int) -> Mapping[str, str]:
    spans: dict[str, dict[str, str]] = _read(language).get("spans", {})
    category = cldr(language).plural(count)
    return {
        name: forms.get(category, forms["other"]).format(k=count) for name, forms in spans.items()
    }


@cache
def _read(name: str) -> dict[str, Any]:
    file = files("compass_ray.corpora") / "atlas_templates" / f"{name}.yaml"
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return content
