"""What stands between Q·Kᵀ and the softmax and is nearly a mask, a floor or a factor; and values of which no shape is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from checks import assert_fused, assert_refused, assert_same, feeds
from graphs import HEAD_DIM, HEADS, Net, heads_in, small_site
from onnx import TensorProto, helper

import onnx_attn

LENGTH = 5
FULL = (2, HEADS, LENGTH, LENGTH)
Change = Callable[[Net, str], str]


# --- nearly a floor, nearly a factor ---------------------------------------------------------------------------------------


REFUSED: dict[str, tuple[str, Change]] = {
    "the largest of one": ("scores-changed", lambda net, s: net.op("Max", s)),
    "the largest of three": ("scores-changed", lambda net, s: net.op("Max", s, net.const(-1.0), net.const(0.0))),
    "a floor of five axes": (
        "scores-changed",
        lambda net, s: net.op("Squeeze", net.op("Max", s, net.const(np.zeros((1,) * 5))), net.ints(0)),
    ),
    "a factor that widens": ("scale-not-constant", lambda net, s: net.op("Mul", s, net.weight(3, 1, 1, 1, 1))),
    "a divisor that widens": ("scale-not-constant", lambda net, s: net.op("Div", s, net.weight(3, 1, 1, 1, 1))),
    "a factor that widens by ones": ("scale-not-constant", lambda net, s: net.op("Mul", s, net.weight(1, 1, 1, 1, 5))),
    "what an input scales, and a mask widens": (
        "scale-not-constant",
        lambda net, s: net.op("Mul", net.op("Add", s, net.input("wide", 3, 1, 1, 1, 1)), net.input("scale", 1)),
    ),
    "what a mask widens behind a change": (
        "scale-not-constant",
        lambda net, s: net.op("Mul", net.op("Sub", s, net.input("wide", 3, 1, 1, 1, 1)), net.input("scale", 1)),
    ),
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_is_nearly_read_is_refused(change: str) -> None:
    code, make = REFUSED[change]
    assert_refused(small_site(scores=make), code)


def test_a_factor_whose_entries_vary_in_number_is_one_though_it_may_be_one_entry() -> None:
    """Cut from weights as the batch without its first entry is: at one size a single number."""
    net = Net()
    q, k, v = (net.input(name, "batch", HEADS, LENGTH, HEAD_DIM) for name in "qkv")
    q, k, v = (net.op("Slice", each, net.ints(1), net.ints(1000), net.ints(0)) for each in (q, k, v))
    entries = net.op("Shape", q, start=0, end=1)
    factor = net.op("Slice", net.weight(100, 1, 1, 1), net.ints(0), entries, net.ints(0))
    net.output(net.sdpa(q, net.swap(k), v, lambda s: net.op("Mul", net.scaled(s), factor)))
    model = net.model()
    assert_fused(model, feeds(model, {"batch": 3}), masks=[])


# --- sums that are no choice -----------------------------------------------------------------------------------------------


def chosen(op: str, domain: str = "") -> onnx.ModelProto:
    """Scores that are added to, or from which is subtracted, `Where(mask, 0, −inf)`."""
    net = Net()
    q, kt, v = heads_in(net)
    mask = net.input("mask", 2, 1, LENGTH, LENGTH, dtype=bool)
    choice = net.op("Where", mask, net.const(0.0), net.const(-np.inf), domain=domain)
    net.output(net.sdpa(q, kt, v, lambda s: net.op(op, net.scaled(s), choice)))
    model = net.model(my=1)
    if domain:
        model.graph.value_info.append(helper.make_tensor_value_info(choice, TensorProto.FLOAT, [2, 1, LENGTH, LENGTH]))
    return model


def test_minus_infinity_that_is_subtracted_blocks_nothing() -> None:
    model = chosen("Sub")
    result = onnx_attn.fuse(model, verify=False)
    assert result.report["fused"] == 1
    assert_same(model, result.model)


def test_another_domain_s_choice_stays() -> None:
    result = onnx_attn.fuse(chosen("Add", "my"), verify=False)
    assert result.report["candidates"][0]["masks"] == [{"kind": "additive", "shape": [2, 1, LENGTH, LENGTH]}]
    assert [node.domain for node in result.model.graph.node] == ["my", "onnx_attn"]


# --- values of unknown shape -----------------------------------------------------------------------------------------------


def forked(net: Net, *shapes: list[int]) -> str:
    """Ones of one shape or of another, as an input says; nothing is known of them."""
    branches = {}
    for name, shape in zip(("then_branch", "else_branch"), shapes, strict=True):
        ones = helper.make_tensor("", TensorProto.FLOAT, shape, np.ones(int(np.prod(shape))))
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        made = helper.make_node("Constant", [], [name], value=ones)
        branches[name] = helper.make_graph([made], name, [], [out])
    return net.op("If", net.input("flag", dtype=bool), **branches)


def unknown(change: Change, said: str) -> onnx.ModelProto:
    """A site whose scores meet what is not known; of the last value that this operator makes the model says the shape."""
    model = small_site(scores=change)
    name = [node.output[0] for node in model.graph.node if node.op_type == said][-1]
    model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, FULL))
    return model


def fused_for_both(model: onnx.ModelProto) -> None:
    result = onnx_attn.fuse(model, verify=False)
    (candidate,) = result.report["candidates"]
    assert (candidate["status"], candidate["head_dim"]) == ("site", HEAD_DIM), candidate
    for flag in (True, False):
        assert_same(model, result.model, feeds(model) | {"flag": np.asarray(flag)})


SHAPES = ([LENGTH], [2, 1, 1, LENGTH])


@pytest.mark.parametrize("first", [True, False])
def test_a_mask_of_unknown_shape_is_a_mask_where_the_sum_s_shape_is_known(first: bool) -> None:
    def change(net: Net, s: str) -> str:
        pair = (net.scaled(s), forked(net, *SHAPES))
        return net.op("Add", *(pair if first else pair[::-1]))

    fused_for_both(unknown(change, "Add"))


@pytest.mark.parametrize("first", [True, False])
def test_a_sum_of_unknown_shape_is_read_where_its_scores_are_known(first: bool) -> None:
    def change(net: Net, s: str) -> str:
        pair = (net.scaled(s), forked(net, *SHAPES))
        return net.op("Tanh", net.op("Add", *(pair if first else pair[::-1])))

    fused_for_both(unknown(change, "Tanh"))


def test_of_a_sum_of_unknown_shape_the_first_product_is_the_scores() -> None:
    def change(net: Net, s: str) -> str:
        product = net.op("MatMul", net.input("a", LENGTH, 7), net.input("b", 7, LENGTH))
        return net.op("Tanh", net.op("Add", s, net.op("Add", product, forked(net, *SHAPES))))

    fused_for_both(unknown(change, "Tanh"))


def test_scores_of_unknown_shape_in_front_of_a_known_one_are_refused() -> None:
    """What is added may have widened them, and the next mask as well."""

    def change(net: Net, s: str) -> str:
        return net.op("Add", net.op("Add", net.scaled(s), forked(net, *SHAPES)), net.input("mask", *FULL))

    assert_refused(unknown(change, "Add"), "scores-changed")


def test_a_factor_of_unknown_shape_is_no_factor() -> None:
    change = lambda net, s: net.op("Mul", net.scaled(s), forked(net, [1], [HEADS, 1, 1]))  # noqa: E731
    assert_refused(unknown(change, "Mul"), "scale-not-constant")
