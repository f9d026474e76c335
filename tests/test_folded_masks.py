"""Masks that are computed from weights alone become numbers; masks that only look like it stay as they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from checks import assert_same, feeds
from graphs import HEADS, Net, heads_in
from onnx import TensorProto, helper, numpy_helper

import onnx_attn
from onnx_attn.forms import folded
from onnx_attn.graph import edit
from onnx_attn.views import folding

LENGTH = 5
MASK = (1, HEADS, LENGTH, LENGTH)


def relative_bias(net: Net) -> str:
    """A table of relative positions, gathered by an index, as window attention has it; the last node is `bias`."""
    return relative_bias_of(net, "table")


def relative_bias_of(net: Net, name: str) -> str:
    table = net.const(net.rng.standard_normal((2 * LENGTH - 1, HEADS)), name=name)
    index = net.ints(*[i - j + LENGTH - 1 for i in range(LENGTH) for j in range(LENGTH)])
    spread = net.reshape(net.op("Gather", table, index), LENGTH, LENGTH, HEADS)
    return net.op(
        "Transpose",
        net.op("Unsqueeze", spread, net.ints(0)),
        perm=[0, 3, 1, 2],
        name="bias" if name == "table" else f"{name}_bias",
    )


def continuous_bias(net: Net) -> str:
    """16 · sigmoid of a small network on constants: rounded by every node, not only moved."""
    hidden = net.op("Relu", net.op("MatMul", net.weight(LENGTH * LENGTH, 7), net.weight(7, 6)))
    squashed = net.op("Sigmoid", net.op("MatMul", hidden, net.weight(6, HEADS)))
    return net.turn(net.reshape(net.op("Mul", squashed, net.const(16.0)), 1, LENGTH, LENGTH, HEADS), 0, 3, 1, 2)


def masked(write: Callable[[Net], str], dtype: type = np.float32, sites: int = 1) -> onnx.ModelProto:
    net = Net(dtype=dtype)
    q, kt, v = heads_in(net)
    mask = write(net)
    for number in range(sites):
        q = net.sdpa(q, kt, v, lambda scores: net.op("Add", net.scaled(scores), mask), name=f"softmax_{number}")
    net.output(q)
    return net.model()


def weights(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def fused(model: onnx.ModelProto, sites: int = 1) -> onnx.ModelProto:
    result = onnx_attn.fuse(model)
    assert (result.report["fused"], result.report["sites"]) == (sites, sites), result.report["candidates"]
    onnx.checker.check_model(result.model, full_check=True)
    return result.model


@pytest.mark.parametrize("write", [relative_bias, continuous_bias])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_computed_bias_becomes_the_number_that_it_is(write: Callable[[Net], str], dtype: type) -> None:
    model = masked(write, dtype)
    after = fused(model)
    made = {node.op_type for node in after.graph.node}
    assert made == {"ScaledDotProductAttention_Mask", "Identity"}
    assert MASK in weights(after).values()
    assert_same(model, after, rtol=1e-5 if dtype == np.float32 else 2e-3)


def test_it_keeps_its_name_and_what_it_was_made_of_goes() -> None:
    after = fused(masked(continuous_bias))
    (name,) = (node.input[3] for node in after.graph.node if node.op_type.startswith("Scaled"))
    assert list(weights(after).values()) == [MASK]
    assert name.startswith("Transpose")


def test_sites_that_share_it_share_the_number() -> None:
    model = masked(relative_bias, sites=3)
    after = fused(model, 3)
    assert list(weights(after).values()).count(MASK) == 1
    assert_same(model, after)


def test_another_reader_reads_the_number() -> None:
    model = masked(relative_bias)
    add = next(node for node in model.graph.node if node.op_type == "Add")
    model.graph.node.append(helper.make_node("Neg", [add.input[1]], ["negative"], "other"))
    model.graph.output.append(helper.make_tensor_value_info("negative", TensorProto.FLOAT, MASK))
    after = fused(model)
    assert "other" in {node.name for node in after.graph.node}
    assert_same(model, after)


def test_a_constant_causal_choice_is_a_number_too() -> None:
    def triangle(net: Net) -> str:
        ones = net.op(
            "ConstantOfShape", net.ints(1, 1, LENGTH, LENGTH), value=numpy_helper.from_array(np.ones(1, np.float32))
        )
        return net.op("Cast", net.op("Trilu", ones, upper=0), to=TensorProto.BOOL)

    net = Net()
    q, kt, v = heads_in(net)
    keep = triangle(net)
    net.output(net.sdpa(q, kt, v, lambda s: net.op("Where", keep, net.scaled(s), net.const(-np.inf))))
    model = net.model()
    after = fused(model)
    assert not {"Trilu", "ConstantOfShape"} & {node.op_type for node in after.graph.node}
    assert_same(model, after)


def stays(model: onnx.ModelProto, name: str = "bias") -> onnx.ModelProto:
    """The node that makes the mask is there after fusing, and the result is the same."""
    after = fused(model)
    assert name in {node.name for node in after.graph.node}
    return after


def test_a_mask_made_from_an_input_stays() -> None:
    model = masked(lambda net: net.op("Mul", relative_bias(net), net.input("factor", 1), name="from_input"))
    assert_same(model, stays(model, "from_input"))


def test_a_table_that_a_caller_can_replace_stays() -> None:
    model = masked(relative_bias)
    model.graph.input.append(helper.make_tensor_value_info("table", TensorProto.FLOAT, [2 * LENGTH - 1, HEADS]))
    after = stays(model)
    other = {"table": np.random.default_rng(3).standard_normal((2 * LENGTH - 1, HEADS)).astype(np.float32)}
    assert_same(model, after, feeds(model) | other)


def test_chance_stays() -> None:
    model = masked(
        lambda net: net.op("Add", relative_bias(net), net.op("RandomNormal", shape=list(MASK)), name="drawn")
    )
    after = onnx_attn.fuse(model, verify=False).model
    assert "drawn" in {node.name for node in after.graph.node}


def test_a_mask_that_is_a_model_output_stays() -> None:
    model = masked(relative_bias)
    (add,) = (node for node in model.graph.node if node.op_type == "Add")
    model.graph.output.append(helper.make_tensor_value_info(add.input[1], TensorProto.FLOAT, MASK))
    assert_same(model, stays(model))


def test_a_mask_with_a_body_in_its_making_stays() -> None:
    def chosen(net: Net) -> str:
        bias = relative_bias(net)
        shape = helper.make_tensor_value_info
        bodies = {
            f"{kind}_branch": helper.make_graph(
                [helper.make_node(op, [bias], [kind])], kind, [], [shape(kind, TensorProto.FLOAT, MASK)]
            )
            for kind, op in (("then", "Neg"), ("else", "Identity"))
        }
        return net.op("If", net.const(True, bool), name="choice", **bodies)

    model = masked(chosen)
    after = onnx_attn.fuse(model).model
    assert "choice" in {node.name for node in after.graph.node}
    assert_same(model, after)


def test_a_value_that_would_swell_the_file_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "MOST_BYTES", 4 * HEADS * LENGTH * LENGTH - 1)
    model = masked(relative_bias)
    assert_same(model, stays(model))


def test_a_mask_whose_shape_varies_stays() -> None:
    net = Net()
    q = net.input("q", 2, HEADS, "s", 24)
    k, v = net.input("k", 2, HEADS, "s", 24), net.input("v", 2, HEADS, "s", 24)
    length = net.op("Gather", net.op("Shape", q), net.ints(2))
    filled = numpy_helper.from_array(np.asarray([0.5], np.float32))
    zeros = net.op(
        "ConstantOfShape", net.op("Concat", net.ints(1), net.ints(1), length, length, axis=0), name="bias", value=filled
    )
    net.output(net.sdpa(q, net.swap(k), v, lambda s: net.op("Add", net.scaled(s), zeros)))
    model = net.model()
    assert_same(model, stays(model), feeds(model, {"s": 7}))


def test_the_constant_part_of_a_mask_becomes_a_number_and_the_rest_stays() -> None:
    def joined(net: Net) -> str:
        return net.op("Add", relative_bias(net), net.input("padding", 2, 1, 1, LENGTH), name="joined")

    model = masked(joined)
    after = fused(model)
    names = {node.name for node in after.graph.node}
    assert "joined" in names and "bias" not in names
    assert MASK in weights(after).values()
    assert_same(model, after)


def test_the_longest_constant_part_is_folded_at_its_end_only() -> None:
    model = masked(lambda net: net.op("Exp", net.op("Neg", relative_bias(net), name="before"), name="end"))
    after = fused(model)
    assert list(weights(after).values()) == [MASK]
    assert_same(model, after)


def test_a_mask_from_hidden_states_is_not_searched_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def deep(net: Net) -> str:
        value = net.input("hidden", *MASK)
        for _ in range(40):
            value = net.op("Relu", value)
        return net.op("Add", net.op("Mul", value, relative_bias(net)), value, name="deep")

    monkeypatch.setattr(folded, "MOST_NODES", 8)
    model = masked(deep)
    assert_same(model, fused(model))


def stacked(count: int, write: Callable[[Net, int], str]) -> onnx.ModelProto:
    """Sites one after the other, each with a bias of its own."""
    net = Net()
    q, kt, v = heads_in(net)
    for number in range(count):
        bias = write(net, number)
        q = net.sdpa(q, kt, v, lambda scores, bias=bias: net.op("Add", net.scaled(scores), bias), name=f"s_{number}")
    net.output(q)
    return net.model()


def test_parts_of_equal_content_are_stored_once() -> None:
    def gathered(net: Net, number: int) -> str:
        if not number:
            net.const(net.rng.standard_normal((2 * LENGTH - 1, HEADS)), name="shared")
        index = net.ints(*[i - j + LENGTH - 1 for i in range(LENGTH) for j in range(LENGTH)])
        return net.turn(net.reshape(net.op("Gather", "shared", index), 1, LENGTH, LENGTH, HEADS), 0, 3, 1, 2)

    model = stacked(4, gathered)
    after = fused(model, 4)
    assert list(weights(after).values()).count(MASK) == 1
    assert_same(model, after)


def test_what_only_repeats_a_weight_is_not_stored_again() -> None:
    def repeated(net: Net) -> str:
        bias = net.const(net.rng.standard_normal((1, 1, LENGTH, LENGTH)), name="one_head")
        return net.op("Expand", net.op("Identity", bias), net.ints(*MASK), name="bias")

    model = masked(repeated)
    after = fused(model)
    assert weights(after)["one_head"] == (1, 1, LENGTH, LENGTH)
    assert MASK not in weights(after).values()
    assert_same(model, after)


def test_the_file_does_not_swell_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit, "MOST_STORED", 4 * HEADS * LENGTH * LENGTH + 64)
    model = stacked(3, lambda net, number: relative_bias_of(net, f"table_{number}"))
    after = fused(model, 3)
    assert list(weights(after).values()).count(MASK) == 1
    assert_same(model, after)


def test_a_mask_that_another_site_makes_is_left_to_it() -> None:
    """An Attention node on weights alone is constant, and a site of its own."""
    net = Net(23)
    shape = (1, HEADS, LENGTH, LENGTH)
    mask = net.op("Attention", *(net.const(net.rng.standard_normal(shape)) for _ in "qkv"), name="inner")
    given = [net.input(name, 2, HEADS, LENGTH, 24) for name in "qkv"]
    net.output(net.op("Attention", *given, mask, name="outer"))
    model = net.model()
    after = onnx_attn.fuse(model).model
    onnx.checker.check_model(after, full_check=True)
    assert_same(model, after)


def test_a_table_that_training_changes_stays() -> None:
    model = masked(relative_bias)
    binding = model.training_info.add().update_binding.add()
    binding.key, binding.value = "table", "table_next"
    after = onnx_attn.fuse(model, verify=False).model
    assert "bias" in {node.name for node in after.graph.node}
