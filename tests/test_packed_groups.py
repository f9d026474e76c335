"""Which operands are packed together, and what is left whole because somebody else reads it."""

from __future__ import annotations

from checks import assert_fused
from graphs import CHANNELS, Three
from pre_norm import products


def test_one_row_of_a_packed_layer_for_query_keeps_the_layer_in_one_piece() -> None:
    """K and V alone would be packed out of it, and the whole layer computed for Q's row beside them."""
    three = Three()
    net = three.net
    q, k, v = net.op("Split", net.linear(three.x, 3 * CHANNELS), net.ints(*[CHANNELS] * 3), outputs=3, axis=-1)
    q = net.op("Slice", q, net.ints(0), net.ints(1), net.ints(1))
    assert products(assert_fused(three.finish(q, k, v), packed=False)) == 1
