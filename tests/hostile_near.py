"""Changes after which a model runs as a rule, and computes something else: what only looks like attention still."""

from __future__ import annotations

import random

import onnx
from onnx import TensorProto, helper

UNARY = (
    "Neg",
    "Abs",
    "Relu",
    "Tanh",
    "Sqrt",
    "Exp",
    "Sigmoid",
    "Identity",
    "Dropout",
    "Softmax",
    "LogSoftmax",
    "Floor",
)
BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow")
NUMBERS = (0.0, 0.5, 1.0, -1.0, 2.0)
FILLS = (*NUMBERS, -1e4, -3.4028234663852886e38, float("-inf"))
"""Larger numbers that are added or subtracted round what was there away, and then two right answers differ."""


NOT_NEAR = ("to", "value", "softcap")
"""What makes a cast another one; and a negative softcap, which the specification's body applies and ONNX Runtime does not."""


def inserted(model: onnx.ModelProto, rng: random.Random) -> None:
    """One reader of a value reads what an operator makes of it; or the operator does it with a value of another node."""
    graph, number = model.graph, len(model.graph.node)
    place = rng.randrange(number)
    reader = graph.node[place]
    if not reader.input:
        return
    slot = rng.randrange(len(reader.input))
    name, made = reader.input[slot], f"inserted{number}"
    if not name:
        return
    nodes = _between(name, made, model, rng, place)
    reader.input[slot] = made
    for each in reversed(nodes):
        graph.node.insert(place, each)


def _between(name: str, made: str, model: onnx.ModelProto, rng: random.Random, place: int) -> list[onnx.NodeProto]:
    kind = rng.choice(["unary", "number", "number", "value", "cast", "where", "isnan", "turn"])
    if kind == "unary":
        return [helper.make_node(rng.choice(UNARY), [name], [made])]
    if kind == "turn":
        perm = rng.sample(range(4), 4) if rng.random() < 0.7 else [0, 2, 1]
        return [helper.make_node("Transpose", [name], [made], perm=perm)]
    if kind == "cast":
        kinds = (TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32)
        half = helper.make_node("Cast", [name], [f"{made}/narrow"], to=rng.choice(kinds))
        return [half, helper.make_node("Cast", [f"{made}/narrow"], [made], to=TensorProto.FLOAT)]
    other = f"{made}/other"
    fills = FILLS if kind in ("where", "isnan") else NUMBERS
    constant = helper.make_tensor("", TensorProto.FLOAT, [], [rng.choice(fills)])
    number = helper.make_node("Constant", [], [other], value=constant)
    if kind == "where":
        condition = helper.make_node("Greater", [name, other], [f"{made}/which"])
        sides = [name, other] if rng.random() < 0.5 else [other, name]
        return [number, condition, helper.make_node("Where", [f"{made}/which", *sides], [made])]
    if kind == "isnan":
        condition = helper.make_node("IsNaN", [name], [f"{made}/which"])
        return [number, condition, helper.make_node("Where", [f"{made}/which", other, name], [made])]
    if kind == "value":
        earlier = [each for node in model.graph.node[:place] for each in node.output if each]
        sides = [name, rng.choice(earlier or [name])]
        return [helper.make_node(rng.choice(BINARY), sides if rng.random() < 0.5 else sides[::-1], [made])]
    sides = [name, other] if rng.random() < 0.7 else [other, name]
    return [number, helper.make_node(rng.choice(BINARY), sides, [made])]


def attribute_near(model: onnx.ModelProto, rng: random.Random) -> None:
    """Another axis, order of axes, factor or flag, of those that an operator may well have."""
    found = [each for node in model.graph.node for each in node.attribute if each.name not in NOT_NEAR]
    if not found:
        return
    attribute = rng.choice(found)
    if attribute.ints:
        numbers = list(attribute.ints)
        rng.shuffle(numbers)
        attribute.ints[:] = numbers
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = rng.choice([-3, -2, -1, 0, 1, 2, 3])
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = rng.choice(NUMBERS)


def also_read(model: onnx.ModelProto, rng: random.Random) -> None:
    """A value is a second output, or somebody else's input."""
    names = [name for node in model.graph.node for name in node.output if name]
    name, made = rng.choice(names), f"also{len(model.graph.node)}"
    if rng.random() < 0.5:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    else:
        model.graph.node.append(helper.make_node("Neg", [name], [made]))
        model.graph.output.append(helper.make_tensor_value_info(made, TensorProto.FLOAT, None))


def operand_near(model: onnx.ModelProto, rng: random.Random) -> None:
    """Reads what another node of the same operator reads, or makes."""
    node = rng.choice(model.graph.node)
    like = [each for each in model.graph.node if each.op_type == node.op_type and each.input]
    if node.input and like:
        other = rng.choice(like)
        node.input[rng.randrange(len(node.input))] = rng.choice([*other.input, *other.output])


NEAR = (inserted, inserted, inserted, attribute_near, also_read, operand_near)
