"""Heads: on two axes, shared, repeated in some order, or at sizes that vary.

Each test is of a condition in `recognize/site_axes.py` or `operands.py` that no other test tells from its opposite.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from checks import assert_fused, assert_same, feeds
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH, Net

import onnx_attn

GROUPS, SIZE = 3, 8
"""Heads of queries that share one of keys, and their size."""
Axes = tuple[int, int]
BOTH, OUTER, INNER, ONE = (HEADS, GROUPS), (HEADS, 1), (1, GROUPS), (1, 1)


def einsum(net: Net, equation: str, *operands: str) -> str:
    found: str = net.op("Einsum", *operands, equation=equation)
    return found


def grouped(
    keys: Axes = OUTER,
    values: Axes = OUTER,
    masks: tuple[Axes, ...] = (),
    cleared: Axes | None = None,
    scores: Callable[[Net, str], str] = lambda net, value: value,
    seed: int = 0,
) -> onnx.ModelProto:
    """Queries have two axes of heads; keys, values and masks have as many on each as is said."""
    net = Net(23, seed=seed)
    x = net.input("x", 2, 5, WIDTH)

    def apart(axes: Axes) -> str:
        wide = net.linear(x, axes[0] * axes[1] * SIZE)
        return net.turn(net.reshape(wide, 0, 0, *axes, SIZE), 0, 2, 3, 1, 4)

    def masked(value: str) -> str:
        value = scores(net, net.scaled(value, SIZE**-0.5))
        for axes in masks:
            value = net.op("Add", value, net.weight(*axes, 5, 5))
        return value

    def kept(value: str) -> str:
        if cleared is None:
            return value
        return net.op("Where", net.input("kept", *cleared, 5, 5, dtype=bool), value, net.const(0.0))

    q, k, v = apart(BOTH), apart(keys), apart(values)
    net.output(net.sdpa(q, net.swap(k, 5), v, masked, kept), 5)
    return net.model()


def operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("masks", [(), (BOTH,), (ONE,), (BOTH, ONE)])
def test_groups_that_share_a_head_are_one_axis(masks: tuple[Axes, ...]) -> None:
    """Of four axes, as the operator wants them, and masks with them."""
    form = "attention" if len(masks) < 2 else "function"
    fused = assert_fused(grouped(masks=masks), asked_form=form, target="onnx", heads=6, kv_heads=2)
    assert form == "function" or "Attention" in operators(fused)


@pytest.mark.parametrize(("keys", "kv_heads"), [(BOTH, 6), (INNER, 3), (OUTER, 2), (ONE, 1)])
@pytest.mark.parametrize("values", [BOTH, INNER, OUTER, ONE])
def test_heads_on_two_axes_are_counted_together(keys: Axes, kv_heads: int, values: Axes) -> None:
    """Whichever of them keys and values have."""
    assert_fused(grouped(keys, values), heads=6, kv_heads=kv_heads)


@pytest.mark.parametrize("masks", [(OUTER,), (INNER,), (OUTER, ONE), (ONE, INNER)])
def test_a_mask_of_one_axis_of_heads_is_not_repeated_along_the_other(masks: tuple[Axes, ...]) -> None:
    assert "Expand" not in operators(assert_fused(grouped(masks=masks), asked_form="primitives", heads=6))


@pytest.mark.parametrize("cleared", [OUTER, INNER])
def test_nor_is_one_that_clears_probabilities(cleared: Axes) -> None:
    assert "Expand" not in operators(assert_fused(grouped(cleared=cleared), asked_form="primitives", heads=6))


def test_a_softcap_has_no_axes() -> None:
    model = grouped(scores=lambda net, s: net.scaled(net.op("Tanh", net.scaled(s, 0.5)), 2.0))
    assert_fused(model, heads=6, kv_heads=2)


def test_heads_on_two_axes_keep_their_order_when_they_are_joined() -> None:
    """In many sites: which of two things comes first may be a matter of chance."""
    model = grouped()
    for number in range(1, 12):
        more = onnx.compose.add_prefix(grouped(seed=number), f"site{number}_")
        model = onnx.compose.merge_models(model, more, io_map=[])
    result = onnx_attn.fuse(model, verify=False)
    assert result.report["fused"] == 12
    assert_same(model, result.model)


@pytest.mark.parametrize(
    ("order", "kv_heads"), [((0, 1, 1, 0), 4), ((0, 0, 1, 1), 2), ((0, 1, 0, 1), 2), ((1, 0, 0, 1), 4)]
)
def test_heads_of_keys_that_are_picked_count_once_where_their_order_is_plain(order: Axes, kv_heads: int) -> None:
    net = Net(23)
    q, k, v = (net.input(role, 2, 4 if role == "q" else 2, 5, HEAD_DIM) for role in "qkv")
    k, v = (net.op("Gather", each, net.ints(*order), axis=1) for each in (k, v))
    net.output(net.sdpa(q, net.swap(k), v))
    for form in ("function", "attention"):
        assert_fused(net.model(), heads=4, kv_heads=kv_heads, target="onnx", asked_form=form)


def test_heads_of_a_number_that_varies_have_none() -> None:
    """A layer's channels are cut into as many heads as another input has rows."""
    net = Net()
    x, rows = net.input("x", 2, 5, WIDTH), net.input("rows", "heads")
    q, k, v = (net.turn(net.reshape(net.linear(x, CHANNELS), 0, 0, (rows, 0), -1), 0, 2, 1, 3) for _ in range(3))
    net.output(net.sdpa(q, net.swap(k), v))
    model = net.model()
    (candidate,) = onnx_attn.inspect(model)["candidates"]
    assert (candidate["status"], candidate["heads"], candidate["kv_heads"]) == ("site", None, None)
    for heads in (2, 6):
        assert_same(model, onnx_attn.fuse(model).model, feeds(model, {"heads": heads}))


