"""Which of the exact identities a site takes: facts on which a single condition of `algebra/choose.py` and `key_bias.py` hangs.

Everything is written without a proof to fall back on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_same, feeds
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH, Net, same
from onnx import numpy_helper
from pre_norm import ALL, PreNorm, assert_constant_channel
from quantised import step

import onnx_attn
from onnx_attn.views import folding

LEFT = dict.fromkeys(ALL, "weights or what is made of them are quantised")


def written(model: onnx.ModelProto, rtol: float = 1e-5) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The fused model, unproved and yet the same, and its one candidate."""
    result = onnx_attn.fuse(model, verify=False)
    (candidate,) = result.report["candidates"]
    assert candidate["status"] == "site", candidate["reason"]
    assert_same(model, result.model, rtol=rtol)
    return result.model, candidate


def test_a_constant_channel_alone_makes_weights_anew() -> None:
    """No scale, and no bias that could go anywhere else: nothing but the LayerNorm's constant changes numbers."""
    block = PreNorm()
    fused, candidate = written(block.model(block.block(block.norm(), "q", scores=same)))
    assert candidate["algebra"] == ["constant-channel"]
    assert_constant_channel(fused)


def cross_attention(biased: str) -> onnx.ModelProto:
    """Q from x by the weights `wq`, K and V from a memory; no scale."""
    block = PreNorm()
    net = block.net
    memory = net.input("memory", 2, 7, WIDTH)
    q = net.op("MatMul", block.x, net.weight(WIDTH, CHANNELS, name="wq"))
    k, v = (net.split_heads(block.layer(memory, bias=role in biased)) for role in "kv")
    return block.model(block.out(block.attend(net.split_heads(q), k, v, scores=same)))


@pytest.mark.parametrize(("biased", "name"), [("k", "key-bias"), ("v", "value-bias")])
def test_what_becomes_of_biases_of_keys_and_values_leaves_the_queries_layer_as_it_is(biased: str, name: str) -> None:
    model = cross_attention(biased)
    fused, candidate = written(model)
    assert candidate["packed"] and candidate["algebra"] == [name]
    (layer,) = [node for node in model.graph.node if "wq" in node.input]
    assert layer in fused.graph.node


def stepped(roles: str, kv_heads: int = HEADS) -> onnx.ModelProto:
    """A block whose Q, K or V are quantised in front of the products."""
    block = PreNorm(opset=19)
    found = zip("qkv", block.heads(block.x, kv_heads=kv_heads), strict=True)
    operands = [step(block.net, value, 1 / 16) if role in roles else value for role, value in found]
    return block.model(block.out(block.attend(*operands)))


@pytest.mark.parametrize("roles", ["q", "k", "v", "qk", "qkv"])
def test_one_quantised_operand_keeps_algebra_away(roles: str) -> None:
    _, candidate = written(stepped(roles), 2e-2)
    assert (candidate["packed"], candidate["algebra"], candidate["algebra_left"]) == (True, [], LEFT)


def test_a_quantised_query_that_no_layer_makes_keeps_algebra_away() -> None:
    """It is not packed, and rounded all the same."""
    block = PreNorm(opset=19)
    _, k, v = block.heads(block.x)
    q = step(block.net, block.net.input("q", 2, HEADS, 5, HEAD_DIM), 1 / 16)
    _, candidate = written(block.model(block.out(block.attend(q, k, v))))
    assert (candidate["packed"], candidate["algebra"], candidate["algebra_left"]) == (True, [], LEFT)


def test_quantised_probabilities_keep_algebra_away() -> None:
    """Rounded rows do not sum to 1."""
    block = PreNorm(opset=19)
    model = block.model(block.block(probabilities=lambda p: step(block.net, p, 1 / 127)))
    _, candidate = written(model, 2e-2)
    assert (candidate["packed"], candidate["algebra"], candidate["algebra_left"]) == (True, [], LEFT)


def rounded_before_its_bias(net: Net, source: str) -> str:
    return net.op("Add", step(net, net.op("MatMul", source, net.weight(WIDTH, CHANNELS)), 1 / 16), net.weight(CHANNELS))


def narrow_weights(net: Net, source: str) -> str:
    numbers = net.const(net.rng.integers(-127, 127, (WIDTH, CHANNELS)), np.int8)
    weight = net.op("DequantizeLinear", numbers, net.const(1 / 256), net.const(0, np.int8))
    return net.linear(source, CHANNELS, weight=weight)


@pytest.mark.parametrize("layer", [rounded_before_its_bias, narrow_weights], ids=lambda f: f.__name__)
@pytest.mark.parametrize("queries_too", [True, False])
def test_quantised_layers_keep_algebra_away(layer: Callable[[Net, str], str], queries_too: bool) -> None:
    """Also where they are but those of K and V, beside a layer of floats of Q's own."""
    block = PreNorm(opset=19)
    net = block.net
    memory = net.input("memory", 2, 7, WIDTH)
    q = layer(net, block.x) if queries_too else block.layer(block.x)
    q, k, v = (net.split_heads(each) for each in (q, layer(net, memory), layer(net, memory)))
    _, candidate = written(block.model(block.out(block.attend(q, k, v))), 2e-2)
    assert (candidate["packed"], candidate["algebra"], candidate["algebra_left"]) == (True, [], LEFT)


