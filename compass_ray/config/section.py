"""What every section of the configuration is made of."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict

from compass_ray.errors import UserError

EXECUTION: JsonDict = {"execution": True}

Auto = Literal["auto"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def identity(self) -> dict[str, Any]:
        """The fields that decide what comes out: everything but those marked EXECUTION."""
        identity: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("execution"):
                continue
            value = getattr(self, name)
            identity[name] = value.identity() if isinstance(value, Section) else _plain(value)
        return identity


def language_code(name: str) -> str:
    """BCP-47 code of a language as people name it; ``ValueError`` for one that is not known."""
    from compass_ray.languages import normalise

    try:
        return normalise(name)
    except UserError as error:
        raise ValueError(str(error)) from None


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.identity()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
