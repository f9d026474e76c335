"""Models in memory of every kind: read, given back as what they were, saved, and never changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from commands import DEMO, NO_ATTENTION, SMALLEST
from decorated import decorated

import onnx_attn
from onnx_attn.match import find, op, var

ir = pytest.importorskip("onnx_ir")

KINDS: dict[str, Callable[[Path], Any]] = {
    "ModelProto": onnx.load,
    "gs.Graph": lambda path: gs.import_onnx(onnx.load(path)),
    "onnx_ir.Model": ir.load,
}


def serialised(model: Any) -> bytes:
    if isinstance(model, gs.Graph):
        model = gs.export_onnx(model)
    return bytes((ir.to_proto(model) if isinstance(model, ir.Model) else model).SerializeToString(deterministic=True))


def tensors(model: Any) -> dict[str, Any]:
    return {name: value.const_value for name, value in model.graph.initializers.items()}


def external(model: Any) -> set[str]:
    return {name for name, tensor in tensors(model).items() if isinstance(tensor, ir.ExternalTensor)}


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model with its weights in a file of their own."""
    path = tmp_path_factory.mktemp("apart") / "model.onnx"
    ir.save(ir.load(DEMO), path, external_data="weights.bin", size_threshold_bytes=256)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", ["fuse", "expand"])
def test_what_is_given_comes_back_as_its_kind_and_is_not_changed(kind: str, verb: str, tmp_path: Path) -> None:
    model, output = KINDS[kind](SMALLEST), tmp_path / "made.onnx"
    before = serialised(model)
    in_memory, saved = getattr(onnx_attn, verb)(model), getattr(onnx_attn, verb)(model, output)
    assert type(in_memory.model) is type(saved.model) is type(model)
    assert serialised(in_memory.model) == serialised(saved.model)
    assert serialised(model) == before
    assert sorted(tmp_path.iterdir()) == [output]
    assert onnx_attn.verify(SMALLEST, output)["ok"]


@pytest.mark.parametrize("path", [DEMO, SMALLEST, NO_ATTENTION], ids=lambda path: path.stem)
def test_an_ir_model_is_fused_as_its_message_is(path: Path) -> None:
    by_message = onnx_attn.fuse(ir.to_proto(ir.load(path)))
    by_ir = onnx_attn.fuse(ir.load(path))
    assert serialised(by_ir.model) == serialised(ir.from_proto(by_message.model))
    assert by_ir.report["candidates"] == by_message.report["candidates"]


def test_names_documentation_and_metadata_make_the_trip() -> None:
    """What an onnx_ir.Model can hold of a model that has everything."""
    given = ir.from_proto(decorated())
    fused = onnx_attn.fuse(given).model
    assert onnx_attn.inspect(fused)["sites"] == onnx_attn.inspect(given)["sites"] > 0
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "metadata_props"):
        assert getattr(fused, name) == getattr(given, name), name
    assert fused.metadata_props and fused.doc_string
    before, after = ir.to_proto(given), ir.to_proto(fused)
    for field in ("name", "doc_string", "input", "output", "metadata_props"):
        assert getattr(after.graph, field) == getattr(before.graph, field), field
    graph = after.graph
    still = {value.name for value in (*graph.input, *graph.initializer)} | {
        o for node in graph.node for o in node.output
    }
    annotated = [each for each in before.graph.quantization_annotation if each.tensor_name in still]
    assert sorted(map(str, graph.quantization_annotation)) == sorted(map(str, annotated)) != []
    wanted = {(function.domain, function.name): function for function in before.functions}
    made = {(function.domain, function.name): function for function in after.functions}
    assert wanted.items() <= made.items()


def test_weights_that_stay_are_the_very_tensors_that_were_given() -> None:
    model = ir.load(DEMO)
    before, after = tensors(model), tensors(onnx_attn.fuse(model).model)
    same = {name for name, tensor in after.items() if name in before and before[name].tobytes() == tensor.tobytes()}
    assert {name for name in same if after[name] is before[name]} == same
    assert len(same) > len(after) / 2


