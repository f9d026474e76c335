"""Conditions on the way from the softmax to V: what is cleared, guarded, rounded or cast there, in which order, and who reads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from checks import assert_fused, assert_no_attention, assert_refused, assert_same, same_bytes
from graphs import HEADS, WIDTH, Net, heads_in, small_site
from onnx import TensorProto, helper
from quantised import step

import onnx_attn

Change = Callable[[Net, str], str]
SCORES = (2, HEADS, 5, 5)


def guarded(net: Net, p: str) -> str:
    return net.op("Where", net.op("IsNaN", p), net.const(0.0), p)


def cleared(net: Net, p: str) -> str:
    return net.op("Where", net.input(f"blocked_{len(net.inputs)}", 2, 1, 5, 5, dtype=bool), net.const(0.0), p)


def rounded(net: Net, p: str, scale: float = 1 / 127) -> str:
    return step(net, p, scale)


def flattened(net: Net, p: str) -> str:
    return net.reshape(net.reshape(p, 2 * HEADS, 5, 5), *SCORES)


def halved(net: Net, p: str) -> str:
    return net.op("Cast", p, to=TensorProto.FLOAT16)


def site(*changes: Change, opset: int = 19) -> onnx.ModelProto:
    """A site whose probabilities go through these changes, one behind the other."""

    def through(net: Net, p: str) -> str:
        for change in changes:
            p = change(net, p)
        return p

    return small_site(opset=opset, probabilities=through)


# --- zeros and steps, twice or in another order ----------------------------------------------------------------------------


@pytest.mark.parametrize("change", [guarded, cleared, rounded, flattened], ids=lambda f: f.__name__)
def test_one_change_alone_is_kept(change: Change) -> None:
    assert_fused(site(change), rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        (guarded, guarded),
        (cleared, guarded),
        (guarded, cleared),
        (cleared, cleared),
        (rounded, guarded),
        (rounded, cleared),
    ],
    ids=lambda pair: "-".join(f.__name__ for f in pair),
)
def test_zeros_are_put_in_once_and_before_anything_is_rounded(changes: tuple[Change, ...]) -> None:
    assert_refused(site(*changes), "probabilities-changed")


def test_a_step_that_is_done_twice_is_one() -> None:
    assert_fused(site(rounded, flattened, rounded))


def test_two_steps_that_differ_are_refused() -> None:
    assert_refused(site(rounded, lambda net, p: rounded(net, p, 1 / 7)), "quantisation-step")


def test_what_is_rounded_and_cast_then_is_refused() -> None:
    """The type in which the step's scale is would be another."""
    net = Net(19)
    q, kt, _ = heads_in(net)
    v = net.input("values", 2, HEADS, 5, 8, dtype=np.float16)
    net.outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT16, [None] * 4))
    net.op("Identity", net.sdpa(q, kt, v, probabilities=lambda p: halved(net, rounded(net, p))))
    net.nodes[-1].output[0] = "y"
    assert_refused(net.model(), "probabilities-changed")


def test_a_mask_that_widens_the_probabilities_is_no_clearing() -> None:
    """Three masks make three of each probability."""
    net = Net()
    q, kt, v = heads_in(net)
    mask = net.input("mask", 3, 1, 1, 5, 5, dtype=bool)
    net.output(net.sdpa(q, kt, v, probabilities=lambda p: net.op("Where", mask, net.const(0.0), p)), 5)
    assert_refused(net.model(), "probabilities-changed")


@pytest.mark.parametrize("operands", [2, 3])
def test_a_choice_of_another_domain_is_nobodys_clearing(operands: int) -> None:
    """Even if its result's shape is said."""

    def choose(net: Net, p: str) -> str:
        mask = net.input("mask", 2, 1, 5, 5, dtype=bool)
        return net.op("Where", *[mask, net.const(0.0)][3 - operands :], p, domain="my.company")

    net = Net()
    q, kt, v = heads_in(net)
    net.output(net.sdpa(q, kt, v, probabilities=lambda p: choose(net, p)))
    model = net.model(my_company=1)
    made = next(node.output[0] for node in model.graph.node if node.op_type == "Where")
    model.graph.value_info.append(helper.make_tensor_value_info(made, TensorProto.FLOAT, SCORES))
    assert_refused(model, "probabilities-changed")


# --- the product with values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_a_factor_of_the_product_with_values_is_not_dropped(alpha: float) -> None:
    net = Net()
    q, k, v = (net.input(name, 5, 8) for name in "qkv")
    p = net.op("Softmax", net.scaled(net.op("MatMul", q, net.turn(k, 1, 0))), name="softmax")
    net.output(net.op("Gemm", p, v, alpha=alpha), 2)
    if alpha == 1.0:
        assert_fused(net.model())
    else:
        assert_refused(net.model(), "probabilities-changed")


def three_operands(net: Net, p: str) -> str:
    return net.op("Einsum", p, "v", net.input("w", 5), equation="st,th,s->sh")


def a_sum_that_is_added(net: Net, p: str) -> str:
    return net.op("Gemm", p, "v", net.input("added", 5, 8))


def two_operands_summed_alone(net: Net, p: str) -> str:
    return net.op("Einsum", p, net.input("w", 5, 8, 3), equation="st,thw->sh")


