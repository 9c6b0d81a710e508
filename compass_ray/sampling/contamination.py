"""Rows that would give an evaluation item away: the item itself, or nearly so. Pure.

*Exact*: the prompt is the item's question, but for case, punctuation and spacing. *Near*: the
row has ``COVERAGE`` of the question's word trigrams, as much of those that set the question apart
from other items (the ones that fewest items have), and in one run the words of the right answer.
Words alone decide, so it works in every language at once and for items in any of them; an item
translated into a language that has no items is not seen.

Questions made from one pattern ("the capital of X") are each other's nearest neighbours by
cosine, often nearer than their own translations, and have most of their words in common: what
tells them apart is a trigram or two. Refusing by cosine or by common words would refuse the very
subjects that are wanted.

Shapes: N rows, I items, T words, G trigrams of all items, one item after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compass_ray.sampling.similarity import mixed, text_blocks, word_hashes

CLEAN, EXACT, NEAR = 0, 1, 2
COVERAGE = 0.9
WORDS = 3

Hashes = NDArray[np.uint64]
Flags = NDArray[np.bool_]


class Items:
    """Evaluation items, indexed by what a row that repeats one must have.

    Args:
        questions: texts, [I].
        answers: the right answer of each, [I].
    """

    def __init__(self, questions: Sequence[str], answers: Sequence[str]) -> None:
        self._answers = [words.tobytes() for words in _words(answers)]
        whole, sizes = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        grams = [np.empty(0, np.uint64)]
        for block in text_blocks(questions):
            split = _words(block)
            own = [np.unique(_trigrams(words)) for words in split]
            whole.append(_whole(split))
            sizes.append(np.array([len(found) for found in own], np.int64))
            grams += own
        self._questions = np.unique(np.concatenate(whole))
        sizes_I = np.concatenate(sizes)
        self._starts = np.concatenate([[0], np.cumsum(sizes_I)])
        self._grams_G = np.concatenate(grams)
        items_G = np.repeat(np.arange(len(sizes_I), dtype=np.int32), sizes_I)
        self._telling_G = _rarest(self._grams_G, items_G, self._starts)
        # Who has enough of them has one of the first so many (Bayardo et al., 2007).
        telling_I = np.bincount(items_G[self._telling_G], minlength=len(sizes_I))
        place_G = np.cumsum(self._telling_G) - 1
        place_G -= np.repeat(np.cumsum(telling_I) - telling_I, sizes_I)
        first_G = self._telling_G & (place_G <= (telling_I - _enough(telling_I))[items_G])
        order = np.argsort(self._grams_G[first_G])
        self._looked_up = self._grams_G[first_G][order]
        self._looked_up_for = items_G[first_G][order]

    def verdicts(self, prompts: Sequence[str], responses: Sequence[str]) -> NDArray[np.uint8]:
        """``CLEAN``, ``EXACT`` or ``NEAR`` for each row, [N]."""
        verdicts = [np.empty(0, np.uint8)]
        start = 0
        for block in text_blocks(prompts):
            verdicts.append(self._block(block, responses[start : start + len(block)]))
            start += len(block)
        return np.concatenate(verdicts)

    def _block(self, prompts: Sequence[str], responses: Sequence[str]) -> NDArray[np.uint8]:
        rows_T, hashes_T = word_hashes(prompts)
        split = _split(rows_T, hashes_T, len(prompts))
        verdicts_N = np.full(len(prompts), CLEAN, dtype=np.uint8)
        within = rows_T[WORDS - 1 :] == rows_T[: 1 - WORDS]
        found = within & _among(_trigrams(hashes_T), self._looked_up)
        for row in np.unique(rows_T[WORDS - 1 :][found]):
            if self._nearly(split[row], responses[row]):
                verdicts_N[row] = NEAR
        verdicts_N[_among(_whole(split), self._questions)] = EXACT
        return verdicts_N

    def _nearly(self, prompt: Hashes, response: str) -> bool:
        has = np.unique(_trigrams(prompt))
        text = np.concatenate([prompt, *_words([response])]).tobytes()
        for item in self._candidates(has):
            own = slice(self._starts[item], self._starts[item + 1])
            there, telling = _among(self._grams_G[own], has), self._telling_G[own]
            covered = there.sum() >= _enough(len(there))
            covered &= there[telling].sum() >= _enough(telling.sum())
            if covered and _holds(text, self._answers[item]):
                return True
        return False

    def _candidates(self, grams: Hashes) -> Iterator[int]:
        """Items that are looked up for one of the trigrams."""
        sides: tuple[Literal["left", "right"], ...] = ("left", "right")
        first, last = (np.searchsorted(self._looked_up, grams, side) for side in sides)
        found = [self._looked_up_for[i:j] for i, j in zip(first, last, strict=True) if i < j]
        yield from np.unique(np.concatenate(found)).tolist() if found else ()


def _enough(grams: ArrayLike) -> NDArray[np.int64]:
    """Of so many trigrams."""
    return np.ceil(COVERAGE * np.asarray(grams)).astype(np.int64)


def _rarest(grams_G: Hashes, items_G: NDArray[np.int32], starts: NDArray[np.int64]) -> Flags:
    """Which trigrams are among those of their item that fewest items have, [G]."""
    kinds, items_of_kind = np.unique(grams_G, return_counts=True)
    items_with_G = items_of_kind[np.searchsorted(kinds, grams_G)]
    fewest_I = np.zeros(len(starts) - 1, dtype=np.int64)
    has_any = np.diff(starts) > 0
    if has_any.any():
        fewest_I[has_any] = np.minimum.reduceat(items_with_G, starts[:-1][has_any])
    rarest: Flags = items_with_G == fewest_I[items_G]
    return rarest


def _words(texts: Sequence[str]) -> list[Hashes]:
    """Hashes of the words of each text, in order."""
    split: list[Hashes] = []
    for block in text_blocks(texts):
        split += _split(*word_hashes(block), len(block))
    return split


def _split(rows_T: NDArray[np.int64], hashes_T: Hashes, texts: int) -> list[Hashes]:
    return np.split(hashes_T, np.searchsorted(rows_T, np.arange(1, texts))) if texts else []


def _trigrams(words: Hashes) -> Hashes:
    """Hashes of the runs of ``WORDS`` words; none in a shorter text."""
    grams = np.zeros(max(0, len(words) - WORDS + 1), np.uint64)
    for place in range(WORDS):
        grams = mixed(grams + words[place : place + len(grams)])
    return grams


def _whole(split: Sequence[Hashes]) -> Hashes:
    """One hash, of this process, of all words of each text in order; 0 where there are none."""
    whole = [hash(words.tobytes()) & 0xFFFFFFFFFFFFFFFF if len(words) else 0 for words in split]
    return np.array(whole, dtype=np.uint64)


def _among(hashes: Hashes, known: Hashes) -> NDArray[np.bool_]:
    """Which of the hashes are in ``known``, which is sorted; 0 is never."""
    if not len(known):
        return np.zeros(len(hashes), bool)
    place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    found: NDArray[np.bool_] = (known[place] == hashes) & (hashes != 0)
    return found


def _holds(text: bytes, answer: bytes) -> bool:
    """Whether the words of the answer stand in the text one after the other."""
    place = text.find(answer)
    while place % 8 and place > 0:  # found across two hashes of 8 bytes
        place = text.find(answer, place + 1)
    return place >= 0 and bool(answer)
