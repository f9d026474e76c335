"""Nodes that work on each row (token) of a tensor by itself: in whatever order the rows lie, they make the same of each.

    f(P·x) = P·f(x)  for every order P of the rows

A LayerNorm over channels, a product with weights, an activation, a sum with a bias, a sum of two tensors row by row. A row is a
tensor's last axis, all axes before it number the rows.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.graph.world import Shape
from onnx_attn.views.folding import is_fixed
from onnx_attn.views.movement import dropout_is_inference
from onnx_attn.views.tokens import reduced_axes

_ONE_BY_ONE = frozenset(
    "Abs Cast Ceil Celu Clip Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Log Mish Neg Reciprocal Relu Round "
    "Selu Sigmoid Sign Softplus Softsign Sqrt Swish Tanh ThresholdedRelu".split()
)
_PAIRS = frozenset("Add Sub Mul Div Pow Min Max".split())
_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
_REDUCTIONS = frozenset("ReduceMean ReduceSum ReduceMax ReduceMin ReduceL2 ReduceSumSquare".split())


def row_operands(view: GraphView, node: gs.Node) -> list[int]:
    """The places of the inputs whose rows make the rows of a node's one result; empty if the node is not token-wise."""
    if node.domain not in STANDARD or not view.in_main_graph(node) or not node.inputs:
        return []
    result = view.shapes(node.outputs[0])
    if result is None or any(_is_used(view, tensor) for tensor in node.outputs[1:]):
        return []
    if node.op in _PAIRS:
        return _pair(view, node, result)
    if not _suits(view, node) or not _same_rows(view, node.inputs[0], result):
        return []
    return [0] if all(not each.name or is_fixed(view, each) for each in node.inputs[1:]) else []


def _suits(view: GraphView, node: gs.Node) -> bool:
    """Whether a node of one operand works on its rows by themselves."""
    rank = view.rank(node.inputs[0]) or 0
    if node.op in _ONE_BY_ONE:
        return all(not each.name or math.prod((view.shapes(each) or ((2,),))[0]) == 1 for each in node.inputs[1:])
    if node.op == "Dropout":
        return dropout_is_inference(view, node)
    if node.op in _NORMS:
        # Weights of one axis: others might differ from row to row.
        return node.attrs.get("axis", -1) % max(rank, 1) == rank - 1 and all(
            not each.name or view.rank(each) == 1 for each in node.inputs[1:]
        )
    if node.op == "Gemm":
        plain = not node.attrs.get("transA", 0) and not is_fixed(view, node.inputs[0])
        return plain and all(not each.name or _for_every_row(view, each) for each in node.inputs[2:])
    if node.op == "MatMul":
        return rank >= 2 and view.rank(node.inputs[1]) == 2 and not is_fixed(view, node.inputs[0])
    if node.op in _REDUCTIONS:
        axes = {reduced_axes(world, node) for world in view.worlds}
        return bool(node.attrs.get("keepdims", 1)) and axes in ({(-1,)}, {(rank - 1,)})
    return False


def _pair(view: GraphView, node: gs.Node, result: tuple[Shape, ...]) -> list[int]:
    """Sums and products, row by row or with what is the same for every row."""
    places = []
    for place, tensor in enumerate(node.inputs):
        if is_fixed(view, tensor):
            if not _for_every_row(view, tensor):
                return []
        elif _same_rows(view, tensor, result):
            places.append(place)
        else:
            return []
    return places


def _for_every_row(view: GraphView, tensor: gs.Tensor) -> bool:
    """Whether a tensor is one row, or one number, that meets every row."""
    shapes = view.shapes(tensor)
    return shapes is not None and all(size == 1 for size in shapes[0][:-1])


def _same_rows(view: GraphView, tensor: gs.Tensor, result: tuple[Shape, ...]) -> bool:
    shapes = view.shapes(tensor)
    return shapes is not None and len(shapes[0]) >= 2 and [s[:-1] for s in shapes] == [r[:-1] for r in result]


def _is_used(view: GraphView, tensor: gs.Tensor) -> bool:
    return bool(tensor.name) and (bool(view.readers(tensor)) or tensor.name in view.pinned)


def keeps_rows(view: GraphView, node: gs.Node) -> bool:
    """True if a node says the same rows in the same order with other axes before the last: a Reshape, Squeeze or the like."""
    if node.domain not in STANDARD or not view.in_main_graph(node):
        return False
    if node.op not in ("Reshape", "Squeeze", "Unsqueeze", "Flatten"):
        return False
    before, after = view.shapes(node.inputs[0]), view.shapes(node.outputs[0])
    return (
        before is not None
        and after is not None
        and all(
            len(a) >= 2 and len(b) >= 1 and a[-1] == b[-1] and math.prod(a) == math.prod(b)
            for a, b in zip(after, before, strict=True)
        )
    )


def row_index(index: np.ndarray, width: int) -> np.ndarray | None:
    """The rows that an index map over a base `(…, width)` reads, one after the other; None if it does not move whole rows."""
    if index.shape[-1] != width:
        return None
    flat = index.reshape(-1, width)
    rows: np.ndarray = flat[:, 0] // width
    whole = np.array_equal(flat, rows[:, None] * width + np.arange(width, dtype=flat.dtype))
    return rows if whole else None
