"""Rows of a LayerNorm that carries a constant may be moved, but not changed, and nobody else may read them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from graphs import HEADS, WIDTH, Net
from onnx import TensorProto, helper
from pre_norm import ALL, PreNorm, assert_applied, assert_constant_channel, assert_stays, biases

CONSTANT = "constant-channel"


def windows(net: Net, value: str, pad: int) -> str:
    """`(B, H, W, E)`, rolled, padded, cut into windows of 2 by 2: `(B·nW, 4, E)`."""
    for axis in (1, 2):
        first = net.op("Slice", value, net.ints(1), net.ints(9), net.ints(axis))
        last = net.op("Slice", value, net.ints(0), net.ints(1), net.ints(axis))
        value = net.op("Concat", first, last, axis=axis)
    value = net.op("Pad", value, net.ints(0, 0, 0, 0, 0, 0, pad, 0))
    value = net.reshape(value, 2, 2, 2, (4 + pad) // 2, 2, WIDTH)
    return net.reshape(net.turn(value, 0, 1, 3, 2, 4, 5), -1, 4, WIDTH)


@pytest.mark.parametrize("pad", [0, 2])
def test_rolled_windows_may_be_cut_but_not_padded(pad: int) -> None:
    block = PreNorm(lead=(2, 4))
    net = block.net
    picture = net.input("picture", 2, 4, 4, WIDTH)
    model = block.model(block.block(windows(net, block.norm(picture), pad)))
    if pad:
        assert biases(assert_stays(model, CONSTANT, "Pad")) == [True, False, False]
    else:
        assert_constant_channel(assert_applied(model, *ALL))


MOVED: dict[str, Callable[[Net, str], str]] = {
    "Identity": lambda net, y: net.op("Identity", y),
    "Dropout": lambda net, y: net.op("Dropout", y),
    "sequence first": lambda net, y: net.turn(y, 1, 0, 2),
    "flat": lambda net, y: net.reshape(net.op("Flatten", y, axis=2), 2, 5, WIDTH),
    "one axis more": lambda net, y: net.op("Squeeze", net.op("Unsqueeze", y, net.ints(1)), net.ints(1)),
    "other order": lambda net, y: net.op("Gather", y, net.ints(4, 2, 0, 1, 3), axis=1),
    "some rows": lambda net, y: net.op("Gather", y, net.ints(0, 2), axis=1),
    "rows twice": lambda net, y: net.op("Concat", y, y, axis=1),
    "halves": lambda net, y: net.op("Concat", *net.op("Split", y, net.ints(2, 3), outputs=2, axis=1)[::-1], axis=1),
    "every other row": lambda net, y: net.op("Slice", y, net.ints(0), net.ints(5), net.ints(1), net.ints(2)),
    "cast and back": lambda net, y: net.op("Cast", net.op("Cast", y, to=TensorProto.DOUBLE), to=TensorProto.FLOAT),
}


@pytest.mark.parametrize("move", MOVED)
def test_rows_may_be_moved(move: str) -> None:
    block = PreNorm()
    assert_constant_channel(assert_applied(block.model(block.block(MOVED[move](block.net, block.norm()))), *ALL))


CHANGED: dict[str, Callable[[Net, str], str]] = {
    "padded": lambda net, y: net.op("Pad", y, net.ints(0, 1, 0, 0, 0, 0)),
    "padded channels cut again": lambda net, y: net.op(
        "Slice", net.op("Pad", y, net.ints(0, 0, 1, 0, 0, 0)), net.ints(0), net.ints(WIDTH), net.ints(2)
    ),
    "class token": lambda net, y: net.op("Concat", net.const(np.ones((2, 1, WIDTH))), y, axis=1),
    "memory": lambda net, y: net.op("Concat", net.input("memory", 2, 3, WIDTH), y, axis=1),
    "positions": lambda net, y: net.op("Add", y, net.weight(5, WIDTH)),
    "scaled": lambda net, y: net.op("Mul", y, net.const(2.0)),
    "masked": lambda net, y: net.op("Mul", y, net.input("kept", 2, 5, 1)),
    "ReLU": lambda net, y: net.op("Relu", y),
    "as whole numbers": lambda net, y: net.op("Cast", net.op("Cast", y, to=TensorProto.INT32), to=TensorProto.FLOAT),
    "channels back to front": lambda net, y: net.op(
        "Slice", y, net.ints(-1), net.ints(-WIDTH - 1), net.ints(2), net.ints(-1)
    ),
    "last axis unsaid": lambda net, y: net.op("Slice", y, net.ints(0, 0, 0), net.ints(2, 5, WIDTH)),
    "channels in another order": lambda net, y: net.op("Gather", y, net.ints(*range(1, WIDTH), 0), axis=-1),
    "channels rolled": lambda net, y: net.op(
        "Concat", *net.op("Split", y, net.ints(8, WIDTH - 8), outputs=2, axis=2)[::-1], axis=2
    ),
    "dropout in training": lambda net, y: net.op("Dropout", y, net.const(0.0, np.float32), net.const(True, bool)),
    "scattered": lambda net, y: net.op(
        "ScatterElements", y, net.const(np.full((2, 1, WIDTH), 3), np.int64), net.const(np.ones((2, 1, WIDTH))), axis=1
    ),
    "another norm": lambda net, y: net.op("LpNormalization", y, axis=1),
    "chosen": lambda net, y: net.op("Where", net.input("allowed", 2, 5, 1, dtype=bool), y, net.const(0.0)),
}


@pytest.mark.parametrize("change", CHANGED)
def test_rows_may_not_be_changed(change: str) -> None:
    block = PreNorm()
    assert_stays(block.model(block.block(CHANGED[change](block.net, block.norm()))), CONSTANT, "LayerNorm")


def test_square_rows_turned() -> None:
    """As many tokens as channels: the shapes say nothing."""
    block = PreNorm(lead=(2, WIDTH))
    assert_stays(block.model(block.block(block.net.turn(block.norm(), 0, 2, 1))), CONSTANT, "LayerNorm")


def test_rows_of_two_norms() -> None:
    block = PreNorm()
    net = block.net
    other = block.norm(net.input("y", 2, 3, WIDTH))
    model = block.model(block.block(net.op("Concat", other, block.norm(), axis=1)))
    assert_stays(model, CONSTANT, "more than one")


READ: dict[str, Callable[[PreNorm, str], str | None]] = {
    "residual": lambda b, y: b.net.op("Add", y, b.net.weight(WIDTH)),
    "second projection": lambda b, y: b.layer(y),
    "output": lambda b, y: y,
    "If": lambda b, y: used_inside_if(b.net, y),
    "mean": lambda b, y: b.net.op("ReduceMean", y, axes=[1]),
}


def used_inside_if(net: Net, value: str) -> str:
    def body(name: str, op: str) -> onnx.GraphProto:
        info = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [None] * 3)
        return helper.make_graph([helper.make_node(op, [value], [f"{name}_out"])], name, [], [info])

    flag = net.input("flag", dtype=bool)
    return str(net.op("If", flag, then_branch=body("yes", "Exp"), else_branch=body("no", "Neg")))


@pytest.mark.parametrize("moved", [False, True], ids=["normalised", "moved"])
@pytest.mark.parametrize("reader", READ)
def test_rows_that_somebody_else_reads(reader: str, moved: bool) -> None:
    block = PreNorm()
    net = block.net
    rows = block.norm()
    source = net.op("Gather", rows, net.ints(4, 2, 0, 1, 3), axis=1)
    net.output(READ[reader](block, source if moved else rows), 3)
    fused = assert_stays(block.model(block.block(source)), CONSTANT, "read")
    assert biases(fused) == [True, False, False]


def test_rows_whose_deviation_is_read() -> None:
    block = PreNorm()
    net = block.net
    rows, _, deviation = net.op("LayerNormalization", block.x, net.weight(WIDTH), net.weight(WIDTH), outputs=3)
    net.output(net.op("Exp", deviation), 3)
    assert_stays(block.model(block.block(rows)), CONSTANT, "deviation")


def test_post_norm() -> None:
    """The residual goes on from the normalised rows."""
    block = PreNorm()
    rows = block.norm()
    assert_stays(block.model(block.net.op("Add", rows, block.block(rows))), CONSTANT, "Add")


def test_two_sites_on_one_norm() -> None:
    block = PreNorm()
    net = block.net
    rows, memory = block.norm(), net.input("memory", 2, 7, WIDTH)
    own = block.block(rows)
    q = net.split_heads(block.layer(rows))
    k, v = (net.split_heads(block.layer(memory)) for _ in range(2))
    other = block.out(block.attend(q, k, v, name="cross"))
    assert_stays(block.model(net.op("Add", own, other)), CONSTANT)


def test_each_source_of_cross_attention_has_its_norm() -> None:
    block = PreNorm()
    net = block.net
    rows, memory = block.norm(), block.norm(net.input("memory", 2, 7, WIDTH))
    q = net.split_heads(block.layer(rows))
    k, v = (net.split_heads(block.layer(memory)) for _ in range(2))
    fused = assert_applied(block.model(block.out(block.attend(q, k, v))), *ALL)
    assert not [tensor for tensor in fused.graph.initializer if tensor.name.endswith("in_proj_bias")]


def test_queries_of_some_rows_and_keys_of_all() -> None:
    """Class attention: two groups read one LayerNorm, each would change it for the other."""
    block = PreNorm()
    net = block.net
    rows = block.norm()
    q = net.split_heads(block.layer(net.op("Slice", rows, net.ints(0), net.ints(1), net.ints(1))))
    k, v = (net.split_heads(block.layer(rows)) for _ in range(2))
    assert_stays(block.model(block.out(block.attend(q, k, v))), CONSTANT, "read")


@pytest.mark.parametrize("moved", [False, True])
def test_shape_of_the_rows_is_asked_for(moved: bool) -> None:
    block = PreNorm()
    net = block.net
    rows = block.norm()
    source = net.turn(rows, 1, 0, 2) if moved else rows
    sizes = net.op("Concat", net.op("Shape", source, start=0, end=2), net.ints(HEADS, -1), axis=0)
    q, k, v = (net.turn(net.op("Reshape", block.layer(source), sizes), 0, 2, 1, 3) for _ in range(3))
    net.output(net.op("Shape", rows), 1, np.int64)
    fused = assert_applied(block.model(block.out(block.attend(q, k, v))), *ALL)
    assert_constant_channel(fused)


def test_rotary_behind() -> None:
    """Q and K are no layer's results; V alone is nothing to pack."""
    block = PreNorm()
    q, k, v = block.heads(block.norm())
    angles = block.net.const(np.cos(np.arange(5))[:, None])
    model = block.model(block.out(block.attend(*(block.net.op("Mul", t, angles) for t in (q, k)), v)))
    assert_stays(model, CONSTANT)
