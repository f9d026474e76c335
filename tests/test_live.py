"""Exports made on the spot, at full size, by both of torch's exporters: `pytest -m live` (needs the export extra)."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from support import feeds, max_rel, run

import onnx_attn

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
    ("deit_tiny_distilled", "dynamo", 23, False),
    ("clip_text", "dynamo", 20, True),
    ("whisper_encoder", "torchscript", 20, False),
    ("mha_cross", "dynamo", 18, False),
    ("decoder_layer_pre", "dynamo", 20, False),
    ("gqa_block", "dynamo", 23, True),
    ("llama", "torchscript", 17, True),
    ("edgenext_small", "torchscript", 17, False),
    ("crossvit_9", "dynamo", 18, False),
    ("marian", "dynamo", 18, False),
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
    inputs = feeds(onnx.load(path), {"batch": 2, "sequence": 16, "memory": 24})
    assert max_rel(run(path, inputs), run(fused, inputs)) <= 1e-5


AS_EXPORTED = (
    # Kernels, MB moved and sites on attention kernels of the export as it comes; kernels of the fused model at most.
    ("vit_b_16", "dynamo", 23, 113, 304, 12, 89),
    ("swin_t", "torchscript", 17, 177, 171, 12, 105),
    ("swin_t", "dynamo", 23, 321, 202, 2, 106),
    ("swin_v2_t", "torchscript", 17, 266, 215, 12, 172),
)


@pytest.mark.parametrize(("name", "exporter", "opset", "kernels", "megabytes", "landed", "fused_kernels"), AS_EXPORTED)
def test_land_gives_the_known_figures_and_fusing_makes_nothing_worse(
    name: str, exporter: str, opset: int, kernels: int, megabytes: int, landed: int, fused_kernels: int, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    path, fused = tmp_path / "model.onnx", tmp_path / "fused.onnx"
    assert made(path, name, exporter, opset, dynamic=False, half=True) == 12
    onnx_attn.fuse(path, fused)
    report = onnx_attn.land(fused, baseline=path)
    before = report["baseline"]
    assert (before["kernels"], round(before["moved_bytes"] / 1e6), before["landed"]) == (kernels, megabytes, landed)
    assert report["sites"] == before["sites"] == 12
    assert report["kernels"] <= fused_kernels
    assert report["moved_bytes"] <= before["moved_bytes"]
    assert report["landed"] == 12
    assert [entry["site"] for entry in report["per_site"]] == [entry["site"] for entry in before["per_site"]]
    mapping = sum(report["seconds"][phase] for phase in ("names", "recognize", "map"))
    print(f"{name} {exporter} {opset}: mapping {mapping:.2f} s, compiling {report['seconds']['compile']:.2f} s")


@pytest.mark.parametrize(("exporter", "opset"), [("torchscript", 17), ("dynamo", 18), ("dynamo", 23)])
def test_a_padded_bert_comes_to_twenty_kernels(exporter: str, opset: int, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from models.export import export

    path, fused = tmp_path / "bert.onnx", tmp_path / "fused.onnx"
    export("bert", path, exporter, opset, False, True, "eager", "full")  # type: ignore[arg-type]
    onnx_attn.fuse(path, fused, expect=2)
    report = onnx_attn.land(fused, baseline=path, expect_all=True)
    assert report["kernels"] <= 20 < report["baseline"]["kernels"]
    assert report["moved_bytes"] <= report["baseline"]["moved_bytes"]
