"""Where a site lies: nested graphs, local functions, opsets, types and sizes that rule a form out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_fused, assert_refused, assert_same, feeds, same_bytes, verdicts
from graphs import HEAD_DIM, HEADS, WIDTH, Net, heads_in, self_attention, small_site
from knobs import Block, Knobs
from onnx import TensorProto, helper

import onnx_attn

FLAT = [None] * 4


def branch(name: str, nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, FLAT)])


def attention_nodes(prefix: str, q: str, kt: str, v: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("MatMul", [q, kt], [f"{prefix}scores"], name=f"{prefix}scores"),
        helper.make_node("Softmax", [f"{prefix}scores"], [f"{prefix}p"], name="softmax", axis=-1),
        helper.make_node("MatMul", [f"{prefix}p", v], [f"{prefix}y"], name=f"{prefix}values"),
    ]


def test_attention_inside_an_if_body_is_rewritten_there() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    bodies = {
        "then_branch": branch("yes", attention_nodes("yes_", q, kt, v), "yes_y"),
        "else_branch": branch("no", [helper.make_node("Neg", [v], ["no_y"])], "no_y"),
    }
    net.output(net.op("If", net.input("flag", dtype=bool), name="choice", **bodies))
    for flag in (True, False):
        assert_fused(net.model(), feeds(net.model()) | {"flag": np.asarray(flag)}, form="primitives", heads=HEADS)


def test_attention_inside_a_loop_body_is_rewritten_there() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    state = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, HEADS, 5, HEAD_DIM]) for name in ("state", "y")]
    flags = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("going", "still")]
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    nodes = [*attention_nodes("", "state", kt, v), helper.make_node("Identity", ["going"], ["still"])]
    body = helper.make_graph(nodes, "body", [count, flags[0], state[0]], [flags[1], state[1]])
    net.output(net.op("Loop", net.const(3, np.int64), net.const(True, bool), q, body=body))
    assert_fused(net.model(), heads=HEADS)


def test_attention_inside_a_local_function_is_inlined_and_rewritten() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    function = helper.make_function(
        "mine", "Sdpa", ["q", "kt", "v"], ["y"], attention_nodes("", "q", "kt", "v"), [helper.make_opsetid("", 17)]
    )
    net.output(net.op("Sdpa", q, kt, v, domain="mine"))
    fused = assert_fused(net.model([function], mine=1), form="function", softmax="softmax")
    assert [f.domain for f in fused.functions] == ["onnx_attn"]


def test_a_function_that_is_called_from_a_body_is_inlined_there() -> None:
    """A function within a body: inlined there, and the body rewritten."""
    net = Net()
    q, kt, v = heads_in(net)
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function(
        "mine", "Sdpa", ["q", "kt", "v"], ["y"], attention_nodes("", "q", "kt", "v"), opsets
    )
    call = helper.make_node("Sdpa", [q, kt, v], ["yes_y"], "call", domain="mine")
    bodies = {
        "then_branch": branch("yes", [call], "yes_y"),
        "else_branch": branch("no", [helper.make_node("Neg", [v], ["no_y"])], "no_y"),
    }
    net.output(net.op("If", net.input("flag", dtype=bool), name="choice", **bodies))
    assert_fused(net.model([function], mine=1), feeds(net.model([function], mine=1)) | {"flag": np.asarray(True)})


def test_both_branches_are_rewritten_and_names_of_bodies_stay_apart() -> None:
    net = Net()
    net.input("x", 2, 5, WIDTH)
    made = [self_attention_nodes(name, seed) for seed, name in enumerate(("yes", "no"))]
    net.weights += [weight for _, weights in made for weight in weights]
    bodies = {
        "then_branch": branch_of("yes", made[0][0]),
        "else_branch": branch_of("no", made[1][0]),
    }
    net.output(net.op("If", net.input("flag", dtype=bool), name="choice", **bodies), 3)
    model = net.model()
    result = onnx_attn.fuse(model)
    assert (result.report["sites"], result.report["fused"]) == (2, 2), result.report["candidates"]
    assert [c["packed"] for c in result.report["candidates"]] == [True, True]
    onnx.checker.check_model(result.model, full_check=True)
    for flag in (True, False):
        assert_same(model, result.model, {**feeds(model), "flag": np.asarray(flag)})
    # Weights of the main graph that were packed into a body are gone from the main graph.
    left = {weight.name for weight in result.model.graph.initializer}
    assert not left & {f"{name}_const_{number}" for name in ("yes", "no") for number in range(4)}


def self_attention_nodes(name: str, seed: int) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """A block on the main graph's `x`, its weights to lie in the main graph, all names with a prefix."""
    net = Net(seed=seed)
    y = self_attention(net, "x", f"{name}_softmax")
    net.op("Identity", y)
    names = {n for node in net.nodes for n in node.output} | {w.name for w in net.weights}
    for node in net.nodes:
        node.name = f"{name}_{node.name}" if not node.name.startswith(name) else node.name
        for field in (node.input, node.output):
            field[:] = [f"{name}_{n}" if n in names else n for n in field]
    for weight in net.weights:
        weight.name = f"{name}_{weight.name}"
    return net.nodes, net.weights


