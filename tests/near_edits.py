"""Small changes of a valid model after which it is, as a rule, valid still: one number, operator, order or reader is another.

What `hostile_near` has, and finer ones: a recogniser whose condition is wrong reads the changed model as if nothing had changed.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
from hostile_near import NEAR
from hostile_scopes import in_branches, in_function
from hostile_values import attribute_gone, weight_is_input
from onnx import TensorProto, helper, numpy_helper

Edit = Callable[[onnx.ModelProto, random.Random], None]

ALIKE = (
    ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "And", "Or", "Xor"),
    ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"),
    ("Softmax", "LogSoftmax", "Hardmax"),
    ("ReduceMax", "ReduceSum", "ReduceMin", "ReduceMean", "ReduceProd"),
    ("Exp", "Sqrt", "Neg", "Abs", "Sigmoid", "Tanh", "Identity", "Reciprocal", "Erf"),
    ("Gather", "GatherElements"),
    ("Unsqueeze", "Squeeze"),
)
"""Operators that take the same inputs."""


def tensors(model: onnx.ModelProto) -> list[TensorProto]:
    held = [each.t for node in model.graph.node for each in node.attribute if each.HasField("t")]
    return [*model.graph.initializer, *held]


def number(model: onnx.ModelProto, rng: random.Random) -> None:
    """One number of a tensor is another, or two have changed places; or all are one."""
    found = [each for each in tensors(model) if not each.external_data]
    small = [each for each in found if np.prod(each.dims) <= 64]
    if not found:
        return
    tensor = rng.choice(small if small and rng.random() < 0.7 else found)
    array = numpy_helper.to_array(tensor).copy()
    if not array.size or array.dtype.kind not in "fiub":
        return
    flat, place = array.reshape(-1), rng.randrange(array.size)
    if rng.random() < 0.25:
        other = rng.randrange(array.size)
        flat[place], flat[other] = flat[other].item(), flat[place].item()
    elif array.dtype.kind == "b":
        flat[place] = not flat[place]
    elif array.dtype.kind == "f":
        value = rng.choice([0.0, 1.0, -1.0, -np.inf, -1e4, 2 * float(flat[place]), -float(flat[place])])
        flat[place if rng.random() < 0.7 else slice(None)] = value
    else:
        wanted = rng.choice([int(flat[place]) + 1, int(flat[place]) - 1, 2 * int(flat[place]), 0, 1, -1])
        if np.iinfo(array.dtype).min <= wanted <= np.iinfo(array.dtype).max:
            flat[place] = wanted
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def skipped(model: onnx.ModelProto, rng: random.Random) -> None:
    """One reader of a node reads what the node reads."""
    made = {name: node for node in model.graph.node for name in node.output if name and node.input}
    readers = [(node, at) for node in model.graph.node for at, name in enumerate(node.input) if name in made]
    if readers:
        node, at = rng.choice(readers)
        node.input[at] = made[node.input[at]].input[0]


def alike(model: onnx.ModelProto, rng: random.Random) -> None:
    """Another operator that takes the same inputs."""
    groups = [(node, group) for node in model.graph.node for group in ALIKE if node.op_type in group]
    if groups:
        node, group = rng.choice(groups)
        node.op_type = rng.choice([each for each in group if each != node.op_type])


def turned(model: onnx.ModelProto, rng: random.Random) -> None:
    """Two inputs, or two outputs, have changed places."""
    found = [node for node in model.graph.node if len(node.input) > 1 or len(node.output) > 1]
    if not found:
        return
    node = rng.choice(found)
    names = node.input if len(node.output) < 2 or (len(node.input) > 1 and rng.random() < 0.6) else node.output
    first, second = rng.sample(range(len(names)), 2)
    names[first], names[second] = names[second], names[first]


def twice(model: onnx.ModelProto, rng: random.Random) -> None:
    """A node stands there twice, and one reader reads the second."""
    place = rng.randrange(len(model.graph.node))
    node = onnx.NodeProto()
    node.CopyFrom(model.graph.node[place])
    names = {name: f"{name}/again" for name in node.output if name}
    readers = [(each, at) for each in model.graph.node for at, name in enumerate(each.input) if name in names]
    if not readers:
        return
    each, at = rng.choice(readers)
    each.input[at] = names[each.input[at]]
    node.name += "/again" if node.name else ""
    node.output[:] = [names.get(name, "") for name in node.output]
    model.graph.node.insert(place, node)


def foreign(model: onnx.ModelProto, rng: random.Random) -> None:
    """A node is somebody else's, of the same name."""
    node = rng.choice(model.graph.node)
    node.domain = rng.choice(["my.company", "my.company", "com.microsoft"])
    if all(each.domain != node.domain for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid(node.domain, 1))


def input_vague(model: onnx.ModelProto, rng: random.Random) -> None:
    """A dimension of an input is not said, or has a name; or one of the model's inner shapes is not said."""
    values = [each for each in model.graph.input if each.type.tensor_type.shape.dim]
    if not values:
        return
    dims = rng.choice(values).type.tensor_type.shape.dim
    dim = rng.choice(dims)
    dim.ClearField("dim_value")
    if rng.random() < 0.8:
        dim.dim_param = rng.choice(["batch", "sequence", "n"])


def is_output(model: onnx.ModelProto, rng: random.Random) -> None:
    """What a node makes is an output of the model too."""
    names = [name for node in model.graph.node for name in node.output if name]
    known = {each.name for each in model.graph.output}
    name = rng.choice(names)
    if name not in known:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def reader(model: onnx.ModelProto, rng: random.Random) -> None:
    """One reader reads another value that is made earlier."""
    place = rng.randrange(len(model.graph.node))
    node = model.graph.node[place]
    earlier = [name for each in model.graph.node[:place] for name in each.output if name]
    earlier += [each.name for each in (*model.graph.input, *model.graph.initializer)]
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(earlier)


EDITS: tuple[Edit, ...] = (
    *NEAR,
    *NEAR,
    number,
    number,
    number,
    number,
    skipped,
    skipped,
    alike,
    alike,
    turned,
    turned,
    twice,
    foreign,
    input_vague,
    input_vague,
    is_output,
    reader,
    attribute_gone,
    weight_is_input,
    in_function,
    in_branches,
)
