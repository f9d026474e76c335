"""Conditions around a softmax: what is said where both products stop, in bodies, of axes of channels, and of values that are made
from another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from checks import assert_fused, assert_no_attention, assert_refused, verdicts
from graphs import HEAD_DIM, HEADS, WIDTH, Net, heads_in, small_site
from knobs import Block, Knobs
from onnx import TensorProto, helper

import onnx_attn
from onnx_attn.graph.view import GraphView
from onnx_attn.recognize.candidates import recognize
from onnx_attn.recognize.channels import Run, runs_in
from onnx_attn.site import engine_name

# --- which of two reasons is said ------------------------------------------------------------------------------------------


def clipped(net: Net, scores: str) -> str:
    return net.op("Clip", scores, net.const(-1.0), net.const(1.0))


def heads_mixed(net: Net, p: str) -> str:
    return net.turn(net.op("MatMul", net.turn(p, 0, 2, 3, 1), net.weight(HEADS, HEADS)), 0, 3, 1, 2)


def test_changed_scores_are_attention_though_the_values_are_a_product() -> None:
    """Linear attention has no Q·Kᵀ; this one has it, and something happens to it."""
    net = Net()
    q, kt, _ = heads_in(net)
    v = net.op("MatMul", net.input("a", 2, HEADS, 5, 3), net.input("b", 2, HEADS, 3, HEAD_DIM))
    net.output(net.sdpa(q, kt, v, scores=lambda s: clipped(net, s)))
    assert_refused(net.model(), "scores-changed")


def test_changed_scores_are_told_before_heads_that_are_mixed_behind_them() -> None:
    assert_refused(small_site(scores=clipped, probabilities=heads_mixed), "scores-changed")


def test_mixed_heads_without_queries_and_keys_are_no_attention_for_want_of_these() -> None:
    net = Net()
    p = net.op("Softmax", net.input("x", 2, HEADS, 5, 5), axis=-1, name="softmax")
    net.output(net.op("MatMul", heads_mixed(net, p), net.input("v", 2, HEADS, 5, HEAD_DIM)))
    assert_no_attention(net.model(), "no-query-key-product")


@pytest.mark.parametrize("read", [False, True])
def test_linear_attention_is_that_whoever_reads_the_queries(read: bool) -> None:
    net = Net()
    q, kt, v = heads_in(net)
    context = net.op("MatMul", net.op("Softmax", kt, axis=-1, name="key"), v)
    query = net.op("Softmax", q, axis=-1, name="query")
    if read:
        net.output(net.op("Neg", query))
    net.output(net.op("MatMul", query, context))
    assert verdicts(net.model())["query"] == ("not_attention", "linear-attention")


# --- bodies ----------------------------------------------------------------------------------------------------------------


def in_a_branch(net: Net, nodes: list[onnx.NodeProto], *weights: onnx.TensorProto) -> onnx.ModelProto:
    """An If; the last of these nodes makes its first branch's `y`."""
    out = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "other_y")]
    then = helper.make_graph(nodes, "then", [], out[:1], weights)
    other = helper.make_graph([helper.make_node("Neg", [net.input("z", 2)], ["other_y"])], "other", [], out[1:])
    net.output(net.op("If", net.input("flag", dtype=bool), name="choice", then_branch=then, else_branch=other), 4)
    return net.model(my_company=1)


@pytest.mark.parametrize("weights_first", [False, True])
def test_classes_and_weights_in_a_body_of_unknown_shapes_are_no_attention(weights_first: bool) -> None:
    net = Net()
    x = net.op("Smudge", net.input("x", 5, 5), domain="my.company")
    weight = helper.make_tensor("w", TensorProto.FLOAT, [5, 5], np.ones(25))
    nodes = [
        helper.make_node("Softmax", [x], ["p"], axis=-1, name="softmax"),
        helper.make_node("MatMul", ["w", "p"] if weights_first else ["p", "w"], ["y"]),
    ]
    assert_no_attention(in_a_branch(net, nodes, weight), "class-softmax")


def test_an_engine_tells_of_a_body_s_softmax_of_many_nodes_under_the_name_of_its_product() -> None:
    net = Net()
    x = net.op("Smudge", net.input("x", 5, 5), domain="my.company")
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [-1])
    nodes = [
        helper.make_node("Exp", [x], ["e"]),
        helper.make_node("ReduceSum", ["e", "axes"], ["sum"]),
        helper.make_node("Div", ["e", "sum"], ["p"], name="softmax"),
        helper.make_node("MatMul", ["p", x], ["y"], name="values"),
    ]
    (candidate,) = recognize(GraphView(in_a_branch(net, nodes, axes)))
    assert (candidate.name, engine_name(candidate)) == ("softmax", "values")


