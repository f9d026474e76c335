"""What happens to the probabilities between the softmax and V: who else reads them, and what changes them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from checks import assert_fused, assert_no_attention, assert_refused, assert_same, feeds
from graphs import HEAD_DIM, HEADS, Net, heads_in, small_site
from onnx import TensorProto, helper, numpy_helper
from readers import as_output, averaged, cast_then_output, multiplied_twice, read_elsewhere, read_inside_if

import onnx_attn

Change = Callable[[Net, str], str]


# --- probabilities that somebody else wants ------------------------------------------------------------------------------


def with_reader(use: Change) -> onnx.ModelProto:
    net = Net()
    q, kt, v = heads_in(net)
    net.output(net.sdpa(q, kt, v, probabilities=lambda p: use(net, p)))
    return net.model()


@pytest.mark.parametrize(
    "use",
    [as_output, averaged, read_elsewhere, cast_then_output, multiplied_twice, read_inside_if],
    ids=lambda f: f.__name__,
)
def test_probabilities_that_are_read_elsewhere_are_kept(use: Change) -> None:
    assert_refused(with_reader(use), "probabilities-used")


# --- Dropout -----------------------------------------------------------------------------------------------------------


def dropout(net: Net, p: str, mode: str) -> str:
    return net.op("Dropout", p, net.const(0.5, np.float32), mode)


def test_dropout_in_training_mode_is_refused() -> None:
    assert_refused(with_reader(lambda net, p: dropout(net, p, net.const(True, bool))), "dropout-training")


def test_dropout_whose_mode_is_an_input_is_refused() -> None:
    assert_refused(with_reader(lambda net, p: dropout(net, p, net.input("mode", dtype=bool))), "dropout-training")


def test_training_dropout_on_the_scores_is_refused() -> None:
    def scores(net: Net, s: str) -> str:
        return net.op("Dropout", s, net.const(0.5, np.float32), net.const(True, bool))

    assert_refused(small_site(scores=scores), "dropout-training", "scores-changed")


def test_dropout_mask_that_is_read_is_refused() -> None:
    def use(net: Net, p: str) -> str:
        dropped, mask = net.op("Dropout", p, outputs=2)
        net.output(mask, dtype=bool)
        return dropped

    assert_refused(with_reader(use), "probabilities-used")


def test_inference_dropout_is_removed() -> None:
    assert_fused(with_reader(lambda net, p: net.op("Dropout", p, outputs=2)[0]), masks=[])
    assert_fused(with_reader(lambda net, p: dropout(net, p, net.const(False, bool))))


# --- changes between softmax and V -----------------------------------------------------------------------------------


CHANGES: dict[str, Change] = {
    "factor": lambda net, p: net.scaled(p, 0.5),
    "renormalised": lambda net, p: net.op("Add", p, net.const(1e-6)),
    "slice": lambda net, p: net.op("Slice", p, net.ints(0), net.ints(5), net.ints(3)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_probabilities_are_refused(change: str) -> None:
    assert_refused(small_site(probabilities=CHANGES[change]), "probabilities-changed")


@pytest.mark.parametrize("through", [(0, 0, 5, 5), (2 * HEADS, 5, 5)], ids=str)
def test_probabilities_that_are_but_reshaped_are_read_through(through: tuple[int, ...]) -> None:
    def change(net: Net, p: str) -> str:
        return net.reshape(net.reshape(p, *through), 2, HEADS, 5, 5)

    assert_fused(small_site(probabilities=change))


def test_transposed_probabilities_weigh_by_queries() -> None:
    """Square, so that only the axes themselves tell."""
    assert_refused(small_site(probabilities=lambda net, p: net.swap(p)), "softmax-axis")


@pytest.mark.parametrize("through", [(2, 5, HEADS, 5), (2, HEADS * 5, 5)], ids=str)
def test_a_reshape_that_mixes_heads_and_queries_is_refused(through: tuple[int, ...]) -> None:
    """Read as `(B, S, N, S)`, or with heads and queries on one axis, a row belongs to another head's values."""

    def change(net: Net, p: str) -> str:
        if len(through) == 4:
            return net.turn(net.reshape(p, *through), 0, 2, 1, 3)
        return net.turn(net.reshape(p, 2, 5, HEADS, 5), 0, 2, 1, 3)

    assert_refused(small_site(probabilities=change), "probabilities-changed")


def guarded(net: Net, p: str, zero: float, swapped: bool = False) -> str:
    pair = (net.const(zero), p)
    return net.op("Where", net.op("IsNaN", p), *(pair[::-1] if swapped else pair))


def test_guard_against_nan_is_kept() -> None:
    """A row that is masked throughout is NaN without the guard and 0 with it."""
    net = Net()
    q, kt, v = heads_in(net)
    mask = net.input("mask", 1, 1, 5, 5)
    net.output(net.sdpa(q, kt, v, lambda s: net.op("Add", net.scaled(s), mask), lambda p: guarded(net, p, 0.0)))
    inputs = feeds(net.model())
    inputs["mask"][..., 2, :] = -np.inf
    assert_fused(net.model(), inputs)


