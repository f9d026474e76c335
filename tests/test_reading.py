"""Spellings that are read, one by one: each is here because it was met, or because a random spelling was once misread."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from checks import assert_fused, assert_refused, feeds
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH, Net, heads_in, small_site
from onnx import TensorProto, helper

import onnx_attn

ROOT = HEAD_DIM**-0.5


def by_height_and_width(net: Net, batch: int | str) -> onnx.ModelProto:
    """Queries and keys are pixels; a bias for the distance in height is added to all widths, and one in width."""
    q, k, v = (net.input(name, batch, HEADS, 3 * 4, HEAD_DIM) for name in "qkv")
    tall = net.input("tall", batch, HEADS, 3, 4, 3)
    wide = net.input("wide", batch, HEADS, 3, 4, 4)

    def biased(scores: str) -> str:
        apart = net.reshape(net.scaled(scores), -1, HEADS, 3, 4, 3, 4)
        with_height = net.op("Add", apart, net.op("Unsqueeze", tall, net.ints(5)))
        with_both = net.op("Add", with_height, net.op("Unsqueeze", wide, net.ints(4)))
        return net.reshape(with_both, -1, HEADS, 12, 12)

    net.output(net.sdpa(q, net.swap(k), v, biased))
    return net.model()


@pytest.mark.parametrize("batch", [2, "batch"])
def test_biases_by_height_and_width_are_two_masks(batch: int | str) -> None:
    model = by_height_and_width(Net(), batch)
    shape = [batch if batch == 2 else "?", HEADS, 12, 12]
    assert_fused(model, heads=HEADS, scale=ROOT, masks=[{"kind": "additive", "shape": shape}] * 2)


@pytest.mark.parametrize("decided", [True, False])
def test_shapes_are_read_through_a_branch_that_is_decided(decided: bool) -> None:
    """TorchScript leaves `if` about sizes in the graph where it could not fold the condition itself."""
    net = Net()
    x = net.input("x", 2, 5, WIDTH)
    targets = {name: net.ints(2, 5, HEADS, HEAD_DIM) for name in ("then_branch", "else_branch")}
    shape = helper.make_tensor_value_info("", TensorProto.INT64, [4])

    def chosen() -> str:
        bodies = {}
        for which, target in targets.items():
            made = onnx.ValueInfoProto()
            made.CopyFrom(shape)
            made.name = f"{which}_{len(net.nodes)}"
            node = helper.make_node("Identity", [target], [made.name])
            bodies[which] = helper.make_graph([node], which, [], [made])
        condition = net.op("Greater", net.ints(len(net.nodes)), net.ints(0)) if decided else "flag"
        return net.op("If", condition, **bodies)

    if not decided:
        net.input("flag", dtype=bool)
    heads = [net.turn(net.op("Reshape", net.linear(x, CHANNELS), chosen()), 0, 2, 1, 3) for _ in range(3)]
    net.output(net.merge_heads(net.sdpa(heads[0], net.swap(heads[1]), heads[2])), 3)
    model = net.model()
    given = feeds(model) if decided else feeds(model) | {"flag": np.asarray(True)}
    if decided:
        assert_fused(model, given, heads=HEADS, head_dim=HEAD_DIM)
    else:
        # Both branches give four numbers; which ones, the graph does not tell.
        assert {c["status"] for c in onnx_attn.inspect(model)["candidates"]} == {"refused"}


def test_scores_that_are_changed_in_part_are_attention_that_is_left_alone() -> None:
    """`scores[..., 1:, 1:] += bias`, as TorchScript writes it."""
    net = Net()
    q, kt, v = heads_in(net)
    index = np.stack(np.meshgrid(range(2), range(HEADS), range(1, 5), range(1, 5), indexing="ij"), axis=-1)

    def in_part(scores: str) -> str:
        cut = net.op("Slice", scores, net.ints(1, 1), net.ints(5, 5), net.ints(2, 3))
        changed = net.op("Add", cut, net.weight(HEADS, 4, 4))
        return net.op("ScatterND", scores, net.const(index, np.int64), changed)

    net.output(net.sdpa(q, kt, v, in_part))
    assert_refused(net.model(), "scores-changed")


@pytest.mark.parametrize("form", ["function", "primitives"])
@pytest.mark.parametrize("op", ["Mul", "Div"])
def test_a_scale_behind_a_mask_is_written_as_exactly_as_it_was(op: str, form: str) -> None:
    """1/√24 and √24 are both rounded in half precision, and not to each other's inverse."""

    def scores(net: Net, value: str) -> str:
        biased = net.op("Add", value, net.weight(5, 5))
        return net.op(op, biased, net.const(ROOT if op == "Mul" else 1 / ROOT))

    model = small_site(dtype=np.float16, scores=scores)
    assert_fused(model, rtol=2e-3, asked_form=form, scale=1.0, masks=[{"kind": "additive", "shape": [5, 5]}])


