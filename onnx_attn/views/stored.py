"""Weights that are stored as narrow numbers, with a DequantizeLinear that makes them what the product reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.graph.view import STANDARD, GraphView

MOST_NODES = 64


@dataclass(frozen=True)
class Stored:
    """`weight = scale · (numbers − zero)`. axis: along which there is a scale for each slice; None for one scale."""

    numbers: gs.Tensor
    scale: gs.Tensor
    zero: gs.Tensor | None
    axis: int | None


def read_stored(view: GraphView, weight: gs.Tensor) -> Stored | None:
    """The narrow numbers behind a weight; None where it is none of theirs, or they come in blocks or from several nodes."""
    node = view.producer(weight)
    if not is_dequantised(view, weight) or node is None or node.attrs.get("block_size", 0):
        return None
    numbers, scale, *zero = node.inputs
    if not isinstance(numbers, gs.Constant):
        return None
    sizes, rank = view.shapes(scale), len(numbers.shape)
    if sizes is None:
        return None
    axis = int(node.attrs.get("axis", 1)) % rank if np.prod(sizes[0]) != 1 or (sizes[0] and rank == 1) else None
    return Stored(numbers, scale, zero[0] if zero and zero[0].name else None, axis)


def is_dequantised(view: GraphView, tensor: gs.Tensor) -> bool:
    """Whether a tensor is made by a DequantizeLinear of stored numbers, however large."""
    node = view.producer(tensor)
    if node is None or node.op != "DequantizeLinear" or node.domain not in STANDARD or not view.in_main_graph(node):
        return False
    return all(view.is_weight(each) for each in node.inputs if each.name)


def stored_array(view: GraphView, tensor: gs.Tensor) -> np.ndarray | None:
    """The numbers of a stored tensor; None where they cannot be read."""
    if isinstance(tensor, gs.Constant):
        return view.numbers(tensor.name)
    return view.constant(tensor)


def rests_on_narrow(view: GraphView, tensor: gs.Tensor) -> bool:
    """Whether a DequantizeLinear is among what computes a weight."""
    queue, seen = [tensor], {tensor.name}
    while queue and len(seen) <= MOST_NODES:
        node = view.producer(queue.pop())
        if node is None:
            continue
        if node.op == "DequantizeLinear":
            return True
        queue.extend(above for above in node.inputs if above.name not in seen)
        seen.update(above.name for above in node.inputs)
    return False
