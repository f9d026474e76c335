"""The stored numbers of a model: parameters, and the bytes that they take."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import onnx
from onnx import TensorProto, helper

from onnx_attn.graph.edit import subgraphs
from onnx_attn.graph.element import bytes_of

INDICES = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.STRING})
"""Types of shapes, indices and masks."""


def parameters(model: onnx.ModelProto) -> dict[str, Any]:
    """Numbers in stored tensors of more than one, those of shapes and indices left out; each tensor once, whoever reads it, in
    bodies and Constant nodes too. An initializer that is an input as well counts: its value is a default.

    `bytes` are those of the parameters, as they are stored; `stored_bytes` those of all stored tensors.
    """
    count = own = every = 0
    types: dict[str, int] = {}
    dequantised = {node.input[0] for node in _nodes(model.graph) if node.op_type == "DequantizeLinear"}
    for name, elem_type, dims in _stored(model.graph):
        elements = math.prod(dims)
        size = bytes_of(elem_type, elements) if elem_type != TensorProto.STRING else 0
        every += size
        if elements < 2 or (elem_type in INDICES and name not in dequantised):
            continue
        count, own = count + elements, own + size
        kind = TensorProto.DataType.Name(elem_type).lower()
        types[kind] = types.get(kind, 0) + elements
    return {"count": count, "bytes": own, "by_type": types, "stored_bytes": every}


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    stack = [graph]
    while stack:
        for node in stack.pop().node:
            yield node
            if node.attribute:
                stack.extend(subgraphs(node))


def _stored(graph: onnx.GraphProto) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Name, type and shape of every stored tensor."""
    stack = [graph]
    while stack:
        current = stack.pop()
        yield from ((each.name, each.data_type, tuple(each.dims)) for each in current.initializer)
        for each in current.sparse_initializer:
            yield each.values.name, each.values.data_type, tuple(each.values.dims)
        for node in current.node:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                value = helper.get_attribute_value(node.attribute[0])
                if isinstance(value, onnx.TensorProto):
                    yield node.output[0], value.data_type, tuple(value.dims)
            elif node.attribute:
                stack.extend(subgraphs(node))