@pytest.mark.parametrize("form", ["function", "primitives"])
def test_numbers_of_double_precision_stay_that(form: str) -> None:
    def scores(net: Net, value: str) -> str:
        mask = net.const(np.tri(5, dtype=bool), bool)
        return net.op("Where", mask, net.scaled(value), net.const(-1.0 / 3.0))

    model = small_site(dtype=np.float64, scores=scores)
    fused = assert_fused(model, rtol=1e-14, asked_form=form, scale=ROOT)
    again = onnx_attn.inspect(fused)["candidates"][0]
    assert (again["status"], again["scale"]) == ("site", pytest.approx(ROOT, rel=1e-15))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("also_values", [False, True])
def test_the_operator_gets_keys_and_values_with_as_many_heads_as_each_other(scaled: bool, also_values: bool) -> None:
    """K carries the root of the scale behind its repeated heads, V is repeated in another way or not at all."""
    net = Net(23, np.float16)
    q, k = net.input("q", 2, 4, 5, HEAD_DIM), net.input("k", 2, 2, 5, HEAD_DIM)

    def repeated(value: str) -> str:
        wide = net.op("Expand", net.op("Unsqueeze", value, net.ints(2)), net.ints(1, 1, 2, 1, 1))
        return net.reshape(wide, 2, 4, 5, HEAD_DIM)

    v = repeated(net.input("v", 2, 2, 5, HEAD_DIM)) if also_values else net.input("v", 2, 4, 5, HEAD_DIM)
    keys = repeated(k)
    net.output(net.sdpa(q, net.swap(net.scaled(keys) if scaled else keys), v))
    fused = assert_fused(net.model(), asked_form="attention", rtol=2e-3, heads=4, kv_heads=2)
    assert [node.op_type for node in fused.graph.node].count("Attention") == 1


@pytest.mark.parametrize("role", "qkv")
def test_rows_that_are_rolled_leave_heads_and_their_sharing_readable(role: str) -> None:
    net = Net()
    x = net.input("x", 2, 5, WIDTH)

    def heads(name: str, count: int) -> str:
        value = net.reshape(net.linear(x, count * HEAD_DIM), 0, 0, count, HEAD_DIM)
        if name == role:
            parts = [net.op("Slice", value, net.ints(a), net.ints(b), net.ints(1)) for a, b in ((2, 5), (0, 2))]
            value = net.op("Concat", *parts, axis=1)
        value = net.turn(value, 0, 2, 1, 3)
        if count == 2:
            wide = net.op("Expand", net.op("Unsqueeze", value, net.ints(2)), net.ints(1, 1, 2, 1, 1))
            value = net.reshape(wide, 2, 4, 5, HEAD_DIM)
        return value

    q, k, v = (heads(name, 4 if name == "q" else 2) for name in "qkv")
    net.output(net.merge_heads(net.sdpa(q, net.swap(k), v), 4 * HEAD_DIM), 3)
    assert_fused(net.model(), heads=4, kv_heads=2, projection="triplet")


