"""`--allow-recompute`: a site whose probabilities somebody else reads is fused, and they keep the softmax that they had."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_same, feeds, run, same_bytes, weight_elements
from commands import run_command
from graphs import CHANNELS, HEADS, WIDTH, Net, heads_in
from onnx import TensorProto, numpy_helper
from readers import as_output, averaged, cast_then_output, multiplied_twice, read_inside_if
from support import EXPORTS

import onnx_attn

Use = Callable[[Net, str], str]
RECOMPUTED = "recomputed-probabilities"
OPTION = "--allow-recompute"


def model_with(use: Use, **net: Any) -> onnx.ModelProto:
    """A site on graph inputs; `use` is given the probabilities, and gives what is multiplied with V."""
    made = Net(**net)
    q, kt, v = heads_in(made)
    made.output(made.sdpa(q, kt, v, probabilities=lambda p: use(made, p)))
    return made.model()


def fused(model: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The fused model and its one site, which is what it was to everybody; fused once more nothing changes."""
    refused = onnx_attn.inspect(model)["candidates"][0]
    assert (refused["status"], refused["code"]) == ("refused", "probabilities-used")
    assert OPTION in refused["remedy"]
    result = onnx_attn.fuse(model, allow_recompute=True, **options)
    (site,) = [found for found in result.report["candidates"] if found["status"] == "site"]
    assert RECOMPUTED in site["changes"]
    assert site["certificate"]["ok"]
    onnx.checker.check_model(result.model, full_check=True)
    assert result.model.graph.input == model.graph.input
    assert result.model.graph.output == model.graph.output
    assert weight_elements(result.model) <= weight_elements(model)
    names = [node.name for node in result.model.graph.node]
    assert len({*names}) == len(names)
    again = onnx_attn.fuse(result.model, allow_recompute=True, **options)
    assert same_bytes(again.model, result.model)
    assert [found["status"] for found in again.report["candidates"]].count("site") == 1
    assert again.report["refused"] == 0
    return result.model, site


# --- who else reads them -----------------------------------------------------------------------------------------------


def read_and_output(net: Net, p: str) -> str:
    net.output(net.op("Exp", p))
    return as_output(net, p)


def behind_inference_dropout(net: Net, p: str) -> str:
    net.output(p)
    return net.op("Dropout", p, net.const(0.5, np.float32), net.const(False, bool))


def before_and_behind_dropout(net: Net, p: str) -> str:
    net.output(net.op("Neg", p))
    return as_output(net, net.op("Dropout", p, net.const(0.5, np.float32), net.const(False, bool)))


def then_guarded(net: Net, p: str) -> str:
    net.output(p)
    same = net.op("Cast", p, to=TensorProto.FLOAT)
    return net.op("Where", net.op("IsNaN", same), net.const(0.0), same)


USES = [
    as_output,
    averaged,
    read_and_output,
    cast_then_output,
    behind_inference_dropout,
    before_and_behind_dropout,
    then_guarded,
    read_inside_if,
]


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@pytest.mark.parametrize("form", ["auto", "primitives"])
def test_other_readers_keep_their_softmax(use: Use, form: str) -> None:
    model = model_with(use)
    after, site = fused(model, form=form)
    assert_same(model, after)
    assert site["softmax"] == "softmax"
    assert "softmax" in [node.name for node in after.graph.node if node.op_type == "Softmax"]
    left = {found["softmax"]: found["status"] for found in onnx_attn.inspect(after)["candidates"]}
    assert left == {"softmax": "not_attention", "softmax/recomputed": "site"}


def test_nothing_is_recomputed_that_was_not_asked_for() -> None:
    model = model_with(as_output)
    result = onnx_attn.fuse(model)
    assert same_bytes(result.model, model)
    assert result.report["candidates"][0]["changes"] == []


def test_a_site_with_probabilities_of_its_own_is_written_as_without_the_option() -> None:
    model = onnx.load(EXPORTS / "mha.torchscript.17.static.onnx")
    results = [onnx_attn.fuse(model, allow_recompute=allow) for allow in (False, True)]
    assert same_bytes(results[0].model, results[1].model)
    assert results[1].report["candidates"][0]["changes"] == []


def test_the_new_name_is_nobodys_yet() -> None:
    def use(net: Net, p: str) -> str:
        net.output(net.op("Exp", p, name="softmax/recomputed"))
        return p

    fused(model_with(use))


# --- what stays refused --------------------------------------------------------------------------------------------------


