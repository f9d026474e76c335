"""Attention in random spellings is found, read, fused and right; what only looks like it is left alone.

`SPELLINGS=5000 pytest tests/test_spelling.py` tries as many (150 by default).
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from spelling import NEAR_MISSES, Spelling, legal, near_misses
from support import max_rel, run

import onnx_attn

COUNT = int(os.environ.get("SPELLINGS", "150"))
SEED = os.environ.get("SPELLINGS_SEED")
"""Another seed tries others: without one, the same are tried every time."""
OWN = {"float16": 2e-2, "float32": 1e-4, "float64": 1e-9}
"""How far a drawn graph may be from its truth in float64."""
FUSED = {"float16": 5e-3, "float32": 1e-5, "float64": 1e-12}
drawn = settings(
    max_examples=COUNT,
    derandomize=SEED is None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    report_multiple_bugs=False,
)


@drawn
@given(legal())
def test_attention_in_any_spelling_is_fused_and_right(spelling: Spelling) -> None:
    model, dtype = spelling.model, str(spelling.net.dtype)
    before = run(model, spelling.inputs, optimized=False)
    off = max_rel([spelling.expected], [before[0].astype(np.float64)])
    assert off <= OWN[dtype], ("the generator's own graph is wrong", spelling.told)
    result = onnx_attn.fuse(model)
    (candidate,) = result.report["candidates"]
    assert (candidate["status"], candidate["code"]) == ("site", None), (candidate["reason"], spelling.told)
    for name, value in spelling.truth.items():
        close = 1e-3 if dtype == "float16" else 1e-6
        wanted = pytest.approx(value, rel=close) if isinstance(value, float) else value
        assert candidate[name] == wanted, (name, candidate[name], value, spelling.told)
    assert candidate["softmax"] == "softmax"
    assert max_rel(before, run(result.model, spelling.inputs, optimized=False)) <= FUSED[dtype], spelling.told
    if "Softmax" in {node.op_type for node in result.model.graph.node}:
        assert candidate["form"] == "primitives"


@pytest.mark.parametrize("near_miss", NEAR_MISSES)
def test_what_only_looks_like_attention_is_left_alone(near_miss: str) -> None:
    @settings(drawn, max_examples=max(10, COUNT // len(NEAR_MISSES)))
    @given(near_misses(near_miss))
    def left_alone(spelling: Spelling) -> None:
        model = spelling.model
        result = onnx_attn.fuse(model)
        assert result.report["fused"] == 0, (spelling.told, result.report["candidates"])
        assert all(candidate["reason"] for candidate in result.report["candidates"])
        assert result.model.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)

    left_alone()
