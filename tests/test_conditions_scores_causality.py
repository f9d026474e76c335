"""`"causal"` in a report: which masks tell it by their numbers, and which say nothing of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_same, feeds
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH, Net, heads_in
from onnx import TensorProto, helper

import onnx_attn
from onnx_attn.given import loaded_from
from onnx_attn.pipeline import inspect_model
from onnx_attn.recognize import causality
from onnx_attn.targets.editions import parse_target

LENGTH = 5
LONG = 9  # More numbers than a world keeps.
BLOCKED = np.triu(np.full((LENGTH, LENGTH), -1e4), 1)


def masked(*masks: Any, op: str = "Add", length: int = LENGTH, opset: int = 17) -> onnx.ModelProto:
    """A site whose scores meet these masks in order; each is numbers, or a function that writes it."""
    net = Net(opset)
    q, kt, v = heads_in(net, queries=length, keys=length)

    def scores(value: str) -> str:
        value = net.scaled(value)
        for mask in masks:
            value = net.op(op, value, mask(net) if callable(mask) else net.const(mask))
        return value

    net.output(net.sdpa(q, kt, v, scores))
    return net.model(my=1)


def causal(model: onnx.ModelProto) -> bool:
    (candidate,) = onnx_attn.inspect(model)["candidates"]
    assert candidate["status"] == "site", candidate
    return candidate["causal"]


def padded(net: Net, steps: int = 0) -> str:
    """The triangle and what a caller gives for the keys, whose sign is turned so many times."""
    padding = net.input("padding", 2, 1, 1, LENGTH)
    for _ in range(steps):
        padding = net.op("Neg", padding)
    return net.op("Add", net.const(BLOCKED), padding)


# --- which numbers block -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["Add", "Sub"])
@pytest.mark.parametrize(("number", "expected"), [(-9998.0, False), (-9999.0, True), (-1e4, True), (-np.inf, True)])
def test_a_triangle_blocks_from_minus_9999_downwards(op: str, number: float, expected: bool) -> None:
    triangle = np.where(np.tri(LENGTH, dtype=bool), 0, number if op == "Add" else -number)
    assert causal(masked(triangle, op=op)) == expected


def test_a_triangle_that_blocks_a_query_s_own_key_is_not_causal() -> None:
    assert not causal(masked(np.triu(np.full((LENGTH, LENGTH), -1e4))))


@pytest.mark.parametrize("blocks", [True, False])
def test_padding_that_is_joined_with_the_triangle_may_block_by_ones_or_keep_by_them(blocks: bool) -> None:
    net = Net()
    q, kt, v = heads_in(net)
    padding, lower = net.input("padding", 2, 1, 1, LENGTH, dtype=bool), np.tri(LENGTH, dtype=bool)
    mask = net.op("Or" if blocks else "And", padding, net.const(~lower if blocks else lower, bool))
    fill = net.const(-np.inf)

    def scores(value: str) -> str:
        value = net.scaled(value)
        return net.op("Where", mask, *((fill, value) if blocks else (value, fill)))

    net.output(net.sdpa(q, kt, v, scores))
    assert causal(net.model())


@pytest.mark.parametrize("first", [True, False])
def test_masks_block_together(first: bool) -> None:
    bias = np.random.default_rng(0).standard_normal((LENGTH, LENGTH))
    assert causal(masked(*((BLOCKED, bias) if first else (bias, BLOCKED))))


def test_two_masks_of_which_neither_is_causal_alone() -> None:
    odd = np.arange(LENGTH) % 2 == 1
    assert causal(masked(np.where(odd, BLOCKED, 0), np.where(odd, 0, BLOCKED)))
    assert not causal(masked(np.where(odd, BLOCKED, 0), np.zeros((LENGTH, LENGTH))))


# --- masks that say nothing -----------------------------------------------------------------------------------------------


def bias_of_activations(net: Net) -> str:
    return net.op("MatMul", net.input("a", 2, HEADS, LENGTH, 3), net.input("b", 2, HEADS, 3, LENGTH))


@pytest.mark.parametrize("first", [True, False])
def test_a_mask_that_cannot_be_computed_leaves_the_other_causal(first: bool) -> None:
    pair = (bias_of_activations, BLOCKED)
    assert causal(masked(*(pair if first else pair[::-1])))


def test_a_triangle_that_activations_are_added_to_may_be_outweighed() -> None:
    assert not causal(masked(lambda net: net.op("Add", bias_of_activations(net), net.const(2 * BLOCKED))))


def of_unknown_shape() -> onnx.ModelProto:
    model = masked(BLOCKED, forked)
    (add,) = (node.output[0] for node in model.graph.node if "If" in "".join(node.input))
    model.graph.value_info.append(helper.make_tensor_value_info(add, TensorProto.FLOAT, [2, HEADS, LENGTH, LENGTH]))
    return model


def test_a_mask_of_unknown_shape_says_nothing() -> None:
    model = of_unknown_shape()
    result = onnx_attn.fuse(model, verify=False)
    assert result.report["candidates"][0]["causal"]
    for flag in (True, False):
        assert_same(model, result.model, feeds(model) | {"flag": np.asarray(flag)})


def forked(net: Net) -> str:
    """Zeros of one shape or of another."""
    branches = {}
    for name, shape in {"then_branch": [LENGTH, LENGTH], "else_branch": [2, 1, 1, LENGTH]}.items():
        zeros = helper.make_tensor("", TensorProto.FLOAT, shape, np.zeros(np.prod(shape)))
        made = helper.make_node("Constant", [], [name], value=zeros)
        branches[name] = helper.make_graph([made], name, [], [helper.make_tensor_value_info(name, 1, None)])
    return net.op("If", net.input("flag", dtype=bool), **branches)


def test_a_mask_of_unknown_shape_has_no_picture() -> None:
    report = inspect_model(loaded_from(of_unknown_shape()), parse_target("tensorrt"), draw=True)
    (candidate,) = report["candidates"]
    assert [len(pictures) for pictures in candidate["drawing"]["masks"]] == [1, 0]


def test_a_mask_out_of_a_sequence_says_nothing() -> None:
    """It has a shape, since the model says so; what brings it is no tensor."""
    model = masked(lambda net: net.op("Add", net.const(BLOCKED), net.op("SequenceAt", "many", net.const(0, np.int64))))
    floats = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    model.graph.input.append(helper.make_value_info("many", helper.make_sequence_type_proto(floats)))
    (mask,) = (node.output[0] for node in model.graph.node if "SequenceAt" in "".join(node.input))
    model.graph.value_info.append(helper.make_tensor_value_info(mask, TensorProto.FLOAT, [LENGTH, LENGTH]))
    assert not causal(model)


def test_a_triangle_that_a_caller_can_replace_is_not_called_causal() -> None:
    model = masked(lambda net: net.const(np.triu(np.full((LONG, LONG), -1e4), 1), name="mask"), length=LONG)
    assert causal(model)
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [LONG, LONG]))
    assert not causal(model)


@pytest.mark.parametrize("rows", [(1, 0), (1, 1)])
def test_a_key_mask_of_onnx_runtime_s_operator_is_laid_over_entries_not_queries(rows: tuple[int, int]) -> None:
    """Two entries and two keys: a triangle by its numbers."""
    net = Net()
    q, k, v = (net.input(name, 2, 2, HEADS * HEAD_DIM) for name in "qkv")
    mask = net.const([rows, (1, 1)], np.int32)
    net.output(
        net.op("MultiHeadAttention", q, k, v, "", mask, domain="com.microsoft", name="softmax", num_heads=HEADS), 3
    )
    (candidate,) = onnx_attn.inspect(net.model(com_microsoft=1), target="onnxruntime")["candidates"]
    assert (candidate["status"], candidate["causal"]) == ("site", False)


# --- how much is computed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "expected"), [(LONG**2 - 1, False), (LONG**2, True)])
def test_a_triangle_that_weights_multiply_to_is_read_from_its_folded_numbers(
    monkeypatch: pytest.MonkeyPatch, most: int, expected: bool
) -> None:
    """A running sum by a product: its node makes activations as a rule, and is not run for a mask that is not folded."""
    monkeypatch.setattr(causality, "MOST_POSITIONS", most)

    def running_sum(net: Net) -> str:
        lower = net.op("MatMul", net.const(np.tri(LONG)), net.const(np.eye(LONG)))
        return net.op("Mul", net.op("Sub", net.const(1.0), lower), net.const(1e4))

    report = onnx_attn.fuse(masked(running_sum, op="Sub", length=LONG), verify=False).report
    assert report["candidates"][0]["causal"] == expected


def test_the_number_of_keys_is_known_whatever_makes_the_keys() -> None:
    net = Net()
    x = net.input("x", 2, LONG, WIDTH)
    q, k, v = (net.split_heads(net.linear(x, CHANNELS)) for _ in range(3))
    length = net.op("Gather", net.op("Shape", k), net.const(2, np.int64))
    places = net.op("Range", net.const(0, np.int64), length, net.const(1, np.int64))
    later = net.op("Greater", net.op("Unsqueeze", places, net.ints(0)), net.op("Unsqueeze", places, net.ints(1)))
    mask = net.op("Or", later, net.input("padding", 2, 1, 1, LONG, dtype=bool))
    net.output(net.sdpa(q, net.swap(k), v, lambda s: net.op("Where", mask, net.const(-1e4), net.scaled(s))))
    assert causal(net.model())


def test_an_input_that_a_node_leaves_out_hinders_nothing() -> None:
    clipped = lambda net: net.op("Clip", padded(net), "", net.const(0.0))  # noqa: E731
    assert causal(masked(clipped))


@pytest.mark.parametrize(("most", "expected"), [(24, False), (25, True)])
@pytest.mark.parametrize("kind", ["stored", "computed"])
def test_a_mask_of_too_many_numbers_is_not_read(
    monkeypatch: pytest.MonkeyPatch, kind: str, most: int, expected: bool
) -> None:
    monkeypatch.setattr(causality, "MOST_POSITIONS", most)
    small = lambda net: net.op("Add", net.const(BLOCKED), net.input("one", 1))  # noqa: E731
    assert causal(masked(BLOCKED if kind == "stored" else small)) == expected


@pytest.mark.parametrize(("most", "expected"), [(99, False), (100, True)])
def test_a_mask_made_from_too_many_numbers_is_not_read(
    monkeypatch: pytest.MonkeyPatch, most: int, expected: bool
) -> None:
    monkeypatch.setattr(causality, "MOST_POSITIONS", most)

    def reduced(net: Net) -> str:
        return net.op("Add", net.const(BLOCKED), net.op("ReduceMax", net.input("many", 20, LENGTH), axes=[0]))

    assert causal(masked(reduced)) == expected


@pytest.mark.parametrize(("most", "expected"), [(5, False), (6, True)])
def test_a_mask_made_by_too_many_nodes_is_not_read(monkeypatch: pytest.MonkeyPatch, most: int, expected: bool) -> None:
    """Six nodes that turn its sign, and one that adds the triangle."""
    monkeypatch.setattr(causality, "MOST_NODES", most)
    assert causal(masked(lambda net: padded(net, steps=6))) == expected
