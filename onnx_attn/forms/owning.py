"""Whose are a projection's weights and results? What others read must not be packed away."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.site import AttentionSite
from onnx_attn.views.arrange import real
from onnx_attn.views.linear import Linear
from onnx_attn.views.movement import moves
from onnx_attn.views.stored import read_stored


def is_own(view: GraphView, site: AttentionSite, layers: Sequence[tuple[int, Linear]]) -> bool:
    """True if packing these layers (each with its operand's role) takes nothing away from anybody: every reader of their
    weights and of their results, down to the site's products, belongs to these operands. An operand that is left as it is
    counts among the others: for its part the whole old layer would stay beside the new one. So does Q·Kᵀ where
    somebody else reads the probabilities."""
    inside = {id(each.node) for role, _ in layers for step in site.operands[role].whole.steps for each in step.whole}
    inside |= {id(site.value_product), id(view.producer(site.output))}
    inside |= {id(site.product)} if not site.shared else set()
    masks = {real(view, mask).name for mask in site.mask_tensors}
    for role, layer in layers:
        if layer.weight.name in view.pinned or (layer.bias is not None and layer.bias.name in view.pinned):
            return False
        if not all(one_way(view, weight, layer.output) for weight in (layer.weight, *_narrow(view, layer.weight))):
            return False
        steps = [each for step in site.operands[role].whole.steps for each in step.whole]
        for tensor in [layer.output, *(output for step in steps for output in step.node.outputs)]:
            if tensor.name in view.pinned or tensor.name in masks:
                return False
            if not all(id(reader) in inside or asks_shape(view, reader) for reader in view.readers(tensor)):
                return False
    return True


def _narrow(view: GraphView, weight: gs.Tensor) -> tuple[gs.Tensor, ...]:
    """The narrow numbers that a weight is dequantised from."""
    stored = read_stored(view, weight)
    return (stored.numbers,) if stored is not None else ()


def reads_shape(view: GraphView, reader: gs.Node) -> bool:
    """A reader that can be given the shape from elsewhere."""
    return reader.op == "Shape" and reader.domain in STANDARD and view.in_main_graph(reader)


def asks_shape(view: GraphView, reader: gs.Node) -> bool:
    """The same, or a movement that is there for nothing but to be asked for its shape."""
    if reads_shape(view, reader):
        return True
    if not view.in_main_graph(reader) or len(reader.outputs) != 1 or not moves(view, reader, reader.outputs[0]):
        return False
    result = reader.outputs[0]
    readers = view.readers(result)
    return bool(readers) and result.name not in view.pinned and all(reads_shape(view, below) for below in readers)


def one_way(view: GraphView, weight: gs.Tensor, output: gs.Tensor, alone: bool = False) -> bool:
    """From the weight down to the layer's output every tensor has one reader. alone: and nobody asks for its shape."""
    tensor = weight
    while tensor is not output:
        if tensor.name in view.pinned:
            return False
        readers = [reader for reader in view.readers(tensor) if alone or not reads_shape(view, reader)]
        if len(readers) != 1:
            return False
        tensor = readers[0].outputs[0]
    return True
