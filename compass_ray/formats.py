"""The formats that datasets are published in: how each is recognised, and how a record is read.

A format is a pure function from one record to ``Fields``; all of them are in ``FORMATS``. Knows
nothing of Arrow (``records``), of language codes (``languages``), or of files
(``corpora.sources``).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from compass_ray.errors import UserError

Record = Mapping[str, Any]
_Turn = tuple[str, str]

LETTERS = "ABCDEFGHIJ"
_OPERATOR = frozenset({"system", "developer"})
_ASSISTANT = frozenset({"assistant", "gpt", "chatgpt", "bot", "model"})
_TOOL = frozenset({"tool", "function"})
# Seconds of year 5138, or milliseconds of 1973: an epoch number above it counts milliseconds, one
# a thousand times as large microseconds, and so on.
_FIRST_MILLISECONDS = 100_000_000_000
# An epoch of this century in text. Other numbers of digits are a date and a time run together.
_EPOCH_TEXT = re.compile(r"(?:\d{9,10}|\d{13}|\d{16}|\d{19})(?:\.\d*)?", re.ASCII)


class RejectedRecordError(Exception):
    """A record that cannot become a row; the message is the reason that is kept beside it."""


@dataclass(frozen=True, slots=True)
class Fields:
    """What a format finds in a record. Text may still be blank; ``options`` only in a question.

    ``asked`` is what the user asks last, where that is not the prompt that the response answers.
    """

    prompt: str | None
    response: str | None = None
    asked: str | None = None
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
    return _dialogue(record, "messages")


def _sharegpt(record: Record) -> Fields:
    return _dialogue(record, "conversations")


def _trl(record: Record) -> Fields:
    prompt, asked = _prompt(record)
    return Fields(prompt, _completion(record), asked, language=text(record, "language"))


def _alpaca(record: Record) -> Fields:
    prompt = _join([text(record, "instruction") or "", text(record, "input") or ""])
    return Fields(prompt, text(record, "output"), language=text(record, "language"))


def _rows(record: Record) -> Fields:
    prompt, asked = _prompt(record)
    return Fields(prompt, text(record, "response"), asked, language=text(record, "language"))


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
    """``subject``, or ``category`` where there is none; a number of a class becomes its digits.

    Blank is none, and so is what cannot name one: no row is refused for it.
    """
    for column in ("subject", "category"):
        value = record.get(column)
        number = _whole(value)
        name = value if number is None else str(number)
        if isinstance(name, str) and name.strip():
            return name
    return None


def weight(record: Record) -> float:
    """``weight``, 1.0 where there is none; text that is a number counts as that number."""
    value = record.get("weight")
    if value is None or value == "":
        return 1.0
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
            raise ValueError(value)
        number = float(value)
    except ValueError:
        raise RejectedRecordError(f"weight is not a number: {_short(value)}") from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number <= 0:
        raise RejectedRecordError(f"weight is not a finite number above 0: {_short(value)}")
    return number


def timestamp(record: Record) -> datetime | None:
    """``timestamp`` in UTC: ISO text, a date, a datetime, or an epoch number, also as text.

    An epoch number counts seconds, or by its size milli-, micro- or nanoseconds. Without a zone a
    timestamp is taken as UTC.
    """
    value = record.get("timestamp")
    if value is None or value == "":
        return None
    try:
        moment = _moment(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError, OSError, TypeError):
        raise RejectedRecordError(
            f"timestamp is not ISO 8601 or an epoch number: {_short(value)}"
        ) from None


def _moment(value: Any) -> datetime:
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    if isinstance(value, str):
        value = value.strip()
        if _EPOCH_TEXT.fullmatch(value):
            return _moment(float(value) if "." in value else int(value))
        if value.isdecimal() and len(value) > 8:
            # Python reads 20260101123 as a date, a separator 1 and an hour.
            raise ValueError(value)
        return datetime.fromisoformat(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        scales = (10**exponent for exponent in (0, 3, 6))
        scale = next((s for s in scales if abs(value) < _FIRST_MILLISECONDS * s), 10**9)
        return datetime.fromtimestamp(value / scale, UTC)
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
        options=options,
        answer=sum(bool(option.strip()) for option in texts[:answer]),
        language=text(record, "language"),
    )


def _answer(record: Record, columns: tuple[str, ...]) -> int:
    """Index of the right option, given as a letter, or counted from 0, also in text."""
    column = next((name for name in columns if record.get(name) is not None), columns[0])
    value = record.get(column)
    if isinstance(value, str) and len(mark := value.strip().upper()) == 1:
        if mark in LETTERS:
            return LETTERS.index(mark)
        value = int(mark) if mark.isdecimal() else value
    index = _whole(value)
    if index is not None and index >= 0:
        return index
    raise RejectedRecordError(f"{column} is neither a letter nor an index from 0: {_short(value)}")


def _whole(value: Any) -> int | None:
    """An integer, also as a float: Arrow and pandas make those of a column with nulls."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _dialogue(record: Record, column: str) -> Fields:
    """A chat: the last turn of the assistant is the response, all turns before it the prompt.

    Turns are joined by a blank line and carry no role labels, because a label is a word of one
    language and would draw the embeddings of all languages towards it. Turns after the last one
    of the assistant are dropped; without an assistant, all turns are the prompt. Turns of
    ``system`` and ``developer`` are dropped too: no user asked them, and the same long text in
    every chat would be all that the embeddings tell. So are turns without text, such as calls of
    tools. What is asked are the turns up to the last one of a user.
    """
    turns = _turns(record, column)
    last = max((i for i, (who, _) in enumerate(turns) if who in _ASSISTANT), default=len(turns))
    prompt, asked = _text_of(turns[:last]), _asked(turns)
    return Fields(
        prompt,
        turns[last][1] if last < len(turns) else None,
        None if asked == prompt else asked,
        language=text(record, "language"),
    )


