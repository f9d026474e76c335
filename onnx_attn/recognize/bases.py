"""The tensors that everything a site reads comes through: one of them is the map that its windows are cut out of.

A walk up from Q, K and V, latest node first, through what leaves tokens apart (`views.tokens`). Where only one tensor is left to
walk on from, all three are made of it alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.views.folding import is_fixed
from onnx_attn.views.movement import Step
from onnx_attn.views.tokens import tokens_above

MOST_NODES = 512
"""Of one walk up to what joins tokens: a roll and a partition take dozens, Q, K and V with norms of their own thirty each."""
MOST_SUMS = 128
"""How many residual sums may be gone back over."""


@dataclass(frozen=True)
class Base:
    """A tensor that Q, K and V are made of alone, and the nodes in between, in an order in which they can be run."""

    tensor: gs.Tensor
    steps: tuple[Step, ...]


def bases(view: GraphView, tensors: Sequence[gs.Tensor]) -> list[Base]:
    """From the nearest up to where tokens are joined."""
    return _walk(view, tensors, ())


def bases_before(view: GraphView, base: Base) -> list[Base]:
    """Those above a residual sum, and above the sums before it: a token keeps its place where something is added to it.

    What is added comes later than what it is added to: the way goes on along the summand that was there first.
    """
    found: list[Base] = []
    for _ in range(MOST_SUMS):
        node = view.producer(base.tensor)
        if node is None or node.op != "Add" or node.domain not in STANDARD or not view.in_main_graph(node):
            break
        first = min(node.inputs, key=lambda tensor: _place(view, tensor))
        if view.shapes(first) != view.shapes(base.tensor) or any(is_fixed(view, each) for each in node.inputs):
            break
        found += _walk(view, [first], (Step(node, base.tensor), *base.steps))
        base = found[-1]
    return found


def _walk(view: GraphView, tensors: Sequence[gs.Tensor], below: tuple[Step, ...]) -> list[Base]:
    """Of one tensor, itself at least."""
    waiting = {tensor.name: tensor for tensor in tensors}
    queue = [(-_place(view, tensor), name) for name, tensor in waiting.items()]
    heapq.heapify(queue)
    steps: list[Step] = []
    found: list[Base] = []
    for _ in range(MOST_NODES):
        if len(queue) == 1:
            found.append(Base(waiting[queue[0][1]], (*reversed(steps), *below)))
        tensor = waiting[heapq.heappop(queue)[1]]
        node = view.producer(tensor)
        above = tokens_above(view, node, tensor) if node is not None else None
        if above is None:
            break
        steps.append(Step(node, tensor))
        for each in above:
            if each.name not in waiting:
                waiting[each.name] = each
                heapq.heappush(queue, (-_place(view, each), each.name))
    return found


def _place(view: GraphView, tensor: gs.Tensor) -> int:
    """Where a tensor is made: inputs of the graph come before every node."""
    node = view.producer(tensor)
    return view.position(node) if node is not None and view.in_main_graph(node) else -1