def test_heads_in_another_order_are_heads() -> None:
    net = Net()
    x = net.input("x", 2, 5, WIDTH)
    q, k, v = (net.split_heads(net.linear(x, 4 * HEAD_DIM), 4) for _ in range(3))
    v = net.op("Gather", v, net.ints(2, 0, 3, 1), axis=1)
    net.output(net.merge_heads(net.sdpa(q, net.swap(k), v), 4 * HEAD_DIM), 3)
    assert_fused(net.model(), heads=4, kv_heads=4)


@pytest.mark.parametrize("blocked", ["ones", "zeros"])
def test_causality_is_seen_beside_a_mask_of_either_polarity(blocked: str) -> None:
    """A padding mask may name the keys that are blocked or those that are not."""
    net = Net()
    q, kt, v = heads_in(net)
    padding = net.input("padding", 2, 1, 1, 5, dtype=bool)

    def scores(value: str) -> str:
        lower = net.op("Where", net.const(np.tri(5, dtype=bool), bool), net.scaled(value), net.const(-1e4))
        pair = (net.const(-1e4), lower)
        return net.op("Where", padding, *(pair if blocked == "ones" else pair[::-1]))

    net.output(net.sdpa(q, kt, v, scores))
    assert_fused(net.model(), causal=True)


def test_a_mask_that_is_subtracted_blocks_by_plus_infinity() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    mask = net.input("mask", 5, 5)
    net.output(net.sdpa(q, kt, v, lambda s: net.op("Sub", net.scaled(s), mask)))
    blocked = np.triu(np.full((5, 5), np.inf, np.float32), 1)
    assert_fused(net.model(), feeds(net.model()) | {"mask": blocked}, masks=[{"kind": "additive", "shape": [5, 5]}])


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("form", ["function", "primitives"])
def test_probabilities_that_are_cleared_behind_the_softmax_stay_that(form: str, keep: bool) -> None:
    """`softmax(scores.masked_fill(mask, −1e4)).masked_fill(mask, 0)`: a row that is blocked throughout answers 0."""
    net = Net()
    q, kt, v = heads_in(net)
    mask = net.input("mask", 2, 1, 1, 5, dtype=bool)

    def filled(value: str, number: float) -> str:
        pair = (net.const(number), value)
        return net.op("Where", mask, *(pair[::-1] if keep else pair))

    net.output(net.sdpa(q, kt, v, lambda s: filled(net.scaled(s), -1e4), lambda p: filled(p, 0.0)))
    model = net.model()
    inputs = feeds(model)
    inputs["mask"][0] = not keep
    fused = assert_fused(model, inputs, asked_form=form, masks=[{"kind": "boolean", "shape": [2, 1, 1, 5]}])
    again = onnx_attn.inspect(fused)["candidates"][0]
    assert (again["status"], len(again["masks"])) == ("site", 1)


@pytest.mark.parametrize("form", ["attention", "contrib"])
def test_no_operator_clears_probabilities(form: str) -> None:
    net = Net(23, np.float16)
    q, kt, v = heads_in(net)
    mask = net.input("mask", 2, 1, 1, 5, dtype=bool)
    net.output(net.sdpa(q, kt, v, probabilities=lambda p: net.op("Where", mask, net.const(0.0), p)))
    target = "onnxruntime" if form == "contrib" else "onnx"
    (candidate,) = onnx_attn.fuse(net.model(), form=form, target=target).report["candidates"]
    assert (candidate["status"], candidate["code"]) == ("refused", "form-not-taken")


def test_probabilities_that_are_filled_with_another_number_are_changed() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    mask = net.input("mask", 2, 1, 1, 5, dtype=bool)
    net.output(net.sdpa(q, kt, v, probabilities=lambda p: net.op("Where", mask, net.const(0.1), p)))
    assert_refused(net.model(), "probabilities-changed")


