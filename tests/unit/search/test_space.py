from __future__ import annotations

from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from compass_ray.config import Config
from compass_ray.errors import UserError
from compass_ray.loading import build_config
from compass_ray.search.space import (
    check_space,
    combinations,
    distributions,
    trial_key,
    with_values,
)


def config(space: dict[str, Any], **search: Any) -> Config:
    return build_config({"languages": ["de"], "search": {"space": space, **search}})


def test_values_go_to_their_keys_and_are_validated() -> None:
    changed = with_values(config({}), {"sampling.budget": 7, "training.adapter.r": 4})
    assert changed.sampling.budget == 7
    assert changed.training.adapter.r == 4
    with pytest.raises(UserError, match=r"search\.space: sampling\.budget: .* got -1"):
        with_values(config({}), {"sampling.budget": -1})


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, r"search\.space: nothing to search"),
        ({"sampling.buget": [1]}, "unknown key sampling.buget; did you mean budget?"),
        ({"samplings.budget": [1]}, "samplings is not a section"),
        ({"run.name": ["a"]}, "run.name does not change"),
        ({"run.seed": []}, "run.seed: no values"),
        ({"sampling.temperature": {"from": 0, "to": 1}}, "sampling.temperature"),
        ({"clustering.k": [8, 1]}, "clustering.k"),
    ],
)
def test_a_space_no_trial_could_run_with_is_refused_by_key(
    space: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_space(config(space))


@pytest.mark.parametrize("bounds", [{"from": 2, "to": 1}, {"from": 0, "to": 1, "log": True}])
def test_a_range_runs_upwards(bounds: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"search\.space"):
        config({"training.learning_rate": bounds})


def test_lists_are_tried_in_full_when_there_are_few_enough() -> None:
    space = {"sampling.budget": [1, 2], "clustering.k": [3, 4]}
    assert combinations(config(space, num_samples=4)) == [
        {"sampling.budget": budget, "clustering.k": k} for budget in (1, 2) for k in (3, 4)
    ]
    assert combinations(config(space, num_samples=3)) is None
    ranged = {**space, "sampling.temperature": {"from": 0.1, "to": 1.0}}
    assert combinations(config(ranged, num_samples=100)) is None


def test_ranges_of_whole_numbers_are_whole() -> None:
    drawn = distributions(
        config(
            {
                "clustering.k": {"from": 20, "to": 200},
                "training.learning_rate": {"from": 1e-5, "to": 1e-3, "log": True},
                "training.adapter.type": ["lora", "dora"],
            }
        )
    )
    assert drawn == {
        "clustering.k": IntDistribution(20, 200),
        "training.learning_rate": FloatDistribution(1e-5, 1e-3, log=True),
        "training.adapter.type": CategoricalDistribution(["lora", "dora"]),
    }


def test_a_trial_is_known_again_by_what_decides_its_outcome() -> None:
    base = config({"sampling.budget": [1, 2]})
    contents = [["auxiliary", "abc"]]
    key = trial_key(with_values(base, {"sampling.budget": 1}), contents)
    other_search = config({"sampling.budget": [1, 2, 3]}, num_samples=5)
    assert trial_key(with_values(other_search, {"sampling.budget": 1}), contents) == key
    assert trial_key(with_values(base, {"sampling.budget": 2}), contents) != key
    assert trial_key(with_values(base, {"sampling.budget": 1}), [["auxiliary", "new"]]) != key
