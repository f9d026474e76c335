"""bfloat16 on a processor that has no kernels for it: float32 that is rounded behind every node.

ONNX Runtime's CPU provider (1.31.1) has bfloat16 for Cast and hardly anything else. GPUs multiply bfloat16 and sum in float32, so
a node in float32 on rounded numbers, whose result is rounded again, is what they compute.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper
from onnx.shape_inference import infer_shapes

from onnx_attn.graph.weights import to_array

BFLOAT16, FLOAT = TensorProto.BFLOAT16, TensorProto.FLOAT


def standing_in(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy that computes the same without bfloat16; its inputs and outputs of that type are float32. None where the model has
    no bfloat16, or has bodies, whose values are not looked at.

    Raises ValueError where types cannot be inferred.
    """
    try:
        copy = infer_shapes(inliner.inline_local_functions(model) if model.functions else model)
    except Exception as error:  # onnx raises classes of its own making
        raise ValueError(f"types cannot be inferred: {error}") from error
    narrow = _narrow_values(copy.graph)
    if not narrow or any(attribute.HasField("g") for node in copy.graph.node for attribute in node.attribute):
        return None
    nodes: list[onnx.NodeProto] = []
    for node in copy.graph.node:
        _widen_attributes(node)
        nodes.append(node)
        for position, name in enumerate(node.output):
            if name in narrow:
                wide, rounded = f"{name}/bfloat16_wide", f"{name}/bfloat16_rounded"
                node.output[position] = wide
                nodes.append(helper.make_node("Cast", [wide], [rounded], to=BFLOAT16))
                nodes.append(helper.make_node("Cast", [rounded], [name], to=FLOAT))
    del copy.graph.node[:], copy.graph.value_info[:]
    copy.graph.node.extend(nodes)
    for tensor in copy.graph.initializer:
        _widen(tensor)
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.elem_type == BFLOAT16:
            value.type.tensor_type.elem_type = FLOAT
    return copy


def _narrow_values(graph: onnx.GraphProto) -> set[str]:
    values = (*graph.value_info, *graph.input, *graph.output)
    narrow = {value.name for value in values if value.type.tensor_type.elem_type == BFLOAT16}
    return narrow | {tensor.name for tensor in graph.initializer if tensor.data_type == BFLOAT16}


def _widen_attributes(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name == "to" and node.op_type == "Cast" and attribute.i == BFLOAT16:
            attribute.i = FLOAT
        elif attribute.type == onnx.AttributeProto.TENSOR:
            _widen(attribute.t)


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == BFLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(to_array(tensor).astype(np.float32), tensor.name))
