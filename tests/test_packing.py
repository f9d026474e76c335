"""The packed in-projection: one product, weights stored once, laid out by the compiler's rule, sources compared."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper
from support import EXPORTS, exports

import onnx_attn


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def chain_above_query(model: onnx.ModelProto) -> list[str]:
    """The operators from the attention node's query up to the projection's product."""
    made, ops = producers(model), []
    name = next(node for node in model.graph.node if node.domain == "onnx_attn").input[0]
    while name in made:
        node = made[name]
        ops.append(node.op_type)
        if node.op_type == "MatMul":
            break
        name = node.input[0]
    return ops


def weight_bytes(model: onnx.ModelProto) -> int:
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer)


def test_with_biases_the_heads_are_split_after_one_transpose(tmp_path: Path) -> None:
    fused = onnx_attn.fuse(EXPORTS / "handwritten.torchscript.17.dynamic.onnx", tmp_path / "f.onnx").model
    assert chain_above_query(fused) == ["Split", "Transpose", "Reshape", "Add", "MatMul"]


def test_without_biases_the_last_axis_is_split(tmp_path: Path) -> None:
    fused = onnx_attn.fuse(EXPORTS / "handwritten_no_bias.torchscript.17.static.onnx", tmp_path / "f.onnx").model
    assert chain_above_query(fused) == ["Transpose", "Reshape", "Split", "MatMul"]


def test_three_products_become_one(tmp_path: Path) -> None:
    path = EXPORTS / "bert.torchscript.17.dynamic.onnx"
    before, after = onnx.load(path), onnx_attn.fuse(path, tmp_path / "f.onnx").model
    count = [sum(node.op_type in ("MatMul", "Gemm") for node in model.graph.node) for model in (before, after)]
    # A layer's three projections, Q·Kᵀ and P·V become one projection; both products are inside the attention node.
    assert count[0] - count[1] == 2 * 4


@pytest.mark.parametrize("export", exports(), ids=lambda export: export.path.stem)
def test_no_weight_is_stored_twice(export: object, tmp_path: Path) -> None:
    path = export.path  # type: ignore[attr-defined]
    before, after = onnx.load(path), onnx_attn.fuse(path, tmp_path / "f.onnx").model
    # What a mask computes from weights is stored once computed; equal contents once.
    masks = [tensor for tensor in after.graph.initializer if tensor.name.startswith("onnx_attn/mask")]
    contents = {tensor.raw_data for tensor in masks}
    assert len(contents) == len(masks)
    folded = sum(map(len, contents))
    # Shapes and split sizes: a few whole numbers, stored once for all sites; and zeros for a bias that one of three lacks.
    assert weight_bytes(after) <= weight_bytes(before) + folded + 2048


def test_an_already_packed_projection_keeps_its_weights(tmp_path: Path) -> None:
    path = EXPORTS / "gpt2.torchscript.17.dynamic.onnx"
    before, after = onnx.load(path), onnx_attn.fuse(path, tmp_path / "f.onnx", algebra=False).model
    kept = {tensor.name for tensor in after.graph.initializer}
    assert {tensor.name for tensor in before.graph.initializer if "c_attn" in tensor.name} <= kept


def test_no_pack_leaves_the_projections_alone(tmp_path: Path) -> None:
    path = EXPORTS / "bert.torchscript.17.dynamic.onnx"
    before = onnx.load(path)
    result = onnx_attn.fuse(path, tmp_path / "f.onnx", pack=False)
    assert result.report["fused"] == 2
    assert not any(candidate["packed"] for candidate in result.report["candidates"])
    names = {
        node.name for node in before.graph.node if node.name.endswith(("query/MatMul", "key/MatMul", "value/MatMul"))
    }
    assert names <= {node.name for node in result.model.graph.node}


def test_the_projection_is_not_computed_twice_for_its_shape(tmp_path: Path) -> None:
    """Exporters read sizes off a projection's result; that reader must not keep the old projection alive."""
    fused = onnx_attn.fuse(EXPORTS / "bert.torchscript.17.dynamic.onnx", tmp_path / "f.onnx").model
    products = [node for node in fused.graph.node if node.op_type == "MatMul" and "/self/" in node.name]
    assert len(products) == 2
    assert all(node.name.endswith("in_proj_product") for node in products)


def test_sequence_first_is_looked_through(tmp_path: Path) -> None:
    """nn.MultiheadAttention transposes to sequence-first and back; the packed projection reads what comes before."""
    path = EXPORTS / "vit_b_16.dynamo.18.dynamic.onnx"
    fused = onnx_attn.fuse(path, tmp_path / "f.onnx").model
    made = producers(fused)
    for node in fused.graph.node:
        if node.op_type == "MatMul" and node.name.endswith("in_proj_product"):
            assert made[node.input[0]].op_type == "LayerNormalization"