@pytest.mark.parametrize("product", [three_operands, a_sum_that_is_added, two_operands_summed_alone])
def test_a_refusal_says_where_a_product_has_more_than_two_operands(product: Change) -> None:
    net = Net()
    q, k, _ = (net.input(name, 5, 8) for name in "qkv")
    p = net.op("Softmax", net.scaled(net.op("MatMul", q, net.turn(k, 1, 0))), name="softmax")
    net.output(product(net, p), 2)
    assert_refused(net.model(), "probabilities-changed")
    said = str(onnx_attn.inspect(net.model())["candidates"][0]["reason"])
    assert ("multiplies more than two operands" in said) == (product is three_operands)


def test_a_product_of_another_domain_with_weights_is_no_attention() -> None:
    net = Net()
    classes = net.op("Softmax", net.linear(net.input("x", 2, 5, WIDTH), 10), axis=-1, name="softmax")
    net.output(net.op("MatMul", classes, net.weight(10, 3), domain="my.company"), 3)
    assert_no_attention(net.model(my_company=1), "class-softmax")


@pytest.mark.parametrize("reader", ["nobody", "weights", "two"])
def test_probabilities_of_a_shape_that_an_input_decides_are_followed_to_weights(reader: str) -> None:
    net = Net()
    p = net.op("Softmax", net.input("x", 2, 5, 10), axis=-1, name="softmax")
    moved = net.op("Reshape", p, net.input("shape", 3, dtype=np.int64))
    if reader == "nobody":
        net.output(moved, 3)
    else:
        net.output(net.op("MatMul", moved, net.weight(10, 3)), 3)
    if reader == "two":
        net.output(net.op("Exp", moved), 3)
    assert_no_attention(net.model(), "class-softmax" if reader == "weights" else "no-value-product")


# --- readers -----------------------------------------------------------------------------------------------------------


def test_the_mask_of_a_dropout_may_be_read_by_a_node() -> None:
    def use(net: Net, p: str) -> str:
        dropped, mask = net.op("Dropout", p, outputs=2)
        net.output(net.op("Not", mask), dtype=bool)
        return str(dropped)

    assert_refused(site(use), "probabilities-used")


@pytest.mark.parametrize(
    ("op", "code"),
    [("ArgMax", "class-softmax"), ("Log", "class-softmax"), ("TopK", "gating"), ("Exp", "no-value-product")],
)
def test_one_reader_of_several_tells_what_the_softmax_is_for(op: str, code: str) -> None:
    net = Net()
    p = net.op("Softmax", net.input("x", 2, 5, 10), axis=-1, name="softmax")
    net.output(net.op("Neg", p), 3)
    if op == "TopK":
        net.output(net.op("TopK", p, net.ints(2), outputs=2)[0], 3)
    else:
        net.output(net.op(op, p), 3, np.int64 if op == "ArgMax" else None)
    assert_no_attention(net.model(), code)


def test_weights_on_the_left_are_no_values() -> None:
    net = Net()
    p = net.op("Softmax", net.input("x", 2, 5, 10), axis=-1, name="softmax")
    net.output(net.op("MatMul", net.weight(3, 5), p), 3)
    net.output(net.op("ArgMax", p), 3, np.int64)
    assert_no_attention(net.model(), "class-softmax")


def in_a_branch(net: Net, p: str, op: str, *others: str) -> None:
    """An If, whose branches read the probabilities, or nothing."""
    out = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("yes_y", "no_y")]
    then = helper.make_graph([helper.make_node(op, [p, *others], ["yes_y"])], "yes", [], out[:1])
    other = helper.make_graph([helper.make_node("Neg", [net.input("z", 2)], ["no_y"])], "no", [], out[1:])
    net.output(net.op("If", net.input("flag", dtype=bool), then_branch=then, else_branch=other), 3)


def test_classes_that_a_branch_reads_are_no_attention() -> None:
    net = Net()
    p = net.op("Softmax", net.input("x", 2, 5, 10), axis=-1, name="softmax")
    in_a_branch(net, p, "Exp")
    assert_no_attention(net.model(), "no-value-product")


def test_flags_that_choose_nothing_are_another_reader() -> None:
    """What of the probabilities is NaN is told outside; what is cleared is a mask's."""

    def use(net: Net, p: str) -> str:
        net.output(net.op("IsNaN", p, name="flags"), dtype=bool)
        return cleared(net, p)

    model = site(use)
    assert_refused(model, "probabilities-used")
    assert onnx_attn.inspect(model)["candidates"][0]["node"] == "flags"
    result = onnx_attn.fuse(model, allow_recompute=True)
    assert result.report["fused"] == 1
    assert_same(model, result.model)


def test_probabilities_that_are_an_output_are_so_beside_a_guard_too() -> None:
    def use(net: Net, p: str) -> str:
        net.output(p)
        return guarded(net, p)

    assert_refused(site(use), "probabilities-used")
    assert "is a model output" in str(onnx_attn.inspect(site(use))["candidates"][0]["reason"])


@pytest.mark.parametrize("first", ["rounded", "read"])
def test_what_is_rounded_is_not_computed_twice(first: str) -> None:
    """`allow_recompute` computes probabilities once more for others, but not what they are rounded to."""

    def read(net: Net, p: str) -> str:
        net.output(net.op("Neg", p))
        return p

    model = site(*((rounded, read) if first == "rounded" else (read, rounded)))
    result = onnx_attn.fuse(model, allow_recompute=True)
    assert [each["code"] for each in result.report["candidates"]] == ["probabilities-used"]
    assert same_bytes(result.model, model)
