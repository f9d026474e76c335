"""RotaryEmbedding operators: spelled in plain nodes, and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import HEAD_DIM, HEADS, WIDTH, Net
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import onnx_attn
from onnx_attn.domain import MICROSOFT
from onnx_attn.engine.compile import compile_model
from onnx_attn.graph.edit import Names, Writer
from onnx_attn.operators.rotary import spell_rotary
from onnx_attn.runtime import CannotRun, Session
from onnx_attn.targets.editions import ONNX, ORT_CPU, RTX
from onnx_attn.targets.rotary import ROTARY, RotaryFacts, RotaryRow

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


BATCH, LENGTH, ROWS = 2, 5, 9


def operator(facts: RotaryFacts, net: Net, x: str) -> str:
    """One operator on x `(B, N, S, H)`, or `(B, S, N·H)`, with these facts."""
    dim = HEAD_DIM // 3 if facts.partial else HEAD_DIM
    table = (BATCH if facts.tables == "each" else 1, LENGTH) if facts.positions == "none" else (ROWS,)
    angles = np.broadcast_to(np.outer(np.arange(table[-1]), 0.1 ** np.arange(dim // 2)), (*table, dim // 2))
    cos, sin = net.const(np.cos(angles)), net.const(np.sin(angles))
    given = []
    if facts.positions != "none":
        dims = (BATCH, LENGTH) if facts.positions == "each" else (1,)
        names = {value.name for value in net.inputs}
        given = ["positions" if "positions" in names else net.input("positions", *dims, dtype=np.int64)]
    attrs: dict[str, Any] = {"rotary_embedding_dim": dim} if facts.partial else {}
    attrs |= {"num_heads": HEADS} if facts.counted else {}
    own = facts.domain == MICROSOFT
    operands = [*given, cos, sin] if own else [cos, sin, *given]
    domain = MICROSOFT if own else ""
    return net.op("RotaryEmbedding", x, *operands, domain=domain, interleaved=int(facts.interleaved), **attrs)


def site(facts: RotaryFacts) -> onnx.ModelProto:
    """Attention whose Q and K come from such operators."""
    net = Net(opset=facts.opset, dtype=np.dtype(facts.dtype))
    x = net.input("x", BATCH, LENGTH, WIDTH)
    q, k, v = (net.linear(x, HEADS * HEAD_DIM) for _ in range(3))
    if facts.rank == 3:
        q, k, v = *(net.split_heads(operator(facts, net, each)) for each in (q, k)), net.split_heads(v)
    else:
        q, k, v = (net.split_heads(each) for each in (q, k, v))
        q, k = (operator(facts, net, each) for each in (q, k))
    net.output(net.merge_heads(net.sdpa(q, net.swap(k), v)), 3)
    return net.model(com_microsoft=1)


def facts_of(given: Mapping[str, Any]) -> RotaryFacts:
    return replace(RotaryFacts(), **given)


GIVEN = (
    {},
    {"interleaved": True},
    {"partial": True},
    {"rank": 3, "counted": True, "partial": True},
    {"positions": "each"},
    {"domain": "com.microsoft", "positions": "each"},
    {"domain": "com.microsoft", "positions": "start", "rank": 3},
    {"domain": "com.microsoft", "positions": "each", "rank": 3, "counted": True, "partial": True, "interleaved": True},
)


@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_operators_are_read_as_rotary_embeddings(given: dict[str, Any]) -> None:
    facts = replace(facts_of(given), dtype="float32")
    kind, dim = "interleaved" if facts.interleaved else "half", HEAD_DIM // 3 if facts.partial else HEAD_DIM
    (candidate,) = onnx_attn.inspect(site(facts))["candidates"]
    assert candidate["rotary"] == {"kind": kind, "dim": dim, "first": 0, "all_tokens": True, "of": ["query", "key"]}


@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_operators_that_a_target_lacks_are_spelled(given: dict[str, Any]) -> None:
    model = site(replace(facts_of(given), dtype="float32"))
    for target, kept in (("tensorrt", False), ("onnx", "domain" not in given), ("onnxruntime", True)):
        result = onnx_attn.fuse(model, target=target)
        assert result.report["fused"] == 1 and result.report["proof"]["ok"]
        operators = [node for node in result.model.graph.node if node.op_type == "RotaryEmbedding"]
        assert len(operators) == (2 if kept else 0), target


EXAMPLES = [
    pytest.param(row, facts_of(given), id=f"{row.name}-{number}")
    for row in ROTARY
    for number, given in enumerate(row.examples)
]


@pytest.mark.parametrize(("row", "facts"), EXAMPLES)
def test_a_row_says_what_a_runtime_does(row: RotaryRow, facts: RotaryFacts, tmp_path: Path) -> None:
    assert row.matches(facts)
    model = site(facts)
    if "onnx 1" in str(row.evidence):
        _checked(row, model)
    elif ORT_CPU in row.editions:
        _run(row, model)
    else:
        assert RTX in row.editions
        pytest.importorskip("tensorrt_rtx")
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        assert compile_model(path, sm=89).built == (row.outcome != "rejected")


def _checked(row: RotaryRow, model: onnx.ModelProto) -> None:
    assert ONNX in row.editions
    if row.outcome == "rejected":
        with pytest.raises(onnx.checker.ValidationError):
            onnx.checker.check_model(model)
    else:
        onnx.checker.check_model(model)


def _run(row: RotaryRow, model: onnx.ModelProto) -> None:
    values = {
        "positions": np.int64,
        "x": onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type),
    }
    inputs = {
        value.name: np.zeros([dim.dim_value for dim in value.type.tensor_type.shape.dim], values[value.name])
        for value in model.graph.input
    }
    try:
        Session(model, row.name).run(inputs)
    except CannotRun:
        assert row.outcome == "rejected"
    else:
        assert row.outcome != "rejected"
