"""Write a model whole or not at all: into a folder of its own beside the target, then by renaming.

A process can be killed between any two steps, and another may write to the same output. So there is one step that counts: the
renaming of the model's file. External data lies in a file that is called by what is in it; it is in place before, is never
written over, and what only the replaced model needed goes after.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from onnx_attn.errors import OutputError, one_line
from onnx_attn.graph.everywhere import all_tensors
from onnx_attn.graph.weights import (
    SMALLEST_EXTERNAL,
    bring_in,
    chunks,
    is_apart,
    is_past_protobuf,
    nbytes,
    place_of,
    refer,
)

try:
    import fcntl
except ImportError:  # Windows: runs to one output are told apart by nothing there.
    fcntl = None  # type: ignore[assignment]

ALIGNED = 64
"""Bytes at whose multiples weights begin in a data file, so that runtimes can use them where they are mapped."""

DIGITS = 12
"""Of the digest in a data file's name."""


def check_output(output: Path, model: Path | None) -> None:
    """Raise OutputError early: the folder must exist, and the output must be no input, folder, link, pipe or device."""
    if output.is_dir():
        raise OutputError(f"{output}: is a directory; name the file to write")
    if not output.parent.is_dir():
        raise OutputError(f"{output}: folder '{output.parent}' does not exist; create it first")
    if model is not None and _same(output, model):
        raise OutputError(f"{output}: is the input itself, which is never changed; choose another name")
    if output.is_symlink() or (output.exists() and not output.is_file()):
        raise OutputError(
            f"{output}: is a link or a device, which a file would take the place of; name the file to write"
        )


def check_data(output: Path, data_files: Iterable[Path]) -> None:
    """Raise OutputError if the input keeps its own weights in the output, or in a file that is the output's by its name."""
    for data in data_files:
        if _same(output, data) or (_same(output.parent, data.parent) and _is_data_of(output, data.name)):
            raise OutputError(f"{output}: '{data.name}' holds the input's own weights; choose another name with -o")


def _is_data_of(output: Path, name: str) -> bool:
    """Whether a file is the external data of a model at `output`, by its name: with a digest, or as former versions had it."""
    return re.fullmatch(rf"{re.escape(output.name)}(\.[0-9a-f]{{{DIGITS}}})?\.data", name) is not None


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
    """Save `model` at `path`, weights beside it in `NAME.<digest>.data` if `external` or if it is past protobuf's 2 GB.

    The weights that go there are given up: `model` refers to the file afterwards.
    """
    try:
        external = external or is_past_protobuf(model)
        initializers = list(model.graph.initializer)  # Kept, so that the ids stay their own.
        apart = {id(tensor) for tensor in initializers} if external else set()
        bring_in(tensor for tensor in all_tensors(model) if id(tensor) not in apart)
        if external:
            _write_data(model, path)
        onnx.save_model(model, str(path))
    except (OSError, ValueError, EncodeError) as error:
        raise OutputError(f"{path.name}: cannot be written ({one_line(error)})") from error


def _write_data(model: onnx.ModelProto, path: Path) -> None:
    """Write the larger weights to a data file, one after the other, and make their tensors refer to it; what lay at one place
    before does so again."""
    digest, written = hashlib.sha256(), 0
    places: list[tuple[onnx.TensorProto, int, int]] = []
    known: dict[tuple[Path, int, int], int] = {}
    draft = path.with_name(f"{path.name}.data")
    with draft.open("wb") as file:
        for tensor in model.graph.initializer:
            length = nbytes(tensor)
            if length < SMALLEST_EXTERNAL:
                bring_in([tensor])
                continue
            if is_apart(tensor) and (offset := known.get(place_of(tensor))) is not None:
                places.append((tensor, offset, length))
                continue
            padding = bytes(-written % ALIGNED)
            for piece in chain([padding], chunks(tensor)):
                file.write(piece)
                digest.update(piece)
            offset = written + len(padding)
            known |= {place_of(tensor): offset} if is_apart(tensor) else {}
            places.append((tensor, offset, length))
            written = offset + length
            tensor.ClearField("raw_data")
    if not places:
        draft.unlink()
        return
    name = f"{path.name}.{digest.hexdigest()[:DIGITS]}.data"
    draft.rename(path.with_name(name))
    for tensor, offset, length in places:
        refer(tensor, name, offset, length)


def commit(staged_path: Path, output: Path) -> None:
    """Move what was staged into place, data first: whoever opens `output` finds the old model or the new one, with its data.

    Raises OutputError if it cannot be; what stood there is unchanged then.
    """
    try:
        data_files = [path for path in sorted(staged_path.parent.iterdir()) if _is_data_of(staged_path, path.name)]
        for path in (*data_files, staged_path):
            _sync(path)
        with _alone_in(output.parent):
            _put_in_place(staged_path, output, data_files)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({one_line(error)}); what stood there is unchanged") from error


def _put_in_place(staged_path: Path, output: Path, data_files: Iterable[Path]) -> None:
    replaced, placed = _data_of(output), set()
    try:
        for data in data_files:
            if _place(data, output.parent / data.name):
                placed.add(data.name)
        _sync_folder(output.parent)
        os.replace(staged_path, output)
    except OSError:
        _remove(output.parent, placed - _data_of(output))
        raise
    _sync_folder(output.parent)
    _remove(output.parent, replaced - _data_of(output))


def _place(data: Path, target: Path) -> bool:
    """Move a data file to `target`, unless it is there; returns whether it was moved. Raises OSError, and writes over nothing,
    if something else is there."""
    if not os.path.lexists(target):
        os.replace(data, target)
        return True
    if target.is_symlink() or not target.is_file() or not filecmp.cmp(data, target, shallow=False):
        raise FileExistsError(f"'{target.name}' is there and holds something else; remove it")
    return False


def _data_of(output: Path) -> set[str]:
    """Names of the files in which the model at `output` keeps weights, of those that are its own by their name."""
    own = {path.name for path in output.parent.iterdir() if _is_data_of(output, path.name)}
    if not own:
        return own
    try:
        model = onnx.load(output, load_external_data=False)
        tensors = filter(uses_external_data, model.graph.initializer)
        return own & {ExternalDataInfo(tensor).location for tensor in tensors}
    except (OSError, DecodeError, ValueError):  # Nothing is there, or no model: then nothing is known to be its data.
        return set()


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        with suppress(OSError):  # What is left over harms nobody.
            os.unlink(folder / name)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """No other run puts anything in place in this folder meanwhile: it might take away data that is just needed again. The
    system gives the lock up with the process, however that ends; where there are no locks, runs are not told apart."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make names in a folder outlast a power cut, where the system can: two renamings reach the disk in their order."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
