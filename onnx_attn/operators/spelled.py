"""Nodes that others stand for, and how they are put in place of what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx


@dataclass(frozen=True)
class Spelled:
    """A node in plain nodes, which make its outputs under their names, and the constants that they read."""

    nodes: Sequence[onnx.NodeProto]
    initializers: Mapping[str, onnx.TensorProto]


def put_in_place(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], instead: Mapping[int, Spelled]) -> None:
    """Make `nodes` those of the graph, what stands for some of them in their place, by position; constants are stored once."""
    written, stored = list[onnx.NodeProto](), {tensor.name for tensor in graph.initializer}
    for place, node in enumerate(nodes):
        spelled = instead.get(place)
        written.extend(spelled.nodes if spelled is not None else [node])
        fresh = [t for name, t in spelled.initializers.items() if name not in stored] if spelled is not None else []
        graph.initializer.extend(fresh)
        stored |= {tensor.name for tensor in fresh}
    del graph.node[:]
    graph.node.extend(written)
