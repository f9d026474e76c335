"""ONNX Runtime's own operators as they stand: heads, sizes, scale and masks that are told, or a refusal."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from runtime_nodes import (
    ATTENTION_CASES,
    KV,
    OTHER,
    PAST,
    QUERY,
    B,
    Case,
    D,
    H,
    L,
    N,
    S,
    attention,
    grouped,
    mask,
    multi_head,
)

import onnx_attn

ROOT = H**-0.5


def told(model: onnx.ModelProto) -> dict[str, Any]:
    """What the report says of the one operator, for the runtime that it is of: there it stays."""
    (candidate,) = onnx_attn.fuse(model, target="onnxruntime", verify=False).report["candidates"]
    assert (candidate["status"], candidate["form"]) == ("site", "contrib"), candidate["reason"]
    return candidate


SIZES: dict[str, tuple[int, int, int | None, int | None]] = {
    "attention": (N, N, H, H),
    "attention, narrow values": (N, N, H, 3),
    "quantised": (N, N, H, H),
    "multi-head, other keys, narrow values": (N, N, H, 3),
    "multi-head, cached keys": (N, N, H, H),
    "grouped, prompt": (N, KV, H, H),
    "grouped, packed": (N, KV, H, H),
    "grouped, step in a buffer": (N, KV, H, H),
}
"""Heads of Q, heads of K and V, the head's size in Q and K, and in V."""


def test_heads_of_packed_operands_are_as_wide_as_the_result_says() -> None:
    """`(B, S, N, 3, H)`: the last axis is one head already."""
    found = told(Case("MultiHeadAttention", [(B, S, N, 3, H)], {"num_heads": N}).model())
    assert (found["head_dim"], found["value_dim"], found["scale"]) == (H, H, ROOT)


@pytest.mark.parametrize("name", SIZES)
def test_heads_and_their_sizes_are_told(name: str) -> None:
    found = told(ATTENTION_CASES[name].model())
    assert tuple(found[key] for key in ("heads", "kv_heads", "head_dim", "value_dim")) == SIZES[name]
    assert found["scale"] == ROOT


def test_scale_that_is_given_is_the_scale() -> None:
    assert told(ATTENTION_CASES["multi-head, scores masked"].model())["scale"] == pytest.approx(0.7)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("op", ["Attention", "GroupQueryAttention"])
def test_causal_is_what_the_attribute_says_and_else_what_the_operator_is(op: str, given: bool) -> None:
    """`unidirectional` is off unless it is 1; grouped attention is causal unless `causal` says otherwise."""
    if op == "Attention":
        case = attention(unidirectional=1) if given else attention()
        assert told(case.model())["causal"] is given
    else:
        case = grouped(2, 5, 0, causal=0) if given else grouped(2, 5, 0)
        assert told(case.model())["causal"] is not given


MASKS: dict[str, tuple[Case, list[tuple[str, list[int]]]]] = {
    "none": (attention(), []),
    "no mask in front of a past": (attention(None, PAST, outputs=(3, 5)), []),
    "a mask by keys": (attention(mask(B, S)), [("boolean", [B, S])]),
    "a bias": (attention(None, None, (B, N, S, S)), [("additive", [B, N, S, S])]),
    "both": (
        multi_head(QUERY, *OTHER, None, mask(B, L), (B, 1, S, L)),
        [("boolean", [B, L]), ("additive", [B, 1, S, L])],
    ),
    "a bias of grouped attention": (
        grouped(1, 1, 6, None, None, None, (1, N, 1, 7), scale=0.3),
        [("additive", [1, N, 1, 7])],
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_told_by_the_places_of_their_inputs(name: str) -> None:
    case, wanted = MASKS[name]
    assert [(each["kind"], each["shape"]) for each in told(case.model())["masks"]] == wanted


# --- what nobody can tell ----------------------------------------------------------------------------------------------------


def nameless(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with a query of which not even the width is known: an operator of nobody's makes it."""
    (node,) = model.graph.node
    model.graph.node.insert(0, onnx.helper.make_node("Smudge", [node.input[0]], ["smudged"], domain="somebody"))
    model.graph.node[1].input[0] = "smudged"
    model.opset_import.add(domain="somebody", version=1)
    return model


def wide(width: int | str) -> onnx.ModelProto:
    """Q, K and V of one width, which may vary."""
    return Case("MultiHeadAttention", [(B, S, width)] * 3, {"num_heads": N}).model()  # type: ignore[list-item]


WITHOUT_HEADS: dict[str, Case] = {
    "attention": Case("Attention", attention().inputs, {}, (3,), attention().fixed),
    "attention with a scale": Case("Attention", attention().inputs, {"scale": 0.3}, (3,), attention().fixed),
    "attention with widths": Case(
        "Attention", attention().inputs, {"qkv_hidden_sizes": [D] * 3}, (3,), attention().fixed
    ),
    "multi-head": Case("MultiHeadAttention", [QUERY] * 3, {}),
    "grouped": grouped(2, 5, 0, num_heads=0),
    "grouped with a scale": grouped(2, 5, 0, num_heads=0, scale=0.3),
}


def refusal(model: onnx.ModelProto) -> tuple[str, str]:
    (candidate,) = onnx_attn.fuse(model, target="onnxruntime").report["candidates"]
    return candidate["status"], candidate["code"]


@pytest.mark.parametrize("name", WITHOUT_HEADS)
def test_an_operator_that_does_not_say_its_heads_is_refused(name: str) -> None:
    assert refusal(WITHOUT_HEADS[name].model()) == ("refused", "shape-unknown")


def test_a_width_that_varies_leaves_the_scale_unknown() -> None:
    assert refusal(wide("width")) == ("refused", "shape-unknown")
    assert told(wide(D))["scale"] == ROOT


def test_a_query_of_unknown_shape_leaves_the_scale_unknown() -> None:
    assert refusal(nameless(wide(D))) == ("refused", "shape-unknown")


def test_a_scale_that_is_given_needs_no_width() -> None:
    case = Case("MultiHeadAttention", [(B, S, "width")] * 3, {"num_heads": N, "scale": 0.5})  # type: ignore[list-item]
    found = told(case.model())
    assert (found["scale"], found["heads"], found["head_dim"]) == (0.5, N, None)


@pytest.mark.parametrize("op", ["Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention"])
@pytest.mark.parametrize("scale", [{}, {"scale": 0.3}], ids=str)
def test_an_operator_that_reads_nothing_is_refused(op: str, scale: dict[str, Any]) -> None:
    """onnx's checker has no schema of it."""
    model = Case(op, [], {"num_heads": N, "kv_num_heads": N, **scale}).model()
    (candidate,) = onnx_attn.inspect(model)["candidates"]
    assert candidate["status"] == "refused"
    assert candidate["code"] in ("shape-unknown", "attention-feature", "operator-of-a-runtime")
