"""How far a block's rows may stay in the order of its windows: token-wise nodes make the same of each row wherever it lies."""

from __future__ import annotations

import heapq
from collections.abc import Set
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnx_attn.forms.owning import reads_shape
from onnx_attn.graph.view import GraphView
from onnx_attn.row_order.block import Block
from onnx_attn.row_order.token_wise import keeps_rows, row_operands

MOST_NODES = 512
"""How many nodes one block may have."""


@dataclass(frozen=True)
class Region:
    """The nodes behind a block's attention that are computed in window order, in graph order.

    exits: what others read, in the map's order.
    shapes: readers of nothing but the shape of a value that goes, each with the value.
    """

    nodes: tuple[gs.Node, ...]
    exits: tuple[gs.Tensor, ...]
    shapes: tuple[tuple[gs.Node, gs.Tensor], ...]


def read_region(view: GraphView, block: Block, taken: Set[int]) -> Region:
    """All that follows from the block's attention and x row by row, up to where it is moved again. taken: nodes (by id) of
    other blocks.

    Only one value is moved back, of no more channels than x has: the region ends where that is so. What follows may be row by
    row too (the LayerNorm and the projections of a global attention, beside the residual that goes around them).
    """
    # With padding there are more rows in windows than on the map: no order of the same rows.
    nodes = _nodes(view, block, taken) if not any(block.partition.padding) else {}
    positions = sorted(nodes)
    for count in range(len(positions), 0, -1):
        some = {position: nodes[position] for position in positions[:count]}
        region = _bounded(view, block, _without_needless_aliases(view, some))
        if len(region.exits) <= 1 and all(_width(view, each) <= _width(view, block.entry) for each in region.exits):
            return region
    return _bounded(view, block, {})


def _width(view: GraphView, tensor: gs.Tensor) -> int:
    shapes = view.shapes(tensor)
    return shapes[0][-1] if shapes is not None else 0


def _nodes(view: GraphView, block: Block, taken: Set[int]) -> dict[int, gs.Node]:
    """By position."""
    ready = {block.entry.name, block.landed.name}
    found: dict[int, gs.Node] = {}
    queue: list[int] = []
    seen: set[int] = set()

    def wait_for(tensor: gs.Tensor) -> None:
        for reader in view.readers(tensor):
            if view.in_main_graph(reader) and (position := view.position(reader)) not in seen:
                seen.add(position)
                heapq.heappush(queue, position)

    wait_for(block.landed)
    while queue and len(found) < MOST_NODES:
        position = heapq.heappop(queue)
        node = view.graph.nodes[position]
        if id(node) in taken or id(node) in block.nodes:
            continue
        places = [0] if keeps_rows(view, node) else row_operands(view, node)
        if places and all(_known(view, node.inputs[place], ready) for place in places):
            found[position] = node
            ready.add(node.outputs[0].name)
            wait_for(node.outputs[0])
    return found


def _without_needless_aliases(view: GraphView, nodes: dict[int, gs.Node]) -> dict[int, gs.Node]:
    """Without those that only others read: what is moved back is moved back in one way."""
    inside = {id(node) for node in nodes.values()}
    for node in (nodes[position] for position in sorted(nodes, reverse=True)):
        if keeps_rows(view, node) and not any(id(reader) in inside for reader in view.readers(node.outputs[0])):
            inside.remove(id(node))
    return {position: node for position, node in nodes.items() if id(node) in inside}


def _known(view: GraphView, tensor: gs.Tensor, ready: Set[str]) -> str | None:
    """The value in window order that a tensor is, if need be with other axes before the last."""
    while tensor.name not in ready:
        node = view.producer(tensor)
        if node is None or not keeps_rows(view, node):
            return None
        tensor = node.inputs[0]
    return tensor.name


def _bounded(view: GraphView, block: Block, nodes: dict[int, gs.Node]) -> Region:
    inside = {id(node) for node in nodes.values()}
    exits, shapes = [], []
    for tensor in (block.landed, *(nodes[position].outputs[0] for position in sorted(nodes))):
        asking = [reader for reader in view.readers(tensor) if reads_shape(view, reader)]
        others = [reader for reader in view.readers(tensor) if not reads_shape(view, reader)]
        if tensor.name in view.pinned or any(id(reader) not in inside for reader in others):
            exits.append(tensor)
        else:
            shapes += [(reader, tensor) for reader in asking]
    return Region(tuple(nodes[position] for position in sorted(nodes)), tuple(exits), tuple(shapes))
