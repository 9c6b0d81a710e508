"""Errors that are the user's to mend, and any error told on one line, without credentials."""

from __future__ import annotations

import re


class UserError(Exception):
    """The input or configuration is wrong: exit code 2 and no traceback.

    The message is one line that names the file, row or key and says what was expected.
    """


def shown(uri: str) -> str:
    """A URI, or a text with URIs in it, as it may be shown and stored: without credentials."""
    return re.sub(r"(?<=://)[^/@]*@", "", uri)


def first_line(error: BaseException) -> str:
    """First line of the message, or the error's type where there is no message.

    For libraries that put what happened first, and then details or advice.
    """
    return next(iter(_lines(error)), type(error).__name__)


def one_line(error: BaseException) -> str:
    """The whole message on one line, or the error's type where there is no message."""
    return " ".join(" ".join(_lines(error)).split()) or type(error).__name__


def root_cause(error: BaseException) -> str:
    """Last line of the message: Ray's messages are tracebacks, and what happened ends them."""
    last = next(reversed(_lines(error)), type(error).__name__)
    # Of a worker that died, Ray goes on to list what usually kills processes.
    return last.partition(" Some common causes")[0]


def _lines(error: BaseException) -> list[str]:
    lines = (line.strip() for line in shown(str(error)).splitlines())
    return [line for line in lines if line]
