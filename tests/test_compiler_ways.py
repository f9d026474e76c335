"""Ways of writing a site that the compiler reads without copies: K turned early, heads and masks no more often than needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import HEAD_DIM, HEADS, WIDTH, Net
from support import EXPORTS

import onnx_attn

CHANNELS = HEADS * HEAD_DIM


def tokens_first(net: Net, name: str, length: int, width: int) -> str:
    """Heads of a layer on an input, tokens first while they are moved, as torch's module has them."""
    x = net.turn(net.input(name, 2, length, width), 1, 0, 2)
    moved = net.turn(net.reshape(net.linear(x, CHANNELS, width=width), length, 2 * HEADS, HEAD_DIM), 1, 0, 2)
    return net.reshape(moved, 2, HEADS, length, HEAD_DIM)


def three_sources(dtype: Any = np.float16) -> onnx.ModelProto:
    """Q, K and V of three inputs; half of the scale on Q, half on K."""
    net = Net(18, dtype=dtype)
    q, k, v = (tokens_first(net, *each) for each in (("x", 16, 96), ("key", 24, 48), ("value", 24, 32)))
    half = HEAD_DIM**-0.25
    kt = net.op("Mul", net.swap(k), net.const(half))
    net.output(net.merge_heads(net.sdpa(net.op("Mul", q, net.const(half)), kt, v, scores=lambda scores: scores)), 3)
    return net.model()


def test_a_key_is_turned_before_its_batch_and_heads_are_taken_apart() -> None:
    model = three_sources()
    fused = onnx_attn.fuse(model)
    (site,) = fused.report["candidates"]
    assert site["certificate"]["ok"] and not site["packed"]
    made = {name: node for node in fused.model.graph.node for name in node.output}
    call = next(node for node in fused.model.graph.node if node.domain == "onnx_attn")
    way, name = [], call.input[1]
    while made[name].op_type != "Add":
        way.append(made[name].op_type)
        name = made[name].input[0]
    assert way == ["Transpose", "Reshape", "Transpose", "Reshape"]


def test_a_key_that_is_only_reshaped_is_not_turned() -> None:
    """Shared heads of a cache, repeated in the graph."""
    fused = onnx_attn.fuse(EXPORTS / "mistral_decode.dynamo.18.static.half.onnx", verify=False).model
    made = {name: node for node in fused.graph.node for name in node.output}
    calls = [node for node in fused.graph.node if node.domain == "onnx_attn"]
    assert [made[call.input[1]].op_type for call in calls] == ["Reshape"] * 2


def test_a_key_whose_entries_come_first_is_moved_once() -> None:
    net = Net(18, dtype=np.float16)
    q, k, v = (net.split_heads(net.linear(net.input(name, 2, 8, WIDTH), CHANNELS)) for name in "qkv")
    kt = net.op("Mul", net.swap(k), net.const(0.5))
    net.output(net.sdpa(q, kt, v))
    fused = onnx_attn.fuse(net.model())
    assert fused.report["candidates"][0]["certificate"]["ok"]
    assert [node.op_type for node in fused.model.graph.node].count("Transpose") == 3


def test_the_compiler_then_reads_it_where_it_lies() -> None:
    pytest.importorskip("tensorrt_rtx")
    model = three_sources()
    before, after = onnx_attn.land(model), onnx_attn.land(onnx_attn.fuse(model).model)
    assert after["landed"] == 1
    assert after["kernels"] == 5 and after["kernels"] <= before["kernels"]


def one_head_for_all(dtype: Any, queries: int = 5) -> onnx.ModelProto:
    net = Net(18, dtype=dtype)
    q = net.input("q", 2, HEADS, queries, HEAD_DIM)
    k, v = (net.input(name, 2, 1, 7, HEAD_DIM) for name in "kv")
    net.output(net.sdpa(q, net.swap(k), v))
    return net.model()


@pytest.mark.parametrize(
    ("dtype", "queries", "options", "repeated"),
    [
        (np.float16, 5, {}, True),
        (np.float32, 5, {}, False),
        (np.float32, 5, {"form": "primitives"}, False),
        (np.float32, 5, {"precision": "fp16"}, True),
        (np.float32, 1, {}, True),  # There is a kernel for one query in float32.
        (np.float32, 5, {"target": "onnx"}, True),
        (np.float32, 5, {"target": "onnxruntime", "form": "function"}, True),
    ],
    ids=str,
)
def test_one_head_is_repeated_for_attention_kernels_alone(
    dtype: Any, queries: int, options: dict[str, Any], repeated: bool
) -> None:
    fused = onnx_attn.fuse(one_head_for_all(dtype, queries), **options)
    (site,) = fused.report["candidates"]
    assert (fused.report["fused"], site["kv_heads"], site["certificate"]["ok"]) == (1, 1, True)
    assert any(node.op_type == "Expand" for node in fused.model.graph.node) == repeated
    again = onnx_attn.fuse(fused.model, **options)
    assert again.model.SerializeToString() == fused.model.SerializeToString()


