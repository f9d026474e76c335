"""V's bias is moved behind the out-projection where rows of probabilities sum to 1 and a linear layer follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from checks import feeds, same_bytes
from graphs import HEAD_DIM, HEADS, WIDTH, Net
from onnx import helper
from pre_norm import MIXED, ROOT, PreNorm, assert_applied, assert_stays, biases, stored

import onnx_attn

VALUE = "value-bias"


def test_bias_is_moved() -> None:
    block = PreNorm()
    fused = assert_applied(block.model(block.block(biases="v")), VALUE, "scale")
    assert biases(fused) == [False, False, False]
    assert stored(fused, "out_proj_bias") is not None


def test_out_projection_without_a_bias_gets_one() -> None:
    block = PreNorm()
    model = block.model(block.out(block.attend(*block.heads(block.x)), bias=False))
    fused = assert_applied(model, *MIXED)
    assert fused.graph.node[-1].op_type == "Add"


def test_nothing_to_move_leaves_the_out_projection_alone() -> None:
    block = PreNorm()
    fused = assert_applied(block.model(block.block(biases="qk")), "key-bias", "scale")
    assert stored(fused, "out_proj_bias") is None


def test_bias_of_zeros_is_none() -> None:
    """As packing writes it where one operand has a bias: fused again, such a model would grow by an Add of zeros."""
    block = PreNorm()
    model = block.model(block.out(block.attend(*block.heads(block.x, "q")), bias=False))
    fused = assert_applied(model, "scale")
    assert biases(fused) == [True, False, False]
    once = onnx_attn.fuse(model, form="primitives").model
    assert same_bytes(onnx_attn.fuse(once, form="primitives").model, once)


def guarded(net: Net, p: str) -> str:
    return net.op("Where", net.op("IsNaN", p), net.const(0.0), p)


def test_guard_that_clears_masked_rows() -> None:
    block = PreNorm()
    net = block.net
    mask = net.input("mask", 2, 1, 5, 5)
    model = block.model(
        block.block(scores=lambda s: net.op("Add", net.scaled(s), mask), probabilities=lambda p: guarded(net, p))
    )
    inputs = feeds(model)
    inputs["mask"][0, 0, 1] = -np.inf
    assert biases(assert_stays(model, VALUE, "cleared", inputs=inputs)) == [True, False, True]


def test_masked_rows_that_nobody_clears_are_not_numbers_before_and_after() -> None:
    block = PreNorm()
    net = block.net
    mask = net.input("mask", 2, 1, 5, 5)
    model = block.model(block.block(scores=lambda s: net.op("Add", net.scaled(s), mask)))
    inputs = feeds(model)
    inputs["mask"][0, 0, 1] = -np.inf
    assert_applied(model, *MIXED, inputs=inputs)


@pytest.mark.parametrize("dtype", [bool, np.float32])
def test_operator_whose_masked_rows_are_zero(dtype: Any) -> None:
    block = PreNorm(opset=23)
    net = block.net
    mask = net.input("mask", 2, 1, 5, 5, dtype=dtype)
    attended = net.op("Attention", *block.heads(block.x), mask, scale=ROOT, name="softmax")
    model = block.model(block.out(attended))
    inputs = feeds(model)
    inputs["mask"][0, 0, 1] = False if dtype is bool else -np.inf
    assert_stays(model, VALUE, "cleared", inputs=inputs)


@pytest.mark.parametrize("blocked", [0, 4, 5])
def test_operator_whose_mask_is_known(blocked: int) -> None:
    """Read off the numbers: with a row blocked throughout the bias stays."""
    mask = np.zeros((1, 1, 5, 5))
    mask[0, 0, 2, :blocked] = -np.inf
    block = PreNorm(opset=23)
    attended = block.net.op("Attention", *block.heads(block.x), block.net.const(mask), scale=ROOT, name="softmax")
    model = block.model(block.out(attended))
    if blocked < 5:
        assert_applied(model, *MIXED)
    else:
        assert_stays(model, VALUE)


@pytest.mark.parametrize("causal", [0, 1])
def test_operator_without_a_mask_clears_nothing(causal: int) -> None:
    block = PreNorm(opset=23)
    attended = block.net.op("Attention", *block.heads(block.x), scale=ROOT, is_causal=causal, name="softmax")
    assert_applied(block.model(block.out(attended)), *MIXED)


CHANGED: dict[str, Callable[[Net, str], str]] = {
    "dropout in training": lambda net, p: net.op("Dropout", p, net.const(0.0, np.float32), net.const(True, bool)),
    "clip": lambda net, p: net.op("Clip", p, net.const(0.0), net.const(0.3)),
    "twice": lambda net, p: net.op("Mul", p, net.const(2.0)),
    "head weights": lambda net, p: net.op("Mul", p, net.weight(1, HEADS, 1, 1)),
    "dropped columns": lambda net, p: net.op("Mul", p, net.input("kept", 1, 1, 1, 5)),
    "one more": lambda net, p: net.op("Add", p, net.const(1.0)),
    "masked": lambda net, p: net.op("Where", net.input("allowed", 1, 1, 5, 5, dtype=bool), p, net.const(0.0)),
}


@pytest.mark.parametrize("change", CHANGED)
def test_probabilities_that_are_changed(change: str) -> None:
    block = PreNorm()
    assert_stays(block.model(block.block(probabilities=lambda p: CHANGED[change](block.net, p))), VALUE)


def test_softmax_over_queries() -> None:
    block = PreNorm()
    assert_stays(block.model(block.block(axis=-2)), VALUE)


def test_values_read_elsewhere() -> None:
    block = PreNorm()
    q, k, v = block.heads(block.x)
    block.net.output(v)
    assert_stays(block.model(block.out(block.attend(q, k, v))), VALUE)


def test_two_products_of_the_same_values() -> None:
    """The probabilities of another softmax, of which rows sum to 2, read them as well."""
    block = PreNorm()
    net = block.net
    q, k, v = block.heads(block.x)
    net.output(net.op("MatMul", net.input("weights", 2, HEADS, 5, 5), v))
    assert_stays(block.model(block.out(block.attend(q, k, v))), VALUE)


@pytest.mark.parametrize("expand", [True, False], ids=["Expand", "broadcast"])
def test_heads_that_are_shared_count_once_for_each(expand: bool) -> None:
    block = PreNorm()
    net = block.net
    q, k, v = block.heads(block.x, kv_heads=1)
    if expand:
        k, v = (net.op("Expand", t, net.ints(2, HEADS, 5, HEAD_DIM)) for t in (k, v))
    assert_applied(block.model(block.out(block.attend(q, k, v))), *MIXED)


def test_heads_of_three_dimensions() -> None:
    block = PreNorm()
    net = block.net
    q, k, v = (net.reshape(t, 2 * HEADS, 5, HEAD_DIM) for t in block.heads(block.x))
    attended = net.reshape(net.sdpa(q, net.swap(k, 3), v), 2, HEADS, 5, HEAD_DIM)
    assert_applied(block.model(block.out(attended)), *MIXED)


def test_attention_without_batch_and_heads() -> None:
    net = Net()
    x = net.input("x", 5, WIDTH)
    q, k, v = (net.linear(x, HEAD_DIM) for _ in range(3))
    net.output(net.linear(net.sdpa(q, net.swap(k, 2), v), WIDTH, width=HEAD_DIM), 2)
    assert_applied(net.model(), "key-bias", VALUE, "scale")


def test_out_projection_before_a_residual() -> None:
    """The Add that follows is no bias."""
    block = PreNorm()
    net = block.net
    made = block.out(block.attend(*block.heads(block.x)), bias=False)
    assert_applied(block.model(net.op("Add", made, net.input("residual", 2, 5, WIDTH))), *MIXED)


def test_out_projection_in_a_branch() -> None:
    """It is not what follows: the other branch reads P·V too."""
    block = PreNorm()
    net = block.net
    merged, weight = net.merge_heads(block.attend(*block.heads(block.x))), net.weight(HEADS * HEAD_DIM, WIDTH)
    sides = [
        helper.make_graph([node], node.op_type, [], [helper.make_tensor_value_info(node.output[0], 1, None)])
        for node in (
            helper.make_node("MatMul", [merged, weight], ["projected"]),
            helper.make_node("Identity", [net.weight(2, 5, WIDTH)], ["instead"]),
        )
    ]
    flag = net.input("flag", dtype=bool)
    model = block.model(net.op("If", flag, then_branch=sides[0], else_branch=sides[1]))
    assert_stays(model, VALUE, inputs={**feeds(model), "flag": np.asarray(True)})


def test_result_that_is_named_from_outside() -> None:
    """A quantization annotation says something of P·V as it is."""
    block = PreNorm()
    attended = block.attend(*block.heads(block.x))
    model = block.model(block.out(attended))
    note = model.graph.quantization_annotation.add(tensor_name="x")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=attended)
    assert_stays(model, VALUE)
