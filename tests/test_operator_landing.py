"""`Attention` nodes that make TensorRT's parse or build fail, repaired: the real compiler builds what `fuse` writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Dim, Net

import onnx_attn

WIDTH, SIZE = 256, 64
MASK = (1, 1, 64, 64)
CACHE = {"past": 32, "outputs": 3}


def block(
    dtype: Any = np.float16,
    heads: int = 4,
    kv_heads: int = 4,
    length: Dim = 64,
    past: Dim = None,
    mask: tuple[Dim, ...] | None = None,
    mask_dtype: Any = None,
    wide: bool = False,
    **attrs: Any,
) -> onnx.ModelProto:
    """Projections, one node with what `attrs` say, an out-projection; presents are outputs. wide: heads are split inside."""
    net = Net(23, dtype)
    x = net.input("x", 1, length, WIDTH)

    def layer(value: str, channels: int, width: int = WIDTH) -> str:
        weight = net.const(net.rng.standard_normal((width, channels)) / 32)
        return net.op("Add", net.op("MatMul", value, weight), net.const(net.rng.standard_normal(channels)))

    given = [layer(x, count * SIZE) for count in (heads, kv_heads, kv_heads)]
    if wide:
        attrs |= {"q_num_heads": heads, "kv_num_heads": kv_heads}
    else:
        given = [net.split_heads(each, n, SIZE) for each, n in zip(given, (heads, kv_heads, kv_heads), strict=True)]
    given.append(net.input("mask", *mask, dtype=mask_dtype) if mask else "")
    if past is not None:
        given += [net.input(name, 1, kv_heads, past, SIZE) for name in ("past_key", "past_value")]
    while not given[-1]:
        given.pop()
    made = net.op("Attention", *given, name="softmax", **attrs)
    attended, *presents = [made] if isinstance(made, str) else made
    merged = attended if wide else net.merge_heads(attended, heads * SIZE)
    net.output(layer(merged, WIDTH, heads * SIZE), 3)
    for value in presents:
        net.output(value)
    return net.model()


FAILING: dict[str, dict[str, Any]] = {
    "softmax_precision": {"softmax_precision": 1},
    "softmax_precision and a mask": {"softmax_precision": 1, "mask": MASK},
    "causal with a float mask": {"is_causal": 1, "mask": MASK},
    "causal with a boolean mask": {"is_causal": 1, "mask": MASK, "mask_dtype": bool},
    "past": CACHE,
    "past, causal": {**CACHE, "is_causal": 1},
    "past, causal, mask": {**CACHE, "is_causal": 1, "mask": (1, 1, 64, 96)},
    "past, shared heads": {**CACHE, "kv_heads": 2},
    "past, one query": {**CACHE, "length": 1},
    "past, one query, two heads": {**CACHE, "length": 1, "heads": 2, "kv_heads": 2},
    "past, heads inside, one query": {**CACHE, "length": 1, "wide": True, "kv_heads": 2},
    "presents": {"outputs": 3},
}


@pytest.mark.parametrize("form", ["function", "primitives"])
@pytest.mark.parametrize("feature", FAILING)
def test_feature_that_the_parser_refuses_lands(feature: str, form: str) -> None:
    model = block(**FAILING[feature])
    assert not onnx_attn.land(model)["built"]
    fused = onnx_attn.fuse(model, form=form, expect=1)
    # Keys that are given away are no projection's alone; behind a past, layers stand side by side.
    assert fused.report["candidates"][0]["packed"] == (feature != "presents")
    landed = onnx_attn.land(fused.model)
    assert (landed["built"], landed["landed"]) == (True, 1), landed["errors"]


@pytest.mark.parametrize("form", ["function", "primitives"])
def test_softcap_builds_without_a_kernel(form: str) -> None:
    model = block(softcap=30.0)
    assert not onnx_attn.land(model)["built"]
    landed = onnx_attn.land(onnx_attn.fuse(model, form=form, expect=1).model)
    assert (landed["built"], landed["landed"]) == (True, 0)


SINGLE = ("causal with a float mask", "causal with a boolean mask", "past", "past, causal, mask", "presents")


@pytest.mark.parametrize("feature", SINGLE)
def test_feature_of_single_precision_builds(feature: str) -> None:
    landed = onnx_attn.land(onnx_attn.fuse(block(np.float32, **FAILING[feature]), expect=1).model)
    assert landed["built"], landed["errors"]


@pytest.mark.parametrize("feature", ["causal with a float mask", "past, causal"])
def test_feature_of_single_precision_lands_in_an_island(feature: str) -> None:
    fused = onnx_attn.fuse(block(np.float32, **FAILING[feature]), expect=1, precision="fp16")
    landed = onnx_attn.land(fused.model)
    assert (landed["built"], landed["landed"]) == (True, 1), landed["errors"]


@pytest.mark.parametrize("form", ["function", "primitives"])
@pytest.mark.parametrize(
    "varying",
    [
        {"length": "s", "past": "past", "outputs": 3, "is_causal": 1},
        {"length": "s", "is_causal": 1, "mask": (1, 1, "s", "s")},
        {"length": "s", "is_causal": 1, "mask": (1, 1, "s", "s"), "mask_dtype": bool},
    ],
    ids=("past, causal", "causal, mask", "causal, boolean mask"),
)
def test_feature_of_varying_lengths_lands(varying: dict[str, Any], form: str) -> None:
    fused = onnx_attn.fuse(block(**varying), form=form, expect=1)
    sizes = {"s": 64, "past": 32}
    shapes = {
        value.name: tuple(d.dim_value or sizes[d.dim_param] for d in value.type.tensor_type.shape.dim)
        for value in fused.model.graph.input
    }
    landed = onnx_attn.land(fused.model, shapes=shapes)
    assert (landed["built"], landed["landed"]) == (True, 1), landed["errors"]
