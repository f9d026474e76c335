"""Caches of keys and values: what they hold is read by the next step too, so that nothing of it may move or go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_fused, assert_same, feeds, same_bytes
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH, Dim, Net, same

import onnx_attn
from onnx_attn.graph.sizes import worlds_of
from onnx_attn.prove.inputs import model_inputs

SIZES = {"past": 4, "new": 3, "total": 7, "batch": 2}


def cached(
    net: Net,
    past: Dim | None = "past",
    new: Dim = "new",
    *,
    kv_heads: int = HEADS,
    layout: tuple[int, ...] = (0, 2, 1, 3),
    scores: Any = None,
    factor: float = 1.0,
) -> onnx.ModelProto:
    """Three biased layers, the new keys and values behind those of the past, and both as presents.

    layout: how `(B, S, N, H)` is turned before it is cached. factor: what the keys are multiplied by before that.
    """
    x = net.input("x", "batch", new, WIDTH)
    q = net.split_heads(net.linear(x, CHANNELS))
    made = [net.reshape(net.linear(x, kv_heads * HEAD_DIM), 0, 0, kv_heads, HEAD_DIM) for _ in range(2)]
    made[0] = made[0] if factor == 1.0 else net.scaled(made[0], factor)
    turned = [made[0] if layout == (0, 1, 2, 3) else net.turn(made[0], *layout), net.turn(made[1], 0, 2, 1, 3)]
    axes = [layout.index(1), 2]
    if past is not None:
        shapes = [[("batch", past, kv_heads, HEAD_DIM)[axis] for axis in turn] for turn in (layout, (0, 2, 1, 3))]
        pasts = [net.input(name, *shape) for name, shape in zip(("past_key", "past_value"), shapes, strict=True)]
        both = zip(pasts, turned, axes, strict=True)
        turned = [net.op("Concat", before, value, axis=axis) for before, value, axis in both]
    k, v = turned
    for value in turned:
        net.output(value)
    order = [layout.index(axis) for axis in (0, 2, 3, 1)]
    kt = k if order == [0, 1, 2, 3] else net.turn(k, *order)
    if kv_heads != HEADS:
        kt, v = (_repeated(net, value, HEADS // kv_heads) for value in (kt, v))
    net.output(net.merge_heads(net.sdpa(q, kt, v, scores)), 3)
    return net.model()


def _repeated(net: Net, value: str, times: int) -> str:
    """Each head stands for several, by Unsqueeze, Expand and Reshape."""
    spread = net.op("Expand", net.op("Unsqueeze", value, net.ints(2)), net.ints(1, 1, times, 1, 1))
    return net.reshape(spread, 0, HEADS, (value, 2), (value, 3))


BNSH, BNHS, BSNH = (0, 2, 1, 3), (0, 2, 3, 1), (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("past", "new", "kv_heads", "layout"),
    [
        ("past", "new", HEADS, BNSH),
        ("past", "new", 1, BNHS),
        ("past", 1, HEADS, BNHS),
        ("past", 1, 1, BNSH),
        (4, 1, HEADS, BSNH),
        (4, 1, 1, BSNH),
        (None, "new", HEADS, BNSH),
        (None, 5, 1, BNHS),
        (None, 5, HEADS, BSNH),
    ],
    ids=str,
)
def test_presents_stay_what_the_next_step_expects(past: Dim, new: Dim, kv_heads: int, layout: tuple[int, ...]) -> None:
    model = cached(Net(), past, new, kv_heads=kv_heads, layout=layout)
    fused = assert_fused(model, feeds(model, SIZES), kv_heads=kv_heads)
    if past == "past":
        for length in (0, 1, 9):
            assert_same(model, fused, feeds(model, SIZES | {"past": length}))


@pytest.mark.parametrize("past", ["past", None])
def test_a_factor_of_keys_that_are_cached_stays_in_front_of_the_cache(past: Dim) -> None:
    model = cached(Net(), past, factor=0.5)
    assert_fused(model, feeds(model, SIZES))


@pytest.mark.parametrize("form", ["function", "primitives"])
@pytest.mark.parametrize("round_trip", [True, False])
def test_a_scale_on_keys_moves_to_queries_where_the_keys_themselves_are_cached(round_trip: bool, form: str) -> None:
    """One layer makes all three, so that K has no layer of its own to go back to: the present is what is read."""
    net, root = Net(), HEAD_DIM**-0.25
    x = net.input("x", 2, 5, WIDTH)
    packed = net.reshape(net.linear(net.reshape(x, 10, WIDTH), 3 * CHANNELS), 2, 5, 3 * CHANNELS)
    q, k, v = (net.split_heads(part) for part in net.op("Split", packed, axis=-1, outputs=3))
    for value in (k, v):
        net.output(value)
    if round_trip:
        kt = net.reshape(net.turn(net.reshape(k, 2 * HEADS, 5, HEAD_DIM), 0, 2, 1), 2, HEADS, HEAD_DIM, 5)
    else:
        kt = net.swap(k)
    net.output(net.merge_heads(net.sdpa(net.scaled(q, root), net.scaled(kt, root), v, same)), 3)
    model = net.model()
    fused = assert_fused(model, asked_form=form, scale=HEAD_DIM**-0.5)
    reader = next(node for node in fused.graph.node if k in node.input)
    assert reader.op_type.startswith("ScaledDotProductAttention" if form == "function" else "Transpose")
    assert same_bytes(onnx_attn.fuse(fused, form=form).model, fused)


@pytest.mark.parametrize("opset", [17, 24])
def test_no_form_changes_what_is_cached(opset: int) -> None:
    model = cached(Net(opset), new=1)
    for form in ("function", "primitives", "attention") if opset == 24 else ("function", "primitives"):
        fused = onnx_attn.fuse(model, form=form, target="onnx").model
        assert_same(model, fused, feeds(model, SIZES))


def length(net: Net, value: str, axis: int) -> str:
    return net.op("Gather", net.op("Shape", value), net.const(axis, np.int64))


def blocked(net: Net, value: str, offset: str | None, window: int | None = None) -> str:
    """Scores of queries that stand behind `offset` keys; a window: of so many keys each, the query's own place included."""
    queries, past = (length(net, name, axis) for name, axis in (("x", 1), ("past_key", 2)))
    keys = net.op("Add", past, queries)
    zero, one = net.const(0, np.int64), net.const(1, np.int64)
    rows, columns = net.op("Range", zero, queries, one), net.op("Range", zero, keys, one)
    rows = rows if offset is None else net.op("Add", rows, offset)
    rows = net.op("Unsqueeze", rows, net.ints(1))
    allowed = net.op("LessOrEqual", columns, rows)
    if window is not None:
        near = net.op("Greater", columns, net.op("Sub", rows, net.const(window, np.int64)))
        allowed = net.op("And", allowed, near)
    return net.op("Where", allowed, net.scaled(value), net.const(np.finfo(np.float32).min))


