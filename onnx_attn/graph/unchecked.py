"""What onnx.checker lets pass, and nothing can read: found before anything trips over it."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from onnx_attn.graph.edit import subgraphs

ELEMENTS = frozenset(TensorProto.DataType.values())


def unreadable(proto: onnx.ModelProto) -> str | None:
    """Why a model cannot be read, in words; None if it can."""
    versions: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if versions.setdefault(domain, entry.version) != entry.version:
            return f"it imports two versions of the domain '{domain or 'ai.onnx'}'"
    for graph in _graphs(proto):
        if (reason := _unreadable_values(graph)) is not None:
            return reason
    for node in _nodes(proto):
        names = (node.name, node.op_type, node.domain, *node.input, *node.output)
        if not all(isinstance(name, str) for name in names):
            return _NO_TEXT
        if node.op_type == "Constant" and len(node.attribute) != 1 and node.domain in ("", "ai.onnx"):
            return f"the Constant that makes '{', '.join(node.output)}' has {len(node.attribute)} values"
    return None


_NO_TEXT = "it holds a name that is no UTF-8 text"
"""protobuf hands out such a name as bytes."""


def _unreadable_values(graph: onnx.GraphProto) -> str | None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if not isinstance(value.name, str):
            return _NO_TEXT
        if value.type.tensor_type.elem_type not in ELEMENTS:
            return f"'{value.name}' has elements of no known type ({value.type.tensor_type.elem_type})"
    return None if all(isinstance(tensor.name, str) for tensor in graph.initializer) else _NO_TEXT


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph, and all bodies."""
    yield proto.graph
    for node in _nodes(proto):
        if node.attribute:
            yield from subgraphs(node)


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of the model, in bodies and functions too."""
    stack = [proto.graph.node, *(function.node for function in proto.functions)]
    while stack:
        for node in stack.pop():
            yield node
            if node.attribute:
                stack.extend(graph.node for graph in subgraphs(node))
