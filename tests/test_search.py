"""Where the parts of a site go, and the search that asks the compiler for the best place."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from commands import run_command
from support import EXPORTS, feeds, max_rel, run
from test_algebra_scale import half_with_scale

import onnx_attn
from onnx_attn.forms.placement import BIASES, SCALES, SPLITS
from onnx_attn.graph.alike import digest
from onnx_attn.graph.view import GraphView
from onnx_attn.prove.cut import Cutter
from onnx_attn.search.ask import Compiler, Cost, Question
from onnx_attn.search.pieces import pieces_of

VIT = "vit_b_16.dynamo.18.dynamic.onnx"
PACKED = [
    VIT,
    "bert.dynamo.23.dynamic.onnx",
    "mha_cross.dynamo.18.static.half.onnx",
    "gqa_block.dynamo.18.static.onnx",
    "mha_seq_first.torchscript.17.static.onnx",
    "davit_tiny.dynamo.23.dynamic.onnx",
    "gpt2.torchscript.17.dynamic.onnx",
]
SIZES = {"batch": 2, "sequence": 16, "memory": 24}


def placed(name: str, **places: str) -> onnx_attn.Result:
    """The export with every site's parts at these places; no identities, so that there are biases and scales to place."""
    model = onnx.load(EXPORTS / name)
    plan = copy.deepcopy(onnx_attn.fuse(model, algebra=False, verify=False).plan)
    for site in plan["sites"]:
        site["placement"] |= places
    return onnx_attn.fuse(model, plan=plan)


PLACES = (
    [{"split": where} for where in SPLITS]
    + [{"split": where, "bias": BIASES[1]} for where in SPLITS]
    + [{"scale": SCALES[1]}]
)


@pytest.mark.parametrize("places", PLACES, ids=lambda places: "-".join(places.values()))
@pytest.mark.parametrize("name", PACKED)
def test_every_place_computes_the_same(name: str, places: dict[str, str]) -> None:
    model, result = onnx.load(EXPORTS / name), placed(name, **places)
    assert result.report["refused"] == 0
    half = ".half." in name
    inputs = feeds(model, SIZES)
    found = [run(each, inputs, optimized=not half) for each in (model, result.model)]
    assert max_rel(*found) <= (2e-3 if half else 1e-5)


def written(name: str, **places: str) -> list[str]:
    return [node.op_type for node in placed(name, **places).model.graph.node]


def test_places_are_where_they_are_said_to_be() -> None:
    name = "gqa_block.dynamo.18.static.onnx"
    packed, late = (placed(name, split="heads", bias=where).model.graph for where in BIASES)
    rank = {tensor.name: len(tensor.dims) for graph in (packed, late) for tensor in graph.initializer}
    assert [max(rank.get(i, 0) for i in n.input) for n in packed.node if n.op_type == "Add"][:1] == [1]
    assert sum(n.op_type == "Add" and max(rank.get(i, 0) for i in n.input) == 3 for n in late.node) == 3
    splits = {where: placed("mha.dynamo.18.dynamic.onnx", split=where).model.graph.node for where in SPLITS[1:]}
    axes = {where: [n.attribute[0].i for n in nodes if n.op_type == "Split"][-1] for where, nodes in splits.items()}
    assert axes == {"last": -1, "heads": 1, "leading": 0}
    (function,) = placed(VIT, scale="scores").model.functions
    order = [node.op_type for node in function.node]
    assert order.index("MatMul") < order.index("Mul")


@pytest.mark.parametrize(
    ("places", "told"),
    [
        ({"split": "middle"}, "auto, last, heads, leading"),
        ({"mask": "first"}, "split, bias, scale"),
        ("last", "an object"),
    ],
)
def test_places_that_do_not_exist_are_wrong_usage(places: Any, told: str) -> None:
    model = onnx.load(EXPORTS / VIT)
    plan = copy.deepcopy(onnx_attn.fuse(model, verify=False).plan)
    plan["sites"][0]["placement"] = places
    with pytest.raises(onnx_attn.UsageError, match=told):
        onnx_attn.fuse(model, plan=plan)


def whole(name: str) -> Question:
    view = GraphView(onnx.load(EXPORTS / name))
    question = pieces_of(Cutter(view), {}).whole([])
    assert question is not None
    return question


def test_sites_are_alike_by_structure_and_not_by_name() -> None:
    first, renamed, wider = (whole("gqa_block.dynamo.18.static.onnx") for _ in range(3))
    for node in renamed.model.graph.node:
        node.name = f"other {node.name}"
        node.input[:] = [f"other {name}" if name else "" for name in node.input]
        node.output[:] = [f"other {name}" for name in node.output]
    for value in (*renamed.model.graph.input, *renamed.model.graph.output, *renamed.model.graph.initializer):
        value.name = f"other {value.name}"
    wider.model.graph.input[0].type.tensor_type.shape.dim[1].dim_value += 1
    assert digest(first.model) == digest(renamed.model)
    assert digest(first.model) != digest(wider.model)
    assert digest(first.model) != digest(whole("gqa_block.dynamo.18.static.half.onnx").model)


