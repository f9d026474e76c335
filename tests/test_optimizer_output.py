"""What ONNX Runtime's transformers optimizer wrote is taken back to TensorRT, which parses none of it as it stands."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import pytest
from checks import assert_same

import onnx_attn
from onnx_attn.graph.sizes import worlds_of
from onnx_attn.prove.inputs import model_inputs

EXPORTS = Path(__file__).parent / "exports"

OPTIMIZED = {
    "clip_vision.torchscript.17.static.eager.half": ("clip", 2, 19),
    "bert.dynamo.18.static.eager.half": ("bert", 2, 20),
    "whisper_encoder.dynamo.23.static.half": ("bart", 2, 24),
    "vit_b_16.torchscript.17.static.half": ("vit", 2, 19),
    "hubert.dynamo.20.dynamic": ("bart", 2, 0),
    "mpnet.torchscript.17.static.eager": ("bert", 2, 0),
    "llama.torchscript.17.dynamic": ("gpt2", 2, 0),
    "gpt2.torchscript.17.dynamic": ("gpt2", 2, 0),
}
"""Exports with the optimizer's type of model, their sites, and for those of half precision the most kernels."""


def optimized(name: str, kind: str) -> onnx.ModelProto:
    from onnxruntime.transformers import optimizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optimizer.optimize_model(
            str(EXPORTS / f"{name}.onnx"), model_type=kind, num_heads=4, hidden_size=96, opt_level=0
        )
    found.topological_sort()
    model = found.model
    if all(entry.domain != "com.microsoft" for entry in model.opset_import):
        model.opset_import.add(domain="com.microsoft", version=1)
    return model


@pytest.mark.parametrize("name", OPTIMIZED)
def test_optimizer_output_goes_back_to_tensorrt(name: str) -> None:
    kind, sites, kernels = OPTIMIZED[name]
    model = optimized(name, kind)
    assert any(node.domain == "com.microsoft" for node in model.graph.node)
    result = onnx_attn.fuse(model, target_version="rtx", expect=sites)
    assert result.report["refused"] == 0
    assert all(candidate["packed"] for candidate in result.report["candidates"]) or "llama" in name
    assert not any(node.domain == "com.microsoft" for node in result.model.graph.node)
    inputs = model_inputs(model, worlds_of(model)[0], seed=3)
    assert_same(model, result.model, inputs, rtol=2e-3 if "half" in name else 1e-5)
    if "half" not in name:
        return
    report = onnx_attn.land(result.model, baseline=model)
    assert (report["baseline"]["built"], report["built"], report["landed"]) == (False, True, sites)
    assert report["kernels"] <= kernels