@pytest.mark.parametrize("window", [None, 3])
def test_causality_counts_from_the_past(window: int | None) -> None:
    """A later key is one that stands behind the query's own, past included."""
    net = Net()
    model = cached(net, scores=lambda value: blocked(net, value, length(net, "past_key", 2), window))
    assert_fused(model, feeds(model, SIZES), causal=True)


@pytest.mark.parametrize("window", [None, 3])
def test_places_that_are_given_decide_no_causality(window: int | None) -> None:
    """Where the queries stand is the caller's to say: behind the end of the buffer they see all of it."""
    net = Net()
    place = net.input("place", dtype=np.int64)
    model = cached(net, scores=lambda value: blocked(net, value, place, window))
    inputs = feeds(model, SIZES) | {"place": np.array(4)}
    assert_fused(model, inputs, causal=False)


def test_sizes_of_what_is_computed_make_a_causal_mask() -> None:
    """TorchScript asks the keys themselves how many they are."""
    net = Net()
    x = net.input("x", 2, "new", WIDTH)
    q, k, v = (net.split_heads(net.linear(x, CHANNELS)) for _ in range(3))
    zero, one = net.const(0, np.int64), net.const(1, np.int64)
    rows, columns = (net.op("Range", zero, length(net, value, 2), one) for value in (q, k))
    allowed = net.op("LessOrEqual", columns, net.op("Unsqueeze", rows, net.ints(1)))
    net.output(k)
    net.output(
        net.sdpa(q, net.swap(k), v, lambda value: net.op("Where", allowed, net.scaled(value), net.const(-np.inf)))
    )
    assert_fused(net.model(), feeds(net.model(), SIZES), causal=True)


