"""Walk up from a tensor through movement and scalar factors to the tensor that they read: its source."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from onnx_attn.graph.remember import remembered
from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.views.movement import Step, handed_on, moves, repeats


@dataclass(frozen=True)
class Trace:
    """`tensor = factor · movement(source)`; steps from the source to the tensor."""

    source: gs.Tensor
    factor: float
    steps: tuple[Step, ...]


DEEPEST = 2
"""How many joins may lie within each other: heads are cut apart and stacked once, maps rolled along two axes."""


@remembered
def trace(view: GraphView, tensor: gs.Tensor, through_repeats: bool = False, depth: int = DEEPEST) -> Trace:
    """Follow `tensor` up as far as its elements are only moved, or multiplied by one constant number.

    through_repeats: and on through what repeats them, as heads of K and V that several heads of Q share are repeated.
    depth: how many joins of pieces of one tensor may still be read through.
    """
    factor = 1.0
    steps: list[Step] = []
    while (node := view.producer(tensor)) is not None and view.in_main_graph(node):
        if node.op == "Concat" and depth:
            joined = read_joined(view, node, tensor, depth - 1)
            if joined is None:
                break
            tensor, by, step = joined
            factor *= by
            steps.append(step)
            continue
        if (scalar := scalar_factor(view, node)) is not None:
            below, by = scalar
            factor *= by
        elif moves(view, node, tensor):
            below = handed_on(view, node)
        elif through_repeats and repeats(view, node):
            below = node.inputs[0]
        else:
            break
        steps.append(Step(node, tensor))
        tensor = below
    return Trace(tensor, factor, tuple(reversed(steps)))


def read_joined(
    view: GraphView, node: gs.Node, tensor: gs.Tensor, depth: int = DEEPEST
) -> tuple[gs.Tensor, float, Step] | None:
    """What a Concat joins pieces of, where they are pieces of one activation with one factor: heads that were cut apart and
    stacked. As the activation, the factor and the step."""
    shape = view.shapes(node.outputs[0])
    if node.domain not in STANDARD or shape is None or len(node.inputs) < 2:
        return None
    found = [trace(view, each, depth=depth) for each in node.inputs]
    first = found[0]
    same = all(each.source is first.source and each.factor == first.factor for each in found)
    if not same or not all(each.steps for each in found) or view.is_weight(first.source):
        return None
    if view.shapes(first.source) is None:
        return None
    return first.source, first.factor, Step(node, tensor, tuple(each.steps for each in found))


def scalar_factor(view: GraphView, node: gs.Node) -> tuple[gs.Tensor, float] | None:
    """Read a node as `factor · x`: Mul by a constant on either side, Div by a constant (not of one), Neg."""
    if node.domain not in STANDARD:
        return None
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


def lowest(elem_type: int) -> float | None:
    """The lowest finite number of a floating-point TensorProto type; None for other types."""
    return float(ml_dtypes.finfo(helper.tensor_dtype_to_np_dtype(elem_type)).min) if elem_type in FLOATS else None


FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
