"""The in-projection of a site: the linear layers that make Q, K and V, each on its source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import onnx_graphsurgeon as gs

from onnx_attn.graph.view import GraphView
from onnx_attn.recognize.origin import read_origin
from onnx_attn.site import Operand, Projected, Projection
from onnx_attn.views.linear import Linear, linear, rows
from onnx_attn.views.movement import layout_of


def read_projection(view: GraphView, query: Operand, key: Operand, value: Operand) -> Projection | None:
    """The site's projection; None if neither Q, K nor V comes from a linear layer.

    What stands between a layer and its operand's head split, such as a norm of Q, keeps the layer from being packed; it is
    the operand's projection all the same.
    """
    operands = (query, key, value)
    found = [_projected(view, operand) for operand in operands]
    layers = products(view, operands, found)
    if not any(layers):
        return None
    return Projection(_kind(layers), *found)


def products(
    view: GraphView, operands: Sequence[Operand], projected: Sequence[Projected | None]
) -> list[gs.Node | None]:
    """The products with weights behind Q, K and V; what works on each head in between (a norm, a scale) is no matter here."""
    return [
        each.layer.product if each else (origin.layer if (origin := read_origin(view, operand.read)) else None)
        for each, operand in zip(projected, operands, strict=True)
    ]


def _projected(view: GraphView, operand: Operand) -> Projected | None:
    """Over the farthest source of the layer that the operand is a plain re-arrangement of: over rows that were joined before
    the product, with sizes that vary, it is none."""
    layer = linear(view, operand.whole.source, rounded=True)
    if layer is None:
        return None
    nearer = (_from(layer, count) for count in range(len(layer.moves) + 1))
    return next((found for each in nearer if (found := read_over(view, operand, each)) is not None), None)


def _from(layer: Linear, count: int) -> Linear:
    """The same layer, read from behind so many of the steps on its rows' way to the product."""
    if not count:
        return layer
    return replace(layer, source=layer.moves[count - 1].output, moves=layer.moves[count:])


def read_over(view: GraphView, operand: Operand, layer: Linear) -> Projected | None:
    """The operand over a layer's output; None if it is no plain re-arrangement of it."""
    layout = layout_of(view, rows(view, layer), operand.whole.steps, layer.moves)
    return Projected(layer, layout) if layout is not None else None


def _kind(layers: Sequence[gs.Node | None]) -> Literal["packed", "triplet", "kv_packed", "none"]:
    query, key, value = layers
    if key is not None and key is value:
        return "packed" if query is key else "kv_packed"
    return "none" if any(layer is None for layer in layers) else "triplet"


def from_nearer_sources(
    view: GraphView, members: Sequence[tuple[Operand, Projected]]
) -> Iterator[tuple[Projected, ...]]:
    """Layers on one source, and then the same layers read from each later tensor on their rows' way to the product.

    Over windows of a map, heads are no whole axes of the map; they are of what the windows were cut into.
    """
    yield tuple(projected for _, projected in members)
    first, *others = (projected.layer.moves for _, projected in members)
    for count in range(1, len(first) + 1):
        if any(moves[:count] != first[:count] for moves in others):
            return
        found = [
            read_over(view, operand, _from(layer, count))
            for operand, layer in ((operand, projected.layer) for operand, projected in members)
        ]
        if all(found):
            yield tuple(each for each in found if each is not None)
