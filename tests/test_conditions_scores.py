"""The way from a softmax up to Q·Kᵀ: which of two ways is taken, and what on it is no scale, no mask and no cast."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from checks import assert_fused, assert_no_attention, feeds
from graphs import HEAD_DIM, HEADS, Net, heads_in, small_site
from onnx import TensorProto

LENGTH = 5
FULL = (2, HEADS, LENGTH, LENGTH)
Write = Callable[[Net], str]


def product(net: Net, name: str, *lead: int, size: int = 7) -> str:
    """A product of two inputs that is no Q·Kᵀ of the site's."""
    first, second = net.input(f"{name}_left", *lead, LENGTH, size), net.input(f"{name}_right", *lead, size, LENGTH)
    return net.op("MatMul", first, second)


# --- which product ---------------------------------------------------------------------------------------------------------


def test_a_key_that_is_itself_a_product_is_no_mix_of_heads() -> None:
    net = Net()
    q, _, v = heads_in(net)
    kt = net.op("MatMul", net.input("a", 2, HEADS, HEAD_DIM, 7), net.input("b", 2, HEADS, 7, LENGTH))
    net.output(net.sdpa(q, kt, v))
    assert_fused(net.model(), head_dim=HEAD_DIM)


@pytest.mark.parametrize("learned", [(True, True), (True, False), (False, True)])
def test_of_two_products_that_are_added_the_first_is_the_scores(learned: tuple[bool, bool]) -> None:
    """Either may have stored queries."""
    net = Net()
    v = net.input("v", 2, HEADS, LENGTH, HEAD_DIM)
    sums = []
    for number, stored in enumerate(learned):
        size = HEAD_DIM - number
        k = net.input(f"k{number}", 2, HEADS, LENGTH, size)
        q = net.weight(2, HEADS, LENGTH, size) if stored else net.input(f"q{number}", 2, HEADS, LENGTH, size)
        sums.append(net.op("MatMul", q, net.swap(k)))
    found = net.op("Softmax", net.op("Add", *sums), axis=-1, name="softmax")
    net.output(net.op("MatMul", found, v))
    assert_fused(net.model(), head_dim=HEAD_DIM)


@pytest.mark.parametrize("first", [True, False])
def test_scores_are_what_has_the_sum_s_shape(first: bool) -> None:
    """One head of one entry: a product of two axes differs from scores of four by their sizes of 1 alone."""
    net = Net()
    q, k, v = (net.input(name, 1, 1, LENGTH, HEAD_DIM) for name in "qkv")
    bias = product(net, "bias")
    net.output(net.sdpa(q, net.swap(k), v, lambda s: net.op("Add", *((s, bias) if first else (bias, s)))))
    assert_fused(net.model(), head_dim=HEAD_DIM, masks=[{"kind": "additive", "shape": [LENGTH, LENGTH]}])


@pytest.mark.parametrize("first", [True, False])
def test_a_product_that_a_mask_spreads_over_heads_is_no_scores_beside_others(first: bool) -> None:
    net = Net()
    q, kt, v = heads_in(net)
    bias = net.op("Add", product(net, "bias"), net.input("mask", *FULL))
    net.output(net.sdpa(q, kt, v, lambda s: net.op("Add", *((net.scaled(s), bias)[:: 1 if first else -1]))))
    assert_fused(net.model(), head_dim=HEAD_DIM)


def test_a_product_that_a_mask_may_spread_over_entries_is_no_scores_beside_others() -> None:
    """At one size of the batch there is one entry to spread it over."""
    net = Net()
    q, k, v = (net.input(name, "batch", 1, LENGTH, HEAD_DIM) for name in "qkv")
    rest = [net.op("Slice", each, net.ints(1), net.ints(1000), net.ints(0)) for each in (q, k, v)]
    mask = net.op("Slice", net.input("mask", "batch", 1, LENGTH, LENGTH), net.ints(1), net.ints(1000), net.ints(0))
    bias = net.op("Add", product(net, "bias"), mask)
    net.output(net.sdpa(rest[0], net.swap(rest[1]), rest[2], lambda s: net.op("Add", bias, net.scaled(s))))
    model = net.model()
    assert_fused(model, feeds(model, {"batch": 3}), head_dim=HEAD_DIM)


