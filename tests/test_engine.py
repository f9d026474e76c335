"""Reading the compiler's log, and the compiler itself on a handful of nodes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from onnx_attn.engine import compile as compiling
from onnx_attn.engine.compile import compile_model
from onnx_attn.engine.kernels import Engine, Kernel, TensorInfo
from onnx_attn.engine.log import parse_layers
from onnx_attn.errors import InputError, OnnxAttnError

_LAYOUT = "Strides: [1], StrideOrder: [0], Datatype: {}, Format: (Arbitrary) Format with stride order = [1,2,0]"
_HALF, _FLOAT = _LAYOUT.format("Half"), _LAYOUT.format("Float")

RECORDED = f"""Layers:
Name: __myl_FcAdd_myl0_3, LayerType: runtime_fusion, Inputs: [ {{ Name: x, Dimensions: [17,96], {_HALF} }}], \
Constants: [ {{ Name: __mye17268_reshape_myl0, Dimensions: [1,288], {_HALF} }}, \
{{ Name: alpha, Dimensions: [1], {_FLOAT} }}], \
Outputs: [ {{ Name: y, Dimensions: [17,288], {_HALF} }}], \
TacticName: , StreamId: 0, Metadata: [ONNX Layer: node_MatMul_11]\x1f[ONNX Layer: node_linear]
Name: __mye_wait_0, LayerType: wait, Inputs: [], Outputs: [], TacticName: , StreamId: 1, Metadata:
Name: _gemm_mha_v2_myl0_5, LayerType: kgen, Inputs: [ {{ Name: q, Dimensions: [4,17,24], {_HALF} }}, \
{{ Name: k, Dimensions: [4,24,17], {_HALF} }}, {{ Name: v, Dimensions: [4,17,24], {_HALF} }}], Constants: [], \
Outputs: [ {{ Name: o, Dimensions: [4,17,24], {_HALF} }}], TacticName: _gemm_mha_v2_0x38fa868b27dcbe9f, StreamId: 0, \
Metadata: [ONNX Layer: fSoftmax | layer0/attn (SDPA)]\x1f[ONNX Layer: odd] name]\x1f[ONNX Layer: node_Softmax_84]
Name: __mye_signal_0, LayerType: signal, Inputs: [], Outputs: [], TacticName: , StreamId: 1, Metadata:
Name: __myl_Soft_myl0_6, LayerType: kgen, Inputs: [ {{ Name: o, Dimensions: [4,17], {_FLOAT} }}], Constants: [], \
Outputs: [ {{ Name: out, Dimensions: [4,17], {_FLOAT} }}], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: classes]

I/O Tensors:
 Name: x, IOMode: Input, DataType: Half, Dimensions: [17,96]
"""
"""Lines of the log of TensorRT for RTX 1.7.1 for a small ViT, trimmed, with two stream events put between."""


def recorded() -> Engine:
    return Engine("tensorrt_rtx 1.7.1", 89, True, parse_layers(RECORDED), ())


def test_stream_events_are_no_kernels() -> None:
    assert [kernel.name for kernel in recorded().kernels] == [
        "__myl_FcAdd_myl0_3",
        "_gemm_mha_v2_myl0_5",
        "__myl_Soft_myl0_6",
    ]


def test_a_kernel_tells_its_tensors_and_its_nodes() -> None:
    first = recorded().kernels[0]
    assert first.inputs == (TensorInfo("x", (17, 96), "Half"),)
    assert first.outputs == (TensorInfo("y", (17, 288), "Half"),)
    assert [constant.dims for constant in first.constants] == [(1, 288), (1,)]
    assert first.onnx_layers == ("node_MatMul_11", "node_linear")


def test_moved_bytes_are_inputs_weights_and_outputs() -> None:
    linear = 2 * (17 * 96 + 288 + 17 * 288) + 4
    attention = 2 * 4 * (4 * 17 * 24)
    assert recorded().moved_bytes == linear + attention + 2 * 4 * (4 * 17)


def test_moved_bytes_are_unknown_where_a_dimension_varies() -> None:
    kernel = Kernel("k", "kgen", (TensorInfo("x", (-1, 4), "Half"),), (TensorInfo("y", (4,), "Half"),), ())
    assert Engine("c", 89, True, (kernel,), ()).moved_bytes is None


@pytest.mark.parametrize("site", ["node_Softmax_84", "layer0/attn", "odd] name"])
def test_a_site_lands_by_its_own_name_or_as_the_calling_node(site: str) -> None:
    assert recorded().landed(site)


@pytest.mark.parametrize("site", ["classes", "layer0", "attn", "fSoftmax", "node_Softmax_8", "node_linear", ""])
def test_a_site_on_an_ordinary_kernel_or_by_part_of_a_name_has_not_landed(site: str) -> None:
    assert not recorded().landed(site)


def test_a_line_of_another_form_is_not_passed_over() -> None:
    with pytest.raises(ValueError, match="not a line about a kernel"):
        parse_layers("Layers:\nName: a, LayerType: kgen, Something: else")


def test_shapes_that_an_engine_waits_for_are_copied_by_a_step_and_waited_for_by_none() -> None:
    """Recorded with 1.7.1: a static cache of TorchScript's, whose shape is made by ScatterElements."""
    copied, told = "DeviceToShapeHost", "TacticValue: 0x0000000000000000, StreamId: 0, Metadata: "
    shape = "{ Name: s, Location: Device, Dimensions: [4], Datatype: Int64, Format: Format not available due to dynamic shapes }"
    (kernel,) = parse_layers(
        f"Layers:\nName: [trainStation1], LayerType: TrainStation, Inputs: [], Outputs: [], {told}\n"
        f"Name: s[DevicetoShapeHostCopy], LayerType: {copied}, Inputs: [ {shape}], Outputs: [], {told}"
    )
    assert (kernel.layer_type, kernel.inputs, kernel.outputs) == (copied, (TensorInfo("s", (4,), "Int64"),), ())


