"""Quantised attention: its steps are read, kept where they are, and land on the quantised kernel where the input did."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Net
from quantised import fused, landed, quantised_site, site_with, step, steps

import onnx_attn

KINDS = ("int8", "fp8")


# --- sites on graph inputs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scores", ["", "before", "after"])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("form", ["auto", "primitives"])
def test_every_step_is_written_again_at_its_place(scores: str, mask: bool, form: str) -> None:
    model = quantised_site(scores=scores, mask=mask, length=8)
    written, entry = fused(model, form=form)
    assert entry["status"] == "site" and entry["form"] == "primitives"
    assert steps(written) == steps(model)


def test_a_function_carries_its_steps_where_the_target_takes_one() -> None:
    model = quantised_site(scores="before", length=8)
    written, entry = fused(model, target="onnxruntime")
    assert entry["form"] == "function"
    assert [f.name for f in written.functions] == ["ScaledDotProductAttention_ScoresInt8_Scale_ProbabilitiesInt8"]
    again = onnx_attn.fuse(written, target="onnxruntime")
    assert again.model.SerializeToString() == written.SerializeToString()


def test_a_zero_point_that_is_left_out_is_0_of_a_byte() -> None:
    model = quantised_site("uint8", length=8)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            del node.input[2]
    assert fused(model, target="onnxruntime")[1]["status"] == "site"


def test_steps_beside_an_operator_stay_outside_and_steps_within_refuse_it() -> None:
    assert fused(quantised_site(length=8, opset=23, dtype=np.float16, probabilities=False), form="attention")[1]["form"]
    entry = onnx_attn.fuse(quantised_site(length=8, opset=23, dtype=np.float16), form="attention").report["candidates"][
        0
    ]
    assert (entry["status"], entry["code"]) == ("refused", "form-not-taken")


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_site_lands_and_no_island_is_put_around_it(kind: str, half: bool) -> None:
    model = quantised_site(kind, dtype=np.float16 if half else np.float32)
    written, entry = fused(model, precision="keep" if half else "fp16")
    assert entry["changes"] == [] and entry["landing"]["expected"] is True
    assert landed(written) == landed(model) == (1, 5)


@pytest.mark.parametrize(
    "knobs",
    [{"probabilities": False}, {"result": False}, {"scores": "after"}, {"size": 48}, {"length": 513}],
    ids=str,
)
def test_what_has_no_kernel_is_said(knobs: dict[str, Any]) -> None:
    written, entry = fused(quantised_site(**knobs))
    assert entry["landing"]["expected"] is False and "measured" in entry["landing"]["evidence"]
    assert landed(written)[0] == 0
    assert ("--quantize-probabilities" in entry["landing"]["remedy"]) == ("probabilities" in knobs)


def moved_while_narrow() -> onnx.ModelProto:
    """Heads are split between QuantizeLinear and DequantizeLinear."""
    net = Net(opset=21)
    scale, zero = net.const(1 / 32), net.const(0, np.int8)
    narrow = [net.op("QuantizeLinear", net.input(name, 1, 64, 64), scale, zero) for name in "qkv"]
    q, k, v = (net.op("DequantizeLinear", net.split_heads(value, 2, 32), scale, zero) for value in narrow)
    y = net.sdpa(q, net.swap(k), v, lambda value: net.scaled(value, 32**-0.5), lambda value: step(net, value, 1 / 127))
    net.output(step(net, y, 1 / 32))
    return net.model()


def test_numbers_that_are_moved_while_they_are_narrow_are_quantised_too() -> None:
    written, entry = fused(moved_while_narrow(), precision="fp16")
    assert entry["changes"] == [] and entry["landing"]["expected"] is True
    assert landed(written) == (1, 5)


# --- what is not read --------------------------------------------------------------------------------------------------


def per_head(net: Net, value: str) -> str:
    return step(net, value, [0.1, 0.2], axis=1)


def unlike(net: Net, value: str) -> str:
    """Dequantised with another scale than it was quantised with."""
    zero = net.const(0, np.int8)
    narrow = net.op("QuantizeLinear", value, net.const(0.1), zero)
    return str(net.op("DequantizeLinear", narrow, net.const(0.2), zero))


def infinite(net: Net, value: str) -> str:
    return step(net, value, np.inf)


def computed(net: Net, value: str) -> str:
    """A scale that the scores decide."""
    scale = net.op("ReduceMax", net.op("Abs", value), keepdims=0)
    zero = net.const(0, np.int8)
    return str(net.op("DequantizeLinear", net.op("QuantizeLinear", value, scale, zero), scale, zero))


@pytest.mark.parametrize("change", [per_head, unlike, infinite, computed])
@pytest.mark.parametrize("where", ["scores", "probabilities"])
def test_a_step_that_is_not_one_stored_scale_for_all_is_refused(where: str, change: Any) -> None:
    entry = onnx_attn.fuse(site_with(**{where: change})).report["candidates"][0]
    used = where == "probabilities" and change is computed
    assert (entry["status"], entry["code"]) == ("refused", "probabilities-used" if used else "quantisation-step")


def test_probabilities_whose_narrow_numbers_are_read_twice_are_refused() -> None:
    def twice(net: Net, value: str) -> str:
        scale, zero = net.const(1 / 127), net.const(0, np.int8)
        narrow = net.op("QuantizeLinear", value, scale, zero)
        net.output(net.op("DequantizeLinear", narrow, scale, zero))
        return str(net.op("DequantizeLinear", narrow, scale, zero))

    entry = onnx_attn.fuse(site_with(probabilities=twice)).report["candidates"][0]
    assert entry["status"] == "refused"


def test_a_guard_behind_the_step_is_no_guard_in_front_of_it() -> None:
    def change(net: Net, value: str) -> str:
        value = step(net, value, 1 / 127)
        return str(net.op("Where", net.op("IsNaN", value), net.const(0.0), value))

    assert onnx_attn.fuse(site_with(probabilities=change)).report["refused"] == 1


def test_steps_with_a_scale_for_each_channel_stay_outside() -> None:
    net = Net(opset=19)
    q, k, v = (step(net, net.input(name, 1, 2, 8, 4), [0.01, 0.02, 0.03, 0.04], axis=3) for name in "qkv")
    net.output(net.sdpa(q, net.swap(k), v))
    model = net.model()
    written, entry = fused(model)
    assert entry["status"] == "site"
    assert sum(node.op_type == "QuantizeLinear" for node in written.graph.node) == 3
