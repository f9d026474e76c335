"""What is not attention comes out as it went in, field by field; the given model itself is never touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from commands import DEMO, run_command
from decorated import USER, decorated, field_names, packed_weight, plain, same_fields, set_fields
from onnx import numpy_helper
from support import EXPORTS, feeds, max_rel, run

import onnx_attn

FORMS = ("function", "primitives")
TRIPLET = EXPORTS / "bert.dynamo.23.dynamic.onnx"
NOT_SET = {
    "configuration",
    "device_configurations",
    "sequence_type",
    "map_type",
    "optional_type",
    "sparse_tensor_type",
    "opaque_type",
}
"""Multi-device hints, and types other than tensors: a vision model has none."""


@pytest.fixture(scope="module")
def before() -> onnx.ModelProto:
    return decorated()


@pytest.fixture(
    scope="module", params=[(f, how) for f in FORMS for how in ("memory", "file", "external")], ids="-".join
)
def after(
    request: pytest.FixtureRequest, before: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory
) -> onnx.ModelProto:
    form, how = request.param
    if how == "memory":
        return onnx_attn.fuse(before, form=form, algebra=False).model
    folder = tmp_path_factory.mktemp("lossless")
    copy = onnx.ModelProto()
    copy.CopyFrom(before)
    onnx.save_model(copy, folder / "in.onnx", save_as_external_data=how == "external", size_threshold=0)
    return onnx_attn.fuse(folder / "in.onnx", folder / "out.onnx", form=form, algebra=False).model


def by_name(messages: Any) -> dict[str, Any]:
    return {message.name: message for message in messages}


def values_of(model: onnx.ModelProto) -> set[str]:
    graph = model.graph
    made = {name for node in graph.node for name in node.output}
    return made | {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}


def test_the_model_has_something_in_every_place(before: onnx.ModelProto) -> None:
    """So that nothing below is true for want of anything to lose."""
    graph = before.graph
    for messages in ([before], [graph], graph.node, graph.value_info, before.functions, [graph.input[0].type]):
        messages = list(messages)
        assert set(field_names(messages[0])) - NOT_SET - set_fields(messages) == set()


def test_model_fields_stay(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    assert same_fields(before, after, leave_out=("graph", "functions", "opset_import")) == []


def test_functions_and_opsets_stay_and_only_ours_are_added(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    kept = [plain(function) for function in before.functions]
    assert [plain(function) for function in after.functions[: len(kept)]] == kept
    assert {function.domain for function in after.functions[len(kept) :]} <= {"onnx_attn"}
    opsets = [plain(entry) for entry in before.opset_import]
    assert [plain(entry) for entry in after.opset_import[: len(opsets)]] == opsets
    assert {entry.domain for entry in after.opset_import[len(opsets) :]} <= {"onnx_attn"}


def test_graph_fields_stay(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    changing = ("node", "initializer", "value_info", "quantization_annotation")
    assert same_fields(before.graph, after.graph, leave_out=changing) == []


def test_nodes_that_are_not_attention_stay_byte_for_byte(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """A node is known again by what it makes. One value of each site changes its maker, and no order changes.

    A `Shape` of Q, K or V on their way down from the projection may be computed from where that way begins instead.
    """
    old = {tuple(node.output): node for node in before.graph.node}
    again = [tuple(node.output) for node in after.graph.node if tuple(node.output) in old]
    kept = {plain(node) for node in after.graph.node}
    changed = [old[name] for name in again if plain(old[name]) not in kept]
    probabilities = {node.output[0] for node in before.graph.node if node.op_type == "Softmax"}
    makers = [node.name for node in changed if probabilities & set(node.input)]
    assert len(makers) == len(probabilities) == 2
    assert {node.op_type for node in changed if node.name not in makers} <= {"Shape"}
    assert [name for name in old if name in set(again)] == again
    assert len(again) > 40
    user = [node for node in after.graph.node if node.domain == USER]
    assert [node.overload for node in user] == ["twice", "thrice"]


def test_with_algebra_only_norm_and_out_projection_change_beside(before: onnx.ModelProto) -> None:
    fused = onnx_attn.fuse(before).model
    old = {tuple(node.output): node for node in before.graph.node}
    again = {tuple(node.output): node for node in fused.graph.node if tuple(node.output) in old}
    changed = [old[name].op_type for name, node in again.items() if plain(node) != plain(old[name])]
    assert set(changed) <= {"Add", "Gemm", "MatMul", "Shape"}
    assert len([op for op in changed if op != "Shape"]) <= 2
    # Whatever changes its value changes its name: no value of the old names has other numbers.
    inputs = feeds(before, {"batch": 2})
    values = [name for names, node in again.items() for name in names if node.op_type != "Shape"]
    for a, b in zip(watched(before, values, inputs), watched(fused, values, inputs), strict=True):
        if a.dtype.kind == "f":
            np.testing.assert_allclose(b, a, atol=1e-5 * max(1.0, np.abs(a).max()))


def watched(model: onnx.ModelProto, values: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The values of named tensors inside a model."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    have = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values if name not in have)
    session = ort.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(values, inputs)


def test_initializers_stay_unless_packed(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    old, new = by_name(before.graph.initializer), by_name(after.graph.initializer)
    for name in old.keys() & new.keys():
        first, second = old[name], new[name]
        assert same_fields(first, second, leave_out=("raw_data", "data_location", "external_data")) == []
        assert numpy_helper.to_array(first).tobytes() == numpy_helper.to_array(second).tobytes()
    assert [name for name in old if name in new] == [name for name in new if name in old]
    read_before = {name for node in before.graph.node for name in node.input}
    assert old.keys() - new.keys() <= read_before
    assert {"unused", "quant_scale", "quant_zero", "class_token"} <= new.keys()


def test_types_of_values_that_stay_stay(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    present = values_of(after)
    kept = [plain(value) for value in before.graph.value_info if value.name in present]
    old = {value.name for value in before.graph.value_info}
    assert [plain(value) for value in after.graph.value_info if value.name in old] == kept
    assert len(kept) > 40


def test_annotations_stay_with_their_values_and_go_with_them(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    kept = [plain(a) for a in before.graph.quantization_annotation if a.tensor_name in values_of(after)]
    assert [plain(a) for a in after.graph.quantization_annotation] == kept
    assert len(kept) >= 2
    assert {value.name for value in after.graph.value_info} <= values_of(after)


def triplet() -> tuple[onnx.ModelProto, list[str]]:
    """A model with three projections a site, and the names of the weights that packing takes away."""
    model = onnx.load(TRIPLET)
    fused = onnx_attn.fuse(model, verify=False).model
    read = {name for node in model.graph.node for name in node.input}
    packed = [
        t.name for t in model.graph.initializer if t.name in read and t.name not in by_name(fused.graph.initializer)
    ]
    assert [name for name in packed if len(by_name(model.graph.initializer)[name].dims) == 2]
    return model, packed


def test_annotation_of_a_packed_weight_goes_with_it() -> None:
    """Left behind it would speak of a tensor that is not there."""
    model, packed = triplet()
    for name in packed:
        model.graph.quantization_annotation.add(tensor_name=name)
    fused = onnx_attn.fuse(model).model
    assert {annotation.tensor_name for annotation in fused.graph.quantization_annotation} <= values_of(fused)


@pytest.mark.parametrize("name", ["bert.dynamo.23.dynamic", "vit_b_16.dynamo.18.dynamic", "sdpa_mask.dynamo.18.static"])
def test_type_of_a_weight_that_went_goes_with_it(name: str) -> None:
    """The dynamo exporter annotates its initializers as well."""
    model = onnx.load(EXPORTS / f"{name}.onnx")
    assert {value.name for value in model.graph.value_info} <= values_of(model)
    fused = onnx_attn.fuse(model, verify=False).model
    assert {value.name for value in fused.graph.value_info} <= values_of(fused)


def test_weight_that_quantization_names_as_a_parameter_stays() -> None:
    model, packed = triplet()
    annotation = model.graph.quantization_annotation.add(tensor_name=model.graph.output[0].name)
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=packed[0])
    assert packed[0] in values_of(onnx_attn.fuse(model).model)


def test_weight_that_training_updates_is_not_packed_away() -> None:
    """Training reads it by its name."""
    model, packed = triplet()
    info = model.training_info.add()
    info.algorithm.CopyFrom(onnx.helper.make_graph([], "step", [], []))
    info.initialization.CopyFrom(onnx.helper.make_graph([], "start", [], []))
    info.update_binding.add(key=packed[0], value=packed[0])
    onnx.checker.check_model(model)
    assert packed[0] in values_of(onnx_attn.fuse(model).model)


def test_weight_that_training_updates_stays(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    bound = {binding.key for info in before.training_info for binding in info.update_binding}
    assert bound == {packed_weight(before)}
    assert bound <= values_of(after)


def test_result_is_a_model_of_the_standard_that_computes_the_same(
    before: onnx.ModelProto, after: onnx.ModelProto
) -> None:
    onnx.checker.check_model(after, full_check=True)
    inputs = feeds(before, {"batch": 3, "sequence": 9})
    assert max_rel(run(before, inputs), run(after, inputs)) <= 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_given_model_object_is_not_touched(form: str, before: onnx.ModelProto) -> None:
    bytes_before = plain(before)
    result = onnx_attn.fuse(before, form=form)
    onnx_attn.inspect(before)
    assert plain(before) == bytes_before
    result.model.graph.node[0].name = "changed afterwards"
    result.model.graph.initializer[0].raw_data = b""
    assert plain(before) == bytes_before


def test_given_graphsurgeon_graph_is_not_touched() -> None:
    graph = gs.import_onnx(onnx.load(DEMO))
    before = plain(gs.export_onnx(graph))
    result = onnx_attn.fuse(graph)
    assert isinstance(result.model, gs.Graph)
    assert result.report["fused"] == 2
    assert plain(gs.export_onnx(graph)) == before


def test_given_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(plain(decorated()))
    before, stat = path.read_bytes(), path.stat()
    for arguments in (
        ["inspect", path],
        ["fuse", path, "-o", tmp_path / "out.onnx"],
        ["verify", path, tmp_path / "out.onnx"],
    ):
        assert run_command(*arguments).code == 0
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == stat.st_mtime_ns


def test_weights_that_are_inputs_too_stay_inputs() -> None:
    """From IR 4 on such a weight is a default that the caller may replace: part of the signature."""
    model = onnx.load(TRIPLET)
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    fused = onnx_attn.fuse(model).model
    assert [plain(value) for value in fused.graph.input] == [plain(value) for value in model.graph.input]


def other_function_of_our_name() -> onnx.ModelProto:
    """As a later version of this package, or a hand, may have left it: same name, other body."""
    model = onnx.load(DEMO)
    nodes = [onnx.helper.make_node("Identity", ["value"], ["y"])]
    opset = onnx.helper.make_opsetid
    name = "ScaledDotProductAttention"
    function = onnx.helper.make_function("onnx_attn", name, ["query", "key", "value"], ["y"], nodes, [opset("", 17)])
    model.functions.append(function)
    model.opset_import.append(opset("onnx_attn", 1))
    return model


@pytest.mark.parametrize("verify", [True, False])
def test_function_of_our_name_with_another_body_is_not_called(verify: bool) -> None:
    model = other_function_of_our_name()
    fused = onnx_attn.fuse(model, verify=verify).model
    inputs = feeds(model, {"batch": 2})
    assert max_rel(run(model, inputs), run(fused, inputs)) <= 1e-5


def test_default_domain_may_be_spelled_out() -> None:
    """onnx.checker and ONNX Runtime take `ai.onnx` for the empty domain."""
    model = onnx.load(DEMO)
    model.opset_import[0].domain = "ai.onnx"
    fused = onnx_attn.fuse(model)
    assert fused.report["fused"] == 2
    assert [entry.domain for entry in fused.model.opset_import if entry.domain != "onnx_attn"] == ["ai.onnx"]


def test_before_ir_4_new_weights_stand_among_the_inputs_as_the_old_ones_do() -> None:
    model = onnx.load(EXPORTS / "handwritten_no_bias.torchscript.17.static.onnx")
    model.ir_version = 3
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(w.name, w.data_type, list(w.dims)) for w in model.graph.initializer
    )
    onnx.checker.check_model(model)
    result = onnx_attn.fuse(model, form="primitives")
    assert result.report["fused"] == 1 and result.model.ir_version == 3
    onnx.checker.check_model(result.model)
