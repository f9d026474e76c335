"""The pattern language: what matches, in which orders, what does not, and how far it came."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import HEAD_DIM, Net, small_site
from hypothesis import given, settings
from hypothesis import strategies as st
from support import EXPORTS

from onnx_attn.graph.view import GraphView
from onnx_attn.match import (
    HERE,
    Match,
    Pattern,
    PatternError,
    any_order,
    chain,
    const,
    either,
    explain,
    find,
    follow,
    fork,
    maybe,
    op,
    repeat,
    require,
    var,
)
from onnx_attn.match.examples import dropout, parallel_linears, scaled_softmax

ATTENTION = chain(
    op("MatMul", var("query"), var("key")),
    repeat(either(op("Mul", HERE, const(name="scale")), op("Add", HERE, var("mask")))),
    op("Softmax", HERE, axis=-1, name="softmax"),
    maybe(op("Dropout", HERE)),
    op("MatMul", HERE, var("value")),
)


def unary(*ops: str, opset: int = 17) -> tuple[Net, str]:
    net = Net(opset)
    value = net.input("x", 2, 3)
    for each in ops:
        value = net.op(each, value)
    net.output(value, 2)
    return net, value


def test_a_chain_is_read_as_it_is_written() -> None:
    (match,) = find(ATTENTION, small_site())
    assert (match["query"].name, match["value"].name) == ("q", "v")
    assert match.number("scale") == pytest.approx(HEAD_DIM**-0.5)
    assert match.node("softmax").op == "Softmax"
    assert "mask" not in match
    assert [node.op for node in match.nodes] == ["MatMul", "Softmax", "Mul", "MatMul"]


@pytest.mark.parametrize("count", range(5))
def test_repeated_steps_match_as_often_as_they_stand(count: int) -> None:
    net, _value = unary("Exp", *["Neg"] * count, "Relu")
    pattern = chain(op("Exp", var("x")), repeat(op("Neg", HERE), at_most=3), op("Relu", HERE))
    assert len(list(find(pattern, net.model()))) == (count <= 3)
    at_least = chain(op("Exp", var("x")), repeat(op("Neg", HERE), at_least=2, at_most=3), op("Relu", HERE))
    assert len(list(find(at_least, net.model()))) == (2 <= count <= 3)


@pytest.mark.parametrize("operator", ["Add", "Mul", "Sub", "Div", "Max"])
def test_only_operators_that_commute_do(operator: str) -> None:
    net = Net()
    a, b = net.input("a", 2, 3), net.input("b", 2, 3)
    net.output(net.op(operator, net.op("Exp", a), net.op("Neg", b)), 2)
    forwards = op(operator, op("Exp", var("a")), op("Neg", var("b")))
    backwards = op(operator, op("Neg", var("b")), op("Exp", var("a")))
    commutes = operator in ("Add", "Mul", "Max")
    assert len(list(find(forwards, net.model()))) == 1
    assert len(list(find(backwards, net.model()))) == commutes
    assert len(list(find(any_order(backwards), net.model()))) == 1


def test_matmul_operands_have_their_order() -> None:
    swapped = chain(op("Softmax", var("scores")), op("MatMul", var("value"), HERE))
    assert list(find(swapped, small_site())) == []


def test_a_name_is_one_value() -> None:
    net = Net()
    x, y = net.input("x", 2, 3), net.input("y", 2, 3)
    net.output(net.op("Sub", x, net.op("ReduceMax", x)), 2)
    net.output(net.op("Sub", x, net.op("ReduceMax", y)), 2)
    pattern = op("Sub", var("x"), op("ReduceMax", var("x")))
    (match,) = find(pattern, net.model())
    assert match["x"].name == "x"
    assert "'x' again" in str(explain(pattern, net.model())[0])


def test_two_nodes_of_a_pattern_are_two_of_the_graph() -> None:
    net = Net()
    e = net.op("Exp", net.input("x", 2, 3))
    net.output(net.op("Add", e, e), 2)
    assert list(find(op("Add", op("Exp", var("x")), op("Exp", var("y"))), net.model())) == []
    assert len(list(find(op("Add", var("e", op("Exp", var("x"))), var("e")), net.model()))) == 1


def test_a_step_may_say_here_twice() -> None:
    net = Net()
    p = net.op("Softmax", net.input("x", 2, 3))
    net.output(net.op("Where", net.op("IsNaN", p), net.const(0.0), p), 2)
    guard = chain(op("Softmax", var("x")), op("Where", op("IsNaN", HERE), const(0.0), HERE))
    assert len(list(find(guard, net.model()))) == 1


def test_a_condition_says_why() -> None:
    wide = require(op("Softmax", var("x")), lambda match: match.view.rank(match["x"]) == 3, "three axes are wanted")
    assert list(find(wide, small_site())) == []
    assert explain(wide, small_site())[0].reason == "three axes are wanted"


def test_a_failure_tells_how_far_it_came_and_what_stopped_it() -> None:
    pattern = chain(
        op("MatMul", var("q"), var("k")), op("Tanh", HERE), op("Softmax", HERE), op("MatMul", HERE, var("v"))
    )
    failure = explain(pattern, small_site())[0]
    assert not failure
    assert (failure.matched, failure.reason) == (2, "expected Tanh, found Mul")
    assert [node.op for node in failure.nodes] == ["MatMul", "Softmax"]
    assert str(failure).startswith("2 nodes matched, then at 'Mul_2'")


def test_of_several_ways_the_one_that_came_furthest_is_told() -> None:
    pattern = either(
        op("MatMul", op("Relu", var("x")), var("v")), op("MatMul", op("Softmax", op("Exp", var("x"))), var("v"))
    )
    assert explain(pattern, small_site())[0].reason == "expected Exp, found Mul"


def test_results_attributes_and_domains_are_looked_at() -> None:
    net = Net()
    first, second = net.op("Split", net.input("x", 2, 6), net.ints(3, 3), outputs=2, axis=1)
    net.output(net.op("Exp", second), 2)
    net.output(first, 2)
    assert len(list(find(op("Exp", op("Split", var("x"), result=1, axis=1)), net.model()))) == 1
    assert list(find(op("Exp", op("Split", var("x"), result=0)), net.model())) == []
    assert list(find(op("Exp", op("Split", var("x"), result=1, axis=0)), net.model())) == []
    assert list(find(op("Softmax", var("x"), domain="com.microsoft"), small_site())) == []


def test_constants_are_weights_and_constant_nodes() -> None:
    net = Net()
    node = net.op("Constant", value=onnx.numpy_helper.from_array(np.float32(0.5)))
    net.output(net.op("Mul", node, net.input("x", 2, 3)), 2)
    (match,) = find(op("Mul", var("x"), const(name="factor")), net.model())
    assert match.number("factor") == 0.5
    assert match["x"].name == "x"
    assert list(find(op("Mul", var("x"), const(2.0)), net.model())) == []


def test_a_fork_wants_distinct_nodes() -> None:
    net = Net()
    x = net.input("x", 2, 20)
    for _ in range(2):
        net.output(net.linear(x, 24, bias=False), 2)
    two = fork(var("x"), op("MatMul", var("x"), var("a")), op("MatMul", var("x"), var("b")))
    three = fork(var("x"), *(op("MatMul", var("x"), var(name)) for name in "abc"))
    assert [match["x"].name for match in find(two, net.model())] == ["x"]
    assert list(find(three, net.model())) == []


def test_following_downwards_sees_who_else_reads() -> None:
    net = Net()
    e = net.op("Exp", net.input("x", 2, 3))
    net.output(net.op("Relu", net.op("Neg", e)), 2)
    steps = [op("Exp", HERE), repeat(op("Neg", HERE)), op("Relu", HERE)]
    view = GraphView(net.model())
    (x,) = list(view.graph.inputs)
    assert isinstance(follow(steps, view, x), Match)
    net.output(net.op("Abs", e, name="other"), 2)
    view = GraphView(net.model())
    failure = follow(steps, view, view.graph.inputs[0])
    assert not isinstance(failure, Match)
    assert isinstance(follow(steps, view, view.graph.inputs[0], only=False), Match)


def test_values_of_bodies_are_no_part_of_the_main_graph() -> None:
    net = Net()
    x = net.input("x", 2, 3)
    info = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    bodies = [
        onnx.helper.make_graph([onnx.helper.make_node("Exp", [x], ["y"])], name, [], [info]) for name in ("yes", "no")
    ]
    net.output(net.op("If", net.input("flag", dtype=bool), then_branch=bodies[0], else_branch=bodies[1]), 2)
    assert list(find(op("Exp", var("x")), net.model())) == []


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: op(""),
        lambda: op("Add", "x"),  # type: ignore[arg-type]
        lambda: var(""),
        lambda: either(var("x")),
        lambda: chain(var("x"), op("Exp", var("y"))),
        lambda: repeat(op("Exp", HERE), at_least=3, at_most=2),
        lambda: maybe(op("Exp", var("x"))),
        lambda: fork(var("x"), op("Exp", var("y"))),
        lambda: list(find(var("x"), small_site())),
        lambda: list(find(op("Softmax", HERE), small_site())),
        lambda: follow([op("Exp", var("x"))], GraphView(small_site()), GraphView(small_site()).graph.inputs[0]),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_an_error(wrong: object) -> None:
    with pytest.raises(PatternError):
        wrong()  # type: ignore[operator]


UNARY = ("Exp", "Neg", "Relu", "Abs")


@st.composite
def expressions(draw: st.DrawFn) -> tuple[Net, str, Pattern, list[str]]:
    """A random graph, a value in it, the pattern that describes it, and the operators in it."""
    net = Net()
    inputs = [net.input(name, 2, 3) for name in "abc"]

    def build(level: int) -> tuple[str, Pattern, list[str]]:
        if level == 0 or draw(st.integers(0, 3)) == 0:
            value = draw(st.sampled_from(inputs))
            return value, var(value), []
        if draw(st.booleans()):
            operator = draw(st.sampled_from(UNARY))
            value, pattern, ops = build(level - 1)
            return net.op(operator, value), op(operator, pattern), [operator, *ops]
        operator = draw(st.sampled_from(("Add", "Sub", "Mul")))
        left, left_pattern, left_ops = build(level - 1)
        right, right_pattern, right_ops = build(level - 1)
        operands = [left_pattern, right_pattern]
        if operator != "Sub" and draw(st.booleans()):
            operands.reverse()
        return net.op(operator, left, right), op(operator, *operands), [operator, *left_ops, *right_ops]

    value, pattern, ops = build(4)
    net.output(net.op("Identity", value), 2)
    return net, value, pattern, ops


@settings(max_examples=80, deadline=None)
@given(expressions())
def test_every_graph_matches_its_own_description(built: tuple[Net, str, Pattern, list[str]]) -> None:
    net, _value, pattern, ops = built
    found = list(find(op("Identity", pattern), net.model()))
    assert len(found) == 1
    assert sorted(node.op for node in found[0].nodes) == sorted([*ops, "Identity"])


@pytest.mark.parametrize("name", ["handwritten.torchscript.17.dynamic", "handwritten.dynamo.18.static.half"])
def test_the_first_example_reads_scales(name: str, tmp_path: Path) -> None:
    (line,) = scaled_softmax.lines(str(EXPORTS / f"{name}.onnx"))
    assert "scaled by 0.204" in line


def test_the_second_example_finds_dropout(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(small_site(probabilities=lambda net, p: net.op("Dropout", p, name="drop")), path)
    assert dropout.lines(str(path)) == ["drop stands before the product with v"]
    assert dropout.lines(str(EXPORTS / "handwritten.torchscript.17.dynamic.onnx")) == []


@pytest.mark.parametrize(("name", "count"), [("bert.torchscript.17.dynamic", 2), ("gpt2.torchscript.17.dynamic", 0)])
def test_the_third_example_finds_layers_on_one_source(name: str, count: int) -> None:
    assert len(parallel_linears.lines(str(EXPORTS / f"{name}.onnx"))) == count


@pytest.mark.parametrize("example", ["scaled_softmax", "dropout", "parallel_linears"])
def test_examples_run_as_programs(
    example: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [example, str(EXPORTS / "bert.torchscript.17.dynamic.onnx")])
    runpy.run_module(f"onnx_attn.match.examples.{example}", run_name="__main__")
    assert "found" in capsys.readouterr().out
