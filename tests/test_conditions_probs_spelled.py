"""Conditions of a softmax that is written in many nodes: which axes it runs over, what divides by it, and what only looks so."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from checks import assert_fused, assert_refused, same_bytes
from graphs import HEAD_DIM, HEADS, Net, heads_in

import onnx_attn


def assert_none(model: onnx.ModelProto) -> None:
    """No candidate at all, and nothing is done."""
    assert onnx_attn.inspect(model)["candidates"] == []
    assert same_bytes(onnx_attn.fuse(model).model, model)


def one_row(opset: int = 17) -> tuple[Net, str, str]:
    """Scores of one row altogether, so that all axes together are the keys; and V."""
    net = Net(opset)
    q, k, v = net.input("q", 1, 1, 1, 8), net.input("k", 1, 1, 5, 8), net.input("v", 1, 1, 5, 8)
    return net, net.scaled(net.op("MatMul", q, net.swap(k))), v


def cube() -> tuple[Net, str, str]:
    """Scores of three heads, queries and keys: axes that are exchanged or gone still broadcast. And V."""
    net = Net()
    q, k, v = (net.input(name, 1, 3, 3, 8) for name in "qkv")
    return net, net.scaled(net.op("MatMul", q, net.swap(k))), v


# --- the sum ---------------------------------------------------------------------------------------------------------------


def test_a_sum_that_drops_its_axis_belongs_to_other_rows() -> None:
    net, scores, v = cube()
    exponential = net.op("Exp", scores)
    total = net.op("ReduceSum", exponential, net.ints(-1), keepdims=0)
    net.output(net.op("MatMul", net.op("Div", exponential, total), v))
    assert_none(net.model())


@pytest.mark.parametrize("axes", ["none", "an input without a name", "an empty list"])
def test_a_sum_that_names_no_axes_runs_over_all(axes: str) -> None:
    for row in (True, False):
        net, scores, v = one_row() if row else cube()
        exponential = net.op("Exp", scores)
        given = {"none": [], "an input without a name": [""], "an empty list": [net.const([], np.int64)]}[axes]
        total = net.op("ReduceSum", exponential, *given)
        net.output(net.op("MatMul", net.op("Div", exponential, total, name="softmax"), v))
        if row:
            assert_fused(net.model(), softmax="softmax")
        else:
            assert_refused(net.model(), "softmax-axis")


def test_a_sum_over_no_axes_at_all_is_no_sum() -> None:
    """Source: onnx operator specification: with noop_with_empty_axes, a reduction over no axes does nothing."""
    net, scores, v = one_row()
    exponential = net.op("Exp", scores)
    total = net.op("ReduceSum", exponential, net.const([], np.int64), noop_with_empty_axes=1)
    net.output(net.op("MatMul", net.op("Div", exponential, total), v))
    assert_none(net.model())


def test_a_sum_over_axes_that_an_input_names_is_no_softmax() -> None:
    net, scores, v = one_row()
    exponential = net.op("Exp", scores)
    total = net.op("ReduceSum", exponential, net.input("axes", 1, dtype=np.int64))
    net.output(net.op("MatMul", net.op("Div", exponential, total), v))
    assert_none(net.model())


def test_a_maximum_that_drops_its_axis_is_that_of_other_rows() -> None:
    net, scores, v = cube()
    shifted = net.op("Sub", scores, net.op("ReduceMax", scores, axes=[-1], keepdims=0))
    exponential = net.op("Exp", shifted)
    total = net.op("ReduceSum", exponential, net.ints(-1))
    net.output(net.op("MatMul", net.op("Div", exponential, total), v))
    assert_none(net.model())


# --- logarithms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [-1, -2])
def test_the_logarithm_of_a_sum_runs_over_the_axes_that_it_names(axis: int) -> None:
    net = Net()
    q, kt, v = heads_in(net)
    scores = net.scaled(net.op("MatMul", q, kt))
    less = net.op("Sub", scores, net.op("ReduceLogSumExp", scores, axes=[axis]))
    net.output(net.op("MatMul", net.op("Exp", less, name="softmax"), v))
    if axis == -1:
        assert_fused(net.model(), softmax="softmax")
    else:
        assert_refused(net.model(), "softmax-axis")


def test_the_logarithm_of_a_sum_that_drops_its_axis_is_that_of_other_rows() -> None:
    net, scores, v = cube()
    less = net.op("Sub", scores, net.op("ReduceLogSumExp", scores, axes=[-1], keepdims=0))
    net.output(net.op("MatMul", net.op("Exp", less), v))
    assert_none(net.model())


# --- opsets ----------------------------------------------------------------------------------------------------------------


def by_rows_and_columns(opset: int) -> onnx.ModelProto:
    """Keys of 3 × 4 places, of which the softmax names the first axis."""
    net = Net(opset)
    q, k, v = net.input("q", 2, 5, 8), net.input("k", 2, 3, 4, 8), net.input("v", 2, 3, 4, 8)
    scores = net.scaled(net.op("Einsum", q, k, equation="bqd,bhwd->bqhw"))
    found = net.op("Softmax", scores, axis=2, name="softmax")
    net.output(net.op("Einsum", found, v, equation="bqhw,bhwd->bqd"), 3)
    return net.model()


def test_below_opset_13_all_axes_from_the_named_one_on_are_the_keys() -> None:
    assert_fused(by_rows_and_columns(12), softmax="softmax")
    assert_refused(by_rows_and_columns(13), "softmax-axis")


# --- the product is divided afterwards ---------------------------------------------------------------------------------


class Divided:
    """`(E·V) / ΣE`, or something else divided by ΣE."""

    def __init__(self) -> None:
        self.net = net = Net()
        q, kt, self.v = heads_in(net)
        scores = net.scaled(net.op("MatMul", q, kt))
        self.exponential = net.op("Exp", net.op("Sub", scores, net.op("ReduceMax", scores, axes=[-1])))

    def product(self, left: str | None = None, right: str | None = None) -> str:
        return str(self.net.op("MatMul", left or self.exponential, right or self.v))

    def model(self, product: str) -> onnx.ModelProto:
        net = self.net
        net.output(net.op("Div", product, net.op("ReduceSum", self.exponential, net.ints(-1)), name="softmax"))
        return net.model()


def test_a_product_that_is_divided_by_the_sum_of_its_exponentials_is_attention() -> None:
    made = Divided()
    assert_fused(made.model(made.product()), softmax="softmax", heads=HEADS)


def test_values_from_the_left_may_be_divided_afterwards() -> None:
    """Vᵀ·Eᵀ: queries stand last, and so does their sum."""
    net = Net()
    q, k, v = (net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "qkv")
    scores = net.scaled(net.op("MatMul", k, net.swap(q)))
    exponential = net.op("Exp", scores)
    total = net.op("ReduceSum", exponential, net.ints(-2))
    net.output(net.op("Div", net.op("MatMul", net.swap(v), exponential), total, name="softmax"))
    assert_fused(net.model(), softmax="softmax", heads=HEADS)


def test_an_input_that_is_divided_by_a_sum_of_exponentials_is_no_product() -> None:
    made = Divided()
    assert_none(made.model(made.net.input("other", 2, HEADS, 5, HEAD_DIM)))


def test_exponentials_that_are_changed_before_the_product_do_not_sum_to_what_divides_it() -> None:
    made = Divided()
    assert_none(made.model(made.product(made.net.op("Sqrt", made.exponential))))


def test_a_product_of_exponentials_with_weights_is_no_attention() -> None:
    made = Divided()
    assert_none(made.model(made.product(right=made.net.weight(2, HEADS, 5, HEAD_DIM))))


@pytest.mark.parametrize("what", ["exponential", "product"])
@pytest.mark.parametrize("how", ["output", "read"])
def test_exponentials_and_products_that_are_wanted_elsewhere_stay(what: str, how: str) -> None:
    made = Divided()
    product = made.product()
    wanted = made.exponential if what == "exponential" else product
    made.net.output(wanted if how == "output" else made.net.op("Neg", wanted))
    assert_none(made.model(product))


def test_without_queries_and_keys_a_divided_product_is_no_candidate() -> None:
    net = Net()
    exponential = net.op("Exp", net.input("x", 2, HEADS, 5, 5))
    product = net.op("MatMul", exponential, net.input("v", 2, HEADS, 5, HEAD_DIM))
    net.output(net.op("Div", product, net.op("ReduceSum", exponential, net.ints(-1))))
    assert_none(net.model())


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_a_product_with_a_factor_is_not_what_the_exponentials_sum_to(alpha: float) -> None:
    net = Net()
    q, k, v = (net.input(name, 5, 8) for name in "qkv")
    exponential = net.op("Exp", net.scaled(net.op("MatMul", q, net.turn(k, 1, 0))))
    product = net.op("Gemm", exponential, v, alpha=alpha)
    net.output(net.op("Div", product, net.op("ReduceSum", exponential, net.ints(-1)), name="softmax"), 2)
    if alpha == 1.0:
        assert_fused(net.model(), softmax="softmax")
    else:
        assert_none(net.model())


@pytest.mark.parametrize("equation", ["bnst,bnth->bnsh", "bnst,bnth->bsnh", "bnst,bnth->bnhs"])
def test_each_result_is_divided_by_the_sum_of_its_own_row(equation: str) -> None:
    """Heads, queries and channels are three each: only the axes themselves tell."""
    net = Net()
    q, k, v = net.input("q", 1, 3, 3, 3), net.input("k", 1, 3, 5, 3), net.input("v", 1, 3, 5, 3)
    exponential = net.op("Exp", net.scaled(net.op("MatMul", q, net.swap(k))))
    product = net.op("Einsum", exponential, v, equation=equation)
    net.output(net.op("Div", product, net.op("ReduceSum", exponential, net.ints(-1)), name="softmax"))
    if equation.endswith("bnsh"):
        assert_fused(net.model(), softmax="softmax")
    else:
        assert_none(net.model())


def test_a_sum_of_fewer_axes_than_the_result_meets_others() -> None:
    """Rows (3, 1) meet the last two axes of the result (3, 3, 4), and its first is theirs."""
    net = Net()
    q, k, v = net.input("q", 3, 8), net.input("k", 5, 8), net.input("v", 5, 3, 4)
    exponential = net.op("Exp", net.scaled(net.op("MatMul", q, net.turn(k, 1, 0))))
    product = net.op("Einsum", exponential, v, equation="st,thw->shw")
    net.output(net.op("Div", product, net.op("ReduceSum", exponential, net.ints(-1))), 3)
    assert_none(net.model())


def test_a_sum_that_widens_the_product_is_no_part_of_it() -> None:
    """Summed over the queries, with one channel in V: each is divided by five sums."""
    net = Net()
    q, kt, _ = heads_in(net)
    exponential = net.op("Exp", net.scaled(net.op("MatMul", q, kt)))
    product = net.op("MatMul", exponential, net.input("values", 2, HEADS, 5, 1))
    net.output(net.op("Div", product, net.op("ReduceSum", exponential, net.ints(-2))))
    assert_none(net.model())


# --- what is said of it ------------------------------------------------------------------------------------------------


def spelled(net: Net, scores: str, shifted: bool) -> str:
    inside = net.op("Sub", scores, net.op("ReduceMax", scores, axes=[-1])) if shifted else scores
    exponential = net.op("Exp", inside)
    return net.op("Div", exponential, net.op("ReduceSum", exponential, net.ints(-1)), name="softmax")


@pytest.mark.parametrize("shifted", [True, False])
def test_large_scores_are_a_case_of_the_proof_where_their_exponentials_are_finite(shifted: bool) -> None:
    net = Net()
    q, kt, v = heads_in(net)
    net.output(net.op("MatMul", spelled(net, net.scaled(net.op("MatMul", q, kt)), shifted), v))
    (site,) = onnx_attn.fuse(net.model()).report["candidates"]
    kinds = {each["kind"] for each in site["certificate"]["inputs"]}
    assert ("large" in kinds) == shifted
