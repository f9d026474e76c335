"""Exports made on the spot, at full size, by both of torch's exporters: `pytest -m live` (needs the export extra)."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from support import feeds, max_rel, run

import onnx_attn
from onnx_attn.engine.compile import compile_model

pytestmark = pytest.mark.live
pytest.importorskip("torch")

CELLS = (
    ("vit_small_patch16_224", "torchscript", 17, False),
    ("bert", "torchscript", 17, True),
    ("bert", "dynamo", 18, False),
    ("gpt2", "dynamo", 23, True),
    ("clip_vision", "dynamo", 18, True),
    ("mha", "torchscript", 17, False),
    ("mha", "dynamo", 18, True),
    ("mha_seq_first", "dynamo", 23, False),
    ("handwritten", "torchscript", 17, True),
    ("sdpa_prescaled", "dynamo", 23, True),
)


def made(path: Path, name: str, exporter: str, opset: int, dynamic: bool, half: bool = False) -> int:
    from models.export import export

    return export(name, path, exporter, opset, dynamic, half, "sdpa", "full").true_sites


@pytest.mark.parametrize(("name", "exporter", "opset", "dynamic"), CELLS)
def test_fresh_export_is_fused_whole(name: str, exporter: str, opset: int, dynamic: bool, tmp_path: Path) -> None:
    path, fused = tmp_path / "model.onnx", tmp_path / "fused.onnx"
    true_sites = made(path, name, exporter, opset, dynamic)
    report = onnx_attn.fuse(path, fused, expect=true_sites).report
    assert report["sites"] == true_sites
    inputs = feeds(onnx.load(path), {"batch": 2, "sequence": 16})
    assert max_rel(run(path, inputs), run(fused, inputs)) <= 1e-5


@pytest.mark.parametrize(("exporter", "opset", "as_exported"), [("torchscript", 17, 125), ("dynamo", 18, 137)])
def test_vit_b_16_lands_on_twelve_kernels_of_at_most_101(
    exporter: str, opset: int, as_exported: int, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    path, fused = tmp_path / "vit.onnx", tmp_path / "fused.onnx"
    assert made(path, "vit_b_16", exporter, opset, dynamic=False, half=True) == 12
    report = onnx_attn.fuse(path, fused, expect=12).report
    assert report["proof"]["max_rel"] <= 2e-3
    assert len(compile_model(path).kernels) == as_exported
    engine = compile_model(fused)
    assert [c["softmax"] for c in report["candidates"] if not engine.landed(c["softmax"])] == []
    assert len(engine.kernels) <= 101
