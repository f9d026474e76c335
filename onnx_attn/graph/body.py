"""A body of If, Loop or Scan as a model of its own, and back.

What a body reads of the scopes around it become inputs of the model, weights become weights of it; back in its place the body
reads them from where they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import onnx
from onnx import helper

from onnx_attn.graph.edit import reads, subgraphs
from onnx_attn.graph.world import World

MOST_NODES = 64
"""How many nodes of the main graph may compute one size that a body reads."""


@dataclass(frozen=True)
class Body:
    """A body taken out. owner: the index of its node in the main graph. attribute: which of the node's.

    shared: it reads weights that somebody else reads too.
    """

    owner: int
    attribute: str
    model: onnx.ModelProto
    captured: frozenset[str]
    shared: bool


def take_out(model: onnx.ModelProto, owner: int, attribute: str, worlds: Collection[World]) -> Body | None:
    """The body in an attribute of a node of the main graph; None where the type of something that it reads is not known."""
    node = model.graph.node[owner]
    graph = next(each.g for each in node.attribute if each.name == attribute)
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    made |= {name for inner in graph.node for name in inner.output}
    wanted = dict.fromkeys(name for inner in graph.node for name in reads(inner) if name and name not in made)
    wanted |= dict.fromkeys(value.name for value in graph.output if value.name not in made)
    sizes = _from_sizes(model, wanted)
    produced = {name for inner in sizes for name in inner.output}
    wanted |= dict.fromkeys(name for inner in sizes for name in inner.input if name and name not in produced)
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in wanted}
    inside = onnx.GraphProto()
    inside.CopyFrom(graph)
    if sizes:
        del inside.node[:]
        inside.node.extend([*sizes, *graph.node])
    for name in wanted:
        if name in produced:
            continue
        if name in weights:
            inside.initializer.append(weights[name])
            continue
        value = _typed(name, worlds)
        if value is None:
            return None
        inside.input.append(value)
    lifted = onnx.ModelProto(ir_version=max(model.ir_version, 8), graph=inside)
    lifted.opset_import.extend(model.opset_import)
    lifted.functions.extend(model.functions)
    uses = Counter(name for each in model.graph.node for name in reads(each))
    inner_uses = Counter(name for inner in graph.node for name in reads(inner))
    shared = any(uses[name] != inner_uses[name] for name in weights)
    return Body(owner, attribute, lifted, frozenset({*wanted, *produced}), shared)


def _from_sizes(model: onnx.ModelProto, wanted: Collection[str]) -> list[onnx.NodeProto]:
    """The nodes of the main graph that compute some of these values from constants and shapes alone, in order: with them the
    body's own shapes can be told."""
    positions = {name: number for number, node in enumerate(model.graph.node) for name in node.output}
    stored = {tensor.name for tensor in model.graph.initializer}
    found: set[int] = set()
    for name in wanted:
        chain: set[int] = set()
        queue = [name]
        while queue and len(chain) <= MOST_NODES:
            name = queue.pop()
            if name in stored or positions.get(name) in chain:
                continue
            node = model.graph.node[positions[name]] if name in positions else None
            if node is None or node.domain not in ("", "ai.onnx") or any(subgraphs(node)):
                break
            chain.add(positions[name])
            queue.extend(each for each in node.input if each and node.op_type != "Shape")
        else:
            found |= chain if not queue else set()
    return [model.graph.node[number] for number in sorted(found)]


def _typed(name: str, worlds: Collection[World]) -> onnx.ValueInfoProto | None:
    """A value of an outer scope: sizes that are the same in all worlds are static, others have a name for each pair of sizes."""
    shapes = [world.shape(name) for world in worlds]
    element = next(iter(worlds)).elem_type(name)
    if not element or any(shape is None for shape in shapes):
        return None
    dims = [
        sizes[0] if len(set(sizes)) == 1 else "size_" + "_".join(map(str, sizes)) for sizes in zip(*shapes, strict=True)
    ]
    return helper.make_tensor_value_info(name, element, dims)


def put_back(model: onnx.ModelProto, body: Body, changed: onnx.ModelProto) -> None:
    """Replace the body by what became of it. Weights of the main graph that nobody reads any more are removed."""
    target = next(each.g for each in model.graph.node[body.owner].attribute if each.name == body.attribute)
    kept_inputs = [value for value in changed.graph.input if value.name not in body.captured]
    kept_weights = [tensor for tensor in changed.graph.initializer if tensor.name not in body.captured]
    for field in ("node", "input", "initializer", "value_info"):
        target.ClearField(field)
    target.node.extend(node for node in changed.graph.node if not body.captured.issuperset(node.output))
    target.input.extend(kept_inputs)
    target.initializer.extend(kept_weights)
    target.value_info.extend(value for value in changed.graph.value_info if value.name not in body.captured)
    present = {(function.domain, function.name) for function in model.functions}
    model.functions.extend(f for f in changed.functions if (f.domain, f.name) not in present)
    domains = {entry.domain for entry in model.opset_import}
    model.opset_import.extend(entry for entry in changed.opset_import if entry.domain not in domains)
    model.ir_version = max(model.ir_version, changed.ir_version)
    read = {name for node in model.graph.node for name in reads(node)} | {value.name for value in model.graph.output}
    gone = [t for t in model.graph.initializer if t.name in body.captured and t.name not in read]
    for tensor in gone:
        model.graph.initializer.remove(tensor)


def bodies_of(node: onnx.NodeProto) -> list[str]:
    """The attributes of a node that hold one body each."""
    return [each.name for each in node.attribute if each.type == onnx.AttributeProto.GRAPH]


def names_within(model: onnx.ModelProto) -> set[str]:
    """Every value name of a model, those in bodies included: what a body makes must have none of them."""
    names: set[str] = set()
    stack = [model.graph]
    while stack:
        graph = stack.pop()
        names.update(value.name for value in (*graph.input, *graph.output))
        names.update(tensor.name for tensor in graph.initializer)
        for node in graph.node:
            names.update(node.output)
            stack.extend(subgraphs(node))
    return names