def multiplied_twice_behind_a_movement(net: Net, p: str) -> str:
    flat = net.reshape(p, 2 * HEADS, 5, 5)
    net.output(net.op("MatMul", flat, net.input("other", 2 * HEADS, 5, 3)), 3)
    return net.reshape(flat, 2, HEADS, 5, 5)


def averaged_and_multiplied(net: Net, p: str) -> str:
    net.output(net.op("MatMul", net.op("ReduceMean", p, axes=[1]), net.input("other", 2, 1, 5, 3)))
    return p


def multiplied_with_itself(net: Net, p: str) -> str:
    net.output(p)
    return net.op("MatMul", p, p)


def changed_on_the_way(net: Net, p: str) -> str:
    net.output(p)
    return net.op("Add", p, net.const(0.5))


def dropped_in_training(net: Net, p: str) -> str:
    net.output(p)
    return net.op("Dropout", p, net.const(0.5, np.float32), net.const(True, bool))


def mask_of_dropout(net: Net, p: str) -> str:
    dropped, mask = net.op("Dropout", p, outputs=2)
    net.output(mask, dtype=bool)
    return dropped


@pytest.mark.parametrize(
    "use",
    [
        multiplied_twice,
        multiplied_twice_behind_a_movement,
        averaged_and_multiplied,
        multiplied_with_itself,
        changed_on_the_way,
        dropped_in_training,
        mask_of_dropout,
    ],
    ids=lambda use: use.__name__,
)
def test_what_recomputing_cannot_mend_stays_refused(use: Use) -> None:
    model = model_with(use)
    result = onnx_attn.fuse(model, allow_recompute=True, verify=False)
    (found,) = result.report["candidates"]
    assert (found["status"], found["code"]) == ("refused", "probabilities-used")
    assert OPTION not in found["remedy"]
    assert same_bytes(result.model, model)


def test_a_class_softmax_is_none_of_it() -> None:
    net = Net()
    q, kt, _ = heads_in(net)
    net.output(net.op("Softmax", net.op("MatMul", q, kt), axis=-1))
    (found,) = onnx_attn.fuse(net.model(), allow_recompute=True).report["candidates"]
    assert found["status"] == "not_attention"


# --- opsets, types, sizes, projections -----------------------------------------------------------------------------------


def block(use: Use, opset: int = 17, dtype: Any = np.float32, batch: Any = 2, scale: str = "query") -> onnx.ModelProto:
    """Self-attention from three layers; scale: where the graph has it."""
    net = Net(opset, dtype)
    x = net.input("x", batch, 16, 64)
    q, k, v = (net.split_heads(net.linear(x, 64, width=64), 2, 32) for _ in range(3))
    q = net.scaled(q, 32**-0.5) if scale == "query" else net.scaled(q, 32**-0.25) if scale == "both" else q
    k = net.scaled(k, 32**-0.5) if scale == "key" else net.scaled(k, 32**-0.25) if scale == "both" else k
    scores = (lambda value: net.scaled(value, 32**-0.5)) if scale == "scores" else (lambda value: value)
    heads = net.sdpa(q, net.swap(k), v, scores=scores, probabilities=lambda p: use(net, p))
    net.output(net.linear(net.merge_heads(heads, 64), 64, width=64), 3)
    return net.model()


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 23])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_opset_and_type(opset: int, dtype: Any) -> None:
    model = block(as_output, opset, dtype)
    after, site = fused(model)
    assert_same(model, after, rtol=1e-5 if dtype == np.float32 else 2e-3)
    assert site["packed"]


def test_sizes_that_vary_are_proved_at_two() -> None:
    model = block(as_output, batch="batch")
    after, _ = fused(model)
    for batch in (1, 3):
        assert_same(model, after, feeds(model, {"batch": batch}))


def test_tied_weights_are_stored_once() -> None:
    net = Net()
    x, shared = net.input("x", 2, 5, WIDTH), net.weight(WIDTH, CHANNELS)
    q, k, v = (net.split_heads(net.linear(x, CHANNELS, weight=shared)) for _ in range(3))
    net.output(net.sdpa(q, net.swap(k), v, probabilities=lambda p: as_output(net, p)))
    model = net.model()
    after, _ = fused(model)
    assert_same(model, after)
    assert shared in [tensor.name for tensor in after.graph.initializer]


