"""A mask that is added and is 0 or −inf by a choice is that choice: a kernel's own, where the sum takes kernels of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_same, feeds
from graphs import HEAD_DIM, HEADS, Net
from onnx import TensorProto

import onnx_attn


def masked(fill: float = -np.inf, blocks: bool = False, dtype: Any = np.float16, wide: bool = False) -> onnx.ModelProto:
    """`scores + Where(mask, 0, fill)`, or with the choice turned; `wide`: the softmax runs in float32."""
    net = Net(18, dtype)
    q, k, v = (net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "qkv")
    chosen = [net.const(0.0), net.const(fill)]
    mask = net.op("Where", net.input("mask", 2, 1, 5, 5, dtype=bool), *(chosen[::-1] if blocks else chosen))
    scores = net.op("Add", net.op("MatMul", net.scaled(q), net.swap(k)), mask)
    scores = net.op("Cast", scores, to=TensorProto.FLOAT) if wide else scores
    probabilities = net.op("Softmax", scores, axis=-1, name="softmax")
    probabilities = net.op("Cast", probabilities, to=TensorProto.FLOAT16) if wide else probabilities
    net.output(net.op("MatMul", probabilities, v))
    return net.model()


def kind(model: onnx.ModelProto) -> str:
    (candidate,) = onnx_attn.inspect(model)["candidates"]
    return candidate["masks"][0]["kind"]


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_choice_of_nothing_and_minus_infinity_is_the_mask(dtype: Any, blocks: bool) -> None:
    model = masked(blocks=blocks, dtype=dtype)
    assert kind(model) == "boolean"
    inputs = feeds(model)
    inputs["mask"][0, 0, 2] = blocks
    assert_same(model, onnx_attn.fuse(model).model, inputs, rtol=2e-3 if dtype == np.float16 else 1e-5)


@pytest.mark.parametrize("fill", [-65504.0, -1e4])
def test_a_fill_that_scores_are_added_to_stays_a_sum(fill: float) -> None:
    """A row that is blocked throughout keeps the order of its scores."""
    assert kind(masked(fill)) == "additive"


def test_scores_of_another_type_keep_their_sum() -> None:
    assert kind(masked(wide=True)) == "additive"


def test_the_choice_saves_the_sum_s_kernels() -> None:
    pytest.importorskip("tensorrt_rtx")
    model = masked()
    before, after = onnx_attn.land(model), onnx_attn.land(onnx_attn.fuse(model).model)
    assert (before["landed"], after["landed"]) == (1, 1)
    assert after["kernels"] <= before["kernels"] - 8