def test_a_missing_compiler_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiling.util, "find_spec", lambda name: None)
    with pytest.raises(OnnxAttnError, match=r"pip install 'onnx-attn\[tensorrt\]'"):
        compile_model(tmp_path / "any.onnx")


def attention(path: Path, element: int, batch: int | str = 1) -> Path:
    """softmax(q·k)·v as three named nodes on four heads of 24 and 17 tokens."""
    shapes = {"q": [batch, 4, 17, 24], "k": [batch, 4, 24, 17], "v": [batch, 4, 17, 24], "o": [batch, 4, 17, 24]}
    q, k, v, o = (helper.make_tensor_value_info(name, element, shape) for name, shape in shapes.items())
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["s"], "scores"),
        helper.make_node("Softmax", ["s"], ["p"], "softmax", axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["o"], "weigh"),
    ]
    graph = helper.make_graph(nodes, "attention", [q, k, v], [o])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_half_precision_lands(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    engine = compile_model(attention(tmp_path / "half.onnx", TensorProto.FLOAT16))
    assert engine.built and not engine.errors
    assert engine.compiler.startswith("tensorrt_rtx ")
    assert engine.landed("softmax") and len(engine.attention_kernels) == 1
    assert engine.moved_bytes and engine.moved_bytes >= 4 * 2 * 4 * 17 * 24


def test_single_precision_builds_without_landing(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    engine = compile_model(attention(tmp_path / "single.onnx", TensorProto.FLOAT))
    assert engine.built and engine.kernels
    assert not engine.landed("softmax") and not engine.attention_kernels
    found = engine.kernel_of("softmax")
    assert found is not None and not found.is_attention


def test_a_varying_input_needs_its_shapes(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    path = attention(tmp_path / "varying.onnx", TensorProto.FLOAT16, "batch")
    without = compile_model(path)
    assert not without.built and "'q' varies" in without.errors[0]
    shapes = {name: tuple((batch, 4, 17, 24) for batch in (1, 2, 8)) for name in "qv"}
    shapes["k"] = tuple((batch, 4, 24, 17) for batch in (1, 2, 8))
    engine = compile_model(path, shapes=shapes)  # type: ignore[arg-type]
    assert engine.built and engine.landed("softmax")


def test_a_broken_model_comes_back_with_errors(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nonsense")
    engine = compile_model(path)
    assert not engine.built and engine.kernels == () and engine.errors


def test_no_file_is_the_callers_error(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(InputError, match="no such file"):
        compile_model(tmp_path / "none.onnx")


def test_a_crash_of_the_compiler_is_told(tmp_path: Path) -> None:
    """`Attention(x, x, x)` straight from one input kills the compiler, where it does not build."""
    pytest.importorskip("tensorrt_rtx")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 4, 17, 24]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Attention", ["x", "x", "x"], ["y"], "self")], "g", [x], [y])
    path = tmp_path / "crash.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    engine = compile_model(path)
    assert engine.built or "crashed with signal" in engine.errors[0]


def test_a_time_limit_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    engine = compile_model(attention(tmp_path / "slow.onnx", TensorProto.FLOAT16), timeout=0.01)
    assert not engine.built and "stopped after" in engine.errors[0]
