from __future__ import annotations

import pytest

from compass_ray.artifacts import Storage
from compass_ray.report import build_report
from tests.unit.report.made_up_run import RUN, write_run


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    root = Storage.open(str(tmp_path_factory.mktemp("run")))
    write_run(root)
    return root


@pytest.fixture(scope="module")
def page(storage: Storage) -> str:
    return build_report(storage, RUN)
