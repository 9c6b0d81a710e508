"""The formats that datasets are published in: how each is recognised, and how a record is read.

A format is a pure function from one record to ``Fields``; all of them are in ``FORMATS``. Knows
nothing of Arrow (``records``), of language codes (``languages``), or of files
(``corpora.sources``).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from compass_ray.errors import UserError

Record = Mapping[str, Any]

LETTERS = "ABCDEFGHIJ"
_OPERATOR = frozenset({"system", "developer"})
_ASSISTANT = frozenset({"assistant", "gpt", "chatgpt", "bot", "model"})
# Seconds of year 5138, or milliseconds of 1973: an epoch number above it counts milliseconds.
_FIRST_MILLISECONDS = 100_000_000_000


class RejectedRecordError(Exception):
    """A record that cannot become a row; the message is the reason that is kept beside it."""


@dataclass(frozen=True, slots=True)
class Fields:
    """What a format finds in a record. Text may still be blank; ``options`` only in a question."""

    prompt: str | None
    response: str | None = None
    options: tuple[str, ...] = ()
    answer: int = -1
    language: str | None = None
    language_code: str | None = None
    script: str | None = None


@dataclass(frozen=True, slots=True)
class Format:
    """A converter and the columns that give the format away, each with its alternatives."""

    name: str
    needs: tuple[tuple[str, ...], ...]
    read: Callable[[Record], Fields]
    multiple_choice: bool = False

    def fits(self, columns: set[str]) -> bool:
        return all(columns.intersection(names) for names in self.needs)

    def __str__(self) -> str:
        return f"{self.name} ({', '.join('|'.join(names) for names in self.needs)})"


def text(record: Record, column: str) -> str | None:
    """The text in a column, None where it is absent or null; anything else is refused."""
    value = record.get(column)
    if value is None or isinstance(value, str):
        return value
    raise RejectedRecordError(f"{column} is not text: {_short(value)}")


def _aya(record: Record) -> Fields:
    return Fields(
        text(record, "inputs"),
        text(record, "targets"),
        language=text(record, "language"),
        language_code=text(record, "language_code"),
        script=text(record, "script"),
    )


def _global_mmlu(record: Record) -> Fields:
    return _question(record, [f"option_{letter}" for letter in "abcd"], ("answer",))


def _mmlu_prox(record: Record) -> Fields:
    return _question(record, [f"option_{i}" for i in range(10)], ("answer_index", "answer"))


def _messages(record: Record) -> Fields:
    return _dialogue(record, "messages", role="role", content="content")


def _sharegpt(record: Record) -> Fields:
    return _dialogue(record, "conversations", role="from", content="value")


def _trl(record: Record) -> Fields:
    return Fields(
        _text_or_turns(record, "prompt"),
        _text_or_turns(record, "completion"),
        language=text(record, "language"),
    )


def _alpaca(record: Record) -> Fields:
    prompt = _join([text(record, "instruction") or "", text(record, "input") or ""])
    return Fields(prompt, text(record, "output"), language=text(record, "language"))


def _rows(record: Record) -> Fields:
    return Fields(
        text(record, "prompt"), text(record, "response"), language=text(record, "language")
    )


def _usage(record: Record) -> Fields:
    return Fields(text(record, "text"), language=text(record, "language"))


# In the order they are tried: a format whose columns another one may carry too comes later.
FORMATS: dict[str, Format] = {
    known.name: known
    for known in (
        Format(
            "global_mmlu",
            (("question",), *((f"option_{letter}",) for letter in "abcd"), ("answer",)),
            _global_mmlu,
            multiple_choice=True,
        ),
        Format(
            "mmlu_prox",
            (("question",), ("option_0",), ("option_1",), ("answer_index", "answer")),
            _mmlu_prox,
            multiple_choice=True,
        ),
        Format("aya", (("inputs",), ("targets",)), _aya),
        Format("messages", (("messages",),), _messages),
        Format("sharegpt", (("conversations",),), _sharegpt),
        Format("trl", (("prompt",), ("completion",)), _trl),
        Format("alpaca", (("instruction",), ("output",)), _alpaca),
        Format("rows", (("prompt",),), _rows),
        Format("usage", (("text",),), _usage),
    )
}


def detect_format(columns: Iterable[str]) -> str:
    """Name the format that a dataset with these columns is in.

    Raises:
        UserError: No format fits; lists the columns seen and what each format needs.
    """
    seen = set(columns)
    for known in FORMATS.values():
        if known.fits(seen):
            return known.name
    raise UserError(
        f"columns {', '.join(sorted(seen)) or '(none)'} fit no known format; rename them with "
        f"columns: {{theirs: ours}} to fit one of {'; '.join(map(str, FORMATS.values()))}"
    )


def find_format(name: str) -> Format:
    """The format of that name.

    Raises:
        UserError: There is none; names the nearest one.
    """
    if name in FORMATS:
        return FORMATS[name]
    near = difflib.get_close_matches(name, FORMATS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"format {name!r} is not known; {hint}expected auto, {', '.join(FORMATS)}")


def rename(records: list[dict[str, Any]], columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """Give columns our names (their name → ours); one that has our name already gives way."""
    if not columns:
        return records
    taken = {*columns, *columns.values()}
    return [
        {name: value for name, value in record.items() if name not in taken}
        | {ours: record[theirs] for theirs, ours in columns.items() if theirs in record}
        for record in records
    ]


def subject(record: Record) -> str | None:
    """``subject``, or ``category`` where there is none; blank is none."""
    value = text(record, "subject") or text(record, "category")
    return value if value and value.strip() else None


def weight(record: Record) -> float:
    """``weight``, 1.0 where there is none."""
    value = record.get("weight")
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RejectedRecordError(f"weight is not a number: {_short(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number <= 0:
        raise RejectedRecordError(f"weight is not a finite number above 0: {_short(value)}")
    return number


def timestamp(record: Record) -> datetime | None:
    """``timestamp`` in UTC: ISO text, epoch seconds or milliseconds, a date or a datetime.

    Without a zone it is taken as UTC.
    """
    value = record.get("timestamp")
    if value is None or value == "":
        return None
    try:
        moment = _moment(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError, OSError, TypeError):
        raise RejectedRecordError(
            f"timestamp is not ISO 8601, epoch seconds or milliseconds: {_short(value)}"
        ) from None


def _moment(value: Any) -> datetime:
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    if isinstance(value, str):
        return datetime.fromisoformat(value.strip())
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = value / 1000 if abs(value) >= _FIRST_MILLISECONDS else value
        return datetime.fromtimestamp(seconds, UTC)
    raise TypeError(value)


def _question(record: Record, columns: list[str], answer_columns: tuple[str, ...]) -> Fields:
    """A multiple-choice item; its right option is the response, null options are left out."""
    texts = [text(record, column) or "" for column in columns]
    answer = _answer(record, answer_columns)
    options = tuple(option for option in texts if option.strip())
    if len(options) < 2:
        raise RejectedRecordError(f"only {len(options)} of the options has text; expected two")
    if answer >= len(texts) or not texts[answer].strip():
        raise RejectedRecordError(f"the answer is out of range: option {answer + 1} has no text")
    return Fields(
        text(record, "question"),
        texts[answer],
        options,
        sum(bool(option.strip()) for option in texts[:answer]),
        text(record, "language"),
    )


def _answer(record: Record, columns: tuple[str, ...]) -> int:
    """Index of the right option, given as a letter or counted from 0."""
    column = next((name for name in columns if record.get(name) is not None), columns[0])
    value = record.get(column)
    if isinstance(value, str) and len(value.strip()) == 1 and value.strip().upper() in LETTERS:
        return LETTERS.index(value.strip().upper())
    # Arrow and pandas turn an integer column with nulls into floats.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise RejectedRecordError(f"{column} is neither a letter nor an index from 0: {_short(value)}")


def _dialogue(record: Record, column: str, *, role: str, content: str) -> Fields:
    """A chat: the last turn of the assistant is the response, all turns before it the prompt.

    Turns are joined by a blank line and carry no role labels, because a label is a word of one
    language and would draw the embeddings of all languages towards it. Turns after the last one
    of the assistant are dropped; without an assistant, all turns are the prompt. Turns of
    ``system`` and ``developer`` are dropped too: no user asked them, and the same long text in
    every chat would be all that the embeddings tell.
    """
    value = record.get(column)
    if not isinstance(value, list):
        raise RejectedRecordError(f"{column} is not a list of turns: {_short(value)}")
    turns = _turns(value, column, role=role, content=content)
    last = max((i for i, (who, _) in enumerate(turns) if who in _ASSISTANT), default=len(turns))
    return Fields(
        _join(said for _, said in turns[:last]),
        turns[last][1] if last < len(turns) else None,
        language=text(record, "language"),
    )


def _text_or_turns(record: Record, column: str) -> str | None:
    value = record.get(column)
    if not isinstance(value, list):
        return text(record, column)
    return _join(said for _, said in _turns(value, column, role="role", content="content"))


def _turns(value: list[Any], column: str, *, role: str, content: str) -> list[tuple[str, str]]:
    """Who said what, without the turns of ``_OPERATOR``."""
    turns = []
    for i, turn in enumerate(value):
        if not isinstance(turn, Mapping):
            raise RejectedRecordError(f"{column}[{i}] is not a turn: {_short(turn)}")
        who, said = turn.get(role), turn.get(content)
        if not isinstance(who, str) or not isinstance(said, str):
            raise RejectedRecordError(
                f"{column}[{i}] needs {role} and {content} as text: {_short(turn)}"
            )
        speaker = who.strip().lower()
        if speaker not in _OPERATOR:
            turns.append((speaker, said))
    return turns


def _join(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part.strip())


def _short(value: Any) -> str:
    """One line for a message; ``repr`` also escapes what cannot be written as UTF-8."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:79]}…"
