"""Train ignores a setting that it does not know, so a name it no longer has would go unnoticed."""

from __future__ import annotations

from ray.train.v2._internal import constants

from compass_ray.resources import LOCAL_RAY
from compass_ray.training.launch import LOOK_ENV, LOOK_S


def test_settings_of_train_are_such_that_it_has_and_takes_to_its_controllers() -> None:
    ours = {LOOK_ENV, *(name for name in LOCAL_RAY if name.startswith("RAY_TRAIN_"))}
    assert ours <= constants.ENV_VARS_TO_PROPAGATE
    assert float(LOOK_S) < constants.DEFAULT_HEALTH_CHECK_INTERVAL_S
