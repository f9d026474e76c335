"""Which nodes get a verdict at all: by domain and name, in the main graph and in bodies that cannot be read by themselves."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from graphs import HEAD_DIM, HEADS, Net
from onnx import TensorProto, helper

import onnx_attn
from onnx_attn.graph.view import GraphView
from onnx_attn.recognize.candidates import recognize
from onnx_attn.site import Verdict

SHAPE = (2, HEADS, 5, HEAD_DIM)


def verdicts(model: onnx.ModelProto) -> list[tuple[str, str | None]]:
    return [(each["softmax"], each["code"]) for each in onnx_attn.inspect(model)["candidates"]]


# --- the main graph ----------------------------------------------------------------------------------------------------------

OTHERS = [
    ("ai.onnx.preview", "Something"),
    ("somebody", "FlexAttention"),
    ("somebody", "LinearAttention"),
    ("somebody", "GatedDeltaNet"),
    ("somebody", "ScaledDotProductAttention"),
    ("somebody", "ScaledDotProductAttention_Mask"),
    ("somebody", "MultiHeadAttention"),
    ("somebody", "Softmax"),
    ("com.microsoft", "Something"),
]


@pytest.mark.parametrize(("domain", "op"), OTHERS)
def test_a_node_is_told_by_its_domain_and_its_name_together(domain: str, op: str) -> None:
    net = Net(23)
    net.output(net.op(op, *(net.input(name, *SHAPE) for name in "qkv"), domain=domain))
    assert verdicts(net.model(**{domain.replace(".", "_"): 1})) == []


# --- bodies ------------------------------------------------------------------------------------------------------------------

Write = Callable[[Net, str, str, str], str]


def in_a_body(write: Write) -> onnx.ModelProto:
    """A branch that reads Q, turned K and V, of which the first has no known type, so that the body is not read by itself."""
    net, body = Net(23), Net(23)
    strange = net.op("Smudge", net.input("q", *SHAPE), domain="somebody")
    k, v = (net.input(name, *SHAPE) for name in "kv")
    kt = net.swap(k)
    made = write(body, strange, kt, v)
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (made, "no")]
    then = helper.make_graph(body.nodes, "then", [], results[:1], body.weights)
    other = helper.make_graph([helper.make_node("Neg", [v], ["no"])], "other", [], results[1:])
    net.output(net.op("If", net.input("flag", dtype=bool), name="choice", then_branch=then, else_branch=other))
    model = net.model(somebody=1, com_microsoft=1)
    model.opset_import.add(domain="onnx_attn", version=1)
    return model


def exponentials(body: Net, scores: str) -> str:
    """A softmax in many nodes."""
    e = body.op("Exp", body.op("Sub", scores, body.op("ReduceMax", scores, body.ints(-1))))
    return body.op("Div", e, body.op("ReduceSum", e, body.ints(-1)), name="spelled")


def spelled_attention(body: Net, q: str, kt: str, v: str) -> str:
    return body.op("MatMul", exponentials(body, body.op("MatMul", q, kt)), v, name="values")


def softmax_attention(body: Net, q: str, kt: str, v: str) -> str:
    found = body.op("Softmax", body.op("MatMul", q, kt), name="softmax")
    return body.op("MatMul", found, v, name="values")


def spelled_attention_used_twice(body: Net, q: str, kt: str, v: str) -> str:
    found = exponentials(body, body.op("MatMul", q, kt))
    return body.op("Add", body.op("MatMul", found, v, name="values"), body.op("MatMul", found, q))


def spelled_class_softmax(body: Net, q: str, kt: str, v: str) -> str:
    return exponentials(body, q)


def class_softmax(body: Net, q: str, kt: str, v: str) -> str:
    return body.op("Softmax", q, name="softmax")


def quotient_times_values(body: Net, q: str, kt: str, v: str) -> str:
    return body.op("MatMul", body.op("Div", body.op("MatMul", q, kt), body.const(2.0, name="two")), v)


def softmax_of_somebody(body: Net, q: str, kt: str, v: str) -> str:
    return body.op("MatMul", body.op("Softmax", body.op("MatMul", q, kt), domain="somebody"), v)


def call_of_ours(body: Net, q: str, kt: str, v: str) -> str:
    return body.op("ScaledDotProductAttention", q, kt, v, domain="onnx_attn", name="softmax")


def other_call_of_ours(body: Net, q: str, kt: str, v: str) -> str:
    return body.op("Something", q, domain="onnx_attn")


def other_operator_of_microsoft(body: Net, q: str, kt: str, v: str) -> str:
    return body.op("FusedMatMul", q, kt, domain="com.microsoft")


IN_A_BODY: dict[Write, list[tuple[str, str | None]]] = {
    softmax_attention: [("softmax", "nested-graph")],
    spelled_attention: [("spelled", "nested-graph")],
    spelled_attention_used_twice: [("spelled", "nested-graph")],
    call_of_ours: [("softmax", "nested-graph")],
    class_softmax: [("softmax", "class-softmax")],
    spelled_class_softmax: [],
    quotient_times_values: [],
    softmax_of_somebody: [],
    other_call_of_ours: [],
    other_operator_of_microsoft: [],
}


@pytest.mark.parametrize("write", IN_A_BODY, ids=lambda write: write.__name__)
def test_what_in_a_body_gets_a_verdict(write: Write) -> None:
    assert verdicts(in_a_body(write)) == IN_A_BODY[write]


@pytest.mark.parametrize(
    ("write", "anchor"), [(softmax_attention, ""), (spelled_attention, "values"), (spelled_attention_used_twice, "")]
)
def test_of_a_softmax_in_many_nodes_an_engine_tells_by_the_product_with_the_values(write: Write, anchor: str) -> None:
    """A compiler names its kernels after nodes, and none of those of such a softmax stands for it."""
    (found,) = recognize(GraphView(in_a_body(write)))
    assert isinstance(found, Verdict) and found.anchor == anchor
