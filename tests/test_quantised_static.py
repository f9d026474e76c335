"""Models as ONNX Runtime's static quantiser leaves them: every site is read, its steps and narrow weights kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from quantised import landed, two_layers
from support import EXPORTS, feeds, max_rel, run

import onnx_attn

SIZES = {"batch": 2, "sequence": 16}
SYMMETRIC = {"ActivationSymmetric": True, "QuantizeBias": False}
FOR_KERNELS = {**SYMMETRIC, "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}
PRODUCTS = ["MatMul", "Gemm"]


class _Data(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, model: onnx.ModelProto):
        self.values: Iterator[dict[str, np.ndarray]] = iter([feeds(model, SIZES, seed) for seed in range(2)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.values, None)


def quantised(path: Path, folder: Path, **options: Any) -> onnx.ModelProto:
    """int8 weights and activations, by QuantizeLinear and DequantizeLinear."""
    logging.disable(logging.WARNING)
    output = folder / "quantised.onnx"
    options = {"weight_type": QuantType.QInt8, "quant_format": QuantFormat.QDQ} | options
    quantize_static(str(path), str(output), _Data(onnx.load(path)), **options)
    logging.disable(logging.NOTSET)
    return onnx.load(output)


def bytes_of_narrow(model: onnx.ModelProto) -> int:
    narrow = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    return sum(len(t.raw_data) for t in model.graph.initializer if t.data_type in narrow and len(t.dims) == 2)


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "products": {"op_types_to_quantize": PRODUCTS},
    "per channel": {
        "per_channel": True,
        "activation_type": QuantType.QInt8,
        "extra_options": {"ActivationSymmetric": True},
    },
    "for kernels": {
        "per_channel": True,
        "op_types_to_quantize": PRODUCTS,
        "activation_type": QuantType.QInt8,
        "extra_options": FOR_KERNELS,
    },
}
MODELS = {
    "mha_no_bias.torchscript.17.static": 1,
    "handwritten.torchscript.17.dynamic": 1,
    "mha.dynamo.18.dynamic": 1,
    "encoder_layer_pre.torchscript.20.static": 1,
    "vit_b_16.torchscript.17.static": 2,
    "deit_tiny_distilled.torchscript.17.static": 2,
    "swin_tiny.torchscript.17.dynamic": 2,
    "sdpa_prescaled.torchscript.17.static": 1,
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_every_site_of_a_quantised_export_is_fused(name: str, options: str, tmp_path: Path) -> None:
    model = quantised(EXPORTS / f"{name}.onnx", tmp_path, **OPTIONS[options])
    result = onnx_attn.fuse(model)
    onnx.checker.check_model(result.model)
    assert result.report["fused"] == MODELS[name]
    assert bytes_of_narrow(result.model) == bytes_of_narrow(model)
    inputs = feeds(model, SIZES)
    assert max_rel(run(model, inputs, False), run(result.model, inputs, False)) < 1e-5


@pytest.mark.parametrize("length", [64, 197])
def test_a_model_quantised_for_the_kernels_lands_in_fewer_of_them(length: int, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = quantised(two_layers(tmp_path, length), tmp_path, **OPTIONS["for kernels"])
    result = onnx_attn.fuse(model)
    before, after = landed(model), landed(result.model)
    assert before[0] == after[0] == 2 and after[1] == before[1] - 4
    assert all(entry["packed"] and entry["landing"]["expected"] for entry in result.report["candidates"])


def test_what_keeps_a_quantised_model_off_the_kernels_is_said_with_the_way_out(tmp_path: Path) -> None:
    options = {**OPTIONS["for kernels"], "extra_options": SYMMETRIC}
    result = onnx_attn.fuse(quantised(two_layers(tmp_path), tmp_path, **options))
    remedies = {entry["landing"]["remedy"] for entry in result.report["candidates"]}
    assert len(remedies) == 1 and "OpTypesToExcludeOutputQuantization" in remedies.pop()


def test_weights_of_a_scale_each_stay_apart(tmp_path: Path) -> None:
    options = {**OPTIONS["for kernels"], "per_channel": False}
    result = onnx_attn.fuse(quantised(two_layers(tmp_path), tmp_path, **options))
    assert all(entry["unpacked_because"].startswith("weight-scales-differ") for entry in result.report["candidates"])
