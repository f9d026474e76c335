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
from hostile_values import (
    attribute_gone,
    attribute_kind,
    attribute_more,
    attribute_value,
    value_shape,
    value_type,
    weight,
    weight_gone,
    weight_is_input,
)
from knobs import Block, Knobs
from onnx import TensorProto, defs, helper

Change = Callable[[onnx.ModelProto, random.Random], None]

EXPORTS = Path(__file__).parent / "exports"
LARGEST = 200_000
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
