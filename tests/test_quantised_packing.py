"""Projections of quantised weights: packed as they are stored, or left apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Net
from onnx import TensorProto, numpy_helper
from quantised import OPERAND, PROBABILITIES, fused, landed, quantised_block, step, steps


def narrow_weights(model: onnx.ModelProto) -> list[list[int]]:
    return [
        list(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 2
    ]


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"bias": True},
        {"before_split": True},
        {"prescaled": True},
        {"turned": True},
        {"weights": "tensor"},
        {"dtype": np.float16},
        {"source": False, "activations": False},
        {"before_split": True, "prescaled": True, "bias": True},
    ],
    ids=str,
)
def test_quantised_weights_are_packed_as_they_are_stored(knobs: dict[str, Any]) -> None:
    model = quantised_block(**knobs)
    written, entry = fused(model)
    assert entry["packed"] is True and entry["algebra"] == [] and entry["certificate"]["ok"]
    assert narrow_weights(written) == [[48, 192]]
    assert steps(written) == steps(model)


def channel_scales(model: onnx.ModelProto) -> list[np.ndarray]:
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    narrow = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored]
    return [numpy_helper.to_array(stored[node.input[1]]) for node in narrow]


def test_scales_for_each_channel_stand_side_by_side() -> None:
    model = quantised_block()
    written, _ = fused(model)
    before, after = channel_scales(model), channel_scales(written)
    assert len(before) == 3 and len(after) == 1
    np.testing.assert_array_equal(np.concatenate(before), after[0])


@pytest.mark.parametrize(
    "knobs",
    [
        {"weights": "tensor", "scales": (1 / 64, 1 / 32, 1 / 64)},
        {"weights": "tensor", "zeros": (0, 1, 0)},
        {"weights": "input"},
        {"shared": True},
    ],
    ids=str,
)
def test_weights_that_cannot_stand_side_by_side_stay_apart_and_narrow(knobs: dict[str, Any]) -> None:
    model = quantised_block(**knobs)
    written, entry = fused(model)
    assert entry["status"] == "site" and entry["packed"] is False and entry["unpacked_because"]
    assert narrow_weights(written) == narrow_weights(model)
    if "scales" in knobs:
        assert entry["unpacked_because"].startswith("weight-scales-differ")


def test_weights_that_are_cut_from_narrow_ones_are_not_made_wide() -> None:
    net = Net(opset=19)
    x = net.input("x", 1, 8, 16)
    numbers = net.const(net.rng.integers(-127, 127, (16, 48)), np.int8)
    whole = net.op("DequantizeLinear", numbers, net.const(0.01), net.const(0, np.int8))
    parts = net.op("Split", whole, net.ints(16, 16, 16), outputs=3, axis=1)
    q, k, v = (net.split_heads(net.op("MatMul", x, part), 2, 8) for part in parts)
    net.output(net.sdpa(q, net.swap(k), v))
    written, entry = fused(net.model())
    assert entry["packed"] is False
    assert not any(t.data_type == TensorProto.FLOAT and len(t.dims) == 2 for t in written.graph.initializer)


@pytest.mark.parametrize("bias", [False, True])
def test_a_product_that_is_rounded_before_its_bias_is_packed(bias: bool) -> None:
    """As ONNX Runtime's quantiser leaves it: MatMul, step, Add, step."""
    net = Net(opset=19)
    x = step(net, net.input("x", 1, 8, 16), 1 / 32)

    def operand(role: int) -> str:
        product = step(net, net.op("MatMul", x, net.weight(16, 16)), (1 + role) / 64)
        product = net.op("Add", product, net.weight(16)) if bias else product
        return net.split_heads(step(net, product, (2 + role) / 64), 2, 8)

    q, k, v = (operand(role) for role in range(3))
    net.output(net.sdpa(q, net.swap(k), v))
    model = net.model()
    written, entry = fused(model)
    assert entry["packed"] is True and entry["certificate"]["ok"]
    assert sum(node.op_type == "MatMul" for node in written.graph.node if not node.name.startswith("softmax/att")) <= 2
    assert sum(steps(model).count(each) for each in set(steps(model))) == 7


@pytest.mark.parametrize("length", [16, 197])
@pytest.mark.parametrize("half", [False, True])
def test_a_packed_block_lands_in_fewer_kernels(length: int, half: bool) -> None:
    model = quantised_block(length=length, dtype=np.float16 if half else np.float32)
    written, entry = fused(model)
    assert landed(model) == (1, 7) and landed(written) == (1, 5)
    assert entry["landing"]["expected"] is True


def two_blocks() -> onnx.ModelProto:
    net = Net(opset=19)
    x = net.input("x", 1, 64, 48)
    for number in range(2):
        q, k, v = (step(net, net.split_heads(net.linear(x, 64, width=48), 2, 32), (1 + role) / 64) for role in range(3))
        y = net.sdpa(
            q,
            net.swap(k),
            v,
            lambda value: net.scaled(value, 32**-0.5),
            lambda value: step(net, value, PROBABILITIES["int8"]),
            name=f"softmax_{number}",
        )
        x = net.op("Add", x, net.linear(net.merge_heads(step(net, y, OPERAND["int8"]), 64), 48, width=64))
    net.output(x, 3)
    return net.model()


def test_two_sites_land_where_two_calls_of_a_function_would_not_build() -> None:
    written, _ = fused(two_blocks())
    assert landed(written)[0] == 2
