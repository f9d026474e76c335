"""The numbers of a tensor that weights and static sizes decide, though the graph asks for these sizes as the model runs.

A shift mask that is filled in by slices of a map's height is the same whatever the batch is; folding (`views.folding`) leaves it
alone, because nodes above it read an input's shape.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.runtime import CannotRun, Session
from onnx_attn.views.folding import MOST_BYTES, RANDOM, constant_value, is_fixed

MOST_NODES = 1024
"""TorchScript fills in a shift mask by about three hundred."""


def settled_value(view: GraphView, tensor: gs.Tensor) -> np.ndarray | None:
    """The numbers of a tensor, where they are the same whatever the inputs are and whatever their sizes; else None."""
    shapes = view.shapes(tensor)
    if shapes is None or len(set(shapes)) != 1 or math.prod(shapes[0]) * 8 > MOST_BYTES:
        return None
    if is_fixed(view, tensor):
        return constant_value(view, tensor)
    if tensor.name not in view.settled:
        view.settled[tensor.name] = _run(view, tensor)
    return view.settled[tensor.name]


def _run(view: GraphView, tensor: gs.Tensor) -> np.ndarray | None:
    found = _above(view, tensor)
    if found is None:
        return None
    positions, starts = found
    nodes = [view.proto.graph.node[position] for position in sorted(positions)]
    stored = [
        view.initializer(name) if value is None else numpy_helper.from_array(value, name)
        for name, value in starts.items()
    ]
    output = helper.make_tensor_value_info(tensor.name, view.elem_type(tensor), view.worlds[0].shape(tensor.name))
    model = onnx.ModelProto(graph=helper.make_graph(nodes, "settled", [], [output], stored))
    model.ir_version = view.proto.ir_version
    model.opset_import.extend(view.proto.opset_import)
    try:
        value: np.ndarray = Session(model, tensor.name).run({})[0]
    except (CannotRun, ValueError):
        return None
    return value


def _above(view: GraphView, tensor: gs.Tensor) -> tuple[set[int], dict[str, np.ndarray | None]] | None:
    """The nodes that make a tensor, by position, and what they start from: weights (None), and small values that every world
    knows to be the same. None where they start from anything else."""
    queue, positions = [tensor], set[int]()
    starts: dict[str, np.ndarray | None] = {}
    while queue:
        tensor = queue.pop()
        node = view.producer(tensor)
        if not tensor.name or tensor.name in starts:
            continue
        if (known := view.constant(tensor)) is not None:
            starts[tensor.name] = known
        elif node is None:
            if not (isinstance(tensor, gs.Constant) and view.is_weight(tensor)) or tensor.name in view.pinned:
                return None
            starts[tensor.name] = None
        else:
            computes = node.domain in STANDARD and view.in_main_graph(node) and node.op not in RANDOM
            if not computes or any(isinstance(value, gs.Graph) for value in node.attrs.values()):
                return None
            if view.position(node) not in positions:
                positions.add(view.position(node))
                queue.extend(node.inputs)
        if len(positions) > MOST_NODES:
            return None
    return positions, starts
