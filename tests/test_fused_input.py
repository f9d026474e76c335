"""Models that were fused before: done where the form is the wanted one, refused where it is not."""

from __future__ import annotations

import stat
from pathlib import Path

import onnx
import pytest
from support import EXPORTS

import onnx_attn

BERT = EXPORTS / "bert.dynamo.23.dynamic.onnx"


@pytest.mark.parametrize("wanted", [{"form": "primitives"}, {"target_version": "8.6"}], ids=["form", "target"])
def test_a_fused_site_is_refused_where_functions_are_not_wanted(wanted: dict[str, str], tmp_path: Path) -> None:
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    onnx_attn.fuse(BERT, once)
    report = onnx_attn.fuse(once, twice, **wanted).report  # type: ignore[arg-type]
    assert (report["sites"], report["fused"], report["refused"]) == (2, 0, 2)
    assert {c["code"] for c in report["candidates"] if c["status"] == "refused"} == {"already-fused"}
    assert twice.read_bytes() == once.read_bytes()


def test_islands_for_what_was_fused_before_are_refused_with_the_way_out(tmp_path: Path) -> None:
    once, again = tmp_path / "once.onnx", tmp_path / "again.onnx"
    onnx_attn.fuse(BERT, once, verify=False)
    report = onnx_attn.fuse(once, again, precision="fp16", verify=False).report
    assert {(each["status"], each["code"]) for each in report["candidates"]} == {("refused", "already-fused")}
    assert "onnx-attn expand" in report["candidates"][0]["remedy"]
    onnx_attn.expand(once, again, verify=False)
    assert onnx_attn.fuse(again, precision="fp16", verify=False).report["fused"] == 2


def test_a_site_has_the_same_keys_whether_it_was_fused_now_or_before(tmp_path: Path) -> None:
    once = tmp_path / "once.onnx"
    first = onnx_attn.fuse(BERT, once).report["candidates"]
    second = onnx_attn.fuse(once, tmp_path / "twice.onnx").report["candidates"]
    assert [set(candidate) for candidate in first] == [set(candidate) for candidate in second]


def test_external_data_can_be_read_by_whoever_can_read_the_model(tmp_path: Path) -> None:
    source, fused = tmp_path / "model.onnx", tmp_path / "fused.onnx"
    onnx.save_model(onnx.load(BERT), source, save_as_external_data=True, location="model.weights", size_threshold=64)
    onnx_attn.fuse(source, fused)
    files = list(tmp_path.glob("fused.onnx*"))
    modes = {stat.S_IMODE(path.stat().st_mode) for path in files}
    assert len(files) == 2
    assert len(modes) == 1
