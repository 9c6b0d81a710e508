from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from compass_ray.config import Training
from compass_ray.errors import UserError
from compass_ray.models import (
    check_model,
    check_training,
    for_workers,
    model_identity,
    resolve_model,
)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"adapter": {"type": "qlora"}}, "training.adapter.type: qlora needs bitsandbytes"),
        ({"attention": "flash_attention_3"}, "training.attention: flash_attention_3 needs"),
    ],
)
def test_a_library_that_is_not_installed_is_told(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], said: str
) -> None:
    config = Training.model_validate(settings)
    installed = {"bitsandbytes", "flash_attn_interface"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name in installed else None
    )
    check_training(config)
    installed.clear()
    check_training(Training())
    with pytest.raises(UserError, match=said):
        check_training(config)
    installed.add("kernels")
    if settings.get("attention"):
        check_training(config)


@pytest.mark.parametrize("name", ["./models/own", "models/own", "~/models/own"])
def test_a_folder_is_the_same_in_any_directory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models/own"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    check_model(name)
    sent = for_workers(Training(model=name))
    monkeypatch.chdir("/")
    assert resolve_model(sent.model) == str(folder)
    assert for_workers(Training(model="owner/name")).model == "owner/name"


def test_a_gated_model_without_access_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError

    refused = [True]

    def auth_check(*_: object) -> None:
        if refused:
            raise GatedRepoError("403", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(HfApi, "auth_check", auth_check)
    with pytest.raises(UserError, match=r"training\.model: owner/name is gated, .* licence"):
        check_model("owner/name")
    refused.clear()
    check_model("owner/name")


def test_a_folder_is_to_fingerprints_what_is_in_it_and_not_where_it_lies(tmp_path: Path) -> None:
    before, after = (tmp_path / name for name in ("before", "elsewhere"))
    before.mkdir()
    (before / "config.json").write_text("{}")
    weights = bytearray(4 << 20)
    (before / "model.safetensors").write_bytes(weights)
    first = model_identity(str(before))
    before.rename(after)
    (after / ".cache").mkdir()
    (after / ".cache/download.lock").write_text("its own notes")
    assert model_identity(str(after)) == first
    weights[:] = b"\1" * len(weights)  # trained on: the same size, other values
    (after / "model.safetensors").write_bytes(weights)
    assert model_identity(str(after)) != first
    assert model_identity("owner/name") == "owner/name"