def biased(expand: Callable[[Net, str], str], batch: int = 2) -> tuple[Net, str]:
    """A site with a bias of its heads, made of weights, that is repeated by the caller; and the name of the bias."""
    net = Net(18, dtype=np.float16)
    table = net.weight(9, HEADS)
    rows = net.op("Gather", table, net.const(np.arange(25).reshape(5, 5) % 9, np.int64), axis=0)
    bias = net.reshape(net.turn(rows, 2, 0, 1), 1, HEADS, 5, 5)
    q, k, v = (net.input(name, batch, HEADS, 5, HEAD_DIM) for name in "qkv")
    wide = expand(net, bias)
    net.output(net.sdpa(q, net.swap(k), v, scores=lambda scores: net.op("Add", net.scaled(scores), wide)))
    return net, bias


def masks_of(model: onnx.ModelProto) -> list[str]:
    return [name for node in model.graph.node if node.domain == "onnx_attn" for name in node.input[3:]]


@pytest.mark.parametrize("form", ["function", "primitives"])
def test_a_bias_made_of_weights_is_read_before_it_is_repeated(form: str) -> None:
    net, bias = biased(lambda net, value: net.op("Expand", value, net.ints(2, 1, 1, 1)))
    fused = onnx_attn.fuse(net.model(), form=form)
    (site,) = fused.report["candidates"]
    assert site["certificate"]["ok"] and fused.report["proof"]["ok"]
    assert not any(node.op_type == "Expand" for node in fused.model.graph.node)
    assert form == "primitives" or masks_of(fused.model) == [bias]


def test_a_mask_that_is_computed_is_read_as_it_comes() -> None:
    net = Net(18, dtype=np.float16)
    mask = net.op("Expand", net.input("mask", 1, 1, 1, 5), net.ints(2, 1, 5, 5))
    q, k, v = (net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "qkv")
    net.output(net.sdpa(q, net.swap(k), v, scores=lambda scores: net.op("Add", net.scaled(scores), mask)))
    fused = onnx_attn.fuse(net.model())
    assert fused.report["candidates"][0]["certificate"]["ok"] and masks_of(fused.model) == [mask]


def test_a_bias_that_repeats_the_scores_is_no_mask() -> None:
    """One sequence against biases of two: before its Expand the bias would leave one."""
    net, _ = biased(lambda net, value: net.op("Expand", value, net.ints(2, 1, 1, 1)), batch=1)
    (site,) = onnx_attn.fuse(net.model()).report["candidates"]
    assert site["code"] == "scores-changed" and "widens" in site["reason"]


def with_a_mask(
    *mask: int,
    dtype: Any = np.float16,
    bias: bool = True,
    norm: bool = False,
    heads: int = HEADS,
    values: bool = True,
    batch: int | str = 2,
) -> onnx.ModelProto:
    """An `Attention` node on projections of one input, with a mask that is another; the exporters' own layers have biases.
    values: V is projected too."""
    net = Net(23, dtype=dtype)
    x = net.input("x", batch, 5, WIDTH)
    x = net.op("LayerNormalization", x, net.weight(WIDTH), net.weight(WIDTH)) if norm else x
    size = CHANNELS // heads
    q, k, v = (net.split_heads(net.linear(x, CHANNELS, bias=bias), heads, size) for _ in range(3))
    v = v if values else net.input("values", 2, heads, 5, size)
    net.output(net.merge_heads(net.op("Attention", q, k, v, net.input("mask", *mask), name="softmax")), 3)
    return net.model()


