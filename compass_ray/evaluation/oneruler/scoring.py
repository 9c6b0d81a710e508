"""Whether an answer is right, by the rules that OneRuler publishes. Pure.

Numbers: the answer holds all the wanted ones and no other of more than one digit, and does not say
that there are none. None: it says so. Common words: all ten are in it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from compass_ray.config import OneRulerTask

_TAG = re.compile(r"<([^<>/]+)>")


def answer_tag(prompt: str) -> str:
    """The tag that a prompt asks the answer to stand in: published ones name it in the language."""
    return str((_TAG.findall(prompt) or ["Answer"])[-1])


def answer_pattern(tag: str) -> str:
    """Finds answers in a text; one without its closing tag was cut off by it, and ends there."""
    name = re.escape(tag)
    return rf"(?is)<{name}>((?:(?!<{name}>).)*?)(?:</{name}>|\Z)"


def is_right(task: OneRulerTask, outputs: Sequence[str], answer: str, none: Sequence[str]) -> bool:
    """Score what stood between the answer tags.

    Args:
        task: One of ``config.ONERULER_TASKS``.
        outputs: The item's wanted answers.
        answer: What the model wrote.
        none: How the language says that there is nothing, in any spelling that counts.
    """
    if task.startswith("cwe"):
        return all(word.strip().lower() in answer.lower() for word in outputs)
    normal = unicodedata.normalize("NFKC", answer)
    if task == "niah_none":
        told = _clean(re.sub(r"\b\d\b", "", normal))
        return any(_clean(word) in told for word in none)
    if any(word in normal or _clean(word) in normal for word in none):
        return False
    numbers = {int(number) for number in re.findall(r"\d+", normal) if len(number) > 1}
    return numbers == {int(number) for number in outputs}


def _clean(text: str) -> str:
    normal = unicodedata.normalize("NFKC", text)
    return normal.strip().lower().replace("\u200c", "").replace(" ", "")
