"""Nodes beneath the main graph: the way out of bodies and functions, how many there may be, and whose functions count."""

from __future__ import annotations

from itertools import pairwise

import onnx
import pytest
from checks import assert_same
from graphs import HEAD_DIM, HEADS, Net
from onnx import TensorProto, helper

import onnx_attn
from onnx_attn.errors import InputError
from onnx_attn.graph.view import GraphView
from onnx_attn.recognize import scopes
from onnx_attn.recognize.scopes import nested_nodes


def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
    (output,) = nodes[-1].output
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def fork(name: str, flag: str, then: onnx.GraphProto) -> onnx.NodeProto:
    other = branch(f"not_{name}", helper.make_node("Neg", ["v"], [f"{name}_else"]))
    return helper.make_node("If", [flag], [f"{name}_out"], name, then_branch=then, else_branch=other)


def function(name: str, *nodes: onnx.NodeProto) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    return helper.make_function("mine", name, ["v"], ["y"], nodes, opsets)


def chain(length: int, first: str = "v") -> list[onnx.NodeProto]:
    names = [first, *(f"step_{number}" for number in range(length - 1)), "y"]
    return [helper.make_node("Neg", [before], [after], f"neg_{after}") for before, after in pairwise(names)]


# --- the way out -------------------------------------------------------------------------------------------------------------


def test_every_node_beneath_knows_the_way_out() -> None:
    """A body in a body, which calls a function that calls another one."""
    net = Net()
    net.input("v", 2, 3)
    flag = net.input("flag", dtype=bool)
    call = helper.make_node("Outer", ["v"], ["called"], "call", domain="mine")
    inner = fork("inner", flag, branch("deep", call))
    net.nodes.append(fork("outer", flag, branch("flat", inner)))
    net.output("outer_out", 2)
    outer = function("Outer", helper.make_node("Inner", ["v"], ["y"], "again", domain="mine"))
    model = net.model([outer, function("Inner", *chain(1))], mine=1)
    onnx.checker.check_model(model)
    found = {nested.node.name: (nested.scope, nested.place) for nested in nested_nodes(GraphView(model))}
    choice = "flat (then_branch) | outer (If)"
    body = f"deep (then_branch) | inner (If) | {choice}"
    assert found["inner"] == (choice, "body of If 'outer'")
    assert found["call"] == (body, "body of If 'inner'")
    assert found["again"] == (f"call (Outer) | {body}", "body of function 'Outer'")
    assert found["neg_y"] == (f"again (Inner) | call (Outer) | {body}", "body of function 'Inner'")


# --- how much there may be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "refused"), [(9, True), (10, False)])
def test_functions_that_hold_too_many_nodes_are_refused(
    most: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scopes, "MOST_NODES", most)
    net = Net()
    net.output(net.op("Mine", net.input("v", 2, 3), domain="mine"), 2)
    model = net.model([function("Mine", *chain(10))], mine=1)
    if refused:
        with pytest.raises(InputError, match="more than 9 nodes"):
            onnx_attn.inspect(model)
    else:
        assert onnx_attn.inspect(model)["candidates"] == []


# --- whose functions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("called", ["", "ai.onnx"])
def test_a_function_under_the_name_of_a_standard_operator_is_refused(called: str) -> None:
    """ONNX Runtime 1.31.1 and onnx's reference evaluator run the operator, and onnx's inliner puts the function in its place."""
    net = Net()
    net.output(net.op("Neg", net.input("x", 2, HEADS, 5, HEAD_DIM)))
    body = Net()
    y = body.sdpa("x", body.swap("x"), "x", lambda scores: scores)
    impostor = helper.make_function(called, "Neg", ["x"], [y], body.nodes, [helper.make_opsetid("", 17)])
    for call in (onnx_attn.inspect, onnx_attn.fuse, onnx_attn.stats):
        with pytest.raises(InputError, match="'Neg' has the name of a standard operator"):
            call(net.model([impostor]))


def test_a_function_of_ones_own_may_have_the_name_of_a_standard_operator() -> None:
    net, body = Net(), Net()
    net.output(net.op("Neg", net.op("Neg", net.input("x", 2, HEADS, 5, HEAD_DIM), domain="mine")))
    y = body.sdpa("x", body.swap("x"), "x", lambda scores: scores)
    own = helper.make_function("mine", "Neg", ["x"], [y], body.nodes, [helper.make_opsetid("", 17)])
    model = net.model([own], mine=1)
    assert_same(model, onnx_attn.fuse(model, verify=False, expect=1).model)
