"""How finely a tokenizer cuts a language: tokens per word, or per character without spaces. Pure.

A language that falls into many pieces has less room to gain, whatever it is trained on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from compass_ray import languages

# Scripts that write no space between words.
_UNSPACED = frozenset({"Hans", "Hant", "Jpan", "Thai", "Laoo", "Mymr", "Khmr", "Tibt"})
# Combining marks belong to the word they are written in.
_WORD = re.compile(r"[^\W_]+(?:[\u0300-\u036f\u0900-\u0dff\u200c\u200d'’-]*[^\W_]+)*")


def unit(language: str) -> str:
    """``word``, or ``character`` for a language written without spaces."""
    return "character" if languages.script(language) in _UNSPACED else "word"


def fertility(
    texts: Sequence[str | None], tokens: Sequence[int | None], language: str
) -> float | None:
    """Tokens per unit of the texts that have a count of tokens; None where there is no such text.

    Args:
        texts: N texts, None where there is none.
        tokens: Number of tokens of each, [N].
        language: Decides what is counted, see ``unit``.
    """
    known = [(text, count) for text, count in zip(texts, tokens, strict=True) if text and count]
    if unit(language) == "word":
        units = sum(len(_WORD.findall(text)) for text, _ in known)
    else:
        units = sum(not character.isspace() for text, _ in known for character in text)
    return sum(count for _, count in known) / units if units else None
