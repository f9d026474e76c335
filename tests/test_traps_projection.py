"""Projections that only look as if they could be packed into one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from checks import assert_fused, assert_same, feeds, verdicts
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH, Net, Three, self_attention
from knobs import Block, Knobs
from onnx import TensorProto, helper

import onnx_attn

ROOT = HEAD_DIM**-0.5


def products(model: onnx.ModelProto) -> list[str]:
    """What each product of the main graph reads."""
    return [node.input[0] for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]


@pytest.mark.parametrize("keys", [5, 7])
def test_cross_attention_packs_keys_and_values_alone(keys: int) -> None:
    three = Three()
    y = three.net.input("y", 2, keys, WIDTH)
    fused = assert_fused(three.finish(k=three.layer(y), v=three.layer(y)), packed=True, projection="triplet")
    assert sorted(products(fused)) == ["x", "y"]


def test_keys_and_values_of_one_layer_stay_packed() -> None:
    three = Three()
    y = three.net.input("y", 2, 7, WIDTH)
    k, v = three.net.op(
        "Split", three.net.linear(y, 2 * CHANNELS), three.net.ints(CHANNELS, CHANNELS), outputs=2, axis=-1
    )
    fused = assert_fused(three.finish(k=k, v=v), packed=True, projection="kv_packed")
    assert sorted(products(fused)) == ["x", "y"]


def test_three_sources_of_one_shape_are_not_packed() -> None:
    three = Three()
    y, z = (three.net.input(name, 2, 5, WIDTH) for name in "yz")
    fused = assert_fused(three.finish(k=three.layer(y), v=three.layer(z)), packed=False, projection="triplet")
    assert sorted(products(fused)) == ["x", "y", "z"]


def test_value_from_another_source_is_not_packed_with_the_others() -> None:
    three = Three()
    shifted = three.net.op("Add", three.x, three.net.weight(5, WIDTH))
    fused = assert_fused(three.finish(v=three.layer(shifted)), packed=True, projection="triplet")
    assert sorted(products(fused)) == sorted(["x", shifted])


def test_unnamed_dynamic_dimensions_are_not_taken_for_equal() -> None:
    net = Net()
    x, y = net.input("x", None, None, WIDTH), net.input("y", None, None, WIDTH)
    q, k, v = (net.split_heads(net.linear(source, CHANNELS)) for source in (x, y, y))
    net.output(net.merge_heads(net.sdpa(q, net.swap(k), v)), 3)
    inputs = feeds(net.model(), {"x:0": 3, "x:1": 5, "y:0": 3, "y:1": 8})
    fused = assert_fused(net.model(), inputs, packed=True, projection="triplet")
    assert sorted(products(fused)) == ["x", "y"]


def test_sources_with_dimensions_of_one_name_are_not_taken_for_one() -> None:
    net = Net()
    x, y = (net.input(name, "batch", "sequence", WIDTH) for name in "xy")
    q, k, v = (net.split_heads(net.linear(source, CHANNELS)) for source in (x, y, y))
    net.output(net.merge_heads(net.sdpa(q, net.swap(k), v)), 3)
    fused = assert_fused(net.model(), packed=True, projection="triplet")
    assert sorted(products(fused)) == ["x", "y"]


def test_weight_that_another_node_reads_is_not_packed_away() -> None:
    three = Three()
    weight = three.net.weight(WIDTH, CHANNELS, name="shared")
    three.net.output(three.net.op("Exp", weight), 2)
    fused = assert_fused(three.finish(three.layer(weight=weight)), packed=False)
    assert "shared" in {tensor.name for tensor in fused.graph.initializer}


def test_one_weight_for_query_and_key_is_not_packed_twice() -> None:
    three = Three()
    weight = three.net.weight(WIDTH, CHANNELS, name="tied")
    fused = assert_fused(three.finish(three.layer(weight=weight), three.layer(weight=weight)), packed=False)
    assert "tied" in {tensor.name for tensor in fused.graph.initializer}


def test_one_projection_for_query_key_and_value_is_not_stored_three_times() -> None:
    three = Three()
    layer = three.layer()
    assert_fused(three.finish(layer, layer, layer))


def test_keys_that_are_also_values_give_the_same_numbers() -> None:
    three = Three()
    layer = three.layer()
    assert_fused(three.finish(None, layer, layer), packed=False)


def test_bias_that_another_node_reads_stays() -> None:
    three = Three()
    bias = three.net.weight(CHANNELS)
    three.net.output(three.net.op("Exp", bias), 1)
    q = three.net.op("Add", three.net.op("MatMul", three.x, three.net.weight(WIDTH, CHANNELS)), bias)
    assert_fused(three.finish(q))


def used_by_a_node(net: Net, value: str) -> None:
    net.output(net.op("Exp", value), 3)


def used_as_output(net: Net, value: str) -> None:
    net.output(value, 3)


def used_inside_if(net: Net, value: str) -> None:
    def body(name: str, op: str) -> onnx.GraphProto:
        info = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [None] * 3)
        return helper.make_graph([helper.make_node(op, [value], [f"{name}_out"])], name, [], [info])

    net.output(
        net.op("If", net.input("flag", dtype=bool), then_branch=body("yes", "Exp"), else_branch=body("no", "Neg")), 3
    )


@pytest.mark.parametrize("use", [used_by_a_node, used_as_output, used_inside_if], ids=lambda f: f.__name__)
def test_key_projection_that_is_read_elsewhere_is_not_packed(use: Callable[[Net, str], None]) -> None:
    three = Three()
    layer = three.layer()
    use(three.net, layer)
    assert_fused(three.finish(k=layer), packed=False)


def test_key_heads_that_are_an_output_are_not_packed() -> None:
    three = Three()
    heads = [three.net.split_heads(three.layer()) for _ in range(3)]
    three.net.output(heads[1])
    assert_fused(three.finish(*heads, split=False), packed=False)


def test_weight_that_a_branch_reads_is_not_packed_away() -> None:
    three = Three()
    weight = three.net.weight(WIDTH, CHANNELS)
    used_inside_if(three.net, three.net.op("Unsqueeze", weight, three.net.ints(0)))
    assert_fused(three.finish(three.layer(weight=weight)), packed=False)


def test_bias_after_the_head_split_stays_where_it_is() -> None:
    three = Three()
    net = three.net
    plain = net.linear(three.x, CHANNELS, bias=False)
    q = net.turn(net.op("Add", net.reshape(plain, 0, 0, HEADS, HEAD_DIM), net.weight(HEADS, HEAD_DIM)), 0, 2, 1, 3)
    k = net.op("Add", net.split_heads(net.linear(three.x, CHANNELS, bias=False)), net.weight(HEADS, 1, HEAD_DIM))
    assert_fused(three.finish(q, k, net.split_heads(three.layer()), split=False), scale=ROOT)


@pytest.mark.parametrize("shape", [(1,), (), (5, CHANNELS), (5, 1), (1, 1, 1, CHANNELS)], ids=str)
def test_added_constant_that_is_no_bias_gives_the_same_numbers(shape: tuple[int, ...]) -> None:
    three = Three()
    net = three.net
    q = net.op("Add", net.linear(three.x, CHANNELS, bias=False), net.weight(*shape))
    if len(shape) == 4:
        q = net.reshape(q, 2, 5, CHANNELS)
    assert_fused(three.finish(q), scale=ROOT)


@pytest.mark.parametrize("bias", [(), (1,), (CHANNELS,), (10, 1), (10, CHANNELS)], ids=str)
def test_gemm_bias_broadcasts_as_before(bias: tuple[int, ...]) -> None:
    three = Three()
    net = three.net
    flat = net.op("Gemm", net.reshape(three.x, -1, WIDTH), net.weight(WIDTH, CHANNELS), net.weight(*bias), beta=1.3)
    fused = assert_fused(three.finish(net.reshape(flat, 2, 5, CHANNELS)), packed=True)
    assert ("Gemm" in {node.op_type for node in fused.graph.node}) == (bias != (CHANNELS,))


def test_gemm_that_turns_its_input_gives_the_same_numbers() -> None:
    three = Three()
    net, layers = three.net, []
    for _ in range(3):
        turned = net.turn(net.reshape(three.x, -1, WIDTH), 1, 0)
        flat = net.op("Gemm", turned, net.weight(WIDTH, CHANNELS), net.weight(CHANNELS), transA=1)
        layers.append(net.reshape(flat, 2, 5, CHANNELS))
    assert_fused(three.finish(*layers), scale=ROOT)


def test_head_split_without_a_transpose_is_another_movement() -> None:
    three = Three()
    heads = [three.net.reshape(three.layer(), 2, HEADS, 5, HEAD_DIM) for _ in range(3)]
    # No head is read off the packed product: the layers stand side by side, and what comes after stays as it is.
    assert_fused(three.finish(*heads, split=False), packed=True)


def test_query_with_heads_in_another_order_gives_the_same_numbers() -> None:
    """Features outermost: `b s (d h) -> b h s d` for Q and K, the usual order for V."""
    three = Three()
    net = three.net
    q, k = (net.turn(net.reshape(three.layer(), 0, 0, HEAD_DIM, HEADS), 0, 3, 1, 2) for _ in range(2))
    assert_fused(three.finish(q, k, net.split_heads(three.layer()), split=False), scale=ROOT)


@pytest.mark.parametrize("row", [0, 2])
def test_query_of_one_token_is_not_packed_as_if_all_asked(row: int) -> None:
    """Class attention: the layer makes all queries, one of them is used. Keys and values pack alone."""
    three = Three()
    net = three.net
    q = net.op("Slice", three.layer(), net.ints(row), net.ints(row + 1), net.ints(1))
    fused = assert_fused(three.finish(q), packed=True)
    assert products(fused) == ["x", "x"]


def test_query_of_the_first_tokens_is_not_packed_as_if_all_asked() -> None:
    three = Three()
    net = three.net
    first = net.op("Slice", three.layer(), net.ints(0), net.ints(3), net.ints(1))
    assert products(assert_fused(three.finish(first), packed=True)) == ["x", "x"]


def test_keys_of_the_first_token_are_not_packed_as_if_all_were_keys() -> None:
    three = Three()
    net = three.net
    k, v = (net.op("Slice", three.layer(), net.ints(0), net.ints(1), net.ints(1)) for _ in range(2))
    assert_fused(three.finish(None, k, v), packed=False)


def test_query_taken_from_the_source_is_not_packed_with_keys_and_values() -> None:
    three = Three()
    net = three.net
    first = net.op("Slice", three.x, net.ints(0), net.ints(1), net.ints(1))
    assert_fused(three.finish(three.layer(first)), packed=True, projection="triplet")


def test_scaled_values_give_the_same_numbers() -> None:
    three = Three()
    assert_fused(three.finish(v=three.net.scaled(three.layer(), 3.0)), scale=ROOT)


@pytest.mark.parametrize("layout", ["BNSH", "heads3d"])
def test_mask_of_each_head_follows_its_head(layout: str) -> None:
    """3-D heads merge batch and heads on one axis; a mask `(B·N, S, S)` follows that axis."""
    block = Block(Knobs(layout=layout))
    shape = (2, HEADS, 5, 5) if layout == "BNSH" else (2 * HEADS, 5, 5)
    mask = block.net.input("mask", *shape)
    block._scores = lambda s: block.net.op("Add", block.net.scaled(s), mask)  # type: ignore[method-assign]
    assert_fused(block.model(), packed=True)


def test_weight_that_the_caller_may_replace_is_not_packed() -> None:
    """Since IR 4 an initializer that is also an input is a default, and the model's signature."""
    three = Three()
    net = three.net
    weight = net.weight(WIDTH, CHANNELS, name="wq")
    net.input("wq", WIDTH, CHANNELS)
    model = three.finish(three.layer(weight=weight))
    given = {"wq": np.random.default_rng(1).standard_normal((WIDTH, CHANNELS)).astype(np.float32)}
    fused = assert_fused(model, packed=False)
    assert_same(model, fused, feeds(model) | given)


