"""What follows P·V, and whether V's bias may go behind it: one fact for a condition of `algebra/value_bias.py`, without a
proof to fall back on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_same, feeds, run
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH, Net
from pre_norm import MIXED, PreNorm
from quantised import step

import onnx_attn
from onnx_attn.algebra.value_bias import MOST_STEPS
from onnx_attn.views import folding

VALUE = "value-bias"


def written(
    model: onnx.ModelProto, inputs: dict[str, np.ndarray] | None = None, runs: bool = True
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The fused model, unproved and yet the same, and its one candidate."""
    result = onnx_attn.fuse(model, verify=False)
    (candidate,) = result.report["candidates"]
    assert candidate["status"] == "site", candidate["reason"]
    if runs:
        assert_same(model, result.model, inputs)
    return result.model, candidate


def assert_stays(model: onnx.ModelProto, because: str, inputs: dict[str, np.ndarray] | None = None) -> None:
    _, candidate = written(model, inputs)
    assert VALUE not in candidate["algebra"]
    assert because in candidate["algebra_left"][VALUE], candidate["algebra_left"]


def merged(block: PreNorm) -> str:
    return block.net.merge_heads(block.attend(*block.heads(block.x)))


@pytest.mark.parametrize("first", [True, False])
def test_rows_of_which_some_go_elsewhere(first: bool) -> None:
    """A class token is projected, the other tokens are returned as they are."""
    block = PreNorm()
    net = block.net
    parts = net.op("Split", merged(block), net.ints(1, 4) if first else net.ints(4, 1), outputs=2, axis=1)
    parts = parts if first else parts[::-1]
    net.output(parts[1], 3)
    assert_stays(block.model(net.linear(parts[0], WIDTH, width=CHANNELS)), "stands between")


def test_a_result_that_is_read_after_its_projection_too() -> None:
    """Whoever reads first is not alone for that."""
    block = PreNorm()
    net = block.net
    value = merged(block)
    projected = net.linear(value, WIDTH, width=CHANNELS)
    net.output(net.op("Exp", value), 3)
    assert_stays(block.model(projected), "more than its out-projection")


@pytest.mark.parametrize("many", [0, 1])
def test_next_site_is_looked_for_so_many_steps_ahead(many: int) -> None:
    """Where the way is longer, there may be one."""
    block = PreNorm()
    value = block.block()
    for _ in range(MOST_STEPS + many):
        value = block.net.op("Identity", value)
    model = block.model(value)
    if many:
        assert_stays(model, "another site")
    else:
        assert written(model)[1]["algebra"] == MIXED


def test_a_product_before_its_bias_that_an_annotation_names_stays_what_it_is() -> None:
    """The scale of another value's quantisation, as far as anybody can know: the named value is computed as ever."""
    block = PreNorm()
    net = block.net
    product = net.op("MatMul", merged(block), net.weight(CHANNELS, WIDTH))
    model = block.model(net.op("Add", product, net.weight(WIDTH)))
    note = model.graph.quantization_annotation.add(tensor_name="x")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=product)
    fused, _ = written(model)
    for each in (model, fused):
        each.graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info(product, onnx.TensorProto.FLOAT, None))
    inputs = feeds(model)
    np.testing.assert_allclose(run(fused, inputs)[1], run(model, inputs)[1], rtol=1e-4, atol=1e-5)


def test_a_product_read_by_a_node_that_makes_nothing() -> None:
    """As one that logs what it is given."""
    block = PreNorm()
    net = block.net
    product = net.op("MatMul", merged(block), net.weight(CHANNELS, WIDTH))
    net.op("Log", product, outputs=0, domain="my.company")
    net.output(net.op("Exp", block.x), 3)
    model = net.model(my_company=1)
    _, candidate = written(model, runs=False)
    assert candidate["packed"]


def constant_site(monkeypatch: pytest.MonkeyPatch, queries: int) -> tuple[Net, str]:
    """Attention of stored tokens among each other, `(queries, HEAD_DIM)`: its keys are too many numbers to be computed
    beforehand, its result is not."""
    keys = 4 * HEAD_DIM
    monkeypatch.setattr(folding, "MOST_BYTES", 2 * HEAD_DIM * HEAD_DIM * 4)
    net = Net()
    tokens = net.op("Add", net.weight(keys, WIDTH), net.weight(keys, WIDTH))
    k, v = (net.linear(tokens, HEAD_DIM) for _ in range(2))
    q = net.linear(net.op("Slice", tokens, net.ints(0), net.ints(queries), net.ints(0)), HEAD_DIM)
    return net, net.sdpa(q, net.swap(k, 2), v)


def test_what_is_multiplied_by_attentions_result_as_by_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """That product is a layer, of other rows: P·V is its weight, and V's bias part of that."""
    net, result = constant_site(monkeypatch, HEAD_DIM)
    net.output(net.op("MatMul", net.input("x", 3, HEAD_DIM), result), 2)
    assert_stays(net.model(), "no linear out-projection")


