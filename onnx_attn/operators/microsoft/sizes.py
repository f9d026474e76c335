"""Sizes at which ONNX Runtime runs a model that has GroupQueryAttention, whose calls it does not take at any.

Measured: onnxruntime 1.31.1 takes a first prompt, a step of one token, and one sequence that is continued by several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx

from onnx_attn.graph.inference import Inference
from onnx_attn.graph.view import GraphView
from onnx_attn.graph.world import World

QUERY, PAST = 0, 3


def callable_worlds(view: GraphView) -> tuple[World, ...]:
    """Worlds in which every such node is called as it may be; none where the model's own are of that kind, or nothing helps."""
    nodes = [
        each
        for each in view.proto.graph.node
        if each.op_type == "GroupQueryAttention" and each.domain == "com.microsoft"
    ]
    if not nodes or all(_callable(world, node) for world in view.worlds for node in nodes):
        return ()
    inference, found = Inference(view.proto), dict[tuple[tuple[str, int], ...], World]()
    for sizes in _with_one_changed(view.worlds[0].sizes):
        world = inference.run(sizes)
        if not world.failures and all(_callable(world, node) for node in nodes):
            found.setdefault(tuple(sorted(sizes.items())), world)
    return tuple(found.values())


def _callable(world: World, node: onnx.NodeProto) -> bool:
    query = world.shape(node.input[QUERY])
    past = world.shape(node.input[PAST]) if len(node.input) > PAST and node.input[PAST] else None
    return query is None or past is None or query[0] == 1 or query[1] == 1 or past[2] == 0


def _with_one_changed(sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """One dimension 1 or 0; those that are the sum of it and another one stay that."""
    for name, number in ((name, number) for number in (1, 0) for name in sizes):
        changed = {**sizes, name: number}
        for total, size in sizes.items():
            other = next((n for n in sizes if total != n != name != total and sizes[n] + sizes[name] == size), None)
            if other is not None:
                changed[total] = number + sizes[other]
        yield changed
