"""Every row about ONNX Runtime on the CPU that is called measured, against ONNX Runtime itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from target_cases import cases_of, model_of, values_of

from onnx_attn.targets.editions import ORT_CPU
from onnx_attn.targets.facts import PLAIN, Facts
from onnx_attn.targets.rows import Example, Row

CASES = cases_of("onnxruntime ")


def run(model: onnx.ModelProto) -> np.ndarray:
    """The first output, by ONNX Runtime as it comes."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, values_of(model))[0]  # type: ignore[no-any-return]


def expected(facts: Facts, values: dict[str, np.ndarray]) -> np.ndarray:
    """softmax(softcap(scale · Q·Kᵀ) + mask)·V in float64, as the standard defines it."""
    q, k, v = (values[name].astype(np.float64) for name in "qkv")
    if facts.rank == 3:
        q, k, v = (
            x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)
            for x, heads in ((q, facts.heads), (k, facts.kv_heads), (v, facts.kv_heads))
        )
    if facts.past:
        k, v = (np.concatenate([values[f"past_{x}"].astype(np.float64), y], axis=2) for x, y in (("k", k), ("v", v)))
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if facts.softcap:
        scores = 2.0 * np.tanh(scores / 2.0)
    keys = np.arange(k.shape[2])
    if facts.causal:
        scores = np.where(keys <= np.arange(q.shape[2])[:, None], scores, -np.inf)
    if facts.nonpad:
        scores = np.where(keys < values["nonpad"][:, None, None, None], scores, -np.inf)
    if facts.mask == "boolean":
        scores = np.where(values["mask"], scores, -np.inf)
    elif facts.mask == "additive":
        scores = scores + values["mask"].astype(np.float64)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found = powers / powers.sum(axis=-1, keepdims=True) @ v
    return found.transpose(0, 2, 1, 3).reshape(*found.shape[::2][:1], found.shape[2], -1) if facts.rank == 3 else found


@pytest.mark.parametrize(("row", "example"), CASES)
def test_onnxruntime_does_as_the_row_says(row: Row, example: Example) -> None:
    assert ORT_CPU in row.editions
    facts = replace(PLAIN, **example.facts)
    model = model_of(facts, example.form)
    if row.outcome == "rejected":
        with pytest.raises(Exception, match=r"\[ONNXRuntimeError\]"):
            run(model)
        return
    assert row.outcome == "runs"
    found, wanted = run(model), expected(facts, values_of(model))
    limit = 4e-3 if facts.dtype == "float16" else 1e-5
    assert np.abs(found.astype(np.float64) - wanted).max() <= limit * np.abs(wanted).max()
