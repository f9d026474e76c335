"""Other attributes, types, shapes and weights than a model has, from likely to impossible."""

from __future__ import annotations

import math
import random

import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

NUMBERS = (-(2**63), -(2**31), -7, -2, -1, 0, 1, 2, 3, 5, 64, 2**31, 2**40, 2**63 - 1)
# Whole weights of the last ones overflow, and what is cleared behind that is no rounding of the same numbers.
FLOATS = (0.0, -1.0, 1e-30, 3.0, 1e38, float("inf"), float("-inf"), float("nan"))
TEXTS = (b"", b"x", b"\xff\xfe", b"NOTSET", b"bij,bjk->bik", b"i" * 200)


def _attribute(model: onnx.ModelProto, rng: random.Random) -> tuple[onnx.NodeProto, AttributeProto] | None:
    found = [(node, attribute) for node in model.graph.node for attribute in node.attribute]
    return rng.choice(found) if found else None


def attribute_value(model: onnx.ModelProto, rng: random.Random) -> None:
    if (found := _attribute(model, rng)) is None:
        return
    attribute = found[1]
    attribute.i, attribute.f, attribute.s = rng.choice(NUMBERS), rng.choice(FLOATS), rng.choice(TEXTS)
    if attribute.ints:
        numbers = list(attribute.ints)
        changed = [numbers[::-1], numbers + numbers, numbers[1:], [rng.choice(NUMBERS) for _ in numbers]]
        attribute.ints[:] = rng.choice(changed)
    if attribute.HasField("t"):
        _spoil(attribute.t, rng)


def attribute_kind(model: onnx.ModelProto, rng: random.Random) -> None:
    if (found := _attribute(model, rng)) is not None:
        found[1].type = rng.choice(list(AttributeProto.AttributeType.values()))


def attribute_gone(model: onnx.ModelProto, rng: random.Random) -> None:
    if (found := _attribute(model, rng)) is not None:
        found[0].attribute.remove(found[1])


def attribute_more(model: onnx.ModelProto, rng: random.Random) -> None:
    names = [
        "axis",
        "perm",
        "to",
        "axes",
        "keepdims",
        "alpha",
        "transA",
        "start",
        "end",
        "noop_with_empty_axes",
        "what",
    ]
    value = rng.choice([*NUMBERS, *FLOATS, *TEXTS, [0, 1], [1.0]])
    rng.choice(model.graph.node).attribute.append(helper.make_attribute(rng.choice(names), value))


def _values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    graph = model.graph
    return [*graph.input, *graph.input, *graph.output, *graph.value_info]


def value_type(model: onnx.ModelProto, rng: random.Random) -> None:
    value = rng.choice(_values(model))
    if rng.random() < 0.1:
        value.type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    else:
        value.type.tensor_type.elem_type = rng.choice([*range(24), 99, -1])


def value_shape(model: onnx.ModelProto, rng: random.Random) -> None:
    value = rng.choice(_values(model)).type.tensor_type
    dims = value.shape.dim
    if not dims or rng.random() < 0.15:
        rng.choice([lambda: value.ClearField("shape"), lambda: dims.add(dim_value=3)])()
    elif rng.random() < 0.15:
        del dims[rng.randrange(len(dims))]
    elif rng.random() < 0.4:
        rng.choice(dims).dim_param = rng.choice(["batch", "n", "", "2*n", "batch + 1"])
    else:
        rng.choice(dims).dim_value = rng.choice(NUMBERS)


def _spoil(tensor: TensorProto, rng: random.Random) -> None:
    """Other numbers, another size than its data, another type, no data, or data elsewhere."""
    kind = rng.choice(["numbers", "numbers", "numbers", "dims", "type", "empty", "outside", "flat", "scalar"])
    if kind == "numbers" and tensor.data_type == TensorProto.INT64:
        count = max(1, len(tensor.raw_data) // 8 or len(tensor.int64_data))
        numbers = [rng.choice(NUMBERS) for _ in range(min(count, 64))]
        if tensor.raw_data and count <= 64:
            place = 8 * rng.randrange(count)
            tensor.raw_data = (
                tensor.raw_data[:place] + numbers[0].to_bytes(8, "little", signed=True) + tensor.raw_data[place + 8 :]
            )
        elif tensor.int64_data:
            tensor.int64_data[0] = numbers[0]
    elif kind == "numbers" and tensor.data_type == TensorProto.FLOAT and len(tensor.raw_data) >= 4:
        number = helper.make_tensor(
            "", TensorProto.FLOAT, [1], [rng.choice(FLOATS if math.prod(tensor.dims) == 1 else FLOATS[:4])]
        ).float_data[0]
        tensor.raw_data = numpy_helper.from_array(numpy_helper.to_array(tensor) * 0 + number).raw_data
    elif kind == "dims":
        tensor.dims.append(rng.choice(NUMBERS))
    elif kind == "type":
        tensor.data_type = rng.choice([*range(24), 99])
    elif kind == "empty":
        tensor.ClearField("raw_data")
    elif kind == "outside":
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=rng.choice(["nowhere.bin", "../x", "/etc/hostname", ""]))
    elif kind == "flat":
        tensor.dims[:] = [-1] if rng.random() < 0.2 else [math.prod(tensor.dims)]
    elif len(tensor.dims) == 1 and tensor.dims[0] == 1:
        del tensor.dims[:]


def weight(model: onnx.ModelProto, rng: random.Random) -> None:
    if model.graph.initializer:
        _spoil(rng.choice(model.graph.initializer), rng)


def weight_gone(model: onnx.ModelProto, rng: random.Random) -> None:
    if model.graph.initializer:
        del model.graph.initializer[rng.randrange(len(model.graph.initializer))]


def weight_is_input(model: onnx.ModelProto, rng: random.Random) -> None:
    """A weight that callers may replace."""
    if model.graph.initializer:
        tensor = rng.choice(model.graph.initializer)
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
