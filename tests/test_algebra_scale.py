"""The scale is folded into Q's projection where that is Q's alone and the type can hold it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_same
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH
from onnx import numpy_helper
from pre_norm import ALL, MIXED, ROOT, PreNorm, assert_applied, assert_sound, assert_stays, stored

import onnx_attn

SCALE = "scale"


def scaled_by(factor: float, place: str = "scores", **more: Any) -> PreNorm:
    """A block without biases, in which nothing but the scale is to be done. Its result is the block's last output."""
    block = PreNorm(**more)
    net = block.net
    q, k, v = block.heads(block.x, "")
    part = math.sqrt(factor) if place == "both" else factor
    q = net.scaled(q, part) if place in ("query", "both") else q
    k = net.scaled(k, part) if place in ("key", "both") else k
    scores = (lambda s: net.scaled(s, part)) if place == "scores" else (lambda s: s)
    net.output(block.out(block.attend(q, k, v, scores=scores)), 3)
    return block


def written_scale(fused: onnx.ModelProto) -> float:
    (call,) = [node for node in fused.graph.node if node.domain == "onnx_attn"]
    return next(attribute.f for attribute in call.attribute if attribute.name == "scale")


def query_weights(model: onnx.ModelProto) -> np.ndarray:
    """The packed weights' share of Q."""
    weight = stored(model, "in_proj_weight")
    assert weight is not None
    return weight[:, :CHANNELS]


@pytest.mark.parametrize("place", ["scores", "query", "key", "both"])
@pytest.mark.parametrize("factor", [ROOT, 0.125, 3.0])
def test_wherever_it_stands(place: str, factor: float) -> None:
    model = scaled_by(factor, place).net.model()
    fused = assert_applied(model, SCALE)
    assert written_scale(fused) == 1.0
    assert not [node for node in fused.graph.node if node.op_type in ("Mul", "Div")]
    first = next(numpy_helper.to_array(t) for t in model.graph.initializer if list(t.dims) == [WIDTH, CHANNELS])
    np.testing.assert_allclose(query_weights(fused), first * factor, rtol=1e-6)


@pytest.mark.parametrize("factor", [0.5, 2.0**-3, 4.0, -1.0, -0.25])
def test_a_power_of_two_rounds_nothing(factor: float) -> None:
    model = scaled_by(factor).net.model()
    fused = assert_applied(model, SCALE)
    first = next(numpy_helper.to_array(t) for t in model.graph.initializer if list(t.dims) == [WIDTH, CHANNELS])
    np.testing.assert_array_equal(query_weights(fused), first * np.float32(factor))


@pytest.mark.parametrize("factor", [-ROOT, 0.0, 1e-30])
def test_signs_and_nothing(factor: float) -> None:
    assert_applied(scaled_by(factor).net.model(), SCALE)


def test_no_scale_is_nothing_to_fold() -> None:
    assert_applied(scaled_by(1.0).net.model())


def test_factors_that_cancel_are_nothing_to_fold() -> None:
    block = PreNorm()
    net = block.net
    q, k, v = block.heads(block.x, "")
    attended = block.attend(net.scaled(q, 0.25), net.scaled(k, 4.0), v, scores=lambda s: s)
    fused = assert_applied(block.model(block.out(attended)))
    assert written_scale(fused) == 1.0


@pytest.mark.parametrize("factor", [1e-9, 1e9, 2.0**-22])
def test_weights_that_half_precision_cannot_hold(factor: float) -> None:
    """They would sink below the smallest normal number, or overflow."""
    result = onnx_attn.fuse(half_with_scale(factor), verify=False)
    (candidate,) = result.report["candidates"]
    assert (candidate["status"], candidate["packed"], candidate["algebra"]) == ("site", True, [])
    assert "cannot be held in float16" in candidate["algebra_left"][SCALE]


def half_with_scale(factor: float) -> onnx.ModelProto:
    """Two factors, each of which half precision can hold."""
    block = PreNorm(dtype=np.float16)
    net, root = block.net, math.sqrt(factor)
    return block.model(block.block(biases="", scores=lambda s: net.scaled(net.scaled(s, root), root)))


@pytest.mark.parametrize("factor", [0.125, ROOT, 2.0**-5])
def test_half_precision_holds_the_usual_ones(factor: float) -> None:
    result = onnx_attn.fuse(half_with_scale(factor))
    (candidate,) = result.report["candidates"]
    assert (candidate["algebra"], candidate["certificate"]["ok"]) == ([SCALE], True)


def test_one_channel_that_sinks_is_enough_to_leave_it() -> None:
    """Its weights are small beside the others' and yet decide its part of the scores, K's being large."""
    block = PreNorm(dtype=np.float16)
    net = block.net
    weights = net.rng.standard_normal((WIDTH, CHANNELS)) / 4
    weights[:, 7] *= 2.0**-13
    q = net.split_heads(block.net.linear(block.x, CHANNELS, weight=net.const(weights), bias=False))
    k, v = (net.split_heads(block.layer(block.x, bias=False)) for _ in range(2))
    result = onnx_attn.fuse(block.model(block.out(block.attend(q, k, v, scores=lambda s: net.scaled(s, 0.03)))))
    assert result.report["candidates"][0]["algebra"] == []


def test_queries_that_are_read_unscaled() -> None:
    """Decomposed relative positions: `scale·Q·Kᵀ + Q·R`."""
    block = PreNorm()
    net = block.net
    q, k, v = block.heads(block.x)
    positions = net.op("MatMul", q, net.weight(HEAD_DIM, 5))
    attended = block.attend(q, k, v, scores=lambda s: net.op("Add", net.scaled(s), positions))
    assert_stays(block.model(block.out(attended)), SCALE)


