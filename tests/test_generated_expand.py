"""Every combination of spellings: taken apart and put together again it is the same, and computes the same."""

from __future__ import annotations

import onnx
from canonical import canonical
from checks import assert_same
from hypothesis import HealthCheck, given, settings
from knobs import Block, Knobs
from test_generated import spellings

import onnx_attn


def fused(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx_attn.fuse(model, target="onnx", algebra=False).model  # type: ignore[return-value]


@settings(max_examples=15, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(spellings())
def test_forms_are_fixed_points(spelling: Knobs) -> None:
    model = Block(spelling).model()
    together, taken = fused(model), onnx_attn.expand(model)
    apart = taken.model
    assert (taken.report["sites"], taken.report["expanded"]) == (1, 1)
    assert_same(model, apart)
    assert not any(node.domain for node in apart.graph.node)
    assert canonical(fused(onnx_attn.expand(together).model)) == canonical(together)
    assert canonical(onnx_attn.expand(fused(apart)).model) == canonical(apart)