def test_one_query_sees_no_later_key_and_is_not_called_causal() -> None:
    net = Net()
    model = cached(net, new=1, scores=lambda value: blocked(net, value, net.const(64, np.int64)))
    assert_fused(model, feeds(model, SIZES), causal=False)


@pytest.mark.parametrize("op", ["ScatterND", "ScatterElements", "TensorScatter"])
def test_buffers_of_one_size_are_written_in_place(op: str) -> None:
    net = Net(24)
    x, place = net.input("x", 2, 1, WIDTH), net.input("place", 2, dtype=np.int64)
    q = net.split_heads(net.linear(x, CHANNELS))
    buffers = [net.input(name, 2, HEADS, 6, HEAD_DIM) for name in ("past_key", "past_value")]
    k, v = (_written(net, op, buffer, net.split_heads(net.linear(x, CHANNELS)), place) for buffer in buffers)
    for value in (k, v):
        net.output(value)
    last = net.reshape(place, 2, 1, 1, 1)
    columns = net.const(np.arange(6).reshape(1, 1, 1, 6), np.int64)
    bias = net.op("Where", net.op("LessOrEqual", columns, last), net.const(0.0), net.const(-1e9))
    net.output(net.merge_heads(net.sdpa(q, net.swap(k), v, lambda value: net.op("Add", net.scaled(value), bias))), 3)
    model = net.model()
    for number in range(6):
        inputs = feeds(model) | {"place": np.array([number, (number + 2) % 6])}
        assert_same(model, assert_fused(model, inputs), inputs)


def _written(net: Net, op: str, buffer: str, value: str, place: str) -> str:
    """`value` `(B, N, 1, H)` at each row's place in its buffer."""
    if op == "TensorScatter":
        return net.op(op, buffer, value, place, axis=2)
    if op == "ScatterElements":
        index = net.op("Expand", net.reshape(place, 2, 1, 1, 1), net.ints(2, HEADS, 1, HEAD_DIM))
        return net.op(op, buffer, index, value, axis=2)
    rows = net.const(np.arange(2).repeat(HEADS).reshape(2, HEADS, 1, 1), np.int64)
    heads = net.const(np.tile(np.arange(HEADS), 2).reshape(2, HEADS, 1, 1), np.int64)
    there = net.op("Expand", net.reshape(place, 2, 1, 1, 1), net.ints(2, HEADS, 1, 1))
    return net.op(op, buffer, net.op("Concat", rows, heads, there, axis=3), value)


@pytest.mark.parametrize("batch", [2, "batch"])
def test_keys_and_values_of_an_encoder_come_from_the_cache_alone(batch: Dim) -> None:
    net = Net()
    q = net.split_heads(net.linear(net.input("x", batch, 1, WIDTH), CHANNELS))
    k, v = (net.input(name, batch, HEADS, "memory", HEAD_DIM) for name in ("encoder_key", "encoder_value"))
    net.output(net.merge_heads(net.sdpa(q, net.swap(k), v)), 3)
    model = net.model()
    assert_fused(model, feeds(model, {"memory": 6}), projection="none", heads=HEADS)


def test_keys_and_values_that_are_cached_in_one_tensor() -> None:
    """`(2, B, N, L, H)`, as the first exports of GPT-2 had it."""
    net = Net()
    x, past = net.input("x", 2, 1, WIDTH), net.input("past", 2, 2, HEADS, "past", HEAD_DIM)
    q, *made = (net.split_heads(net.linear(x, CHANNELS)) for _ in range(3))
    before = [net.op("Gather", past, net.const(place, np.int64), axis=0) for place in range(2)]
    k, v = (net.op("Concat", old, new, axis=2) for old, new in zip(before, made, strict=True))
    stacked = [net.op("Unsqueeze", value, net.ints(0)) for value in (k, v)]
    net.output(net.op("Concat", *stacked, axis=0), 5)
    net.output(net.merge_heads(net.sdpa(q, net.swap(k), v)), 3)
    model = net.model()
    assert_fused(model, feeds(model, {"past": 5}))


