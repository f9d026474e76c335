"""What lies beneath the main graph: the bodies of If, Loop and Scan, and of the model's own functions, once a call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnx_attn.domain import DOMAIN
from onnx_attn.errors import InputError
from onnx_attn.graph.view import GraphView, label

MOST_NODES = 1_000_000
"""Nodes in all bodies together, a function's once a call. Functions that call each other twice double at every level."""


@dataclass(frozen=True)
class Nested:
    """A node in a body.

    owner: the node of the main graph that it lies beneath.
    scope: the way out, as compilers write it: `then (then_branch) | choice (If)`, `layer0 (Block)`.
    place: the same for people, one step of it.
    """

    node: gs.Node
    owner: gs.Node
    scope: str
    place: str


@dataclass(frozen=True)
class _Body:
    nodes: list[gs.Node]
    scope: str
    place: str
    inside: frozenset[tuple[str, str]] = frozenset()


def nested_nodes(view: GraphView) -> Iterator[Nested]:
    """Every node in a body beneath the main graph, in the order in which it runs. Bodies of our own functions are left out:
    they stand behind the node that calls them.

    Raises InputError where functions call each other so often that they hold more than MOST_NODES nodes.
    """
    functions = {(f.domain, f.name): f for f in view.graph.functions if f.domain != DOMAIN}
    count = 0
    for owner in view.graph.nodes:
        stack = [(body, iter(body.nodes)) for body in _bodies(owner, "", functions, frozenset())][::-1]
        while stack:
            body, nodes = stack[-1]
            node = next(nodes, None)
            if node is None:
                stack.pop()
                continue
            count += 1
            if count > MOST_NODES:
                raise InputError(
                    f"function call '{label(owner)}' holds more than {MOST_NODES:,} nodes; export without functions"
                )
            yield Nested(node, owner, body.scope, body.place)
            inner = _bodies(node, body.scope, functions, body.inside)
            stack.extend([(deeper, iter(deeper.nodes)) for deeper in inner][::-1])


def _bodies(
    node: gs.Node,
    scope: str,
    functions: dict[tuple[str, str], gs.Function],
    inside: frozenset[tuple[str, str]],
) -> Iterable[_Body]:
    outer = f" | {scope}" if scope else ""
    here = f"{label(node)} ({node.op}){outer}"
    for attribute, value in node.attrs.items():
        if isinstance(value, gs.Graph):
            place = f"body of {node.op} '{label(node)}'"
            yield _Body(value.nodes, f"{value.name} ({attribute}) | {here}", place, inside)
    key = (node.domain, node.op)
    if key in functions and key not in inside:
        yield _Body(functions[key].nodes, here, f"body of function '{node.op}'", inside | {key})