def branch_of(name: str, nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, [2, 5, WIDTH])
    return helper.make_graph(nodes, name, [], [output])


def test_a_body_that_reads_what_has_no_known_type_is_refused() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    strange = net.op("Rotate", q, domain="somebody")
    bodies = {
        "then_branch": branch("yes", attention_nodes("yes_", strange, kt, v), "yes_y"),
        "else_branch": branch("no", [helper.make_node("Neg", [v], ["no_y"])], "no_y"),
    }
    net.output(net.op("If", net.input("flag", dtype=bool), name="choice", **bodies))
    assert_refused(net.model(somebody=1), "nested-graph")


def test_site_beside_a_nested_one_is_fused() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    inner = net.sdpa(q, kt, v, name="outer")
    bodies = {
        "then_branch": branch("yes", attention_nodes("yes_", inner, kt, v), "yes_y"),
        "else_branch": branch("no", [helper.make_node("Neg", [inner], ["no_y"])], "no_y"),
    }
    net.output(net.op("If", net.input("flag", dtype=bool), **bodies))
    assert verdicts(net.model()) == {"outer": ("site", None), "softmax": ("site", None)}
    result = onnx_attn.fuse(net.model())
    assert (result.report["sites"], result.report["refused"], result.report["fused"]) == (2, 0, 2)
    assert_same(net.model(), result.model)


def test_scores_that_a_nested_graph_reads_stay() -> None:
    def change(net: Net, s: str) -> str:
        bodies = {
            "then_branch": branch("yes", [helper.make_node("Exp", [s], ["yes_y"])], "yes_y"),
            "else_branch": branch("no", [helper.make_node("Neg", [s], ["no_y"])], "no_y"),
        }
        net.output(net.op("If", net.input("flag", dtype=bool), **bodies))
        return net.scaled(s)

    assert_fused(small_site(scores=change))


def test_shape_of_a_projection_that_a_nested_graph_reads_stays() -> None:
    net = Net()
    x = net.input("x", "batch", "sequence", WIDTH)
    k = net.linear(x, HEADS * HEAD_DIM)
    info = [helper.make_tensor_value_info(f"{name}_s", TensorProto.INT64, [3]) for name in ("yes", "no")]
    bodies = {
        "then_branch": helper.make_graph([helper.make_node("Shape", [k], ["yes_s"])], "yes", [], info[:1]),
        "else_branch": helper.make_graph([helper.make_node("Shape", [x], ["no_s"])], "no", [], info[1:]),
    }
    net.output(net.op("If", net.input("flag", dtype=bool), **bodies), 1, np.int64)
    q, kh, v = (
        net.split_heads(layer) for layer in (net.linear(x, HEADS * HEAD_DIM), k, net.linear(x, HEADS * HEAD_DIM))
    )
    net.output(net.merge_heads(net.sdpa(q, net.swap(kh), v)), 3)
    assert_fused(net.model())


# --- opsets ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [13, 14])
def test_below_opset_15_a_site_is_written_as_primitives(opset: int) -> None:
    assert_fused(Block(Knobs(opset=opset)).model(), form="primitives", packed=True)


@pytest.mark.parametrize("opset", [15, 16, 17, 18, 19, 20, 21, 22, 23])
def test_from_opset_15_on_a_site_is_written_as_a_function(opset: int) -> None:
    assert_fused(Block(Knobs(opset=opset, guard=True, mask="two")).model(), form="function", packed=True)


@pytest.mark.parametrize("opset", [11, 12])
def test_below_opset_13_the_opset_is_raised(opset: int) -> None:
    fused = assert_fused(Block(Knobs(opset=opset, guard=True, mask="two")).model(), form="primitives", packed=True)
    assert fused.opset_import[0].version == 13


def test_function_below_opset_15_is_refused() -> None:
    result = onnx_attn.fuse(small_site(opset=14), form="function")
    assert [(c["status"], c["code"], c["form"]) for c in result.report["candidates"]] == [
        ("refused", "opset-too-low", None)
    ]
    assert result.report["fused"] == 0


def test_softmax_below_opset_13_that_flattens_is_no_softmax_over_keys() -> None:
    """At opset 12 axis 2 of four means: over the last two axes together."""
    assert_refused(small_site(opset=12, axis=2), "softmax-axis")


@pytest.mark.parametrize("form", ["function", "primitives"])
def test_both_forms_compute_the_same(form: str) -> None:
    assert_fused(Block(Knobs(mask="two", guard=True, scale="sqrt_both")).model(), asked_form=form, form=form)


AS_PRIMITIVES = {
    "packed": Knobs(opset=14, guard=True, mask="two"),
    "heads from inputs": Knobs(opset=14, projection="none"),
    "heads from inputs, scale on K": Knobs(opset=14, projection="none", scale="k"),
    "heads of 3-D from inputs": Knobs(opset=14, projection="none", layout="heads3d", dynamic=("batch", "sequence")),
    "values of another size": Knobs(opset=14, value_dim=16),
}


