"""From a YAML file and overrides to a validated configuration, or one line on what is wrong.

Knows how mistakes are told, not what the keys mean (``config``).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from compass_ray.config import Config, Section
from compass_ray.errors import UserError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply ``section.key=value`` overrides and validate.

    Raises ``UserError`` naming the file and the key, with the nearest known key for a misspelt one.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({_one_line(error)})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping of sections, found {type(data).__name__}")
    for override in overrides:
        _apply_override(data, override)
    return build_config(data, where=str(path))


def build_config(data: Mapping[str, Any], where: str = "config") -> Config:
    """Validate a mapping of sections; ``UserError`` in one line names the first wrong key."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {_describe(error)}") from None


def override(config: Config, overrides: Sequence[str], where: str = "config") -> Config:
    """The configuration with ``section.key=value`` overrides applied, validated anew."""
    data = config.model_dump(mode="json", by_alias=True)
    for text in overrides:
        _apply_override(data, text)
    return build_config(data, where=where)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats and languages: ``2e-4`` is a number, and ``no`` is Norwegian, not False."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|nan)$"),
    list("-+0123456789."),
)


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"--set {override}: expected section.key=value")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: value is not YAML ({_one_line(error)})") from None
    *sections, last = key.split(".")
    node = data
    for section in sections:
        child = node.get(section)
        if child is None:
            child = node[section] = {}
        if not isinstance(child, dict):
            raise UserError(f"--set {override}: {section} is not a section")
        node = child
    node[last] = value


def _describe(error: ValidationError) -> str:
    # One mistake a line is enough: mending the first often mends the rest.
    detail = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in detail["loc"]) or "config"
    if detail["type"] == "extra_forbidden":
        known = _known_keys(detail["loc"][:-1])
        nearest = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known keys: {', '.join(known)}"
        return f"unknown key {key}; {hint}"
    if detail["type"] == "missing":
        return f"{key} is missing"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return message if key == "config" else f"{key}: {message}"
    return f"{key}: {message}, got {detail['input']!r}"


def _known_keys(location: Iterable[str | int]) -> list[str]:
    section: Any = Config
    for part in location:
        if isinstance(part, int):
            continue
        section = section.model_fields[part].annotation
        candidates = [section, *get_args(section)]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, Section))
    return list(section.model_fields)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