def test_an_out_projection_that_is_the_bias_of_another_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum behind it is that layer's, not the out-projection's."""
    net, result = constant_site(monkeypatch, 1)
    bias = net.op("MatMul", result, net.weight(HEAD_DIM, WIDTH))
    net.output(net.op("Add", net.op("MatMul", net.input("x", 3, WIDTH), net.weight(WIDTH, WIDTH)), bias), 2)
    _, candidate = written(net.model())
    assert VALUE in candidate["algebra"]


@pytest.mark.parametrize("way", ["MatMul", "Einsum", "quantised"])
def test_a_layer_that_makes_the_next_sites_queries_is_not_changed_for_this_sites_values(way: str) -> None:
    """Each site would write it anew from values of its own, and the first attention be computed twice."""
    block = PreNorm(opset=19, width=CHANNELS)
    net = block.net
    layer = net.linear(merged(block), CHANNELS, width=CHANNELS, weight=net.turn(net.weight(CHANNELS, CHANNELS), 1, 0))
    memory = net.input("memory", 2, 7, CHANNELS)
    q, k, v = (net.split_heads(each) for each in (layer, block.layer(memory), block.layer(memory)))
    if way == "Einsum":
        scores = net.scaled(net.op("Einsum", q, k, equation="bnsh,bnlh->bnsl"))
        p = net.op("Softmax", scores, axis=-1, name="second")
        attended = net.op("Einsum", p, v, equation="bnsl,bnlh->bnsh")
    else:
        attended = block.attend(step(net, q, 1 / 16) if way == "quantised" else q, k, v, name="second")
    model = block.model(block.out(attended))
    result = onnx_attn.fuse(model, verify=False)
    first = result.report["candidates"][0]
    assert "another site" in first["algebra_left"][VALUE]
    assert not [node for node in result.model.graph.node if node.op_type == "Softmax"]
    assert_same(model, result.model, rtol=1e-3)


@pytest.mark.parametrize("form", ["function", "contrib"])
def test_the_same_where_an_operator_of_onnx_runtime_reads_the_layer(form: str) -> None:
    block = PreNorm(width=CHANNELS)
    net = block.net
    layer = net.linear(merged(block), CHANNELS, width=CHANNELS)
    k, v = (block.layer(net.input(name, 2, 7, CHANNELS)) for name in ("keys", "values"))
    attended = net.op("MultiHeadAttention", layer, k, v, num_heads=HEADS, domain="com.microsoft", name="second")
    net.output(net.linear(attended, WIDTH, width=CHANNELS), 3)
    model = net.model(com_microsoft=1)
    result = onnx_attn.fuse(model, form=form, target="onnxruntime", verify=False)
    first = result.report["candidates"][0]
    assert VALUE not in first["algebra"]
    assert not [node for node in result.model.graph.node if node.op_type == "Softmax"]
    assert_same(model, result.model)


BEHIND: dict[str, Callable[[PreNorm, str], str]] = {
    "another layer": lambda b, y: b.net.linear(b.net.scaled(y, 0.5), WIDTH),
    "a layer by Einsum": lambda b, y: b.net.op("Einsum", y, b.net.weight(WIDTH, 7), equation="bse,ef->bsf"),
    "a product behind a norm": lambda b, y: squared(b.net, b.net.op("LayerNormalization", y, b.net.weight(WIDTH))),
    "a product behind an activation": lambda b, y: squared(b.net, b.net.op("Relu", y)),
}


def squared(net: Net, value: str) -> str:
    return net.op("MatMul", value, net.swap(value, 3))


@pytest.mark.parametrize("behind", BEHIND)
def test_what_follows_is_no_site_whose_queries_the_layer_makes(behind: str) -> None:
    block = PreNorm()
    _, candidate = written(block.model(BEHIND[behind](block, block.block())))
    assert candidate["algebra"] == MIXED


@pytest.mark.parametrize("sequence", [2, 3, 7])
def test_channels_that_depend_on_how_many_tokens_there_are(sequence: int) -> None:
    """Of heads and tokens on one axis, numbers 0 and 2 are taken: of two tokens, 2 is one of the second head's."""
    block = PreNorm(lead=(2, "sequence"))
    net = block.net
    joined = net.reshape(block.attend(*block.heads(block.x)), 2, -1, HEAD_DIM)
    taken = net.reshape(net.op("Gather", joined, net.ints(0, 2), axis=1), 2, 2 * HEAD_DIM)
    model = block.model(net.linear(taken, WIDTH, width=2 * HEAD_DIM), 2)
    assert_stays(model, "mixes", feeds(model, {"sequence": sequence}))


@pytest.mark.parametrize("turned", ["q", "k", "v"])
def test_an_operator_whose_operands_do_not_fit_each_other(turned: str) -> None:
    """No runtime takes it, and nothing falls."""
    block = PreNorm(opset=23)
    net = block.net
    found = dict(zip("qkv", block.heads(block.x), strict=True))
    found[turned] = net.turn(found[turned], 3, 0, 2, 1)
    attended = net.op("Attention", *found.values(), is_causal=1, scale=0.2, name="softmax")
    model = block.model(block.out(attended))
    try:
        report = onnx_attn.fuse(model, verify=False).report
    except onnx_attn.OnnxAttnError:
        return
    assert all(VALUE not in candidate["algebra"] for candidate in report["candidates"])


@pytest.mark.parametrize("kv_heads", [1, HEADS])
def test_heads_without_a_batch(kv_heads: int) -> None:
    """`(N, S, H)`, where K and V may have one head for all of Q's."""
    net = Net()
    x = net.input("x", 5, WIDTH)

    def heads(count: int) -> str:
        return net.turn(net.reshape(net.linear(x, count * HEAD_DIM), 5, count, HEAD_DIM), 1, 0, 2)

    attended = net.sdpa(heads(HEADS), net.swap(heads(kv_heads), 3), heads(kv_heads))
    together = net.reshape(net.turn(attended, 1, 0, 2), 5, CHANNELS)
    net.output(net.linear(together, WIDTH, width=CHANNELS), 2)
    _, candidate = written(net.model())
    assert VALUE in candidate["algebra"]