@pytest.mark.parametrize("spelling", AS_PRIMITIVES)
def test_primitives_that_are_fused_again_stay_as_they_are(spelling: str) -> None:
    once = onnx_attn.fuse(Block(AS_PRIMITIVES[spelling]).model()).model
    assert same_bytes(onnx_attn.fuse(once).model, once)


# --- types and sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floating_point_types_are_fused(dtype: Any) -> None:
    assert_fused(small_site(dtype=dtype), rtol=2e-3 if dtype == np.float16 else 1e-5)


def test_product_of_whole_numbers_is_refused() -> None:
    net = Net()
    q, k = (net.input(name, 2, HEADS, 5, HEAD_DIM, dtype=np.int32) for name in "qk")
    scores = lambda s: net.op("Cast", s, to=TensorProto.FLOAT)  # noqa: E731
    net.output(net.sdpa(q, net.swap(k), net.input("v", 2, HEADS, 5, HEAD_DIM), scores))
    assert_refused(net.model(), "type-not-supported", "scores-changed")


def test_a_head_size_that_varies_is_no_hindrance() -> None:
    net = Net()
    q, k, v = (net.input(name, 2, HEADS, 5, "size") for name in "qkv")
    net.output(net.sdpa(q, net.swap(k), v))
    assert_fused(net.model(), feeds(net.model(), {"size": 8}), head_dim=None)


def test_operands_from_an_unknown_operator_are_refused() -> None:
    net = Net()
    _, kt, v = heads_in(net)
    net.output(net.sdpa(net.op("Rotate", net.input("x", 2, HEADS, 5, HEAD_DIM), domain="somebody"), kt, v))
    assert_refused(net.model(somebody=1), "shape-unknown")


def test_values_with_fewer_axes_than_the_probabilities_give_the_same_numbers() -> None:
    net = Net()
    q, kt, _ = heads_in(net)
    net.output(net.sdpa(q, kt, net.input("shared", 5, HEAD_DIM)))
    assert_same(net.model(), onnx_attn.fuse(net.model()).model)


def test_dynamic_sequence_and_batch_are_fused() -> None:
    assert_fused(small_site(sizes=("batch", "sequence", "sequence")), heads=HEADS)


def test_keys_of_another_length_are_fused() -> None:
    assert_fused(small_site(sizes=(2, 5, 7)), heads=HEADS, head_dim=HEAD_DIM)


def test_bfloat16_is_fused_though_no_kernel_here_runs_it() -> None:
    """The proof of the site runs in float64; the whole model cannot be run, so only inspection is asked."""
    net = Net(23)
    given = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [2, HEADS, 5, HEAD_DIM]) for name in "qkv"]
    net.inputs.extend(given)
    net.outputs.append(helper.make_tensor_value_info("y", TensorProto.BFLOAT16, FLAT))
    net.nodes.append(helper.make_node("Attention", ["q", "k", "v"], ["y"], name="softmax"))
    assert verdicts(net.model()) == {"softmax": ("site", None)}
    assert onnx_attn.fuse(net.model(), verify=False).report["fused"] == 1


def test_site_that_cannot_be_run_here_is_refused_as_unprovable(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime that refuses to open a model stands for kernels that this machine lacks."""
    from onnx_attn.prove import judge
    from onnx_attn.runtime import CannotRun

    def refuse(*_: Any) -> None:
        raise CannotRun("no kernel here")

    monkeypatch.setattr(judge, "Session", refuse)
    model = small_site()
    report = onnx_attn.fuse(model).report
    assert [(c["status"], c["code"], c["form"]) for c in report["candidates"]] == [("refused", "unprovable-here", None)]
    assert (report["sites"], report["fused"], report["refused"]) == (1, 0, 1)


def mask_without_names(heads: int | None) -> onnx.ModelProto:
    net = Net()
    q, k, v = (net.input(name, None, HEADS, None, HEAD_DIM) for name in "qkv")
    mask = net.input("mask", None, heads, None, None)
    net.output(net.sdpa(q, net.swap(k), v, lambda s: net.op("Add", net.scaled(s), mask)))
    return net.model()


def test_unnamed_dimensions_of_a_mask_are_tried_as_those_of_the_keys() -> None:
    model = mask_without_names(heads=1)
    sizes = {f"{name}:{axis}": 3 if axis == 0 else 6 for name in ("q", "k", "v", "mask") for axis in (0, 2, 3)}
    assert_fused(model, feeds(model, sizes))


def test_mask_whose_head_axis_is_unnamed_too_cannot_be_proved() -> None:
    """No size that is tried for the keys' length fits the heads, so the site does not run, before or after."""
    model = mask_without_names(heads=None)
    result = onnx_attn.fuse(model)
    assert [(c["status"], c["code"], c["form"]) for c in result.report["candidates"]] == [
        ("refused", "shape-unknown", None)
    ]
    assert (result.report["sites"], result.report["refused"], result.report["fused"]) == (1, 1, 0)
    assert same_bytes(result.model, model)
