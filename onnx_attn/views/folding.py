"""The value of a tensor that is computed from weights alone, however many nodes compute it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.runtime import CannotRun, Session

MOST_BYTES = 16 * 2**20
"""Of one value. A table of relative positions is small, what it is spread to is not: a fold must not swell the file."""
MOST_BYTES_TOGETHER = 64 * 2**20
"""Of the values that are computed in one run."""
MOST_STARTING = 2**20
"""Bytes of the weights of a fold that is remembered when the model is read again: these are kept beside it."""
RANDOM = frozenset(
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
    if node.op in RANDOM or node.domain not in ("", "ai.onnx", None):
        return False, []
    if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
        return False, []
    waiting = []
    for tensor in node.inputs:
        producer = view.producer(tensor)
        if producer is not None and known_anyway(view, tensor) is not None:
            continue
        if producer is None:
            stored = isinstance(tensor, gs.Constant) and view.is_weight(tensor) and tensor.name not in view.pinned
            if tensor.name and not stored:
                return False, []
        elif not view.in_main_graph(producer) or (above := view.constancy.get(view.position(producer))) is False:
            return False, []
        elif above is None:
            waiting.append(view.position(producer))
    return (None if waiting else True), waiting


def known_anyway(view: GraphView, tensor: gs.Tensor) -> np.ndarray | None:
    """Small whole numbers that follow from shapes: all of them in a model none of whose dimensions vary, since what was tried at
    one size holds at the only one; else sizes of dimensions that do not vary, as they are asked for."""
    producer = view.producer(tensor)
    value = view.constant(tensor) if producer is not None else None
    if value is None or value.dtype.kind not in "iu":
        return None
    return value if len(view.worlds) == 1 or _asks_sizes(view, producer) else None


def _asks_sizes(view: GraphView, node: gs.Node) -> bool:
    """Whether a node is a vector of sizes, or takes sizes out of one."""
    if node.op in ("Gather", "Slice", "Split") and (above := view.producer(node.inputs[0])) is not None:
        node = above
    if node.op == "Concat" and node.domain in STANDARD:
        return all(_is_size(view, tensor) for tensor in node.inputs)
    return node.op == "Shape" and node.domain in STANDARD


def _is_size(view: GraphView, tensor: gs.Tensor) -> bool:
    """Whether a piece of a vector of sizes is a stored number, or one that a Shape says, or a multiple of that."""
    while (node := view.producer(tensor)) is not None and node.op in ("Gather", "Slice", "Unsqueeze", "Mul"):
        tensor = node.inputs[0]
    return view.is_weight(tensor) if node is None else node.op in ("Shape", "Constant") and node.domain in STANDARD


def is_fixed(view: GraphView, tensor: gs.Tensor) -> bool:
    """Whether no input decides a tensor: it is stored, or computed from what is stored."""
    producer = view.producer(tensor)
    if producer is None:
        return view.is_weight(tensor)
    return view.in_main_graph(producer) and is_constant(view, producer)


def may_fold(view: GraphView, tensor: gs.Tensor) -> bool:
    """Whether a tensor's numbers are decided by no input, and few enough to be computed here."""
    return is_fixed(view, tensor) and _bytes(view, tensor) <= MOST_BYTES


def constant_value(view: GraphView, tensor: gs.Tensor) -> np.ndarray | None:
    """The numbers of a tensor that no input decides; None if one does, or where they cannot be had."""
    if not is_fixed(view, tensor):
        return None
    if view.producer(tensor) is None:
        return view.numbers(tensor.name)
    fold(view, [tensor])
    value = view.folds[tensor.name]
    return None if value is None else numpy_helper.to_array(value)


def fold(view: GraphView, tensors: Iterable[gs.Tensor]) -> None:
    """Compute the values of tensors whose nodes are constant, as the model's own nodes do in ONNX Runtime, all in one run:
    what they share is computed once. A value that is too large, or cannot be computed, is remembered as None."""
    wanted = [tensor for tensor in {t.name: t for t in tensors}.values() if tensor.name not in view.folds]
    small = [tensor for tensor in wanted if _bytes(view, tensor) <= MOST_BYTES]
    view.folds |= dict.fromkeys(tensor.name for tensor in wanted)
    while small:
        batch, size = [], 0.0
        while small and (size := size + _bytes(view, small[-1])) <= MOST_BYTES_TOGETHER:
            batch.append(small.pop())
        view.folds |= _run(view, batch)


