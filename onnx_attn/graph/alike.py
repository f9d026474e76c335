"""Which pieces of models are alike, so that what is found of one holds of the other: the same operators on the same types and
shapes, whatever values are called and weights hold."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping

import onnx

from onnx_attn.graph.edit import subgraphs
from onnx_attn.graph.weights import to_array

FEW = 16
"""Elements of a constant whose numbers count, as those of a shape or a scale do; of larger ones only type and shape."""


def digest(model: onnx.ModelProto, told: Mapping[str, object] | None = None) -> str:
    """Of a piece's structure. told: of its inputs by name, what counts beside the type and shape that it gives them."""
    found, numbers = hashlib.sha256(), dict[str, int]()

    def number(name: str) -> int:
        return numbers.setdefault(name, len(numbers)) if name else -1

    graph = model.graph
    for value in graph.input:
        shape = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        more = (told or {}).get(value.name)
        found.update(repr((number(value.name), value.type.tensor_type.elem_type, shape, more)).encode())
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for name in node.input:
            if name in weights and name not in numbers:
                found.update(_weight(weights[name]))
        inputs, outputs = [number(name) for name in node.input], [number(name) for name in node.output]
        found.update(repr((node.domain, node.op_type, inputs, outputs)).encode())
        for part in _attributes(node):
            found.update(part)
    return found.hexdigest()


def _weight(tensor: onnx.TensorProto) -> bytes:
    told = repr((tensor.data_type, list(tensor.dims))).encode()
    return told + to_array(tensor).tobytes() if math.prod(tensor.dims) <= FEW else told


def _attributes(node: onnx.NodeProto) -> Iterator[bytes]:
    inner = next(iter(subgraphs(node)), None)
    if inner is not None:
        # Bodies have names of their own: they are alike if they are the same.
        yield inner.SerializeToString(deterministic=True)
        return
    yield from sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
