"""What follows a site, spelled nearly as our own primitives spell a guard of rows that are masked throughout."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from checks import feeds, fused
from graphs import HEAD_DIM, HEADS, Net, heads_in
from onnx import TensorProto, helper

LENGTH = 5
LOWEST = float(np.finfo(np.float32).min)
Follow = Callable[[Net, str, str], str]


def zero_rows(net: Net, mask: str, attention: str, axis: int = -1, bound: float = LOWEST) -> str:
    """The guard as forms of ours write it."""
    peak = net.op("ReduceMax", mask, net.ints(axis)) if net.opset >= 18 else net.op("ReduceMax", mask, axes=[axis])
    return net.op("Where", net.op("LessOrEqual", peak, net.const(bound)), net.const(0.0), attention)


def guarded(follow: Follow, opset: int = 18, op: str = "Add", first: str = "") -> onnx.ModelProto:
    """Attention with a mask that is added last, and what follows it. first: a mask in front of that one, which blocks keys."""
    net = Net(opset)
    q, kt, v = heads_in(net)
    mask = net.input("mask", 2, 1, LENGTH, LENGTH)

    def scores(value: str) -> str:
        value = net.scaled(value)
        if first:
            value = net.op("Where", net.input(first, 2, 1, 1, LENGTH, dtype=bool), net.const(-np.inf), value)
        return net.op(op, value, mask)

    nan = lambda p: net.op("Where", net.op("IsNaN", p), net.const(0.0), p)  # noqa: E731
    attention = net.sdpa(q, kt, v, scores, nan if first else lambda p: p)
    shape = (*((1,) if follow is widened else ()), 2, HEADS, LENGTH, HEAD_DIM)
    net.outputs.append(helper.make_tensor_value_info(follow(net, mask, attention), TensorProto.FLOAT, shape))
    return net.model(my=1)


def blocked_rows(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """A row that is blocked by the lowest number, one by −inf, and one by +inf, which blocks where a mask is subtracted."""
    inputs = feeds(model)
    for row, number in enumerate((LOWEST, -math.inf, -LOWEST)):
        inputs["mask"][0, 0, row] = number
    return inputs


READ: dict[str, tuple[int, Follow]] = {
    "last axis": (18, zero_rows),
    "last axis by its number": (18, lambda net, mask, made: zero_rows(net, mask, made, 3)),
    "axis as an attribute": (17, zero_rows),
}


@pytest.mark.parametrize("kind", READ)
def test_a_guard_behind_a_site_is_read_into_it(kind: str) -> None:
    opset, follow = READ[kind]
    model = guarded(follow, opset)
    assert fused(model, blocked_rows(model))[0] == ["ScaledDotProductAttention_Mask_GuardRow"]


def test_a_guard_of_a_mask_of_unknown_shape_is_read_by_its_last_axis() -> None:
    """The mask is of one shape or of another."""
    branches, fill = {}, helper.make_tensor("", TensorProto.FLOAT, [1], [-math.inf])
    for name, shape in {"then_branch": [LENGTH, LENGTH], "else_branch": [2, 1, 1, LENGTH]}.items():
        made = helper.make_node("ConstantOfShape", ["sizes_" + name], [name], value=fill)
        sizes = helper.make_tensor("sizes_" + name, TensorProto.INT64, [len(shape)], shape)
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        branches[name] = helper.make_graph([made], name, [], [out], [sizes])
    net = Net(18)
    q, kt, v = heads_in(net)
    mask = net.op("If", net.input("flag", dtype=bool), **branches)
    cleared = zero_rows(net, mask, net.sdpa(q, kt, v, lambda s: net.op("Add", net.scaled(s), mask)), bound=-math.inf)
    net.outputs.append(helper.make_tensor_value_info(cleared, TensorProto.FLOAT, [2, HEADS, LENGTH, HEAD_DIM]))
    model = net.model()
    (add,) = (node.output[0] for node in model.graph.node if node.op_type == "Add")
    model.graph.value_info.append(helper.make_tensor_value_info(add, TensorProto.FLOAT, [2, HEADS, LENGTH, LENGTH]))
    for flag in (True, False):
        assert fused(model, feeds(model) | {"flag": np.asarray(flag)})[0][-1].endswith("_GuardBlocked")


def widened(net: Net, mask: str, attention: str) -> str:
    """By the axes of its zero, which is one number."""
    found = zero_rows(net, mask, attention)
    net.nodes[-1].input[1] = net.const(np.zeros((1,) * 5))
    return found


def given_rows(net: Net, mask: str, attention: str) -> str:
    return net.op("Where", net.input("rows", 2, 1, LENGTH, 1, dtype=bool), net.const(0.0), attention)


def given_peak(net: Net, mask: str, attention: str) -> str:
    rows = net.op("LessOrEqual", net.input("peak", 2, 1, LENGTH, 1), net.const(LOWEST))
    return net.op("Where", rows, net.const(0.0), attention)


def all_axes(net: Net, mask: str, attention: str) -> str:
    rows = net.op("LessOrEqual", net.op("ReduceMax", mask), net.const(LOWEST))
    return net.op("Where", rows, net.const(0.0), attention)


STAYS: tuple[Follow, ...] = (widened, given_rows, given_peak, all_axes)


@pytest.mark.parametrize("follow", STAYS, ids=lambda follow: follow.__name__)
def test_what_only_looks_like_a_guard_stays_behind_the_site(follow: Follow) -> None:
    model = guarded(follow)
    inputs = blocked_rows(model)
    if "peak" in inputs:
        inputs["peak"][1] = LOWEST
    assert fused(model, inputs)[0][-1] == "Where"


@pytest.mark.parametrize("form", ["auto", "primitives"])
def test_rows_that_a_subtracted_mask_leaves_alone_are_no_blocked_ones(form: str) -> None:
    """The lowest number is subtracted: it picks out, and a sum with it is too large for a softmax."""
    model = guarded(zero_rows, op="Sub")
    inputs = feeds(model)
    inputs["mask"][0, 0, 0] = LOWEST
    inputs["mask"][0, 0, 1] = -LOWEST
    assert fused(model, inputs, form)[0][-1] == "Where"


@pytest.mark.parametrize("form", ["auto", "primitives"])
def test_a_guard_behind_the_other_guard_takes_nothing_from_that(form: str) -> None:
    """Rows that the first mask blocks have no probabilities, and the last mask's guard does not see them."""
    model = guarded(zero_rows, first="padding")
    inputs = blocked_rows(model)
    inputs["padding"][1] = True
    assert fused(model, inputs, form)[0].count("Where") >= 1


