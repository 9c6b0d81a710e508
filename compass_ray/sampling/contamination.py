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

Shapes: N rows, I items, T words.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from compass_ray.sampling.similarity import mixed, text_blocks, word_hashes

CLEAN, EXACT, NEAR = 0, 1, 2
COVERAGE = 0.9
WORDS = 3

Hashes = NDArray[np.uint64]


class Items:
    """Evaluation items, indexed by what a row that repeats one must have.

    Args:
        questions: texts, [I].
        answers: the right answer of each, [I].
    """

    def __init__(self, questions: Sequence[str], answers: Sequence[str]) -> None:
        split = _words(questions)
        self._questions = np.unique(_whole(split))
        self._answers = [words.tobytes() for words in _words(answers)]
        self._grams = [frozenset(_trigrams(words).tolist()) for words in split]
        frequency = Counter(gram for grams in self._grams for gram in grams)
        self._telling: list[frozenset[int]] = []
        looked_up_for: dict[int, list[int]] = defaultdict(list)
        for item, grams in enumerate(self._grams):
            fewest = min((frequency[gram] for gram in grams), default=0)
            telling = frozenset(gram for gram in grams if frequency[gram] == fewest)
            self._telling.append(telling)
            # Who has enough of them has one of the first so many (Bayardo et al., 2007).
            for gram in sorted(telling)[: len(telling) - _enough(telling) + 1]:
                looked_up_for[gram].append(item)
        self._looked_up_for = dict(looked_up_for)
        self._looked_up = np.array(sorted(looked_up_for), dtype=np.uint64)

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
        has = set(_trigrams(prompt).tolist())
        text = np.concatenate([prompt, *_words([response])]).tobytes()
        for item in {item for gram in has for item in self._looked_up_for.get(gram, ())}:
            both = (self._grams[item], self._telling[item])
            covered = all(len(wanted & has) >= _enough(wanted) for wanted in both)
            if covered and _holds(text, self._answers[item]):
                return True
        return False


def _enough(grams: Collection[int]) -> int:
    return int(np.ceil(COVERAGE * len(grams)))


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
