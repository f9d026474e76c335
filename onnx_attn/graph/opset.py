"""Raise a model's opset, so that operators of later ones can be written.

onnx's version converter is what knows how operators changed. It drops local functions (their calls stay, and no runtime loads
the result), metadata, doc strings, annotations and training info, and leaves bodies of control flow as they were. So functions
are inlined before, models with bodies are refused, and of what it returns only the nodes are taken, those that did not change
as the very messages that they were. Weights never pass through it.
"""

from __future__ import annotations

import onnx
from onnx import helper, inliner, version_converter

from onnx_attn.errors import one_line
from onnx_attn.graph.edit import subgraphs
from onnx_attn.graph.slim import slim_copy

LEAST_OPSET = 13
"""The first in which Split and Unsqueeze take sizes and axes as inputs, as all that is written here has them."""


def opset_of(proto: onnx.ModelProto) -> int:
    """Of the standard's domain, which has two names; 0 where the model says none."""
    return max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def raise_opset(proto: onnx.ModelProto, opset: int) -> str | None:
    """Raise `proto` in place; None if done, else in words why the model was left as it is."""
    if any(True for node in proto.graph.node for _ in subgraphs(node)):
        return "bodies of If, Loop and Scan cannot be raised"
    slim = slim_copy(proto)
    try:
        if slim.functions:
            slim = inliner.inline_local_functions(slim)
        raised = version_converter.convert_version(slim, opset)
    except (RuntimeError, ValueError) as error:  # the converter's own errors are of these
        return f"onnx's version converter: {one_line(error)}"
    _take_nodes(proto, slim, raised)
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    proto.ir_version = max(
        proto.ir_version, helper.find_min_ir_version_for(list(proto.opset_import), ignore_unknown=True)
    )
    return None


def _take_nodes(proto: onnx.ModelProto, before: onnx.ModelProto, raised: onnx.ModelProto) -> None:
    """The raised nodes in place of the model's own, and the constants that came with them; `before`: with functions inlined."""
    originals = {tuple(node.output): node for node in proto.graph.node}
    nodes = []
    for node in raised.graph.node:
        original = originals.get(tuple(node.output))
        if original is not None and _contents(original) == _contents(node):
            node = original
        elif original is not None and original.op_type == node.op_type:
            node.doc_string = original.doc_string
            node.metadata_props.extend(original.metadata_props)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        nodes.append(copy)
    known = {tensor.name for tensor in proto.graph.initializer}
    for tensor in (*before.graph.initializer, *raised.graph.initializer):
        if tensor.name not in known:
            known.add(tensor.name)
            proto.graph.initializer.append(tensor)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    del proto.functions[:]


def _contents(node: onnx.NodeProto) -> tuple[object, ...]:
    attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
    return node.op_type, node.domain, tuple(node.input), attributes