def test_a_projection_that_is_packed_already_serves_both() -> None:
    net = Net()
    x = net.input("x", 2, 5, WIDTH)
    packed = net.linear(x, 3 * CHANNELS)
    parts = net.op("Split", packed, net.ints(CHANNELS, CHANNELS, CHANNELS), outputs=3, axis=-1)
    q, k, v = (net.split_heads(part) for part in parts)
    net.output(net.sdpa(q, net.swap(k), v, probabilities=lambda p: as_output(net, p)))
    model = net.model()
    after, site = fused(model)
    assert_same(model, after)
    assert (site["packed"], site["algebra"]) == (True, [])
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    for tensor in model.graph.initializer:
        if 3 * CHANNELS in tensor.dims:
            np.testing.assert_array_equal(weights[tensor.name], numpy_helper.to_array(tensor))


def test_an_island_lies_around_the_site_and_not_around_the_other_softmax() -> None:
    model = block(as_output)
    after, site = fused(model, precision="fp16")
    assert site["changes"] == ["fp16-island", RECOMPUTED]
    assert_same(model, after, rtol=2e-3)
    # The weights that somebody reads are not touched.
    assert_same_output(model, after, 0)


def assert_same_output(before: onnx.ModelProto, after: onnx.ModelProto, number: int) -> None:
    inputs = feeds(before)
    np.testing.assert_array_equal(run(before, inputs)[number], run(after, inputs)[number])


def test_a_site_in_a_branch_is_fused_there() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    body = Net()
    p = body.op("Softmax", body.scaled(body.op("MatMul", q, kt)), axis=-1, name="softmax")
    for value in (body.op("MatMul", p, v), p):
        body.output(value)
    other = [onnx.helper.make_node("Identity", [v], ["v_again"]), onnx.helper.make_node("Identity", [kt], ["kt_again"])]
    infos = [
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in ("v_again", "kt_again")
    ]
    branches = {
        "then_branch": onnx.helper.make_graph(body.nodes, "then", [], body.outputs, body.weights),
        "else_branch": onnx.helper.make_graph(other, "else", [], infos),
    }
    for value in net.op("If", net.input("flag", dtype=bool), outputs=2, **branches):
        net.output(value)
    model = net.model()
    result = onnx_attn.fuse(model, allow_recompute=True)
    assert result.report["fused"] == 1
    for flag in (True, False):
        assert_same(model, result.model, feeds(model) | {"flag": np.asarray(flag)})


def test_a_packed_projection_serves_the_other_reader_too() -> None:
    model = block(as_output)
    before = {tuple(tensor.dims) for tensor in model.graph.initializer}
    after, site = fused(model)
    assert site["packed"] and site["algebra"] == []
    assert (64, 192) not in before
    assert (64, 192) in {tuple(tensor.dims) for tensor in after.graph.initializer}
    assert weight_elements(after) == weight_elements(model)
    assert_same(model, after)
    left = onnx_attn.fuse(model, allow_recompute=True, pack=False)
    assert not left.report["candidates"][0]["packed"]
    assert_same(model, left.model)


def test_a_projection_that_is_read_elsewhere_is_not_packed() -> None:
    net = Net()
    x = net.input("x", 2, 16, 64)
    layers = [net.linear(x, 64, width=64) for _ in range(3)]
    net.output(net.op("Exp", layers[0]), 3)
    q, k, v = (net.split_heads(layer, 2, 32) for layer in layers)
    net.output(net.sdpa(q, net.swap(k), v, probabilities=lambda p: as_output(net, p)))
    model = net.model()
    after, site = fused(model)
    assert site["unpacked_because"].startswith("weights-shared")
    assert_same(model, after)


def test_what_asks_a_layer_for_its_shape_goes_on() -> None:
    net = Net()
    x = net.input("x", "batch", 16, 64)
    layers = [net.linear(x, 64, width=64) for _ in range(3)]
    q, k, v = (net.turn(net.reshape(y, (y, 0), (y, 1), 2, 32), 0, 2, 1, 3) for y in layers)
    net.output(net.sdpa(q, net.swap(k), v, probabilities=lambda p: as_output(net, p)))
    model = net.model()
    after, site = fused(model)
    assert site["packed"]
    assert_same(model, after)
    assert weight_elements(after) == weight_elements(model)


# --- plans and the command line -------------------------------------------------------------------------------------------


