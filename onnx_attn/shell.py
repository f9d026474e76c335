"""What every command shares: errors as one line and an exit code, a console, how loud it is, a report as JSON."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import typer
from rich.console import Console

from onnx_attn.errors import OnnxAttnError, UsageError, one_line
from onnx_attn.json_file import strict
from onnx_attn.progress import listening
from onnx_attn.report.lines import escape, show_seconds
from onnx_attn.report.place import check_place, write_text
from onnx_attn.report.progress_line import Watch, shown

Report: TypeAlias = dict[str, Any]


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
    console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(code) from cause


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Else rich ends the process with exit code 1, though all was done."""
        raise BrokenPipeError


def console(stderr: bool = False) -> Console:
    """What is piped has no colours and no line breaks of ours; under NO_COLOR neither has a terminal bold letters."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return _Console(
        stderr=stderr,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        highlight=False,
        soft_wrap=not terminal,
        width=None if terminal else 160,
    )


class Voice:
    """How a command speaks: its report in full or in short, as JSON, or not at all; and of what it does while it does it."""

    def __init__(self, quiet: bool, verbose: bool, json_path: str | None = None):
        """Raises UsageError for both at once."""
        if quiet and verbose:
            raise UsageError("--quiet and --verbose contradict each other; leave one of them out")
        self._quiet, self._verbose, self._json_path = quiet, verbose, json_path
        self._watch = Watch(console(stderr=True))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Progress while this lasts; what is printed is to be printed afterwards."""
        if self._quiet:
            yield
            return
        with listening(self._watch), shown(self._watch):
            yield

    def tell(self, report: Report, show: Callable[[Report, Console, bool], None]) -> None:
        """Write the report as JSON where that was asked for, and show it to people unless stdout is taken."""
        if write_json(report, self._json_path) or self._quiet:
            return
        show(report, console(), self._verbose)
        if self._verbose and "seconds" not in report:
            show_seconds(self._watch.seconds, console())


def check_json(path: str | None, *taken: Path, option: str = "--json") -> None:
    """Before any work: the report must have a place, and not that of a model or of any file that is no report."""
    if path is not None and path != "-":
        check_place(path, taken, "report", b"{", option)


def write_json(report: Report, path: str | None) -> bool:
    """Write the report where it was asked for; True if that is stdout, which then holds nothing else."""
    if path is None:
        return False
    text = json.dumps(strict(report), indent=2, allow_nan=False)
    if path == "-":
        print(text)
        return True
    write_text(path, text + "\n", "report")
    return False
