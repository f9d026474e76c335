"""The value of a tensor that is computed from weights alone, however many nodes compute it."""

from __future__ import annotations

import math

import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from onnx_attn.graph.edit import subgraphs
from onnx_attn.graph.view import GraphView
from onnx_attn.runtime import CannotRun, Session

MOST_NODES = 4096
MOST_BYTES = 16 * 2**20
"""Of one value. A table of relative positions is small, what it is spread to is not: a fold must not swell the file."""
_RANDOM = frozenset(
    "RandomNormal RandomUniform RandomNormalLike RandomUniformLike Bernoulli Multinomial Dropout".split()
)


def folded(view: GraphView, tensor: gs.Tensor) -> onnx.TensorProto | None:
    """The tensor's value under its own name, as the model's own nodes compute it in ONNX Runtime; None where it depends on
    an input, on chance or on what an enclosing body says, is too large, or cannot be run."""
    shapes = view.shapes(tensor)
    if shapes is None or len(set(shapes)) != 1 or view.producer(tensor) is None:
        return None
    element = view.elem_type(tensor)
    if math.prod(shapes[0]) * helper.tensor_dtype_to_np_dtype(element).itemsize > MOST_BYTES:
        return None
    found = _ancestors(view, tensor)
    if found is None:
        return None
    positions, weights = found
    nodes = [view.proto.graph.node[position] for position in sorted(positions)]
    output = helper.make_tensor_value_info(tensor.name, element, shapes[0])
    graph = helper.make_graph(nodes, "constant", [], [output], [view.initializer(name) for name in weights])
    model = onnx.ModelProto(graph=graph, ir_version=view.proto.ir_version)
    model.opset_import.extend(view.proto.opset_import)
    try:
        (value,) = Session(model, tensor.name).run({})
    except CannotRun:
        return None
    return numpy_helper.from_array(value, tensor.name)


def _ancestors(view: GraphView, tensor: gs.Tensor) -> tuple[set[int], dict[str, None]] | None:
    """Positions of the nodes and names of the weights that a tensor is made of; None if anything else is among them."""
    positions: set[int] = set()
    weights: dict[str, None] = {}
    queue = [tensor]
    while queue:
        current = queue.pop()
        node = view.producer(current)
        if node is None:
            if not current.name:
                continue
            if not isinstance(current, gs.Constant) or not view.is_weight(current):
                return None
            weights[current.name] = None
            continue
        if not view.in_main_graph(node) or node.op in _RANDOM or node.domain not in ("", "ai.onnx", None):
            return None
        position = view.position(node)
        if position in positions:
            continue
        positions.add(position)
        if len(positions) > MOST_NODES or any(True for _ in subgraphs(view.proto.graph.node[position])):
            return None
        queue.extend(node.inputs)
    return positions, weights