@pytest.mark.parametrize("new", [1, "new"])
@pytest.mark.parametrize("op", ["Gather", "GatherND"])
def test_a_padding_mask_is_as_long_as_the_index_that_reads_it(op: str, new: Dim) -> None:
    """Shapes alone do not say that `total` is `past` and what is new: a shorter mask has no element for the last key."""
    net = Net()
    mask = net.input("mask", "batch", "total", dtype=np.int64)

    def scores(value: str) -> str:
        keys = net.op("Add", length(net, "past_key", 2), length(net, "x", 1))
        places = net.op("Range", net.const(0, np.int64), keys, net.const(1, np.int64))
        if op == "Gather":
            read = net.op("Gather", mask, places, axis=1)
        else:
            turned = net.op("GatherND", net.turn(mask, 1, 0), net.op("Unsqueeze", places, net.ints(1)))
            read = net.turn(turned, 1, 0)
        allowed = net.op("Cast", net.op("Unsqueeze", read, net.ints(1, 2)), to=onnx.TensorProto.BOOL)
        return net.op("Where", allowed, net.scaled(value), net.const(-1e9))

    model = cached(net, new=new, scores=scores)
    for world in worlds_of(model):
        assert not world.failures
        assert world.sizes["total"] == world.sizes["past"] + world.sizes.get("new", 1)
    total = SIZES["past"] + (1 if new == 1 else SIZES["new"])
    mask = np.stack([np.ones(total, int), np.arange(total) > 1])
    assert_fused(model, feeds(model, SIZES | {"total": total}) | {"mask": mask})


def test_the_first_row_that_is_made_up_is_not_padded() -> None:
    """The whole model's proof shows nothing where no query attends to any key."""
    model = cached(Net(), new=1)
    model.graph.input.append(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.INT64, ["batch", "total"]))
    for world in worlds_of(model):
        assert model_inputs(model, world)["mask"][0].all()


@pytest.mark.parametrize("index", [-3, 2])
def test_an_index_from_the_end_is_one_too(index: int) -> None:
    net = Net()
    taken = net.op("Gather", net.input("x", 3, "n"), net.ints(index), axis=0)
    net.output(same(taken), 2)
    assert not any(world.failures for world in worlds_of(net.model()))


def with_or_without_past(net: Net) -> onnx.ModelProto:
    """A flag chooses between new keys behind those of the past, and new keys alone; each branch has the site of its own."""
    x, past = net.input("x", "batch", "new", WIDTH), net.input("past", "batch", HEADS, "past", HEAD_DIM)
    q, k, v = (net.split_heads(net.linear(x, CHANNELS)) for _ in range(3))
    flag, root, outside = net.input("use_cache", 1, dtype=bool), net.const(HEAD_DIM**0.5), len(net.nodes)
    bodies = {}
    for branch in ("then_branch", "else_branch"):
        keys, values = (net.op("Concat", past, each, axis=2) if branch == "then_branch" else each for each in (k, v))
        found = net.sdpa(q, net.swap(keys), values, lambda scores: net.op("Div", scores, root), name=branch)
        made = net.op("Mul", found, net.const(1.0))
        result = onnx.helper.make_tensor_value_info(made, onnx.TensorProto.FLOAT, [None] * 4)
        bodies[branch] = onnx.helper.make_graph(net.nodes[outside:], branch, [], [result])
        del net.nodes[outside:]
    net.output(net.op("If", flag, **bodies))
    return net.model()


def test_both_branches_of_a_merged_decoder_are_fused_and_run() -> None:
    model = with_or_without_past(Net())
    report = onnx_attn.fuse(model).report
    assert (report["sites"], report["fused"]) == (2, 2)
    assert report["proof"]["cases"] == 4  # Two sizes, each with the flag on and off.


def test_a_difference_in_the_branch_without_a_past_is_seen(tmp_path: Path) -> None:
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    model = with_or_without_past(Net())
    onnx.save(model, paths[0])
    (node,) = [node for node in model.graph.node if node.op_type == "If"]
    other = next(attribute.g for attribute in node.attribute if attribute.name == "else_branch")
    other.node[-1].op_type = "Sub"
    onnx.save(model, paths[1])
    assert not onnx_attn.verify(*paths)["ok"]
