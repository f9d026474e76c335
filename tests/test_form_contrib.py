"""ONNX Runtime's own operators: with their in-projection inside, or on Q, K and V; never for another runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from checks import assert_same, same_bytes
from commands import run_command
from graphs import Net, Three, small_site
from support import EXPORTS, Export, exports, feeds, max_rel, run

import onnx_attn

STATED = {
    "masked-row-differs",
    "type-not-supported",
    "probabilities-used",
    "scores-changed",
    "mask-shape",
    "form-not-taken",
}
PATTERNS = ("bert*", "gpt2*", "clip*", "vit*", "mha*", "sdpa*", "handwritten*")


@pytest.mark.parametrize("export", [e for p in PATTERNS for e in exports(p)], ids=lambda e: e.path.stem)
def test_every_site_becomes_one_node_or_says_why_not(export: Export, tmp_path: Path) -> None:
    result = onnx_attn.fuse(export.path, tmp_path / "fused.onnx", form="contrib", target="onnxruntime")
    assert {c["code"] for c in result.report["candidates"] if c["status"] == "refused"} <= STATED
    nodes = [node.op_type for node in result.model.graph.node if node.domain == "com.microsoft"]
    assert len(nodes) == result.report["fused"]
    if nodes:
        inputs = feeds(result.model, {"batch": 2, "sequence": 16, "memory": 24})
        expected = run(export.path, inputs, optimized=not export.half)
        assert max_rel(expected, run(result.model, inputs, optimized=not export.half)) <= (
            2e-3 if export.half else 1e-5
        )


def test_a_packed_projection_goes_into_the_operator(tmp_path: Path) -> None:
    path = EXPORTS / "vit_b_16.torchscript.17.static.onnx"
    fused = onnx_attn.fuse(path, tmp_path / "f.onnx", form="contrib", target="onnxruntime").model
    nodes = [node for node in fused.graph.node if node.domain == "com.microsoft"]
    assert [node.op_type for node in nodes] == ["Attention", "Attention"]
    assert {entry.domain: entry.version for entry in fused.opset_import}["com.microsoft"] == 1


def test_a_projection_without_bias_gets_one_of_zeros(tmp_path: Path) -> None:
    """Without, ONNX Runtime 1.31.1 dies of a segmentation fault."""
    path = EXPORTS / "handwritten_no_bias.torchscript.17.static.onnx"
    fused = onnx_attn.fuse(path, tmp_path / "f.onnx", form="contrib", target="onnxruntime").model
    (node,) = [node for node in fused.graph.node if node.domain == "com.microsoft"]
    zeros = next(onnx.numpy_helper.to_array(t) for t in fused.graph.initializer if t.name == node.input[2])
    assert not zeros.any()


def test_cross_attention_takes_the_operator_on_three() -> None:
    three = Three()
    y = three.net.input("y", 2, 7, 20)
    model = three.finish(k=three.layer(y), v=three.layer(y))
    fused = onnx_attn.fuse(model, form="contrib", target="onnxruntime").model
    assert [node.op_type for node in fused.graph.node if node.domain] == ["MultiHeadAttention"]
    assert_same(model, fused)


@pytest.mark.parametrize("shape", [(5,), (5, 5), (1, 5), (2, 1, 5), (2, 1, 1, 5), (1, 2, 5, 5), (2, 2, 5, 5)], ids=str)
def test_masks_of_every_rank_are_added(shape: tuple[int, ...]) -> None:
    model = small_site(scores=lambda net, s: net.op("Add", net.scaled(s), net.input("mask", *shape)))
    fused = onnx_attn.fuse(model, form="contrib", target="onnxruntime")
    assert fused.report["fused"] == 1, fused.report["candidates"]
    assert_same(model, fused.model)


def guarded(net: Net, value: str) -> str:
    return net.op("Where", net.op("IsNaN", value), net.const(0.0), value)


def test_rows_that_are_cleared_are_not_given_to_an_operator_that_does_not() -> None:
    model = small_site(
        scores=lambda net, s: net.op("Add", net.scaled(s), net.input("mask", 2, 1, 5, 5)), probabilities=guarded
    )
    result = onnx_attn.fuse(model, form="contrib", target="onnxruntime")
    assert result.report["candidates"][0]["code"] == "masked-row-differs"
    assert same_bytes(result.model, model)


def test_shared_heads_are_not_taken() -> None:
    net = Net(23)
    q, k, v = (net.input(name, 2, heads, 5, 24) for name, heads in (("q", 4), ("k", 2), ("v", 2)))
    net.output(net.op("Attention", q, k, v, scale=0.3, name="site"))
    report = onnx_attn.fuse(net.model(), form="contrib", target="onnxruntime").report
    assert report["candidates"][0]["code"] == "form-not-taken"


def test_a_boolean_mask_is_not_what_it_adds() -> None:
    model = small_site(
        scores=lambda net, s: net.op(
            "Where", net.input("keep", 2, 1, 5, 5, dtype=bool), net.scaled(s), net.const(-np.inf)
        )
    )
    report = onnx_attn.fuse(model, form="contrib", target="onnxruntime").report
    assert report["candidates"][0]["code"] == "mask-shape"


@pytest.mark.parametrize("target", ["tensorrt", "onnx"])
def test_other_runtimes_never_take_it(target: str, tmp_path: Path) -> None:
    path = EXPORTS / "sdpa.dynamo.18.static.onnx"
    ran = run_command("fuse", str(path), "-o", str(tmp_path / "f.onnx"), "--form", "contrib", "--target", target)
    assert ran.code == 2
    assert not (tmp_path / "f.onnx").exists()
