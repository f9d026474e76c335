"""RotaryEmbedding operators: spelled in plain nodes, and read."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnx_attn.graph.edit import Names, Writer
from onnx_attn.operators.rotary import spell_rotary
from onnx_attn.runtime import Session

HALVES = [(False, 8, 8), (True, 8, 8), (False, 4, 8), (True, 4, 8)]


def _inputs(dim: int, head_dim: int, batch: int = 2) -> dict[str, np.ndarray]:
    """x `(B, N, S, H)`, cos and sin `(B, S, dim/2)`."""
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 3, 5, head_dim), "cos": (batch, 5, dim // 2), "sin": (batch, 5, dim // 2)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _model(nodes: list[onnx.NodeProto], inputs: dict[str, np.ndarray], initializers: object = ()) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in inputs.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, inputs["x"].shape)
    graph = helper.make_graph(nodes, "g", values, [output], list(initializers))  # type: ignore[call-overload]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _spelled(inputs: dict[str, np.ndarray], interleaved: bool, dim: int, head_dim: int) -> onnx.ModelProto:
    writer = Writer(Names(_model([], inputs)), "rotary")
    spell_rotary(writer, "x", "cos", "sin", interleaved=interleaved, dim=dim, head_dim=head_dim, output="y")
    return _model(writer.nodes, inputs, writer.initializers.values())


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("interleaved", "dim", "head_dim"), HALVES)
def test_plain_nodes_do_what_the_operator_does(interleaved: bool, dim: int, head_dim: int, batch: int) -> None:
    inputs = _inputs(dim, head_dim, batch)
    found = Session(_spelled(inputs, interleaved, dim, head_dim), "spelled").run(inputs)[0]
    wide = {**inputs, "cos": np.repeat(inputs["cos"], 2 // batch, 0), "sin": np.repeat(inputs["sin"], 2 // batch, 0)}
    partial = {"rotary_embedding_dim": dim} if dim < head_dim else {}
    node = helper.make_node("RotaryEmbedding", ["x", "cos", "sin"], ["y"], interleaved=int(interleaved), **partial)
    operator = _model([node], wide)
    np.testing.assert_allclose(found, ReferenceEvaluator(operator).run(None, wide)[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, Session(operator, "operator").run(wide)[0], rtol=1e-5, atol=1e-6)
