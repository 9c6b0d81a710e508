"""Errors that are the user's to mend: one line, no traceback, exit code 2."""


class UserError(Exception):
    """The input or configuration is wrong.

    The message is one line that names the file, row or key and says what was expected.
    """
