"""What this package raises: one class for everything a user can mend, with the exit code that the command line uses."""

from __future__ import annotations

from typing import Any


class OnnxAttnError(Exception):
    """Base of all errors that are the caller's to mend. The message is one line: what, where, and the way out."""

    exit_code = 1


class InputError(OnnxAttnError):
    """The model cannot be read, is not valid, or cannot be run (exit code 1)."""


class OutputError(OnnxAttnError):
    """The output cannot be written; nothing half-written is left behind (exit code 1)."""


class UsageError(OnnxAttnError):
    """The request itself makes no sense, such as an unknown target (exit code 2)."""

    exit_code = 2


class ExpectationError(OnnxAttnError):
    """`expect` or `expect_all` was given and not met; nothing is written (exit code 3). `report`: what was found, if it is
    there."""

    exit_code = 3

    def __init__(self, message: str, report: dict[str, Any] | None = None):
        super().__init__(message)
        self.report = report


class DifferenceError(OnnxAttnError):
    """The rewritten model still differs from the original after roll-back; nothing is written (exit code 4)."""

    exit_code = 4


def one_line(error: BaseException, limit: int = 300) -> str:
    """A foreign exception as one line, cut to `limit` characters: a library's page of text becomes part of a message."""
    lines = [line.strip(" =>-") for line in str(error).splitlines()]
    text = "; ".join(line for line in lines if line) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable(text: str) -> str:
    """Text from a model as a terminal may see it: without escape sequences, line breaks and other control characters."""
    return "".join(char if char.isprintable() else "�" for char in text)
