"""Which layer an operand comes from in the end: through movement, and through what works on each head by itself.

Norms of Q and K, rotary embeddings and learned temperatures leave a tensor its axes. They are no part of a projection that can
be packed, but behind them stands the layer whose channels are the heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnx_attn.graph.remember import remembered
from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.graph.world import Shape
from onnx_attn.views.constants import is_constant
from onnx_attn.views.contraction import contraction
from onnx_attn.views.layout import Layout
from onnx_attn.views.linear import linear, rows
from onnx_attn.views.movement import Step, handed_on, layout_of, moves, repeats
from onnx_attn.views.trace import read_joined

MOST_NODES = 96
"""How many nodes one search may look at: a rotary embedding of a normalised query takes about thirty."""
MOST_PIECES = 8
"""How many nodes may work on one piece of a tensor that is cut and joined again."""
_LAYERS = frozenset({"MatMul", "Gemm", "Einsum", "Conv", "ConvTranspose"})
_KEEPS_AXES = frozenset(
    "Mul Div Add Sub Neg Cast Where Clip Sqrt Pow Sigmoid Relu Elu Softplus Tanh LayerNormalization RMSNormalization "
    "BatchNormalization InstanceNormalization GroupNormalization LpNormalization SimplifiedLayerNormalization Identity "
    "Dropout QuantizeLinear DequantizeLinear RotaryEmbedding Gelu Erf Max Min".split()
)


@dataclass(frozen=True)
class Origin:
    """The product with weights that an operand comes from (None: an input, or anything else).

    channels: the axes of `base` that the weights make.

    steps: the movement from there on; what changes the numbers between is left out. base: the shapes of what the layer makes,
    one a world; with the axes of its source, if its rows can be moved in front of it (`rows`) as well as behind.
    """

    layer: gs.Node | None
    channels: frozenset[int]
    steps: tuple[Step, ...]

    base: tuple[Shape, ...]
    rows: tuple[Step, ...] = ()

    def layout(self, view: GraphView) -> Layout | None:
        """How the operand reads the layer's result, over `base`."""
        return layout_of(view, self.base, self.steps, self.rows)


@remembered
def read_origin(view: GraphView, tensor: gs.Tensor) -> Origin | None:
    """The nearest layer above a tensor; None where a sum of different things, a table, an input or a grouped convolution comes
    first."""
    stack: list[tuple[gs.Tensor, tuple[Step, ...]]] = [(tensor, ())]
    seen: set[str] = set()
    for _ in range(MOST_NODES):
        if not stack:
            return None
        tensor, steps = stack.pop()
        if tensor.name in seen:
            continue
        seen.add(tensor.name)
        node = view.producer(tensor)
        if node is None or not view.in_main_graph(node):
            continue
        if (channels := _channels(view, node)) is not None:
            return _origin(view, node, channels, steps)
        stack.extend(reversed(_above(view, node, tensor, steps)))
    return None


def _origin(view: GraphView, node: gs.Node, channels: frozenset[int], steps: tuple[Step, ...]) -> Origin | None:
    if node.attrs.get("group", 1) > 1:
        # Pooled channel by channel, often by head on the batch axis: whose channels they were, no movement tells.
        return None
    layer = linear(view, node.outputs[0])
    if layer is not None:
        base = rows(view, layer)
        return Origin(node, frozenset({len(base[0]) - 1}), steps, base, layer.moves)
    shapes = view.shapes(node.outputs[0])
    return Origin(node, channels, steps, shapes) if shapes is not None else None


def _channels(view: GraphView, node: gs.Node) -> frozenset[int] | None:
    """The axes of a layer's result that come from its weights; None for other nodes."""
    if node.domain not in STANDARD or node.op not in _LAYERS:
        return None
    constant = [is_constant(view, each) for each in node.inputs[:2]]
    if sum(constant) != 1:
        return None
    if node.op in ("Conv", "ConvTranspose", "Gemm"):
        return frozenset({1}) if constant[1] else None
    found = contraction(view, node)
    if found is None or (node.op == "MatMul" and constant[0]):
        return None  # W·x mixes rows: nobody's projection.
    found = found.turned if constant[0] else found
    weights = view.shapes(found.right)
    assert weights is not None  # (A contraction is of known ranks.)
    made = {name for name, size in zip(found.right_axes, weights[0], strict=True) if size != 1}
    return frozenset(at for at, name in enumerate(found.result_axes) if name in made)


def _above(
    view: GraphView, node: gs.Node, tensor: gs.Tensor, steps: tuple[Step, ...]
) -> list[tuple[gs.Tensor, tuple[Step, ...]]]:
    if moves(view, node, tensor) or repeats(view, node):
        return [(handed_on(view, node), (Step(node, tensor), *steps))]
    if node.domain not in STANDARD:
        return []
    joined = node.op == "Concat"
    if joined and (pieces := read_joined(view, node, tensor)) is not None:
        return [(pieces[0], (pieces[2], *steps))]
    if joined and (whole := _before_split(view, node)) is not None:
        return [(whole, steps)]
    if node.op not in _KEEPS_AXES and not joined:
        return []
    shape = view.shapes(tensor)
    # Of what is joined, each part has the axes: rotated and plain features, keys and one that is learned.
    return [
        (each, steps) for each in node.inputs if (joined or view.shapes(each) == shape) and not is_constant(view, each)
    ]


def _before_split(view: GraphView, joined: gs.Node) -> gs.Tensor | None:
    """What a Concat puts together again: the input of a Split along the same axis, each of whose pieces was worked on by itself,
    as where every head has a norm of its own."""
    pieces = [piece for each in joined.inputs if (piece := _piece_above(view, each)) is not None]
    node = view.producer(pieces[0]) if pieces else None
    if node is None or [piece.name for piece in pieces] != [output.name for output in node.outputs]:
        return None
    # Along another axis, or with something beside them, the pieces make something of another shape.
    whole, shape = node.inputs[0], view.shapes(joined.outputs[0])
    return whole if shape is not None and view.shapes(whole) == shape else None


def _piece_above(view: GraphView, tensor: gs.Tensor) -> gs.Tensor | None:
    """The output of a Split that a tensor of the same axes comes from."""
    for _ in range(MOST_PIECES):
        node = view.producer(tensor)
        if node is None or node.domain not in STANDARD or not view.in_main_graph(node):
            return None
        if node.op == "Split":
            return tensor
        above = [each for each in node.inputs if not is_constant(view, each)]
        if node.op not in _KEEPS_AXES or len(above) != 1:
            return None
        tensor = above[0]
    return None