def _prompt(record: Record) -> tuple[str | None, str | None]:
    """``prompt`` as text or turns, and what the user asks last in it where that is less."""
    if not isinstance(record.get("prompt"), list):
        return text(record, "prompt"), None
    turns = _turns(record, "prompt")
    prompt, asked = _text_of(turns), _asked(turns)
    return prompt, None if asked == prompt else asked


def _completion(record: Record) -> str | None:
    if not isinstance(record.get("completion"), list):
        return text(record, "completion")
    return _text_of(_turns(record, "completion"))


def _turns(record: Record, column: str) -> list[_Turn]:
    """Who said what, without the turns of ``_OPERATOR`` and those without text."""
    value = record.get(column)
    if not isinstance(value, list):
        raise RejectedRecordError(f"{column} is not a list of turns: {_short(value)}")
    turns = []
    for i, turn in enumerate(value):
        if not isinstance(turn, Mapping):
            raise RejectedRecordError(f"{column}[{i}] is not a turn: {_short(turn)}")
        # Arrow gives a turn all the keys that any turn of the file has.
        who = turn.get("from") if turn.get("role") is None else turn["role"]
        content = turn.get("value") if turn.get("content") is None else turn["content"]
        said = _said(content)
        if not isinstance(who, str) or said is None:
            raise RejectedRecordError(
                f"{column}[{i}] needs role and content, or from and value, as text: {_short(turn)}"
            )
        speaker = who.strip().lower()
        if speaker not in _OPERATOR and said.strip():
            turns.append((speaker, said))
    return turns


def _said(content: Any) -> str | None:
    """The text of a turn: of a list of parts, those that are text; None if it is neither."""
    if content is None:
        return ""
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        return _join(part for part in texts if isinstance(part, str))
    return content if isinstance(content, str) else None


def _asked(turns: list[_Turn]) -> str:
    """All turns up to the last one of a user."""
    others = _ASSISTANT | _TOOL
    end = max((i for i, (who, _) in enumerate(turns, 1) if who not in others), default=0)
    return _text_of(turns[:end])


def _text_of(turns: list[_Turn]) -> str:
    return _join(said for _, said in turns)


def _join(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part.strip())


def _short(value: Any) -> str:
    """One line for a message; ``repr`` also escapes what cannot be written as UTF-8."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:79]}…"
