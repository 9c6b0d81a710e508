"""Items of the seven tasks at a wanted number of tokens. Pure: the same arguments, the same items.

Five tasks hide numbers in a haystack and ask for those of a key (or of one that is not there);
two list words of which ten return more often than the rest.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compass_ray.config import OneRulerTask
from compass_ray.errors import UserError
from compass_ray.evaluation.oneruler.haystack import Material
from compass_ray.evaluation.oneruler.templates import UNSPACED, fill

CountTokens = Callable[[str], int]

COMMON_WORDS = 10
DEPTHS = 40
# A needle's number has seven digits.
_LOWEST, _HIGHEST = 1_000_000, 9_999_999
# Up to here the published items repeat words less often.
_SHORT = 8_000
# How often a common and another word return, from the least to the most. Which of them is used
# depends on the room for the common ones and on how many other words there are.
_REPEATS = {
    "cwe_easy": (
        *((2, 1), (3, 1), (5, 1), (10, 1), (15, 2), (20, 2), (30, 3), (45, 5), (60, 6)),
        *((90, 9), (120, 12), (180, 18), (240, 24)),
    ),
    "cwe_hard": ((2, 1), (4, 2), (10, 5), (20, 10), (40, 20), (80, 40), (160, 80)),
}
_PUBLISHED = {"cwe_easy": ((10, 1), (30, 3)), "cwe_hard": ((10, 5), (20, 10))}
# The share of the prompt that common words may fill.
_MOST_COMMON = 0.6
_ATTEMPTS = 24


@dataclass(frozen=True)
class Needles:
    """Keys hidden, values of each, and keys asked for; ``asked`` 0 is for one not hidden."""

    keys: int
    values: int
    asked: int


NEEDLES: dict[str, Needles] = {
    "niah_single": Needles(1, 1, 1),
    "niah_multikey": Needles(4, 1, 1),
    "niah_multivalue": Needles(1, 4, 1),
    "niah_multiquery": Needles(2, 1, 2),
    "niah_none": Needles(4, 1, 0),
}


def generate(
    task: OneRulerTask,
    material: Material,
    length: int,
    samples: int,
    count_tokens: CountTokens,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Items in the published columns: ``index, input, outputs, length`` (tokens of ``input``).

    Args:
        task: One of ``config.ONERULER_TASKS``.
        material: Texts and words of the language.
        length: Most tokens of a prompt; items come within 2 % of it.
        samples: Number of items.
        count_tokens: Tokens of a text by the model's tokenizer.
        seed: Chooses keys, numbers, words and places.

    Raises:
        UserError: The instructions alone are longer than ``length``.
    """
    make = _retrieval if task in NEEDLES else _counting
    items = []
    for index in range(samples):
        rng = random.Random(f"{seed}/{material.language}/{task}/{length}/{index}")
        text, outputs = make(task, material, length, count_tokens, rng)
        told = {"index": index, "input": text, "outputs": outputs, "length": count_tokens(text)}
        items.append(told)
    return items


