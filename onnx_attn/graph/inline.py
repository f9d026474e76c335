"""Put the bodies of some of a model's functions where they are called: onnx's own inliner, and names as they were."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

import onnx
from onnx import inliner, shape_inference

from onnx_attn.errors import InputError, one_line
from onnx_attn.graph.slim import slim_copy

_SUFFIX = re.compile(r"__\d+$")
"""What the inliner appends to every name of a call."""

FunctionId = tuple[str, str]


def inline_functions(proto: onnx.ModelProto, functions: Collection[FunctionId]) -> None:
    """Inline the calls of these functions, given as (domain, name), in `proto` itself.

    The inliner sees the model without its weights, so that it copies none. A node keeps the name that it has in its function,
    where no other node has it.
    """
    try:
        inlined = inliner.inline_selected_functions(slim_copy(proto), list(functions))
    except RuntimeError as error:
        raise InputError(f"functions cannot be inlined: {one_line(error)}; export without functions") from error
    before = {node.name for node in proto.graph.node}
    _restore_names(inlined.graph, before)
    del proto.graph.node[:]
    proto.graph.node.extend(inlined.graph.node)
    known = {value.name for value in proto.graph.value_info}
    proto.graph.value_info.extend(value for value in inlined.graph.value_info if value.name not in known)
    del proto.functions[:]
    proto.functions.extend(inlined.functions)
    present = {entry.domain for entry in proto.opset_import}
    proto.opset_import.extend(entry for entry in inlined.opset_import if entry.domain not in present)


def inline_operators(proto: onnx.ModelProto, operators: Collection[str]) -> bool:
    """Put what onnx's own definitions say in place of these operators in `proto` itself; False if it has none, where a type is
    not known that a definition depends on, or where a definition does not fit types that the operator takes (V in half
    precision beside a Q in float32)."""
    if not any(node.op_type in operators and node.domain in ("", "ai.onnx") for node in proto.graph.node):
        return False
    slim = shape_inference.infer_shapes(slim_copy(proto), data_prop=True)
    known = [("", operator) for operator in operators]
    try:
        inlined = inliner.inline_selected_functions(slim, known, inline_schema_functions=True)
        shape_inference.infer_shapes(inlined, check_type=True)
    except (RuntimeError, shape_inference.InferenceError):
        return False
    del proto.graph.node[:]
    proto.graph.node.extend(inlined.graph.node)
    return True


def _restore_names(graph: onnx.GraphProto, before: Collection[str]) -> None:
    fresh = [node for node in graph.node if node.name not in before and _SUFFIX.search(node.name)]
    counts = Counter(_SUFFIX.sub("", node.name) for node in fresh)
    for node in fresh:
        name = _SUFFIX.sub("", node.name)
        if counts[name] == 1 and name not in before:
            node.name = name


def bind(node: onnx.NodeProto, given: dict[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """A function-body node with its attribute references replaced by what the call gives."""
    if not any(a.ref_attr_name for a in node.attribute):
        return node
    bound = onnx.NodeProto()
    bound.CopyFrom(node)
    del bound.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            bound.attribute.append(attribute)
        elif attribute.ref_attr_name in given:
            copy = onnx.AttributeProto()
            copy.CopyFrom(given[attribute.ref_attr_name])
            copy.name = attribute.name
            bound.attribute.append(copy)
    return bound
