"""What is said around a haystack, in each of the 26 languages: ours, or the published files.

Ours are one YAML file a language in ``templates/``. Knows nothing of tokenizers or tasks.
"""

from __future__ import annotations

import ast
import importlib.resources
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from compass_ray.errors import UserError

UNSPACED = ("ja", "zh")
_FULL_STOPS = {"ja": "。", "zh": "。", "fa": "۔"}


@dataclass(frozen=True)
class Templates:
    """Texts with places to fill, named in braces.

    Attributes:
        retrieve: {context} and {question}.
        needle: one sentence, {key} and {value}.
        ask_one: {first}.
        ask_two: {first} and {second}.
        words: {context}.
        none: what an answer says where there is nothing to find; the first is what is asked for.
        space: what stands between two sentences.
    """

    retrieve: str
    needle: str
    ask_one: str
    ask_two: str
    words: str
    none: tuple[str, ...]
    space: str


@cache
def languages() -> tuple[str, ...]:
    """Codes of the languages there are templates for."""
    names = [entry.name for entry in _folder().iterdir()]
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def own(language: str) -> Templates:
    """The project's texts in a language."""
    told: dict[str, Any] = yaml.safe_load(
        _folder().joinpath(f"{language}.yaml").read_text(encoding="utf-8")
    )
    if_none = fill(told["if_none"], none=told["none"][0])
    question = f"<Question> {{question}} {if_none} </Question>"
    return Templates(
        retrieve=(
            f"{told['read']}\n\n<text>\n{{context}}\n</text>\n\n{question}\n\n"
            f"{told['form']}\n<Answer> {told['numbers']} </Answer>\n"
        ),
        needle=told["needle"],
        ask_one=told["ask_one"],
        ask_two=told["ask_two"],
        words=(
            f"{told['list']}\n\n<List> {{context}} </List>\n\n"
            f"<Question> {told['ask_words']} </Question>\n\n"
            f"{told['form']}\n<Answer> {told['words']} </Answer>\n"
        ),
        none=tuple(told["none"]),
        space=_space(language),
    )


def published(folder: Path, language: str) -> Templates:
    """The texts of a published ``prompt/<language>`` folder: ``niah.txt`` and ``cwe.txt``.

    Raises:
        UserError: A file is not there, or ``niah.txt`` lacks a part.
    """
    niah, cwe = (folder / language / f"{name}.txt" for name in ("niah", "cwe"))
    parts = _dictionary(niah)
    space = _space(language)
    try:
        asked = space.join(["{question}", parts["please_list"], parts["if_no_numbers"]])
        form = space.join([parts["answer_prefix"], parts["answer_numbers"]])
        needle = parts["needle_numbers"].rstrip() + _FULL_STOPS.get(language, ".")
        return Templates(
            retrieve=parts["task"] + asked + form,
            needle=needle,
            ask_one=fill(parts["question_single_numbers"], query1="{first}"),
            ask_two=fill(parts["question_multi_numbers"], query1="{first}", query2="{second}"),
            words=_text(cwe),
            # The published scorer takes more spellings than the file asks for.
            none=tuple(dict.fromkeys([parts["none"], *own(language).none])),
            space=space,
        )
    except KeyError as missing:
        raise UserError(f"{niah}: no part {missing} in it") from None


def fill(template: str, **values: str) -> str:
    """Put values into the places named; braces that are part of a text stay as they are."""
    for name, value in values.items():
        template = template.replace(f"{{{name}}}", value)
    return template


def _space(language: str) -> str:
    return "" if language in UNSPACED else " "


def _folder() -> Any:
    return importlib.resources.files("compass_ray.evaluation.oneruler").joinpath("templates")


def _dictionary(file: Path) -> dict[str, str]:
    text = _text(file)
    try:
        parts: dict[str, str] = json.loads(text)
    except json.JSONDecodeError:
        try:
            parts = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise UserError(f"{file}: neither JSON nor a dictionary in Python's notation") from None
    return parts


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
