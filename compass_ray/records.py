"""The row every stage understands, and the reader that turns the field's formats into it.

What the formats are is in ``formats``, what the languages are called in ``languages``. Knows
nothing of where files live (``corpora.sources``) nor of Ray.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from compass_ray import formats, languages
from compass_ray.config import Role
from compass_ray.errors import UserError
from compass_ray.formats import Fields, Format, RejectedRecordError, detect_format

__all__ = [
    "EVALUATION_SCHEMA",
    "MAX_CHARS",
    "REJECTED_SCHEMA",
    "SCHEMA",
    "Normalised",
    "Role",
    "as_records",
    "detect_format",
    "row_id",
    "to_rows",
]

MAX_CHARS = 200_000
_MAX_SHOWN = 500

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("response", pa.string()),
        pa.field("subject", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("weight", pa.float64(), nullable=False),
        pa.field("timestamp", pa.timestamp("us", tz="UTC")),
    ]
)

EVALUATION_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("options", pa.list_(pa.string()), nullable=False),
        pa.field("answer", pa.int32(), nullable=False),
        pa.field("subject", pa.string()),
        pa.field("source", pa.string(), nullable=False),
    ]
)

REJECTED_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("record", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Normalised:
    """Rows in ``SCHEMA`` (role evaluation: ``EVALUATION_SCHEMA``), and what was refused and why.

    ``not_listed`` counts rows that were left out as in none of the languages their source lists.
    """

    rows: pa.Table
    rejected: pa.Table
    not_listed: int = 0


def row_id(language: str, prompt: str, response: str | None) -> str:
    """Content hash of a row: 32 hex digits of blake2b over language, prompt and response."""
    text = "\x1f".join((language, prompt, response or ""))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def to_rows(
    records: list[dict[str, Any]] | pa.Table,
    *,
    format: str = "auto",  # noqa: A002 - the name of the key in the config
    role: Role,
    language: str | None,
    source: str,
    first_row: int = 0,
    max_chars: int = MAX_CHARS,
) -> Normalised:
    """Turn records of any known format into rows; a record that cannot be one is kept aside.

    Args:
        records: Records as read, in one format.
        format: Name of the format, or ``auto`` to recognise it from the columns.
        role: What the rows are for. ``auxiliary`` and ``train`` need a response, ``usage`` drops
            it, ``evaluation`` needs multiple choice.
        language: Fills in where a record names none; it overrides nothing.
        source: Where the records come from, kept with each row.
        first_row: Number of the first record in its file, for the rejected table.
        max_chars: Longest prompt or response accepted, in characters.

    Raises:
        UserError: The format is not known, is not recognised or does not suit the role, or
            ``language`` is not known.
    """
    if isinstance(records, pa.Table):
        records = as_records(records)
    fill = languages.normalise(language) if language else None
    schema = EVALUATION_SCHEMA if role == "evaluation" else SCHEMA
    rows: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    if records:
        reader = _Reader(_format(format, role, records), role, fill, source, max_chars)
        for number, record in enumerate(records, first_row):
            try:
                rows.append(reader.row(record))
            except RejectedRecordError as reason:
                shown = repr(record)[:_MAX_SHOWN]
                rejected.append(
                    {"source": source, "row": number, "reason": str(reason), "record": shown}
                )
    return Normalised(
        pa.Table.from_pylist(rows, schema=schema),
        pa.Table.from_pylist(rejected, schema=REJECTED_SCHEMA),
    )


def as_records(table: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows of an Arrow table as dicts, timestamps as microseconds.

    Arrow refuses to turn nanoseconds into a ``datetime`` where pandas is not installed. A cell with
    a date that Python has none for becomes a text that says so.
    """
    for i, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            coarse = pa.timestamp("us", tz=field.type.tz)
            table = table.set_column(i, field.name, table.column(i).cast(coarse, safe=False))
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except OverflowError:
        columns = [[_cell(cell) for cell in column] for column in table.columns]
        names = table.schema.names
        rows = [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]
    return rows


def _cell(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except OverflowError:
        return "a date outside the years 1 to 9999"


def _format(name: str, role: Role, records: list[dict[str, Any]]) -> Format:
    if name == "auto":
        name = detect_format(set[str]().union(*records))
    known = formats.find_format(name)
    if role == "evaluation" and not known.multiple_choice:
        fitting = ", ".join(f.name for f in formats.FORMATS.values() if f.multiple_choice)
        raise UserError(
            f"format {name} has no answer options; role evaluation needs one of {fitting}"
        )
    return known


class _Reader:
    """Turns one record after the other into a row; remembers the languages it has looked up."""

    def __init__(
        self, format_: Format, role: Role, fill: str | None, source: str, max_chars: int
    ) -> None:
        self._format = format_
        self._role = role
        self._fill = fill
        self._source = source
        self._max_chars = max_chars
        self._languages: dict[tuple[str | None, ...], str | UserError] = {}

    def row(self, record: dict[str, Any]) -> dict[str, Any]:
        fields = self._format.read(record)
        asked = fields.asked if self._role == "usage" else None
        prompt = self._checked("prompt", [fields.prompt if asked is None else asked])[0]
        language = self._language(fields)
        if self._role == "evaluation":
            options = self._checked("options", fields.options)
            identity = row_id(language, prompt, "\x1f".join(options))
            own = {"question": prompt, "options": options, "answer": fields.answer}
        else:
            response = None
            if self._role != "usage":
                response = self._checked("response", [fields.response])[0]
            identity = row_id(language, prompt, response)
            own = {
                "prompt": prompt,
                "response": response,
                "weight": formats.weight(record),
                "timestamp": formats.timestamp(record),
            }
        subject = formats.subject(record)
        if subject is not None:
            self._checked("subject", [subject])
        return {
            "id": identity,
            "language": language,
            "subject": subject,
            "source": self._source,
            **own,
        }

    def _checked(self, what: str, texts: Iterable[str | None]) -> list[str]:
        checked = []
        for text in texts:
            if text is None or not text.strip():
                raise RejectedRecordError(f"no {what} text")
            if len(text) > self._max_chars:
                raise RejectedRecordError(
                    f"{what} has {len(text)} characters, more than {self._max_chars}"
                )
            try:
                text.encode()
            except UnicodeEncodeError:
                # JSON can spell half of a surrogate pair, which neither Arrow nor a hash can take.
                raise RejectedRecordError(f"{what} has a lone surrogate: no Unicode text") from None
            checked.append(text)
        return checked

    def _language(self, fields: Fields) -> str:
        named = (fields.language or None, fields.language_code or None, fields.script or None)
        if not named[0] and not named[1]:
            if self._fill is None:
                raise RejectedRecordError("no language in the record and none given for its source")
            return self._fill
        found = self._languages.get(named)
        if found is None:
            found = self._languages[named] = _look_up(*named)
        if isinstance(found, UserError):
            raise RejectedRecordError(str(found))
        return found


def _look_up(name: str | None, code: str | None, script: str | None) -> str | UserError:
    """Our code, or the error: an unknown language is slow to find, and may come in every row."""
    try:
        tag = languages.normalise(code or name or "", script)
    except UserError as error:
        return error
    if name and code and not script:
        # Aya gives both kinds of Chinese the code zho and tells them apart in the name only.
        named = languages.find(name)
        if named and named.startswith(f"{tag}-"):
            return named
    return tag
