"""Which kernel each site reached: every way in which a graph can name, hide, repeat or merge its attention."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs
import pytest
from checks import same_bytes
from onnx import TensorProto, helper
from support import EXPORTS
from target_cases import model_of

import onnx_attn
from onnx_attn.engine import compile as compiling
from onnx_attn.engine import names
from onnx_attn.engine.names import make_readable
from onnx_attn.targets.facts import PLAIN

pytest.importorskip("tensorrt_rtx")

SHAPE = [1, 4, 33, 32]
OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
SITE = ("transposed", "scores", "softmax", "values")
VIT = EXPORTS / "vit_b_16.torchscript.17.static.half.onnx"
PADDED = EXPORTS / "bert.torchscript.17.dynamic.onnx"
MASKED = EXPORTS / "bert.dynamo.18.static.eager.half.onnx"


def value(name: str, element: int = TensorProto.FLOAT16, shape: Any = SHAPE) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def site(query: str, output: str, prefix: str = "", named: bool = True, key: str = "k", val: str = "v") -> list[Any]:
    """softmax(query·keyᵀ)·value as four nodes; the values inside are called after the output."""
    turned, scores, probabilities = (f"{output}_{part}" for part in ("kt", "s", "p"))
    names = [prefix + part if named else "" for part in SITE]
    return [
        helper.make_node("Transpose", [key], [turned], names[0], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", [query, turned], [scores], names[1]),
        helper.make_node("Softmax", [scores], [probabilities], names[2], axis=-1),
        helper.make_node("MatMul", [probabilities, val], [output], names[3]),
    ]


def model(nodes: list[Any], functions: Any = (), element: int = TensorProto.FLOAT16, *more: Any) -> onnx.ModelProto:
    inputs = [*(value(name, element) for name in "qkv"), *more]
    graph = helper.make_graph(nodes, "attention", inputs, [value("o", element)])
    return helper.make_model(graph, opset_imports=OPSETS, functions=functions, ir_version=8)


def landed(source: onnx.ModelProto, sites: int, **options: Any) -> list[dict[str, Any]]:
    """`per_site` of a model in which every site lands."""
    onnx.checker.check_model(source)
    report = onnx_attn.land(source, **options)
    assert report["built"], report["errors"]
    assert (report["sites"], report["landed"]) == (sites, sites), report["per_site"]
    assert all(entry["landed"] and "_mha" in entry["kernel"] for entry in report["per_site"])
    return list(report["per_site"])


def kernels_of(per_site: list[dict[str, Any]]) -> int:
    return len({entry["kernel"] for entry in per_site})


def test_sites_of_equal_names_are_told_apart() -> None:
    found = landed(model(site("q", "x", "same ") + site("x", "o", "same ")), 2)
    assert [entry["site"] for entry in found] == ["same softmax", "same softmax"]
    assert kernels_of(found) == 2


def test_a_site_without_names_is_called_by_its_first_value() -> None:
    found = landed(model(site("q", "x", named=False) + site("x", "o", named=False)), 2)
    assert [entry["site"] for entry in found] == ["x_p", "o_p"]
    assert kernels_of(found) == 2


def test_names_that_would_break_the_compilers_report_are_read_all_the_same() -> None:
    odd = ["a] | b (c)\n[ONNX Layer: ", "ü "]
    found = landed(model(site("q", "x", odd[0]) + site("x", "o", odd[1])), 2)
    assert [entry["site"] for entry in found] == [f"{prefix}softmax" for prefix in odd]


def test_an_unnamed_softmax_and_a_node_called_like_its_value_are_told_apart() -> None:
    nodes = site("q", "x", named=False)
    nodes[0].name = "x_p"
    (entry,) = landed(model([*nodes, helper.make_node("Neg", ["x"], ["o"], "last")]), 1)
    assert entry["site"] == "x_p"


def test_identical_sites_share_the_kernel_they_are_merged_into() -> None:
    nodes = [*site("q", "x", "a "), *site("q", "y", "b "), helper.make_node("Add", ["x", "y"], ["o"], "add")]
    found = landed(model(nodes), 2)
    assert kernels_of(found) == 1
    assert sorted(filter(None, (entry["merged_with"] for entry in found))) in (["a softmax"], ["b softmax"])


def test_every_call_of_a_function_is_a_site_of_its_own() -> None:
    inner = helper.make_function("mine", "Sdpa", ["q", "k", "v"], ["o"], site("q", "o"), OPSETS[:1])
    calls = [
        helper.make_node("Sdpa", [a, "k", "v"], [b], n, domain="mine") for a, b, n in (("q", "m", "1"), ("m", "o", "2"))
    ]
    block = helper.make_function("mine", "Block", ["q", "k", "v"], ["o"], calls, OPSETS)
    outer = [helper.make_node("Block", [a, "k", "v"], [b], domain="mine") for a, b in (("q", "x"), ("x", "o"))]
    found = landed(model(outer, [inner, block]), 4)
    assert kernels_of(found) == 4
    assert [entry["scope"] for entry in found] == [f"{call} (Sdpa) | {way} (Block)" for way in "xo" for call in "12"]


def test_a_site_in_a_branch_lands() -> None:
    branches = {
        "then_branch": helper.make_graph(site("q", "t"), "yes", [], [value("t")]),
        "else_branch": helper.make_graph([helper.make_node("Neg", ["q"], ["e"])], "no", [], [value("e")]),
    }
    choice = helper.make_node("If", ["flag"], ["o"], "choice", **branches)
    (entry,) = landed(model([choice], (), TensorProto.FLOAT16, value("flag", TensorProto.BOOL, [])), 1)
    assert entry["scope"] == "yes (then_branch) | choice (If)"


def spelled_out(source: str, output: str) -> list[Any]:
    turned, scores, probabilities = site("q", "o")[0], site("q", "o")[1], "o_p"
    return [
        turned,
        scores,
        helper.make_node("ReduceMax", ["o_s"], ["peak"], "peak", axes=[-1]),
        helper.make_node("Sub", ["o_s", "peak"], ["shifted"], "shifted"),
        helper.make_node("Exp", ["shifted"], ["exp"], "exp"),
        helper.make_node("Constant", [], ["axes"], "axes", value_ints=[-1]),
        helper.make_node("ReduceSum", ["exp", "axes"], ["sum"], "sum"),
        helper.make_node("Div", ["exp", "sum"], [probabilities], "normalised"),
        helper.make_node("MatMul", [probabilities, "v"], [output], "values"),
    ]


def test_a_spelled_out_softmax_lands_with_its_product() -> None:
    source = model(spelled_out("q", "o"))
    (entry,) = landed(source, 1)
    assert entry["site"] == "normalised"
    (candidate,) = onnx_attn.inspect(source)["candidates"]
    assert (candidate["status"], candidate["softmax"]) == ("site", "normalised")


def test_a_ratio_of_exponentials_that_weighs_nothing_is_no_site() -> None:
    nodes = [*spelled_out("q", "unused")[:-1], helper.make_node("Neg", ["o_p"], ["o"], "last")]
    source = model(nodes)
    source.graph.output[0].CopyFrom(value("o", shape=[1, 4, 33, 33]))
    report = onnx_attn.land(source)
    assert (report["built"], report["sites"]) == (True, 0)


def test_a_softmax_over_classes_is_no_site() -> None:
    report = onnx_attn.land(EXPORTS / "no_attention.torchscript.17.static.onnx", expect_all=True)
    assert (report["built"], report["sites"], report["landed"]) == (True, 0, 0)


def test_single_precision_does_not_land_and_says_why() -> None:
    report = onnx_attn.land(model(site("q", "o"), element=TensorProto.FLOAT))
    (entry,) = report["per_site"]
    assert report["built"] and not entry["landed"]
    assert "float32" in entry["reason"] and "compiler" in entry["reason"]
    assert entry["kernel"] and "_mha" not in entry["kernel"]
    with pytest.raises(onnx_attn.ExpectationError, match="0 of 1 sites landed"):
        onnx_attn.land(model(site("q", "o"), element=TensorProto.FLOAT), expect_all=True)


def test_what_does_not_build_is_reported_with_the_compilers_words() -> None:
    path = EXPORTS / "mha.dynamo.23.static.onnx"
    report = onnx_attn.land(path)
    assert (report["built"], report["sites"], report["landed"], report["kernels"]) == (False, 1, 0, None)
    assert "not supported by a dedicated kernel" in report["errors"][0]
    assert "not supported by a dedicated kernel" in report["per_site"][0]["reason"]
    with pytest.raises(onnx_attn.ExpectationError, match="does not build"):
        onnx_attn.land(path, expect_all=True)


def test_the_site_of_a_fused_model_keeps_the_softmax_s_name(tmp_path: Path) -> None:
    fused = onnx_attn.fuse(MASKED, tmp_path / "fused.onnx").report
    report = onnx_attn.land(tmp_path / "fused.onnx", baseline=MASKED, expect_all=True)
    before = report["baseline"]
    names = [entry["site"] for entry in report["per_site"]]
    assert names == [entry["site"] for entry in before["per_site"]] == [c["softmax"] for c in fused["candidates"]]
    assert report["kernels"] < before["kernels"]
    assert report["moved_bytes"] < before["moved_bytes"]
    assert before["model"] == str(MASKED) and "baseline" not in before


def test_kernels_are_told_with_shapes_types_and_nodes() -> None:
    report = onnx_attn.land(model(site("q", "o", "my ")))
    layer = next(layer for layer in report["layers"] if layer["name"] == report["per_site"][0]["kernel"])
    assert {"my softmax", "my scores", "my values"} <= set(layer["nodes"])
    assert layer["outputs"] == [{"shape": [4, 33, 32], "type": "Half"}]
    assert sum(layer["bytes"] for layer in report["layers"]) == report["moved_bytes"]


def test_a_model_of_the_caller_keeps_its_names() -> None:
    source = model(site("q", "x", "same ") + site("x", "o", "same "))
    before = onnx.ModelProto()
    before.CopyFrom(source)
    assert onnx_attn.land(source)["landed"] == 2
    assert onnx_attn.land(gs.import_onnx(source))["landed"] == 2
    assert same_bytes(before, source)


def test_names_that_can_be_read_stay() -> None:
    source = onnx.load(VIT)
    before = onnx.ModelProto()
    before.CopyFrom(source)
    assert make_readable(source) == {}
    assert same_bytes(before, source)


def test_renaming_reaches_bodies_and_functions() -> None:
    inner = helper.make_function(
        "mine", "Sdpa", ["q", "k", "v"], ["o"], site("q", "x", "n ") + site("x", "o", "n "), OPSETS[:1]
    )
    source = model([helper.make_node("Sdpa", ["q", "k", "v"], ["o"], domain="mine")], [inner])
    renamed = make_readable(source)
    assert source.graph.node[0].name == "o"
    assert len({node.name for node in source.functions[0].node}) == 8
    assert set(renamed.values()) == {"o", *(f"n {part}" for part in SITE)}
    assert names.as_written("x") == ("x", "node_of_x")


def test_a_dynamic_model_is_compiled_for_the_shapes_that_are_given() -> None:
    once = onnx_attn.land(PADDED, shapes={"input_ids": (2, 16), "attention_mask": (2, 16)})
    assert once["built"] and once["shapes"]["input_ids"] == [[2, 16]] * 3
    ranged = onnx_attn.land(PADDED, shapes={"input_ids": [(1, 16), (2, 16), (8, 16)]})
    assert ranged["built"] and ranged["shapes"]["attention_mask"] == [[1, 16], [2, 16], [8, 16]]
    assert ranged["moved_bytes"] == once["moved_bytes"]
    assert ranged["kernels"] >= once["kernels"] > 20


def test_an_engine_for_ranges_holds_layers_of_another_form_and_is_read_all_the_same() -> None:
    report = onnx_attn.land(PADDED, shapes={"input_ids": [(1, 1), (8, 8)]})
    assert (report["built"], report["errors"]) == (True, [])
    assert "ShapeHostToDevice" in {layer["type"] for layer in report["layers"]}
    assert report["kernels"] > 20 and all(entry["kernel"] for entry in report["per_site"])


@pytest.mark.parametrize("sm", [75, 80, 86, 89, 120, 121])
def test_every_target_of_the_compiler_can_be_asked_for(sm: int) -> None:
    report = onnx_attn.land(VIT, sm=sm)
    assert (report["sm"], report["built"], report["sites"], report["landed"]) == (sm, True, 2, 2)


def test_bytes_and_kernels_are_the_same_run_after_run() -> None:
    first, second = onnx_attn.land(VIT), onnx_attn.land(VIT)
    assert {**first, "seconds": None} == {**second, "seconds": None}


def test_an_attention_kernel_is_not_told_by_what_nodes_are_called() -> None:
    report = onnx_attn.land(model(site("q", "o", "/layer0/self_mha/"), element=TensorProto.FLOAT))
    assert (report["built"], report["landed"], report["attention_kernels"]) == (True, 0, 0)


def test_a_site_in_a_loop_is_told_from_one_of_the_same_name_outside() -> None:
    """The compiler does not write that a node lies in a Loop."""
    state = [value("state"), value("next")]
    flags = [value(name, TensorProto.BOOL, []) for name in ("going", "still")]
    nodes = [*site("state", "next"), helper.make_node("Identity", ["going"], ["still"], "keep")]
    body = helper.make_graph(
        nodes, "body", [value("i", TensorProto.INT64, []), flags[0], state[0]], [flags[1], state[1]]
    )
    loop = [
        helper.make_node("Constant", [], ["count"], "count", value_int=3),
        helper.make_node("Cast", ["count"], ["yes"], "yes", to=TensorProto.BOOL),
        helper.make_node("Loop", ["count", "yes", "q"], ["x"], "loop", body=body),
        helper.make_node("Cast", ["x"], ["wide"], "widen", to=TensorProto.FLOAT),
        *(helper.make_node("Cast", [name], [f"{name}_wide"], f"wide_{name}", to=TensorProto.FLOAT) for name in "kv"),
        *site("wide", "y", key="k_wide", val="v_wide"),
        helper.make_node("Cast", ["y"], ["o"], "narrow", to=TensorProto.FLOAT16),
    ]
    report = onnx_attn.land(model(loop))
    assert [(entry["site"], bool(entry["scope"]), entry["landed"]) for entry in report["per_site"]] == [
        ("softmax", True, True),
        ("softmax", False, False),
    ]


def test_a_site_in_a_branch_that_is_decided_beforehand_lands() -> None:
    branches = {
        "then_branch": helper.make_graph(site("q", "t"), "yes", [], [value("t")]),
        "else_branch": helper.make_graph([helper.make_node("Neg", ["q"], ["e"])], "no", [], [value("e")]),
    }
    true = helper.make_node(
        "Constant", [], ["flag"], "flag", value=helper.make_tensor("t", TensorProto.BOOL, [], [True])
    )
    landed(model([true, helper.make_node("If", ["flag"], ["o"], "choice", **branches)]), 1)


def test_equal_calls_of_a_function_share_the_kernel_they_are_merged_into() -> None:
    inner = helper.make_function("mine", "Sdpa", ["q", "k", "v"], ["o"], site("q", "o"), OPSETS[:1])
    calls = [helper.make_node("Sdpa", ["q", "k", "v"], [made], made, domain="mine") for made in "xy"]
    found = landed(model([*calls, helper.make_node("Add", ["x", "y"], ["o"], "add")], [inner]), 2)
    assert kernels_of(found) == 1


def test_sites_that_differ_by_nothing_but_an_identity_are_twins() -> None:
    nodes = [helper.make_node("Identity", ["q"], ["p"], "same"), *site("q", "x", "a "), *site("p", "y", "b ")]
    found = landed(model([*nodes, helper.make_node("Add", ["x", "y"], ["o"], "add")]), 2)
    assert kernels_of(found) == 1


def test_a_softmax_over_classes_in_a_function_is_no_site() -> None:
    nodes = [helper.make_node("Softmax", ["q"], ["o"], "softmax", axis=-1)]
    inner = helper.make_function("mine", "Classes", ["q"], ["o"], nodes, OPSETS[:1])
    report = onnx_attn.land(model([helper.make_node("Classes", ["q"], ["o"], "call", domain="mine")], [inner]))
    assert (report["built"], report["sites"]) == (True, 0)


def test_spelled_out_attention_in_a_function_is_a_site() -> None:
    inner = helper.make_function("mine", "Sdpa", ["q", "k", "v"], ["o"], spelled_out("q", "o"), OPSETS[:1])
    landed(model([helper.make_node("Sdpa", ["q", "k", "v"], ["o"], "call", domain="mine")], [inner]), 1)


def test_attention_kernels_of_what_is_not_read_as_a_site_are_told() -> None:
    nodes = [
        helper.make_node("Einsum", ["q", "k"], ["s"], "scores", equation="bhid,bhjd->bhij"),
        helper.make_node("Softmax", ["s"], ["p"], "softmax", axis=-1),
        helper.make_node("Einsum", ["p", "v"], ["o"], "values", equation="bhij,bhjd->bhid"),
    ]
    report = onnx_attn.land(model(nodes))
    assert report["sites"] + report["other_attention_kernels"] == report["attention_kernels"] == 1


def test_what_lands_and_computes_something_else_is_warned_of() -> None:
    (entry,) = onnx_attn.land(model_of(replace(PLAIN, scale="negative"), "attention"))["per_site"]
    assert entry["landed"] and "NaN" in entry["warning"]


def test_one_cause_of_several_does_not_promise_what_it_cannot_keep() -> None:
    (entry,) = onnx_attn.land(model_of(replace(PLAIN, dtype="float32", head_dim=264), "primitives"))["per_site"]
    assert "float32" in entry["reason"] and "256" in entry["reason"]
    (entry,) = onnx_attn.land(model_of(replace(PLAIN, dtype="float32", softcap=True), "primitives"))["per_site"]
    assert "Tanh" in entry["reason"] and entry["remedy"] is None


def test_a_report_that_cannot_be_read_is_not_zero_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(text: str) -> None:
        raise ValueError("not a line about a kernel")

    monkeypatch.setattr(compiling, "parse_layers", unreadable)
    report = onnx_attn.land(model(site("q", "o")))
    assert [report[key] for key in ("built", "kernels", "moved_bytes", "landed")] == [True, None, None, 0]
    assert "cannot be read" in report["per_site"][0]["reason"] and "cannot be read" in report["errors"][-1]


def test_what_fails_to_parse_is_told_by_the_sentence_that_says_why() -> None:
    (entry,) = onnx_attn.land(model_of(replace(PLAIN, past=True, presents=True), "attention"))["per_site"]
    assert "only supports Attention nodes with one output" in entry["reason"]
