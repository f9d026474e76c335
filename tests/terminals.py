"""Streams that say they are terminals, and a command that writes to them."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnx_attn.cli import app
from onnx_attn.report import progress_line

ESCAPE = "\x1b"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Both streams are terminals of 80 columns, and nobody waits for a line of progress."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(progress_line, "PATIENCE", 0.0)
    return monkeypatch


def shown(terminal: pytest.MonkeyPatch, *arguments: str | Path, piped: str = "") -> tuple[str, str]:
    """What stands on stdout and stderr, of which one may be a pipe."""
    streams = {name: io.StringIO() if name == piped else Terminal() for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        terminal.setattr(sys, name, stream)
    app([str(argument) for argument in arguments], standalone_mode=False)
    return streams["stdout"].getvalue(), streams["stderr"].getvalue()
