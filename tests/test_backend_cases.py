"""onnx's own backend cases of Attention and RotaryEmbedding: what runs before it is taken apart gives the same afterwards."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

import onnx_attn

OPERATORS = ("Attention", "RotaryEmbedding")


@cache
def cases() -> dict[str, Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = [case for case in collect_testcases(None) if not case.name.endswith("_expanded")]
    return {case.name: case for case in every if {node.op_type for node in case.model.graph.node} & {*OPERATORS}}


def ran(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    """By ONNX Runtime, or by the reference evaluator; None where neither runs it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, inputs)
    except Exception:
        pass
    try:
        return ReferenceEvaluator(model).run(None, inputs)
    except Exception:
        return None


def agrees(found: list[np.ndarray] | None, expected: list[np.ndarray], case: Any) -> bool:
    half = any(each.dtype.name in ("float16", "bfloat16") for each in expected)
    rtol, atol = max(case.rtol, 5e-3 if half else 1e-4), max(case.atol, 5e-3 if half else 1e-5)
    return found is not None and all(
        a.shape == b.shape and np.allclose(a.astype(np.float64), b.astype(np.float64), rtol, atol, equal_nan=True)
        for a, b in zip(found, expected, strict=True)
    )


def test_every_case_that_runs_is_taken_apart() -> None:
    assert len(cases()) >= 60
    skipped, wrong = [], []
    for name, case in cases().items():
        (given, expected), *_ = case.data_sets
        inputs = {value.name: np.asarray(each) for value, each in zip(case.model.graph.input, given, strict=True)}
        if not agrees(ran(case.model, inputs), expected, case):
            skipped.append(name)
            continue
        made = onnx_attn.expand(case.model, verify=False).model
        left = [node.op_type for node in made.graph.node if node.op_type in OPERATORS]
        if left or not agrees(ran(made, inputs), expected, case):
            wrong.append((name, left))
    print(len(cases()), len(skipped), skipped)
    assert wrong == []
