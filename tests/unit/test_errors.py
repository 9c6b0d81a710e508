from __future__ import annotations

from collections.abc import Callable

import pytest

from compass_ray.errors import first_line, one_line, root_cause, shown

TRACEBACK = """\x1b[36mray::_fit()\x1b[39m
  File "loop.py", line 1, in train
OSError: s3://key:secret@bucket/rows: no such file Some common causes include: (1) memory

"""


def test_a_uri_is_shown_without_its_credentials() -> None:
    assert shown("s3://key:secret@bucket/a@b") == "s3://bucket/a@b"
    assert shown("read s3://k:s@one and gs://two") == "read s3://one and gs://two"
    assert shown("/home/a@b") == "/home/a@b"


def test_an_error_is_told_by_its_first_line_or_by_all_of_it() -> None:
    error = ValueError("\n  bad   value\n  at s3://key:secret@bucket/a\n")
    assert first_line(error) == "bad   value"
    assert one_line(error) == "bad value at s3://bucket/a"


def test_of_a_traceback_the_cause_is_what_ends_it() -> None:
    assert root_cause(RuntimeError(TRACEBACK)) == "OSError: s3://bucket/rows: no such file"


@pytest.mark.parametrize("tell", [first_line, one_line, root_cause])
@pytest.mark.parametrize("message", ["", " \n "])
def test_an_error_without_a_message_is_told_by_its_type(
    tell: Callable[[BaseException], str], message: str
) -> None:
    assert tell(KeyboardInterrupt(message)) == "KeyboardInterrupt"
