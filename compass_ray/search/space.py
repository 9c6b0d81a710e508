"""What is searched: keys of the configuration and their values. Pure; Optuna only by its types."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from compass_ray import artifacts
from compass_ray.config import Config, Metric, Range
from compass_ray.errors import UserError
from compass_ray.loading import build_config
from compass_ray.models import model_identity

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Values = Mapping[str, Any]
"""One value for every key of ``search.space``."""

LARGER_IS_BETTER: dict[Metric, bool] = {
    "accuracy": True,
    "loss": False,
    "tokens": False,
    "device_hours": False,
}

_FIXED = ("run.name", "run.storage", "search", "resources")
_RESULT_SECTIONS = ("corpora", "embedding", "clustering", "sampling", "training", "evaluation")


def check_space(config: Config) -> None:
    """Raise ``UserError`` for a key or value of ``search.space`` that no trial could run with."""
    space = config.search.space
    if not space:
        raise UserError(
            "search.space: nothing to search; expected keys and values, such as "
            "{sampling.budget: [500, 1000]}"
        )
    for key, domain in space.items():
        if any(key == fixed or key.startswith(f"{fixed}.") for fixed in _FIXED):
            raise UserError(f"search.space: {key} does not change what a trial comes to")
        values = [domain.from_, domain.to] if isinstance(domain, Range) else domain
        if not values:
            raise UserError(f"search.space.{key}: no values")
        for value in values:
            with_values(config, {key: value})


def with_values(config: Config, values: Values) -> Config:
    """The configuration with these keys replaced, validated as if it had been read from a file."""
    data = config.model_dump(by_alias=True)
    for key, value in values.items():
        *sections, last = key.split(".")
        node = data
        for section in sections:
            child = node.get(section)
            if not isinstance(child, dict):
                raise UserError(f"search.space: {key}: {section} is not a section")
            node = child
        node[last] = value
    return build_config(data, where="search.space")


def combinations(config: Config) -> list[Values] | None:
    """Every combination, if all keys have lists and there are at most ``num_samples``."""
    space = config.search.space
    lists = {key: domain for key, domain in space.items() if not isinstance(domain, Range)}
    if len(lists) < len(space) or math.prod(map(len, lists.values())) > config.search.num_samples:
        return None
    return [dict(zip(lists, row, strict=True)) for row in itertools.product(*lists.values())]


def distributions(config: Config) -> dict[str, BaseDistribution]:
    """The space as Optuna draws from it."""
    return dict(_distributions(config))


def _distributions(config: Config) -> Iterator[tuple[str, BaseDistribution]]:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    for key, domain in config.search.space.items():
        if not isinstance(domain, Range):
            yield key, CategoricalDistribution(domain)
        elif isinstance(domain.from_, int) and isinstance(domain.to, int):
            yield key, IntDistribution(domain.from_, domain.to, log=domain.log)
        else:
            yield key, FloatDistribution(domain.from_, domain.to, log=domain.log)


def trial_key(config: Config, contents: list[list[str]]) -> str:
    """Names a trial by all that decides its outcome, so that a finished one is known again.

    Args:
        config: Of the trial, with its values in place.
        contents: Role and identity of every part of the corpora.
    """
    sections = {name: getattr(config, name).identity() for name in _RESULT_SECTIONS}
    for name in ("embedding", "training"):
        sections[name]["model"] = model_identity(sections[name]["model"])
    return artifacts.fingerprint(
        **sections, languages=config.languages, seed=config.run.seed, contents=contents
    )
