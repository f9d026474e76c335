"""Features of the standard `Attention` operator that are read as parts of a site: traps against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_fused, assert_refused, assert_same, feeds, run
from graphs import HEAD_DIM, HEADS, WIDTH, Dim, Net
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

import onnx_attn

TYPES = [np.float32, np.float16]
FORMS = ["function", "primitives"]
LOWEST = float(np.finfo(np.float32).min)


def rtol(dtype: Any) -> float:
    return 4e-3 if dtype == np.float16 else 1e-5


def asked(form: str) -> dict[str, Any]:
    """TensorRT has no kernel for an operator of single precision."""
    return {"asked_form": form, "target": "onnx" if form == "attention" else "tensorrt"}


def operator(net: Net, *more: str, keys: Dim = 5, kv_heads: int = HEADS, queries: Dim = 5, **attrs: Any) -> Any:
    """One 4-D node on graph inputs; `more`: its mask, past key and past value."""
    q = net.input("q", 2, HEADS, queries, HEAD_DIM)
    k, v = (net.input(name, 2, kv_heads, keys, HEAD_DIM) for name in "kv")
    return net.op("Attention", q, k, v, *more, name="softmax", **attrs)


# --- softcap, softmax_precision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TYPES)
def test_softcap_stands_before_the_mask(dtype: Any, form: str) -> None:
    """Behind it, a blocked key would come back with −1.5."""
    net = Net(23, dtype)
    net.output(operator(net, net.input("mask", 2, 1, 5, 5), softcap=1.5))
    model = net.model()
    inputs = feeds(model)
    inputs["mask"][:, :, :, 3:] = -30
    assert_fused(model, inputs, rtol(dtype), **asked(form))


@pytest.mark.parametrize("form", FORMS)
def test_softcap_with_a_boolean_mask_and_shared_heads(form: str) -> None:
    net = Net(23)
    net.output(operator(net, net.input("mask", 5, 5, dtype=bool), kv_heads=1, softcap=2.0, is_causal=1))
    assert_fused(net.model(), **asked(form), kv_heads=1)


def test_negative_softcap_is_refused() -> None:
    net = Net(23)
    net.output(operator(net, softcap=-2.0))
    assert_refused(net.model(), "attention-feature")


@pytest.mark.parametrize("form", FORMS)
def test_softmax_of_half_precision_runs_in_the_type_that_was_asked_for(form: str) -> None:
    net = Net(23, np.float16)
    net.output(operator(net, net.input("mask", 2, 1, 5, 5), softmax_precision=TensorProto.FLOAT))
    fused = assert_fused(net.model(), rtol=rtol(np.float16), **asked(form))
    nodes = [*fused.graph.node, *(node for function in fused.functions for node in function.node)]
    casts = [node.attribute[0].i for node in nodes if node.op_type == "Cast"]
    assert casts == [TensorProto.FLOAT, TensorProto.FLOAT16]


def test_row_masked_throughout_is_found_in_the_type_of_its_mask() -> None:
    net = Net(23, np.float16)
    net.output(operator(net, net.input("mask", 2, 1, 5, 5), softmax_precision=TensorProto.FLOAT))
    model = net.model()
    inputs = feeds(model)
    inputs["mask"][1, 0, 3] = -np.inf
    for form in FORMS:
        assert_fused(model, inputs, rtol(np.float16), **asked(form))


@pytest.mark.parametrize("precision", [TensorProto.FLOAT, TensorProto.DOUBLE])
def test_softmax_precision_of_a_float_model_is_read(precision: int) -> None:
    net = Net(23)
    net.output(operator(net, softmax_precision=precision))
    assert_fused(net.model())


def test_softmax_precision_narrower_than_the_operands_is_refused() -> None:
    """ONNX Runtime reads it over, the specification rounds to it."""
    net = Net(23)
    net.output(operator(net, softmax_precision=TensorProto.FLOAT16))
    assert_refused(net.model(), "attention-feature")


# --- is_causal with a mask ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(5, 5), (2, 1, 5, 5), (2, HEADS, 5, 5)], ids=str)
def test_causal_operator_with_a_float_mask(shape: tuple[int, ...], dtype: Any, form: str) -> None:
    net = Net(23, dtype)
    net.output(operator(net, net.input("mask", *shape), is_causal=1))
    assert_fused(net.model(), rtol=rtol(dtype), **asked(form))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fill", [-np.inf, LOWEST, 0.9 * LOWEST, -1e4])
def test_row_that_mask_and_causality_block_together_answers_as_before(fill: float, form: str) -> None:
    """The keys that the mask leaves query 2 are later ones. Lowest numbers and −inf give 0, others what softmax gives."""
    net = Net(23)
    net.output(operator(net, net.input("mask", 2, 1, 5, 5), is_causal=1))
    model = net.model()
    inputs = feeds(model)
    inputs["mask"][1, 0, 2, :3] = fill
    inputs["mask"][0, 0, 0, 0] = fill
    assert_fused(model, inputs, **asked(form))


@pytest.mark.parametrize("form", FORMS)
def test_row_blocked_by_boolean_mask_and_causality_together_answers_zero(form: str) -> None:
    net = Net(23)
    net.output(operator(net, net.input("mask", 2, 1, 5, 5, dtype=bool), is_causal=1))
    model = net.model()
    inputs = feeds(model)
    inputs["mask"][0, 0, 2] = [False, False, False, True, True]
    assert_fused(model, inputs, **asked(form))


@pytest.mark.parametrize("mask_dtype", [np.float32, bool])
def test_operator_form_puts_the_causal_mask_into_the_other(mask_dtype: Any) -> None:
    net = Net(23)
    x = net.input("x", 2, 5, WIDTH)
    q, k, v = (net.split_heads(net.linear(x, HEADS * HEAD_DIM)) for _ in range(3))
    mask = net.input("mask", 2, 1, 5, 5, dtype=mask_dtype)
    net.output(net.op("Attention", q, k, v, mask, is_causal=1, name="softmax"))
    model = net.model()
    inputs = feeds(model)
    inputs["mask"][0, 0, 2] = [0, 0, 0, 1, 1] if mask_dtype is bool else [-np.inf, -np.inf, LOWEST, 1, 1]
    fused = assert_fused(model, inputs, **asked("attention"), packed=True)
    (node,) = [node for node in fused.graph.node if node.op_type == "Attention"]
    assert "is_causal" not in {attribute.name for attribute in node.attribute}


# --- 3-D inputs --------------------------------------------------------------------------------------------------------------


def wide(
    net: Net, batch: Dim, length: Dim, keys: Dim, kv_heads: int = HEADS, size: int = HEAD_DIM, **attrs: Any
) -> str:
    given = [
        net.input("q", batch, length, HEADS * HEAD_DIM),
        net.input("k", batch, keys, kv_heads * HEAD_DIM),
        net.input("v", batch, keys, kv_heads * size),
    ]
    return net.op("Attention", *given, q_num_heads=HEADS, kv_num_heads=kv_heads, name="softmax", **attrs)


@pytest.mark.parametrize("form", [*FORMS, "attention"])
@pytest.mark.parametrize("sizes", [(2, 5, 7), ("batch", "sequence", "keys"), (1, 1, 1)], ids=str)
def test_heads_inside_the_operator_are_split_outside(sizes: tuple[Dim, Dim, Dim], form: str) -> None:
    net = Net(23)
    net.output(wide(net, *sizes), 3)
    inputs = feeds(net.model(), {"keys": 4})
    report = assert_fused(net.model(), inputs, heads=HEADS, head_dim=HEAD_DIM, **asked(form))
    assert report.graph.output[0].name == net.outputs[0].name


def test_shared_heads_and_wider_values_inside_the_operator() -> None:
    net = Net(23)
    net.output(wide(net, 2, 5, 5, kv_heads=1, size=HEAD_DIM + 8), 3)
    assert_fused(net.model(), kv_heads=1, value_dim=HEAD_DIM + 8)


@pytest.mark.parametrize("batch", [2, "batch"])
def test_projections_in_front_of_three_axes_are_packed(batch: Dim) -> None:
    net = Net(23)
    x = net.input("x", batch, 5, WIDTH)
    q, k, v = (net.linear(x, HEADS * HEAD_DIM) for _ in range(3))
    made = net.op("Attention", q, k, v, q_num_heads=HEADS, kv_num_heads=HEADS, is_causal=1, name="softmax")
    net.output(net.linear(made, WIDTH, width=HEADS * HEAD_DIM), 3)
    fused = assert_fused(net.model(), packed=True, projection="triplet")
    assert sum(node.op_type == "MatMul" for node in fused.graph.node) == 2


def test_heads_inside_that_are_not_shared_evenly_are_refused() -> None:
    net = Net(23)
    given = [net.input("q", 2, 5, 3 * 8), *(net.input(name, 2, 5, 2 * 8) for name in "kv")]
    net.output(net.op("Attention", *given, q_num_heads=3, kv_num_heads=2, name="softmax"), 3)
    assert_refused(net.model(), "attention-feature")


# --- the cache ---------------------------------------------------------------------------------------------------------------


def cached(
    net: Net, past: Dim, *, outputs: int = 3, kv_heads: int = HEADS, queries: Dim = 5, mask: Any = None, **attrs: Any
) -> onnx.ModelProto:
    """Past and new keys; the presents are model outputs."""
    cache = [net.input(name, 2, kv_heads, past, HEAD_DIM) for name in ("past_key", "past_value")]
    made = operator(net, mask or "", *cache, outputs=outputs, kv_heads=kv_heads, queries=queries, keys=queries, **attrs)
    for value in made:
        net.output(value)
    return net.model()


@pytest.mark.parametrize("form", [*FORMS, "attention"])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize(("past", "queries"), [(3, 5), (6, 1), ("past", "queries"), ("past", 1)], ids=str)
def test_past_stands_in_front_of_the_new_keys(past: Dim, queries: Dim, causal: int, form: str) -> None:
    model = cached(Net(23), past, queries=queries, is_causal=causal)
    inputs = feeds(model, {"past": 4, "queries": 3})
    fused = assert_fused(model, inputs, **asked(form))
    if past == "past":
        for length in (0, 9):
            assert_same(model, fused, feeds(model, {"past": length, "queries": 2}))


@pytest.mark.parametrize("dtype", TYPES)
def test_past_with_causality_and_a_float_mask(dtype: Any) -> None:
    net = Net(23, dtype)
    model = cached(net, 3, is_causal=1, mask=net.input("mask", 2, 1, 5, 8))
    inputs = feeds(model)
    inputs["mask"][0, 0, 1, :5] = -np.inf
    for form in (*FORMS, "attention"):
        assert_fused(model, inputs, rtol(dtype), **asked(form))


def test_past_of_shared_heads_and_a_query_of_one() -> None:
    assert_fused(cached(Net(23), "past", kv_heads=1, queries=1), feeds(cached(Net(23), 4, kv_heads=1, queries=1)))


@pytest.mark.parametrize("form", [*FORMS, "attention"])
def test_present_without_a_past_is_the_new_keys(form: str) -> None:
    net = Net(23)
    for value in operator(net, outputs=3):
        net.output(value)
    assert_fused(net.model(), **asked(form))


def test_one_present_alone_is_given() -> None:
    net = Net(23)
    attended, _, present = operator(net, outputs=3)
    net.output(attended)
    net.output(net.op("Exp", present))
    assert_fused(net.model())


def projected(net: Net, past: Dim, kv_heads: int = HEADS, factor: float = 1.0) -> onnx.ModelProto:
    """A decoder's site: packed layers with biases, the cache, presents that are model outputs, an out-projection."""
    x = net.input("x", 2, "queries", WIDTH)
    q = net.split_heads(net.linear(x, HEADS * HEAD_DIM))
    k, v = (net.split_heads(net.linear(x, kv_heads * HEAD_DIM), kv_heads) for _ in range(2))
    k = net.scaled(k, factor) if factor != 1.0 else k
    cache = [net.input(name, 2, kv_heads, past, HEAD_DIM) for name in ("past_key", "past_value")]
    made = net.op("Attention", q, k, v, "", *cache, is_causal=1, outputs=3, name="softmax")
    net.output(net.linear(net.merge_heads(made[0]), WIDTH, width=HEADS * HEAD_DIM), 3)
    for value in made[1:]:
        net.output(value)
    return net.model()


