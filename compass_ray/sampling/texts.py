"""What the gap sampler reads of texts, part by part: items repeated, words, lengths in tokens.

Everything here is worked out when it is first asked for, over prompts and responses that stay in
storage. Knows nothing of Ray.

Shapes: N rows of the pool, L languages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from compass_ray.clustering.stage import Clustered
from compass_ray.config import Role, Training
from compass_ray.errors import UserError
from compass_ray.models import load_tokenizer
from compass_ray.sampling.baselines import (
    HashedNgrams,
    Ranker,
    dsir_log_weights,
    fit_langrank,
    langrank_features,
)
from compass_ray.sampling.contamination import CLEAN, Items
from compass_ray.sampling.similarity import TextProfile, uriel_distances
from compass_ray.training.data import tokenise


class Texts:
    """The texts of one clustering's rows.

    Args:
        clustered: where they are.
        languages: of the pool, [L].
        languages_N: index into ``languages`` of each row of the pool.
        parts_N: number of the part each row of the pool is in, rising.
        offsets_N: its place in that part.
    """

    def __init__(
        self,
        clustered: Clustered,
        languages: Sequence[str],
        languages_N: NDArray[np.int16],
        parts_N: NDArray[np.int32],
        offsets_N: NDArray[np.int64],
    ) -> None:
        self._clustered = clustered
        self._languages = languages
        self._languages_N = languages_N
        self._parts_N = parts_N
        self._offsets_N = offsets_N
        self._own_contaminated: dict[str, int] = {}
        self._profiles: list[TextProfile] | None = None
        self._tokens: dict[str, NDArray[np.int32]] = {}

    def contaminated(self) -> NDArray[np.bool_]:
        """Rows of the pool that repeat an evaluation item, exactly or nearly, [N]."""
        found = np.zeros(len(self._parts_N), bool)
        for rows, (prompts, responses) in self._pool("prompt", "response"):
            found[rows] = self._items.verdicts(prompts, responses) != CLEAN
        return found

    def own_contaminated(self, language: str) -> int:
        """How many of the language's own rows do."""
        if language not in self._own_contaminated:
            prompts = self._of(language, "train", "prompt")
            responses = self._of(language, "train", "response")
            verdicts = self._items.verdicts(prompts, responses)
            self._own_contaminated[language] = int((verdicts != CLEAN).sum())
        return self._own_contaminated[language]

    def token_counts(self, training: Training) -> NDArray[np.int32]:
        """Length of every row of the pool as it is trained on, int32 [N]."""
        how = f"{training.model}/{training.max_length}/{training.system_prompt}"
        if how not in self._tokens:
            tokenizer = load_tokenizer(training.model)
            lengths_N = np.empty(len(self._parts_N), np.int32)
            for rows, (prompts, responses) in self._pool("prompt", "response"):
                for row, text in enumerate(zip(prompts, responses, strict=True), rows.start):
                    examples = tokenise(
                        text[:1], text[1:], tokenizer, training.max_length, training.system_prompt
                    ).examples
                    # A row cut so short that it teaches nothing is no bargain.
                    lengths_N[row] = len(examples[0].tokens) if examples else training.max_length
            self._tokens = {how: lengths_N}
        return self._tokens[how]

    def profiles(self) -> list[TextProfile]:
        """Vocabulary of each language of the pool, [L]."""
        if self._profiles is None:
            profiles = [TextProfile.of([]) for _ in self._languages]
            for rows, (prompts,) in self._pool("prompt"):
                codes = self._languages_N[rows]
                for code in np.unique(codes):
                    mine = [prompts[i] for i in np.flatnonzero(codes == code)]
                    profiles[code] += TextProfile.of(mine)
            self._profiles = profiles
        return self._profiles

    def profile_of(self, language: str) -> TextProfile:
        """Vocabulary of its own rows; where there are none of its usage, then of the pool's.

        Raises:
            UserError: no corpus has rows of the language.
        """
        roles: tuple[Role, ...] = ("train", "usage")
        for role in roles:
            prompts = self._of(language, role, "prompt")
            if prompts:
                return TextProfile.of(prompts)
        if language in self._languages:
            return self.profiles()[self._languages.index(language)]
        raise UserError(f"sampling.transfer: {language} has no rows in any corpus")

    def ranker(self, transfer: Mapping[str, Mapping[str, float]]) -> Ranker:
        """LangRank's ranker, learned from what training on one language did for another.

        Raises:
            UserError: a target has no rows, or none of its sources is in the pool.
        """
        features, gains, groups = [], [], []
        for language, scores in transfer.items():
            known = [i for i, source in enumerate(self._languages) if source in scores]
            if not known:
                raise UserError(
                    f"sampling.transfer: none of the languages of {language} is in the pool, "
                    f"which has {', '.join(self._languages)}"
                )
            table_LF = langrank_features(
                self.profile_of(language),
                self.profiles(),
                self._languages,
                uriel_distances(language, self._languages),
            )
            features.append(table_LF[known])
            gains += [scores[self._languages[i]] for i in known]
            groups.append(len(known))
        return fit_langrank(np.concatenate(features), gains, groups)

    def dsir_weights(self, language: str, others_N: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Two passes over the prompts: the bag of the other languages, then each row's weight."""
        ngrams = HashedNgrams()
        raw = np.zeros(ngrams.buckets, np.int64)
        for rows, (prompts,) in self._pool("prompt"):
            raw += ngrams.bag(
                [p for p, other in zip(prompts, others_N[rows], strict=True) if other]
            )
        wanted = ngrams.bag(self._of(language, "usage", "prompt"))
        weights_N = np.empty(len(self._parts_N))
        for rows, (prompts,) in self._pool("prompt"):
            weights_N[rows] = dsir_log_weights(ngrams.counts(prompts), wanted, raw)
        return weights_N

    @cached_property
    def _items(self) -> Items:
        questions: list[str] = []
        answers: list[str] = []
        for part in self._clustered.items:
            table = self._clustered.artifact.storage.read_table(
                part.path, ["question", "options", "answer"]
            )
            questions += table["question"].to_pylist()
            pairs = zip(table["options"].to_pylist(), table["answer"].to_pylist(), strict=True)
            answers += [options[answer] for options, answer in pairs]
        return Items(questions, answers)

    def _pool(self, *columns: str) -> Iterator[tuple[slice, list[list[str]]]]:
        """Rows of the pool, part by part, and their texts, a list a column."""
        for number in np.unique(self._parts_N):
            rows = np.flatnonzero(self._parts_N == number)
            part = self._clustered.parts[int(number)].part
            table = self._clustered.artifact.storage.read_table(part.path, list(columns))
            table = table.take(self._offsets_N[rows])
            texts = [table[column].to_pylist() for column in columns]
            yield slice(int(rows[0]), int(rows[-1]) + 1), texts

    def _of(self, language: str, role: Role, column: str) -> list[str]:
        texts: list[str] = []
        for part in (embedded.part for embedded in self._clustered.parts):
            if part.role == role and language in part.languages:
                storage = self._clustered.artifact.storage
                table = storage.read_table(part.path, ["language", column])
                texts += table.filter(pc.equal(table["language"], language))[column].to_pylist()
        return texts
