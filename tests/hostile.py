"""Valid models, and what may become of one on its way: each change takes a model and a source of chance, and changes it.

A changed model may be a valid one of another meaning, a broken one, or no model at all.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx
from hostile_near import NEAR
from hostile_scopes import in_branches, in_function, replace_nodes
from knobs import Block, Knobs
from onnx import AttributeProto, TensorProto, defs, helper

Change = Callable[[onnx.ModelProto, random.Random], None]

EXPORTS = Path(__file__).parent / "exports"
LARGEST = 200_000
NUMBERS = (-(2**63), -(2**31), -7, -2, -1, 0, 1, 2, 3, 5, 64, 2**31, 2**40, 2**63 - 1)
FLOATS = (0.0, -1.0, 1e-30, 3.0, 1e38, float("inf"), float("-inf"), float("nan"))
TEXTS = (b"", b"x", b"\xff\xfe", b"NOTSET", b"bij,bjk->bik", b"i" * 200)
DOMAINS = ("", "ai.onnx", "com.microsoft", "onnx_attn", "my.company", "ai.onnx.ml")
OURS = ("ScaledDotProductAttention", "MultiHeadAttention", "FusedMatMul", "QAttention", "RotaryEmbedding", "Attention")


@cache
def small_exports() -> tuple[Path, ...]:
    return tuple(path for path in sorted(EXPORTS.glob("*.onnx")) if path.stat().st_size < LARGEST)


def generated(rng: random.Random) -> onnx.ModelProto:
    """A small valid block of attention, in one of its spellings."""
    pick = rng.choice
    opset = rng.randint(13, 23)
    knobs = Knobs(
        opset=opset,
        layout=pick(["BNSH", "heads3d", "sequence_first"]),
        projection=pick(["matmul", "gemm", "packed", "none"]),
        biases=pick(["", "k", "qkv"]),
        scale=pick(["scores_mul", "scores_div", "q_before", "k", "sqrt_both", "none"]),
        mask=pick(["none", "additive", "keep", "fill", "two"]),
        guard=pick([False, True]),
        dropout=pick(["none", "plain", "mode_false"]),
        dynamic=pick([(), ("batch",), ("batch", "sequence")]),
        norm=pick(["none", "plain"]) if opset >= 17 else "none",
        out=pick(["none", "matmul", "gemm"]),
        named=pick([True, True, False]),
    )
    return Block(knobs).model()


def start(rng: random.Random) -> onnx.ModelProto:
    """A valid model: a small export, or a generated block."""
    return onnx.load(rng.choice(small_exports())) if rng.random() < 0.5 else generated(rng)


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
        number = helper.make_tensor("", TensorProto.FLOAT, [1], [rng.choice(FLOATS)]).float_data[0]
        tensor.raw_data = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 0 + number).raw_data
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
        tensor.dims[:] = [-1] if rng.random() < 0.2 else [_count(tensor)]
    elif len(tensor.dims) == 1 and tensor.dims[0] == 1:
        del tensor.dims[:]


def _count(tensor: TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        count *= dim
    return count


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


def _any_name(model: onnx.ModelProto, rng: random.Random) -> str:
    graph = model.graph
    names = [name for node in graph.node for name in node.output] + [value.name for value in graph.input]
    return rng.choice([*names, *(tensor.name for tensor in graph.initializer), "", "nowhere"])


def input_other(model: onnx.ModelProto, rng: random.Random) -> None:
    """Reads another value: a wrong one, a later one (a cycle), its own, or one that is not there."""
    node = rng.choice(model.graph.node)
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice([_any_name(model, rng), *node.output])


def inputs_count(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(model.graph.node)
    if node.input and rng.random() < 0.5:
        del node.input[rng.randrange(len(node.input)) :]
    else:
        node.input.append(_any_name(model, rng))


def inputs_turned(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice([node for node in model.graph.node if len(node.input) > 1] or model.graph.node)
    node.input[:] = list(node.input)[::-1]


def output_other(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(model.graph.node)
    change = rng.choice(["name", "empty", "more", "none"])
    if change == "more":
        node.output.append(rng.choice(["", "more", _any_name(model, rng)]))
    elif change == "none":
        del node.output[:]
    elif node.output:
        node.output[0] = "" if change == "empty" else _any_name(model, rng)


def names_equal(model: onnx.ModelProto, rng: random.Random) -> None:
    for node in model.graph.node:
        node.name = rng.choice(["", "same"])


def operator(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(model.graph.node)
    present = [each.op_type for each in model.graph.node]
    known = sorted({schema.name for schema in defs.get_all_schemas() if not schema.domain})
    node.op_type = rng.choice([rng.choice(present), rng.choice(known), rng.choice(OURS), "Frobnicate", ""])


def domain(model: onnx.ModelProto, rng: random.Random) -> None:
    rng.choice(model.graph.node).domain = chosen = rng.choice(DOMAINS)
    if rng.random() < 0.8:
        model.opset_import.add(domain=chosen, version=1)


def opset(model: onnx.ModelProto, rng: random.Random) -> None:
    change = rng.choice(["version", "again", "gone", "ir"])
    if change == "version" and model.opset_import:
        model.opset_import[0].version = rng.choice([*range(31), -1, 2**40])
    elif change == "again":
        model.opset_import.add(domain="", version=rng.randint(1, 24))
    elif change == "gone":
        del model.opset_import[:]
    else:
        model.ir_version = rng.choice([0, 1, 3, 7, 99, 2**40])


def unsorted(model: onnx.ModelProto, rng: random.Random) -> None:
    nodes = list(model.graph.node)
    rng.shuffle(nodes)
    replace_nodes(model.graph, nodes)


def node_gone(model: onnx.ModelProto, rng: random.Random) -> None:
    del model.graph.node[rng.randrange(len(model.graph.node))]


def node_again(model: onnx.ModelProto, rng: random.Random) -> None:
    node = model.graph.node.add()
    node.CopyFrom(rng.choice(model.graph.node[:-1] or model.graph.node))
    if rng.random() < 0.6:
        node.output[:] = [f"{name}_again" for name in node.output]


def outputs_changed(model: onnx.ModelProto, rng: random.Random) -> None:
    change, outputs = rng.choice(["gone", "again", "inner", "input"]), model.graph.output
    if change == "gone":
        del outputs[:]
    elif change == "again" and outputs:
        outputs.append(outputs[0])
    else:
        outputs.append(helper.make_tensor_value_info(_any_name(model, rng), TensorProto.FLOAT, None))


CHANGES: tuple[Change, ...] = (
    *NEAR,
    attribute_value,
    attribute_kind,
    attribute_gone,
    attribute_more,
    value_type,
    value_shape,
    weight,
    weight_gone,
    weight_is_input,
    input_other,
    inputs_count,
    inputs_turned,
    output_other,
    names_equal,
    operator,
    domain,
    opset,
    unsorted,
    node_gone,
    node_again,
    outputs_changed,
    in_function,
    in_branches,
)
SOFT: tuple[Change, ...] = (
    *NEAR,
    *NEAR,
    inputs_turned,
    weight,
    weight_is_input,
    unsorted,
    in_function,
    in_branches,
    value_shape,
)
"""After which many a model still runs."""


def spoiled_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes of a file changed, left out, or there twice."""
    spoiled = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place, length = rng.randrange(len(spoiled)), rng.randint(1, 9)
        change = rng.choice(["flip", "flip", "cut", "twice"])
        if change == "flip":
            spoiled[place] = rng.randrange(256)
        else:
            part = spoiled[place : place + length]
            spoiled[place : place + length] = b"" if change == "cut" else part * 2
    return bytes(spoiled)
