from __future__ import annotations

import pytest
import ray

from compass_ray.errors import UserError
from compass_ray.planning import hardware
from compass_ray.resources import connect


def test_this_machine_is_described_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    on, machine = hardware.look()
    assert machine.where == "this machine"
    assert on.cpus == machine.cpus >= 1
    assert not ray.is_initialized()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_where_nothing_listens_is_told_at_once(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=r"RAY_ADDRESS: nothing answers at .*127\.0\.0\.1:1"):
        hardware.look()


def test_a_dashboard_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:8265 is a dashboard"):
        hardware.look()
    with pytest.raises(UserError, match="is a dashboard"):
        connect()
    assert not ray.is_initialized()
