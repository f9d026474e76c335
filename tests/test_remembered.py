"""What is remembered of a model is read once, and never taken for another's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import EXPORTS

import onnx_attn
from onnx_attn.graph import inference
from onnx_attn.graph.remember import remembered
from onnx_attn.graph.sizes import worlds_of
from onnx_attn.graph.view import GraphView
from onnx_attn.views import folding
from onnx_attn.views.folding import constant_value


def table_model(table: np.ndarray, op: str = "Transpose", opset: int = 18) -> onnx.ModelProto:
    """y = x + op(table)."""
    nodes = [helper.make_node(op, ["table"], ["made"]), helper.make_node("Add", ["x", "made"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, table.shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(table, "table")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


TABLE = np.arange(9, dtype=np.float32).reshape(3, 3)


def made(view: GraphView) -> np.ndarray:
    value = constant_value(view, view.tensors["made"])
    assert value is not None
    return value


def test_each_object_is_read_once_and_plain_values_apart() -> None:
    asked = []

    @remembered
    def read(view: GraphView, tensor: gs.Tensor, depth: int = 0) -> tuple[str, int]:
        asked.append((tensor.name, depth))
        return tensor.name, depth

    view = GraphView(table_model(TABLE))
    tensor, other = view.tensors["made"], gs.Variable("made")
    assert read(view, tensor) == read(view, tensor) == ("made", 0)
    assert read(view, tensor, depth=1) == ("made", 1)
    assert tensor == other, "equal to graphsurgeon, and another object all the same"
    read(view, other)
    assert asked == [("made", 0), ("made", 1), ("made", 0)]
    read(view.in_worlds(view.worlds), tensor)
    assert len(asked) == 4, "at other sizes nothing is remembered"
    read(GraphView(table_model(TABLE), before=view), tensor)
    assert len(asked) == 5


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folds that are run."""
    found, original = list[str](), folding.Session

    def counted(model: onnx.ModelProto, name: str) -> folding.Session:
        found.append(name)
        return original(model, name)

    monkeypatch.setattr(folding, "Session", counted)
    return found


def test_a_fold_is_run_once_for_all_versions_of_a_model(sessions: list[str]) -> None:
    first = GraphView(table_model(TABLE))
    np.testing.assert_array_equal(made(first), TABLE.T)
    np.testing.assert_array_equal(made(GraphView(table_model(TABLE), before=first)), TABLE.T)
    assert sessions == ["made"]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (table_model(TABLE + 1), TABLE.T + 1),
        (table_model(TABLE, "Neg"), -TABLE),
        (table_model(TABLE, opset=17), TABLE.T),
    ],
    ids=["numbers", "operator", "opset"],
)
def test_a_fold_of_something_else_is_run(other: onnx.ModelProto, expected: np.ndarray, sessions: list[str]) -> None:
    first = GraphView(table_model(TABLE))
    made(first)
    np.testing.assert_array_equal(made(GraphView(other, before=first)), expected)
    assert len(sessions) == 2


def test_a_fold_of_large_weights_is_not_kept(monkeypatch: pytest.MonkeyPatch, sessions: list[str]) -> None:
    monkeypatch.setattr(folding, "MOST_STARTING", 16)
    first = GraphView(table_model(TABLE))
    made(first), made(GraphView(table_model(TABLE), before=first))
    assert len(sessions) == 2


@pytest.mark.parametrize("path", sorted(EXPORTS.glob("*.onnx"))[::3], ids=lambda path: path.stem)
def test_what_is_not_asked_is_what_inference_says(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types, shapes, values, and what cannot run, of every tensor at every size."""
    proto = onnx.load(path)
    quick = worlds_of(proto)
    for short in ("made_of_values", "shape_said", "constant_said"):
        monkeypatch.setattr(inference, short, lambda *_: None)
    for one, other in zip(quick, worlds_of(proto), strict=True):
        assert (one.sizes, one.failures, one.kept_axes) == (other.sizes, other.failures, other.kept_axes)
        assert one.known.keys() == other.known.keys()
        for name, entry in one.known.items():
            same = other.known[name]
            assert (entry.elem_type, entry.shape) == (same.elem_type, same.shape), name
            np.testing.assert_array_equal(entry.value, same.value)


def test_the_table_of_windows_is_computed_once_a_model(sessions: list[str]) -> None:
    """Swin is read again once its blocks are tokens first; its masks are what they were."""
    onnx_attn.fuse(EXPORTS / "swin_t.dynamo.18.static.half.onnx", verify=False, expect=2)
    assert len(sessions) == len(set(sessions))
