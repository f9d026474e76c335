"""Spellings of self-attention that are packed, and movements that only look like a head split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from checks import assert_fused
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH, Net, Three
from knobs import Block, Knobs
from onnx import numpy_helper

ROOT = HEAD_DIM**-0.5


PACKED: dict[str, Knobs] = {
    "biases on all": Knobs(),
    "no bias": Knobs(biases=""),
    "bias on V only": Knobs(biases="v"),
    "bias on Q and V": Knobs(biases="qv"),
    "heads of 3-D": Knobs(layout="heads3d"),
    "sequence first": Knobs(layout="sequence_first"),
    "K in two steps": Knobs(key_in_two_steps=True),
    "Gemm": Knobs(projection="gemm"),
    "Gemm with factors": Knobs(projection="gemm", alpha=0.7, beta=1.3),
    "Gemm as it stands": Knobs(projection="gemm", trans_b=False),
    "values of another size": Knobs(value_dim=16),
    "values of another size, no bias": Knobs(value_dim=16, biases=""),
    "scale before the head split": Knobs(scale="q_before"),
    "scale on K": Knobs(scale="k"),
    "root of the scale on both": Knobs(scale="sqrt_both"),
    "packed, three outermost": Knobs(projection="packed"),
    "packed, three inside each head": Knobs(projection="packed", packed_order="h_three_d"),
    "packed, split": Knobs(projection="packed", packed_order="split"),
    "packed, no bias": Knobs(projection="packed", packed_order="h_three_d", biases=""),
    "one head": Knobs(heads=1),
    "one token": Knobs(sequence=1),
    "one of a batch": Knobs(batch=1),
    "all sizes equal": Knobs(batch=4, sequence=4, heads=4, head_dim=4, value_dim=4),
    "dynamic": Knobs(dynamic=("batch", "sequence")),
    "dynamic, heads of 3-D": Knobs(dynamic=("batch", "sequence"), layout="heads3d"),
    "dynamic, sequence first": Knobs(dynamic=("batch", "sequence"), layout="sequence_first"),
    "dynamic, Gemm": Knobs(dynamic=("batch", "sequence"), projection="gemm"),
    "no node has a name": Knobs(named=False),
}


@pytest.mark.parametrize("spelling", PACKED)
def test_self_attention_is_packed(spelling: str) -> None:
    knobs = PACKED[spelling]
    kind = "packed" if knobs.projection == "packed" else "triplet"
    expected: dict[str, Any] = {"packed": True, "projection": kind, "heads": knobs.heads, "kv_heads": knobs.heads}
    expected |= {"head_dim": knobs.head_dim, "value_dim": knobs.value_dim, "scale": knobs.head_dim**-0.5}
    fused = assert_fused(Block(knobs).model(), **expected)
    products = [node for node in fused.graph.node if node.op_type in ("MatMul", "Gemm")]
    assert len(products) == 1


def test_one_head_without_a_head_split_is_packed() -> None:
    net = Net()
    x = net.input("x", 2, 5, WIDTH)
    q, k, v = (net.linear(x, HEAD_DIM) for _ in range(3))
    net.output(net.sdpa(q, net.swap(k, 3), v), 3)
    assert_fused(net.model(), packed=True, heads=1, kv_heads=1, head_dim=HEAD_DIM)


def test_bias_with_axes_of_size_one_is_a_bias() -> None:
    three = Three()
    q = three.net.op(
        "Add", three.net.op("MatMul", three.x, three.net.weight(WIDTH, CHANNELS)), three.net.weight(1, 1, CHANNELS)
    )
    assert_fused(three.finish(q), packed=True)


@pytest.mark.parametrize("wrap", ["Identity", "Transpose"])
def test_weights_behind_a_node_are_packed(wrap: str) -> None:
    three, layers = Three(), []
    for _ in range(3):
        weight = three.net.weight(*((CHANNELS, WIDTH) if wrap == "Transpose" else (WIDTH, CHANNELS)))
        layers.append(three.layer(weight=three.net.op(wrap, weight)))
    assert_fused(three.finish(*layers), packed=True, projection="triplet")


def test_weights_in_constant_nodes_give_the_same_numbers() -> None:
    three, layers = Three(), []
    for _ in range(3):
        values = three.net.rng.standard_normal((WIDTH, CHANNELS)).astype(np.float32) / 4
        layers.append(three.layer(weight=three.net.op("Constant", value=numpy_helper.from_array(values))))
    assert_fused(three.finish(*layers), scale=ROOT)


LAYOUTS: dict[str, tuple[int, ...]] = {
    "heads before the batch": (2, 0, 1, 3),
    "attends over the batch": (1, 2, 0, 3),
    "heads innermost of the batch axes": (0, 2, 1, 3),
}


@pytest.mark.parametrize("perm", LAYOUTS.values(), ids=LAYOUTS)
def test_any_order_of_the_axes_is_packed(perm: tuple[int, ...]) -> None:
    three = Three()
    heads = [three.net.turn(three.net.reshape(three.layer(), 0, 0, HEADS, HEAD_DIM), *perm) for _ in range(3)]
    three.net.output(three.net.sdpa(heads[0], three.net.swap(heads[1]), heads[2]))
    assert_fused(three.net.model(), packed=True)


def test_source_with_two_batch_axes_is_packed() -> None:
    net = Net()
    x = net.input("x", 2, 3, 5, WIDTH)
    q, k, v = (
        net.turn(net.reshape(net.linear(x, CHANNELS), 0, 0, 0, HEADS, HEAD_DIM), 0, 1, 3, 2, 4) for _ in range(3)
    )
    net.output(net.sdpa(q, net.swap(k, 5), v), 5)
    assert_fused(net.model(), packed=True, heads=HEADS)


def test_packed_layer_in_the_order_key_query_value_is_read_so() -> None:
    three = Three()
    net = three.net
    k, q, v = net.op("Split", net.linear(three.x, 3 * CHANNELS), net.ints(*[CHANNELS] * 3), outputs=3, axis=-1)
    assert_fused(three.finish(q, k, v), packed=True, projection="packed")


def test_packed_layer_that_makes_something_else_too_keeps_it() -> None:
    three = Three()
    net = three.net
    *parts, gate = net.op("Split", net.linear(three.x, 4 * CHANNELS), net.ints(*[CHANNELS] * 4), outputs=4, axis=-1)
    net.output(net.op("Exp", gate), 3)
    assert_fused(three.finish(*parts), projection="packed")


def test_split_into_equal_parts_without_sizes_is_read() -> None:
    three = Three(18)
    parts = three.net.op("Split", three.net.linear(three.x, 3 * CHANNELS), outputs=3, axis=-1, num_outputs=3)
    assert_fused(three.finish(*parts), packed=True, projection="packed")


@pytest.mark.parametrize("expand", [False, True], ids=["broadcast", "Expand"])
def test_one_key_head_for_all_queries_gives_the_same_numbers(expand: bool) -> None:
    three = Three()
    net = three.net

    def one_head() -> str:
        found = net.split_heads(net.linear(three.x, HEAD_DIM), 1)
        return net.op("Expand", found, net.ints(2, HEADS, 5, HEAD_DIM)) if expand else found

    assert_fused(three.finish(net.split_heads(three.layer()), one_head(), one_head(), split=False), heads=HEADS)


def test_key_heads_in_another_order_give_the_same_numbers() -> None:
    three = Three()
    heads = [three.net.split_heads(three.layer()) for _ in range(3)]
    heads[1] = three.net.op("Gather", heads[1], three.net.ints(1, 0), axis=1)
    assert_fused(three.finish(*heads, split=False), scale=ROOT)


def test_keys_back_to_front_give_the_same_numbers() -> None:
    three = Three()
    net, heads = three.net, [three.net.split_heads(three.layer()) for _ in range(3)]
    heads[1] = net.op("Slice", heads[1], net.ints(-1), net.ints(-10), net.ints(2), net.ints(-1))
    fused = assert_fused(three.finish(*heads, split=False), packed=True)
    assert sum(node.op_type == "MatMul" for node in fused.graph.node) == 2  # Q and V from one, K from its own.


def test_query_that_is_a_weight_is_fused() -> None:
    three = Three()
    k, v = (three.net.split_heads(three.layer()) for _ in range(2))
    q = three.net.scaled(three.net.weight(1, HEADS, 3, HEAD_DIM))
    fused = assert_fused(three.finish(q, k, v, split=False), packed=True, projection="none", scale=ROOT**2)
    assert sum(node.op_type == "MatMul" for node in fused.graph.node) == 1
