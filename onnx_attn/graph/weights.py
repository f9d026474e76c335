"""The numbers of stored tensors, which may lie in a file of their own until somebody asks for them.

A model of many gigabytes has to be rewritten without being held: the tensor of a weight that lies in a data file stays a
reference, whose location is a whole path from `load` on, so that it can be followed wherever the message is copied to. Whoever
wants numbers asks here; what is run, or handed to somebody else, is a copy with the numbers in it (`bring_in`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from onnx import helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from onnx_attn.errors import InputError, OutputError, one_line
from onnx_attn.graph.element import bits_of, bytes_of

PROTOBUF_LIMIT = 2**31 - 1
"""Bytes of the largest message that can be written."""

SMALLEST_EXTERNAL = 1024
"""Bytes from which on a weight goes to the data file, where there is one: as onnx has it."""

CHUNK = 2**23
"""Bytes that are copied at a time."""


def is_apart(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's numbers lie in a file."""
    return bool(uses_external_data(tensor))


def refer(tensor: onnx.TensorProto, location: str | Path, offset: int, length: int) -> None:
    """Make the tensor say where its bytes lie, in place of holding them."""
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def place_of(tensor: onnx.TensorProto) -> tuple[Path, int, int]:
    """File, offset and length of a tensor that is apart."""
    info = ExternalDataInfo(tensor)
    return Path(info.location), info.offset or 0, info.length or 0


def nbytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor that is apart, or of its raw data; 0 where it is stored otherwise."""
    return place_of(tensor)[2] if is_apart(tensor) else len(tensor.raw_data)


def is_past_protobuf(model: onnx.ModelProto) -> bool:
    """Whether a model is too large to be one message with its weights."""
    return is_past(model, PROTOBUF_LIMIT)


def is_past(model: onnx.ModelProto, limit: int) -> bool:
    """Whether a model with its weights has more bytes than that."""
    try:
        apart = sum(nbytes(tensor) for tensor in model.graph.initializer if is_apart(tensor))
        return bool(model.ByteSize() + apart > limit)
    except EncodeError:  # Some versions of protobuf cannot even tell the size of what is past it.
        return True


def declared_bytes(tensor: onnx.TensorProto) -> int | None:
    """Bytes that type and dimensions ask for; None where the type has no fixed size, or a dimension is negative."""
    if any(dim < 0 for dim in tensor.dims) or bits_of(tensor.data_type) is None:
        return None
    return bytes_of(tensor.data_type, math.prod(tensor.dims))


def chunks(tensor: onnx.TensorProto) -> Iterator[bytes]:
    """The tensor's bytes, a piece at a time. Raises InputError where its file cannot be read any more."""
    yield from _read(tensor, CHUNK) if is_apart(tensor) else [tensor.raw_data]


def content(tensor: onnx.TensorProto) -> bytes:
    """A digest of the tensor's numbers, in a file or in the message; raw bytes have another than numbers that are listed."""
    digest = hashlib.sha256()
    raw = is_apart(tensor) or tensor.HasField("raw_data")
    for piece in chunks(tensor) if raw else [numpy_helper.from_array(to_array(tensor)).SerializeToString()]:
        digest.update(piece)
    return digest.digest()


def to_array(tensor: onnx.TensorProto) -> np.ndarray:
    """The tensor's numbers. Read at every call where they are apart: nobody keeps them here.

    Raises InputError where the file cannot be read any more.
    """
    if not is_apart(tensor):
        return numpy_helper.to_array(tensor)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    data = b"".join(_read(tensor))
    if dtype.newbyteorder("<") != dtype or bits_of(tensor.data_type) != 8 * dtype.itemsize:
        return numpy_helper.to_array(_inner(tensor, data))
    return np.frombuffer(data, dtype).reshape(tuple(tensor.dims))


def put_apart(array: np.ndarray, name: str, path: Path) -> onnx.TensorProto:
    """A tensor with these numbers, appended to the file at `path`; types whose elements share bytes stay in the message.

    Raises OutputError where the file cannot be written.
    """
    if bits_of(helper.np_dtype_to_tensor_dtype(array.dtype)) != 8 * array.dtype.itemsize:
        return numpy_helper.from_array(array, name)
    tensor = onnx.TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
    try:
        with path.open("ab") as file:
            offset = file.tell()
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    except OSError as error:
        raise OutputError(
            f"weight '{name}' cannot be kept beside the output ({one_line(error)}); make room there"
        ) from error
    refer(tensor, path.absolute(), offset, array.nbytes)
    return tensor


def bring_in(tensors: Iterable[onnx.TensorProto]) -> None:
    """Put the numbers of tensors that are apart into the messages themselves."""
    for tensor in tensors:
        if is_apart(tensor):
            tensor.CopyFrom(_inner(tensor, b"".join(_read(tensor))))


def _inner(tensor: onnx.TensorProto, data: bytes) -> onnx.TensorProto:
    inner = onnx.TensorProto()
    inner.CopyFrom(tensor)
    inner.ClearField("data_location")
    del inner.external_data[:]
    inner.raw_data = data
    return inner


def _read(tensor: onnx.TensorProto, most: int | None = None) -> Iterator[bytes]:
    """What lies in a file, `most` bytes at a time, or in one."""
    path, offset, length = place_of(tensor)
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while length:
                piece = file.read(min(most or length, length))
                if not piece:
                    raise OSError("the file is shorter than it was")
                yield piece
                length -= len(piece)
    except OSError as error:
        raise InputError(
            f"{path}: weight '{tensor.name}' cannot be read ({one_line(error)}); put the data file back and run again"
        ) from error