@pytest.mark.parametrize("behind", [False, True])
def test_what_is_subtracted_from_a_whole_row_of_scores_is_nothing_to_a_softmax(behind: bool) -> None:
    """`scores − max(scores)` before a softmax that subtracts it anyway; a mask may follow."""
    net = Net()
    q, kt, v = heads_in(net)

    def scores(value: str) -> str:
        scaled = net.scaled(value)
        stable = net.op("Sub", scaled, net.op("ReduceMax", scaled, axes=[-1]))
        return net.op("Add", stable, net.weight(5, 5)) if behind else stable

    net.output(net.sdpa(q, kt, v, scores))
    fused = assert_fused(net.model(), scale=ROOT)
    assert "MatMul" not in {node.op_type for node in fused.graph.node}


@pytest.mark.parametrize("op", ["Add", "Where"])
def test_a_mask_that_is_made_from_the_scores_is_none(op: str) -> None:
    """The largest scores alone, and a row's maximum in front of a number that takes the place of some."""
    net = Net()
    q, kt, v = heads_in(net)

    def scores(value: str) -> str:
        scaled = net.scaled(value)
        peak = net.op("ReduceMax", scaled, axes=[-1])
        if op == "Add":
            return net.op("Add", scaled, net.op("Mul", net.op("Sub", scaled, peak), net.const(0.5)))
        stable = net.op("Sub", scaled, peak)
        return net.op("Where", net.input("mask", 5, 5, dtype=bool), stable, net.const(-2.0))

    net.output(net.sdpa(q, kt, v, scores))
    assert_refused(net.model(), "scores-changed")


def test_heads_that_have_a_norm_each_are_heads() -> None:
    """Cut apart, normalised one by one, and joined: as StableLM's norms of queries and keys are exported."""
    net = Net()
    x = net.input("x", 2, 5, WIDTH)

    def each_normalised(value: str, heads: int) -> str:
        parts = net.op("Split", value, net.ints(*[1] * heads), outputs=heads, axis=1)
        normed = [net.op("LayerNormalization", part, net.weight(HEAD_DIM), axis=-1) for part in parts]
        return net.op("Concat", *normed, axis=1)

    q = each_normalised(net.split_heads(net.linear(x, 4 * HEAD_DIM), 4), 4)
    k, v = (net.split_heads(net.linear(x, 2 * HEAD_DIM)) for _ in range(2))
    k, v = (
        net.reshape(
            net.op("Expand", net.op("Unsqueeze", each, net.ints(2)), net.ints(1, 1, 2, 1, 1)), 2, 4, 5, HEAD_DIM
        )
        for each in (each_normalised(k, 2), v)
    )
    net.output(net.merge_heads(net.sdpa(q, net.swap(k), v), 4 * HEAD_DIM), 3)
    assert_fused(net.model(), heads=4, kv_heads=2, projection="triplet")


def test_a_factor_of_values_is_no_part_of_the_scale_where_heads_are_shared() -> None:
    """V is multiplied behind the copies of its heads, which the operator makes itself."""
    net = Net(23, np.float16)
    q = net.input("q", 2, 4, 5, HEAD_DIM)

    def repeated(name: str) -> str:
        wide = net.op(
            "Expand", net.op("Unsqueeze", net.input(name, 2, 2, 5, HEAD_DIM), net.ints(2)), net.ints(1, 1, 2, 1, 1)
        )
        return net.reshape(wide, 2, 4, 5, HEAD_DIM)

    k, v = repeated("k"), net.op("Mul", repeated("v"), net.const(0.5))
    net.output(net.sdpa(q, net.swap(k), v))
    fused = assert_fused(net.model(), asked_form="attention", rtol=2e-3, scale=float(np.float16(ROOT)), kv_heads=2)
    assert [node.op_type for node in fused.graph.node].count("Attention") == 1
