"""What hostile models showed once: each is here as small as it can be."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from broken import small_graph
from checks import assert_fused, assert_refused, assert_same, feeds
from graphs import HEAD_DIM, HEADS, WIDTH, Net, heads_in, self_attention, small_site
from onnx import TensorProto, helper

import onnx_attn
from onnx_attn.errors import InputError, OnnxAttnError


def branch(name: str, nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def fork(net: Net, then: onnx.GraphProto, other: onnx.GraphProto) -> str:
    flag = net.input("flag", dtype=bool)
    return net.op("If", flag, then_branch=then, else_branch=other)


def test_product_with_values_in_a_branch_is_no_part_of_the_softmax_outside() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    found = net.op("Softmax", net.scaled(net.op("MatMul", q, kt)), name="softmax", axis=-1)
    then = branch("then", [helper.make_node("MatMul", [found, v], ["weighed"])], "weighed")
    other = branch("other", [helper.make_node("Neg", [v], ["turned"])], "turned")
    net.output(fork(net, then, other))
    assert_refused(net.model(), "probabilities-used")


@pytest.mark.parametrize("flag", [True, False])
def test_branches_that_use_one_name_for_two_values(flag: bool) -> None:
    """The scale is what the branch that runs says, and no constant number though each branch's own is."""
    net = Net()
    q, kt, v = heads_in(net)

    def scale(name: str, value: float) -> onnx.GraphProto:
        made = helper.make_node("Constant", [], ["scale"], value=helper.make_tensor("", TensorProto.FLOAT, [], [value]))
        return branch(name, [made], "scale")

    factor = fork(net, scale("then", 0.2), scale("other", 3.0))
    net.output(net.sdpa(q, kt, v, lambda scores: net.op("Mul", scores, factor)))
    model = net.model()
    inputs = feeds(model) | {"flag": np.asarray(flag)}
    assert_same(model, onnx_attn.fuse(model, verify=False).model, inputs)
    assert_refused(model, "scale-not-constant")


@pytest.mark.parametrize("flag", [True, False])
def test_branch_that_is_decided_already_gives_its_own_value(flag: bool) -> None:
    net = Net()
    q, kt, v = heads_in(net)
    graphs = []
    for name, value in (("then", 0.2), ("other", 0.7)):
        made = helper.make_node("Constant", [], ["scale"], value=helper.make_tensor("", TensorProto.FLOAT, [], [value]))
        graphs.append(branch(name, [made], "scale"))
    factor = net.op("If", net.const(flag, bool), then_branch=graphs[0], else_branch=graphs[1])
    net.output(net.sdpa(q, kt, v, lambda scores: net.op("Mul", scores, factor)))
    assert_fused(net.model(), scale=0.2 if flag else 0.7)


UNREADABLE = {
    "a Constant without a value": "has 0 values",
    "two versions of a domain": "two versions of the domain 'ai.onnx'",
    "elements of no known type": "no known type",
    "more data than its shape": "'w' has more data",
    "more typed data than its shape": "'w' has more data",
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_the_checker_lets_pass_and_nothing_can_read_is_refused(kind: str) -> None:
    if kind == "a Constant without a value":
        nodes = [helper.make_node("Constant", [], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])]
    else:
        nodes = [helper.make_node("Exp", ["x"], ["e"]), helper.make_node("Relu", ["e"], ["y"])]
    model = small_graph(*nodes)
    if kind == "two versions of a domain":
        model.opset_import.add(domain="ai.onnx", version=13)
    elif kind == "elements of no known type":
        model.graph.value_info.append(helper.make_tensor_value_info("e", 99, [2, 3]))
    elif kind == "more data than its shape":
        model.graph.initializer[0].raw_data *= 2
    elif kind == "more typed data than its shape":
        model.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0]))
        model.graph.initializer[0].float_data.append(2.0)
    onnx.checker.check_model(model)
    with pytest.raises(InputError, match=UNREADABLE[kind]):
        onnx_attn.inspect(model)


def test_the_domain_of_the_standard_may_be_imported_twice_in_one_version() -> None:
    model = small_site()
    model.opset_import.add(domain="ai.onnx", version=17)
    assert_fused(model, heads=HEADS)


def test_sizes_that_no_memory_holds_are_left_alone() -> None:
    """Positions of so many elements are not counted out."""
    net = Net()
    q, k, v = (net.input(name, 2, 5, WIDTH) for name in "qkv")
    net.output(
        net.sdpa(net.reshape(q, 2, 2, 5, -1), net.swap(net.reshape(k, 2, 2, 5, -1)), net.reshape(v, 2, 2, 5, -1))
    )
    model = net.model()
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 2**40
    report = onnx_attn.inspect(model)
    assert len(report["candidates"]) == 1
    onnx.checker.check_model(onnx_attn.fuse(model, verify=False).model)