@pytest.mark.parametrize("read_elsewhere", [False, True])
def test_scale_that_the_caller_may_replace_is_no_constant(read_elsewhere: bool) -> None:
    net = Net()
    q, k, v = (net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "qkv")
    scale = net.const(ROOT, name="scale")
    net.input("scale")
    attended = net.sdpa(net.op("Mul", q, scale), net.swap(k), v, lambda s: s)
    net.output(net.op("Mul", attended, scale) if read_elsewhere else attended)
    fused = onnx_attn.fuse(net.model()).model
    assert fused.graph.input == net.model().graph.input
    assert_same(net.model(), fused, feeds(net.model()) | {"scale": np.asarray(2.0, np.float32)})


def two_blocks(names: tuple[str, str], named: bool = True) -> onnx.ModelProto:
    net = Net(named=named)
    x = net.input("x", 2, 5, WIDTH)
    for name in names:
        x = self_attention(net, x, name)
    net.output(x, 3)
    return net.model()


def test_two_sites_without_names_are_both_fused() -> None:
    model = two_blocks(("", ""), named=False)
    result = onnx_attn.fuse(model)
    assert (result.report["sites"], result.report["fused"]) == (2, 2)
    assert all(candidate["packed"] for candidate in result.report["candidates"])
    assert_same(model, result.model)


def test_two_sites_of_one_name_are_both_fused_and_told_apart() -> None:
    """ONNX Runtime loads no model with two nodes of one name, so there is no proof; TensorRT takes such models."""
    result = onnx_attn.fuse(two_blocks(("softmax", "softmax")), verify=False)
    assert (result.report["sites"], result.report["fused"]) == (2, 2)
    names = [node.name for node in result.model.graph.node]
    assert len(set(names)) == len(names)
    assert_same(two_blocks(("one", "two")), result.model)


def test_two_sites_on_one_projection_give_the_same_numbers() -> None:
    three = Three()
    net = three.net
    q, k, v = (net.split_heads(three.layer()) for _ in range(3))
    for name in ("first", "second"):
        net.output(net.sdpa(q, net.swap(k), v, name=name))
    assert {status for status, _ in verdicts(net.model()).values()} == {"site"}
    result = onnx_attn.fuse(net.model())
    assert result.report["fused"] == 2
    assert_same(net.model(), result.model)
