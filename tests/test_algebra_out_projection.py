"""What may stand between P·V and the out-projection that takes over V's bias, and what that layer may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_same, feeds
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH
from onnx import helper
from pre_norm import MIXED, ROOT, PreNorm, assert_applied, assert_sound, assert_stays, biases, products

VALUE = "value-bias"


def between(change: Callable[[PreNorm, str], str]) -> onnx.ModelProto:
    """A block in which something happens to P·V, merged, before the out-projection."""
    block = PreNorm()
    merged = block.net.merge_heads(block.attend(*block.heads(block.x)))
    return block.model(block.net.linear(change(block, merged), WIDTH, width=CHANNELS))


BETWEEN: dict[str, Callable[[PreNorm, str], str]] = {
    "ReLU": lambda b, t: b.net.op("Relu", t),
    "residual": lambda b, t: b.net.op("Add", t, b.layer(b.x)),
    "constant": lambda b, t: b.net.op("Add", t, b.net.weight(CHANNELS)),
    "scale": lambda b, t: b.net.op("Mul", t, b.net.const(3.0)),
    "gate": lambda b, t: b.net.op("Mul", t, b.net.weight(CHANNELS)),
    "norm": lambda b, t: b.net.op("LayerNormalization", t, b.net.const(np.ones(CHANNELS))),
    "softmax": lambda b, t: b.net.op("Softmax", t, axis=-1),
    "pad": lambda b, t: b.net.op("Pad", t, b.net.ints(0, 0, 0, 0, 1, 0)),
    "class token": lambda b, t: b.net.op("Concat", t, b.net.const(np.zeros((2, 1, CHANNELS))), axis=1),
    "dropout in training": lambda b, t: b.net.op("Dropout", t, b.net.const(0.0, np.float32), b.net.const(True, bool)),
    "mean": lambda b, t: b.net.op("ReduceMean", t, axes=[1]),
    "output": lambda b, t: b.net.output(t, 3) or t,
    "read": lambda b, t: b.net.output(b.net.op("Exp", t), 3) or t,
    "split": lambda b, t: b.net.op(
        "Concat", *b.net.op("Split", t, b.net.ints(HEAD_DIM, HEAD_DIM), outputs=2, axis=-1), axis=-1
    ),
}


@pytest.mark.parametrize("change", BETWEEN)
def test_what_stands_before_the_out_projection(change: str) -> None:
    fused = assert_stays(between(BETWEEN[change]), VALUE, "P·V")
    assert biases(fused) == [True, False, True]


HARMLESS: dict[str, Callable[[PreNorm, str], str]] = {
    "identity": lambda b, t: b.net.op("Identity", t),
    "dropout": lambda b, t: b.net.op("Dropout", t),
    "flat": lambda b, t: b.net.reshape(b.net.reshape(t, -1, CHANNELS), 2, 5, CHANNELS),
    "sequence first": lambda b, t: b.net.turn(t, 1, 0, 2),
    "first row": lambda b, t: b.net.op("Slice", t, b.net.ints(0), b.net.ints(1), b.net.ints(1)),
    "roll": lambda b, t: b.net.op("Gather", t, b.net.ints(4, 0, 1, 2, 3), axis=1),
    "other channels": lambda b, t: b.net.op("Gather", t, b.net.ints(*reversed(range(CHANNELS))), axis=2),
}


@pytest.mark.parametrize("change", HARMLESS)
def test_rows_may_be_moved_before_the_out_projection(change: str) -> None:
    assert_applied(between(HARMLESS[change]), *MIXED)


def test_rows_that_end_in_other_channels_by_place() -> None:
    """`b s n h` read as `b n s h` back: which channel of V an input gets depends on the row."""
    block = PreNorm()
    net = block.net
    merged = net.reshape(block.attend(*block.heads(block.x)), 2, 5, CHANNELS)
    assert_stays(block.model(net.linear(merged, WIDTH, width=CHANNELS)), VALUE, "mixes")


def gemm(behind_transpose: bool = False, bias: bool = True, **attributes: Any) -> onnx.ModelProto:
    block = PreNorm()
    net = block.net
    flat = net.reshape(net.merge_heads(block.attend(*block.heads(block.x))), -1, CHANNELS)
    transposed = bool(attributes.get("transB", 0)) != behind_transpose
    weight = net.weight(*((WIDTH, CHANNELS) if transposed else (CHANNELS, WIDTH)))
    weight = net.turn(weight, 1, 0) if behind_transpose else weight
    return block.model(net.op("Gemm", flat, weight, *([net.weight(WIDTH)] if bias else []), **attributes), 2)


@pytest.mark.parametrize("behind_transpose", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "attributes", [{}, {"transB": 1}, {"alpha": 0.7, "beta": 1.3}, {"transB": 1, "alpha": -2.0, "beta": 0.0}], ids=str
)
def test_out_projection_as_gemm(attributes: dict[str, Any], bias: bool, behind_transpose: bool) -> None:
    assert_applied(gemm(behind_transpose, bias, **attributes), *MIXED)


@pytest.mark.parametrize("shape", [(), (1,), (10, 1), (10, WIDTH)], ids=str)
def test_gemm_whose_bias_is_no_vector(shape: tuple[int, ...]) -> None:
    block = PreNorm()
    net = block.net
    flat = net.reshape(net.merge_heads(block.attend(*block.heads(block.x))), -1, CHANNELS)
    model = block.model(net.op("Gemm", flat, net.weight(CHANNELS, WIDTH), net.weight(*shape)), 2)
    assert_stays(model, VALUE, "no linear out-projection")


def test_product_whose_weights_stand_left() -> None:
    block = PreNorm()
    net = block.net
    turned = net.turn(net.merge_heads(block.attend(*block.heads(block.x))), 0, 2, 1)
    assert_stays(block.model(net.op("MatMul", net.weight(WIDTH, CHANNELS), turned)), VALUE, "no linear")


def test_weights_behind_a_transpose() -> None:
    block = PreNorm()
    net = block.net
    merged = net.merge_heads(block.attend(*block.heads(block.x)))
    assert_applied(block.model(net.op("MatMul", merged, net.turn(net.weight(WIDTH, CHANNELS), 1, 0))), *MIXED)


def test_out_projection_that_another_layer_shares() -> None:
    """Weights and bias stay for the other; only their sum is new."""
    block = PreNorm()
    net = block.net
    weight, bias = net.weight(CHANNELS, CHANNELS, name="W"), net.weight(CHANNELS, name="b")
    other = net.op("Add", net.op("MatMul", block.layer(block.x), weight), bias)
    merged = net.merge_heads(block.attend(*block.heads(block.x)))
    fused = assert_applied(
        block.model(net.op("Add", other, net.op("Add", net.op("MatMul", merged, weight), bias))), *MIXED
    )
    assert {"W", "b"} <= {tensor.name for tensor in fused.graph.initializer}


@pytest.mark.parametrize("which", ["product", "sum"])
def test_out_projection_that_is_read_on_its_way(which: str) -> None:
    """The product before its bias is a value of its own: it has to be the same as ever."""
    block = PreNorm()
    net = block.net
    product = net.op("MatMul", net.merge_heads(block.attend(*block.heads(block.x))), net.weight(CHANNELS, WIDTH))
    total = net.op("Add", product, net.weight(WIDTH))
    net.output(product if which == "product" else total, 3)
    assert_applied(block.model(net.op("Exp", total)), *MIXED)


@pytest.mark.parametrize("which", ["W", "b"])
@pytest.mark.parametrize("as_gemm", [False, True])
def test_out_projection_that_the_caller_may_replace(which: str, as_gemm: bool) -> None:
    block = PreNorm()
    net = block.net
    merged = net.merge_heads(block.attend(*block.heads(block.x)))
    weight, bias = net.weight(CHANNELS, WIDTH, name="W"), net.weight(WIDTH, name="b")
    net.input(which, *((CHANNELS, WIDTH) if which == "W" else (WIDTH,)))
    if as_gemm:
        model = block.model(net.op("Gemm", net.reshape(merged, -1, CHANNELS), weight, bias), 2)
    else:
        model = block.model(net.op("Add", net.op("MatMul", merged, weight), bias))
    shape = (CHANNELS, WIDTH) if which == "W" else (WIDTH,)
    given = feeds(model) | {which: np.random.default_rng(4).standard_normal(shape).astype(np.float32)}
    assert_same(model, assert_stays(model, VALUE, "replaced from outside"), given)


@pytest.mark.parametrize("which", ["W", "b"])
def test_out_projection_that_training_updates(which: str) -> None:
    block = PreNorm()
    net = block.net
    merged = net.merge_heads(block.attend(*block.heads(block.x)))
    weight, bias = net.weight(CHANNELS, WIDTH, name="W"), net.weight(WIDTH, name="b")
    model = block.model(net.op("Add", net.op("MatMul", merged, weight), bias))
    info = model.training_info.add()
    info.algorithm.CopyFrom(helper.make_graph([], "step", [], []))
    info.initialization.CopyFrom(helper.make_graph([], "start", [], []))
    info.update_binding.add(key=which, value=which)
    assert_stays(model, VALUE)


@pytest.mark.parametrize("reads", ["q", "qkv", "kv"])
def test_layer_that_is_the_next_sites_in_projection(reads: str) -> None:
    """Without an out-projection, one site's result is projected for the next: one of the two may change that layer."""
    block = PreNorm(width=CHANNELS)
    net = block.net
    first = net.merge_heads(block.attend(*block.heads(block.x)))
    memory = net.input("memory", 2, 7, CHANNELS)
    packed = net.op(
        "Split",
        net.linear(first, len(reads) * CHANNELS, width=CHANNELS),
        net.ints(*[CHANNELS] * len(reads)),
        outputs=len(reads),
        axis=-1,
    )
    made = dict(zip(reads, [packed] if len(reads) == 1 else packed, strict=True))
    q, k, v = (net.split_heads(made.get(role) or block.layer(memory)) for role in "qkv")
    model = block.model(block.out(block.attend(q, k, v, name="second")))
    fused, _ = assert_sound(model)
    assert products(fused) <= products(model)
    assert not [node for node in fused.graph.node if node.op_type == "Softmax"]