@pytest.mark.parametrize(
    ("model", "options", "form"),
    [
        (with_a_mask(5, 5), {}, "attention"),
        (with_a_mask(5, 5), {"form": "function"}, "function"),
        (with_a_mask(5, 5, bias=False), {}, "function"),
        (with_a_mask(5, 5, norm=True), {}, "function"),  # The norm carries the biases.
        (with_a_mask(1, 5), {}, "function"),  # The operator would need a row for each query.
        (with_a_mask(5, 5, heads=4), {}, "function"),  # Heads of 12 are padded at the operator's edges.
        (with_a_mask(5, 5, values=False), {}, "function"),  # V has no bias.
        (with_a_mask(5, 5, batch="batch"), {}, "function"),
        (with_a_mask(5, 5, dtype=np.float32), {}, "function"),  # TensorRT does not build the operator in float32.
        (with_a_mask(5, 5), {"target": "onnx"}, "function"),
    ],
    ids=["operator", "asked", "unbiased", "normed", "one-row", "odd-heads", "no-values", "dynamic", "float32", "onnx"],
)
def test_an_operator_with_a_mask_keeps_its_form_where_spelled_out_it_gains_nothing(
    model: onnx.ModelProto, options: dict[str, Any], form: str
) -> None:
    fused = onnx_attn.fuse(model, **options)
    (site,) = fused.report["candidates"]
    assert (site["form"], site["packed"], site["certificate"]["ok"]) == (form, True, True)
    assert "additive-mask" not in site["changes"], "it is one already"
    again = onnx_attn.fuse(model, plan=fused.plan)
    assert again.model.SerializeToString() == fused.model.SerializeToString()
    anew = onnx_attn.fuse(fused.model, target=options.get("target", "tensorrt"))
    assert anew.model.SerializeToString() == fused.model.SerializeToString()


def with_a_boolean_mask(kind: str = "", dtype: Any = np.float16, projected: bool = False) -> onnx.ModelProto:
    net = Net(23, dtype=dtype)
    mask = net.input("mask", 2, 1, 5, 7, dtype=np.bool_) if kind != "constant" else ""
    mask = net.op("Not", mask) if kind == "computed" else mask
    mask = mask or net.const(np.tri(5, 7, 2)[None, None], np.bool_)
    q, k, v = (net.input(name, 2, HEADS, length, HEAD_DIM) for name, length in (("q", 5), ("k", 7), ("v", 7)))
    if projected:
        y = net.input("y", 2, 7, WIDTH)
        k, v = (net.split_heads(net.linear(y, CHANNELS)) for _ in range(2))
    net.output(net.op("Attention", q, k, v, mask, name="softmax"))
    return net.model()


@pytest.mark.parametrize(
    ("model", "options", "form", "additive"),
    [
        (with_a_boolean_mask(), {}, "attention", True),
        (with_a_boolean_mask(projected=True), {}, "function", False),
        (with_a_boolean_mask(projected=True), {"form": "attention"}, "attention", True),
        (with_a_boolean_mask("computed"), {}, "function", False),
        (with_a_boolean_mask("computed"), {"form": "attention"}, "attention", False),
        (with_a_boolean_mask("constant"), {}, "function", False),
        (with_a_boolean_mask(dtype=np.float32), {}, "function", False),
        (with_a_boolean_mask(), {"target": "onnx", "form": "attention"}, "attention", False),
    ],
    ids=["outside", "packed", "packed-asked", "computed", "computed-asked", "constant", "float32", "onnx"],
)
def test_a_boolean_mask_from_outside_is_added_as_numbers(
    model: onnx.ModelProto, options: dict[str, Any], form: str, additive: bool
) -> None:
    fused = onnx_attn.fuse(model, **options)
    (site,) = fused.report["candidates"]
    assert (site["form"], "additive-mask" in site["changes"]) == (form, additive)
    assert any("additive-mask" in each["changes"] for each in fused.plan["sites"]) == additive
    if form == "attention" and not additive:  # It stays the node that it was.
        assert fused.model.graph == model.graph
        return
    assert site["certificate"]["ok"]
    again = onnx_attn.fuse(model, plan=fused.plan)
    assert again.model.SerializeToString() == fused.model.SerializeToString()
    if additive:
        tried = {each["kind"].split("@")[0] for each in site["certificate"]["inputs"]}
        assert {"blocked", "row-inf"} <= tried
        call = next(node for node in fused.model.graph.node if node.op_type == "Attention")
        added = next(node for node in fused.model.graph.node if node.output[0] == call.input[3])
        assert added.op_type == "Cast"
        assert onnx_attn.fuse(fused.model, **options).model.SerializeToString() == fused.model.SerializeToString()


def test_the_compiler_does_not_count_a_mask_of_numbers() -> None:
    pytest.importorskip("tensorrt_rtx")
    model = with_a_boolean_mask()
    before, after = onnx_attn.land(model), onnx_attn.land(onnx_attn.fuse(model).model)
    assert (before["landed"], after["landed"]) == (1, 1)
    assert after["kernels"] + 7 <= before["kernels"] and after["moved_bytes"] < before["moved_bytes"]
