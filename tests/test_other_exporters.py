"""Graphs as exporters other than torch's write them: old opsets, chains of Identity, neutral arithmetic, unfolded norms."""

from __future__ import annotations

import numpy as np
import pytest
from checks import assert_fused, assert_refused, feeds
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH, Net

import onnx_attn

ROOT = HEAD_DIM**-0.5


def dense(net: Net, x: str, channels: int = CHANNELS, width: int = WIDTH) -> str:
    """A layer on rows of a matrix, as TensorFlow's converter writes it."""
    return net.op("Add", net.op("MatMul", x, net.weight(width, channels)), net.weight(channels))


def tensorflow(opset: int, softmax_in_two_axes: bool = False) -> Net:
    """A block of a Keras BERT: rows on one axis, a mask of ones and zeros turned into numbers, all at one opset."""
    net = Net(opset)
    x, mask = net.input("x", 2, 5, WIDTH), net.input("mask", 2, 5)
    rows = net.reshape(x, -1, WIDTH)
    query, key, value = (net.reshape(dense(net, rows), 2, 5, HEADS, HEAD_DIM) for _ in range(3))
    scores = net.op("MatMul", net.turn(query, 0, 2, 1, 3), net.turn(key, 0, 2, 3, 1))
    blocked = net.op("Mul", net.op("Sub", net.const(1.0), net.reshape(mask, 2, 1, 1, 5)), net.const(-10000.0))
    scores = net.op("Add", net.scaled(scores), blocked)
    if softmax_in_two_axes:
        flat = net.op("Softmax", net.reshape(scores, -1, 5), axis=1, name="softmax")
        found = net.reshape(flat, 2, HEADS, 5, 5)
    else:
        found = net.op("Softmax", scores, axis=3, name="softmax")
    heads = net.turn(net.op("MatMul", found, net.turn(value, 0, 2, 1, 3)), 0, 2, 1, 3)
    net.output(net.reshape(dense(net, net.reshape(heads, -1, CHANNELS), WIDTH, CHANNELS), 2, 5, WIDTH), 3)
    return net


@pytest.mark.parametrize("opset", [11, 12, 13, 17])
@pytest.mark.parametrize("softmax_in_two_axes", [False, True])
def test_a_block_of_tensorflow_is_read(opset: int, softmax_in_two_axes: bool) -> None:
    model = tensorflow(opset, softmax_in_two_axes).model()
    inputs = feeds(model)
    inputs["mask"] = np.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.float32)
    assert_fused(model, inputs, heads=HEADS, head_dim=HEAD_DIM, scale=ROOT, projection="triplet", packed=True)


def test_a_flat_softmax_over_more_than_the_keys_is_refused() -> None:
    """At opset 11 axis 2 of four axes means the last two together."""
    net = Net(11)
    q, k, v = (net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "qkv")
    net.output(net.sdpa(q, net.swap(k), v, axis=2))
    assert_refused(net.model(), "softmax-axis")


def paddle(net: Net, value: str) -> str:
    """`scale(x, 1.0, bias=0.0)` and what is left of a Dropout."""
    value = net.op("Identity", net.op("Identity", value))
    return net.op("Add", net.op("Mul", value, net.const([1.0])), net.const([0.0]))


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_neutral_arithmetic_is_read_through(opset: int) -> None:
    net = Net(opset)
    x = net.input("x", 2, 5, WIDTH)
    q, k, v = (paddle(net, net.split_heads(paddle(net, net.linear(x, CHANNELS)))) for _ in range(3))
    scores = lambda s: paddle(net, net.scaled(paddle(net, s)))  # noqa: E731
    net.output(
        net.merge_heads(paddle(net, net.sdpa(q, paddle(net, net.swap(k)), v, scores, lambda p: paddle(net, p)))), 3
    )
    assert_fused(net.model(), heads=HEADS, scale=ROOT, masks=[], projection="triplet", packed=True)