def test_query_heads_that_are_an_output() -> None:
    block = PreNorm()
    q, k, v = block.heads(block.x)
    block.net.output(q)
    assert_stays(block.model(block.out(block.attend(q, k, v))), SCALE)


@pytest.mark.parametrize("other", ["k", "v", "elsewhere"])
def test_weights_that_are_shared(other: str) -> None:
    block = PreNorm()
    net = block.net
    weight = net.weight(WIDTH, CHANNELS, name="tied")
    q = net.split_heads(net.linear(block.x, CHANNELS, weight=weight))
    k, v = (net.split_heads(net.linear(block.x, CHANNELS, weight=weight if role == other else None)) for role in "kv")
    if other == "elsewhere":
        net.output(net.op("MatMul", block.x, weight), 3)
    fused = assert_stays(block.model(block.out(block.attend(q, k, v))), SCALE)
    assert "tied" in {tensor.name for tensor in fused.graph.initializer}


def test_one_packed_layer_of_which_somebody_reads_a_part() -> None:
    """The layer stays; its result is split anew, and Q's part carries no scale."""
    block = PreNorm()
    net = block.net
    layer = block.layer(block.x, 3 * CHANNELS)
    net.output(net.op("ReduceMean", layer, axes=[1]), 3)
    q, k, v = (net.split_heads(t) for t in net.op("Split", layer, net.ints(*[CHANNELS] * 3), outputs=3, axis=-1))
    fused = assert_stays(block.model(block.out(block.attend(q, k, v))), SCALE, "read elsewhere")
    assert written_scale(fused) == pytest.approx(ROOT)


def test_queries_alone_are_no_group_with_a_learned_query() -> None:
    """Q is a weight: its factor is applied where it was."""
    block = PreNorm()
    net = block.net
    k, v = (net.split_heads(block.layer(block.x)) for _ in range(2))
    q = net.weight(1, HEADS, 3, HEAD_DIM)
    assert_stays(block.model(block.out(block.attend(q, k, v))), SCALE)


def test_cross_attention_folds_it_into_queries_of_their_own() -> None:
    block = PreNorm()
    net = block.net
    memory = net.input("memory", 2, 7, WIDTH)
    q = net.split_heads(block.layer(block.x))
    k, v = (net.split_heads(block.layer(memory)) for _ in range(2))
    assert written_scale(assert_applied(block.model(block.out(block.attend(q, k, v))), *MIXED)) == 1.0


@pytest.mark.parametrize("kv_heads", [1, HEADS])
@pytest.mark.parametrize("place", ["query", "key"])
def test_shared_heads(kv_heads: int, place: str) -> None:
    block = PreNorm()
    net = block.net
    q, k, v = block.heads(block.x, kv_heads=kv_heads)
    q, k = (net.scaled(q), k) if place == "query" else (q, net.scaled(k))
    if kv_heads == 1:
        k, v = (net.op("Expand", t, net.ints(2, HEADS, 5, HEAD_DIM)) for t in (k, v))
    model = block.model(block.out(block.attend(q, k, v, scores=lambda s: s)))
    _, (candidate,) = assert_sound(model)
    assert candidate["status"] == "site"
    assert (SCALE in candidate["algebra"]) == candidate["packed"]


def test_bias_of_the_queries_is_scaled_too() -> None:
    block = PreNorm()
    fused = assert_applied(block.model(block.block(biases="q")), SCALE)
    model = PreNorm()
    plain = onnx_attn.fuse(model.model(model.block(biases="q")), algebra=False).model
    before, after = stored(plain, "in_proj_bias"), stored(fused, "in_proj_bias")
    assert before is not None and after is not None
    np.testing.assert_allclose(after, before * ROOT, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.7, -2.0])
def test_factors_of_a_gemm_are_folded_with_it(alpha: float) -> None:
    block = PreNorm()
    net = block.net
    flat = net.reshape(block.x, -1, WIDTH)

    def layer() -> str:
        made = net.op("Gemm", flat, net.weight(CHANNELS, WIDTH), net.weight(CHANNELS), transB=1, alpha=alpha, beta=1.3)
        return net.split_heads(net.reshape(made, 2, 5, CHANNELS))

    assert_applied(block.model(block.out(block.attend(layer(), layer(), layer()))), *MIXED)


def test_with_a_norm_all_of_them_hold_together() -> None:
    block = PreNorm()
    fused = assert_applied(block.model(block.block(block.norm())), *ALL)
    assert written_scale(fused) == 1.0


def test_without_algebra_it_stays() -> None:
    block = PreNorm()
    model = block.model(block.block(block.norm()))
    result = onnx_attn.fuse(model, algebra=False)
    (candidate,) = result.report["candidates"]
    assert (candidate["packed"], candidate["algebra"], candidate["algebra_left"]) == (True, [], {})
    assert written_scale(result.model) == pytest.approx(ROOT)
    assert_same(model, result.model)


def test_form_primitives_has_no_scale_left() -> None:
    block = PreNorm()
    model = block.model(block.block(block.norm()))
    result = onnx_attn.fuse(model, form="primitives")
    assert result.report["candidates"][0]["algebra"] == ALL
    assert not [node for node in result.model.graph.node if node.op_type in ("Mul", "Div")]
    assert_same(model, result.model)


def test_scale_is_folded_where_values_are_not_projected() -> None:
    block = PreNorm()
    q, k, _ = block.heads(block.x)
    v = block.net.input("v", 2, HEADS, 5, HEAD_DIM)
    assert_applied(block.model(block.out(block.attend(q, k, v))), "key-bias", "scale")
