"""What a bug report needs of a model, and nothing that is secret about it: its structure without its weights.

A zip: `model.onnx` with all that is large filled with numbers of no meaning, what `inspect` says of the real one, and versions.
What stays is what decides how a graph is read: names, types, shapes, attributes, small constants, whole numbers and masks.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from onnx_attn.graph.everywhere import all_graphs, all_nodes, all_tensors
from onnx_attn.graph.load import Loaded, copied
from onnx_attn.graph.save import check_output, commit, staged
from onnx_attn.graph.weights import bring_in, declared_bytes, refer, to_array
from onnx_attn.json_file import strict

FEW = 16
"""Elements up to which any tensor stays: a scale, an epsilon, the target of a Reshape."""
MANY = 2**12
"""Elements up to which whole numbers and booleans stay."""
MOST = 2**22
"""Elements up to which a tensor is looked at: one of two numbers at most is a mask, ones or zeros."""
DATA = "model.onnx.data"
FILLER = np.random.default_rng(0).integers(0x30, 0x3C, 2**12, np.uint8).tobytes()
"""Bytes that are small positive numbers in every type, not all the same, and short enough to be packed well. (Zeros would be
read as what they are: a sum with zeros is no mask.)"""
PACKAGES = ("onnx-attn", "onnx", "onnxruntime", "onnx-graphsurgeon", "numpy", "protobuf")


def write_bundle(loaded: Loaded, report: dict[str, Any], output: Path) -> None:
    """Write the bundle whole or not at all. Raises OutputError."""
    check_output(output, Path(loaded.name) if Path(loaded.name).is_file() else None)
    model = copied(loaded.proto)
    largest = _without_weights(model)
    with staged(output) as draft:
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(_entry("model.onnx"), model.SerializeToString(deterministic=True))
            with file.open(_entry(DATA), "w") as data:
                for start in range(0, largest, len(FILLER)):
                    data.write(FILLER[: largest - start])
            for name, document in (("report.json", report), ("versions.json", _versions())):
                file.writestr(_entry(name), json.dumps(strict(document), indent=2, allow_nan=False))
        commit(draft, output)


def _entry(name: str) -> zipfile.ZipInfo:
    """Without the time of day: the same model, the same bytes."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except ImportError:  # Installed under another name, as onnxruntime-gpu is.
            found[package] = "not found"
    return found


def _without_weights(model: onnx.ModelProto) -> int:
    """Fill what is secret with other numbers, which lie outside the file once for all; returns how many bytes of them."""
    del model.metadata_props[:], model.training_info[:]
    model.doc_string = model.producer_version = ""
    graphs, largest = list(all_graphs(model)), 0
    # Kept, so that the ids stay their own. Where the numbers of a sparse tensor stand is structure.
    initializers = [tensor for graph in graphs for tensor in graph.initializer]
    indices = [sparse.indices for graph in graphs for sparse in graph.sparse_initializer]
    apart, places = set(map(id, initializers)), set(map(id, indices))
    for tensor in list(all_tensors(model)):
        size = _secret(tensor) if id(tensor) not in places else 0
        if size and id(tensor) in apart:
            _empty(tensor)
            refer(tensor, DATA, 0, size)
            largest = max(largest, size)
        elif size:
            _empty(tensor)
            tensor.raw_data = (FILLER * (size // len(FILLER) + 1))[:size]
    for described in (*graphs, *model.functions, *all_nodes(model)):
        described.doc_string = ""
        del described.metadata_props[:]
    for node in all_nodes(model):
        for attribute in node.attribute:
            if len(attribute.floats) > FEW:
                attribute.floats[:] = [1.0 / (1 + place % 7) for place in range(len(attribute.floats))]
    return largest


def _secret(tensor: TensorProto) -> int:
    """The bytes of a tensor whose numbers are not for others; 0 where they decide how a graph is read, and stay."""
    if tensor.data_type == TensorProto.STRING:
        return 0
    count, whole = math.prod(tensor.dims), tensor.data_type in (TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL)
    if count <= FEW or (whole and count <= MANY) or (count <= MOST and len(np.unique(to_array(tensor))) <= 2):
        bring_in([tensor])
        return 0
    return declared_bytes(tensor) or 0


def _empty(tensor: TensorProto) -> None:
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "doc_string"):
        tensor.ClearField(field)
