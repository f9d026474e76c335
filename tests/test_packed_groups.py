"""Which operands are packed together, and what is left whole because somebody else reads it."""

from __future__ import annotations

import numpy as np
import pytest
from checks import assert_fused
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH, Net, Three
from pre_norm import products

import onnx_attn


def test_one_row_of_a_packed_layer_for_query_keeps_the_layer_in_one_piece() -> None:
    """K and V alone would be packed out of it, and the whole layer computed for Q's row beside them."""
    three = Three()
    net = three.net
    q, k, v = net.op("Split", net.linear(three.x, 3 * CHANNELS), net.ints(*[CHANNELS] * 3), outputs=3, axis=-1)
    q = net.op("Slice", q, net.ints(0), net.ints(1), net.ints(1))
    assert products(assert_fused(three.finish(q, k, v), packed=False)) == 1


@pytest.mark.parametrize(
    ("bias", "length", "target", "packed"),
    [
        (False, 5, "tensorrt", False),
        (False, "length", "tensorrt", True),
        (True, 5, "tensorrt", True),
        (False, 5, "onnx", True),
    ],
)
def test_keys_and_values_alone_are_packed_where_that_pays(
    bias: bool, length: int | str, target: str, packed: bool
) -> None:
    net = Net(18)
    x, text = net.input("x", 2, 7, WIDTH), net.input("text", 2, length, WIDTH)
    q, k, v = (net.split_heads(net.linear(each, CHANNELS, bias=bias)) for each in (x, text, text))
    net.output(net.merge_heads(net.sdpa(q, net.swap(k), v)), 3)
    report = onnx_attn.fuse(net.model(), target=target).report
    (site,) = report["candidates"]
    assert (report["fused"], site["packed"], report["proof"]["ok"]) == (1, packed, True)
    assert packed or "more bytes" in site["unpacked_because"]


@pytest.mark.parametrize("target", ["tensorrt", "onnx"])
@pytest.mark.parametrize("normed", [False, True])
def test_a_query_from_outside_is_read_tokens_first_for_the_compiler(normed: bool, target: str) -> None:
    """Beside keys and values that are packed; behind a norm from the norm."""
    net = Net(18)
    x, text = net.input("x", 2, 7, WIDTH), net.input("text", 2, 5, WIDTH)
    x = net.op("LayerNormalization", x, net.weight(WIDTH), net.weight(WIDTH)) if normed else x
    first = net.turn(x, 1, 0, 2)  # As torch's module has it.
    q = net.turn(net.reshape(net.linear(first, CHANNELS), 7, 2, HEADS, HEAD_DIM), 1, 2, 0, 3)
    k, v = (net.split_heads(net.linear(text, CHANNELS)) for _ in range(2))
    net.output(net.merge_heads(net.sdpa(q, net.swap(k), v)), 3)
    fused = onnx_attn.fuse(net.model(), target=target)
    (site,) = fused.report["candidates"]
    assert (fused.report["fused"], site["packed"], fused.report["proof"]["ok"]) == (1, True, True)
    (source,) = [node.input[0] for node in fused.model.graph.node if node.name.endswith("in_proj_product")][:1]
    assert (source == first) == (target == "tensorrt" and not normed)


def test_narrow_heads_of_a_query_from_outside_are_padded_in_its_weights() -> None:
    net = Net(18, dtype=np.float16)
    x, text = net.input("x", 2, 7, WIDTH), net.input("text", 2, 5, WIDTH)
    q, k, v = (net.reshape(net.linear(each, 4 * 8), 0, 0, 4, 8) for each in (x, text, text))
    q, k, v = (net.turn(each, 0, 2, 1, 3) for each in (q, k, v))
    net.output(net.merge_heads(net.sdpa(q, net.swap(k), v), 4 * 8), 3)
    fused = onnx_attn.fuse(net.model())
    assert fused.report["fused"] == 1 and fused.report["candidates"][0]["changes"]
    assert not any(node.op_type in ("Pad", "Concat") for node in fused.model.graph.node)
