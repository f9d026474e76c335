"""Where a report is written, as JSON or as a page: looked at before any work, so that none is done for nothing."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from onnx_attn.errors import OutputError, UsageError, one_line


def check_place(
    path: str | PathLike[str], taken: Iterable[str | PathLike[str]], kind: str, begins: bytes, option: str = ""
) -> None:
    """A place where a file can be written, and that holds nothing but an older one of its kind.

    taken: models and other files of the same run. kind, begins: what the file is called, and what each of its kind begins with.

    Raises OutputError; UsageError for what would be lost.
    """
    place, label = Path(path), f"{option} {path}".strip()
    if place.resolve() in [Path(other).resolve() for other in taken]:
        raise UsageError(f"{label}: is a file of this very run; give the {kind} a name of its own")
    try:
        if place.is_dir() or not place.parent.is_dir():
            raise OutputError(f"{path}: the {kind} cannot be written there; name a file in a folder that exists")
        if place.is_file() and place.open("rb").read(len(begins)).lower() not in (b"", begins):
            raise UsageError(f"{label}: holds something that is no {kind} and would be lost; choose another name")
    except OSError as error:
        raise OutputError(f"{path}: the {kind} cannot be written there ({one_line(error)})") from error


def write_text(path: str | PathLike[str], text: str, kind: str) -> None:
    """Raises OutputError."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: the {kind} cannot be written ({one_line(error)}); choose another place") from error
