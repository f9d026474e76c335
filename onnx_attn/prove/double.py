"""A cut in float64: with rounding out of the way, two spellings of the same mathematics agree to 1e-7 and not to 1e-3.

Or in float32, for operators that a runtime has in no wider type.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_attn.graph.load import copied
from onnx_attn.graph.weights import to_array

FLOATS = (TensorProto.DOUBLE, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def widened(model: onnx.ModelProto, wide: int = TensorProto.DOUBLE) -> onnx.ModelProto:
    """A copy in which every floating-point input, weight, constant and cast is of the type `wide`."""
    double = copied(model)
    graph = double.graph
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in FLOATS:
            value.type.tensor_type.elem_type = wide
    for tensor in graph.initializer:
        _widen(tensor, wide)
    _widen_nodes(graph.node, wide)
    for function in double.functions:
        _widen_nodes(function.node, wide)
    return double


def _widen(tensor: onnx.TensorProto, to: int) -> None:
    if tensor.data_type in FLOATS:
        values = to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(to))
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _widen_nodes(nodes: Iterable[onnx.NodeProto], wide: int) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in FLOATS:
                attribute.i = wide
            elif attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t, wide)
            elif node.op_type == "Constant" and attribute.name == "value_float" and not attribute.ref_attr_name:
                tensor = numpy_helper.from_array(np.asarray(attribute.f, helper.tensor_dtype_to_np_dtype(wide)))
                attribute.CopyFrom(helper.make_attribute("value", tensor))
            elif attribute.type == onnx.AttributeProto.GRAPH:
                _widen_nodes(attribute.g.node, wide)
                for tensor in attribute.g.initializer:
                    _widen(tensor, wide)
