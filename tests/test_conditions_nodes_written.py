"""Calls of our own functions: told of as the site was before; and functions that only have our name."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_no_attention, verdicts
from graphs import HEAD_DIM, HEADS, Net, heads_in, small_site
from onnx import helper

import onnx_attn

TOLD = ("scale", "causal", "heads", "kv_heads", "head_dim", "value_dim", "masks")


def told(model: onnx.ModelProto) -> dict[str, Any]:
    (candidate,) = onnx_attn.inspect(model)["candidates"]
    assert (candidate["status"], candidate["code"]) == ("site", None), candidate["reason"]
    return {key: candidate[key] for key in TOLD}


def calls(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if node.domain == "onnx_attn"]


def keep(net: Net, found: str) -> str:
    """Probabilities of blocked keys are cleared behind the softmax."""
    return net.op("Where", net.input("keep", 2, 1, 5, 5, dtype=bool), found, net.const(0.0))


def clear(net: Net, found: str) -> str:
    return net.op("Where", net.input("clear", 2, 1, 5, 5, dtype=bool), net.const(0.0), found)


def temperature(op: str) -> Any:
    """A number a head on the scores, in front of a mask."""

    def scores(net: Net, found: str) -> str:
        return net.op("Add", net.op(op, net.scaled(found), net.weight(HEADS, 1, 1)), net.input("mask", 2, 1, 5, 5))

    return scores


KINDS: dict[str, dict[str, Any]] = {
    "": {},
    "_Double": {"dtype": np.float64},
    "_Keep": {"probabilities": keep},
    "_Clear": {"probabilities": clear},
    "_Factor_Mask": {"scores": temperature("Mul")},
    "_Divisor_Mask": {"scores": temperature("Div")},
}
"""How a function's name goes on, and the site that it is of."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_site_is_told_as_it_was(kind: str) -> None:
    """What clears probabilities, and what the scores are multiplied with, are inputs of the call, and no masks."""
    model = small_site(**KINDS[kind])
    fused = onnx_attn.fuse(model).model
    assert calls(fused) == [f"ScaledDotProductAttention{kind}"]
    assert told(fused) == told(model) | {"scale": pytest.approx(HEAD_DIM**-0.5)}


def test_heads_whose_number_varies_stay_unknown() -> None:
    net = Net()
    q, k, v = (net.input(name, 2, "heads", 5, HEAD_DIM) for name in "qkv")
    net.output(net.sdpa(q, net.swap(k), v))
    fused = onnx_attn.fuse(net.model(), expect=1).model
    assert told(fused) == told(net.model()) | {"scale": pytest.approx(HEAD_DIM**-0.5)}
    assert told(fused)["heads"] is None


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_a_scale_that_was_split_is_told_whole(rank: int) -> None:
    """Somebody else reads the probabilities: the site stands apart by parts of its scale on Q, on K and on the scores."""
    net = Net()
    lead = (2, 3, HEADS)[5 - rank :]
    q, k, v = (net.input(name, *lead, 5, HEAD_DIM) for name in "qkv")
    found = net.op("Softmax", net.scaled(net.op("MatMul", q, net.swap(k, rank))), name="softmax", axis=-1)
    net.output(net.op("MatMul", found, v), rank)
    net.output(found, rank)
    fused = onnx_attn.fuse(net.model(), allow_recompute=True, expect=1).model
    assert calls(fused) == [
        "ScaledDotProductAttention_Scale" if rank == 4 else f"ScaledDotProductAttention_{rank}D_Scale"
    ]
    (site,) = [each for each in onnx_attn.inspect(fused)["candidates"] if each["status"] == "site"]
    assert site["scale"] == pytest.approx(HEAD_DIM**-0.5)
    assert (site["heads"], site["head_dim"]) == (HEADS if rank > 2 else 1, HEAD_DIM)


# --- only the name -----------------------------------------------------------------------------------------------------------


def called(
    *nodes: onnx.NodeProto, inputs: str = "qkv", more: list[onnx.FunctionProto] | None = None
) -> onnx.ModelProto:
    """A function of our name and domain that holds these nodes, called."""
    net = Net()
    given = [net.input(name, 2, HEADS, 5, 5) for name in inputs]
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("onnx_attn", "ScaledDotProductAttention", list(inputs), ["y"], nodes, opsets)
    net.output(net.op("ScaledDotProductAttention", *given, domain="onnx_attn", name="softmax"))
    model = net.model([function, *(more or [])])
    model.opset_import.add(domain="onnx_attn", version=1)
    return model


def attention(q: str = "q", k: str = "k", v: str = "v") -> list[onnx.NodeProto]:
    return [
        helper.make_node("MatMul", [q, k], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", v], ["y"]),
    ]


NOT_OURS = {
    "no attention": called(helper.make_node("Sum", ["q", "k", "v"], ["y"])),
    "one product": called(helper.make_node("MatMul", ["q", "k"], ["s"]), helper.make_node("Sum", ["s", "v"], ["y"])),
    "no softmax": called(helper.make_node("MatMul", ["q", "k"], ["s"]), helper.make_node("MatMul", ["s", "v"], ["y"])),
    "two inputs": called(*attention(v="k"), inputs="qk"),
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_a_function_of_our_name_that_does_something_else_is_not_ours(name: str) -> None:
    assert_no_attention(NOT_OURS[name], "operator-not-supported")


def test_a_function_of_the_same_name_in_another_domain_does_not_matter() -> None:
    other = helper.make_function(
        "mine", "ScaledDotProductAttention", ["q", "k", "v"], ["y"], attention(), [helper.make_opsetid("", 17)]
    )
    q, kt, v = heads_in(net := Net())
    net.output(net.sdpa(q, kt, v))
    fused = onnx_attn.fuse(net.model()).model
    fused.functions.append(other)
    fused.opset_import.add(domain="mine", version=1)
    assert verdicts(fused) == {"softmax": ("site", None)}