def test_keys_of_no_length_are_read() -> None:
    net = Net()
    q, k, v = (net.input(role, 2, HEADS, 5 if role == "q" else 0, HEAD_DIM) for role in "qkv")
    net.output(net.sdpa(q, net.swap(k), v))
    model = net.model()
    (candidate,) = onnx_attn.inspect(model)["candidates"]
    assert (candidate["heads"], candidate["kv_heads"]) == (HEADS, HEADS)
    assert_same(model, onnx_attn.fuse(model, verify=False).model, feeds(model, {"k:2": 0, "v:2": 0}))


def part(net: Net, value: str, first: int) -> str:
    """The entries of a batch from one on."""
    found: str = net.op("Slice", value, net.ints(first), net.ints(99), net.ints(0))
    return found


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("roles", ["q", "kv", "qkv"])
def test_a_part_of_the_batch_that_may_be_one_entry_or_none(roles: str, first: int) -> None:
    """At the smallest size that is tried. Heads stand behind the queries, so that what is cut has to be moved."""
    net = Net()
    q, k, v = (net.input(role, "batch", length, HEADS, HEAD_DIM) for role, length in (("q", 5), ("k", 7), ("v", 7)))
    q, k, v = (part(net, each, first) if role in roles else each for each, role in ((q, "q"), (k, "k"), (v, "v")))
    found = net.op("Softmax", net.scaled(einsum(net, "bsnd,blnd->bnsl", q, k)), axis=-1, name="softmax")
    net.output(einsum(net, "bnsl,blnd->bsnd", found, v))
    model = net.model()
    after = onnx_attn.fuse(model, verify=False).model
    for batch in (3, 4) if roles == "qkv" else (first + 1,):
        if first == 1 or batch > 2:
            assert_same(model, after, feeds(model, {"batch": batch}))


def test_a_batch_that_may_be_one_entry_is_moved_in_front_of_the_heads() -> None:
    net = Net()
    q, k, v = (net.input(role, HEADS, "batch", length, HEAD_DIM) for role, length in (("q", 5), ("k", 7), ("v", 7)))
    q, k, v = (net.op("Slice", each, net.ints(1), net.ints(99), net.ints(1)) for each in (q, k, v))
    found = net.op("Softmax", net.scaled(einsum(net, "nbsd,nbld->bnsl", q, k)), axis=-1, name="softmax")
    net.output(einsum(net, "bnsl,nbld->bnsd", found, v))
    model = net.model()
    after = onnx_attn.fuse(model, verify=False).model
    for batch in (2, 4):
        assert_same(model, after, feeds(model, {"batch": batch}))


@pytest.mark.parametrize("index", [2, 4])
def test_an_entry_that_is_not_there_at_the_smallest_size_that_is_tried(index: int) -> None:
    net = Net()
    q, k, v = (net.input(role, "batch", HEADS, length, HEAD_DIM) for role, length in (("q", 5), ("k", 7), ("v", 7)))
    q = net.op("Gather", q, net.const(index, np.int64), axis=0)
    net.output(net.sdpa(q, net.swap(k), v))
    model = net.model()
    assert_same(model, onnx_attn.fuse(model, verify=False).model, feeds(model, {"batch": 5}))


def test_heads_that_are_one_at_one_size_alone() -> None:
    """Twelve by the batch, without the first three: three heads of an entry where there are two, one where there are three."""
    net = Net()
    x, like = net.input("x", 5, 12 * WIDTH), net.input("like", "batch")

    def cut(value: str) -> str:
        apart = net.turn(net.reshape(value, 5, (like, 0), -1, 4), 1, 2, 0, 3)
        return net.op("Slice", apart, net.ints(3), net.ints(99), net.ints(1))

    q, k, v = (cut(net.linear(x, 48, width=12 * WIDTH)) for _ in range(3))
    net.output(net.sdpa(q, net.swap(k), v))
    model = net.model()
    after = onnx_attn.fuse(model, verify=False).model
    for batch in (1, 2, 3):
        assert_same(model, after, feeds(model, {"batch": batch}))