def _bytes(view: GraphView, tensor: gs.Tensor) -> float:
    """Infinite where the size is not known, or not the same whatever the inputs are."""
    shapes = view.shapes(tensor)
    if shapes is None or len(set(shapes)) != 1:
        return math.inf
    return math.prod(shapes[0]) * helper.tensor_dtype_to_np_dtype(view.elem_type(tensor)).itemsize


def _run(view: GraphView, tensors: Sequence[gs.Tensor]) -> dict[str, onnx.TensorProto | None]:
    keys = {tensor.name: _origin(view, tensor) for tensor in tensors}
    found = {name: view.values[key] for name, key in keys.items() if key in view.values}
    found |= _computed(view, [tensor for tensor in tensors if tensor.name not in found])
    view.values |= {key: found[name] for name, key in keys.items()}
    return found


def _origin(view: GraphView, tensor: gs.Tensor) -> frozenset[object]:
    """All that decides a constant tensor: what makes it, node by node, and the numbers that this starts from; of more than
    MOST_STARTING bytes of these, something that equals nothing else."""
    positions, weights = _ancestors(view, [view.producer(tensor)])
    stored = _stored(view, weights)
    if sum(each.ByteSize() for each in stored) > MOST_STARTING:
        return frozenset((object(),))
    nodes = (view.proto.graph.node[position].SerializeToString(deterministic=True) for position in positions)
    start = ((name, each.SerializeToString(deterministic=True)) for name, each in zip(weights, stored, strict=True))
    return frozenset((view.opset, tensor.name, *nodes, *start))


def _stored(view: GraphView, weights: Mapping[str, np.ndarray | None]) -> list[onnx.TensorProto]:
    return [
        numpy_helper.from_array(value, name) if value is not None else view.initializer(name)
        for name, value in weights.items()
    ]


def _computed(view: GraphView, tensors: Sequence[gs.Tensor]) -> dict[str, onnx.TensorProto | None]:
    """In one run; of several that cannot be computed together, each by itself."""
    if not tensors:
        return {}
    positions, weights = _ancestors(view, [view.producer(tensor) for tensor in tensors])
    nodes = [view.proto.graph.node[position] for position in sorted(positions)]
    outputs = [helper.make_tensor_value_info(t.name, view.elem_type(t), view.worlds[0].shape(t.name)) for t in tensors]
    graph = helper.make_graph(nodes, "constant", [], outputs, _stored(view, weights))
    model = onnx.ModelProto(graph=graph, ir_version=view.proto.ir_version)
    model.opset_import.extend(view.proto.opset_import)
    try:
        values = Session(model, tensors[0].name).run({})
    except CannotRun:
        if len(tensors) == 1:
            return {tensors[0].name: None}
        return {name: value for tensor in tensors for name, value in _computed(view, [tensor]).items()}
    return {t.name: numpy_helper.from_array(value, t.name) for t, value in zip(tensors, values, strict=True)}


def _ancestors(view: GraphView, nodes: Iterable[gs.Node | None]) -> tuple[set[int], dict[str, np.ndarray | None]]:
    """Positions of the nodes that constant nodes are made of, themselves included, and by name what these start from: stored
    weights (None), and values that are known anyway."""
    queue = [node for node in nodes if node is not None]
    positions = {view.position(node) for node in queue}
    weights: dict[str, np.ndarray | None] = {}
    while queue:
        for tensor in queue.pop().inputs:
            producer, known = view.producer(tensor), known_anyway(view, tensor)
            if producer is None or known is not None:
                weights |= {tensor.name: known} if tensor.name else {}
            elif view.position(producer) not in positions:
                positions.add(view.position(producer))
                queue.append(producer)
    return positions, weights
