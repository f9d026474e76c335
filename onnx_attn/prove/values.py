"""Input values that somebody else has made: read from a file, and held against what a model wants."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from onnx_attn.errors import InputError, one_line


def read_values(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as .npz ({one_line(error)}); write it with numpy.savez") from error


def check_values(proto: onnx.ModelProto, inputs: dict[str, np.ndarray], origin: str) -> dict[str, np.ndarray]:
    """Given values fit the model's inputs by name, type and shape, or there is an error that says where not."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    wanted = {value.name: value.type.tensor_type for value in proto.graph.input if value.name not in weights}
    if set(inputs) != set(wanted):
        raise InputError(
            f"{origin}: the values are named {', '.join(inputs) or 'nothing'}, the model's inputs "
            f"{', '.join(wanted)}; name them so"
        )
    for name, tensor_type in wanted.items():
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor_type.elem_type))
        shape, dims = inputs[name].shape, tensor_type.shape.dim
        if inputs[name].dtype != dtype:
            raise InputError(f"{origin}: '{name}' is {inputs[name].dtype}, the model wants {dtype}; give it so")
        declared = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims]
        if len(declared) != len(shape) or any(
            isinstance(d, int) and d != n for d, n in zip(declared, shape, strict=True)
        ):
            given, asked = ("x".join(map(str, sizes)) for sizes in (shape, declared))
            raise InputError(f"{origin}: '{name}' has shape {given}, the model wants {asked}; give it so")
    return inputs
