"""The standard operator: where it says what the graph said, at an opset that has it, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from checks import assert_same, same_bytes
from graphs import HEAD_DIM, HEADS, Net, heads_in, small_site
from onnx import TensorProto, helper
from support import EXPORTS, Export, exports, feeds, max_rel, run

import onnx_attn

PATTERNS = ("bert*", "gpt2*", "clip*", "vit*", "mha*", "sdpa*", "handwritten*", "swin_t*")
SIZES = {"batch": 2, "sequence": 16, "memory": 24, "past": 15, "total": 16}
STATED = {"mask-shape", "masked-row-differs", "type-not-supported", "probabilities-used", "scores-changed"}


@pytest.mark.parametrize("export", [e for p in PATTERNS for e in exports(p)], ids=lambda e: e.path.stem)
def test_every_site_becomes_the_operator_or_says_why_not(export: Export, tmp_path: Path) -> None:
    result = onnx_attn.fuse(export.path, tmp_path / "fused.onnx", form="attention", target="onnx")
    report = result.report
    assert report["sites"] == export.true_sites
    assert {c["code"] for c in report["candidates"] if c["status"] == "refused"} <= STATED
    operators = [node for node in result.model.graph.node if node.op_type == "Attention"]
    assert len(operators) == report["fused"]
    if report["fused"]:
        written = [node for node in operators if node.domain == ""]
        assert len(written) == len(operators)
        assert result.model.opset_import[0].version >= 23
        onnx.checker.check_model(result.model, full_check=True)
        inputs = feeds(result.model, SIZES)
        expected = run(export.path, inputs, optimized=not export.half)
        assert max_rel(expected, run(result.model, inputs, optimized=not export.half)) <= (
            2e-3 if export.half else 1e-5
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_scale_is_always_written(dtype: type) -> None:
    model = onnx_attn.fuse(small_site(opset=23, dtype=dtype), form="attention", target="onnx").model
    (node,) = [node for node in model.graph.node if node.op_type == "Attention"]
    assert "scale" in {attribute.name for attribute in node.attribute}


def masked(opset: int = 23, **hooks: object) -> onnx.ModelProto:
    return small_site(opset=opset, **hooks)


def code_in(model: onnx.ModelProto, **options: object) -> str | None:
    result = onnx_attn.fuse(model, form="attention", target="onnx", **options)  # type: ignore[arg-type]
    (candidate,) = result.report["candidates"]
    if candidate["code"] is None:
        assert [node.op_type for node in result.model.graph.node].count("Attention") == 1
        assert_same(model, result.model)
    else:
        assert same_bytes(result.model, model)
    return candidate["code"]


def test_a_mask_that_may_block_a_whole_row_is_not_given_to_the_operator() -> None:
    """Softmax of a row of −inf is NaN, of a row of the lowest number uniform; the operator answers 0."""
    model = masked(scores=lambda net, s: net.op("Add", net.scaled(s), net.input("mask", 2, 1, 5, 5)))
    assert code_in(model) == "masked-row-differs"


def constant_mask(blocked: np.ndarray) -> onnx.ModelProto:
    return masked(scores=lambda net, s: net.op("Add", net.scaled(s), net.const(np.where(blocked, -np.inf, 0.0))))


def test_a_constant_mask_is_looked_at() -> None:
    causal = np.triu(np.ones((5, 5), bool), 1)
    assert code_in(constant_mask(causal)) is None
    causal[0] = True
    assert code_in(constant_mask(causal)) == "masked-row-differs"


@pytest.mark.parametrize(
    ("fill", "guarded", "expected"),
    [(-np.inf, True, None), (-np.inf, False, "masked-row-differs"), (-1e4, True, "masked-row-differs")],
)
def test_a_boolean_mask_needs_the_guard_that_the_operator_has(fill: float, guarded: bool, expected: str | None) -> None:
    def guard(net: Net, value: str) -> str:
        return net.op("Where", net.op("IsNaN", value), net.const(0.0), value) if guarded else value

    def replaced(net: Net, value: str) -> str:
        return net.op("Where", net.input("keep", 2, 1, 1, 5, dtype=bool), net.scaled(value), net.const(fill))

    assert code_in(masked(scores=replaced, probabilities=guard)) == expected


def test_a_softmax_in_another_type_is_refused() -> None:
    def wide(net: Net, value: str) -> str:
        return net.op("Cast", net.scaled(value), to=TensorProto.FLOAT)

    model = masked(
        dtype=np.float16, scores=wide, probabilities=lambda net, p: net.op("Cast", p, to=TensorProto.FLOAT16)
    )
    assert code_in(model) == "type-not-supported"


def test_fewer_heads_of_keys_stay_fewer() -> None:
    net = Net(23)
    q = net.input("q", 2, 4, 5, HEAD_DIM)
    k, v = (net.input(name, 2, 2, 5, HEAD_DIM) for name in "kv")
    net.output(net.op("Attention", q, k, v, scale=0.3, name="site"))
    report = onnx_attn.fuse(net.model(), form="attention", target="onnx").report
    assert report["candidates"][0]["kv_heads"] == 2
    spelled = onnx_attn.fuse(net.model(), form="primitives", target="onnx")
    assert spelled.report["fused"] == 1
    assert_same(net.model(), spelled.model)


def test_raising_keeps_what_the_converter_drops() -> None:
    model = small_site(opset=17)
    model.doc_string, model.graph.doc_string = "of the model", "of the graph"
    model.graph.node[0].doc_string = "of a node"
    model.graph.node[0].metadata_props.add(key="where", value="here")
    result = onnx_attn.fuse(model, form="attention", target="onnx")
    assert result.report["opset_raised"] == [17, 23]
    assert (result.model.doc_string, result.model.graph.doc_string) == ("of the model", "of the graph")
    kept = [node for node in result.model.graph.node if node.doc_string == "of a node"]
    assert [entry.value for node in kept for entry in node.metadata_props] in (["here"], [])
    assert_same(model, result.model)


def test_operators_that_changed_are_converted() -> None:
    """ReduceMean has its axes as an input from opset 18 on."""
    net = Net(17)
    q, kt, v = heads_in(net)
    net.output(net.op("ReduceMean", net.sdpa(q, kt, v), axes=[2], keepdims=1))
    fused = onnx_attn.fuse(net.model(), form="attention", target="onnx").model
    (mean,) = [node for node in fused.graph.node if node.op_type == "ReduceMean"]
    assert len(mean.input) == 2
    assert_same(net.model(), fused)


def test_functions_of_the_model_are_inlined_before_raising() -> None:
    net = Net(17)
    q, kt, v = heads_in(net)
    net.output(net.op("Twice", net.sdpa(q, kt, v), domain="mine"))
    body = [helper.make_node("Add", ["x", "x"], ["y"])]
    twice = helper.make_function("mine", "Twice", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    model = net.model(functions=[twice], mine=1)
    result = onnx_attn.fuse(model, form="attention", target="onnx")
    assert result.report["fused"] == 1
    assert not result.model.functions
    assert_same(model, result.model)


def test_bodies_are_not_raised() -> None:
    net = Net(17)
    q, kt, v = heads_in(net)
    y = net.sdpa(q, kt, v)
    info = helper.make_tensor_value_info("branch", TensorProto.FLOAT, None)
    bodies = [
        helper.make_graph([helper.make_node("ReduceMean", [y], ["branch"], axes=[2])], name, [], [info])
        for name in ("yes", "no")
    ]
    net.output(net.op("If", net.input("flag", dtype=bool), then_branch=bodies[0], else_branch=bodies[1]))
    result = onnx_attn.fuse(net.model(), form="attention", target="onnx")
    (candidate,) = result.report["candidates"]
    assert candidate["code"] == "opset-too-low"
    assert "bodies" in candidate["reason"]
    assert result.report["opset_raised"] is None
    assert same_bytes(result.model, net.model())


def test_a_model_in_which_nothing_is_fused_is_not_raised(tmp_path: Path) -> None:
    path = EXPORTS / "sdpa_mask.torchscript.17.static.onnx"
    report = onnx_attn.fuse(path, tmp_path / "out.onnx", form="attention", target="onnx").report
    assert (report["fused"], report["opset_raised"]) == (0, None)
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("version", ["8.6", "10.0", "10.13"])
def test_a_tensorrt_without_the_operator_is_wrong_usage(version: str) -> None:
    with pytest.raises(onnx_attn.UsageError, match="attention"):
        onnx_attn.fuse(small_site(), form="attention", target_version=version)


@pytest.mark.parametrize(
    ("size", "code"), [(HEAD_DIM, "type-not-supported"), (8, "type-not-supported")], ids=["fp32", "fp32 small"]
)
def test_what_tensorrt_does_not_build_is_refused_for_it(size: int, code: str) -> None:
    net = Net(23)
    q, k, v = (net.input(name, 2, HEADS, 5, size) for name in "qkv")
    net.output(net.sdpa(q, net.swap(k), v))
    report = onnx_attn.fuse(net.model(), form="attention").report
    assert report["candidates"][0]["code"] == code


def half_heads(size: int, value: int) -> onnx.ModelProto:
    net = Net(23, dtype=np.float16)
    q, k = (net.input(name, 2, HEADS, 5, size) for name in "qk")
    net.output(net.sdpa(q, net.swap(k), net.input("v", 2, HEADS, 5, value)))
    return net.model()


def test_heads_larger_than_any_kernel_are_refused_for_tensorrt() -> None:
    assert onnx_attn.fuse(half_heads(320, 320), form="attention").report["candidates"][0]["code"] == "head-size"


@pytest.mark.parametrize(("size", "value", "code"), [(8, 8, "head-size"), (24, 32, "value-head-size")])
def test_heads_that_tensorrt_does_not_build_are_padded_or_refused(size: int, value: int, code: str) -> None:
    model = half_heads(size, value)
    result = onnx_attn.fuse(model, form="attention")
    assert result.report["candidates"][0]["changes"] == ["padded-heads"]
    assert_same(model, result.model, rtol=2e-3)
    result.plan["sites"][0]["changes"] = []
    found = onnx_attn.fuse(model, plan=result.plan).report["candidates"][0]["code"]
    assert found == ("head-size" if size == value else "value-head-size") == code
