"""A model's structure up to names: every output as what it is computed from."""

from __future__ import annotations

import onnx
from onnx import numpy_helper


def canonical(model: onnx.ModelProto) -> list[int]:
    """For each output a number that two models share whose outputs are the same operators on the same weights and inputs."""
    known = {value.name: hash(("input", value.name)) for value in model.graph.input}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        known[tensor.name] = hash(("weight", str(array.dtype), array.shape, array.tobytes()))
    for node in model.graph.node:
        attributes = tuple(sorted(each.SerializeToString(deterministic=True) for each in node.attribute))
        inputs = tuple(known[name] if name else None for name in node.input)
        for place, name in enumerate(node.output):
            known[name] = hash((node.domain, node.op_type, attributes, inputs, place))
    return [known[value.name] for value in model.graph.output]
