"""What only looks like attention: classes, gates, pooling, talking heads, linear attention."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from checks import assert_fused, assert_no_attention, assert_refused, verdicts
from graphs import HEAD_DIM, HEADS, WIDTH, Net, heads_in, self_attention, small_site

import onnx_attn


def class_head(opset: int = 17) -> tuple[Net, str]:
    """A softmax over ten classes of `(B, S, 10)`."""
    net = Net(opset)
    return net, net.op("Softmax", net.linear(net.input("x", 2, 5, WIDTH), 10), axis=-1, name="softmax")


def test_softmax_over_classes_is_no_attention() -> None:
    net, classes = class_head()
    net.output(classes, 3)
    assert_no_attention(net.model(), "class-softmax")


def test_log_softmax_is_no_attention() -> None:
    net = Net()
    net.output(net.op("LogSoftmax", net.linear(net.input("x", 2, 5, WIDTH), 10), name="softmax"), 3)
    assert_no_attention(net.model(), "class-softmax")


def test_argmax_of_softmax_is_no_attention() -> None:
    net, classes = class_head()
    net.output(net.op("ArgMax", classes, axis=-1, keepdims=0), 2, np.int64)
    assert_no_attention(net.model(), "class-softmax")


def test_expected_value_over_constant_bins_is_no_attention() -> None:
    net, classes = class_head()
    net.output(net.op("MatMul", classes, net.const(np.arange(10.0)[:, None])), 3)
    assert_no_attention(net.model(), "class-softmax")


def test_similarity_of_images_and_texts_is_no_attention() -> None:
    net = Net()
    image, text = net.input("image", 3, WIDTH), net.input("text", 10, WIDTH)
    logits = net.scaled(net.op("MatMul", image, net.turn(text, 1, 0)), 100.0)
    net.output(net.op("Softmax", logits, name="softmax"), 2)
    assert_no_attention(net.model(), "class-softmax")


def gate_by_product(net: Net, x: str, gate: str) -> str:
    """Softmax × experts, summed over experts: `(B, S, 4)` and `(B, S, 4, E)`."""
    experts = net.reshape(net.linear(x, 4 * WIDTH), 0, 0, 4, WIDTH)
    weighed = net.op("Mul", net.op("Unsqueeze", gate, net.ints(-1)), experts)
    return net.op("ReduceSum", weighed, net.ints(2), keepdims=0)


def test_gate_that_multiplies_experts_is_no_attention() -> None:
    net = Net()
    x = net.input("x", 2, 5, WIDTH)
    gate = net.op("Softmax", net.linear(x, 4), name="softmax")
    net.output(net.op("Mul", gate, net.linear(x, 4)), 3)
    assert_no_attention(net.model(), "gating")


def test_sum_weighed_by_a_gate_is_no_attention() -> None:
    net = Net()
    x = net.input("x", 2, 5, WIDTH)
    net.output(gate_by_product(net, x, net.op("Softmax", net.linear(x, 4), name="softmax")), 3)
    assert_no_attention(net.model(), "gating", "no-value-product")


def test_router_that_takes_the_top_experts_is_no_attention() -> None:
    net = Net()
    gate = net.op("Softmax", net.linear(net.input("x", 2, 5, WIDTH), 8), name="softmax")
    values, places = net.op("TopK", gate, net.ints(2), outputs=2)
    net.output(values, 3)
    net.output(places, 3, np.int64)
    assert_no_attention(net.model(), "gating")


def test_channel_gate_between_two_attention_blocks_is_gating() -> None:
    """Both ways from the gate lead to products: those of other blocks."""
    net = Net()
    x = self_attention(net, net.input("x", 2, 5, WIDTH), "first")
    gate = net.reshape(net.linear(net.op("ReduceMean", x, axes=[1]), WIDTH), 0, 1, WIDTH)
    x = net.op("Mul", x, net.op("Softmax", gate, name="gate"))
    net.output(self_attention(net, x, "second"), 3)
    found = verdicts(net.model())
    assert found["first"][0] == found["second"][0] == "site"
    assert found["gate"] == ("not_attention", "gating")


def test_attention_pooling_with_a_learned_score_is_no_attention() -> None:
    net = Net()
    net.output(pooled(net, net.input("x", 2, 5, WIDTH)), 3)
    assert_no_attention(net.model(), "no-query-key-product", name="pooling")


def pooled(net: Net, x: str) -> str:
    """softmax over the sequence of a linear score, times x."""
    weights = net.op("Softmax", net.turn(net.linear(x, 1), 0, 2, 1), axis=-1, name="pooling")
    return net.op("MatMul", weights, x)


def test_attention_pooling_after_an_attention_block_is_no_attention() -> None:
    """Far above the pooling's scores there is a product of two activations, but it is the block's own."""
    net = Net()
    x = net.input("x", 2, 5, WIDTH)
    net.output(pooled(net, net.op("Add", x, self_attention(net, x, "block"))), 3)
    found = verdicts(net.model())
    assert found["block"][0] == "site"
    assert found["pooling"] == ("not_attention", "no-query-key-product")


def test_additive_attention_is_no_dot_product_attention() -> None:
    net = Net()
    x, y = net.input("x", 2, 1, WIDTH), net.input("y", 2, 5, WIDTH)
    mixed = net.op("Tanh", net.op("Add", net.linear(x, WIDTH), net.linear(y, WIDTH)))
    weights = net.op("Softmax", net.turn(net.linear(mixed, 1, bias=False), 0, 2, 1), name="softmax")
    net.output(net.op("MatMul", weights, y), 3)
    assert_no_attention(net.model(), "no-query-key-product")


@pytest.mark.parametrize("through_transpose", [False, True])
def test_linear_mixing_weights_are_no_query_key_product(through_transpose: bool) -> None:
    """`softmax(x·W)·V` with constant W is the same thing, however W is stored."""
    net = Net()
    x, v = net.input("x", 2, 5, WIDTH), net.input("v", 2, 7, WIDTH)
    weight = net.turn(net.weight(7, WIDTH), 1, 0) if through_transpose else net.weight(WIDTH, 7)
    net.output(net.op("MatMul", net.op("Softmax", net.op("MatMul", x, weight), name="softmax"), v), 3)
    assert_no_attention(net.model(), "no-query-key-product")


@pytest.mark.parametrize("after", [False, True], ids=["before softmax", "after softmax"])
def test_talking_heads_are_no_attention(after: bool) -> None:
    def mix(net: Net, value: str) -> str:
        mixed = net.op("MatMul", net.turn(value, 0, 2, 3, 1), net.weight(HEADS, HEADS))
        return net.turn(mixed, 0, 3, 1, 2)

    hooks = {"probabilities": mix} if after else {"scores": mix}
    assert_no_attention(small_site(**hooks), "talking-heads")


def test_heads_mixed_by_a_constant_on_the_left_are_no_attention() -> None:
    def mix(net: Net, value: str) -> str:
        flat = net.reshape(value, 0, 0, -1)
        return net.reshape(net.op("MatMul", net.weight(HEADS, HEADS), flat), 0, 0, 5, 5)

    for hook in ("scores", "probabilities"):
        assert verdicts(small_site(**{hook: mix}))["softmax"][0] != "site"


def test_linear_attention_is_no_attention() -> None:
    """softmax(Q) · (softmax(Kᵀ) · V): two softmaxes, neither over scores."""
    net = Net()
    q, kt, v = heads_in(net)
    context = net.op("MatMul", net.op("Softmax", kt, axis=-1, name="key"), v)
    net.output(net.op("MatMul", net.op("Softmax", q, axis=-1, name="query"), context))
    found = verdicts(net.model())
    assert {status for status, _ in found.values()} == {"not_attention"}
    assert found["query"][1] == "linear-attention"


def test_deformable_attention_is_no_attention() -> None:
    net = Net()
    x, sampled = net.input("x", 2, 5, WIDTH), net.input("sampled", 2, 5, 4, WIDTH)
    weights = net.op("Unsqueeze", net.op("Softmax", net.linear(x, 4), name="softmax"), net.ints(3))
    net.output(net.op("ReduceSum", net.op("Mul", weights, sampled), net.ints(2), keepdims=0), 3)
    assert_no_attention(net.model(), "gating", "no-value-product")


def test_linear_attention_after_an_attention_block_is_no_attention() -> None:
    net = Net()
    x = self_attention(net, net.input("x", 2, 5, WIDTH), "block")
    q, k, v = (net.split_heads(net.linear(x, HEADS * HEAD_DIM)) for _ in range(3))
    context = net.op("MatMul", net.op("Softmax", net.swap(k), axis=-1, name="key"), v)
    net.output(net.op("MatMul", net.op("Softmax", q, axis=-1, name="query"), context))
    found = verdicts(net.model())
    assert found["block"][0] == "site"
    assert found["query"][0] == found["key"][0] == "not_attention"


@pytest.mark.parametrize("hook", ["scores", "probabilities"])
def test_heads_mixed_by_a_convolution_are_no_attention(hook: str) -> None:
    model = small_site(**{hook: lambda net, value: net.op("Conv", value, net.weight(HEADS, HEADS, 1, 1))})
    assert verdicts(model)["softmax"][0] == "not_attention"


def spelled(net: Net, scores: str, shifted: bool = True, summed: str | None = None) -> str:
    """exp(x − max x) / Σ exp(x − max x) as plain nodes; `summed` replaces what is summed."""
    inside = net.op("Sub", scores, net.op("ReduceMax", scores, axes=[-1])) if shifted else scores
    exponential = net.op("Exp", inside)
    return net.op("Div", exponential, net.op("ReduceSum", summed or exponential, net.ints(-1)), name="softmax")


@pytest.mark.parametrize("shifted", [True, False])
def test_spelled_out_softmax_is_one(shifted: bool) -> None:
    net = Net()
    q, kt, v = heads_in(net)
    net.output(net.op("MatMul", spelled(net, net.scaled(net.op("MatMul", q, kt)), shifted), v))
    assert_fused(net.model(), softmax="softmax", heads=HEADS)


def in_logarithms(net: Net, scores: str) -> str:
    return net.op("Exp", net.op("LogSoftmax", scores, axis=-1, name="softmax"))


def by_log_sum(net: Net, scores: str) -> str:
    return net.op("Exp", net.op("Sub", scores, net.op("ReduceLogSumExp", scores, axes=[-1])), name="softmax")


def by_reciprocal(net: Net, scores: str) -> str:
    exponential = net.op("Exp", net.op("Sub", scores, net.op("ReduceMax", scores, axes=[-1])))
    return net.op(
        "Mul", exponential, net.op("Reciprocal", net.op("ReduceSum", exponential, net.ints(-1))), name="softmax"
    )


@pytest.mark.parametrize("spelling", [in_logarithms, by_log_sum, by_reciprocal], ids=lambda f: f.__name__)
def test_softmax_by_logarithms_or_reciprocals_is_one(spelling: Callable[[Net, str], str]) -> None:
    net = Net()
    q, kt, v = heads_in(net)
    net.output(net.op("MatMul", spelling(net, net.scaled(net.op("MatMul", q, kt))), v))
    assert_fused(net.model(), softmax="softmax", heads=HEADS)


@pytest.mark.parametrize("axis", [-2, 1])
def test_an_exponential_divided_by_a_sum_over_other_axes_is_refused(axis: int) -> None:
    net = Net()
    q, kt, v = heads_in(net)
    exponential = net.op("Exp", net.scaled(net.op("MatMul", q, kt)))
    divided = net.op("Div", exponential, net.op("ReduceSum", exponential, net.ints(axis)), name="softmax")
    net.output(net.op("MatMul", divided, v))
    assert_refused(net.model(), "softmax-axis")


def test_the_maximum_over_another_axis_is_no_shift_of_rows() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    scores = net.scaled(net.op("MatMul", q, kt))
    exponential = net.op("Exp", net.op("Sub", scores, net.op("ReduceMax", scores, axes=[2])))
    divided = net.op("Div", exponential, net.op("ReduceSum", exponential, net.ints(-1)), name="softmax")
    net.output(net.op("MatMul", divided, v))
    assert verdicts(net.model()).get("softmax", ("none",))[0] != "site"


def test_a_small_number_in_the_denominator_is_no_softmax() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    exponential = net.op("Exp", net.scaled(net.op("MatMul", q, kt)))
    total = net.op("Add", net.op("ReduceSum", exponential, net.ints(-1)), net.const(1e-3))
    net.output(net.op("MatMul", net.op("Div", exponential, total, name="softmax"), v))
    assert verdicts(net.model()).get("softmax", ("none",))[0] != "site"


def test_a_softmax_of_many_nodes_is_a_candidate_without_queries_and_keys_too() -> None:
    net = Net()
    _, _, v = heads_in(net)
    net.output(net.op("MatMul", spelled(net, net.input("x", 2, 2, 5, 5)), v))
    assert_no_attention(net.model(), "no-query-key-product")


def test_an_exponential_divided_by_the_sum_of_another_is_no_softmax() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    other = net.op("Exp", net.input("x", 2, 2, 5, 5))
    net.output(net.op("MatMul", spelled(net, net.op("MatMul", q, kt), summed=other), v))
    assert onnx_attn.inspect(net.model())["candidates"] == []


@pytest.mark.parametrize("opset", [12, 13])
def test_softmax_without_an_axis_is_that_of_its_opset(opset: int) -> None:
    """Source: onnx operator specification: from opset 13 on the last axis; before, all axes from the second on as one."""
    net = Net(opset)
    q, kt, v = heads_in(net)
    found = net.op("Softmax", net.scaled(net.op("MatMul", q, kt)), name="softmax")
    net.output(net.op("MatMul", found, v))
    if opset == 13:
        assert_fused(net.model())
    else:
        assert_refused(net.model(), "softmax-axis")


def test_sum_over_axes_of_who_knows_how_many_is_no_softmax() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    exponential = net.op("Exp", net.op("Smudge", net.op("MatMul", q, kt), domain="my.company"))
    total = net.op("ReduceSum", exponential, net.ints(-1))
    net.output(net.op("MatMul", net.op("Div", exponential, total), v))
    assert onnx_attn.inspect(net.model(my_company=1))["candidates"] == []


@pytest.mark.parametrize("between", ["Relu", "Identity", "a residual"])
def test_layers_behind_each_other_are_a_network_and_no_talking_heads(between: str) -> None:
    """Scores that a hidden layer reads are features of a classifier, whatever is multiplied by its choice."""
    net = Net()
    q, kt, v = heads_in(net)
    hidden = net.op("MatMul", net.op("MatMul", q, kt), net.weight(5, 5))
    if between == "a residual":
        net.output(net.op("Neg", hidden))
        hidden = net.op("Add", hidden, net.input("residual", 2, HEADS, 5, 5))
    else:
        hidden = net.op(between, hidden)
    logits = net.op("MatMul", hidden, net.weight(5, 5))
    net.output(net.op("MatMul", net.op("Softmax", logits, axis=-1, name="softmax"), v))
    report = onnx_attn.inspect(net.model())
    assert [(each["status"], each["code"]) for each in report["candidates"]] == [
        ("not_attention", "no-query-key-product")
    ]
