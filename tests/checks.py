"""What every trap asks of a model: the verdict by the public API, and the same numbers in ONNX Runtime before and after."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

import onnx_attn
from onnx_attn import CODES

SIZES = {"batch": 3, "sequence": 7}


def feeds(model: onnx.ModelProto, sizes: dict[str, int] | None = None, seed: int = 11) -> dict[str, np.ndarray]:
    """Random inputs. Unnamed dimensions are looked up as `input:axis`; boolean masks keep at least the first key."""
    rng, sizes = np.random.default_rng(seed), SIZES | (sizes or {})
    weights = {tensor.name for tensor in model.graph.initializer}
    values: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        dims = enumerate(value.type.tensor_type.shape.dim)
        shape = [d.dim_value or sizes[d.dim_param or f"{value.name}:{axis}"] for axis, d in dims]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if dtype == np.bool_:
            values[value.name] = np.atleast_1d(rng.random(shape) < 0.6)
            values[value.name][..., 0] = True
            values[value.name] = values[value.name].reshape(shape)
        else:
            values[value.name] = rng.standard_normal(shape).astype(dtype)
    return values


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def assert_same(
    before: onnx.ModelProto, after: onnx.ModelProto, inputs: dict[str, np.ndarray] | None = None, rtol: float = 1e-5
) -> None:
    """max|a − b| / max|a| per output; NaN and infinities in the same places."""
    inputs = feeds(before) if inputs is None else inputs
    for a, b in zip(run(before, inputs), run(after, inputs), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        finite = np.isfinite(a)
        np.testing.assert_array_equal(a[~finite], b[~finite])
        if finite.any():
            a, b = a[finite].astype(np.float64), b[finite].astype(np.float64)
            assert np.abs(a - b).max() <= rtol * np.abs(a).max()


def same_bytes(a: onnx.ModelProto, b: onnx.ModelProto) -> bool:
    return a.SerializeToString(deterministic=True) == b.SerializeToString(deterministic=True)


def weight_elements(model: onnx.ModelProto) -> int:
    """Numbers in matrices; biases do not count, since packing fills up missing ones with zeros, nor a causal mask's bits."""
    matrices = [tensor for tensor in model.graph.initializer if len(tensor.dims) >= 2]
    return sum(math.prod(tensor.dims) for tensor in matrices if tensor.data_type != onnx.TensorProto.BOOL)


def verdicts(model: onnx.ModelProto) -> dict[str, tuple[str, str | None]]:
    """Softmax's name → status and code, as `inspect` has them."""
    return {c["softmax"]: (c["status"], c["code"]) for c in onnx_attn.inspect(model)["candidates"]}


def assert_fused(
    model: onnx.ModelProto, inputs: dict[str, np.ndarray] | None = None, rtol: float = 1e-5, **expected: Any
) -> onnx.ModelProto:
    """The one site is fused, reported with the expected keys, and computes the same; returns the fused model."""
    asked = {"form": expected.pop("asked_form", "auto"), "target": expected.pop("target", "tensorrt")}
    result = onnx_attn.fuse(model, **asked)
    report, (candidate,) = result.report, result.report["candidates"]
    assert (candidate["status"], candidate["code"]) == ("site", None), candidate["reason"]
    assert (report["sites"], report["refused"], report["fused"]) == (1, 0, 1)
    for key, value in expected.items():
        wanted = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
        assert candidate[key] == wanted, (key, candidate)
    onnx.checker.check_model(result.model, full_check=True)
    assert result.model.graph.input == model.graph.input
    assert result.model.graph.output == model.graph.output
    assert weight_elements(result.model) <= weight_elements(model)
    assert_same(model, result.model, inputs, rtol)
    return result.model


def fused(
    model: onnx.ModelProto, inputs: dict[str, np.ndarray] | None = None, form: str = "auto", compare: bool = True
) -> tuple[list[str], dict[str, Any]]:
    """The operators of the fused model, which computes the same, and what is said of its one site."""
    result = onnx_attn.fuse(model, verify=False, form=form)
    (candidate,) = result.report["candidates"]
    assert candidate["status"] == "site", candidate
    onnx.checker.check_model(result.model, full_check=True)
    if compare:
        assert_same(model, result.model, inputs)
    return [node.op_type for node in result.model.graph.node], candidate


def assert_left_alone(model: onnx.ModelProto, status: str, *codes: str, name: str = "softmax") -> None:
    """The named candidate (the only one) has this verdict, and `fuse` gives the model back as it is."""
    assert set(codes) <= CODES.keys()
    report = onnx_attn.inspect(model)
    assert [c["softmax"] for c in report["candidates"]] == [name]
    found = report["candidates"][0]
    assert (found["status"], found["code"] in codes) == (status, True), (
        found["status"],
        found["code"],
        found["reason"],
    )
    assert found["reason"]
    assert (report["sites"], report["refused"]) == ((1, 1) if status == "refused" else (0, 0))
    result = onnx_attn.fuse(model)
    assert result.report["fused"] == 0
    assert same_bytes(result.model, model)


def assert_refused(model: onnx.ModelProto, *codes: str, name: str = "softmax") -> None:
    """Attention, but left alone."""
    assert_left_alone(model, "refused", *codes, name=name)


def assert_no_attention(model: onnx.ModelProto, *codes: str, name: str = "softmax") -> None:
    assert_left_alone(model, "not_attention", *codes, name=name)
