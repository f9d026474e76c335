"""Read a tensor as a linear layer's result: MatMul, MatMul + Add, or Gemm.

Weights are stored, or computed from what is stored: exporters cut one matrix into those of Q, K and V as the model runs.

A product with weights works row by row, so reshaping or transposing the rows first is the same as doing it afterwards.
The layer's source is therefore what stands before such movement: nn.MultiheadAttention's way to sequence-first and back
is not part of the projection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.graph.remember import remembered
from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.graph.world import Shape
from onnx_attn.views.folding import constant_value, may_fold
from onnx_attn.views.movement import Step, handed_on, index_map, is_identity, permutation
from onnx_attn.views.quantizer import Quantizer, read_quantizer
from onnx_attn.views.stored import is_dequantised
from onnx_attn.views.trace import Trace, trace


@dataclass(frozen=True)
class Linear:
    """`output = alpha · source·weight + beta · bias`, weight `(E, C)` after `transposed`, bias `(C,)` or None.

    source: `(…, E)`, before its rows are moved. moves: how they are, from the source to what the product reads.
    product: the MatMul or the Gemm. rounded: by what its result is rounded before the bias is added.
    """

    source: gs.Tensor
    moves: tuple[Step, ...]
    weight: gs.Tensor
    transposed: bool
    bias: gs.Tensor | None
    alpha: float
    beta: float
    output: gs.Tensor
    channels: int
    width: int
    product: gs.Node
    rounded: Quantizer | None = None


@remembered
def linear(view: GraphView, tensor: gs.Tensor, rounded: bool = False) -> Linear | None:
    """Read `tensor` as a linear layer's output; None if it is none, or its weights are not in the model. rounded: a quantisation
    step may stand between the product and its bias."""
    node = view.producer(tensor)
    if node is None or not view.in_main_graph(node) or node.domain not in STANDARD:
        return None
    if node.op == "Gemm":
        return _gemm(view, node)
    if node.op == "MatMul":
        return _matmul(view, node, None, tensor)
    if node.op != "Add":
        return None
    for product, other in (node.inputs, reversed(node.inputs)):
        bias = weight_tensor(view, other)
        step = read_quantizer(view, product) if rounded else None
        inner = view.producer(product if step is None or step.source is None else step.source)
        if bias is None or bias[1] or inner is None or inner.op != "MatMul" or inner.domain not in STANDARD:
            continue
        found = _matmul(view, inner, bias[0], tensor)
        if found is not None and _is_vector(_sizes(view, bias[0]), found.channels):
            return replace(found, rounded=step)
    return None


def rows(view: GraphView, layer: Linear) -> tuple[Shape, ...]:
    """The layer's output shape in every world, with the source's leading axes: `(…, C)`."""
    shapes = view.shapes(layer.source)
    assert shapes is not None
    return tuple((*shape[:-1], layer.channels) for shape in shapes)


def rows_vary(view: GraphView, layer: Linear) -> bool:
    """Whether a layer's rows are not as many in every world."""
    return len(set(rows(view, layer))) > 1


@remembered
def weight_tensor(view: GraphView, tensor: gs.Tensor) -> tuple[gs.Tensor, bool] | None:
    """The weight behind a tensor, through Identity and one Transpose of a matrix: (weight, transposed). It is an initializer, or
    what constant nodes make of some."""
    transposed = False
    while not isinstance(tensor, gs.Constant):
        node = view.producer(tensor)
        if node is None or not view.in_main_graph(node) or node.domain not in STANDARD:
            return None
        if node.op == "Transpose":
            if (node.attrs.get("perm") or [1, 0]) != [1, 0]:
                return None
            transposed = not transposed
        elif node.op != "Identity":
            made = node.op != "Constant" and (
                may_fold(view, tensor) or is_dequantised(view, tensor) or _part_of_stored(view, tensor) is not None
            )
            return (tensor, transposed) if made else None
        tensor = node.inputs[0]
    return tensor, transposed