def test_the_refusal_names_a_reader_beside_a_branch_that_weighs_the_values() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    p = net.op("Softmax", net.scaled(net.op("MatMul", q, kt)), axis=-1, name="softmax")
    net.output(net.op("Neg", p, name="the_other_reader"))
    model = in_a_branch(net, [helper.make_node("MatMul", [p, v], ["y"])])
    assert_refused(model, "probabilities-used")
    assert onnx_attn.inspect(model)["candidates"][0]["node"] == "the_other_reader"


# --- the name under which an engine tells of it -----------------------------------------------------------------------


def one_node(net: Net, scores: str) -> str:
    return net.op("Softmax", scores, name="softmax")


def in_logarithms(net: Net, scores: str) -> str:
    return net.op("Exp", net.op("LogSoftmax", scores, axis=-1, name="softmax"))


def in_many_nodes(net: Net, scores: str) -> str:
    exponential = net.op("Exp", scores)
    return net.op("Div", exponential, net.op("ReduceSum", exponential, net.ints(-1)), name="softmax")


def kept(net: Net, p: str) -> str:
    return p


def scaled_afterwards(net: Net, p: str) -> str:
    return net.op("Mul", p, net.const(0.5), name="change")


def read_elsewhere(net: Net, p: str) -> str:
    net.output(net.op("Neg", p))
    return p


@pytest.mark.parametrize("softmax", [one_node, in_many_nodes, in_logarithms])
@pytest.mark.parametrize("use", [kept, scaled_afterwards, read_elsewhere])
def test_an_engine_tells_of_many_nodes_under_the_name_of_what_reads_them(
    softmax: Callable[[Net, str], str], use: Callable[[Net, str], str]
) -> None:
    """A softmax of one node keeps its own name in an engine; of many, the compiler names none as the graph does."""
    net = Net()
    q, kt, v = heads_in(net)
    found = use(net, softmax(net, net.scaled(net.op("MatMul", q, kt))))
    net.output(net.op("MatMul", found, v, name="values"))
    (candidate,) = recognize(GraphView(net.model()))
    assert candidate.name == "softmax"
    reader = "change" if use is scaled_afterwards else "values"
    assert engine_name(candidate) == ("softmax" if softmax is one_node else reader)


# --- axes of channels ------------------------------------------------------------------------------------------------------


def test_heads_that_are_repeated_behind_their_layer_are_heads() -> None:
    """Q comes from outside, so that K's layer tells."""
    net = Net()
    x = net.input("x", 2, 7, WIDTH)

    def repeated() -> str:
        heads = net.op("Unsqueeze", net.split_heads(net.linear(x, 2 * 8), 2, 8), net.ints(2))
        return net.reshape(net.op("Expand", heads, net.ints(2, 2, 3, 7, 8)), 2, 6, 7, 8)

    net.output(net.sdpa(net.input("q", 2, 6, 5, 8), net.swap(repeated()), repeated()))
    assert_fused(net.model(), heads=6, kv_heads=2)


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"sequence": 0}], ids=str)
def test_a_block_on_nothing_at_all_is_read(sizes: dict[str, int]) -> None:
    assert verdicts(Block(Knobs(**sizes)).model())["softmax"] == ("site", None)  # type: ignore[arg-type]


ROWS, CHANNELS = 4, 6
COUNTED = np.arange(ROWS * CHANNELS).reshape(ROWS, CHANNELS)
RUNS: dict[str, tuple[np.ndarray, list[list[Run]] | None]] = {
    "as it is": (COUNTED, [[Run(4, False)], [Run(6, True)]]),
    "rolled": (np.roll(COUNTED, 1, axis=0), [[Run(4, False)], [Run(6, True)]]),
    "one row": (COUNTED[:1], [[], [Run(6, True)]]),
    "rows that are copied": (
        np.stack([np.roll(COUNTED, 1, axis=0)] * 3),
        [[Run(3, False)], [Run(4, False)], [Run(6, True)]],
    ),
    "rows of channels": (COUNTED.reshape(-1), [[Run(4, False), Run(6, True)]]),
    "channels of rows": (COUNTED.T.reshape(-1), [[Run(6, True), Run(4, False)]]),
    "both at once": (np.asarray([COUNTED[0, 0], COUNTED[1, 1], COUNTED[0, 2], COUNTED[1, 3]]), None),
    "rows that follow channels": (np.asarray([COUNTED[0, 0], COUNTED[1, 0], COUNTED[2, 1], COUNTED[3, 1]]), None),
    "nothing": (COUNTED[:0], None),
}


@pytest.mark.parametrize("case", RUNS)
def test_runs_over_channels_are_told_from_runs_over_rows(case: str) -> None:
    index, runs = RUNS[case]
    assert runs_in(index, (ROWS, CHANNELS), {1}) == runs
