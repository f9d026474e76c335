"""Which sites are alike, so that they share the compiler's answer: the same operators on the same types and shapes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import onnx

from onnx_attn.graph.edit import subgraphs
from onnx_attn.graph.weights import is_apart
from onnx_attn.search.ask import Question

FEW = 64
"""Bytes of a constant whose numbers count, as those of a shape do; of larger ones only type and shape."""


def digest(question: Question) -> str:
    """Of a piece's structure, whatever its values are called."""
    found, numbers = hashlib.sha256(), dict[str, int]()

    def number(name: str) -> int:
        return numbers.setdefault(name, len(numbers)) if name else -1

    graph = question.model.graph
    for value in graph.input:
        shape = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        found.update(repr((number(value.name), value.type.tensor_type.elem_type, shape)).encode())
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
    return told + tensor.raw_data if not is_apart(tensor) and len(tensor.raw_data) <= FEW else told


def _attributes(node: onnx.NodeProto) -> Iterator[bytes]:
    inner = next(iter(subgraphs(node)), None)
    if inner is not None:
        yield inner.SerializeToString(
            deterministic=True
        )  # Bodies have names of their own: they are alike if they are the same.
        return
    yield from sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