def test_a_factor_that_is_one_in_part_is_no_identity() -> None:
    net = Net()
    q, k, v = (net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "qkv")
    almost = np.ones((HEADS, 1, 1))
    almost[0] = 1.5
    net.output(net.sdpa(q, net.swap(k), v, lambda s: net.op("Mul", net.scaled(s), net.const(almost))))
    assert_fused(net.model(), scale=ROOT)


def normalised(net: Net, rows: str) -> str:
    """BatchNormalization over the channels of rows, at inference."""
    spread = [net.const(net.rng.uniform(0.5, 2.0, CHANNELS)) for _ in range(2)]
    shifts = [net.weight(CHANNELS) for _ in range(2)]
    return net.op("BatchNormalization", rows, spread[0], shifts[0], shifts[1], spread[1])


def test_a_batch_normalisation_before_the_head_split_leaves_the_projection_readable() -> None:
    net = Net()
    x = net.input("x", 2, 5, WIDTH)

    def layer() -> str:
        rows = net.reshape(net.linear(x, CHANNELS, bias=False), -1, CHANNELS)
        return net.split_heads(net.reshape(normalised(net, rows), 2, 5, CHANNELS))

    q, k, v = layer(), layer(), layer()
    net.output(net.merge_heads(net.sdpa(q, net.swap(k), v)), 3)
    assert_fused(net.model(), heads=HEADS, head_dim=HEAD_DIM, projection="triplet", packed=True)


def test_heads_that_are_stacked_along_the_batch_are_heads() -> None:
    net = Net()
    x = net.input("x", 2, 5, WIDTH)

    def stacked() -> str:
        parts = net.op("Split", net.linear(x, CHANNELS), net.ints(*[HEAD_DIM] * HEADS), outputs=HEADS, axis=-1)
        return net.op("Concat", *parts, axis=0)

    q, k, v = stacked(), stacked(), stacked()
    made = net.sdpa(q, net.swap(k, 3), v)
    parts = net.op("Split", made, net.ints(*[2] * HEADS), outputs=HEADS, axis=0)
    net.output(net.op("Concat", *parts, axis=-1), 3)
    assert_fused(net.model(), heads=HEADS, head_dim=HEAD_DIM, projection="triplet", packed=True)


def test_pieces_of_two_tensors_are_no_stack_of_one() -> None:
    net = Net()
    x, y = net.input("x", 2, 5, WIDTH), net.input("y", 2, 5, WIDTH)
    q, k, v = (net.op("Concat", net.linear(x, HEAD_DIM), net.linear(y, HEAD_DIM), axis=0) for _ in range(3))
    net.output(net.sdpa(q, net.swap(k, 3), v), 3)
    model = net.model()
    assert_fused(model, packed=True)
    # What is packed are the three layers of one of them, as they stand.
    assert sum(node.op_type == "MatMul" for node in onnx_attn.fuse(model).model.graph.node) == 1 + 3


@pytest.mark.parametrize("copies", ["Expand", "Tile", "Gather"])
def test_shared_heads_reach_the_operator_unrepeated(copies: str) -> None:
    """In the form `attention` K and V keep the heads that they have, whatever repeats them in the graph."""
    net = Net(23, dtype=np.float16)
    q = net.input("q", 2, 4, 5, HEAD_DIM)

    def repeated(name: str) -> str:
        value = net.input(name, 2, 2, 5, HEAD_DIM)
        if copies == "Gather":
            return net.op("Gather", value, net.ints(0, 0, 1, 1), axis=1)
        apart = net.op("Unsqueeze", value, net.ints(2))
        shape = (2, 2, 2, 5, HEAD_DIM) if copies == "Expand" else (1, 1, 2, 1, 1)
        return net.reshape(net.op(copies, apart, net.ints(*shape)), 2, 4, 5, HEAD_DIM)

    k, v = repeated("k"), repeated("v")
    net.output(net.sdpa(q, net.swap(k), v))
    fused = assert_fused(net.model(), rtol=2e-3, asked_form="attention", heads=4, kv_heads=2)
    assert [node.op_type for node in fused.graph.node] == ["Attention"]
