"""What onnx.checker lets pass, and nothing can read: found before anything trips over it."""

from __future__ import annotations

import math

import onnx
from onnx import AttributeProto, TensorProto, defs, numpy_helper

from onnx_attn.graph.element import bytes_of
from onnx_attn.graph.everywhere import all_graphs, all_nodes

ELEMENTS = frozenset(TensorProto.DataType.values())


def unreadable(proto: onnx.ModelProto) -> str | None:
    """Why a model cannot be read, in words; None if it can."""
    versions: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if versions.setdefault(domain, entry.version) != entry.version:
            return f"it imports two versions of the domain '{domain or 'ai.onnx'}'"
    for function in proto.functions:
        if function.domain in ("", "ai.onnx") and defs.has(function.name):
            # ONNX Runtime 1.31.1 and onnx's reference run the operator, onnx's inliner puts the function there.
            return f"its function '{function.name}' has the name of a standard operator; give it a domain of its own"
    for graph in all_graphs(proto):
        if (reason := _unreadable_values(graph)) is not None:
            return reason
    needed = {(f.domain, f.name): wanted for f in proto.functions if (wanted := _of_constants(f))}
    for node in all_nodes(proto):
        asked = needed.get((node.domain, node.op_type))
        if asked and (left := asked - {each.name for each in node.attribute}):
            return (
                f"the call that makes '{', '.join(node.output)}' does not say '{min(left)}', which a Constant in it is"
            )
        names = (node.name, node.op_type, node.domain, *node.input, *node.output, *(a.name for a in node.attribute))
        if not all(isinstance(name, str) for name in names):
            return _NO_TEXT
        if node.op_type == "Constant" and len(node.attribute) != 1 and node.domain in ("", "ai.onnx"):
            return f"the Constant that makes '{', '.join(node.output)}' has {len(node.attribute)} values"
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR and attribute.t.data_type not in ELEMENTS:
                return f"'{', '.join(node.output)}' has elements of no known type ({attribute.t.data_type})"
            if attribute.type == AttributeProto.TENSOR and _has_more_data(attribute.t):
                return f"'{', '.join(node.output)}' has more data than its shape says"
    return None


def _of_constants(function: onnx.FunctionProto) -> set[str]:
    """The attributes that a call has to give, since a Constant is what they are, and there is no default."""
    constants = (node for node in function.node if node.op_type == "Constant")
    wanted = {each.ref_attr_name for node in constants for each in node.attribute if each.ref_attr_name}
    return wanted - {each.name for each in function.attribute_proto}


_NO_TEXT = "it holds a name that is no UTF-8 text"
"""protobuf hands out such a name as bytes."""


def _unreadable_values(graph: onnx.GraphProto) -> str | None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        sizes = (dim.dim_param for dim in value.type.tensor_type.shape.dim)
        if not all(isinstance(name, str) for name in (value.name, *sizes)):
            return _NO_TEXT
        if value.type.tensor_type.elem_type not in ELEMENTS:
            return f"'{value.name}' has elements of no known type ({value.type.tensor_type.elem_type})"
    for tensor in graph.initializer:
        if not isinstance(tensor.name, str):
            return _NO_TEXT
        if tensor.data_type not in ELEMENTS:
            return f"'{tensor.name}' has elements of no known type ({tensor.data_type})"
        if _has_more_data(tensor):
            return f"'{tensor.name}' has more data than its shape says"
    return None


LARGE = 2**16
"""Bytes from which on a tensor's data are not copied to count them."""


def _has_more_data(tensor: TensorProto) -> bool:
    """Whether a tensor holds more numbers than its shape says; that there are too few, the checker sees."""
    if tensor.data_type in (TensorProto.UNDEFINED, TensorProto.STRING) or tensor.data_location == TensorProto.EXTERNAL:
        return False
    if not tensor.HasField("raw_data"):
        try:
            numpy_helper.to_array(tensor)
        except ValueError:
            return True
        return False
    size = bytes_of(tensor.data_type, math.prod(tensor.dims))
    if size < LARGE:
        return len(tensor.raw_data) > size
    # Beside the data there are but names and numbers of a shape.
    return tensor.ByteSize() > size + LARGE