def weight_array(view: GraphView, weight: gs.Tensor) -> np.ndarray | None:
    """A weight's numbers, without a copy where the file keeps raw bytes; None where they cannot be computed beforehand."""
    if isinstance(weight, gs.Constant):
        return view.numbers(weight.name)
    part = _part_of_stored(view, weight)
    if part is None:
        return constant_value(view, weight)
    return index_map(view.worlds[0], view.numbers(part.source.name), part.steps)


def _part_of_stored(view: GraphView, tensor: gs.Tensor) -> Trace | None:
    """The way to the one stored weight that a tensor is cut out of, by bounds that no input's size decides."""
    found = trace(view, tensor)
    stored = (
        isinstance(found.source, gs.Constant) and view.is_weight(found.source) and found.source.name not in view.pinned
    )
    moved = all(
        step.node.op in ("Slice", "Split", "Reshape", "Squeeze", "Unsqueeze", "Identity") for step in found.steps
    )
    return found if stored and moved and found.steps else None


def _sizes(view: GraphView, weight: gs.Tensor) -> tuple[int, ...]:
    if isinstance(weight, gs.Constant):
        return tuple(weight.shape)
    shapes = view.shapes(weight)
    return shapes[0] if shapes else ()


def _matmul(view: GraphView, node: gs.Node, bias: gs.Tensor | None, output: gs.Tensor) -> Linear | None:
    source, right = node.inputs
    weight = weight_tensor(view, right)
    if weight is None or len(_sizes(view, weight[0])) != 2 or view.is_weight(source):
        return None
    return _on_rows(view, node, weight, bias, (1.0, 1.0), output)


def _gemm(view: GraphView, node: gs.Node) -> Linear | None:
    """Gemm with a constant second operand and a plain first one: `alpha · A·B' + beta · C`."""
    weight = weight_tensor(view, node.inputs[1])
    if weight is None or len(_sizes(view, weight[0])) != 2 or node.attrs.get("transA", 0):
        return None
    weight = (weight[0], weight[1] != bool(node.attrs.get("transB", 0)))
    bias = None
    if len(node.inputs) > 2 and node.inputs[2].name:
        read = weight_tensor(view, node.inputs[2])
        if read is None or read[1]:
            return None
        bias = read[0]
    factors = (float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0)))
    found = _on_rows(view, node, weight, bias, factors, node.outputs[0])
    return found if found is None or bias is None or _is_vector(_sizes(view, bias), found.channels) else None


def _on_rows(
    view: GraphView,
    product: gs.Node,
    weight: tuple[gs.Tensor, bool],
    bias: gs.Tensor | None,
    factors: tuple[float, float],
    output: gs.Tensor,
) -> Linear | None:
    """Step over reshapes and transposes that leave each row of E elements whole."""
    source, (constant, transposed) = product.inputs[0], weight
    width, channels = reversed(_sizes(view, constant)) if transposed else _sizes(view, constant)
    moves: list[Step] = []
    for step in reversed(trace(view, source).steps):
        if not _keeps_rows(view, step, width):
            break
        moves.insert(0, step)
        source = handed_on(view, step.node)
    if view.shapes(source) is None or view.static(source, -1) != width:
        return None
    return Linear(source, tuple(moves), constant, transposed, bias, *factors, output, channels, width, product)


def _keeps_rows(view: GraphView, step: Step, width: int) -> bool:
    below = handed_on(view, step.node)
    if not view.rank(below) or view.static(below, -1) != width:
        return False
    if (perm := permutation(step.node)) is not None:
        return perm[-1] == len(perm) - 1
    return step.node.op in ("Reshape", "Squeeze", "Unsqueeze", "Flatten") or is_identity(view, step.node)


def _is_vector(sizes: tuple[int, ...], channels: int) -> bool:
    """A bias per channel: (C,) or broadcast forms of it, or one number for all."""
    return len(sizes) >= 1 and sizes[-1] == channels and all(size == 1 for size in sizes[:-1])
