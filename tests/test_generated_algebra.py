"""Random blocks with a LayerNorm before and a layer behind: exact algebra changes no number, whatever the spelling."""

from __future__ import annotations

from dataclasses import replace

from checks import assert_same, feeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from knobs import Block, Knobs
from test_generated import spellings

import onnx_attn

APPLIED: dict[str, int] = {}
"""How often each identity was applied: that none is tried in vain."""


@settings(max_examples=120, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(spellings(), st.booleans(), st.sampled_from(["auto", "primitives"]))
def each_spelling(spelling: Knobs, dynamic: bool, form: str) -> None:
    """In float64, where an identity that does not hold stands out from rounding by ten orders of magnitude."""
    spelling = replace(spelling, dtype="float64", dynamic=spelling.dynamic if dynamic else (), cast=False)
    model = Block(spelling).model()
    result, plain = (onnx_attn.fuse(model, form=form, algebra=algebra, verify=False) for algebra in (True, False))
    inputs = feeds(model)
    if "mask" in inputs:
        inputs["mask"][..., -1, -1] = -1e9
    for name in result.report["candidates"][0].get("algebra", []):
        APPLIED[name] = APPLIED.get(name, 0) + 1
    assert plain.report["candidates"][0]["algebra"] == []
    assert result.report["fused"] == plain.report["fused"] == 1
    # The scale is kept as float32 in a node of its own.
    assert_same(model, result.model, inputs, 1e-6)
    assert_same(model, plain.model, inputs, 1e-6)


def test_every_spelling_computes_the_same_with_algebra_and_without() -> None:
    APPLIED.clear()
    each_spelling()
    assert min(APPLIED.get(name, 0) for name in ("constant-channel", "key-bias", "value-bias", "scale")) > 5, APPLIED