def test_scores_of_fewer_axes_than_their_mask_are_scores() -> None:
    net = Net()
    q, k, v = (net.input(name, HEADS, LENGTH, HEAD_DIM) for name in "qkv")
    mask = net.input("mask", 1, 1, LENGTH, LENGTH)
    scores = net.op("Add", net.scaled(net.op("MatMul", q, net.swap(k, 3))), mask)
    found = net.op("Softmax", scores, axis=-1, name="softmax")
    net.output(net.op("MatMul", net.reshape(found, HEADS, LENGTH, LENGTH), v), 3)
    assert_fused(net.model(), head_dim=HEAD_DIM)


def test_a_temperature_of_weights_may_stand_in_front_of_a_product_that_sizes_decide() -> None:
    """The same scores for all inputs of one size."""
    net = Net()
    net.input("other", "n")
    v = net.input("v", 2, HEADS, LENGTH, HEAD_DIM)
    size = net.op("Cast", net.op("Size", "other"), to=TensorProto.FLOAT)
    q, k = (net.weight(2, HEADS, LENGTH, HEAD_DIM) for _ in range(2))
    scores = net.op("Mul", net.weight(*FULL), net.op("MatMul", net.op("Mul", q, size), net.swap(k)))
    net.output(net.op("MatMul", net.op("Softmax", scores, axis=-1, name="softmax"), v))
    assert_fused(net.model(), feeds(net.model(), {"n": 3}), head_dim=HEAD_DIM)


# --- heads that are mixed ----------------------------------------------------------------------------------------------------


def mixed(net: Net, scores: str, how: str = "product") -> str:
    """Heads mixed with each other by weights."""
    if how == "convolution":
        return net.op("Conv", scores, net.weight(HEADS, HEADS, 1, 1))
    if how == "einsum":
        return net.op("Einsum", scores, net.weight(HEADS, HEADS), equation="bhij,hg->bgij")
    if how == "einsum, weights first":
        return net.op("Einsum", net.weight(HEADS, HEADS), scores, equation="hg,bhij->bgij")
    return net.turn(net.op("MatMul", net.turn(scores, 0, 2, 3, 1), net.weight(HEADS, HEADS)), 0, 3, 1, 2)


MIXES = ("product", "convolution", "einsum", "einsum, weights first")


@pytest.mark.parametrize("how", MIXES)
def test_heads_that_are_mixed_are_told(how: str) -> None:
    assert_no_attention(small_site(scores=lambda net, s: mixed(net, net.scaled(s), how)), "talking-heads")


@pytest.mark.parametrize("how", MIXES)
def test_heads_that_are_mixed_behind_a_stored_bias_are_told(how: str) -> None:
    bias = np.random.default_rng(0).standard_normal(FULL)
    model = small_site(scores=lambda net, s: mixed(net, net.op("Add", net.scaled(s), net.const(bias)), how))
    assert_no_attention(model, "talking-heads")


def test_heads_that_are_mixed_in_front_of_another_change_are_told_first() -> None:
    model = small_site(scores=lambda net, s: net.op("Relu", mixed(net, net.scaled(s))))
    assert_no_attention(model, "talking-heads")


@pytest.mark.parametrize("first", MIXES[:2])
@pytest.mark.parametrize("second", MIXES[:2])
def test_what_two_layers_make_is_no_scores(first: str, second: str) -> None:
    model = small_site(scores=lambda net, s: mixed(net, mixed(net, net.scaled(s), first), second))
    assert_no_attention(model, "no-query-key-product")


def test_heads_that_are_mixed_are_told_through_a_movement_to_a_shape_that_is_given() -> None:
    def scores(net: Net, value: str) -> str:
        sizes = net.input("sizes", 4, dtype=np.int64)
        return net.reshape(net.op("Conv", net.op("Reshape", value, sizes), net.weight(HEADS, HEADS, 1, 1)), *FULL)

    assert_no_attention(small_site(scores=scores), "talking-heads")
