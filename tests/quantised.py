"""Hand-placed quantisation: steps of int8 and fp8 on the operands, the probabilities and the result of small graphs."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
from graphs import Net

NARROW = {"int8": np.int8, "uint8": np.uint8, "fp8": ml_dtypes.float8_e4m3fn}
OPERAND = {"int8": 1 / 32, "uint8": 1 / 32, "fp8": 1 / 64}
PROBABILITIES = {"int8": 1 / 127, "uint8": 1 / 255, "fp8": 1 / 448}


def step(net: Net, value: str, scale: Any, kind: str = "int8", zero: Any = 0, axis: int | None = None) -> str:
    """QuantizeLinear and DequantizeLinear on a value."""
    numbers = np.asarray(scale)
    names = (net.const(numbers), net.const(np.broadcast_to(zero, numbers.shape), NARROW[kind]))
    attributes = {} if axis is None else {"axis": axis}
    narrow = net.op("QuantizeLinear", value, *names, **attributes)
    return str(net.op("DequantizeLinear", narrow, *names, **attributes))


def stored(net: Net, weight: np.ndarray, scale: Any, axis: int | None = None, zero: Any = 0) -> str:
    """A weight as int8 numbers and a DequantizeLinear; scale: one, or one for each slice of `axis`."""
    numbers = np.asarray(scale)
    shape = [-1 if place == axis else 1 for place in range(weight.ndim)]
    steps = np.round(weight / (numbers.reshape(shape) if numbers.ndim else numbers)) + zero
    names = (net.const(numbers), net.const(np.broadcast_to(zero, numbers.shape), np.int8))
    attributes = {} if axis is None else {"axis": axis}
    return str(net.op("DequantizeLinear", net.const(np.clip(steps, -128, 127), np.int8), *names, **attributes))


def quantised_site(
    kind: str = "int8",
    *,
    size: int = 32,
    length: int = 64,
    heads: int = 2,
    dtype: Any = np.float32,
    probabilities: bool = True,
    result: bool = True,
    scores: str = "",
    mask: bool = False,
    zero: int = 0,
    opset: int = 19,
) -> onnx.ModelProto:
    """A site on graph inputs `(1, N, S, H)`; scores: a step "before" or "after" the scale, or none."""
    net = Net(opset=opset, dtype=dtype)
    q, k, v = (
        step(net, net.input(name, 1, heads, length, size), OPERAND[kind], kind, zero) for name in ("q", "k", "v")
    )

    def logits(value: str) -> str:
        value = step(net, value, 0.1, kind) if scores == "before" else value
        value = net.scaled(value, size**-0.5)
        value = step(net, value, 0.1, kind) if scores == "after" else value
        return net.op("Add", value, net.input("mask", 1, 1, length, length)) if mask else value

    def rounded(value: str) -> str:
        return step(net, value, PROBABILITIES[kind], kind) if probabilities else value

    y = net.sdpa(q, net.swap(k), v, logits, rounded)
    net.output(step(net, y, OPERAND[kind], kind) if result else y)
    return net.model()