def _retrieval(
    task: str, material: Material, length: int, count_tokens: CountTokens, rng: random.Random
) -> tuple[str, list[str]]:
    templates, wanted = material.templates, NEEDLES[task]
    keys = rng.sample(material.nouns, wanted.keys + 1)
    numbers = [
        str(n) for n in rng.sample(range(_LOWEST, _HIGHEST + 1), wanted.keys * wanted.values)
    ]
    hidden = [(key, number) for key in keys[:-1] for number in numbers[: wanted.values]]
    if wanted.keys > 1:
        hidden = list(zip(keys[:-1], numbers, strict=True))
    asked = [keys[-1]] if wanted.asked == 0 else rng.sample(keys[:-1], wanted.asked)
    outputs = [number for key in asked for name, number in hidden if name == key]
    needles = [fill(templates.needle, key=key, value=number) for key, number in hidden]
    rng.shuffle(needles)
    depths = sorted(rng.sample(range(DEPTHS), len(needles)))
    question = (
        fill(templates.ask_two, first=asked[0], second=asked[1])
        if wanted.asked == 2
        else fill(templates.ask_one, first=asked[0])
    )
    frame = fill(templates.retrieve, question=question)
    start = rng.randrange(len(material.sentences))

    def build(characters: int) -> str:
        sentences = _stretch(material, start, characters)
        for depth, needle in reversed(list(zip(depths, needles, strict=True))):
            sentences.insert(len(sentences) * depth // (DEPTHS - 1), needle)
        return fill(frame, context=templates.space.join(sentences))

    text = _longest(build, length, count_tokens, material.language)
    return text, outputs or [templates.none[0]]


def _stretch(material: Material, start: int, characters: int) -> list[str]:
    """Sentences of so many characters, from a place on and round again; the last is cut."""
    sentences: list[str] = []
    left, place = characters, start
    while left > 0:
        sentence = material.sentences[place % len(material.sentences)]
        if len(sentence) > left:
            spaced = material.language not in UNSPACED
            sentence = sentence[:left].rpartition(" ")[0] if spaced else sentence[:left]
            left = 0
        if sentence:
            sentences.append(sentence)
        left -= len(sentence) + len(material.templates.space)
        place += 1
    return sentences


def _counting(
    task: str, material: Material, length: int, count_tokens: CountTokens, rng: random.Random
) -> tuple[str, list[str]]:
    words = rng.sample(material.words, len(material.words))
    common, others = words[:COMMON_WORDS], words[COMMON_WORDS:]
    shuffle_seed = rng.random()
    ladder = _REPEATS[task]
    step = ladder.index(_PUBLISHED[task][length > _SHORT])

    def build(entries: int, step: int) -> str:
        often, seldom = ladder[step]
        filling = [word for word in others for _ in range(seldom)][:entries]
        listed = common * often + filling
        random.Random(shuffle_seed).shuffle(listed)
        numbered = " ".join(f"{place}. {word}" for place, word in enumerate(listed, 1))
        return fill(material.templates.words, context=numbered)

    while step and count_tokens(build(0, step)) > _MOST_COMMON * length:
        step -= 1
    while step + 1 < len(ladder) and count_tokens(build(length // 3, step)) < 0.99 * length:
        # No entry is shorter than three tokens, so every word is listed and there is room left.
        step += 1

    text = _longest(lambda entries: build(entries, step), length, count_tokens, material.language)
    return text, common


def _longest(
    build: Callable[[int], str], length: int, count_tokens: CountTokens, language: str
) -> str:
    """The longest text of at most ``length`` tokens, to within 1 % where ``build`` allows it.

    ``build`` makes a longer text of a larger number. Tokens grow almost in proportion to it, so a
    straight line through the ends is followed, and the middle taken where that leads nowhere.
    """
    low, low_tokens, best = 0, count_tokens(build(0)), build(0)
    if low_tokens > length:
        raise UserError(
            f"evaluation.oneruler.lengths: {length} tokens do not hold the instructions in "
            f"{language}, which are {low_tokens}"
        )
    high, text = length, build(length)
    while (high_tokens := count_tokens(text)) <= length:
        if text == best:
            return best  # there is no more to list
        low, low_tokens, best = high, high_tokens, text
        high *= 2
        text = build(high)
    line = True
    for _ in range(_ATTEMPTS):
        if low_tokens >= 0.995 * length or high - low < 2:
            break
        share = (0.998 * length - low_tokens) / (high_tokens - low_tokens) if line else 0.5
        guess = min(high - 1, max(low + 1, low + int(share * (high - low))))
        text = build(guess)
        tokens = count_tokens(text)
        if tokens <= length:
            low, low_tokens, best, line = guess, tokens, text, True
        else:
            line = tokens < high_tokens
            high, high_tokens = guess, tokens
    return best
