"""Names that a compiler's report can be read by: every node of a scope has its own, and none breaks the report.

Source, measured with TensorRT for RTX 1.7.1: kernels list the nodes they compute as `[ONNX Layer: NAME]`, an unnamed node as
`node_of_OUTPUT`. Nodes of equal names are not told apart, and a `]`, a line break or a ` | ` in a name reads as something
else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx

from onnx_attn.graph.edit import subgraphs
from onnx_attn.graph.view import called

UNNAMED = "node_of_"
_UNSAFE = re.compile(r"[^\x20-\x7e]|[\[\]|]")
"""What an engine's report could not be read back with. Other alphabets are left out too: they cost nothing but a new name."""


def make_readable(model: onnx.ModelProto) -> dict[str, str]:
    """Rename, in place, the nodes whose name would not be told apart in a report; returns new name → what users call it.

    A node without a name is called by its first output, as reports here do. Nothing is renamed in a model where every name
    can be read already; names mean nothing to what a model computes.
    """
    renamed: dict[str, str] = {}
    functions = {(f.domain, f.name) for f in model.functions}
    for nodes in _scopes(model):
        taken: set[str] = set()
        for node in nodes:
            label = called(node)
            holds = not node.name and (
                (node.domain, node.op_type) in functions or next(iter(subgraphs(node)), None) is not None
            )
            written = node.name or UNNAMED + label
            if holds or not label or _UNSAFE.search(label) or not taken.isdisjoint((label, written)):
                stem = _UNSAFE.sub("_", label) or node.op_type
                node.name, count = stem, 1
                while node.name in taken or node.name in renamed:
                    count += 1
                    node.name = f"{stem}_{count}"
                renamed[node.name] = label or node.op_type
                label = written = node.name
            taken |= {label, written}
    return renamed


def as_written(name: str) -> tuple[str, str]:
    """How a report may write the node that users call `name`."""
    return name, UNNAMED + name


def _scopes(model: onnx.ModelProto) -> Iterator[list[onnx.NodeProto]]:
    """The nodes that are told apart by name alone: the main graph with all its bodies, and each function with its own. Of
    bodies of Loop and Scan, and of an If that is decided when it is compiled, the compiler does not tell the way out."""
    for start in (model.graph.node, *(function.node for function in model.functions)):
        nodes, stack = [], [start]
        while stack:
            for node in stack.pop():
                nodes.append(node)
                stack.extend(graph.node for graph in subgraphs(node))
        yield nodes
