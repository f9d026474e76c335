"""The in-projection of a site: three linear layers on one source, or one that makes Q, K and V together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from onnx_attn.graph.view import GraphView
from onnx_attn.site import Operand, Projection
from onnx_attn.views.linear import Linear, linear, rows
from onnx_attn.views.movement import layout_of


def read_projection(view: GraphView, query: Operand, key: Operand, value: Operand) -> Projection | None:
    """The site's projection if Q, K and V are linear in one and the same tensor, else None.

    The source is compared as a tensor, never by its dimensions: equal shapes prove nothing.
    """
    operands = (query, key, value)
    layers = [linear(view, operand.trace.source) for operand in operands]
    if any(layer is None for layer in layers) or any(layer.source is not layers[0].source for layer in layers):  # type: ignore[union-attr]
        return None
    outputs = {id(layer.output) for layer in layers if layer}
    if len(outputs) == 2:
        return None  # K and V share a layer and Q has its own: kept as it is until packing knows that shape.
    return _projection(view, "packed" if len(outputs) == 1 else "triplet", layers, operands)  # type: ignore[arg-type]


def from_nearer_sources(view: GraphView, projection: Projection, operands: Sequence[Operand]) -> Iterator[Projection]:
    """The same projection read from each later tensor on its rows' way to the product, the farthest first.

    Over windows of a map, heads are no whole axes of the map; they are of what the windows were cut into.
    """
    first, *others = (layer.moves for layer in projection.layers)
    for count, step in enumerate(first, 1):
        if any(moves[:count] != first[:count] for moves in others):
            return
        layers = [replace(layer, source=step.output, moves=layer.moves[count:]) for layer in projection.layers]
        if (found := _projection(view, projection.kind, layers, operands)) is not None:
            yield found


def _projection(
    view: GraphView, kind: Literal["packed", "triplet"], layers: Sequence[Linear], operands: Sequence[Operand]
) -> Projection | None:
    layouts = []
    for operand, layer in zip(operands, layers, strict=True):
        layout = layout_of(view, rows(view, layer), operand.trace.steps, layer.moves)
        if layout is None:
            return None
        layouts.append(layout.swapped() if operand.transposed else layout)
    return Projection(kind, tuple(layers), tuple(layouts))  # type: ignore[arg-type]