@pytest.mark.parametrize("past", [4, "past"])
@pytest.mark.parametrize("kv_heads", [1, HEADS])
def test_presents_keep_the_biases_of_packed_layers(kv_heads: int, past: Dim) -> None:
    """Neither may K's bias be dropped, nor V's moved: those of the past do not have them, and who reads them wants them."""
    model = projected(Net(23), past, kv_heads)
    assert_fused(model, feeds(model, {"queries": 3, "past": 4}), kv_heads=kv_heads)


def test_factor_on_new_keys_stays_with_them() -> None:
    """The scale is one number over past and new keys; a factor on the new ones alone is no part of it."""
    model = projected(Net(23), 4, factor=0.5)
    assert_fused(model, feeds(model, {"queries": 3}), scale=HEAD_DIM**-0.5)


def test_repeated_heads_are_cached_repeated() -> None:
    net = Net(23)
    q = net.input("q", 2, HEADS, 5, HEAD_DIM)
    k, v = (net.input(name, 2, 1, 5, HEAD_DIM) for name in "kv")
    k, v = (net.op("Expand", each, net.ints(2, HEADS, 5, HEAD_DIM)) for each in (k, v))
    cache = [net.input(name, 2, HEADS, 3, HEAD_DIM) for name in ("past_key", "past_value")]
    for value in net.op("Attention", q, k, v, "", *cache, outputs=3, name="softmax"):
        net.output(value)
    for form in (*FORMS, "attention"):
        assert_fused(net.model(), **asked(form))


