"""Every combination of spellings: fused once, computing the same, and nothing left to do the second time."""

from __future__ import annotations

from checks import assert_same, same_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from knobs import Block, Knobs

import onnx_attn


@st.composite
def spellings(draw: st.DrawFn) -> Knobs:
    """Float32 blocks; what cannot be combined is not drawn."""
    opset = draw(st.integers(13, 23))
    projection = draw(st.sampled_from(["matmul", "gemm", "packed", "none"]))
    free_value = projection != "packed"
    return Knobs(
        opset=opset,
        layout=draw(st.sampled_from(["BNSH", "heads3d", "sequence_first"])),
        projection=projection,
        biases=draw(st.sampled_from(["", "q", "k", "v", "qv", "qkv"])),
        scale=draw(st.sampled_from(["scores_mul", "scores_div", "q_before", "q_after", "k", "sqrt_both", "none"])),
        mask=draw(st.sampled_from(["none", "additive", "keep", "fill", "two"])),
        cast=draw(st.booleans()),
        guard=draw(st.booleans()),
        dropout=draw(st.sampled_from(["none", "plain", "mode_false"])),
        dynamic=draw(st.sampled_from([(), ("batch",), ("sequence",), ("batch", "sequence")])),
        batch=draw(st.integers(1, 3)),
        sequence=draw(st.sampled_from([1, 5, 24])),
        heads=draw(st.integers(1, 3)),
        value_dim=draw(st.sampled_from([24, 16])) if free_value else 24,
        key_in_two_steps=draw(st.booleans()),
        alpha=draw(st.sampled_from([1.0, 0.7])),
        beta=draw(st.sampled_from([1.0, 1.3])),
        trans_b=draw(st.booleans()),
        packed_order=draw(st.sampled_from(["three_h_d", "h_three_d", "split"])),
        norm=draw(st.sampled_from(["none", "plain", "no_beta", "turned"])) if opset >= 17 else "none",
        out=draw(st.sampled_from(["none", "matmul", "no_bias", "gemm"])),
        seed=draw(st.integers(0, 99)),
        named=draw(st.booleans()),
    )


@settings(max_examples=120, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(spellings(), st.sampled_from(["auto", "primitives"]))
def test_every_spelling_is_fused_and_computes_the_same(spelling: Knobs, form: str) -> None:
    model = Block(spelling).model()
    result = onnx_attn.fuse(model, form=form)
    assert (result.report["sites"], result.report["fused"]) == (1, 1), result.report["candidates"]
    assert_same(model, result.model)
    assert same_bytes(onnx_attn.fuse(result.model, form=form).model, result.model)
