"""bfloat16 where the processor has none: float32 that is rounded, node by node."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from ml_dtypes import bfloat16
from onnx import TensorProto, helper

from onnx_attn.bfloat16 import standing_in
from onnx_attn.runtime import CannotRun, Session

B, F = TensorProto.BFLOAT16, TensorProto.FLOAT


def model_of(
    nodes: list[onnx.NodeProto], elem_type: int, functions: list[onnx.FunctionProto] | None = None
) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, elem_type, [3, 3]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=functions or [])


VALUES = np.random.default_rng(5).standard_normal((3, 3)).astype(np.float32)


def test_every_result_is_rounded() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=B),
        helper.make_node("Mul", ["narrow", "narrow"], ["square"]),
        helper.make_node("Add", ["square", "narrow"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["y"], to=F),
    ]
    narrow = VALUES.astype(bfloat16)
    wanted = (narrow * narrow + narrow).astype(np.float32)
    (found,) = Session(model_of(nodes, F), "model").run({"x": VALUES})
    np.testing.assert_array_equal(found, wanted)
    assert not np.array_equal(found, VALUES * VALUES + VALUES)


def test_inputs_and_outputs_are_given_as_the_model_has_them() -> None:
    (found,) = Session(model_of([helper.make_node("Mul", ["x", "x"], ["y"])], B), "model").run(
        {"x": VALUES.astype(bfloat16)}
    )
    np.testing.assert_array_equal(found, (VALUES.astype(bfloat16) * VALUES.astype(bfloat16)).astype(np.float32))


def test_functions_are_looked_into() -> None:
    opset = [helper.make_opsetid("", 18)]
    body = [helper.make_node("Mul", ["a", "a"], ["b"]), helper.make_node("Add", ["b", "a"], ["c"])]
    function = helper.make_function("own", "F", ["a"], ["c"], body, opset)
    narrow = VALUES.astype(bfloat16)
    model = model_of([helper.make_node("F", ["x"], ["y"], domain="own")], B, [function])
    (found,) = Session(model, "model").run({"x": narrow})
    np.testing.assert_array_equal(found, (narrow * narrow + narrow).astype(np.float32))


def test_nothing_stands_in_where_there_is_no_bfloat16() -> None:
    assert standing_in(model_of([helper.make_node("Mul", ["x", "x"], ["y"])], F)) is None


def test_what_does_not_load_for_another_reason_says_that_reason() -> None:
    with pytest.raises(CannotRun, match="does not load"):
        Session(model_of([helper.make_node("NoSuchOperator", ["x"], ["y"])], F), "model")
