"""Attention in random spellings is found, read, fused and right; what only looks like it is left alone.

`SPELLINGS=5000 pytest tests/test_spelling.py` tries as many (150 by default).
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from spelling import Spelling, legal, near_misses
from support import max_rel, run

import onnx_attn

COUNT = int(os.environ.get("SPELLINGS", "150"))
drawn = settings(
    max_examples=COUNT, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


@drawn
@given(legal())
def test_attention_in_any_spelling_is_fused_and_right(spelling: Spelling) -> None:
    model = spelling.model
    before = run(model, spelling.inputs, optimized=False)
    assert max_rel([spelling.expected], before) <= 1e-4, "the generator's own graph is wrong"
    result = onnx_attn.fuse(model)
    (candidate,) = result.report["candidates"]
    assert (candidate["status"], candidate["code"]) == ("site", None), (candidate["reason"], spelling.told)
    for name, value in spelling.truth.items():
        wanted = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
        assert candidate[name] == wanted, (name, candidate[name], value, spelling.told)
    assert candidate["softmax"] == "softmax"
    assert max_rel(before, run(result.model, spelling.inputs, optimized=False)) <= 1e-5
    if "Softmax" in {node.op_type for node in result.model.graph.node}:
        assert candidate["form"] == "primitives"


@drawn
@given(near_misses())
def test_what_only_looks_like_attention_is_left_alone(drawn_case: tuple[str, Spelling]) -> None:
    near_miss, spelling = drawn_case
    model = spelling.model
    result = onnx_attn.fuse(model)
    assert result.report["fused"] == 0, (near_miss, spelling.told, result.report["candidates"])
    assert all(candidate["reason"] for candidate in result.report["candidates"])
    np.testing.assert_equal(
        result.model.SerializeToString(deterministic=True), model.SerializeToString(deterministic=True)
    )
