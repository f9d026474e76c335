"""Write a model whole or not at all: into a folder of its own beside the target, then by renaming."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from google.protobuf.message import EncodeError
from onnx.external_data_helper import set_external_data

from onnx_attn.errors import OutputError, one_line
from onnx_attn.graph.load import PROTOBUF_LIMIT

SMALLEST_EXTERNAL = 1024
"""Bytes from which on a weight goes to the data file, where there is one: as onnx has it."""


def check_output(output: Path, model: Path | None) -> None:
    """Raise OutputError early: the folder must exist and the output must not be the input or a folder."""
    if output.is_dir():
        raise OutputError(f"{output}: is a directory; name the file to write")
    if not output.parent.is_dir():
        raise OutputError(f"{output}: folder '{output.parent}' does not exist; create it first")
    if model is not None and _same(output, model):
        raise OutputError(f"{output}: is the input itself, which is never changed; choose another name with -o")


def check_data(output: Path, data_files: Iterable[Path]) -> None:
    """Raise OutputError if the output, or the data file beside it, is where the input keeps its own weights."""
    for path in (output, data_path(output)):
        if any(_same(path, data) for data in data_files):
            raise OutputError(f"{output}: '{path.name}' holds the input's own weights; choose another name with -o")


def data_path(path: Path) -> Path:
    """Where a model at `path` keeps external data."""
    return path.with_name(f"{path.name}.data")


def _same(first: Path, second: Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:  # One of them is not there, or no file could have that name.
        return False


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A path to write to, under `output`'s name in a temporary folder; `commit` puts it in place. Cleans up always.

    Raises OutputError if the folder cannot be written.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=".onnx-attn-", dir=output.parent))
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({one_line(error)})") from error
    try:
        yield folder / output.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(model: onnx.ModelProto, path: Path, external: bool) -> None:
    """Save `model` at `path`, weights beside it in `NAME.data` if `external` or if it is past protobuf's 2 GB."""
    external = external or _too_large(model)
    try:
        if external:
            _mark_external(model, data_path(path).name)
        onnx.save_model(model, str(path))
    except (OSError, ValueError, EncodeError) as error:
        raise OutputError(f"{path.name}: cannot be written ({one_line(error)})") from error
    mask = os.umask(0)
    os.umask(mask)
    for file in path.parent.iterdir():
        if file.is_file():
            os.chmod(file, 0o666 & ~mask)  # onnx makes data files that only their owner can read.


def _too_large(model: onnx.ModelProto) -> bool:
    try:
        return model.ByteSize() > PROTOBUF_LIMIT
    except EncodeError:  # Some versions of protobuf cannot even tell the size of what is past it.
        return True


def _mark_external(model: onnx.ModelProto, location: str) -> None:
    """Say that the larger weights go to a data file, which saving then writes.

    Chosen against `save_model(…, save_as_external_data=True)`: onnx 1.23 looks for the data file in the current folder, and
    refuses to write one that is there, wherever the model itself goes.
    """
    for tensor in model.graph.initializer:
        if tensor.HasField("raw_data") and len(tensor.raw_data) >= SMALLEST_EXTERNAL:
            set_external_data(tensor, location)


def commit(staged_path: Path, output: Path) -> None:
    """Move what was staged into place, data first; on failure put back what stood there before."""
    aside = Path(tempfile.mkdtemp(dir=staged_path.parent))
    done: list[Path] = []
    try:
        for path in sorted(staged_path.parent.glob("*"), key=lambda path: path == staged_path):
            if path == aside:
                continue
            with path.open("rb") as file:
                os.fsync(file.fileno())
            target = output.parent / path.name
            if target.exists():
                os.replace(target, aside / path.name)
            done.append(target)
            os.replace(path, target)
    except OSError as error:
        for target in reversed(done):
            target.unlink(missing_ok=True)
            if (aside / target.name).exists():
                os.rename(aside / target.name, target)
        raise OutputError(f"{output}: cannot be written ({one_line(error)}); what stood there is unchanged") from error
