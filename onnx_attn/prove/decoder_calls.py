"""Inputs on which ONNX Runtime runs a model that has GroupQueryAttention, whose calls it does not take at any sizes and lengths.

Measured: onnxruntime 1.31.1 takes a first prompt, a step of one token, and one sequence that is continued by several. What it
answers for padding is not defined, so nothing is padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from onnx_attn.graph.inference import Inference
from onnx_attn.graph.view import GraphView
from onnx_attn.graph.world import World
from onnx_attn.prove.inputs import model_inputs

QUERY, PAST, LENGTHS, TOTAL = 0, 3, 5, 6


def decoder_calls(view: GraphView) -> list[dict[str, np.ndarray]]:
    """Inputs for the model in every way to call it; none where it has no such node, or no way is found."""
    nodes = [
        node for node in view.proto.graph.node if node.op_type == "GroupQueryAttention" and len(node.input) > TOTAL
    ]
    if not nodes:
        return []
    return [_inputs(view.proto, world, nodes) for world in _callable_worlds(view, nodes)]


def _inputs(proto: onnx.ModelProto, world: World, nodes: Sequence[onnx.NodeProto]) -> dict[str, np.ndarray]:
    inputs = model_inputs(proto, world, padded=False)
    for node in nodes:
        total = _total(world, node)
        for place, number in ((LENGTHS, total - 1), (TOTAL, total)):
            name = node.input[place]
            if name in inputs:
                inputs[name] = np.full_like(inputs[name], number)
    return inputs


def _total(world: World, node: onnx.NodeProto) -> int:
    known = world.value(node.input[TOTAL])
    if known is not None and known.size == 1:
        return int(known.reshape(-1)[0])
    _, new, past = _sizes(world, node)
    return new + past


def _callable_worlds(view: GraphView, nodes: Sequence[onnx.NodeProto]) -> Iterator[World]:
    """The model's own worlds where every node may be called so; else others: a prompt, steps, and one sequence, each in a cache
    that grows where the sizes can be chosen so."""
    own = view.worlds
    if len(own) == 1 and all(_callable(world, node) for world in own for node in nodes):
        yield from own
        return
    inference, seen = Inference(view.proto), set[tuple[bool, ...]]()
    for sizes in _with_one_changed([world.sizes for world in own]):
        world = _growing(inference, sizes, nodes) or inference.run(sizes)
        kind = tuple(size == least for size, least in zip(_sizes(world, nodes[0]), (1, 1, 0), strict=True))
        if kind not in seen and not world.failures and all(_callable(world, node) for node in nodes):
            seen.add(kind)
            yield world


def _growing(inference: Inference, sizes: Mapping[str, int], nodes: Sequence[onnx.NodeProto]) -> World | None:
    """The same with one dimension as long as past and new keys together, if that is the total length then."""
    _, new, past = _sizes(inference.run(dict(sizes)), nodes[0])
    for name in sizes:
        world = inference.run({**sizes, name: new + past})
        grown = _sizes(world, nodes[0])[1:] == (new, past) and all(_total(world, node) == new + past for node in nodes)
        if grown and not world.failures:
            return world
    return None


def _sizes(world: World, node: onnx.NodeProto) -> tuple[int, int, int]:
    """Of a call: sequences, new keys, and those of the past; 0 where they are not known, or are other sizes."""
    shapes = [world.shape(node.input[place]) or () for place in (QUERY, PAST)]
    query, past = (shape if len(shape) > 2 else (0, 0, 0) for shape in shapes)
    return query[0], query[1], past[2]


def _callable(world: World, node: onnx.NodeProto) -> bool:
    batch, new, _ = _sizes(world, node)
    return 1 in (batch, new) or _total(world, node) == new


def _with_one_changed(worlds: Sequence[Mapping[str, int]]) -> Iterator[dict[str, int]]:
    """One dimension 1 or 0; those that are the sum of it and another one in every world stay that."""
    sizes = worlds[0]
    for name, number in ((name, number) for number in (1, 0) for name in sizes):
        changed = {**sizes, name: number}
        for total in sizes:
            others = (each for each in sizes if len({total, each, name}) == 3)
            other = next((each for each in others if all(w[each] + w[name] == w[total] for w in worlds)), None)
            if other is not None:
                changed[total] = number + sizes[other]
        yield changed
