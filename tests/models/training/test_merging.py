from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compass_ray.config import Adapter
from compass_ray.errors import UserError
from compass_ray.models import load_base
from compass_ray.training.adapters import add_adapter, gather_adapter, save_adapter
from compass_ray.training.merging import merge


@pytest.fixture(params=["lora", "rslora", "dora"])
def adapter(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> Path:
    base = load_base(str(tiny_model), torch.float32)
    model = add_adapter(base, Adapter(type=request.param, r=4, dropout=0.0), "owner/base")
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    save_adapter(model, gather_adapter(model), tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_merged_model_computes_what_base_and_adapter_do(
    adapter: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    to = tmp_path / "deep" / "merged"
    merge(str(tiny_model), adapter, to)
    ids = torch.arange(20)[None]
    base = load_base(str(tiny_model), torch.float32)
    with torch.no_grad():
        untouched = base(input_ids=ids).logits
        expected = PeftModel.from_pretrained(base, str(adapter))(input_ids=ids).logits
        found = AutoModelForCausalLM.from_pretrained(to)(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(found, untouched, rtol=0, atol=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(to)
    assert tokenizer.chat_template
    assert sorted(path.name for path in to.parent.iterdir()) == ["merged"]


@pytest.mark.parametrize("adapter", ["lora"], indirect=True)
def test_what_is_in_the_target_folder_stays(
    adapter: Path, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="mine: not empty"):
        merge(str(tiny_model), adapter, tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