def test_a_bias_that_a_gemm_multiplies_by_0_is_none() -> None:
    """Nothing is dropped, moved or carried by a constant where nothing is added."""
    block = PreNorm()
    net = block.net
    flat = net.reshape(block.norm(), -1, WIDTH)

    def layer() -> str:
        made = net.op("Gemm", flat, net.weight(WIDTH, CHANNELS), net.weight(CHANNELS), beta=0.0)
        return net.split_heads(net.reshape(made, 2, 5, CHANNELS))

    _, candidate = written(block.model(block.out(block.attend(layer(), layer(), layer()))))
    assert (candidate["packed"], candidate["algebra"], candidate["algebra_left"]) == (True, ["scale"], {})


def test_a_bias_whose_numbers_cannot_be_had_may_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored narrow, and too large to be computed here: weights are written without algebra, or not packed."""
    monkeypatch.setattr(folding, "MOST_BYTES", CHANNELS)
    block = PreNorm(opset=19)
    net = block.net

    def layer() -> str:
        numbers = net.const(net.rng.integers(-99, 99, CHANNELS), np.int32)
        bias = net.op("DequantizeLinear", numbers, net.const(0.01))
        return net.split_heads(net.op("Add", net.op("MatMul", block.x, net.weight(WIDTH, CHANNELS)), bias))

    _, candidate = written(block.model(block.out(block.attend(layer(), layer(), layer()))))
    assert candidate["algebra"] == []


def test_a_row_of_the_norms_weights_lies_where_the_constant_does() -> None:
    """Of the packed weights, the row of the channel that carries the constant is b + β·W, whole."""
    block = PreNorm()
    gamma = np.where(np.arange(WIDTH) == 3, 0.0, 1.5)
    fused, candidate = written(block.model(block.block(block.norm(gamma=gamma), "q", scores=same)))
    assert candidate["algebra"] == ["constant-channel"]
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in fused.graph.initializer}
    before = {node.name: node for node in block.net.nodes}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in block.net.weights}
    (norm,) = [node for node in before.values() if node.op_type == "LayerNormalization"]
    query, bias = (
        stored[next(node for node in block.net.nodes if node.op_type == op).input[1]] for op in ("MatMul", "Add")
    )
    (packed,) = [value for name, value in weights.items() if name.endswith("in_proj_weight")]
    np.testing.assert_allclose(packed[3, :CHANNELS], bias + stored[norm.input[2]] @ query, rtol=1e-5, atol=1e-6)


BLOCKED: dict[str, Callable[[Net, str], str]] = {
    "added": lambda net, s: net.op("Add", s, net.input("other", 2, 1, 5, 5)),
    "subtracted": lambda net, s: net.op("Sub", s, net.input("other", 2, 1, 5, 5)),
    "multiplied": lambda net, s: net.scaled(s, 2.0**-12),
    "multiplied by head": lambda net, s: net.op("Mul", s, net.const(np.full((1, HEADS, 1, 1), 2.0**-12))),
}


@pytest.mark.parametrize("how", BLOCKED)
def test_the_lowest_number_of_half_precision_has_a_probability_where_all_others_are_as_low(how: str) -> None:
    """A second mask blocks just the keys that the first one keeps, or a factor brings all scores together: then K's bias, which
    is large here, decides between them."""
    block = PreNorm(dtype=np.float16)
    net, lowest = block.net, float(np.finfo(np.float16).min)
    allowed = net.input("allowed", 2, 1, 5, 5, dtype=bool)
    q, _, v = block.heads(block.x)
    product = net.op("MatMul", block.x, net.weight(WIDTH, CHANNELS))
    k = net.split_heads(net.op("Add", product, net.const(np.full(CHANNELS, 2000.0))))
    y = block.attend(
        q, k, v, scores=lambda s: BLOCKED[how](net, net.op("Where", allowed, net.scaled(s), net.const(lowest)))
    )
    model = block.model(block.out(y))
    inputs = feeds(model)
    if "other" in inputs:
        inputs["other"] = np.where(inputs["allowed"], lowest if how == "added" else -lowest, 0).astype(np.float16)
    result = onnx_attn.fuse(model, verify=False)
    (candidate,) = result.report["candidates"]
    assert "may have a probability" in candidate["algebra_left"]["key-bias"]
    assert_same(model, result.model, inputs, 2e-2)


def test_a_factor_in_front_of_a_mask_lets_the_bias_go() -> None:
    block = PreNorm()
    net = block.net
    allowed, factors = net.input("allowed", 2, 1, 5, 5, dtype=bool), net.weight(1, HEADS, 1, 1)

    def scores(value: str) -> str:
        return net.op("Where", allowed, net.op("Mul", value, factors), net.const(np.finfo(np.float32).min))

    assert "key-bias" in written(block.model(block.block(scores=scores)))[1]["algebra"]
