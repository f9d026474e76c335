"""Nodes of the original once more, on other values than they read before.

Where a value changes by an exact identity, what moves it about has to be written again: under its own name another value
would lie. The nodes keep their names, since nobody reads the old ones any more.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_graphsurgeon as gs

from onnx_attn.graph.edit import Splice, Writer
from onnx_attn.graph.view import GraphView


def write_again(writer: Writer, view: GraphView, nodes: Iterable[gs.Node], renamed: dict[str, str]) -> list[Splice]:
    """The nodes (in graph order) with new names for their results, which are entered in `renamed` (old name → new)."""
    splices = []
    for node in nodes:
        fresh = copied(view, node, renamed)
        for position, name in enumerate(fresh.output):
            if name:
                renamed[name] = fresh.output[position] = writer.names.value(f"{writer.prefix}/{name.lstrip('/')}")
        if fresh.name:
            fresh.name = writer.names.claim(fresh.name)
        splices.append(Splice(view.position(node), (fresh,), ()))
    return splices


def write_shapes_again(view: GraphView, nodes: Iterable[gs.Node], renamed: dict[str, str]) -> list[Splice]:
    """Readers of nothing but the shape of a renamed value: the new value has it too."""
    return [
        Splice(view.position(node), (copied(view, node, renamed),), tuple(output.name for output in node.outputs))
        for node in {id(node): node for node in nodes}.values()
    ]


def copied(view: GraphView, node: gs.Node, renamed: dict[str, str]) -> onnx.NodeProto:
    """The node's own message, reading the new values."""
    fresh = onnx.NodeProto()
    fresh.CopyFrom(view.proto.graph.node[view.position(node)])
    for position, name in enumerate(fresh.input):
        fresh.input[position] = renamed.get(name, name)
    return fresh
