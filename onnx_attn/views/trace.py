"""Walk up from a tensor through movement and scalar factors to the tensor that they read: its source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_attn.graph.view import GraphView
from onnx_attn.graph.world import Shape, World
from onnx_attn.views.layout import Layout, common, decode

SAME_ORDER = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast", "Mul", "Div", "Dropout"})
"""Nodes of a trace that leave the elements in their order: their result is the input, reshaped."""


@dataclass(frozen=True)
class Step:
    """One node of a trace and the tensor that the walk came through."""

    node: gs.Node
    output: gs.Tensor


@dataclass(frozen=True)
class Trace:
    """`tensor = factor · movement(source)`; steps from the source to the tensor."""

    source: gs.Tensor
    factor: float
    steps: tuple[Step, ...]


def trace(view: GraphView, tensor: gs.Tensor) -> Trace:
    """Follow `tensor` up as far as its elements are only moved, or multiplied by one constant number."""
    factor, steps = 1.0, []
    while (node := view.producer(tensor)) is not None and view.in_main_graph(node):
        if (scalar := scalar_factor(view, node)) is not None:
            below, by = scalar
            factor *= by
        elif moves(view, node, tensor):
            below = node.inputs[0]
        else:
            break
        steps.append(Step(node, tensor))
        tensor = below
    return Trace(tensor, factor, tuple(reversed(steps)))


def scalar_factor(view: GraphView, node: gs.Node) -> tuple[gs.Tensor, float] | None:
    """Read a node as `factor · x`: Mul by a constant on either side, Div by a constant (not of one), Neg."""
    if node.op == "Neg":
        return node.inputs[0], -1.0
    if node.op not in ("Mul", "Div"):
        return None
    left, right = node.inputs
    value = view.scalar(right)
    if value is not None and _keeps_shape(view, left, node.outputs[0]):
        if node.op == "Mul":
            return left, value
        return (left, 1.0 / value) if value != 0.0 else None
    value = view.scalar(left)
    if value is not None and node.op == "Mul" and _keeps_shape(view, right, node.outputs[0]):
        return right, value
    return None


def _keeps_shape(view: GraphView, tensor: gs.Tensor, result: gs.Tensor) -> bool:
    """False where the 'scalar' has more axes than the tensor and so would add some."""
    return view.shapes(tensor) == view.shapes(result)


def is_noop_cast(view: GraphView, node: gs.Node) -> bool:
    return node.op == "Cast" and view.elem_type(node.inputs[0]) == node.attrs["to"] != 0


def is_identity(view: GraphView, node: gs.Node) -> bool:
    """Identity, a Cast to the type that is there already, or Dropout that does nothing at inference."""
    if node.op == "Identity" or is_noop_cast(view, node):
        return True
    return node.op == "Dropout" and dropout_is_inference(view, node)


def dropout_is_inference(view: GraphView, node: gs.Node) -> bool:
    """From opset 12 on, training_mode is an input that defaults to false; below, Dropout is the identity at inference."""
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return not bool(node.attrs.get("is_test", 1) == 0)
    mode = view.constant(node.inputs[2])
    return mode is not None and not bool(mode.reshape(-1)[0])


def moves(view: GraphView, node: gs.Node, output: gs.Tensor) -> bool:
    """True if `output` of this node holds elements of the node's first input and nothing else, each at most once."""
    if view.shapes(output) is None or view.shapes(node.inputs[0]) is None:
        return False
    if node.op in ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Split"):
        return True
    if node.op == "Slice":
        return all(view.constant(tensor) is not None for tensor in node.inputs[1:] if tensor.name)
    if node.op == "Gather":
        return view.constant(node.inputs[1]) is not None and not view.is_weight(node.inputs[0])
    return is_identity(view, node) and output is node.outputs[0]


def count(shapes: tuple[Shape, ...]) -> list[np.ndarray]:
    """An index tensor for every world: each element's own place, in C order."""
    return [np.arange(math.prod(shape), dtype=np.int64 if math.prod(shape) >= 2**31 else np.int32).reshape(shape) for shape in shapes]


def layout_of(
    view: GraphView,
    found: Trace,
    shapes: tuple[Shape, ...],
    start: Sequence[np.ndarray] | None = None,
    upto: gs.Tensor | None = None,
) -> Layout | None:
    """The layout of a trace's result, or of the intermediate tensor `upto`, over a base of these shapes (one a world).

    start: what the trace's source holds of the base, as index tensors; without it the source is the base itself.
    """
    layouts: list[Layout | None] = []
    for world, shape, index in zip(view.worlds, shapes, start or count(shapes), strict=True):
        if upto is not found.source:
            for step in found.steps:
                try:
                    index = run(step, index, world)
                except ValueError:  # A size that the exporter froze: at this world's sizes the node cannot run.
                    return None
                if step.output is upto:
                    break
        layouts.append(decode(index, shape))
    return common(layouts)


def run(step: Step, index: np.ndarray, world: World) -> np.ndarray:
    """Apply one step of a trace to an index tensor, at the sizes of one world."""
    node, shape = step.node, world.shape(step.output.name)
    assert shape is not None
    if node.op in SAME_ORDER or node.op == "Neg":
        return index.reshape(shape)
    if node.op == "Transpose":
        perm = node.attrs.get("perm") or list(range(index.ndim))[::-1]
        return index.transpose(perm)
    if node.op == "Split":
        return _split(step, index, world)
    if node.op == "Gather":
        value = world.value(node.inputs[1].name)
        assert value is not None
        return np.take(index, value, axis=node.attrs.get("axis", 0))
    return _slice(node, index, world)


def _split(step: Step, index: np.ndarray, world: World) -> np.ndarray:
    axis = step.node.attrs.get("axis", 0)
    start = 0
    for output in step.node.outputs:
        shape = world.shape(output.name)
        assert shape is not None
        if output is step.output:
            return np.take(index, range(start, start + shape[axis]), axis=axis)
        start += shape[axis]
    raise AssertionError("a trace came through an output that the node does not have")


def _slice(node: gs.Node, index: np.ndarray, world: World) -> np.ndarray:
    """ONNX Slice (opset 10 on): starts, ends, axes, steps as inputs; the semantics of numpy's slices."""
    given = [world.value(tensor.name) if tensor.name else None for tensor in node.inputs[1:]]
    starts, ends, axes, steps = (*given, *[None] * (4 - len(given)))
    assert starts is not None and ends is not None
    count = starts.size
    axes = np.arange(count) if axes is None else axes
    steps = np.ones(count, np.int64) if steps is None else steps
    cut = [slice(None)] * index.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop = None if step < 0 and end <= -index.shape[axis] - 1 else int(end)
        cut[int(axis)] = slice(int(start), stop, int(step))
    return index[tuple(cut)]


FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
