"""The value of a tensor that is computed from weights alone, however many nodes compute it."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from onnx_attn.graph.view import GraphView
from onnx_attn.runtime import CannotRun, Session

MOST_BYTES = 16 * 2**20
"""Of one value. A table of relative positions is small, what it is spread to is not: a fold must not swell the file."""
_RANDOM = frozenset(
    "RandomNormal RandomUniform RandomNormalLike RandomUniformLike Bernoulli Multinomial Dropout".split()
)


def is_constant(view: GraphView, node: gs.Node) -> bool:
    """Whether a node of the main graph computes from weights alone: not from an input or what a caller may replace, not by
    chance, not by a body or a function. Remembered for every node that is looked at, so that asking costs one pass."""
    known, nodes, stack = view.constancy, view.graph.nodes, [view.position(node)]
    while stack:
        position = stack[-1]
        if position not in known:
            verdict, waiting = _verdict(view, nodes[position])
            if verdict is None:
                stack.extend(waiting)
                continue
            known[position] = verdict
        stack.pop()
    return known[view.position(node)]


def _verdict(view: GraphView, node: gs.Node) -> tuple[bool | None, list[int]]:
    """What is known of a node, or the nodes above it that have to be looked at first."""
    if node.op in _RANDOM or node.domain not in ("", "ai.onnx", None):
        return False, []
    if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
        return False, []
    waiting = []
    for tensor in node.inputs:
        producer = view.producer(tensor)
        if producer is None:
            if tensor.name and not (isinstance(tensor, gs.Constant) and view.is_weight(tensor)):
                return False, []
        elif not view.in_main_graph(producer) or (above := view.constancy.get(view.position(producer))) is False:
            return False, []
        elif above is None:
            waiting.append(view.position(producer))
    return (None if waiting else True), waiting


def is_fixed(view: GraphView, tensor: gs.Tensor) -> bool:
    """Whether no input decides a tensor: it is stored, or computed from what is stored."""
    producer = view.producer(tensor)
    if producer is None:
        return view.is_weight(tensor)
    return view.in_main_graph(producer) and is_constant(view, producer)


def constant_value(view: GraphView, tensor: gs.Tensor) -> np.ndarray | None:
    """The numbers of a tensor that no input decides; None if one does, or where they cannot be had."""
    if not is_fixed(view, tensor):
        return None
    if view.producer(tensor) is None:
        return numpy_helper.to_array(view.initializer(tensor.name))
    value = remembered(view, tensor)
    return None if value is None else numpy_helper.to_array(value)


def remembered(view: GraphView, tensor: gs.Tensor) -> onnx.TensorProto | None:
    """`folded`, once a tensor."""
    if tensor.name not in view.folds:
        view.folds[tensor.name] = folded(view, tensor)
    found: onnx.TensorProto | None = view.folds[tensor.name]
    return found


def folded(view: GraphView, tensor: gs.Tensor) -> onnx.TensorProto | None:
    """The value of a tensor whose node is constant, under the tensor's own name, as the model's own nodes compute it in ONNX
    Runtime; None where it is too large or cannot be run."""
    shapes, producer = view.shapes(tensor), view.producer(tensor)
    if shapes is None or len(set(shapes)) != 1 or producer is None:
        return None
    element = view.elem_type(tensor)
    if math.prod(shapes[0]) * helper.tensor_dtype_to_np_dtype(element).itemsize > MOST_BYTES:
        return None
    positions, weights = _ancestors(view, producer)
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


def _ancestors(view: GraphView, node: gs.Node) -> tuple[set[int], dict[str, None]]:
    """Positions of the nodes and names of the weights that a constant node is made of, itself included."""
    positions = {view.position(node)}
    weights: dict[str, None] = {}
    queue = [node]
    while queue:
        for tensor in queue.pop().inputs:
            producer = view.producer(tensor)
            if producer is None:
                weights |= {tensor.name: None} if tensor.name else {}
            elif view.position(producer) not in positions:
                positions.add(view.position(producer))
                queue.append(producer)
    return positions, weights