@pytest.mark.parametrize("way", ["scaled", "turned about", "operator", "shared heads"])
def test_next_site_is_seen_through_what_lies_between(way: str) -> None:
    """A factor, movement, an `Attention` operator, heads that are repeated."""
    block = PreNorm(opset=23, width=CHANNELS)
    net = block.net
    first = net.merge_heads(block.attend(*block.heads(block.x)))
    memory = net.input("memory", 2, 7, CHANNELS)
    heads = 1 if way == "shared heads" else HEADS
    kept = block.layer(first, heads * HEAD_DIM)
    kept = net.scaled(kept, 0.5) if way == "scaled" else kept
    kept = net.split_heads(net.op("Identity", kept), heads)
    if way == "turned about":
        kept = net.turn(net.turn(kept, 1, 0, 3, 2), 1, 0, 3, 2)
    if way == "shared heads":
        q, v = (net.split_heads(block.layer(memory)) for _ in range(2))
        k = net.op("Expand", kept, net.ints(2, HEADS, 5, HEAD_DIM))
        v = net.op("Slice", v, net.ints(0), net.ints(5), net.ints(2))
    else:
        q, k, v = kept, *(net.split_heads(block.layer(memory)) for _ in range(2))
    if way == "operator":
        attended = net.op("Attention", q, k, v, scale=ROOT, name="second")
    else:
        attended = block.attend(q, k, v, name="second")
    fused, found = assert_sound(block.model(block.out(attended)))
    assert VALUE not in found[0]["algebra"]
    assert "another site" in found[0]["algebra_left"][VALUE]
    assert not [node for node in fused.graph.node if node.op_type == "Softmax"]


def test_a_way_too_long_to_be_looked_along() -> None:
    block = PreNorm()
    value = block.block()
    for _ in range(20):
        value = block.net.op("Identity", value)
    assert_stays(block.model(value), VALUE, "another site")


@pytest.mark.parametrize("dynamic", [("batch", 5), (2, "sequence"), ("batch", "sequence"), (None, None)], ids=str)
def test_shapes_that_are_asked_for_on_the_way(dynamic: Any) -> None:
    block = PreNorm(lead=dynamic)
    net = block.net
    attended = net.turn(block.attend(*block.heads(block.x)), 0, 2, 1, 3)
    merged = net.reshape(attended, (attended, 0), (attended, 1), CHANNELS)
    flat = net.reshape(merged, -1, CHANNELS)
    back = net.reshape(net.op("Gemm", flat, net.weight(CHANNELS, WIDTH)), (merged, 0), (merged, 1), WIDTH)
    model = block.model(back)
    fused = assert_applied(model, *MIXED, inputs=feeds(model, {"x:0": 3, "x:1": 4}))
    assert sum(node.op_type == "MatMul" for node in fused.graph.node) == 1
