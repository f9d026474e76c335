"""Hand-placed quantisation: steps of int8 and fp8 on the operands, the probabilities and the result of small graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from graphs import Net
from onnx import TensorProto, numpy_helper
from support import feeds, max_rel, run

import onnx_attn

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


def layer_weight(net: Net, shape: tuple[int, int], kind: str, numbers: tuple[float, int], turned: bool) -> str:
    """A weight `(E, C)`: "float", or int8 with one scale ("tensor", of `numbers`), or one for each "channel" or "input"."""
    values = net.rng.standard_normal(shape) / np.sqrt(shape[0])
    values = values.T if turned else values
    across, along = (0, 1) if turned else (1, 0)
    if kind == "float":
        made = net.const(values)
    elif kind == "tensor":
        made = stored(net, values, numbers[0], zero=numbers[1])
    else:
        axis = across if kind == "channel" else along
        made = stored(net, values, np.abs(values).max(axis=1 - axis) / 127, axis)
    return net.turn(made, 1, 0) if turned else made


def quantised_block(
    kind: str = "int8",
    *,
    weights: str = "channel",
    scales: tuple[float, float, float] = (1 / 64, 1 / 64, 1 / 64),
    zeros: tuple[int, int, int] = (0, 0, 0),
    packed: bool = False,
    bias: bool = False,
    before_split: bool = False,
    source: bool = True,
    prescaled: bool = False,
    activations: bool = True,
    size: int = 32,
    length: int = 16,
    dtype: Any = np.float32,
    width: int = 48,
    shared: bool = False,
    turned: bool = False,
) -> onnx.ModelProto:
    """A block on `(1, S, E)` with layers of int8 weights.

    weights: "channel" (a scale for each output channel), "input" (one for each input channel), "tensor" (one, of `scales` and
    `zeros` by role) or "float". packed: one layer makes all three. source: the layers' input is quantised too. activations: Q,
    K, V, probabilities and result are. before_split: Q, K and V are in front of their heads. prescaled: Q and K carry √scale.
    shared: the numbers of K's weight are V's too. turned: weights are stored `(C, E)` and transposed.
    """
    net = Net(opset=19, dtype=dtype)
    heads, channels = 2, 2 * size
    x = net.input("x", 1, length, width)
    x = step(net, x, 1 / 32, kind) if source else x

    def weight(role: int, columns: int) -> str:
        return layer_weight(net, (width, columns), weights, (scales[role], zeros[role]), turned)

    def project(role: int, columns: int, made: str = "") -> str:
        return net.linear(x, columns, weight=made or weight(role, columns), bias=bias)

    if packed:
        parts = net.op("Split", project(0, 3 * channels), net.ints(*[channels] * 3), outputs=3, axis=-1)
    elif shared:
        one = weight(1, channels)
        parts = [project(0, channels), project(1, channels, one), project(2, channels, one)]
    else:
        parts = [project(role, channels) for role in range(3)]

    def rounded(value: str, role: int) -> str:
        return step(net, value, (1 + role) / 64, kind) if activations else value

    found = []
    for role, part in enumerate(parts):
        part = rounded(part, role) if before_split else part
        part = net.split_heads(part, heads, size)
        part = net.scaled(part, size**-0.25) if prescaled and role < 2 else part
        found.append(part if before_split else rounded(part, role))
    _finish(net, found, kind if activations else "", prescaled, size)
    return net.model()


def _finish(net: Net, operands: list[str], kind: str, prescaled: bool, size: int) -> None:
    """The site on Q, K and V, with steps of this kind on the probabilities and the result ("" for none), as the output."""
    q, k, v = operands
    y = net.sdpa(
        q,
        net.swap(k),
        v,
        lambda value: value if prescaled else net.scaled(value, size**-0.5),
        lambda value: step(net, value, PROBABILITIES[kind], kind) if kind else value,
    )
    net.output(net.merge_heads(step(net, y, OPERAND[kind], kind) if kind else y, 2 * size), 3)


def fused(model: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Fuse, check, and compare in ONNX Runtime: what is quantised before is quantised alike afterwards."""
    result = onnx_attn.fuse(model, **options)
    onnx.checker.check_model(result.model)
    inputs = feeds(model, {})
    if not options.get("quantize_probabilities"):
        assert max_rel(run(model, inputs, False), run(result.model, inputs, False)) < 1e-5
    return result.model, result.report["candidates"][0]


def steps(model: onnx.ModelProto) -> list[tuple[str, float]]:
    """The QuantizeLinear nodes in order: type and scale of each."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    return sorted(
        (
            TensorProto.DataType.Name(stored[node.input[2]].data_type),
            float(numpy_helper.to_array(stored[node.input[1]])),
        )
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    )


def landed(model: onnx.ModelProto, sm: int = 89) -> tuple[int, int]:
    report = onnx_attn.land(model, sm=sm)
    assert report["built"], report["errors"]
    return report["landed"], report["kernels"]


def site_with(scores: Any = None, probabilities: Any = None) -> onnx.ModelProto:
    """A plain site on graph inputs; `scores` and `probabilities` take the net and a value and give a value."""
    net = Net(opset=19)
    q, k, v = (net.input(name, 1, 2, 8, 8) for name in "qkv")
    hooks = [(lambda value, hook=hook: hook(net, value) if hook else value) for hook in (scores, probabilities)]
    net.output(net.sdpa(q, net.swap(k), v, *hooks))
    return net.model()


def two_layers(folder: Path, length: int = 64, size: int = 32) -> Path:
    """Two pre-norm layers of two heads, in float32, to be quantised: a file in this folder."""
    net = Net(opset=17)
    width = 2 * size
    x = net.input("x", 1, length, width)
    for number in range(2):
        normed = net.op("LayerNormalization", x, net.const(np.ones(width)), net.const(np.zeros(width)))
        q, k, v = (net.split_heads(net.linear(normed, width, width=width), 2, size) for _ in range(3))
        y = net.sdpa(q, net.swap(k), v, lambda value: net.scaled(value, size**-0.5), name=f"softmax_{number}")
        x = net.op("Add", x, net.linear(net.merge_heads(y, width), width, width=width))
        x = net.op("Add", x, net.linear(net.op("Relu", net.linear(x, 128, width=width)), width, width=128))
    net.output(x, 3)
    path = folder / "block.onnx"
    onnx.save(net.model(), path)
    return path
