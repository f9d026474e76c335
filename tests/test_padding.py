"""Heads that no attention kernel takes, with zeros behind them: the same numbers, and a kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_same
from graphs import HEADS, WIDTH, Net
from support import EXPORTS

import onnx_attn

LANDS = [(8, 8), (4, 4), (24, 32), (64, 16)]


def heads(size: int, value: int, dtype: Any = np.float16, opset: int = 18) -> onnx.ModelProto:
    net = Net(opset, dtype=dtype)
    q, k = (net.input(name, 2, HEADS, 5, size) for name in "qk")
    net.output(net.sdpa(q, net.swap(k), net.input("v", 2, HEADS, 5, value)))
    return net.model()


def projected(size: int, value: int, tied: bool = False) -> onnx.ModelProto:
    """Three projections of one source; with `tied`, Q's weights are read a second time."""
    net = Net(18, dtype=np.float16)
    source, weight = net.input("x", 2, 5, WIDTH), net.weight(WIDTH, HEADS * size)
    q, k = (net.split_heads(net.linear(source, HEADS * size, weight=w), HEADS, size) for w in (weight, None))
    v = net.split_heads(net.linear(source, HEADS * value), HEADS, value)
    net.output(net.merge_heads(net.sdpa(q, net.swap(k), v), HEADS * value), rank=3)
    if tied:
        net.output(net.op("MatMul", source, weight), rank=3)
    return net.model()


def changes(result: onnx_attn.Result) -> list[str]:
    (candidate,) = result.report["candidates"]
    return candidate["changes"]


@pytest.mark.parametrize(("size", "value"), LANDS)
@pytest.mark.parametrize("form", ["function", "primitives"])
def test_small_and_unequal_heads_are_padded(size: int, value: int, form: str) -> None:
    model = heads(size, value)
    result = onnx_attn.fuse(model, form=form)
    assert changes(result) == ["padded-heads"]
    assert result.model.graph.output == model.graph.output
    assert_same(model, result.model, rtol=2e-3)


@pytest.mark.parametrize("size", [9, 24, 256])
def test_heads_that_have_a_kernel_stay(size: int) -> None:
    assert changes(onnx_attn.fuse(heads(size, size))) == []


def test_heads_beyond_256_stay_and_are_said_not_to_land() -> None:
    result = onnx_attn.fuse(heads(264, 264))
    (candidate,) = result.report["candidates"]
    assert (candidate["status"], candidate["changes"]) == ("site", [])
    assert "more than 256" in candidate["landing"]["reason"]


def test_float32_is_not_padded_for_nothing() -> None:
    assert changes(onnx_attn.fuse(heads(8, 8, np.float32))) == []
    assert changes(onnx_attn.fuse(heads(8, 8, np.float32), precision="fp16")) == ["fp16-island", "padded-heads"]


@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
def test_zeros_go_into_weights_where_these_are_the_site_s_own(tied: bool) -> None:
    model = projected(8, 8, tied)
    result = onnx_attn.fuse(model)
    assert changes(result) == ["padded-heads"]
    pads = [node.op_type for node in result.model.graph.node].count("Pad")
    assert bool(pads) == tied, "tied weights are nobody's to pad"
    assert_same(model, result.model, rtol=2e-3)


@pytest.mark.parametrize(("size", "value"), [(8, 8), (24, 16)])
def test_padded_projections_compute_the_same(size: int, value: int) -> None:
    model = projected(size, value)
    assert_same(model, onnx_attn.fuse(model).model, rtol=2e-3)
    wide = onnx_attn.fuse(projected(size, value), precision="keep", form="primitives")
    assert_same(model, wide.model, rtol=2e-3)


@pytest.mark.parametrize(("size", "value"), LANDS)
def test_padded_heads_land(size: int, value: int) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = heads(size, value)
    before, after = onnx_attn.land(model), onnx_attn.land(onnx_attn.fuse(model).model)
    assert (before["landed"], after["landed"]) == (0, 1)


def test_a_real_export_with_heads_of_eight_lands_whole() -> None:
    pytest.importorskip("tensorrt_rtx")
    model = EXPORTS / "edgenext_small.dynamo.18.static.onnx"
    result = onnx_attn.fuse(onnx.load(model), precision="fp16")
    found = [c["changes"] for c in result.report["candidates"] if c["status"] == "site"]
    assert ["fp16-island", "padded-heads"] in found
    landed = onnx_attn.land(result.model)
    assert landed["landed"] == landed["sites"] == len(found)
