"""The configuration: one typed, immutable section a stage, validated once at the door.

Knows nothing of Ray, torch or files; how it is read is in ``loading``. Fields marked
``EXECUTION`` say how work is carried out, not what comes out, and stay out of fingerprints.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from compass_ray.config.models import (
    ONERULER_TASKS,
    UPDATE_METHODS,
    Adapter,
    Continual,
    DeepSpeed,
    Evaluation,
    OneRuler,
    OneRulerTask,
    Training,
    UpdateMethod,
)
from compass_ray.config.rows import (
    ROLES,
    STRATEGIES,
    Cleaning,
    Clustering,
    Corpora,
    Embedding,
    Role,
    Sampling,
    Source,
    Strategy,
)
from compass_ray.config.search import Metric, Range, Search
from compass_ray.config.section import Auto, Section, language_code

__all__ = [
    "ONERULER_TASKS",
    "ROLES",
    "STRATEGIES",
    "UPDATE_METHODS",
    "Adapter",
    "Cleaning",
    "Clustering",
    "Config",
    "Continual",
    "Corpora",
    "DeepSpeed",
    "Embedding",
    "Evaluation",
    "Metric",
    "OneRuler",
    "OneRulerTask",
    "Range",
    "Resources",
    "Role",
    "Run",
    "Sampling",
    "Search",
    "Section",
    "Source",
    "Strategy",
    "Tracker",
    "Training",
    "UpdateMethod",
]

Tracker = Literal["tensorboard", "mlflow", "wandb"]


class Run(Section):
    """What the run is called, where its results go, and what its random choices start from."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        "run", description="The run's folder is runs/<name> in the storage"
    )
    storage: str = Field("outputs", description="Any pyarrow filesystem URI: /path, s3://, gs://")
    seed: int = Field(0, description="Seed of every random choice")
    trackers: list[Tracker] = Field(
        default_factory=list, description="Where loss curves go, besides the report"
    )


class Resources(Section):
    """What a training or evaluation worker gets of the cluster, and how many languages share it."""

    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] | Auto = Field(
        "auto", description="One where there are any; less than 1 to share one, 0 for none"
    )
    max_parallel_languages: Annotated[int, Field(gt=0)] | Auto = Field(
        "auto", description="Most languages to train side by side; auto: as many as fit"
    )
    threads_per_worker: Annotated[int, Field(gt=0)] = Field(
        1, description="CPU cores of a training or evaluation worker"
    )


class Config(Section):
    """A whole run: one section a stage, and the languages to adapt to."""

    run: Run = Run()
    languages: Annotated[list[str], Field(min_length=1)] = Field(
        description="Languages to train an adapter for, one each; codes or English names"
    )
    corpora: Corpora = Corpora()
    embedding: Embedding = Embedding()
    clustering: Clustering = Clustering()
    sampling: Sampling = Sampling()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    continual: Continual = Continual()
    search: Search = Search()
    resources: Resources = Resources()

    @field_validator("languages")
    @classmethod
    def _known_languages(cls, languages: list[str]) -> list[str]:
        codes = [language_code(language) for language in languages]
        if len(set(codes)) != len(codes):
            raise ValueError(f"a language is named twice in {languages}")
        return codes
