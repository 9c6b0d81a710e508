"""What is installed together: pyproject.toml and constraints.txt."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
OF_FAISS = {
    f"nvidia-{library}-cu12" for library in ("cublas", "cuda-nvrtc", "cuda-runtime", "curand")
}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if not line.startswith("#")]
    return {normal(name): version for name, version in found}


def asked() -> set[str]:
    """Every package of the project and its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [project["dependencies"], *project["optional-dependencies"].values()]
    names = [re.match(r"[\w.-]+", requirement) for part in wanted for requirement in part]
    return {normal(name[0]) for name in names if name}


def test_every_package_asked_for_has_a_version() -> None:
    assert asked() <= set(pins())


def test_whatever_is_built_for_a_cuda_is_built_for_that_of_torch() -> None:
    """torch from PyPI asks for one cuda-toolkit; two majors cannot be installed together.

    Libraries that faiss-gpu brings for itself have names of their own.
    """
    major = pins()["cuda-toolkit"].partition(".")[0]
    built_for = {
        name: found[1]
        for name in {*pins(), *asked()}
        if (found := re.search(r"-cu(?:da)?(\d\d)", name)) and name not in OF_FAISS
    }
    assert "cuml-cu13" in built_for
    assert set(built_for.values()) == {major}