def test_guard_that_puts_in_another_number_is_refused() -> None:
    site = small_site(probabilities=lambda net, p: guarded(net, p, 0.1))
    assert_refused(site, "probabilities-changed")


def test_guard_the_wrong_way_round_is_refused() -> None:
    site = small_site(probabilities=lambda net, p: guarded(net, p, 0.0, swapped=True))
    assert_refused(site, "probabilities-changed")


# --- operands and axes ---------------------------------------------------------------------------------------------------


def test_values_times_probabilities_is_not_probabilities_times_values() -> None:
    net = Net()
    q, k, v = (net.input(name, 2, HEADS, HEAD_DIM, HEAD_DIM) for name in "qkv")
    p = net.op("Softmax", net.scaled(net.op("MatMul", q, net.swap(k))), name="softmax")
    net.output(net.op("MatMul", v, p))
    assert_refused(net.model(), "operand-order")


def test_probabilities_times_themselves_are_refused() -> None:
    net = Net()
    q, kt, _ = heads_in(net)
    p = net.op("Softmax", net.scaled(net.op("MatMul", q, kt)), name="softmax")
    net.output(net.op("MatMul", p, p))
    assert_refused(net.model(), "probabilities-used")


@pytest.mark.parametrize("axis", [-2, 2, 1])
def test_softmax_over_another_axis_than_the_keys_is_refused(axis: int) -> None:
    assert_refused(small_site(axis=axis), "softmax-axis")


def test_last_axis_by_number_is_the_key_axis() -> None:
    assert_fused(small_site(axis=3), heads=HEADS, head_dim=HEAD_DIM, scale=HEAD_DIM**-0.5)


def test_half_precision_with_a_wide_softmax_is_fused() -> None:
    def wide(net: Net, s: str) -> str:
        return net.op("Cast", net.scaled(s), to=TensorProto.FLOAT)

    def back(net: Net, p: str) -> str:
        return net.op("Cast", p, to=TensorProto.FLOAT16)

    assert_fused(small_site(dtype=np.float16, scores=wide, probabilities=back), rtol=2e-3)


def test_guard_that_adds_an_axis_is_refused() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    zero = net.const([[[[[0.0]]]]])
    net.output(net.sdpa(q, kt, v, probabilities=lambda p: net.op("Where", net.op("IsNaN", p), zero, p)), 5)
    assert_refused(net.model(), "probabilities-changed")


def test_product_of_three_tensors_is_no_product_with_values() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    found = net.op("Softmax", net.scaled(net.op("MatMul", q, kt)), name="softmax", axis=-1)
    weights = net.input("w", HEADS, HEAD_DIM, HEAD_DIM)
    net.output(net.op("Einsum", found, v, weights, equation="bnst,bnth,nhd->bnsd"))
    assert_refused(net.model(), "probabilities-changed")


def test_values_of_unknown_shape_are_refused() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    net.output(net.sdpa(q, kt, net.op("Smudge", v, domain="my.company")))
    assert_refused(net.model(my_company=1), "probabilities-changed", "shape-unknown")


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_guard_that_puts_another_number_than_zero_is_not_computed_twice_either(fill: float) -> None:
    """`allow_recompute` computes the weights once more for who reads them, and not what they become here."""

    def guard(net: Net, p: str) -> str:
        return net.op("Where", net.op("IsNaN", p), net.const(fill), p)

    def scores(net: Net, s: str) -> str:
        return net.op("Add", net.scaled(s), net.input("mask", 2, 1, 5, 5))

    model = small_site(probabilities=guard, scores=scores)
    result = onnx_attn.fuse(model, allow_recompute=True, verify=False)
    inputs = feeds(model)
    inputs["mask"][0, 0, 1] = -np.inf
    assert_same(model, result.model, inputs)
    assert result.report["fused"] == int(fill == 0.0)


def test_refusal_names_who_else_reads_the_probabilities() -> None:
    def read(net: Net, p: str) -> str:
        net.output(net.op("Neg", p, name="the_other_reader"))
        return p

    (candidate,) = onnx_attn.inspect(small_site(probabilities=read))["candidates"]
    assert candidate["code"] == "probabilities-used"
    assert "the_other_reader" in (candidate["node"], candidate["reason"])


def test_softmax_and_weights_in_a_branch_are_no_attention() -> None:
    net = Net()
    x, flag = net.input("x", 2, 5), net.input("flag", dtype=bool)
    value = numpy_helper.from_array(np.ones((5, 5), np.float32), "w")
    nodes = [
        helper.make_node("Softmax", [x], ["p"], axis=-1, name="softmax"),
        helper.make_node("MatMul", ["p", "w"], ["y"]),
    ]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    then = helper.make_graph(nodes, "then", [], out, [value])
    other = helper.make_graph([helper.make_node("Identity", [x], ["y"])], "other", [], out)
    net.output(net.op("If", flag, then_branch=then, else_branch=other), 2)
    assert_no_attention(net.model(), "class-softmax")
