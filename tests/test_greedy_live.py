"""Decoders exported on the spot, fused, and run for ten tokens beside the originals: `pytest -m live` (needs the extra)."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnx_attn

pytestmark = pytest.mark.live
pytest.importorskip("torch")

LOOPS = (
    ("llama", "torchscript", 17, "sdpa"),
    ("falcon", "torchscript", 17, "eager"),
    ("phi_continue", "dynamo", 18, "sdpa"),
    ("whisper", "torchscript", 17, "eager"),
)


@pytest.mark.parametrize(("name", "exporter", "opset", "attn"), LOOPS)
def test_fused_decoders_say_the_same(name: str, exporter: str, opset: int, attn: str, tmp_path: Path) -> None:
    from models.greedy import run

    told = run(name, tmp_path, exporter, opset, attn, "tiny")  # type: ignore[arg-type]
    assert not told.failure
    assert not told.unmet, told


DECODED = (
    # Sites, kernels and MB moved of the fused model at most; as exported it has as many kernels, and as many bytes or more.
    ("gpt2_decode", 18, "eager", 2, 23, 44.4),
    ("llama_decode", 23, "eager", 2, 25, 50.2),
    ("t5_decoder_step", 18, "eager", 4, 31, 25.5),
)


@pytest.mark.parametrize(("name", "opset", "attn", "sites", "kernels", "megabytes"), DECODED)
def test_one_query_lands_on_an_attention_kernel(
    name: str, opset: int, attn: str, sites: int, kernels: int, megabytes: float, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    from models.export import export

    path, fused = tmp_path / "model.onnx", tmp_path / "fused.onnx"
    export(name, path, "dynamo", opset, False, True, attn, "full")  # type: ignore[arg-type]
    onnx_attn.fuse(path, fused, expect=sites)
    report = onnx_attn.land(fused, baseline=path, expect_all=True)
    assert report["kernels"] <= min(kernels, report["baseline"]["kernels"])
    assert report["moved_bytes"] <= min(megabytes * 1e6, report["baseline"]["moved_bytes"])
