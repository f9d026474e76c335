"""Half-precision islands around sites of float32: what they compute, what proves them, and where they land."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_same, feeds
from commands import run_command
from graphs import HEAD_DIM, Net
from onnx import TensorProto
from support import EXPORTS, max_rel, run
from support import feeds as export_feeds

import onnx_attn

BOUNDS = {"fp16": 2e-3, "bf16": 2e-2}
EXPORTED = [
    "vit_b_16.torchscript.17.static.onnx",
    "vit_b_16.dynamo.18.dynamic.onnx",
    "bert.dynamo.23.dynamic.onnx",
    "gpt2.torchscript.17.dynamic.onnx",
    "gqa_block.dynamo.18.static.onnx",
    "sdpa.dynamo.23.static.onnx",
    "sdpa_mask.torchscript.17.dynamic.onnx",
    "mha_mask_bool.torchscript.20.static.onnx",
    "hf_swin.dynamo.18.dynamic.eager.onnx",
    "falcon.torchscript.17.static.onnx",
]
SIZES = {"batch": 2, "sequence": 16, "memory": 24}


def candidates(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [candidate for candidate in report["candidates"] if candidate["status"] != "not_attention"]


@pytest.mark.parametrize("name", EXPORTED)
def test_every_site_of_an_export_is_an_island_within_its_bound(name: str) -> None:
    model = onnx.load(EXPORTS / name)
    result = onnx_attn.fuse(model, precision="fp16")
    for candidate in candidates(result.report):
        certificate = candidate["certificate"]
        assert "fp16-island" in candidate["changes"], candidate["changes_left"]
        assert certificate["bound"] == BOUNDS["fp16"]
        assert 0 < certificate["error_against_float64"]["after"]["max_rel"] <= BOUNDS["fp16"]
        assert certificate["large_logits"]["max_rel"] > 0
    inputs = export_feeds(model, SIZES)
    assert 0 < max_rel(run(model, inputs), run(result.model, inputs)) <= BOUNDS["fp16"]
    weights = [tensor for tensor in result.model.graph.initializer if len(tensor.dims) > 1]
    assert not {tensor.data_type for tensor in weights} & {TensorProto.FLOAT16}
    assert result.model.graph.input == model.graph.input
    assert result.model.graph.output == model.graph.output


@pytest.mark.parametrize("name", [EXPORTED[0], EXPORTED[2], EXPORTED[4]])
def test_bfloat16_is_proved_without_kernels_for_it(name: str) -> None:
    report = onnx_attn.fuse(onnx.load(EXPORTS / name), precision="bf16").report
    for candidate in candidates(report):
        assert candidate["changes"] == ["bf16-island"]
        assert candidate["certificate"]["bound"] == BOUNDS["bf16"]
        # Not float16, and not float32: the rounding of bfloat16 is seen.
        assert 1e-3 < candidate["certificate"]["error_against_float64"]["after"]["max_rel"] <= BOUNDS["bf16"]
    assert 1e-4 < report["proof"]["max_rel"] <= report["proof"]["rtol"] == BOUNDS["bf16"]


@pytest.mark.parametrize("name", [name for name in EXPORTED if ".static." in name])
@pytest.mark.parametrize("precision", BOUNDS)
def test_islands_land_where_float32_does_not(name: str, precision: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    onnx_attn.fuse(EXPORTS / name, tmp_path / "fused.onnx", precision=precision)
    found = onnx_attn.land(tmp_path / "fused.onnx", baseline=EXPORTS / name)
    assert found["baseline"]["landed"] == 0
    assert found["built"] and found["landed"] == found["sites"] > 0, [s["reason"] for s in found["per_site"]]
    if found["baseline"]["built"]:
        assert found["moved_bytes"] < found["baseline"]["moved_bytes"]


def test_a_model_with_islands_is_verified_as_it_was_proved(tmp_path: Path) -> None:
    """Against its float32 original at what half precision allows; two models of float32 stay at their own bound."""
    model = EXPORTS / "vit_b_16.torchscript.17.static.onnx"
    onnx_attn.fuse(model, tmp_path / "half.onnx", precision="fp16", verify=False)
    found = onnx_attn.verify(model, tmp_path / "half.onnx")
    assert (found["ok"], found["rtol"]) == (True, 2e-3)
    assert onnx_attn.verify(model, model)["rtol"] == 1e-5
    assert onnx_attn.verify(tmp_path / "half.onnx", tmp_path / "half.onnx")["rtol"] == 1e-5


def test_without_an_island_the_report_says_how_to_get_a_kernel() -> None:
    report = onnx_attn.fuse(onnx.load(EXPORTS / EXPORTED[0])).report
    for candidate in candidates(report):
        assert (candidate["changes"], candidate["landing"]["expected"]) == ([], False)
        assert "no attention kernel exists for float32" in candidate["landing"]["reason"]
        assert "--precision fp16" in candidate["landing"]["remedy"]


def test_a_site_in_half_precision_gets_no_island() -> None:
    path = EXPORTS / "gqa_block.dynamo.18.static.half.onnx"
    plain, asked = (onnx_attn.fuse(onnx.load(path), precision=precision) for precision in ("keep", "fp16"))
    assert [candidate["changes"] for candidate in candidates(asked.report)] == [[]]
    assert plain.model == asked.model


def test_an_unknown_precision_is_wrong_usage(tmp_path: Path) -> None:
    outcome = run_command("fuse", EXPORTS / EXPORTED[0], "-o", tmp_path / "o.onnx", "--precision", "int8")
    assert outcome.code == 2
    assert "choose keep, fp16 or bf16" in outcome.stderr
    assert not (tmp_path / "o.onnx").exists()


def masked(fill: float, opset: int = 18, guard: bool = False) -> onnx.ModelProto:
    """`softmax(q·kᵀ + where(mask, 0, fill))·v` in float32."""
    net = Net(opset)
    q, k, v = (net.input(name, 2, 2, 5, HEAD_DIM) for name in "qkv")
    mask = net.op("Where", net.input("mask", 2, 1, 5, 5, dtype=bool), net.const(0.0), net.const(fill))
    scores = net.op("Add", net.op("MatMul", net.scaled(q), net.swap(k)), mask)
    probabilities = net.op("Softmax", scores, axis=-1, name="softmax")
    if guard:
        probabilities = net.op("Where", net.op("IsNaN", probabilities), net.const(0.0), probabilities)
    net.output(net.op("MatMul", probabilities, v))
    return net.model()


@pytest.mark.parametrize("fill", [float(np.finfo(np.float32).min), -1e30, -1e5])
def test_a_fill_beyond_half_precision_masks_in_float32(fill: float) -> None:
    """Cast to float16 it would be −inf, and a row that it blocks throughout NaN and not the mean of V."""
    model = masked(fill)
    fused = onnx_attn.fuse(model, precision="fp16").model
    assert any(node.attribute[0].i == TensorProto.FLOAT16 for node in fused.graph.node if node.op_type == "Cast")
    inputs = feeds(model)
    inputs["mask"][0, 0, 2] = False
    assert_same(model, fused, inputs, rtol=BOUNDS["fp16"])


@pytest.mark.parametrize(
    ("opset", "form"), [(13, "primitives"), (17, "function"), (17, "primitives"), (18, "function")]
)
def test_a_row_that_a_guard_clears_stays_zero(opset: int, form: str) -> None:
    model = masked(-np.inf, opset, guard=True)
    result = onnx_attn.fuse(model, precision="fp16", form=form)
    assert candidates(result.report)[0]["changes"] == ["fp16-island"]
    inputs = feeds(model)
    inputs["mask"][0, 0, 2] = False
    assert_same(model, result.model, inputs, rtol=BOUNDS["fp16"])
    assert not run(result.model, inputs)[0][0, :, 2].any()


def sharp(temperature: float) -> onnx.ModelProto:
    """Cosine attention at a temperature a head, as Swin V2 has it: logits up to `temperature`."""
    net = Net(18)
    q, k, v = (net.input(name, 2, 2, 5, HEAD_DIM) for name in "qkv")

    def unit(value: str) -> str:
        length = net.op("ReduceL2", value, net.ints(-1), keepdims=1)
        return net.op("Div", value, length)

    scores = net.op("Mul", net.op("MatMul", unit(q), net.swap(unit(k))), net.const(temperature))
    net.output(net.op("MatMul", net.op("Softmax", scores, axis=-1, name="softmax"), v))
    return net.model()


def test_a_site_beyond_its_bound_is_written_without_the_island() -> None:
    """float16 rounds unit vectors by 2⁻¹¹, and 100 times that moves a probability by more than 0.2 %."""
    mild, hot = (onnx_attn.fuse(sharp(temperature), precision="fp16").report for temperature in (4.0, 400.0))
    assert candidates(mild)[0]["changes"] == ["fp16-island"]
    (left,) = candidates(hot)
    assert (left["status"], left["form"], left["changes"]) == ("site", "function", [])
    assert "2e-03" in left["changes_left"]["fp16-island"]
    assert left["certificate"]["bound"] == 1e-5


def test_a_plan_has_the_islands_and_gives_them_again(tmp_path: Path) -> None:
    model, plan = EXPORTS / "vit_b_16.torchscript.17.static.onnx", tmp_path / "plan.json"
    first, again = tmp_path / "first.onnx", tmp_path / "again.onnx"
    assert run_command("fuse", model, "-o", first, "--precision", "fp16", "--write-plan", plan).code == 0
    document = json.loads(plan.read_text())
    assert [site["changes"] for site in document["sites"]] == [["fp16-island"], ["fp16-island"]]
    assert run_command("fuse", model, "-o", again, "--plan", plan).code == 0
    assert first.read_bytes() == again.read_bytes()
    document["sites"][1]["changes"] = []
    report = onnx_attn.fuse(model, again, plan=document).report
    assert [candidate["changes"] for candidate in candidates(report)] == [["fp16-island"], []]


@pytest.mark.parametrize(
    ("changes", "told"),
    [(["fp8-island"], "choose of fp16-island, bf16-island"), (["fp16-island", "bf16-island"], "two islands")],
)
def test_changes_that_no_plan_has_are_wrong_usage(changes: list[str], told: str) -> None:
    model = EXPORTS / "vit_b_16.torchscript.17.static.onnx"
    plan = json.loads(json.dumps(onnx_attn.fuse(onnx.load(model)).plan))
    plan["sites"][0]["changes"] = changes
    with pytest.raises(onnx_attn.UsageError, match=told):
        onnx_attn.fuse(onnx.load(model), plan=plan)


def test_the_operator_takes_an_island_too() -> None:
    pytest.importorskip("tensorrt_rtx")
    model = onnx.load(EXPORTS / "sdpa.dynamo.23.static.onnx")
    result = onnx_attn.fuse(model, precision="fp16", form="attention")
    assert [node.op_type for node in result.model.graph.node].count("Attention") == 1
    assert not onnx_attn.land(model)["built"]
    assert onnx_attn.land(result.model)["landed"] == 1


def test_values_of_another_type_are_an_island_s_matter() -> None:
    """As TorchScript leaves half-precision exports: Q and K in float16, V in float32."""
    net = Net(17)
    q, k = (net.op("Cast", net.input(name, 2, 2, 5, HEAD_DIM), to=TensorProto.FLOAT16) for name in "qk")
    scores = net.op("MatMul", q, net.swap(k))
    scaled = net.op("Mul", scores, net.const(0.2, np.float16))
    wide = net.op("Cast", net.op("Softmax", scaled, axis=-1, name="softmax"), to=TensorProto.FLOAT)
    net.output(net.op("MatMul", wide, net.input("v", 2, 2, 5, HEAD_DIM)))
    keep, asked = (onnx_attn.fuse(net.model(), precision=precision).report for precision in ("keep", "fp16"))
    assert candidates(keep)[0]["landing"]["expected"] is False
    assert "--precision fp16" in candidates(keep)[0]["landing"]["remedy"]
    assert candidates(asked)[0]["changes"] == ["fp16-island"]
    assert candidates(asked)[0]["landing"]["expected"] is True
