"""Layers side by side where something works on Q or K in between: one product, the same names, and nobody else's part in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import HEAD_DIM, HEADS, WIDTH, Net
from rotary import BATCH, LENGTH, Rotation, block
from support import EXPORTS, feeds, max_rel, run

import onnx_attn

CHANNELS = HEADS * HEAD_DIM
Change = Callable[[Net, dict[str, str]], None]
"""What a trap does to a block: to the net, and to the values by their names."""


def rotated(change: Change = lambda net, values: None, dtype: Any = np.float32, opset: int = 18) -> onnx.ModelProto:
    """One site whose Q and K are rotated. The change is called when the layers' weights are there (`W_q` …), when their
    results are (`q` …), and when Q, K and V are (`query` …). From opset 23 on it is an `Attention` node."""
    net = Net(opset=opset, dtype=dtype)
    x = net.input("x", BATCH, LENGTH, WIDTH)
    values = {"x": x, "source_q": x, "source_k": x, "source_v": x}
    values |= {f"W_{role}": net.weight(WIDTH, CHANNELS, name=f"W_{role}") for role in "qkv"}
    change(net, values)
    for role in "qkv":
        values[role] = net.op("MatMul", values[f"source_{role}"], values[f"W_{role}"], name=f"layer_{role}")
    change(net, values)
    rotation = Rotation()
    values["query"], values["key"] = (rotation.of(net, net.split_heads(values[role])) for role in "qk")
    values["value"] = net.split_heads(values["v"])
    change(net, values)
    if opset >= 23:
        site = net.op("Attention", *(values[role] for role in ("query", "key", "value")), name="softmax")
    else:
        site = net.sdpa(values["query"], net.swap(values["key"]), values["value"])
    net.output(net.merge_heads(site), 3)
    return net.model()


def products(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type == "MatMul"]


def packed(model: onnx.ModelProto, **options: Any) -> bool:
    """Whether the site is packed, after a proof, and fused in any case."""
    result = onnx_attn.fuse(model, **options)
    (site,) = [c for c in result.report["candidates"] if c["status"] == "site"][:1]
    assert result.report["fused"] and site["certificate"]["ok"] and result.report["proof"]["ok"]
    assert site["packed"] == (site["unpacked_because"] is None)
    assert result.plan["sites"][0]["pack"] == site["packed"]
    splits = [node for node in result.model.graph.node if node.name.endswith("in_proj_split")]
    assert len(splits) == site["packed"]
    return bool(site["packed"])


def test_three_layers_behind_a_rotary_embedding_become_one_product() -> None:
    model = rotated()
    fused = onnx_attn.fuse(model).model
    assert products(fused) == ["softmax/in_proj"]
    split = next(node for node in fused.graph.node if node.op_type == "Split" and node.name.endswith("in_proj_split"))
    assert list(split.output) == [next(n.output[0] for n in model.graph.node if n.name == f"layer_{r}") for r in "qkv"]
    assert {t.name for t in fused.graph.initializer}.isdisjoint({"W_q", "W_k", "W_v"}), "stored once"
    given = feeds(model, {})
    assert max_rel(run(model, given), run(fused, given)) <= 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_of_any_float(dtype: Any) -> None:
    assert packed(rotated(dtype=dtype))


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("rotation", [Rotation(), Rotation(dim=8), Rotation(kind="interleaved", tables="looked up")])
def test_biases_and_pasts_stay_where_they_are(rotation: Rotation, past: bool) -> None:
    model = block(rotation, rotation, past=past)
    assert packed(model)
    assert onnx_attn.fuse(onnx_attn.fuse(model).model).report["fused"] == 1


def test_weights_stored_the_other_way_round() -> None:
    def turned(net: Net, values: dict[str, str]) -> None:
        if "q" not in values:
            values["W_k"] = net.turn(net.weight(CHANNELS, WIDTH, name="W_k_turned"), 1, 0)

    assert packed(rotated(turned))


def keys_of_another_sequence(net: Net, values: dict[str, str]) -> None:
    if "q" not in values:
        values["source_k"] = values["source_v"] = net.input("other", BATCH, LENGTH, WIDTH)


def weight_of_somebody_else(net: Net, values: dict[str, str]) -> None:
    if "query" in values:
        net.output(net.op("MatMul", values["x"], values["W_k"]), 3)


def weight_as_output(net: Net, values: dict[str, str]) -> None:
    if "query" in values:
        net.output(values["W_v"], 2)


def weight_as_default(net: Net, values: dict[str, str]) -> None:
    if "q" not in values:
        net.input("W_k", WIDTH, CHANNELS)


def one_weight_for_two(net: Net, values: dict[str, str]) -> None:
    if "q" not in values:
        values["W_k"] = values["W_q"]


def another_source(net: Net, values: dict[str, str]) -> None:
    if "q" not in values:
        values["source_v"] = net.op("Mul", values["x"], net.const(2.0))


def equal_source(net: Net, values: dict[str, str]) -> None:
    """Equal numbers, another value: nothing is compared by what it looks like."""
    if "q" not in values:
        values["source_v"] = net.op("Mul", values["x"], net.const(1.5))
        values["source_q"] = values["source_k"] = net.op("Mul", values["x"], net.const(1.5))


def read_by_a_product(net: Net, values: dict[str, str]) -> None:
    if "query" in values:
        net.output(net.op("MatMul", values["v"], net.weight(CHANNELS, 4)), 3)


def computed_weight(net: Net, values: dict[str, str]) -> None:
    if "q" not in values:
        values["W_q"] = net.op("Mul", values["W_q"], net.const(0.5))


@pytest.mark.parametrize(
    "trap",
    [
        keys_of_another_sequence,
        weight_of_somebody_else,
        weight_as_output,
        weight_as_default,
        one_weight_for_two,
        another_source,
        equal_source,
        read_by_a_product,
        computed_weight,
    ],
    ids=lambda trap: trap.__name__,
)
def test_near_misses_are_left_as_they_are(trap: Change) -> None:
    assert not packed(rotated(trap))


def test_what_is_cast_on_its_way_is_left() -> None:
    """The compiler copies it in any case."""

    def wide(net: Net, values: dict[str, str]) -> None:
        net.dtype = np.dtype(np.float32 if "q" not in values else np.float64)
        for name in ("query", "key", "value"):
            if name in values:
                values[name] = net.op("Cast", values[name], to=onnx.TensorProto.DOUBLE)
        if "query" not in values:
            net.dtype = np.dtype(np.float32)

    assert not packed(rotated(wide))


def test_two_sites_that_share_their_keys_are_left() -> None:
    net = Net(opset=18)
    x, rotation = net.input("x", BATCH, LENGTH, WIDTH), Rotation()
    first, second, key, value = (net.split_heads(net.linear(x, CHANNELS)) for _ in range(4))
    key = net.swap(rotation.of(net, key))
    for name, query in (("one", first), ("two", second)):
        net.output(net.merge_heads(net.sdpa(rotation.of(net, query), key, value, name=name)), 3)
    result = onnx_attn.fuse(net.model())
    assert result.report["fused"] == 2
    assert not any(site["packed"] for site in result.report["candidates"])


@pytest.mark.parametrize("options", [{"pack": False}, {"target": "onnxruntime"}, {"target": "onnx"}], ids=str)
def test_only_where_it_is_wanted_and_pays(options: dict[str, Any]) -> None:
    assert not packed(rotated(), **options)


@pytest.mark.parametrize("form", ["auto", "attention"])
def test_an_operator_that_lands_as_it_is_keeps_its_form_beside_one_product(form: str) -> None:
    model = rotated(dtype=np.float16, opset=23)
    result = onnx_attn.fuse(model, form=form)
    (site,) = result.report["candidates"]
    assert (site["form"], site["packed"], site["certificate"]["ok"]) == ("attention", True, True)
    assert products(result.model) == ["softmax/in_proj"]
    assert [node.op_type for node in result.model.graph.node].count("Attention") == 1
    assert len(products(onnx_attn.fuse(model, form=form, pack=False).model)) == 3


@pytest.mark.parametrize(
    "name",
    ["mistral_decode.dynamo.18.static.half", "llama.dynamo.18.dynamic.eager", "phi.dynamo.23.static"],
)
def test_real_exports_are_packed(name: str) -> None:
    result = onnx_attn.fuse(EXPORTS / f"{name}.onnx")
    assert [site["packed"] for site in result.report["candidates"] if site["status"] == "site"] == [True, True]
    assert all(site["certificate"]["ok"] for site in result.report["candidates"] if site["status"] == "site")
    assert not any("tokens-first" in site["changes"] for site in result.plan["sites"]), (
        "its tokens would be moved for nothing"
    )


def test_a_plan_says_so_and_is_followed() -> None:
    model = rotated()
    plan = onnx_attn.fuse(model).plan
    assert plan["sites"][0]["pack"]
    assert products(onnx_attn.fuse(model, plan=plan).model) == ["softmax/in_proj"]
    plan["sites"][0]["pack"] = False
    assert len(products(onnx_attn.fuse(model, plan=plan).model)) == 3


def test_the_compiler_takes_fewer_kernels() -> None:
    pytest.importorskip("tensorrt_rtx")
    path = EXPORTS / "mistral_decode.dynamo.18.static.half.onnx"
    export = onnx_attn.land(path)
    left, beside = (onnx_attn.land(onnx_attn.fuse(path, verify=False, pack=pack).model) for pack in (False, True))
    assert beside["landed"] == 2
    assert beside["kernels"] < export["kernels"] and beside["kernels"] < left["kernels"]
    assert beside["moved_bytes"] < export["moved_bytes"]
