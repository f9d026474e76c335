"""Nodes of a model put behind calls, and into branches: as deep, and in such a circle, as nobody writes them."""

from __future__ import annotations

import random

import onnx
from onnx import TensorProto, helper


def replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def in_function(model: onnx.ModelProto, rng: random.Random) -> None:
    """One node or a few behind a call; the function may call itself, or another one that calls it."""
    nodes = list(model.graph.node)
    first = rng.randrange(len(nodes))
    inside = nodes[first : first + rng.choice([1, 2, 10, 100])]
    made = [name for node in inside for name in node.output if name]
    reads = [name for node in inside for name in node.input if name and name not in made]
    inputs, number = list(dict.fromkeys(reads)), len(model.functions)
    opsets = [helper.make_opsetid(each.domain, each.version) for each in model.opset_import]
    opsets += [helper.make_opsetid("my.functions", 1)]
    body = [onnx.NodeProto.FromString(node.SerializeToString()) for node in inside]
    knot = rng.choice(["none", "none", "itself", "each other"])
    other = f"f{number}" if knot == "itself" else f"g{number}"
    call = helper.make_node(f"f{number}", inputs, made, domain="my.functions", name=f"call{number}")
    if knot != "none":
        body = [helper.make_node(other, inputs, made, domain="my.functions")]
    model.functions.append(helper.make_function("my.functions", f"f{number}", inputs, made, body, opsets))
    if knot == "each other":
        back = [helper.make_node(f"f{number}", inputs, made, domain="my.functions")]
        model.functions.append(helper.make_function("my.functions", other, inputs, made, back, opsets))
    if all(each.domain != "my.functions" for each in model.opset_import):
        model.opset_import.add(domain="my.functions", version=1)
    model.ir_version = max(model.ir_version, 8)
    replace_nodes(model.graph, [*nodes[:first], call, *nodes[first + len(inside) :]])


def in_branches(model: onnx.ModelProto, rng: random.Random) -> None:
    """A node, or all from it on, in a branch of an If, of an If, …"""
    nodes = list(model.graph.node)
    first = rng.randrange(len(nodes))
    inside = nodes[first : first + rng.choice([1, 5, len(nodes)])]
    read = {name for node in nodes for name in node.input} | {value.name for value in model.graph.output}
    made, rest = [name for node in inside for name in node.output if name in read], nodes[first + len(inside) :]
    for level in range(rng.choice([1, 1, 2, 5, 12])):
        names = [f"{name}/{level}" for name in made]
        inside = [*_fork(level, inside, made, names, rng), *map(_same, names, made)]
    replace_nodes(model.graph, [*nodes[:first], *inside, *rest])


def _fork(
    level: int, inside: list[onnx.NodeProto], made: list[str], names: list[str], rng: random.Random
) -> list[onnx.NodeProto]:
    """`names`: what `inside` makes, or zeros; the outermost also in the other branch."""
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in made]
    zeros = [_constant(name, TensorProto.FLOAT, 0) for name in made]
    branches = [inside, inside if level == 0 and rng.random() < 0.5 else zeros]
    graphs = [helper.make_graph(nodes, f"branch{level}.{i}", [], outputs) for i, nodes in enumerate(branches)]
    condition = _constant(f"condition{level}", TensorProto.BOOL, rng.random() < 0.5)
    fork = helper.make_node("If", [condition.output[0]], names, then_branch=graphs[0], else_branch=graphs[1])
    return [condition, fork]


def _constant(name: str, elem_type: int, value: float) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=helper.make_tensor("", elem_type, [], [value]))


def _same(name: str, other: str) -> onnx.NodeProto:
    return helper.make_node("Identity", [name], [other])