def test_fewer_kernels_are_better_and_of_equals_fewer_bytes() -> None:
    assert Cost(5, 900) < Cost(6, 100)
    assert Cost(5, 100) < Cost(5, 900)


SEARCHED = ["mha_cross.dynamo.18.static.half.onnx"]


@pytest.mark.parametrize("name", SEARCHED)
def test_a_search_is_never_worse_than_the_default(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    path, fused = EXPORTS / name, tmp_path / "fused.onnx"
    result = onnx_attn.fuse(path, fused, search=True)
    told = result.report["search"]
    by_default = onnx_attn.fuse(onnx.load(path)).model
    found = [onnx_attn.land(each) for each in (path, by_default, fused)]
    costs = [{key: each[key] for key in ("kernels", "moved_bytes")} if each["built"] else None for each in found]
    assert [told[key] for key in ("export", "default", "chosen")] == costs
    assert Cost(**told["chosen"]) <= Cost(**told["default"])
    assert result.plan["search"] == told
    again = onnx_attn.fuse(path, tmp_path / "again.onnx", plan=result.plan)
    assert fused.read_bytes() == (tmp_path / "again.onnx").read_bytes()
    assert again.report["search"] is None


def test_a_search_finds_what_the_default_does_not(tmp_path: Path) -> None:
    """A decoder's layer, two sequences at a time: where K and V have no biases left, the norm need not carry Q's."""
    pytest.importorskip("tensorrt_rtx")
    path = EXPORTS / "decoder_layer_pre.torchscript.17.static.half.onnx"
    told = onnx_attn.fuse(path, tmp_path / "fused.onnx", search=True).report["search"]
    assert Cost(**told["chosen"]) < Cost(**told["default"])
    assert told["chosen"]["kernels"] <= told["export"]["kernels"]


def test_weights_that_do_not_fit_their_type_are_searched_as_they_are_written() -> None:
    pytest.importorskip("tensorrt_rtx")
    told = onnx_attn.fuse(half_with_scale(1e9), search=True, verify=False).report["search"]
    assert told["default"] is not None and told["kinds"] == 1
    assert Cost(**told["chosen"]) <= Cost(**told["default"])


def test_layers_that_are_alike_are_asked_about_once_and_at_the_user_s_shapes(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    plan, json_path = tmp_path / "plan.json", tmp_path / "report.json"
    shapes = ["--shapes", "pixel_values:1x3x16x16", "--shapes", "pixel_values:8x3x16x16"]
    name = onnx.load(EXPORTS / VIT).graph.input[0].name
    shapes = [text.replace("pixel_values", name) for text in shapes]
    arguments = [*shapes, "--sm", "80", "--write-plan", plan, "--json", json_path]
    outcome = run_command("fuse", EXPORTS / VIT, "-o", tmp_path / "o.onnx", "--search", *arguments)
    assert outcome.code == 0, outcome.stderr
    told = json.loads(json_path.read_text())["search"]
    assert (told["kinds"], told["sm"]) == (1, 80)
    assert told["shapes"] == {name: [[1, 3, 16, 16], [8, 3, 16, 16], [8, 3, 16, 16]]}
    assert json.loads(plan.read_text())["search"] == told
    landed = onnx_attn.land(tmp_path / "o.onnx", sm=80, shapes={name: [(1, 3, 16, 16), (8, 3, 16, 16)]})
    assert (landed["kernels"], landed["moved_bytes"]) == tuple(told["chosen"].values())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--search"], "such as --shapes"),
        (["--sm", "80"], "add search"),
        (["--search", "--target", "onnx"], "leave them out for onnx"),
        (["--search", "--shapes", "nothing:1x2"], "no input 'nothing'"),
    ],
)
def test_what_cannot_be_searched_is_wrong_usage(arguments: list[str], told: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    outcome = run_command("fuse", EXPORTS / VIT, "-o", tmp_path / "o.onnx", *arguments)
    assert (outcome.code, told in outcome.stderr) == (2, True), outcome.stderr
    assert not (tmp_path / "o.onnx").exists()


def test_a_plan_leaves_nothing_to_be_searched() -> None:
    model = onnx.load(EXPORTS / VIT)
    plan = onnx_attn.fuse(model, verify=False).plan
    with pytest.raises(onnx_attn.UsageError, match="leave these options out, and search"):
        onnx_attn.fuse(model, plan=plan, search=True)


def test_what_does_not_build_costs_nothing_that_could_be_compared() -> None:
    pytest.importorskip("tensorrt_rtx")
    question = whole("sdpa.dynamo.23.static.onnx")  # A float32 Attention node.
    compiler = Compiler()
    assert compiler.ask([question, question]) == [None, None]
    assert compiler.builds == 1
