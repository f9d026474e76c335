"""The exact identities: where each holds it is applied, and one counter-example for each condition, where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_same
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH, Net
from onnx import numpy_helper

import onnx_attn

CONSTANT, KEY, VALUE, SCALE = "constant-channel", "key-bias", "value-bias", "scale"
EVERY = [CONSTANT, KEY, VALUE, SCALE]


class Block:
    """A pre-norm block; parts can be changed by overriding what makes them."""

    def __init__(self, opset: int = 17, dtype: Any = np.float32, batch: Any = 2, sequence: Any = 5):
        self.net = Net(opset, dtype)
        self.x = self.net.input("x", batch, sequence, WIDTH)

    def norm(self, x: str, **attributes: Any) -> str:
        net = self.net
        gamma = net.const(1.0 + 0.3 * net.rng.standard_normal(WIDTH), name="gamma")
        beta = net.const(0.3 * net.rng.standard_normal(WIDTH), name="beta")
        return net.op("LayerNormalization", x, gamma, beta, **{"axis": -1, **attributes})

    def heads(self, source: str, bias: bool = True, heads: int = HEADS) -> str:
        return self.net.split_heads(self.net.linear(source, heads * HEAD_DIM, bias=bias), heads)

    def finish(self, merged: str, bias: bool = True) -> onnx.ModelProto:
        self.net.output(self.net.linear(merged, WIDTH, width=CHANNELS, bias=bias), 3)
        return self.net.model()

    def plain(self, source: str | None = None, **hooks: Any) -> onnx.ModelProto:
        source = source or self.norm(self.x)
        q, k, v = (self.heads(source) for _ in range(3))
        return self.finish(self.net.merge_heads(self.net.sdpa(q, self.net.swap(k), v, **hooks)))


def fused(model: onnx.ModelProto, rtol: float = 1e-5) -> tuple[list[str], dict[str, str], onnx.ModelProto]:
    """What was applied and what was left and why, after checking that the numbers are the same."""
    result = onnx_attn.fuse(model)
    (candidate,) = [c for c in result.report["candidates"] if c["status"] != "not_attention"]
    assert candidate["status"] == "site", candidate["reason"]
    assert_same(model, result.model, rtol=rtol)
    plain = onnx_attn.fuse(model, algebra=False)
    assert plain.report["candidates"][0]["algebra"] == []
    return candidate["algebra"], candidate["algebra_left"], result.model


def biases(model: onnx.ModelProto) -> int:
    """How many Adds of a stored vector there are."""
    vectors = {t.name for t in model.graph.initializer if len(t.dims) == 1}
    return sum(node.op_type == "Add" and bool(vectors & set(node.input)) for node in model.graph.node)


def test_all_of_them_hold_in_a_plain_block() -> None:
    applied, left, model = fused(Block().plain())
    assert (applied, left) == (EVERY, {})
    assert biases(model) == 1  # The out-projection's.
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    (norm,) = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    gamma, beta = (weights[name] for name in norm.input[1:])
    assert (np.count_nonzero(gamma == 1.0), gamma.sum()) == (WIDTH - 1, WIDTH - 1)
    assert (np.count_nonzero(beta), beta.sum()) == (1, 1.0)
    assert gamma[beta == 1.0] == 0.0


@pytest.mark.parametrize("opset", [17, 20, 23])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_they_hold_in_every_type_and_opset(opset: int, dtype: type) -> None:
    applied, _, _ = fused(Block(opset, dtype).plain(), rtol=1e-5 if dtype is np.float32 else 2e-3)
    assert applied == EVERY


def test_a_large_bias_costs_nothing() -> None:
    block = Block()
    source = block.norm(block.x)
    found = []
    for _ in range(3):
        product = block.net.op("MatMul", source, block.net.weight(WIDTH, CHANNELS))
        biased = block.net.op("Add", product, block.net.const(25 * block.net.rng.standard_normal(CHANNELS)))
        found.append(block.net.split_heads(biased))
    q, k, v = found
    assert fused(block.finish(block.net.merge_heads(block.net.sdpa(q, block.net.swap(k), v))), 1e-4)[0] == EVERY


# The constant channel.


def not_centred(block: Block) -> str:
    """RMS normalisation: no mean is removed."""
    net = block.net
    square = net.op("ReduceMean", net.op("Mul", block.x, block.x), axes=[-1], keepdims=1)
    root = net.op("Sqrt", net.op("Add", square, net.const(1e-5)))
    return net.op("Mul", net.op("Div", block.x, root), net.weight(WIDTH))


def read_by_the_residual(block: Block) -> str:
    normal = block.norm(block.x)
    block.net.output(block.net.op("Exp", normal), 3)
    return normal


def an_output(block: Block) -> str:
    normal = block.norm(block.x)
    block.net.output(normal, 3)
    return normal


def over_two_axes(block: Block) -> str:
    net = block.net
    weights = [net.const(net.rng.standard_normal((5, WIDTH))) for _ in range(2)]
    return net.op("LayerNormalization", block.x, *weights, axis=1)


def padded(block: Block) -> str:
    return block.net.op("Pad", block.norm(block.x), block.net.ints(0, 0, 0, 0, 2, 0))


def with_a_token(block: Block) -> str:
    token = block.net.const(block.net.rng.standard_normal((2, 1, WIDTH)))
    return block.net.op("Concat", token, block.norm(block.x), axis=1)


def without_gamma_in_the_model(block: Block) -> str:
    net = block.net
    return net.op("LayerNormalization", block.x, net.input("gamma", WIDTH), net.weight(WIDTH))


def not_whole_rows(block: Block) -> str:
    normal = block.net.op("LayerNormalization", block.net.reshape(block.x, 0, 0, 2, -1), *_small(block.net))
    return block.net.reshape(normal, 0, 0, -1)


def _small(net: Net) -> list[str]:
    return [net.weight(WIDTH // 2), net.weight(WIDTH // 2)]


def mean_is_read(block: Block) -> str:
    net = block.net
    normal, mean = net.op("LayerNormalization", block.x, net.weight(WIDTH), net.weight(WIDTH), outputs=2)
    net.output(mean, 3)
    return normal


NO_CONSTANT = [
    not_centred,
    read_by_the_residual,
    an_output,
    over_two_axes,
    padded,
    with_a_token,
    without_gamma_in_the_model,
    not_whole_rows,
    mean_is_read,
]


@pytest.mark.parametrize("source", NO_CONSTANT, ids=lambda f: f.__name__)
def test_no_constant_channel(source: Callable[[Block], str]) -> None:
    block = Block()
    applied, left, _ = fused(block.plain(source(block)))
    assert CONSTANT not in applied
    assert left[CONSTANT]


def rolled(block: Block) -> str:
    net, normal = block.net, block.norm(block.x)
    first = net.op("Slice", normal, net.ints(2), net.ints(5), net.ints(1))
    return net.op("Concat", first, net.op("Slice", normal, net.ints(0), net.ints(2), net.ints(1)), axis=1)


def turned(block: Block) -> str:
    return block.net.turn(block.norm(block.x), 1, 0, 2)


def padded_by_nothing(block: Block) -> str:
    return block.net.op("Pad", block.norm(block.x), block.net.ints(*[0] * 6))


def without_beta(block: Block) -> str:
    return block.net.op("LayerNormalization", block.x, block.net.weight(WIDTH))


def gamma_with_zeros(block: Block) -> str:
    gamma = np.where(np.arange(WIDTH) % 3, 1.5, 0.0)
    return block.net.op("LayerNormalization", block.x, block.net.const(gamma), block.net.weight(WIDTH))


def gamma_is_zero(block: Block) -> str:
    return block.net.op("LayerNormalization", block.x, block.net.const(np.zeros(WIDTH)), block.net.weight(WIDTH))


@pytest.mark.parametrize(
    "source",
    [rolled, turned, padded_by_nothing, without_beta, gamma_with_zeros, gamma_is_zero],
    ids=lambda f: f.__name__,
)
def test_a_constant_channel_all_the_same(source: Callable[[Block], str]) -> None:
    block = Block()
    assert CONSTANT in fused(block.plain(source(block)))[0]


def test_without_biases_nothing_needs_a_constant() -> None:
    block = Block()
    source = block.norm(block.x)
    q, k, v = (block.heads(source, bias=False) for _ in range(3))
    applied, left, _ = fused(block.finish(block.net.merge_heads(block.net.sdpa(q, block.net.swap(k), v))))
    assert (applied, left) == ([SCALE], {})


def test_where_sizes_vary_biases_stay() -> None:
    applied, left, _ = fused(Block(batch="batch").plain())
    assert CONSTANT not in applied
    assert "vary" in left[CONSTANT]


def test_other_runtimes_gain_nothing_by_it() -> None:
    report = onnx_attn.fuse(Block().plain(), target="onnxruntime").report
    assert report["candidates"][0]["algebra"] == [KEY, VALUE, SCALE]


def test_two_sites_on_one_norm_share_it() -> None:
    block = Block()
    source, merged = block.norm(block.x), []
    for name in ("first", "second"):
        q, k, v = (block.heads(source) for _ in range(3))
        merged.append(block.net.merge_heads(block.net.sdpa(q, block.net.swap(k), v, name=name)))
    model = block.finish(block.net.op("Add", *merged))
    result = onnx_attn.fuse(model)
    assert result.report["fused"] == 2
    assert all(CONSTANT not in c["algebra"] for c in result.report["candidates"])
    assert_same(model, result.model)


# K's bias.


def test_keys_of_another_origin_keep_the_bias() -> None:
    block = Block()
    net, source = block.net, block.norm(block.x)
    q, k, v = (block.heads(source) for _ in range(3))
    k = net.op("Concat", net.input("past_k", 2, HEADS, 3, HEAD_DIM), k, axis=2)
    v = net.op("Concat", net.input("past_v", 2, HEADS, 3, HEAD_DIM), v, axis=2)
    applied, _, _ = fused(block.finish(net.merge_heads(net.sdpa(q, net.swap(k), v))))
    assert not {KEY, VALUE, CONSTANT} & set(applied)


def test_a_padded_key_keeps_the_bias() -> None:
    """add_zero_attn: one more key of zeros, and a value of zeros."""
    block = Block()
    net, source = block.net, block.norm(block.x)
    q, k, v = (block.heads(source) for _ in range(3))
    k, v = (net.op("Pad", each, net.ints(0, 0, 0, 0, 0, 0, 1, 0)) for each in (k, v))
    applied, _, _ = fused(block.finish(net.merge_heads(net.sdpa(q, net.swap(k), v))))
    assert not {KEY, VALUE, CONSTANT} & set(applied)


def rotary(net: Net, value: str) -> str:
    half = HEAD_DIM // 2
    first, second = net.op("Split", value, net.ints(half, half), outputs=2, axis=-1)
    turned_half = net.op("Concat", net.op("Neg", second), first, axis=-1)
    cos, sin = (net.const(f(np.outer(np.arange(5), np.arange(HEAD_DIM)))) for f in (np.cos, np.sin))
    return net.op("Add", net.op("Mul", value, cos), net.op("Mul", turned_half, sin))


def test_rotary_keys_keep_the_bias() -> None:
    block = Block()
    net, source = block.net, block.norm(block.x)
    q, k, v = (block.heads(source) for _ in range(3))
    merged = net.merge_heads(net.sdpa(rotary(net, q), net.swap(rotary(net, k)), v))
    assert KEY not in fused(block.finish(merged))[0]


@pytest.mark.parametrize("fill", [0.0, -5.0, -1e4])
def test_scores_that_are_replaced_by_something_probable_keep_the_bias(fill: float) -> None:
    block = Block()
    net = block.net

    def masked(value: str) -> str:
        return net.op("Where", net.input("keep", 2, 1, 5, 5, dtype=bool), net.scaled(value), net.const(fill))

    applied, left, _ = fused(block.plain(scores=masked))
    assert KEY not in applied
    assert "replaced" in left[KEY]


@pytest.mark.parametrize("fill", [-np.inf, np.finfo(np.float32).min])
def test_scores_that_are_replaced_by_nothing_drop_it(fill: float) -> None:
    block = Block()
    net = block.net

    def masked(value: str) -> str:
        return net.op("Where", net.input("keep", 2, 1, 5, 5, dtype=bool), net.scaled(value), net.const(fill))

    assert KEY in fused(block.plain(scores=masked))[0]


def test_added_masks_drop_it() -> None:
    block = Block()
    net = block.net
    model = block.plain(scores=lambda s: net.op("Add", net.scaled(s), net.input("mask", 2, 1, 5, 5)))
    assert fused(model)[0] == EVERY


@pytest.mark.parametrize("use", ["node", "output"])
def test_keys_that_somebody_else_reads_keep_the_bias(use: str) -> None:
    block = Block()
    net, source = block.net, block.norm(block.x)
    q, k, v = (block.heads(source) for _ in range(3))
    net.output(net.op("Exp", k) if use == "node" else k)
    applied, _, _ = fused(block.finish(net.merge_heads(net.sdpa(q, net.swap(k), v))))
    assert not {KEY, CONSTANT} & set(applied)


def test_score_terms_made_from_keys_keep_the_bias() -> None:
    block = Block()
    net, source = block.net, block.norm(block.x)
    q, k, v = (block.heads(source) for _ in range(3))
    term = net.op("ReduceSum", k, net.ints(-1), keepdims=0)
    term = net.op("Unsqueeze", term, net.ints(2))
    y = net.sdpa(q, net.swap(k), v, scores=lambda s: net.op("Add", net.scaled(s), term))
    assert not {KEY, CONSTANT} & set(fused(block.finish(net.merge_heads(y)))[0])


# V's bias.


def test_rows_that_are_cleared_keep_the_bias_of_values() -> None:
    block = Block()
    net = block.net
    model = block.plain(probabilities=lambda p: net.op("Where", net.op("IsNaN", p), net.const(0.0), p))
    applied, left, _ = fused(model)
    assert applied == [CONSTANT, KEY, SCALE]
    assert "cleared" in left[VALUE]


def test_an_operator_that_answers_0_keeps_the_bias_of_values() -> None:
    block = Block(23)
    net, source = block.net, block.norm(block.x)
    q, k, v = (block.heads(source) for _ in range(3))
    y = net.op("Attention", q, k, v, net.input("mask", 2, 1, 5, 5), scale=0.3, name="softmax")
    applied, left, _ = fused(block.finish(net.merge_heads(y)))
    assert VALUE not in applied
    assert "cleared" in left[VALUE]


def behind(block: Block, between: Callable[[Net, str], str]) -> onnx.ModelProto:
    net, source = block.net, block.norm(block.x)
    q, k, v = (block.heads(source) for _ in range(3))
    return block.finish(between(net, net.merge_heads(net.sdpa(q, net.swap(k), v))))


def residual(net: Net, value: str) -> str:
    return net.op("Add", value, net.input("y", 2, 5, CHANNELS))


def read_twice(net: Net, value: str) -> str:
    net.output(net.op("Exp", value), 3)
    return value


def rows_mixed(net: Net, value: str) -> str:
    return net.reshape(net.turn(net.reshape(value, 2, 5, HEADS, HEAD_DIM), 0, 2, 3, 1), 2, 5, CHANNELS)


@pytest.mark.parametrize(
    "between",
    [lambda net, v: net.op("Relu", v), residual, read_twice, rows_mixed],
    ids=["relu", "residual", "read twice", "rows mixed"],
)
def test_no_linear_layer_directly_behind(between: Callable[[Net, str], str]) -> None:
    applied, left, _ = fused(behind(Block(), between))
    assert applied == [CONSTANT, KEY, SCALE]
    assert left[VALUE]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("spelling", ["matmul", "gemm", "gemm with factors", "turned weights"])
def test_out_projections_of_every_spelling(spelling: str, bias: bool) -> None:
    block = Block()
    net, source = block.net, block.norm(block.x)
    q, k, v = (block.heads(source) for _ in range(3))
    merged = net.merge_heads(net.sdpa(q, net.swap(k), v))
    if spelling == "matmul":
        model = block.finish(merged, bias)
    else:
        flat, vector = net.reshape(merged, -1, CHANNELS), [net.weight(WIDTH)] if bias else []
        if spelling == "gemm":
            made = net.op("Gemm", flat, net.weight(CHANNELS, WIDTH), *vector)
        elif spelling == "gemm with factors":
            made = net.op("Gemm", flat, net.weight(WIDTH, CHANNELS), *vector, alpha=0.7, beta=1.3, transB=1)
        else:
            made = net.op("MatMul", flat, net.turn(net.weight(WIDTH, CHANNELS), 1, 0))
            made = net.op("Add", vector[0], made) if bias else made
        net.output(net.reshape(made, 2, 5, WIDTH), 3)
        model = net.model()
    assert fused(model)[0] == EVERY


def test_a_shared_out_projection_keeps_its_own_bias_elsewhere() -> None:
    block = Block()
    net, source = block.net, block.norm(block.x)
    q, k, v = (block.heads(source) for _ in range(3))
    merged = net.merge_heads(net.sdpa(q, net.swap(k), v))
    weight, bias = net.weight(CHANNELS, WIDTH), net.weight(WIDTH)
    for value in (merged, net.input("y", 2, 5, CHANNELS)):
        net.output(net.op("Add", net.op("MatMul", value, weight), bias), 3)
    assert fused(net.model())[0] == EVERY


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("operator", [False, True])
def test_the_bias_of_shared_heads_counts_once_for_each_query_head(count: int, operator: bool) -> None:
    heads = 4
    block = Block(23)
    net, source = block.net, block.norm(block.x)
    q = block.heads(source, heads=heads)
    k, v = (block.heads(source, heads=count) for _ in range(2))
    if operator:
        y = net.op("Attention", q, k, v, scale=0.25, name="softmax")
    else:
        k, v = (
            net.op("Expand", net.op("Unsqueeze", each, net.ints(2)), net.ints(1, 1, heads // count, 1, 1))
            for each in (k, v)
        )
        k, v = (net.reshape(each, 0, heads, 5, HEAD_DIM) for each in (k, v))
        y = net.sdpa(q, net.swap(k), v)
    merged = net.merge_heads(y, heads * HEAD_DIM)
    net.output(net.linear(merged, WIDTH, width=heads * HEAD_DIM), 3)
    result = onnx_attn.fuse(net.model())
    (candidate,) = result.report["candidates"]
    assert (candidate["kv_heads"], candidate["packed"], candidate["algebra"]) == (count, True, EVERY)
    assert_same(net.model(), result.model)


# The scale.


def test_a_query_that_somebody_else_reads_unscaled_is_not_scaled() -> None:
    """Decomposed relative positions read Q before its scale."""
    block = Block()
    net, source = block.net, block.norm(block.x)
    q, k, v = (block.heads(source) for _ in range(3))
    term = net.op("MatMul", q, net.weight(HEAD_DIM, 5))
    y = net.sdpa(q, net.swap(k), v, scores=lambda s: net.op("Add", net.scaled(s), term))
    assert not {SCALE, CONSTANT} & set(fused(block.finish(net.merge_heads(y)))[0])


@pytest.mark.parametrize("factor", [0.125, HEAD_DIM**-0.5, -0.3, 1e-3, 40.0])
def test_a_scale_of_any_kind_is_folded(factor: float) -> None:
    block = Block()
    model = block.plain(scores=lambda s: block.net.scaled(s, factor))
    applied, _, made = fused(model, 1e-4)
    assert SCALE in applied
    (call,) = [node for node in made.graph.node if node.domain == "onnx_attn"]
    assert next(attribute.f for attribute in call.attribute if attribute.name == "scale") == 1.0


@pytest.mark.parametrize("factor", [2.0**-10, 2.0**10])
def test_a_scale_that_half_precision_cannot_hold_is_left(factor: float) -> None:
    """Weights that sink below the smallest normal number, or overflow: the site is written without algebra."""
    block = Block(dtype=np.float16)
    model = block.plain(scores=lambda s: block.net.scaled(block.net.scaled(s, factor), factor))
    result = onnx_attn.fuse(model, verify=False)
    (candidate,) = result.report["candidates"]
    assert (candidate["status"], candidate["algebra"]) == ("site", [])
    assert "cannot be held" in candidate["algebra_left"][SCALE]


def test_weights_that_are_shared_are_not_changed() -> None:
    block = Block()
    net, source = block.net, block.norm(block.x)
    weight = net.weight(WIDTH, CHANNELS, name="tied")
    q, k = (net.split_heads(net.op("Add", net.op("MatMul", source, weight), net.weight(CHANNELS))) for _ in range(2))
    model = block.finish(net.merge_heads(net.sdpa(q, net.swap(k), block.heads(source))))
    applied, _, made = fused(model)
    assert applied == []
    assert "tied" in {tensor.name for tensor in made.graph.initializer}