def test_heads_of_eight_are_padded_behind_the_cache() -> None:
    """TensorRT has no kernel for them; who reads the cache gets heads of eight all the same."""
    net = Net(23, np.float16)
    given = [net.input(name, 1, HEADS, 5, 8) for name in "qkv"]
    cache = [net.input(name, 1, HEADS, 3, 8) for name in ("past_key", "past_value")]
    for value in net.op("Attention", *given, "", *cache, outputs=3, name="softmax"):
        net.output(value)
    assert_fused(net.model(), rtol=rtol(np.float16))


def test_wide_heads_with_a_past() -> None:
    """Q, K and V `(B, S, N·H)`, past and presents `(B, N, S, H)`."""
    net = Net(23)
    q = net.input("q", "batch", 5, HEADS * HEAD_DIM)
    k, v = (net.input(name, "batch", 5, HEAD_DIM) for name in "kv")
    cache = [net.input(name, "batch", 1, "past", HEAD_DIM) for name in ("past_key", "past_value")]
    heads = {"q_num_heads": HEADS, "kv_num_heads": 1}
    made = net.op("Attention", q, k, v, "", *cache, outputs=3, is_causal=1, name="softmax", **heads)
    net.output(made[0], 3)
    net.output(made[1])
    net.output(made[2])
    assert_fused(net.model(), feeds(net.model(), {"past": 4}))