def test_a_choice_behind_a_site_without_masks_stays() -> None:
    net = Net(18)
    q, kt, v = heads_in(net)
    net.output(zero_rows(net, net.input("mask", 2, 1, LENGTH, LENGTH), net.sdpa(q, kt, v)))
    assert fused(net.model())[0][-1] == "Where"


def test_a_guard_over_axes_of_the_graph_s_own_clears_what_it_cleared() -> None:
    """As many heads as queries, and the result holds queries in front of heads."""
    net = Net(18)
    q, k, v = (net.input(name, 2, LENGTH, LENGTH, HEAD_DIM) for name in "qkv")
    mask = net.input("mask", 2, 1, LENGTH, LENGTH)
    scores = net.op("Add", net.scaled(net.op("MatMul", q, net.swap(k))), mask)
    found = net.op("Softmax", scores, axis=-1, name="softmax")
    net.output(zero_rows(net, mask, net.op("Einsum", found, v, equation="bnsl,bnld->bsnd")))
    fused(net.model(), blocked_rows(net.model()))


@pytest.mark.parametrize("op", ["Where", "LessOrEqual", "ReduceMax"])
def test_an_operator_of_another_domain_is_no_guard(op: str) -> None:
    def follow(net: Net, mask: str, attention: str) -> str:
        found = zero_rows(net, mask, attention)
        next(node for node in net.nodes if node.op_type == op).domain = "my"
        return found

    model = guarded(follow)
    types = {"LessOrEqual": TensorProto.BOOL, "ReduceMax": TensorProto.FLOAT}
    if op in types:
        (name,) = (node.output[0] for node in model.graph.node if node.op_type == op)
        model.graph.value_info.append(helper.make_tensor_value_info(name, types[op], [2, 1, LENGTH, 1]))
    assert fused(model, compare=False)[0][-3:] == ["ReduceMax", "LessOrEqual", "Where"]


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("form", ["auto", "primitives"])
def test_a_branch_that_clears_rows_is_no_guard_of_the_site_outside(form: str, flag: bool) -> None:
    def follow(net: Net, mask: str, attention: str) -> str:
        zero_rows(net, mask, attention)
        where = net.nodes.pop()
        out = helper.make_tensor_value_info(where.output[0], TensorProto.FLOAT, None)
        other = helper.make_node("Neg", ["v"], ["negative"])
        branches = {
            "then_branch": helper.make_graph([where], "then", [], [out]),
            "else_branch": helper.make_graph(
                [other], "else", [], [helper.make_tensor_value_info("negative", TensorProto.FLOAT, None)]
            ),
        }
        return net.op("If", net.input("flag", dtype=bool), **branches)

    model = guarded(follow)
    fused(model, blocked_rows(model) | {"flag": np.asarray(flag)}, form)


def test_a_peak_without_its_axis_clears_features_and_no_rows() -> None:
    """Where there are as many queries as features, it broadcasts over these."""
    net, length = Net(18), HEAD_DIM
    q, kt, v = heads_in(net, queries=length, keys=length)
    mask = net.input("mask", 2, 1, length, length)
    attention = net.sdpa(q, kt, v, lambda scores: net.op("Add", net.scaled(scores), mask))
    peak = net.op("ReduceMax", mask, net.ints(-1), keepdims=0)
    net.output(net.op("Where", net.op("LessOrEqual", peak, net.const(LOWEST)), net.const(0.0), attention))
    model = net.model()
    inputs = feeds(model)
    inputs["mask"][0, 0, 3] = LOWEST
    assert fused(model, inputs)[0][-1] == "Where"
