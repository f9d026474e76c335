"""What the compiler of TensorRT for RTX makes of fused models, on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from support import EXPORTS, Export, exports
from target_cases import model_of

import onnx_attn
from onnx_attn.engine.compile import compile_model
from onnx_attn.targets.facts import PLAIN

pytest.importorskip("tensorrt_rtx")

STATIC = [
    export for export in exports() if ".static" in export.path.name and export.true_sites and not export.left_alone
]
HALF = [export for export in STATIC if export.half]


def attention_names(path: Path) -> list[str]:
    nodes = onnx.load(path).graph.node
    return [
        node.name for node in nodes if node.op_type.startswith(("Softmax", "Attention", "ScaledDotProductAttention"))
    ]


@pytest.mark.parametrize("form", ["function", "primitives"])
@pytest.mark.parametrize("export", HALF, ids=lambda export: export.path.stem)
def test_every_site_of_a_half_precision_export_lands(export: Export, form: str, tmp_path: Path) -> None:
    fused = tmp_path / "fused.onnx"
    onnx_attn.fuse(export.path, fused, form=form, verify=False)
    before, after = compile_model(export.path), compile_model(fused)
    assert after.built, after.errors
    names = attention_names(fused)
    assert len(names) == export.true_sites
    assert [name for name in names if not after.landed(name)] == []
    assert len(after.kernels) <= len(before.kernels)
    # A site's scale may stand elsewhere than before, and be kept apart.
    scales = 2 * len(names)
    assert (after.moved_bytes or 0) <= (before.moved_bytes or 0) + scales


UNPARSED = {"volo_d1": "Col2Im"}
"""What has nothing to do with attention and keeps an export from being parsed, before and after."""


@pytest.mark.parametrize("export", STATIC, ids=lambda export: export.path.stem)
def test_every_fused_export_builds(export: Export, tmp_path: Path) -> None:
    """In float32 too, where exports that hold `Attention` nodes do not build as they come."""
    fused = tmp_path / "fused.onnx"
    onnx_attn.fuse(export.path, fused, verify=False)
    engine = compile_model(fused)
    if (operator := UNPARSED.get(export.name)) is not None:
        for each in (engine, compile_model(export.path)):
            assert any(f"operator: {operator}" in error for error in each.errors), each.errors
        return
    assert engine.built, engine.errors


def test_attention_operators_in_float32_build_only_after_fusing(tmp_path: Path) -> None:
    path = EXPORTS / "mha.dynamo.23.static.onnx"
    onnx_attn.fuse(path, tmp_path / "fused.onnx", verify=False)
    assert not compile_model(path).built
    assert compile_model(tmp_path / "fused.onnx").built


@pytest.mark.parametrize("export", STATIC, ids=lambda export: export.path.stem)
def test_the_table_expects_of_an_export_what_the_compiler_does(export: Export) -> None:
    candidates = onnx_attn.inspect(export.path, target_version="rtx")["candidates"]
    expected = {c["softmax"]: c["landing"]["expected"] for c in candidates if c["landing"] is not None}
    report = onnx_attn.land(export.path)
    assert {entry["site"]: entry["landed"] for entry in report["per_site"]} == expected


@pytest.mark.parametrize("keys", [64, 80])
def test_an_operator_s_masked_rows_are_cleared_without_leaving_the_attention_kernel(keys: int, tmp_path: Path) -> None:
    """For TensorRT before 10.14 an `Attention` node is spelled out, and a row that its mask blocks throughout answers 0."""
    facts = replace(PLAIN, key_length=keys, mask="additive", mask_type="query", mask_rank=4, mask_queries="all")
    result = onnx_attn.fuse(model_of(facts, "attention"), target_version="10.13")
    (candidate,) = result.report["candidates"]
    assert (candidate["form"], candidate["certificate"]["ok"]) == ("function", True)
    assert onnx_attn.land(result.model)["landed"] == 1
