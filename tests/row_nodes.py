"""Nodes on the value at one place of a block: those that mix rows or tell them apart, and those that work on each alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from graphs import WIDTH, Net
from onnx import TensorProto
from window_blocks import Hook
from windows import by_slices

RNG = np.random.default_rng(5)


def const(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def with_const(op: str, *shape: int) -> Hook:
    return lambda net, value: net.op(op, value, net.const(const(*shape)))


def unary(op: str, **attributes: Any) -> Hook:
    return lambda net, value: net.op(op, value, **attributes)


def norm_over(axis: int, *shape: int) -> Hook:
    return lambda net, value: net.op(
        "LayerNormalization", value, net.const(const(*shape)), net.const(const(*shape)), axis=axis
    )


def depthwise(net: Net, value: str) -> str:
    kernel = net.weight(WIDTH, 1, 3, 3)
    return net.turn(net.op("Conv", net.turn(value, 0, 3, 1, 2), kernel, pads=[1] * 4, group=WIDTH), 0, 2, 3, 1)


def batch_norm(net: Net, value: str) -> str:
    numbers = [net.weight(8), net.weight(8), net.weight(8), net.const(np.ones(8))]
    return net.op("BatchNormalization", value, *numbers)


MIX_ROWS: dict[str, Hook] = {
    "softmax over rows": unary("Softmax", axis=1),
    "depthwise convolution": depthwise,
    "product from the left": lambda net, value: net.op("MatMul", net.const(const(8, 8)), value),
    "batch norm": batch_norm,
    "instance norm": lambda net, value: net.op("InstanceNormalization", value, net.weight(8), net.weight(8)),
    "mean over rows": lambda net, value: net.op("Add", value, net.op("ReduceMean", value, axes=[1])),
    "maximum of all": lambda net, value: net.op("Sub", value, net.op("ReduceMax", value, axes=[1, 2, 3])),
    "sum over the batch": lambda net, value: net.op("Add", value, net.op("ReduceSum", value, net.ints(0))),
    "embedding of places (H, W, C)": with_const("Add", 8, 8, WIDTH),
    "embedding of places (1, H, W, C)": with_const("Add", 1, 8, 8, WIDTH),
    "mask of rows (W, 1)": with_const("Mul", 8, 1),
    "mask of rows (H, 1, 1)": with_const("Mul", 8, 1, 1),
    "slope of rows": with_const("PRelu", 8, 1, 1),
    "maximum with rows": lambda net, value: net.op("Max", value, net.const(const(8, 1, 1)), net.const(0.1)),
    "choice of rows": lambda net, value: net.op("Where", net.const(const(8, 1) > 0, np.bool_), value, net.const(0.0)),
    "norm over two axes": norm_over(-2, 8, WIDTH),
    "norm over all axes": norm_over(1, 8, 8, WIDTH),
    "Dropout in training": lambda net, value: net.op("Dropout", value, net.const(0.0), net.const(True, np.bool_)),
    "running sum": lambda net, value: net.op("CumSum", value, net.const(1, np.int64)),
    "turned": lambda net, value: net.turn(value, 0, 2, 1, 3),
    "from the end": lambda net, value: net.op("Slice", value, net.ints(-1), net.ints(-100), net.ints(1), net.ints(-1)),
    "times itself turned": lambda net, value: net.op("Mul", value, net.turn(value, 0, 2, 1, 3)),
    "plus itself rolled": lambda net, value: net.op("Add", value, by_slices(net, value, 1, 2, 8)),
    "an input": lambda net, value: net.op("Add", value, net.input("places", "batch", 8, 8, WIDTH)),
    "a bound from outside": lambda net, value: net.op("Clip", value, net.input("least")),
}


EACH_ROW: dict[str, Hook] = {
    "(1, 1, 1, C)": with_const("Mul", 1, 1, 1, WIDTH),
    "(1, C)": with_const("Add", 1, WIDTH),
    "(C,)": with_const("Mul", WIDTH),
    "()": with_const("Mul"),
    "(1, 1)": with_const("Div", 1, 1),
    "(1, 1, 1, 1)": with_const("Sub", 1, 1, 1, 1),
    "from the left": lambda net, value: net.op("Sub", net.const(const(1, 1, WIDTH)), value),
    "clipped": lambda net, value: net.op("Clip", value, net.const(-0.1), net.const(0.2)),
    "clipped above": lambda net, value: net.op("Clip", value, "", net.const(0.3)),
    "a power": lambda net, value: net.op("Pow", value, net.const(2.0)),
    "a power for each channel": lambda net, value: net.op(
        "Pow", net.op("Abs", value), net.const(np.ones((1, 1, WIDTH)))
    ),
    "centred": lambda net, value: net.op("Sub", value, net.op("ReduceMean", value, axes=[3])),
    "of unit length": lambda net, value: net.op("Div", value, net.op("ReduceL2", value, axes=[-1])),
    "of three": lambda net, value: net.op("Max", value, net.const(const(1, 1, WIDTH)), net.const(0.1)),
    "Dropout": unary("Dropout"),
    "Identity": unary("Identity"),
    "Cast": lambda net, value: net.op("Cast", net.op("Cast", value, to=TensorProto.DOUBLE), to=net._type(None)),
    "squared": lambda net, value: net.op("Mul", value, value),
    "a weight that is reshaped": lambda net, value: net.op(
        "MatMul", value, net.op("Reshape", net.weight(4, WIDTH // 4, WIDTH), net.ints(WIDTH, WIDTH))
    ),
    "a bias that is reshaped": lambda net, value: net.op(
        "Add", value, net.op("Reshape", net.weight(WIDTH), net.ints(1, 1, 1, WIDTH))
    ),
    "a Gemm": lambda net, value: net.reshape(
        net.op(
            "Gemm", net.reshape(value, -1, WIDTH), net.weight(WIDTH, WIDTH), net.weight(1, WIDTH), transB=1, alpha=0.5
        ),
        *(-1, 8, 8, WIDTH),
    ),
    "in other axes": lambda net, value: net.op(
        "Squeeze", net.op("Tanh", net.op("Unsqueeze", value, net.ints(1))), net.ints(1)
    ),
}

ANY_RANK = ["(C,)", "()", "clipped", "a power", "of unit length", "Dropout", "Identity", "Cast", "squared"]
ANY_RANK += ["a weight that is reshaped"]
"""Names of those that work on a value of any rank."""