def test_weights_in_a_file_stay_there(apart: Path, tmp_path: Path) -> None:
    """And the result of one is as good an input as its own was."""
    model = ir.load(apart)
    fused = onnx_attn.fuse(model).model
    assert 0 < len(external(fused)) < len(external(model))
    assert onnx_attn.verify(model, fused)["ok"]
    onnx_attn.expand(fused, tmp_path / "plain.onnx")
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".onnx", ".data"]
    assert onnx_attn.verify(apart, tmp_path / "plain.onnx")["ok"]


def test_every_verb_takes_a_model_in_memory(apart: Path, tmp_path: Path) -> None:
    model = ir.load(apart)
    assert onnx_attn.inspect(model)["sites"] == 2
    assert onnx_attn.stats(model)["sites"] == 2
    assert onnx_attn.extract(model, "site-1", tmp_path / "site.onnx")["nodes"] > 0
    assert onnx_attn.inspect(ir.load(tmp_path / "site.onnx"))["sites"] == 1
    assert len(list(find(op("Softmax", var("scores")), model))) == 2
    assert onnx_attn.verify(KINDS["gs.Graph"](DEMO), KINDS["ModelProto"](DEMO))["max_rel"] == 0


def test_weights_whose_file_is_gone(apart: Path, tmp_path: Path) -> None:
    model = ir.load(apart)
    for tensor in tensors(model).values():
        if isinstance(tensor, ir.ExternalTensor):
            tensor.base_dir = tmp_path
    with pytest.raises(onnx_attn.InputError, match=r"weights\.bin', which is missing"):
        onnx_attn.fuse(model)


def test_files_of_one_name_in_two_folders(apart: Path, tmp_path: Path) -> None:
    model = ir.load(apart)
    tensors(model)[sorted(external(model))[0]].base_dir = tmp_path
    with pytest.raises(onnx_attn.InputError, match=r"two files .* 'weights\.bin', .*; save the model"):
        onnx_attn.inspect(model)


def test_weights_that_are_not_there() -> None:
    """As torch's programs have them that were exported without."""

    def nothing() -> Any:
        raise TypeError("these weights are fake; apply the real ones")

    model = ir.load(DEMO)
    value = max(model.graph.initializers.values(), key=lambda value: value.const_value.nbytes)
    tensor = value.const_value
    value.const_value = ir.LazyTensor(nothing, dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)
    with pytest.raises(onnx_attn.InputError, match=r"onnx_ir cannot write the model: these weights are fake.*; "):
        onnx_attn.fuse(model)


def test_more_weights_than_a_message_holds() -> None:
    model = ir.load(SMALLEST)
    huge = ir.LazyTensor(lambda: None, dtype=ir.DataType.FLOAT, shape=ir.Shape([2**15, 2**15]), name="huge")
    model.graph.register_initializer(ir.Value(name="huge", const_value=huge))
    with pytest.raises(onnx_attn.InputError, match=r"more than 2 GB .*; save it with external data"):
        onnx_attn.inspect(model)


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(onnx_attn.OutputError, match="does not exist"):
        onnx_attn.fuse(onnx.load(SMALLEST), tmp_path / "nowhere" / "fused.onnx")


@pytest.mark.live
def test_a_program_of_torch_is_fused_in_the_line_that_exports_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    attention = torch.nn.MultiheadAttention(32, 4, batch_first=True).eval()
    x = torch.randn(2, 16, 32)
    program = torch.onnx.export(attention, (x, x, x), kwargs={"need_weights": False}, dynamo=True, verbose=False)
    wanted, before = program(x, x, x)[0], program.model_proto
    fused = onnx_attn.fuse(program, expect=1).model
    assert isinstance(fused, torch.onnx.ONNXProgram)
    operators = [node.op_type for node in fused.model.graph]
    assert "Softmax" not in operators and any(each.startswith("ScaledDotProductAttention") for each in operators)
    torch.testing.assert_close(fused(x, x, x)[0], wanted)
    fused.save(tmp_path / "fused.onnx")
    assert onnx_attn.verify(program, tmp_path / "fused.onnx")["ok"]
    assert program.model_proto == before
    torch.testing.assert_close(program(x, x, x)[0], wanted)
    kept = {id(tensor) for tensor in tensors(program.model).values()}
    assert any(id(tensor) in kept for tensor in tensors(fused.model).values())
    assert np.allclose(onnx_attn.expand(fused).model(x, x, x)[0].numpy(), wanted.numpy(), atol=1e-5)
