"""From a YAML file and overrides to a validated configuration, or one line on what is wrong.

Knows how mistakes are told, not what the keys mean (``config``).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from compass_ray.config import Config, Section
from compass_ray.errors import UserError, one_line


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
        raise UserError(f"{path}: not valid YAML: {one_line(error)}") from None
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
        raise UserError(f"{where}: {_describe(error, data)}") from None


def override(config: Config, overrides: Sequence[str], where: str = "config") -> Config:
    """The configuration with ``section.key=value`` overrides applied, validated anew."""
    data = config.model_dump(mode="json", by_alias=True)
    for text in overrides:
        _apply_override(data, text)
    return build_config(data, where=where)


class _Loader(yaml.SafeLoader):
    """YAML 1.2: ``2e-4`` is a number, ``no`` is Norwegian, not False, and no key is given twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here and not where mappings are made: by then, merged ones hold what they overrule.
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"key {key.value} is given twice (line {line})")
            seen.add((key.tag, str(key.value)))
        return node


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
        raise UserError(f"--set {override}: value is not YAML: {one_line(error)}") from None
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


def _describe(error: ValidationError, data: Mapping[str, Any]) -> str:
    # One mistake a line is enough: mending the first often mends the rest.
    location, details = _first_mistake(error, data)
    detail = details[0]
    key = ".".join(map(str, location)) or "config"
    if detail["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        nearest = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known keys: {', '.join(known)}"
        return f"unknown key {key}; {hint}"
    if detail["type"] == "missing":
        return f"{key} is missing"
    if detail["type"] == "value_error":
        message = detail["msg"].removeprefix("Value error, ")
        return message if key == "config" else f"{key}: {message}"
    first, *others = (each["msg"].partition(", unable to parse")[0] for each in details)
    others = [other.removeprefix("Input should be ") for other in others]
    return f"{key}: {' or '.join([first, *others])}, got {detail['input']!r}"


def _first_mistake(
    error: ValidationError, data: Mapping[str, Any]
) -> tuple[list[str | int], list[ErrorDetails]]:
    """The location of the first mistake, and what is said of it.

    Of a value that may be of several types, pydantic says what each of them finds wrong. The type
    that was meant is the one that finds fault with a part of the value, or has a reason of its own.
    """
    details = error.errors(include_url=False)
    located = [(_location(detail, data), detail) for detail in details]
    start = located[0][0]
    inside = [(loc, detail) for loc, detail in located if loc[: len(start)] == start]
    deepest = max((loc for loc, _ in inside), key=len)
    there = [detail for loc, detail in inside if loc == deepest]
    return deepest, [detail for detail in there if detail["type"] == "value_error"] or there


def _location(detail: ErrorDetails, data: Mapping[str, Any]) -> list[str | int]:
    """The keys that lead to a mistake, without the names of types that pydantic puts between."""
    location: list[str | int] = []
    value: Any = data
    for part in detail["loc"]:
        a_list = isinstance(value, list | tuple) and isinstance(part, int)
        inside = a_list or (isinstance(value, Mapping) and part in value)
        if inside:
            value = value[part]
        if inside or (detail["type"] == "missing" and part == detail["loc"][-1]):
            location.append(part)
    return location


def _known_keys(location: Iterable[str | int]) -> list[str]:
    section: type[Section] = Config
    for part in location:
        if part in section.model_fields:
            section = next(_sections(section.model_fields[str(part)].annotation), section)
    return [field.alias or name for name, field in section.model_fields.items()]


def _sections(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inside in get_args(annotation):
        yield from _sections(inside)
