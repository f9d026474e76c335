"""A cut in float64: with rounding out of the way, two spellings of the same mathematics agree to 1e-7 and not to 1e-3."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def to_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every floating-point input, weight, constant and cast is float64."""
    double = onnx.ModelProto()
    double.CopyFrom(model)
    graph = double.graph
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in FLOATS:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in graph.initializer:
        _widen(tensor)
    _widen_nodes(graph.node)
    for function in double.functions:
        _widen_nodes(function.node)
    return double


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in FLOATS:
        wide = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
        tensor.CopyFrom(wide)


def _widen_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in FLOATS:
                attribute.i = TensorProto.DOUBLE
            elif attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t)
            elif node.op_type == "Constant" and attribute.name == "value_float" and not attribute.ref_attr_name:
                tensor = numpy_helper.from_array(np.asarray(attribute.f, np.float64))
                attribute.CopyFrom(helper.make_attribute("value", tensor))
            elif attribute.type == onnx.AttributeProto.GRAPH:
                _widen_nodes(attribute.g.node)
                for tensor in attribute.g.initializer:
                    _widen(tensor)
