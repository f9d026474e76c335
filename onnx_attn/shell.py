"""What every command shares: errors as one line and an exit code, a console, a report as JSON."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from onnx_attn.errors import OnnxAttnError, OutputError, UsageError, one_line, printable
from onnx_attn.json_file import strict


@contextmanager
def errors() -> Iterator[None]:
    """Every error of ours ends as one clear line on stderr and its own exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # A terminal without → or ᵀ is no reason to fail.
    try:
        yield
        sys.stdout.flush()
    except OnnxAttnError as error:
        _fail(str(error), error.exit_code, error)
    except BrokenPipeError as error:
        # The reader has gone, as `head` does; nothing is left to be said, at the interpreter's exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from error
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(f"stdout: cannot be written ({one_line(error)}); free some space, or write elsewhere", 1, error)


def _fail(message: str, code: int, cause: BaseException) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(printable(message))}", highlight=False)
    raise typer.Exit(code) from cause


def console() -> Console:
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 160)


def check_json(path: str | None, *taken: Path, option: str = "--json") -> None:
    """Before any work: the report must have a place, and not that of a model or of any file that is no report."""
    if path is None or path == "-":
        return
    place = Path(path)
    if place.resolve() in [other.resolve() for other in taken]:
        raise UsageError(f"{option} {path}: is one of the models; give the report a name of its own")
    try:
        if place.is_dir() or not place.parent.is_dir():
            raise OutputError(f"{path}: the report cannot be written there; name a file in a folder that exists")
        if place.is_file() and place.open("rb").read(1) not in (b"", b"{"):
            raise UsageError(
                f"{option} {path}: holds something that is no report and would be lost; choose another name"
            )
    except OSError as error:
        raise OutputError(f"{path}: the report cannot be written there ({one_line(error)})") from error


def write_json(report: dict[str, Any], path: str | None) -> bool:
    """Write the report where it was asked for; True if that is stdout, which then holds nothing else."""
    if path is None:
        return False
    text = json.dumps(strict(report), indent=2, allow_nan=False)
    if path == "-":
        print(text)
        return True
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: the report cannot be written ({one_line(error)}); choose another place") from error
    return False
