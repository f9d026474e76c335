"""`quantize_probabilities`: the step that the softmax's result lacks, on request only."""

from __future__ import annotations

import numpy as np
import pytest
from quantised import landed, quantised_block, quantised_site, site_with, steps

import onnx_attn

KINDS = ("int8", "fp8")


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_missing_step_is_added_on_request(kind: str, half: bool) -> None:
    dtype = np.float16 if half else np.float32
    model = quantised_site(kind, probabilities=False, dtype=dtype)
    result = onnx_attn.fuse(model, quantize_probabilities=True)
    entry, certificate = result.report["candidates"][0], result.report["candidates"][0]["certificate"]
    assert entry["changes"] == ["quantized-probabilities"] and result.report["proof"]["ok"]
    assert 0 < certificate["max_rel"] <= certificate["bound"] < 0.1
    added = [each for each in steps(result.model) if each not in steps(model)]
    name, scale = {"int8": ("INT8", 1 / 127), "fp8": ("FLOAT8E4M3FN", 1 / 448)}[kind]
    assert added == [(name, float(dtype(scale)))]
    assert landed(model)[0] == 0 and landed(result.model) == (1, 5)
    site = result.plan["sites"][0]
    assert site["changes"] == ["quantized-probabilities"]
    again = onnx_attn.fuse(model, plan=result.plan)
    assert again.model.SerializeToString() == result.model.SerializeToString()
    site["changes"] = []
    assert steps(onnx_attn.fuse(model, plan=result.plan).model) == steps(model)


def test_nothing_is_added_without_being_asked_or_where_nothing_is_missing() -> None:
    for model in (quantised_site(length=8), site_with()):
        entry = onnx_attn.fuse(model, quantize_probabilities=True).report["candidates"][0]
        assert entry["changes"] == [] and entry["status"] == "site"
    assert onnx_attn.fuse(quantised_site(length=8, probabilities=False)).report["candidates"][0]["changes"] == []


def test_a_step_is_added_behind_a_mask_that_blocks_whole_rows() -> None:
    model = quantised_site(probabilities=False, mask=True)
    entry = onnx_attn.fuse(model, quantize_probabilities=True).report["candidates"][0]
    assert entry["status"] == "site" and entry["certificate"]["ok"]


def test_a_packed_block_gets_its_step_too() -> None:
    model = quantised_block()
    assert len(steps(onnx_attn.fuse(model, quantize_probabilities=True).model)) == len(steps(model))
