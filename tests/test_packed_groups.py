"""Which operands are packed together, and what is left whole because somebody else reads it."""

from __future__ import annotations

import pytest
from checks import assert_fused
from graphs import CHANNELS, WIDTH, Net, Three
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
