"""Every checked-in export, as its exporter wrote it: all sites found, fused and right; nothing to do a second time.

The proof is made where numbers are the matter; what asks for structure alone goes without.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from support import Export, exports, feeds, max_rel, run

import onnx_attn

ALL = exports()
SIZES = (
    {"batch": 3, "sequence": 9, "memory": 7, "past": 5, "total": 6},
    {"batch": 2, "sequence": 16, "memory": 24, "past": 15, "total": 16},
)
FIXED = ({"batch": 2, "sequence": 16, "memory": 24}, {"batch": 5, "sequence": 16, "memory": 24})


@pytest.fixture(params=ALL, ids=lambda export: export.path.stem)
def export(request: pytest.FixtureRequest) -> Export:
    return request.param


def test_every_true_site_is_found_and_nothing_else(export: Export) -> None:
    report = onnx_attn.inspect(export.path)
    assert report["sites"] == export.true_sites
    assert report["refused"] == export.true_sites - export.wanted


@pytest.mark.parametrize("form", ["function", "primitives"])
def test_fused_model_computes_the_same(export: Export, form: str, tmp_path: Path) -> None:
    fused = tmp_path / "fused.onnx"
    report = onnx_attn.fuse(export.path, fused, form=form).report
    assert report["fused"] == export.wanted, report["candidates"]
    assert report["proof"]["ok"]
    model = onnx.load(export.path)
    for sizes in FIXED if export.fixed_sequence else SIZES:
        inputs = feeds(model, sizes)
        expected, actual = (run(path, inputs, optimized=not export.half) for path in (export.path, fused))
        assert max_rel(expected, actual) <= (2e-3 if export.half else 1e-5)


def test_one_attention_node_stands_for_each_site(export: Export, tmp_path: Path) -> None:
    model = onnx.load(export.path)
    names = {c["softmax"] for c in onnx_attn.inspect(export.path)["candidates"] if c["status"] == "site"}
    fused = onnx_attn.fuse(export.path, tmp_path / "fused.onnx", verify=False).model
    calls = [node for node in fused.graph.node if node.op_type.startswith("ScaledDotProductAttention")]
    assert {node.name for node in calls} == names
    if names:
        assert len(fused.graph.node) < len(model.graph.node) or "Attention" in {n.op_type for n in model.graph.node}
        assert not [n for n in fused.graph.node if n.op_type in ("Softmax", "Attention") and n.name in names]


def test_projections_are_packed_into_one_product(export: Export, tmp_path: Path) -> None:
    report = onnx_attn.fuse(export.path, tmp_path / "fused.onnx", verify=False).report
    sites = [candidate for candidate in report["candidates"] if candidate["status"] == "site"]
    packed = [candidate for candidate in sites if candidate["packed"]]
    assert len(packed) == export.packable, {candidate["unpacked_because"] for candidate in sites}
    assert all(candidate["projection"] != "none" for candidate in packed)


def test_fusing_again_changes_nothing(export: Export, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    first = onnx_attn.fuse(export.path, once, verify=False).report
    second = onnx_attn.fuse(once, twice, verify=False).report
    assert twice.read_bytes() == once.read_bytes()
    assert (second["sites"], second["fused"]) == (first["sites"], first["fused"])


def test_primitives_again_changes_nothing(export: Export, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    onnx_attn.fuse(export.path, once, form="primitives", verify=False)
    onnx_attn.fuse(once, twice, form="primitives", verify=False)
    assert twice.read_bytes() == once.read_bytes()


def test_inputs_outputs_and_names_stay(export: Export, tmp_path: Path) -> None:
    before = onnx.load(export.path)
    after = onnx_attn.fuse(export.path, tmp_path / "fused.onnx", verify=False).model
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    onnx.checker.check_model(after, full_check=True)
