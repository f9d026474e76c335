"""Functions of the user's own that are called like standard operators, and do something else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from checks import assert_same
from graphs import CHANNELS, HEAD_DIM, HEADS, Net
from onnx import helper

import onnx_attn


def impostor(name: str) -> onnx.FunctionProto:
    """x → relu(x), under the name of an operator that moves or keeps."""
    body = [helper.make_node("Relu", ["x"], ["y"])]
    return helper.make_function("mine", name, ["x"], ["y"], body, [helper.make_opsetid("", 17)])


@pytest.mark.parametrize("place", ["query", "key", "scores", "probabilities", "projection"])
@pytest.mark.parametrize("name", ["Identity", "Transpose", "Neg", "Dropout", "Cast"])
def test_a_function_of_that_name_is_not_the_operator(name: str, place: str) -> None:
    net = Net()
    x = net.input("x", 2, 5, 20)

    def changed(value: str, here: str) -> str:
        return net.op(name, value, domain="mine") if here == place else value

    q, k, v = (net.split_heads(changed(net.linear(x, HEADS * HEAD_DIM), "projection")) for _ in range(3))
    y = net.sdpa(
        changed(q, "query"),
        net.swap(changed(k, "key")),
        v,
        scores=lambda s: changed(net.scaled(s), "scores"),
        probabilities=lambda p: changed(p, "probabilities"),
    )
    net.output(net.linear(net.merge_heads(y), 20, width=HEADS * HEAD_DIM), 3)
    model = net.model(functions=[impostor(name)], mine=1)
    for algebra in (True, False):
        assert_same(model, onnx_attn.fuse(model, verify=False, algebra=algebra).model)


def test_the_lowest_number_beside_another_mask_keeps_keys_biased() -> None:
    """Where the other mask blocks the rest of a row, a replaced score has a probability."""
    net = Net()
    x = net.input("x", 2, 5, 20)
    q, k, v = (net.split_heads(net.linear(x, HEADS * HEAD_DIM)) for _ in range(3))

    def masked(scores: str) -> str:
        lowest = net.const(np.finfo(np.float32).min)
        kept = net.op("Where", net.input("keep", 2, 1, 5, 5, dtype=bool), net.scaled(scores), lowest)
        return net.op("Add", kept, net.input("mask", 2, 1, 5, 5))

    net.output(net.merge_heads(net.sdpa(q, net.swap(k), v, scores=masked)), 3)
    (candidate,) = onnx_attn.fuse(net.model()).report["candidates"]
    assert "key-bias" not in candidate["algebra"]
    assert "replaced" in candidate["algebra_left"]["key-bias"]


IN_A_BODY = {
    ("", "Attention"): 1,
    ("com.microsoft", "MultiHeadAttention"): 1,
    ("my.company", "Attention"): 0,
    ("my.company", "MultiHeadAttention"): 0,
    ("my.company", "ScaledDotProductAttention"): 0,
    ("", "Neg"): 0,
}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("domain", "op"), IN_A_BODY)
def test_operators_in_bodies_are_candidates_by_domain_and_name(domain: str, op: str, known: bool) -> None:
    """Whether or not the body can be read by itself, which what it reads from outside decides."""
    net = Net(opset=23)
    heads = op == "MultiHeadAttention"
    q, k, v = (net.input(name, *((2, 5, CHANNELS) if heads else (2, HEADS, 5, HEAD_DIM))) for name in "qkv")
    q = q if known else net.op("Smudge", q, domain="my.company")
    attributes = {"num_heads": HEADS} if heads else {}
    inputs = [q] if op == "Neg" else [q, k, v]
    node = helper.make_node(op, inputs, ["y"], domain=domain, name="inner", **attributes)
    out = [helper.make_tensor_value_info("y", 1, None)]
    then = helper.make_graph([node], "then", [], out)
    other = helper.make_graph([helper.make_node("Identity", [q], ["y"])], "other", [], out)
    net.output(net.op("If", net.input("flag", dtype=bool), then_branch=then, else_branch=other))
    model = net.model(my_company=1, com_microsoft=1)
    assert len(onnx_attn.inspect(model)["candidates"]) == IN_A_BODY[domain, op]
