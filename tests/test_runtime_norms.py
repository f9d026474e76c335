"""The norms and activations that ONNX Runtime's optimizers write, in plain nodes that do the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_same
from graphs import Net
from runtime_nodes import B, Case, E, S

import onnx_attn

X, C = (B, S, E), (E,)
IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]], np.int32)
KINDS = np.array([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]], np.int32)
TABLES = [(11, E), (8, E), (2, E)]

CASES = {
    "SkipLayerNormalization": Case("SkipLayerNormalization", [X, X, C, C, C], {"epsilon": 1e-3}, (3, 0, 0, 3)),
    "SkipLayerNormalization, one skip for all": Case("SkipLayerNormalization", [X, (S, E), C]),
    "SkipSimplifiedLayerNormalization": Case(
        "SkipSimplifiedLayerNormalization", [X, X, C, C], {"epsilon": 1e-3}, (3, 0, 0, 3)
    ),
    "SimplifiedLayerNormalization": Case("SimplifiedLayerNormalization", [X, C], {"axis": -1}, domain=""),
    "EmbedLayerNormalization": Case("EmbedLayerNormalization", [IDS, KINDS, *TABLES, C, C], {}, (3, 0)),
    "EmbedLayerNormalization, positions": Case(
        "EmbedLayerNormalization", [IDS, None, *TABLES[:2], None, C, C, None, KINDS], {"epsilon": 1e-3}, (3, 0)
    ),
    "Gelu": Case("Gelu", [X]),
    "BiasGelu": Case("BiasGelu", [X, C]),
    "FastGelu": Case("FastGelu", [X]),
    "FastGelu, bias": Case("FastGelu", [X, C]),
    "QuickGelu": Case("QuickGelu", [X], {"alpha": 1.3}),
    "FusedMatMul": Case("FusedMatMul", [X, (E, 7)], {"alpha": 0.3}),
    "FusedMatMul, turned": Case("FusedMatMul", [(B, E, S), (7, E)], {"transA": 1, "transB": 1}),
}


def foreign(model: onnx.ModelProto) -> list[str]:
    names = ("SimplifiedLayerNormalization",)
    return [node.op_type for node in model.graph.node if node.domain == "com.microsoft" or node.op_type in names]


@pytest.mark.parametrize(("opset", "dtype"), [(13, np.float32), (17, np.float16), (18, np.float32), (20, np.float32)])
@pytest.mark.parametrize("name", CASES)
def test_operator_computes_the_same(name: str, opset: int, dtype: Any) -> None:
    case = CASES[name]
    model = case.model(opset, dtype)
    result = onnx_attn.fuse(model)
    assert (result.report["sites"], foreign(result.model)) == (0, [])
    assert sum(result.report["spelled"]["operators"].values()) == 1
    assert_same(model, result.model, case.feeds(dtype), rtol=1e-5 if dtype == np.float32 else 2e-3)


def test_counts_of_a_mask_are_kept() -> None:
    net = Net()
    tables = [net.weight(*table) for table in TABLES]
    given = [net.input("ids", B, S, dtype=np.int32), net.input("kinds", B, S, dtype=np.int32)]
    seen = net.input("mask", B, S, dtype=np.int32)
    made = net.op(
        "EmbedLayerNormalization",
        *given,
        *tables,
        net.weight(E),
        net.weight(E),
        seen,
        outputs=3,
        domain="com.microsoft",
    )
    for name, rank, dtype in zip(made, (3, 1, 3), (None, np.int32, None), strict=True):
        net.output(name, rank, dtype)
    model = net.model(com_microsoft=1)
    feeds = {"ids": IDS, "kinds": KINDS, "mask": KINDS}
    fused = onnx_attn.fuse(model).model
    assert foreign(fused) == []
    assert_same(model, fused, feeds)


@pytest.mark.parametrize("opset", [13, 16])
def test_layer_normalization_below_its_opset_is_read(opset: int) -> None:
    """ONNX Runtime takes it there, and its optimizer writes it; onnx's checker refuses such a model."""
    net = Net(opset)
    x = net.input("x", *X)
    net.output(net.op("LayerNormalization", x, net.weight(E), net.weight(E), axis=-1), 3)
    model = net.model()
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    fused = onnx_attn.fuse(model).model
    onnx.checker.check_model(fused, full_check=True)
    assert_same(model, fused)


def test_for_onnx_runtime_they_stay() -> None:
    model = CASES["BiasGelu"].model()
    assert onnx_attn.fuse(model, target="onnxruntime").model == model


def test_what_is_not_said_stays_and_is_told() -> None:
    case = Case("SkipLayerNormalization", [X, X, C], {}, (3, 3, 3))
    result = onnx_attn.fuse(case.model())
    (left,) = result.report["spelled"]["left"]
    assert (left["operator"], left["reason"]) == (
        "com.microsoft.SkipLayerNormalization",
        "mean or deviation are outputs",
    )
    assert result.model == case.model()
