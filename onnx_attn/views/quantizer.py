"""A QuantizeLinear and the DequantizeLinear behind it, read as the one step that they are on the numbers.

    x ↦ scale · (clamp(round(x / scale) + zero) − zero)

With one scale for the whole tensor it is done to each element by itself, so it commutes with movement; with one for each slice
of an axis it does not, and is left where it stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnx_attn.graph.view import STANDARD, GraphView

NARROW: Mapping[int, str] = {
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.INT16: "int16",
    TensorProto.UINT16: "uint16",
    TensorProto.FLOAT8E5M2: "fp8_e5m2",
}
"""The types that an activation may have between the two nodes, by the name that facts and reports call them."""


@dataclass(frozen=True)
class Quantizer:
    """One step of quantisation.

    elem_type: the type between the nodes. numbers: scale and zero point. source: what is quantised. scale, zero: the stored
    tensors that both nodes read; zero None: it is 0. A step that the graph does not have has neither source nor scale.
    """

    elem_type: int
    numbers: tuple[float, float]
    source: gs.Tensor | None = None
    scale: gs.Tensor | None = None
    zero: gs.Tensor | None = None

    @property
    def kind(self) -> str:
        return NARROW[self.elem_type]

    def repeats(self, other: Quantizer) -> bool:
        """Whether it is the same step: what one has rounded, the other leaves as it is. (In 16 bits a half-precision scale is
        not exact enough for that.)"""
        same = (self.elem_type, self.numbers) == (other.elem_type, other.numbers)
        return same and not self.kind.endswith("int16")


def read_quantizer(view: GraphView, tensor: gs.Tensor) -> Quantizer | None:
    """The quantisation step that makes `tensor`; None where none does, or one that has not one scale for all."""
    back = view.producer(tensor)
    if back is None or not _is_step(view, back, "DequantizeLinear"):
        return None
    there = view.producer(back.inputs[0])
    if there is None or not _is_step(view, there, "QuantizeLinear"):
        return None
    if not there.attrs.get("saturate", 1) or view.elem_type(there.inputs[0]) != view.elem_type(tensor):
        return None
    numbers = _numbers(view, there)
    elem_type = view.elem_type(back.inputs[0])
    if numbers is None or numbers != _numbers(view, back) or elem_type not in NARROW:
        return None
    if view.elem_type(there.inputs[1]) != view.elem_type(tensor):
        return None
    zero = there.inputs[2] if _has_zero(there) else None
    return Quantizer(elem_type, numbers, there.inputs[0], there.inputs[1], zero)


def quantizes(view: GraphView, node: gs.Node, tensor: gs.Tensor) -> Quantizer | None:
    """The quantisation step that `node` begins on `tensor`, where nobody reads the narrow numbers but one DequantizeLinear."""
    if node.op != "QuantizeLinear" or node.domain not in STANDARD or node.inputs[0] is not tensor:
        return None
    readers = view.readers(node.outputs[0])
    if len(readers) != 1 or view.is_output(node.outputs[0]) or readers[0].inputs[0] is not node.outputs[0]:
        return None
    return read_quantizer(view, readers[0].outputs[0]) if readers[0].op == "DequantizeLinear" else None


def _is_step(view: GraphView, node: gs.Node, op: str) -> bool:
    return (
        node.op == op and node.domain in STANDARD and view.in_main_graph(node) and not node.attrs.get("block_size", 0)
    )


def _has_zero(node: gs.Node) -> bool:
    return len(node.inputs) > 2 and bool(node.inputs[2].name)


def _numbers(view: GraphView, node: gs.Node) -> tuple[float, float] | None:
    """Scale and zero point of a node, where they are stored, one of each."""
    found = []
    for tensor in node.inputs[1:3] if _has_zero(node) else node.inputs[1:2]:
        number = view.scalar(tensor) if view.is_weight(tensor) else None
        if number is None or not math.isfinite(number):
            return None
        found.append(number)
    return (found[0], found[1] if len(found) > 1 else 0.0) if found[0] > 0 else None
