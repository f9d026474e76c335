"""What the rotary operator costs a real compiler, which is why it is not written for that."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest

import onnx_attn

pytest.importorskip("tensorrt_rtx")
EXPORT = Path(__file__).parent / "exports" / "cohere.dynamo.23.static.eager.half.onnx"


def test_a_whole_model_moves_more_bytes_with_the_operator(tmp_path: Path) -> None:
    spelled, operator = tmp_path / "spelled.onnx", tmp_path / "operator.onnx"
    plan = deepcopy(onnx_attn.fuse(EXPORT, spelled, target="tensorrt", target_version="rtx").plan)
    for site in plan["sites"]:
        site["changes"].append("rotary-embedding")
    onnx_attn.fuse(EXPORT, operator, plan=plan)
    with_it, without = (onnx_attn.land(path, sm=89) for path in (operator, spelled))
    assert with_it["landed"] == without["landed"] == 2
    assert with_it["moved_bytes"] > without["moved_bytes"]
    assert without["kernels"] - 1 <= with_it["kernels"] <= without["kernels"]
