"""External data as a file says it: every reference is checked before a byte is read, and followed only into the model's folder.

A model is often somebody else's. Its references may name any file of this machine, a pipe that nobody writes to, or more bytes
than there are. onnx checks some of that while it reads (1.23: paths out of the folder, links, bounds), for initializers and
attributes, but not for sparse tensors, and not what a tensor's type and dimensions claim.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx

from onnx_attn.errors import InputError, printable
from onnx_attn.graph.everywhere import all_tensors
from onnx_attn.graph.slim import SMALL
from onnx_attn.graph.weights import PROTOBUF_LIMIT, SMALLEST_EXTERNAL, bring_in, declared_bytes, is_apart, refer

MOST_ELEMENTS_PER_BYTE = 4
"""Types of two bits have so many."""


class _Refused(Exception):
    """Why a reference is not followed, and the way out."""


def locate(
    proto: onnx.ModelProto, path: Path, name: str | None = None, folders: Mapping[str, Path] | None = None
) -> tuple[Path, ...]:
    """Check all references of a model that lies at `path`; returns the files that they are to.

    name: of the model in messages, if not its path. folders: those that locations are in, if not the model's own.

    The larger initializers of the main graph stay where they lie, and refer to it by a whole path (`graph.weights`); the numbers
    of everything else are brought in.

    Raises InputError for what leaves the folder, is no file, or is not there in full; and for tensors, external or not, that
    claim more elements than they have bytes.
    """
    own, files, name = Path(os.path.abspath(path.parent)), dict[Path, None](), name or str(path)
    initializers = list(proto.graph.initializer)  # Kept, so that the ids stay their own.
    main = {id(tensor) for tensor in initializers}
    inner, brought = [], 0
    for tensor in all_tensors(proto):
        if not is_apart(tensor):
            _check_claim(tensor, name)
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        folder = (folders or {}).get(entries.get("location", ""), own)
        try:
            place, offset, length = _reference(tensor, entries, folder)
        except _Refused as reason:
            raise InputError(f"{name}: weight '{printable(tensor.name)}' lies in external data {reason}") from None
        refer(tensor, place, offset, length)
        files[path.parent / place.relative_to(own) if folder == own else place] = None
        if id(tensor) not in main or length < SMALLEST_EXTERNAL or math.prod(tensor.dims) <= SMALL:
            brought += length
            inner.append(tensor)
    if brought > PROTOBUF_LIMIT:
        raise InputError(
            f"{name}: tensors outside the main graph's initializers, such as '{printable(inner[-1].name)}', refer to more than "
            f"2 GB of external data, which no file could hold with them; make them initializers of the main graph"
        )
    bring_in(inner)
    return tuple(files)


def _check_claim(tensor: onnx.TensorProto, name: str) -> None:
    """(The size of the message is known without a copy of its bytes; whether they are exactly as many is onnx.checker's part.)"""
    if math.prod(tensor.dims) > MOST_ELEMENTS_PER_BYTE * tensor.ByteSize():
        raise InputError(
            f"{name}: weight '{printable(tensor.name)}' claims {math.prod(tensor.dims)} elements, and has {tensor.ByteSize()} "
            f"bytes; export it again"
        )


def _reference(tensor: onnx.TensorProto, entries: Mapping[str, str], folder: Path) -> tuple[Path, int, int]:
    """Whole path, offset and length of what a tensor refers to. Raises _Refused."""
    if len(entries) < len(tensor.external_data):
        raise _Refused("and says twice where; export it again")
    place = folder / _relative(entries.get("location", ""))
    size = _size_of_file(place, folder)
    wanted = declared_bytes(tensor)
    if wanted is None:
        raise _Refused(f"and has a type or dimensions that cannot lie there: {list(tensor.dims)}; export it again")
    offset = _number(entries, "offset", 0)
    length = _number(entries, "length", wanted)
    if length != wanted:
        raise _Refused(f"of {length} bytes, and its type and dimensions ask for {wanted}; export it again")
    if offset + length > size:
        raise _Refused(
            f"file '{_shown(entries['location'])}' at byte {offset}, {length} bytes long, but the file has {size}; put the "
            f"whole file beside the model"
        )
    return place, offset, length


def _number(entries: Mapping[str, str], key: str, default: int) -> int:
    text = entries.get(key, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise _Refused(f"with {key} '{_shown(text)}', which is no count of bytes; export it again")
    return int(text)


def _shown(text: str) -> str:
    text = printable(text)
    return text if len(text) <= 100 else f"{text[:99]}…"


def _relative(location: str) -> Path:
    """The location, if it is one in the model's folder as it is written."""
    way_out = "put the data file into the model's folder, and its name into the model"
    windows, parts = PureWindowsPath(location), PurePosixPath(location).parts
    if not parts:
        raise _Refused(f"without a location; {way_out}")
    leaves = ".." in windows.parts or windows.drive or windows.root
    if leaves or "\\" in location or not location.isprintable():
        raise _Refused(f"file '{_shown(location)}', which is not plainly in its folder and is not followed; {way_out}")
    return Path(*parts)


def _size_of_file(place: Path, folder: Path) -> int:
    """Bytes of a plain file that no link leads to."""
    location = place.relative_to(folder)
    told = _shown(str(location))
    try:
        for part in (*reversed(location.parents[:-1]), location):
            found = os.lstat(folder / part)
            if stat.S_ISLNK(found.st_mode):
                raise _Refused(
                    f"file '{told}', and '{part}' is a link, which is not followed; put the data file itself, and no link, "
                    f"into the model's folder"
                )
    except FileNotFoundError:
        raise _Refused(f"file '{told}', which is missing; put it beside the model") from None
    except OSError as error:
        raise _Refused(f"file '{told}', which cannot be read ({error.strerror}); put it beside the model") from None
    if not stat.S_ISREG(found.st_mode):
        raise _Refused(f"'{told}', which is no plain file; put the data file itself into the model's folder")
    return found.st_size
