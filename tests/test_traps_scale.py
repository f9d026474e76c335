"""What happens to the scores: factors that are and that are no scale, masks of all shapes, and other changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from checks import assert_fused, assert_no_attention, assert_refused, feeds
from graphs import HEAD_DIM, HEADS, Net, heads_in, small_site

ROOT = HEAD_DIM**-0.5
Change = Callable[[Net, str], str]


def site_on(change_q: Change | None = None, change_k: Change | None = None) -> onnx.ModelProto:
    net = Net()
    q, kt, v = heads_in(net)
    q = change_q(net, q) if change_q else q
    kt = change_k(net, kt) if change_k else kt
    net.output(net.sdpa(q, kt, v, lambda s: net.scaled(s, 0.5)))
    return net.model()


# --- scale ---------------------------------------------------------------------------------------------------------------

SCALES: dict[str, tuple[Change, float]] = {
    "mul": (lambda net, s: net.scaled(s), ROOT),
    "constant on the left": (lambda net, s: net.op("Mul", net.const(ROOT), s), ROOT),
    "div": (lambda net, s: net.op("Div", s, net.const(3.0)), 1 / 3),
    "neg": (lambda net, s: net.op("Neg", net.scaled(s)), -ROOT),
    "one element, four axes": (lambda net, s: net.op("Mul", s, net.const([[[[ROOT]]]])), ROOT),
    "two factors": (lambda net, s: net.op("Div", net.scaled(s, 0.5), net.const(4.0)), 0.125),
    "none": (lambda net, s: s, 1.0),
    "computed from static sizes": (
        lambda net, s: net.op(
            "Div",
            s,
            net.op("Sqrt", net.op("Cast", net.op("Gather", net.op("Shape", "q"), net.const(3, np.int64)), to=1)),
        ),
        ROOT,
    ),
}


@pytest.mark.parametrize("spelling", SCALES)
def test_scale_on_the_scores_is_read(spelling: str) -> None:
    change, scale = SCALES[spelling]
    assert_fused(small_site(scores=change), scale=scale)


def test_scales_on_both_operands_and_the_scores_are_one_number() -> None:
    half = lambda net, value: net.op("Mul", net.const(0.3), value)  # noqa: E731
    assert_fused(site_on(half, lambda net, k: net.op("Div", k, net.const(5.0))), scale=0.3 / 5 * 0.5)


NO_SCALES: dict[str, Change] = {
    "constant divided by scores": lambda net, s: net.op("Div", net.const(3.0), s),
    "temperature of each head at run time": lambda net, s: net.op("Mul", s, net.input("scale", HEADS, 1, 1)),
    "numbers that vary with the keys at run time": lambda net, s: net.op("Mul", s, net.input("weights", 5)),
    "run-time number": lambda net, s: net.op("Mul", s, net.input("scale", 1)),
    "run-time divisor": lambda net, s: net.op("Div", s, net.input("scale", 1)),
    "one over zero": lambda net, s: net.op("Div", s, net.const(0.0)),
}


@pytest.mark.parametrize("spelling", NO_SCALES)
def test_what_is_not_one_constant_number_is_no_scale(spelling: str) -> None:
    assert_refused(small_site(scores=NO_SCALES[spelling]), "scale-not-constant")


def test_scale_that_follows_a_dynamic_length_is_no_constant() -> None:
    def by_length(net: Net, s: str) -> str:
        length = net.op("Gather", net.op("Shape", "k"), net.const(2, np.int64))
        return net.op("Div", s, net.op("Sqrt", net.op("Cast", length, to=1)))

    assert_refused(small_site(sizes=("batch", "queries", "keys"), scores=by_length), "scale-not-constant")


def test_constant_divided_by_the_query_is_no_scale() -> None:
    assert_fused(site_on(lambda net, q: net.op("Div", net.const(3.0), q)), scale=0.5)


def test_constant_divided_by_the_key_is_no_scale() -> None:
    assert_fused(site_on(None, lambda net, k: net.op("Div", net.const(3.0), k)), scale=0.5)


def test_scale_of_each_head_stays_on_the_query() -> None:
    factors = np.reshape([0.2, 0.3], (HEADS, 1, 1))
    assert_fused(site_on(lambda net, q: net.op("Mul", q, net.const(factors))), scale=0.5)


def test_run_time_scale_stays_on_the_query() -> None:
    assert_fused(site_on(lambda net, q: net.op("Mul", q, net.input("scale", 1))), scale=0.5)


def test_scaled_query_that_is_also_an_output_is_scaled_once() -> None:
    def scaled(net: Net, q: str) -> str:
        q = net.scaled(q, 0.3)
        net.output(q)
        return q

    assert_fused(site_on(scaled), scale=0.15)


def test_factor_on_the_values_is_no_part_of_the_scale() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    net.output(net.sdpa(q, kt, net.scaled(v, 3.0)))
    assert_fused(net.model(), scale=ROOT)


@pytest.mark.parametrize("op", ["Mul", "Div"])
@pytest.mark.parametrize("shape", [(HEADS, 1, 1), (1, HEADS, 5, 1)], ids=["of each head", "of each query"])
def test_constant_factor_that_is_the_same_for_all_keys_stays_a_factor(op: str, shape: tuple[int, ...]) -> None:
    factors = np.random.default_rng(0).uniform(0.2, 0.9, shape)
    found = assert_fused(
        small_site(scores=lambda net, s: net.op(op, net.scaled(s), net.const(factors))), scale=ROOT, masks=[]
    )
    assert found is not None


@pytest.mark.parametrize("op", ["Mul", "Div"])
def test_scale_after_an_added_mask_scales_the_mask_too(op: str) -> None:
    def change(net: Net, s: str) -> str:
        return net.op(op, net.op("Add", s, net.input("mask", 2, 1, 5, 5)), net.const(0.3))

    assert_fused(small_site(scores=change), scale=1.0)


def test_scale_after_a_where_scales_what_is_filled_in_too() -> None:
    def change(net: Net, s: str) -> str:
        return net.scaled(net.op("Where", net.input("allowed", 5, 5, dtype=bool), s, net.const(-5.0)), 0.3)

    assert_fused(small_site(scores=change), scale=1.0)


def test_scale_between_two_masks_keeps_its_place() -> None:
    def change(net: Net, s: str) -> str:
        first = net.scaled(net.op("Add", net.scaled(s, 0.7), net.input("a", 5, 5)), 0.3)
        return net.op("Add", first, net.input("b", 5, 5))

    assert_fused(small_site(scores=change), scale=0.7)


READ: dict[str, tuple[Change, float]] = {
    "mask is subtracted": (lambda net, s: net.op("Sub", net.scaled(s), net.input("mask", 2, 1, 5, 5)), ROOT),
    "subtracted from a mask": (lambda net, s: net.op("Sub", net.input("mask", 2, 1, 5, 5), net.scaled(s)), -ROOT),
    "softcap": (lambda net, s: net.scaled(net.op("Tanh", net.scaled(s, 0.1)), 10.0), 1.0),
    "softcap before a mask": (
        lambda net, s: net.op("Add", net.scaled(net.op("Tanh", net.scaled(s, 0.1)), 7.0), net.input("mask", 5, 5)),
        0.7,
    ),
    "kept above a number": (
        lambda net, s: net.op("Max", net.op("Add", net.scaled(s), net.input("mask", 5, 5)), net.const(-1.0)),
        ROOT,
    ),
}


@pytest.mark.parametrize("change", READ)
def test_what_else_happens_to_scores_is_kept_in_its_place(change: str) -> None:
    make, scale = READ[change]
    assert_fused(small_site(scores=make), scale=scale)


# --- other changes ---------------------------------------------------------------------------------------------------------

CHANGES: dict[str, Change] = {
    "clipped": lambda net, s: net.op("Clip", s, net.const(-1.0), net.const(1.0)),
    "attention sink": lambda net, s: net.op("Concat", s, net.input("sink", 2, HEADS, 5, 1), axis=-1),
    "squared": lambda net, s: net.op("Pow", s, net.const(2.0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_scores_are_refused(change: str) -> None:
    def drop_sink(net: Net, p: str) -> str:
        return net.op("Slice", p, net.ints(0), net.ints(5), net.ints(3))

    hooks = {"probabilities": drop_sink} if change == "attention sink" else {}
    assert_refused(small_site(scores=CHANGES[change], **hooks), "scores-changed")


def test_where_whose_fill_is_no_constant_is_refused() -> None:
    def change(net: Net, s: str) -> str:
        return net.op("Where", net.input("allowed", 5, 5, dtype=bool), s, net.input("fill", 1))

    assert_refused(small_site(scores=change), "scores-changed")


def test_where_that_fills_each_key_with_another_number_is_refused() -> None:
    def change(net: Net, s: str) -> str:
        return net.op("Where", net.input("allowed", 5, 5, dtype=bool), s, net.const(-np.arange(1.0, 6.0)))

    assert_refused(small_site(scores=change), "scores-changed")


def test_mask_that_makes_the_scores_larger_is_refused() -> None:
    """Scores of one batch entry, masks of three: the result has three, so Q·Kᵀ alone does not make the scores."""
    net = Net()
    q, kt, v = heads_in(net, 1)
    mask = net.input("mask", 3, 1, 5, 5)
    net.output(net.sdpa(q, kt, v, lambda s: net.op("Add", net.scaled(s), mask)))
    assert_refused(net.model(), "scores-changed", "shape-unknown")


# --- masks -----------------------------------------------------------------------------------------------------------------

MASKS = {
    "full": (2, HEADS, 5, 5),
    "over heads": (2, 1, 5, 5),
    "over queries": (2, 1, 1, 5),
    "over batch": (1, HEADS, 5, 5),
    "over keys": (2, HEADS, 5, 1),
    "two axes": (5, 5),
    "keys only": (5,),
    "one number": (),
}


@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("first", [False, True], ids=["scores + mask", "mask + scores"])
def test_added_mask_broadcasts_as_before(shape: tuple[int, ...], first: bool) -> None:
    def change(net: Net, s: str) -> str:
        pair = (net.scaled(s), net.input("mask", *shape))
        return net.op("Add", *(pair[::-1] if first else pair))

    assert_fused(small_site(scores=change), masks=[{"kind": "additive", "shape": list(shape)}], scale=ROOT)


@pytest.mark.parametrize("keep", [False, True], ids=["mask means fill", "mask means keep"])
@pytest.mark.parametrize("fill", [-1e4, float(np.finfo(np.float32).min), -np.inf])
def test_where_mask_keeps_its_polarity_and_fill(keep: bool, fill: float) -> None:
    def change(net: Net, s: str) -> str:
        pair = (net.scaled(s), net.const(fill))
        return net.op("Where", net.input("m", 2, 1, 1, 5, dtype=bool), *(pair if keep else pair[::-1]))

    model = small_site(scores=change)
    inputs = feeds(model)
    inputs["m"] = np.asarray([[[[keep, keep, not keep, keep, not keep]]]] * 2)
    assert_fused(model, inputs, masks=[{"kind": "boolean", "shape": [2, 1, 1, 5]}])


@pytest.mark.parametrize("lowest", [-np.inf, float(np.finfo(np.float32).min)])
def test_row_masked_throughout_answers_as_before(lowest: float) -> None:
    model = small_site(scores=lambda net, s: net.op("Add", net.scaled(s), net.input("mask", 5, 5)))
    inputs = feeds(model)
    inputs["mask"][2] = lowest
    assert_fused(model, inputs)


def test_two_masks_keep_their_order() -> None:
    def change(net: Net, s: str) -> str:
        filled = net.op("Where", net.input("allowed", 5, 5, dtype=bool), net.scaled(s), net.const(-2.0))
        return net.op("Add", filled, net.input("bias", 1, HEADS, 5, 5))

    kinds = [{"kind": "boolean", "shape": [5, 5]}, {"kind": "additive", "shape": [1, HEADS, 5, 5]}]
    assert_fused(small_site(scores=change), masks=kinds)


def test_constant_mask_stays_a_mask() -> None:
    causal = np.triu(np.full((5, 5), -1e4), 1)
    model = small_site(scores=lambda net, s: net.op("Add", net.scaled(s), net.const(causal)))
    assert_fused(model, masks=[{"kind": "additive", "shape": [5, 5]}])


def test_bias_that_is_itself_a_product_is_a_mask() -> None:
    def change(net: Net, s: str) -> str:
        bias = net.op("MatMul", net.input("a", 2, HEADS, 5, 3), net.input("b", 2, HEADS, 3, 5))
        return net.op("Add", net.scaled(s), bias)

    assert_fused(small_site(scores=change), masks=[{"kind": "additive", "shape": [2, HEADS, 5, 5]}], scale=ROOT)


@pytest.mark.parametrize("position_first", [False, True])
def test_product_of_query_and_learned_positions_is_a_mask_whatever_its_place(position_first: bool) -> None:
    """Q·Rᵀ with constant R is no Q·Kᵀ, though R is stored the other way round."""
    net = Net()
    q, kt, v = heads_in(net)
    position = net.op("MatMul", q, net.turn(net.weight(5, HEAD_DIM), 1, 0))
    pair = lambda s: (net.scaled(s), position)[:: -1 if position_first else 1]  # noqa: E731
    net.output(net.sdpa(q, kt, v, lambda s: net.op("Add", *pair(s))))
    assert_fused(net.model(), scale=ROOT)


@pytest.mark.parametrize("order", ["scores first", "temperature first"])
def test_temperature_a_head_multiplies_in_either_order(order: str) -> None:
    def scores(net: Net, s: str) -> str:
        temperature = net.const(np.abs(net.rng.standard_normal((HEADS, 1, 1))) + 0.5)
        return net.op("Mul", *((s, temperature) if order == "scores first" else (temperature, s)))

    assert_fused(small_site(scores=scores))


def test_temperature_a_head_that_scores_divide_is_no_factor() -> None:
    def scores(net: Net, s: str) -> str:
        return net.op("Div", net.const(np.abs(net.rng.standard_normal((HEADS, 1, 1))) + 0.5), net.op("Exp", s))

    assert_no_attention(small_site(scores=scores), "no-query-key-product")


def test_temperature_a_head_divided_by_the_scores_themselves() -> None:
    def scores(net: Net, s: str) -> str:
        return net.op("Div", net.const(np.abs(net.rng.standard_normal((HEADS, 1, 1))) + 0.5), s)

    assert_refused(small_site(scores=scores), "scale-not-constant")
