"""Sections that decide how an adapter is trained, evaluated and kept up to date."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from compass_ray.config.section import EXECUTION, Auto, Section


class Adapter(Section):
    """The kind and size of the adapter, as PEFT's ``LoraConfig`` takes them."""

    type: Literal["lora", "rslora", "dora", "qlora"] = Field(
        "lora",
        description="rslora scales by alpha / sqrt(r); qlora is LoRA on a base held in 4 bits",
    )
    r: Annotated[int, Field(gt=0)] = Field(16, description="Rank of the adapter's matrices")
    alpha: Annotated[int, Field(gt=0)] = Field(
        32, description="The adapter's output is scaled by alpha / r"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="Share of the adapter's inputs dropped at random in training"
    )
    target_modules: str | list[str] = Field(
        "all-linear", description="Layers that get an adapter: names, a pattern, or all-linear"
    )


class DeepSpeed(Section):
    """How DeepSpeed divides a language's training among its workers and their memories."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        2,
        description="What workers share out among them: 1 optimiser states, 2 gradients too, "
        "3 weights too; 0 nothing",
        json_schema_extra=EXECUTION,
    )
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


Attention = Literal[
    "auto", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4"
]


class Training(Section):
    """The base model, and how an adapter is trained on a language's subset."""

    model: str = Field(
        "Qwen/Qwen2.5-7B-Instruct", description="Base model: a folder or a name on the hub"
    )
    system_prompt: str | None = Field(
        None, description="System turn of training and evaluation; default: the chat template's own"
    )
    adapter: Adapter = Adapter()
    deepspeed: DeepSpeed = DeepSpeed()
    epochs: Annotated[float, Field(gt=0)] = Field(1, description="Passes over the rows")
    max_steps: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Optimiser steps, in place of epochs"
    )
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
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        2.0e-4, description="AdamW's at its peak; it falls to a tenth along a cosine"
    )
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="Share of the steps in which the learning rate rises to its peak"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="AdamW's weight decay")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Gradients of a larger norm are scaled down to it"
    )
    max_length: Annotated[int, Field(gt=1)] = Field(
        1024, description="Tokens of a sequence at most; longer rows are cut at the end"
    )
    packing: bool = Field(
        True,
        description="Several rows a sequence; models that cannot keep them apart train unpacked",
    )
    attention: Attention = Field(
        "auto",
        description="auto: PyTorch's, with a mask; the others train on GPUs alone and need none, "
        "so that packed rows cost no more than apart; flash: install flash-attn or kernels",
        json_schema_extra=EXECUTION,
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Of weights and activations; auto: bf16 on a GPU, else fp32"
    )
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
    checkpoint_steps: Annotated[int, Field(gt=0)] = Field(
        200,
        description="Steps between checkpoints that a crash is resumed from",
        json_schema_extra=EXECUTION,
    )
    keep_checkpoints: Annotated[int, Field(gt=0)] = Field(
        2, description="Newest checkpoints kept while training", json_schema_extra=EXECUTION
    )
    max_failures: Annotated[int, Field(ge=0)] = Field(
        3,
        description="Restarts of a language in a row, without a new checkpoint; being preempted "
        "does not count",
        json_schema_extra=EXECUTION,
    )
    workers_per_language: Annotated[int, Field(gt=0)] = Field(
        1,
        description="Processes that train one adapter together, each on its share of the batch",
        json_schema_extra=EXECUTION,
    )

    @property
    def micro_batch(self) -> int:
        """Sequences a worker holds at once."""
        return self.micro_batch_size or max(1, self.batch_size // self.workers_per_language)

    @model_validator(mode="after")
    def _batch_divides(self) -> Training:
        if self.batch_size % (self.workers_per_language * self.micro_batch):
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of workers_per_language "
                f"{self.workers_per_language} × micro_batch_size {self.micro_batch}"
            )
        return self

    @model_validator(mode="after")
    def _parts_agree(self) -> Training:
        if self.attention.startswith("flash") and self.precision == "fp32":
            raise ValueError(f"attention {self.attention} computes in 16 bits; set precision bf16")
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

    tasks: list[OneRulerTask] = Field(
        list(ONERULER_TASKS), description="Needles to find (niah) and common words to name (cwe)"
    )
    lengths: list[Annotated[int, Field(ge=512)]] = Field(
        [8_000, 32_000, 64_000, 128_000], description="Tokens of the prompt, by the model's own"
    )
    samples: Annotated[int, Field(gt=0)] = Field(50, description="Items of each task and length")
    text: str | None = Field(
        None, description="Folder of <language>/*.txt to hide in; default: the run's own corpora"
    )


class Evaluation(Section):
    """What base and adapters are scored on, and how."""

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
    batch_size: Annotated[int, Field(gt=0)] = Field(
        8,
        description="Texts scored at once; fewer where they are long",
        json_schema_extra=EXECUTION,
    )
    baseline: bool = Field(
        True, description="Score the base model too; without it there are no gains"
    )
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="Level of the confidence intervals"
    )

    def uses_template(self, tokenizer_has_one: bool) -> bool:
        """Whether questions are asked as turns of a chat."""
        return tokenizer_has_one if self.chat_template == "auto" else self.chat_template

    @model_validator(mode="after")
    def _data_is_of_a_task(self) -> Evaluation:
        for name in self.data:
            if name not in self.tasks:
                raise ValueError(f"evaluation.data.{name}: {name} is not among evaluation.tasks")
        return self


UpdateMethod = Literal[
    "ecda",
    "naive",
    "ewc",
    "random_rehearsal",
    "full_retrain",
    "ties",
    "dare_ties",
    "dare_linear",
    "linear",
]
UPDATE_METHODS: tuple[UpdateMethod, ...] = get_args(UpdateMethod)


class Continual(Section):
    """When usage counts as drifted, and how an adapter is then trained on."""

    method: UpdateMethod = Field(
        "ecda",
        description="How an update trains: ecda, ewc and random_rehearsal hold on to the old "
        "usage; naive doesn't; full_retrain begins anew on all rows; the others are PEFT's "
        "mergings of naive's adapter with the current one",
    )
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