def test_a_plan_replays_what_is_recomputed(tmp_path: Path) -> None:
    path, plan = EXPORTS / "mha_weights.torchscript.17.static.onnx", tmp_path / "plan.json"
    first, again = tmp_path / "first.onnx", tmp_path / "again.onnx"
    assert run_command("fuse", path, "-o", first, OPTION, "--expect", "1", "--write-plan", plan).code == 0
    assert run_command("fuse", path, "-o", again, "--plan", plan, "--expect", "1").code == 0
    assert first.read_bytes() == again.read_bytes()
    assert RECOMPUTED in plan.read_text()
    assert run_command("fuse", path, "-o", again, "--plan", plan, OPTION).code == 2


def test_a_plan_without_the_change_leaves_the_site_alone() -> None:
    model = onnx.load(EXPORTS / "mha_weights.torchscript.17.static.onnx")
    plan = copy.deepcopy(onnx_attn.fuse(model, allow_recompute=True).plan)
    assert plan["sites"][0]["changes"] == [RECOMPUTED]
    plan["sites"][0]["changes"] = []
    result = onnx_attn.fuse(model, plan=plan)
    assert result.report["candidates"][0]["code"] == "probabilities-used"
    plan["sites"][0] |= {"changes": [RECOMPUTED], "apply": False}
    assert onnx_attn.fuse(model, plan=plan).report["candidates"][0]["code"] == "left-by-plan"


# --- exports and the real compiler ----------------------------------------------------------------------------------------

WEIGHTS = sorted(path.name for path in EXPORTS.glob("mha_weights*.onnx"))


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in half precision."""
    model = copy.deepcopy(model)
    for tensor in [
        *model.graph.initializer,
        *(a.t for n in model.graph.node for a in n.attribute if a.name == "value"),
    ]:
        if tensor.data_type == TensorProto.FLOAT:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    del model.graph.value_info[:]
    return model


def landed(model: onnx.ModelProto, sm: int = 89) -> dict[str, Any]:
    shapes = {
        value.name: tuple(dim.dim_value or 16 for dim in value.type.tensor_type.shape.dim)
        for value in model.graph.input
    }
    varies = any(dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim)
    return onnx_attn.land(model, sm=sm, shapes=shapes if varies else None)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("precision", ["keep", "fp16"])
def test_exports_that_return_their_weights_land(name: str, precision: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = onnx.load(EXPORTS / name)
    model = half(model) if precision == "keep" else model
    after, _ = fused(model, precision=precision)
    before, found = landed(model), landed(after)
    assert (before["sites"], before["landed"], before["built"]) == (1, 0, True)
    assert (found["sites"], found["landed"]) == (1, 1), found["per_site"]
    assert found["kernels"] <= before["kernels"]
    assert found["per_site"][0]["site"].endswith("/recomputed")


@pytest.mark.parametrize("scale", ["query", "key", "both", "scores", "none"])
@pytest.mark.parametrize("form", ["auto", "primitives"])
@pytest.mark.parametrize("sm", [80, 89])
def test_the_compiler_does_not_merge_the_two_products(scale: str, form: str, sm: int) -> None:
    """Two equal products are one to the compiler, whose probabilities are then shared once more."""
    pytest.importorskip("tensorrt_rtx")
    after, site = fused(block(as_output, dtype=np.float16, scale=scale), form=form)
    found = landed(after, sm)
    assert (found["sites"], found["landed"]) == (1, 1), found["per_site"]
    assert onnx_attn.inspect(after)["candidates"][1]["scale"] == pytest.approx(site["scale"], rel=1e-3)


def test_the_operator_is_a_form_of_it_too() -> None:
    pytest.importorskip("tensorrt_rtx")
    after, _ = fused(block(as_output, 23, np.float16), form="attention")
    assert [node.name for node in after.graph.node if node.op_type == "Attention"] == ["softmax/recomputed"]
    found = landed(after)
    assert (found["sites"], found["landed"]) == (1, 1)


def test_the_search_keeps_what_is_recomputed_apart() -> None:
    pytest.importorskip("tensorrt_rtx")
    model = block(as_output, dtype=np.float16)
    result = onnx_attn.fuse(model, allow_recompute=True, search=True)
    assert_same(model, result.model, rtol=2e-3)
    assert landed(result.model)["landed"] == 1
    costs = result.report["search"]
    assert costs["chosen"]["kernels"] <= costs["default"]["kernels"]


def test_onnx_runtime_s_own_operators_are_a_form_of_it_too() -> None:
    model = block(as_output)
    result = onnx_attn.fuse(model, allow_recompute=True, target="onnxruntime", form="contrib")
    assert result.report["fused"] == 1
    assert_same(model, result.model)
