"""Jobs on a cluster of two nodes, with a token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

MakeConfig = Callable[..., Path]


def test_a_submit_without_the_token_is_refused(head, make_config: MakeConfig) -> None:  # type: ignore[no-untyped-def]
    refused = head.submit("jobs/adapt.py", make_config(), token=False)
    assert refused.returncode != 0
    assert "token" in refused.stdout.lower()
    assert "SUCCEEDED" not in refused.stdout


def test_a_failing_config_makes_the_job_fail(head, make_config: MakeConfig) -> None:  # type: ignore[no-untyped-def]
    config = make_config(embedding={"model": "no/such-encoder"})
    failed = head.submit("jobs/adapt.py", config, "--submission-id=failing")
    assert failed.returncode == 1
    assert head.status("failing") == "FAILED"
    # Ray shows the log as it comes, and its end once more when the job has failed.
    (line,) = {row for row in failed.stdout.splitlines() if row.startswith("compass-ray: ")}
    assert "embedding.model: no/such-encoder" in line
    assert "Traceback" not in failed.stdout
