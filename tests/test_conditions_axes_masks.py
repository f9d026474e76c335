"""Masks, factors and shifts in the axes of a site: what is repeated, brought into order, said in another way, or refused.

Each test is of a condition in `recognize/assemble.py` that no other test tells from its opposite.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from checks import assert_fused, assert_refused, assert_same, feeds
from graphs import HEAD_DIM, HEADS, Net, heads_in, small_site
from onnx import TensorProto, helper

import onnx_attn

ROOT = HEAD_DIM**-0.5


def softcap(net: Net, scores: str) -> str:
    """tanh(0.3·s) / 0.3: the number is exact as a divisor only."""
    limited = net.op("Tanh", net.op("Mul", scores, net.const(0.3)))
    return net.op("Div", limited, net.const(0.3))


def test_a_softcap_is_one_number_where_the_graph_divides_by_its_inverse() -> None:
    assert_fused(small_site(scores=softcap), scale=1.0)


def test_a_shift_of_whole_rows_is_nothing_in_front_of_anything_that_leaves_it_one() -> None:
    """A mask that is added, a factor, a mask that is subtracted and a cast."""
    net = Net(17, np.float16)
    q, kt, v = heads_in(net)

    def scores(value: str) -> str:
        stable = net.op("Sub", value, net.op("ReduceMax", value, axes=[-1]))
        scaled = net.scaled(net.op("Add", stable, net.weight(5, 5)))
        wide = net.op("Cast", net.op("Sub", scaled, net.weight(5, 5)), to=TensorProto.FLOAT)
        return wide

    net.output(net.sdpa(q, kt, v, scores, lambda p: net.op("Cast", p, to=TensorProto.FLOAT16)))
    fused = assert_fused(net.model(), rtol=2e-3)
    assert "ReduceMax" not in {node.op_type for node in fused.graph.node}


def by_height(clearing: bool, height: int | str, width: int | str) -> onnx.ModelProto:
    """Queries are pixels; a mask knows their height alone, as one of the scores or of the probabilities."""
    net = Net()
    q = net.reshape(net.input("q", 2, HEADS, height, width, HEAD_DIM), 0, 0, -1, HEAD_DIM)
    k, v = (net.input(role, 2, HEADS, 6, HEAD_DIM) for role in "kv")
    sizes = net.input("sizes", height, width)
    kind = bool if clearing else None
    mask = net.input("mask", height, 1, 6, dtype=kind)

    def apart(value: str) -> str:
        wide = net.reshape(value, 2, HEADS, (sizes, 0), (sizes, 1), 6)
        done = net.op("Where", mask, wide, net.const(0.0)) if clearing else net.op("Add", wide, mask)
        return net.reshape(done, 2, HEADS, -1, 6)

    if clearing:
        net.output(net.sdpa(q, net.swap(k), v, probabilities=apart))
    else:
        net.output(net.sdpa(q, net.swap(k), v, lambda s: apart(net.scaled(s))))
    return net.model()


@pytest.mark.parametrize("clearing", [False, True])
def test_a_mask_by_height_alone_is_repeated_along_the_width(clearing: bool) -> None:
    assert_fused(by_height(clearing, 3, 4), heads=HEADS)


@pytest.mark.parametrize("clearing", [False, True])
def test_a_mask_by_height_alone_is_not_repeated_along_a_width_that_varies(clearing: bool) -> None:
    assert_refused(by_height(clearing, "height", "width"), "mask-shape")


def test_probabilities_that_the_scores_themselves_clear_are_changed() -> None:
    """Only keys with a positive score count."""
    net = Net()
    q, kt, v = heads_in(net)
    scores = net.scaled(net.op("MatMul", q, kt))
    found = net.op("Softmax", scores, axis=-1, name="softmax")
    positive = net.op("Greater", scores, net.const(0.0))
    net.output(net.op("MatMul", net.op("Where", positive, found, net.const(0.0)), v))
    assert_refused(net.model(), "probabilities-changed")


@pytest.mark.parametrize("form", ["function", "primitives"])
def test_a_factor_of_nothing_behind_a_mask_is_a_factor(form: str) -> None:
    model = small_site(scores=lambda net, s: net.scaled(net.op("Add", s, net.weight(5, 5)), 0.0))
    assert_fused(model, asked_form=form)


def test_two_factors_behind_a_mask_are_multiplied_and_not_divided_by() -> None:
    """Their product is exact neither as it is nor as a divisor."""
    model = small_site(scores=lambda net, s: net.scaled(net.scaled(net.op("Add", s, net.weight(5, 5)), 0.7), 0.3))
    fused = assert_fused(model, asked_form="primitives")
    assert "Div" not in {node.op_type for node in fused.graph.node}


def test_a_mask_with_an_axis_more_than_the_scores_has_as_many_as_they() -> None:
    """Its fifth axis is of size 1, and goes again."""
    net = Net()
    q, kt, v = heads_in(net)
    mask = net.input("mask", 1, 1, 1, 5, 5)
    net.output(net.sdpa(q, kt, v, lambda s: net.reshape(net.op("Add", net.scaled(s), mask), 2, HEADS, 5, 5)))
    assert_fused(net.model(), heads=HEADS)


def test_a_mask_over_two_joined_axes_whose_sizes_vary_is_not_taken_apart() -> None:
    net = Net()
    q, k, v = (net.input(role, "b", "w", 5, HEAD_DIM) for role in "qkv")
    mask = net.reshape(net.input("mask", "b", "w", 5), -1, 1, 5)

    def masked(scores: str) -> str:
        return net.reshape(net.op("Add", net.reshape(net.scaled(scores), -1, 5, 5), mask), (q, 0), (q, 1), 5, 5)

    net.output(net.sdpa(q, net.swap(k), v, masked))
    assert_refused(net.model(), "mask-shape")


def of_no_known_shape(net: Net, value: str) -> str:
    """The same numbers, in a shape that the model is told when it runs."""
    told = net.input("told", "rank", dtype=np.int64)
    found: str = net.op("Reshape", value, told)
    return found


@pytest.mark.parametrize("turned", [False, True])
def test_a_mask_of_no_known_shape_stays_where_it_is(turned: bool) -> None:
    """Where the graph holds keys before queries, it cannot be brought into the order of a site."""
    net = Net()
    q, k, v = (net.input(role, 2, HEADS, 5, HEAD_DIM) for role in "qkv")
    mask = of_no_known_shape(net, net.input("mask", 5, 5))
    first, second = (k, q) if turned else (q, k)
    scores = net.op("Add", net.scaled(net.op("MatMul", first, net.swap(second))), mask)
    found = net.op("Softmax", scores, axis=2 if turned else 3, name="softmax")
    net.output(net.op("Einsum", found, v, equation="bnls,bnlh->bnsh" if turned else "bnsl,bnlh->bnsh"))
    model = net.model()
    model.graph.value_info.append(helper.make_tensor_value_info(scores, TensorProto.FLOAT, (2, HEADS, 5, 5)))
    if turned:
        assert_refused(model, "mask-shape")
    else:
        result = onnx_attn.fuse(model, verify=False)
        assert result.report["fused"] == 1
        assert_same(model, result.model, feeds(model, {"rank": 2}) | {"told": np.asarray([5, 5])})


def test_a_mask_of_no_known_shape_on_scores_with_an_axis_more_may_have_it_too() -> None:
    net, made = Net(), list[str]()
    q, kt, v = heads_in(net)
    mask = of_no_known_shape(net, net.input("mask", 5, 5))

    def scores(value: str) -> str:
        made.append(net.op("Add", net.reshape(net.scaled(value), 1, 2, HEADS, 5, 5), mask))
        return net.reshape(made[0], 2, HEADS, 5, 5)

    net.output(net.sdpa(q, kt, v, scores))
    model = net.model()
    model.graph.value_info.append(helper.make_tensor_value_info(made[0], TensorProto.FLOAT, (1, 2, HEADS, 5, 5)))
    assert_refused(model, "mask-shape")


def test_what_is_made_of_the_scores_in_no_known_shape_is_no_shift_of_whole_rows() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    made: list[str] = []

    def scores(value: str) -> str:
        made.append(net.op("Add", value, of_no_known_shape(net, net.scaled(value))))
        return made[0]

    net.output(net.sdpa(q, kt, v, scores))
    model = net.model()
    model.graph.value_info.append(helper.make_tensor_value_info(made[0], TensorProto.FLOAT, (2, HEADS, 5, 5)))
    assert_refused(model, "scores-changed")
