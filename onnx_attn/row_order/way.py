"""The way of rows from where they are made to where they are read again: which they are, and who reads them in between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.forms.owning import reads_shape
from onnx_attn.graph.view import GraphView
from onnx_attn.row_order.token_wise import keeps_rows, row_index, row_operands
from onnx_attn.views.movement import Step, index_map, moves
from onnx_attn.views.trace import Trace, trace

Landings = Mapping[str, Sequence[tuple[gs.Tensor, Trace]]]
"""By name, where a moved value is read token by token again, and how it came there."""


Asked = list[tuple[gs.Node, gs.Tensor]]
"""Readers of nothing but a value's shape, each with the value."""


def landings(view: GraphView) -> Landings:
    """For every value whose rows are moved, and then read by a token-wise node."""
    found: dict[str, dict[str, tuple[gs.Tensor, Trace]]] = {}
    for node in view.graph.nodes:
        if not any(_is_moved(view, tensor) for tensor in node.inputs) or moves(view, node, node.outputs[0]):
            continue  # (Through an identity the row goes on.)
        for place in row_operands(view, node):
            tensor = node.inputs[place]
            way = trace(view, tensor) if _is_moved(view, tensor) else None
            if way is not None and way.steps and way.factor == 1.0:
                found.setdefault(way.source.name, {})[tensor.name] = (tensor, way)
    return {name: _first(list(ends.values())) for name, ends in found.items()}


def _is_moved(view: GraphView, tensor: gs.Tensor) -> bool:
    above = view.producer(tensor)
    return above is not None and (above.op == "Concat" or moves(view, above, tensor))


def _first(ends: list[tuple[gs.Tensor, Trace]]) -> list[tuple[gs.Tensor, Trace]]:
    """Without those that others lie on the way to."""
    names = {tensor.name for tensor, _ in ends}
    return [end for end in ends if names.isdisjoint(step.output.name for step in end[1].steps[:-1])]


def rows_of(view: GraphView, way: Trace) -> tuple[np.ndarray, ...] | None:
    """World by world, the rows of a way's source that lie at its end; None if rows are not moved whole."""
    shapes = view.shapes(way.source)
    if shapes is None:
        return None
    key = ("rows", way.source.name, shapes, tuple(step.output.name for step in way.steps))
    if key not in view.found:
        found = []
        for world, shape in zip(view.worlds, shapes, strict=True):
            index = index_map(world, shape, way.steps)
            found.append(None if index is None else row_index(index, shape[-1]))
        view.found[key] = None if any(each is None for each in found) else tuple(found)
    rows: tuple[np.ndarray, ...] | None = view.found[key]
    return rows


def nodes_of(way: Trace) -> list[gs.Node]:
    """Its nodes, each once."""
    return list({id(step.node): step.node for each in way.steps for step in each.whole}.values())


def all_through(source: gs.Tensor, nodes: Sequence[gs.Node]) -> list[gs.Tensor]:
    """What the nodes of a way make of its source one after the other, as long as all of the way comes through it."""
    found, tensor = list[gs.Tensor](), source
    while True:
        readers = {id(node): node for node in nodes if any(each is tensor for each in node.inputs)}
        node = next(iter(readers.values())) if len(readers) == 1 else None
        if node is None or len(node.outputs) != 1:
            return found
        tensor = node.outputs[0]
        found.append(tensor)


def below(way: Trace, source: gs.Tensor) -> Trace | None:
    """The rest of a way from a tensor on that all of it comes through."""
    steps = _steps_below(way.steps, source) if source is not way.source else way.steps
    return None if steps is None else Trace(source, 1.0, steps)


def _steps_below(steps: tuple[Step, ...], source: gs.Tensor) -> tuple[Step, ...] | None:
    for place, step in enumerate(steps):
        if step.output is source:
            return steps[place + 1 :]
    branches = [_steps_below(branch, source) for branch in steps[0].branches] if steps else []
    if not branches or any(branch is None for branch in branches):
        return None
    return (replace(steps[0], branches=tuple(branch for branch in branches if branch is not None)), *steps[1:])


def only_read(
    view: GraphView, way: Trace, first: Sequence[gs.Node], last: Iterable[gs.Node], ends: Sequence[gs.Tensor]
) -> Asked | None:
    """Who asks for the shape of what a way makes on its way, where nobody else reads it; None if somebody does.

    first: the nodes that make the way's source, if that goes too; else the source's rows may be read in other axes as well.
    last: may read what comes before the ends.
    """
    nodes = nodes_of(way)
    inside = {id(node) for node in (*nodes, *last)}
    kept = {tensor.name for tensor in ends} | (set() if first else _in_front(view, way, nodes))
    asking = []
    for tensor in (tensor for node in (*first, *nodes) for tensor in node.outputs):
        if tensor.name in kept:
            continue
        if tensor.name in view.pinned:
            return None
        for reader in view.readers(tensor):
            if id(reader) in inside:
                continue
            if not reads_shape(view, reader):
                return None
            asking.append((reader, tensor))
    return list({id(reader): (reader, tensor) for reader, tensor in asking}.values())


def _in_front(view: GraphView, way: Trace, nodes: Sequence[gs.Node]) -> set[str]:
    """What says the rows of a way's source in other axes, before any are moved: all of the way comes through it."""
    found = set[str]()
    for tensor in all_through(way.source, nodes):
        if not keeps_rows(view, tensor.inputs[0]):
            break
        found.add(tensor.name)
    return found
