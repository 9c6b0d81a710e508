"""The section of a search over any keys of the others."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from compass_ray.config.section import Auto, Section

Metric = Literal["accuracy", "loss", "tokens", "device_hours"]


class Range(Section):
    """Values between two bounds, both included; whole numbers where both bounds are."""

    from_: int | float = Field(alias="from", description="Smallest value")
    to: int | float = Field(description="Largest value")
    log: bool = Field(False, description="Sample evenly over the values' logarithms")

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
    asha: Asha | None = Field(
        None, description="Stop the worse trials early; default: all run to their end"
    )
    max_parallel_trials: Annotated[int, Field(gt=0)] | Auto = Field(
        "auto", description="Trials at once; auto: as many as have room for all their trainers"
    )

    @property
    def metrics(self) -> tuple[Metric, ...]:
        named = (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)
        return tuple(dict.fromkeys(named))
