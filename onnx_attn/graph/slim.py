"""A copy of a model without its weights: for checks and inference that need no numbers, at no memory's cost."""

from __future__ import annotations

import math

import onnx
from onnx import helper

SMALL = 64
"""Elements up to which a tensor may matter as a number (a shape, an axis, a scale) and is kept."""


def slim_copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every initializer of more than SMALL elements turned into an input of its type and shape."""
    slim = onnx.ModelProto(ir_version=max(proto.ir_version, 4))
    slim.opset_import.extend(proto.opset_import)
    slim.functions.extend(proto.functions)
    graph, original = slim.graph, proto.graph
    graph.name = original.name or "graph"
    graph.node.extend(original.node)
    graph.input.extend(original.input)
    graph.output.extend(original.output)
    graph.value_info.extend(original.value_info)
    declared = {value.name for value in original.input}
    for tensor in original.initializer:
        if math.prod(tensor.dims) <= SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in declared:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return slim
