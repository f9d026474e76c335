"""Export a reference to an ONNX file with either exporter of torch."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from models.census import count_sites
from models.quiet import fastpath_off, quiet
from models.reference import Attn, Built, Exporter, Size
from models.registry import build

DEFAULT_OPSET: dict[Exporter, int] = {"torchscript": 17, "dynamo": 18}

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_SOURCE_LINE = re.compile(r"""File "[^"]+", line \d|(?:/[^/\s"'\],]+)+\.py\b|\b[A-Za-z]:\\\\""")
"""A line of a stack trace, or an absolute path to a source file."""


class ExportError(RuntimeError):
    """torch cannot export the model, or not to a valid file; the text is one line."""


@dataclass(frozen=True)
class ExportResult:
    """A written file, the true count of attention sites of its model, and the time the export took."""

    path: Path
    true_sites: int
    seconds: float
    exporter: Exporter
    opset: int


def _first_line(error: BaseException) -> str:
    lines = (line.strip() for line in _COLOURS.sub("", str(error)).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def _message(error: BaseException) -> str:
    """torch's own first line, and that of the error beneath it where there is one."""
    line = _first_line(error)
    cause = error.__cause__
    return line if cause is None else f"{line} ({type(cause).__name__}: {_first_line(cause)})"


def _torchscript(built: Built, path: Path, opset: int, dynamic: bool) -> None:
    torch.onnx.export(
        built.module,
        built.args,
        str(path),
        dynamo=False,
        opset_version=opset,
        do_constant_folding=True,
        input_names=built.input_names,
        output_names=built.output_names,
        dynamic_axes=built.dynamic_axes if dynamic else None,
    )


def _dynamo(built: Built, path: Path, opset: int, dynamic: bool) -> None:
    torch.onnx.export(
        built.module,
        built.args,
        str(path),
        dynamo=True,
        opset_version=opset,
        external_data=False,
        verbose=False,
        input_names=built.input_names,
        output_names=built.output_names,
        dynamic_shapes=built.dynamic_shapes if dynamic else None,
    )


def _places() -> tuple[str, ...]:
    """Directories of this machine that a file for others has no business to name."""
    every = {str(Path.cwd()), sys.prefix, sys.base_prefix, str(Path.home()), tempfile.gettempdir()}
    return tuple(f"{place.rstrip('/')}/" for place in sorted(every) if len(place) > len("/usr"))


def _messages(message: Any) -> Iterator[Any]:
    """The message and all beneath it: graphs, nodes, values, functions, subgraphs."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in value if isinstance(value, Sequence) else (value,):
            yield from _messages(part)


def strip_machine(model: onnx.ModelProto) -> int:
    """Remove, in place, the metadata and doc strings that hold stack traces or paths of this machine.

    Everything else that the exporter notes (module names, the graph's signature) stays. Returns how many
    entries were removed.
    """
    places, removed = _places(), 0

    def local(text: str) -> bool:
        return _SOURCE_LINE.search(text) is not None or any(place in text for place in places)

    for message in list(_messages(model)):
        if local(getattr(message, "doc_string", "")):
            message.ClearField("doc_string")
            removed += 1
        notes: Any = getattr(message, "metadata_props", ())
        for index in reversed(range(len(notes))):
            if notes[index].key.endswith("stack_trace") or local(notes[index].value):
                del notes[index]
                removed += 1
    return removed


def _clean(path: Path) -> None:
    model = onnx.load(path)
    if strip_machine(model):
        onnx.save(model, path)


def _check(path: Path, opset: int) -> None:
    """Refuse a file that torch wrote without an error, yet is not what was asked for.

    The dynamo exporter keeps its own opset where it cannot convert to another; the TorchScript exporter
    can mix half and single precision, which no runtime loads.
    """
    imports = onnx.load(path, load_external_data=False).opset_import
    written = next((entry.version for entry in imports if entry.domain in ("", "ai.onnx")), 0)
    if written != opset:
        raise ExportError(f"torch wrote opset {written} where opset {opset} was asked for")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"torch wrote an invalid file: {_first_line(error)}") from error


def export_built(built: Built, path: Path, exporter: Exporter, opset: int, dynamic: bool = False) -> None:
    """Export what is built already.

    Raises ExportError with one line, and leaves no file, where torch cannot or its file is not valid.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write = _torchscript if exporter == "torchscript" else _dynamo
    try:
        with torch.no_grad(), fastpath_off(), quiet():
            write(built, path, opset, dynamic)
        _check(path, opset)
        _clean(path)
    except ExportError:
        path.unlink(missing_ok=True)
        raise
    except Exception as error:  # the exporters raise errors of every class
        path.unlink(missing_ok=True)
        raise ExportError(_message(error)) from error


def export(
    name: str,
    path: str | Path,
    exporter: Exporter = "torchscript",
    opset: int | None = None,
    dynamic: bool = False,
    half: bool = False,
    attn: Attn = "sdpa",
    size: Size = "full",
) -> ExportResult:
    """Build a reference by name, count its sites and write it to a file."""
    path = Path(path)
    chosen = DEFAULT_OPSET[exporter] if opset is None else opset
    with quiet():
        built = build(name, size, attn, half, dynamic)
        sites = count_sites(built.module, built.args)
    start = time.perf_counter()
    export_built(built, path, exporter, chosen, dynamic)
    return ExportResult(path, sites, time.perf_counter() - start, exporter, chosen)