@pytest.mark.parametrize("kind", ["movement", "scales", "masks", "before"])
def test_long_chains_are_no_recursion(kind: str) -> None:
    net, many = Net(), 1500
    q, kt, v = heads_in(net)
    mask = net.input("mask", 5, 5)
    for _ in range(many):
        if kind == "movement":
            q = net.turn(q, 0, 2, 1, 3)
        elif kind == "scales":
            kt = net.op("Neg", kt)
        elif kind == "masks":
            mask = net.op("Add", mask, net.const(0.001))
    net.output(net.sdpa(q, kt, v, lambda scores: net.op("Add", net.scaled(scores), mask)))
    if kind == "before":
        net = Net()
        x = net.input("x", 2, 5, WIDTH)
        for _ in range(many):
            x = net.op("Relu", x)
        net.output(self_attention(net, x), 3)
    assert onnx_attn.fuse(net.model(), verify=False).report["fused"] == 1


def test_product_that_cannot_run_is_counted_as_unknown() -> None:
    """onnx's inference accepts a scalar as an operand, since nothing is known of the branch that would give it."""
    net = Net()
    x, w = net.input("x", 2, 3), net.input("w", 3, 2)
    zero = helper.make_tensor("", TensorProto.FLOAT, [], [0.0])
    then = branch("then", [helper.make_node("Constant", [], ["zero"], value=zero)], "zero")
    other = branch("other", [helper.make_node("Identity", [x], ["same"])], "same")
    made = net.op("If", net.const(True, bool), then_branch=then, else_branch=other)
    net.output(net.op("MatMul", made, w), 2)
    assert onnx_attn.stats(net.model())["flops"]["products"] is None


def attention_operator(keys: tuple[int, ...] = (2, HEADS, 5, HEAD_DIM), **attributes: int) -> onnx.ModelProto:
    net = Net(opset=23)
    q, v = (net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "qv")
    net.output(net.op("Attention", q, net.input("k", *keys), v, name="softmax", **attributes))
    return net.model()


@pytest.mark.parametrize("value", [-1, 2])
def test_is_causal_is_1_or_is_not_set(value: int) -> None:
    """Source: operator specification: "if set to 1"; ONNX Runtime takes other numbers for 0."""
    model = attention_operator(is_causal=value)
    for result in (onnx_attn.fuse(model), onnx_attn.fuse(model, form="primitives"), onnx_attn.expand(model)):
        assert_same(model, result.model)


def test_input_that_nobody_could_hold_is_not_made_up() -> None:
    model = small_site(sizes=(2, 5, "keys"))
    model.graph.input[1].type.tensor_type.shape.dim[2].dim_value = 2**40
    model.graph.input[2].type.tensor_type.shape.dim[2].dim_value = 2**40
    with pytest.raises(OnnxAttnError, match=r"none that could be made up|memory|unprovable") as told:
        onnx_attn.fuse(model, expect=1)
    assert "--no-verify" in str(told.value) or "inspect" in str(told.value)


def test_a_dimension_of_minus_one_varies() -> None:
    """As some exporters write it, and ONNX Runtime takes it."""
    model = small_site(sizes=("batch", 5, 5))
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = -1
    named = feeds(small_site(sizes=("batch", 5, 5)))
    assert_fused(model, named)


@pytest.mark.parametrize("keys", [(), (5,), (HEADS, 5, HEAD_DIM)])
def test_attention_operator_on_operands_of_too_few_axes_is_refused(keys: tuple[int, ...]) -> None:
    """Where a branch decides the shape, onnx's inference lets them pass."""
    net = Net(opset=23)
    q, v = (net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "qv")
    k, w = net.input("k", *keys), net.input("w", 2, HEADS, 5, HEAD_DIM)
    sides = [
        branch(name, [helper.make_node("Identity", [each], [name])], name) for name, each in (("few", k), ("all", w))
    ]
    chosen = net.op("If", net.const(True, bool), then_branch=sides[0], else_branch=sides[1])
    net.output(net.op("Attention", q, chosen, v, name="softmax"))
    assert_refused(net.model(), "shape-unknown", "attention-feature")


def test_a_head_of_no_channels_is_no_site() -> None:
    net = Net(opset=23)
    q, k, v = (net.input(name, 2, HEADS, 5, 0) for name in "qkv")
    net.output(net.op("Attention", q, k, v, name="softmax"))
    assert_refused(net.model(), "shape-unknown")


def test_rows_picked_past_the_end_are_no_layout() -> None:
    """The size that varies is tried with numbers at which the node cannot run."""
    net = Net()
    q, kt, v = heads_in(net, batch="batch")
    picked = net.op("Gather", q, net.const(4, np.int64), axis=0)
    net.output(net.sdpa(picked, net.op("Gather", kt, net.const(4, np.int64), axis=0), v))
    model = net.model()
    onnx.checker.check_model(onnx_attn.fuse(model, verify=False).model)


def test_operator_on_values_of_unknown_type_is_not_taken_apart() -> None:
    """onnx's inliner asks for the type."""
    net = Net(opset=23)
    q, k, v = (net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "qkv")
    net.output(net.op("Attention", net.op("Smudge", q, domain="my.company"), k, v, name="softmax"))
    after = onnx_attn.expand(net.model(my_company=1), verify=False).model
    assert [node.op_type for node in after.graph.node] == ["Smudge", "Attention"]