def test_presents_that_a_body_reads_are_kept() -> None:
    net = Net(23)
    attended, present, _ = operator(net, outputs=3)
    net.output(attended)
    branches = {}
    for branch in ("then", "else"):
        inner = Net(23)
        inner.output(inner.op("Abs" if branch == "then" else "Neg", present))
        inner.outputs[0].name = inner.nodes[0].output[0] = f"{branch}_present"
        branches[f"{branch}_branch"] = inner.model().graph
    net.output(net.op("If", net.input("choice", dtype=bool), **branches))
    model = net.model()
    fused = onnx_attn.fuse(model)
    assert fused.report["fused"] == 1
    assert_same(model, fused.model, feeds(model) | {"choice": np.asarray(True)})


# --- features together -------------------------------------------------------------------------------------------------------


def drawn(seed: int) -> tuple[onnx.ModelProto, dict[str, int], Any]:
    """A node with features as they come: the model, sizes, whether it is causal, its type."""
    rng = np.random.default_rng(seed)

    def draw(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    dtype, kv_heads, wide_axes = draw(np.float32, np.float32, np.float16), draw(1, 2, 4), draw(False, True)
    batch, length, past = draw(2, "batch"), draw(1, 5, "length"), draw(None, 3, "past")
    keys = length if past is not None else draw(length, 7)
    total = {(3, 1): 4, (3, 5): 8}.get((past, keys), keys if past is None else "total")
    net = Net(23, dtype)

    def given(name: str, heads: int, sequence: Dim) -> str:
        shape = (batch, sequence, heads * 8) if wide_axes else (batch, heads, sequence, 8)
        return net.input(name, *shape)

    inputs = [given("q", 4, length), given("k", kv_heads, keys), given("v", kv_heads, keys)]
    mask_dtype = draw(None, dtype, bool)
    rows = draw((batch, 1, length, total), (batch, 4, length, total), (length, total), (1, 1, length, total))
    inputs.append(net.input("mask", *rows, dtype=mask_dtype) if mask_dtype is not None else "")
    if past is not None:
        inputs += [net.input(name, batch, kv_heads, past, 8) for name in ("past_key", "past_value")]
    attrs: dict[str, Any] = {"q_num_heads": 4, "kv_num_heads": kv_heads} if wide_axes else {}
    attrs |= draw({}, {"softcap": 1.5}) | draw({}, {"softmax_precision": 1}) | draw({}, {"scale": 0.7})
    causal = draw(0, 1)
    outputs = draw(1, 3) if past is None else 3
    made = net.op("Attention", *inputs, outputs=outputs, name="softmax", is_causal=causal, **attrs)
    attended, *presents = [made] if outputs == 1 else made
    net.output(attended, 3 if wide_axes else 4)
    for value in presents:
        net.output(value)
    sizes = {"batch": 3, "length": 4, "past": 2}
    sizes["total"] = sum(each if isinstance(each, int) else sizes[each] for each in (past or 0, keys))
    return net.model(), sizes, dtype


@pytest.mark.parametrize("form", [*FORMS, "attention"])
@pytest.mark.parametrize("seed", range(40))
def test_features_together(seed: int, form: str) -> None:
    model, sizes, dtype = drawn(seed)
    inputs = feeds(model, sizes)
    mask = inputs.get("mask")
    if mask is not None:
        mask.reshape(-1, mask.shape[-1])[0, : -1 if mask.shape[-1] > 1 else None] = (
            False if mask.dtype == bool else -np.inf
        )
    fused = onnx_attn.fuse(model, form=form, target=asked(form)["target"])
    (candidate,) = fused.report["candidates"]
    if form == "attention" and candidate["status"] == "refused":
        assert candidate["code"] in ("form-not-taken", "type-not-supported")
    else:
        assert candidate["status"] == "site", (candidate["code"], candidate["reason"])
    assert_same(model, fused.model, inputs, rtol(dtype))


# --- Windows of opset 25, which ONNX Runtime 1.31.1 does not run: held against onnx's reference evaluator. --------------------


def windowed(past: int, mask: bool, batch: Dim = 2, **attrs: Any) -> onnx.ModelProto:
    net = Net(25)
    given = [net.input(name, batch, HEADS, 5, HEAD_DIM) for name in "qkv"]
    given.append(net.input("mask", 5, 5 + past) if mask else "")
    given += [net.input(name, batch, HEADS, past, HEAD_DIM) for name in ("past_k", "past_v")] if past else []
    made = net.op("Attention", *given, name="softmax", outputs=3 if past else 1, **attrs)
    for name in made if past else [made]:
        net.output(name)
    return net.model()


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize(
    "attrs",
    [
        {"left_window_size": 2},
        {"right_window_size": 0},
        {"left_window_size": 2, "right_window_size": 1},
        {"left_window_size": 1, "right_window_size": 2, "is_causal": 1},
    ],
    ids=str,
)
def test_window_of_the_operator_is_spelled(attrs: dict[str, Any], past: int, mask: bool) -> None:
    model = windowed(past, mask, **attrs)
    result = onnx_attn.fuse(model, target="onnx", form="function", verify=False, expect=1)
    inputs = feeds(model)
    expected = ReferenceEvaluator(model).run(None, inputs)
    for one, other in zip(expected, run(result.model, inputs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_window_that_cannot_be_proved_is_not_written() -> None:
    with pytest.raises(onnx_attn.OnnxAttnError, match="--no-verify"):
        onnx_attn.fuse(windowed(0, False, left_window_size=2))
