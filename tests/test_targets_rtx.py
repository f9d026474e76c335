"""Every row about TensorRT for RTX that is called measured, against its compiler."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from target_cases import SITE, cases_of, model_of

from onnx_attn.engine.compile import compile_model
from onnx_attn.engine.kernels import Engine
from onnx_attn.targets.editions import RTX
from onnx_attn.targets.facts import PLAIN, Facts
from onnx_attn.targets.rows import Example, Row

pytest.importorskip("tensorrt_rtx")


def compiled(facts: Facts, form: str, folder: Path) -> Engine:
    path = folder / f"{form}.onnx"
    onnx.save(model_of(facts, form), path)
    return compile_model(path, sm=facts.sm or 89)


def shapes_of_kernels(engine: Engine) -> list[tuple[tuple[int, ...], ...]]:
    return [tuple(tensor.dims for tensor in kernel.tensors) for kernel in engine.kernels]


@pytest.mark.parametrize(("row", "example"), cases_of("tensorrt_rtx "))
def test_the_compiler_does_as_the_row_says(row: Row, example: Example, tmp_path: Path) -> None:
    assert RTX in row.editions
    facts = replace(PLAIN, **example.facts)
    engine = compiled(facts, example.form, tmp_path)
    if row.outcome == "rejected":
        assert not engine.built and engine.errors
        return
    assert engine.built, engine.errors
    assert engine.landed(SITE) == (row.outcome != "runs")
    assert len(engine.attention_kernels) == (row.outcome != "runs")
    if row.outcome == "costs":
        assert len(engine.kernels) > len(compiled(facts, "primitives", tmp_path).kernels)


@pytest.mark.parametrize("fact", ["nonpad", "window"])
def test_a_feature_that_is_read_over_leaves_no_trace_in_the_engine(fact: str, tmp_path: Path) -> None:
    plain = replace(PLAIN, opset=25)
    without, with_it = (compiled(facts, "attention", tmp_path) for facts in (plain, replace(plain, **{fact: True})))
    assert with_it.built and shapes_of_kernels(with_it) == shapes_of_kernels(without)


def test_a_negative_scale_becomes_no_number() -> None:
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(0)
    assert trt.OnnxParser(network, logger).parse(
        model_of(replace(PLAIN, scale="negative"), "attention").SerializeToString()
    )
    constants = [
        layer for layer in map(network.get_layer, range(network.num_layers)) if layer.type == trt.LayerType.CONSTANT
    ]
    for layer in constants:
        layer.__class__ = trt.IConstantLayer
    assert constants and all(np.isnan(np.asarray(layer.weights)).all() for layer in constants)


@pytest.mark.parametrize("given", [{}, {"causal": True}, {"kv_heads": 1}, {"query_length": 1}], ids=str)
def test_an_operator_that_lands_takes_no_more_kernels_than_a_function(given: dict[str, int], tmp_path: Path) -> None:
    facts = replace(PLAIN, **given)  # type: ignore[arg-type]
    operator, function = (compiled(facts, form, tmp_path) for form in ("attention", "function"))
    assert len(operator.kernels) <= len(function.kernels)
