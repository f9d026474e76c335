"""What is said of the commonest operators is what onnx's inference says; what it would refuse is not said."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnx_attn.graph import inference
from onnx_attn.graph.common_shapes import constant_said, shape_said
from onnx_attn.graph.inference import Inference
from onnx_attn.graph.place import place_of
from onnx_attn.graph.world import Known, World
from onnx_attn.views.layout import decode

TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.BOOL)
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
BINARY = "Add Sub Mul Div MatMul".split()
UNARY = "Sqrt Erf Tanh Sigmoid Neg Relu Reciprocal Identity Sin Cos Exp Log Abs".split()
OPSETS = (5, 7, 9, 13, 17, 18, 20, 23)


def node_of(op: str, count: int, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, [f"x{number}" for number in range(count)], ["y"], **attributes)


def said(node: onnx.NodeProto, inputs: Sequence[Known | None], opset: int) -> Known | None:
    return shape_said(place_of(node, {}, {}, {"": opset}), inputs, opset)


def asked(node: onnx.NodeProto, inputs: list[Known | None], opset: int) -> list[tuple[int, object]]:
    """What onnx says; nothing of what it refuses."""
    graph = helper.make_graph([node], "g", [], [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "shape_said", lambda *_: None)
        patch.setattr(inference, "constant_said", lambda *_: None)
        patch.setattr(inference, "made_of_values", lambda *_: None)
        outputs = Inference(model).outputs(node, inputs, World({}))
    return [(each.elem_type, each.shape) for each in outputs if each is not None]


def agree(node: onnx.NodeProto, inputs: list[Known | None], opset: int) -> None:
    found = said(node, inputs, opset)
    if found is not None:
        assert asked(node, inputs, opset) == [(found.elem_type, found.shape)], (node.op_type, inputs)


@settings(max_examples=400)
@given(st.sampled_from(BINARY), st.lists(st.tuples(st.sampled_from(TYPES), SHAPES), min_size=2, max_size=2), st.data())
def test_two_operands(op: str, operands: list[tuple[int, tuple[int, ...]]], data: st.DataObject) -> None:
    if data.draw(st.booleans()):  # As two mostly are: of one type, and of shapes that meet.
        operands[1] = (operands[0][0], operands[0][1][data.draw(st.integers(0, 2)) :])
    inputs: list[Known | None] = [Known(elem_type, shape) for elem_type, shape in operands]
    agree(node_of(op, 2), inputs, data.draw(st.sampled_from(OPSETS)))


@settings(max_examples=200)
@given(st.sampled_from(UNARY), st.sampled_from(TYPES), SHAPES, st.sampled_from(OPSETS))
def test_one_operand(op: str, elem_type: int, shape: tuple[int, ...], opset: int) -> None:
    if not onnx.defs.has(op, opset, ""):
        return
    agree(node_of(op, 1), [Known(elem_type, shape)], opset)


@settings(max_examples=200)
@given(SHAPES, st.lists(st.integers(-1, 4), max_size=4), st.booleans())
def test_transposes(shape: tuple[int, ...], perm: list[int], whole: bool) -> None:
    perm = sorted(range(len(shape)), key=lambda axis: perm[axis % len(perm)] if perm else 0) if whole else perm
    agree(node_of("Transpose", 1, **({"perm": perm} if perm else {})), [Known(1, shape)], 18)


@settings(max_examples=600)
@given(SHAPES, st.lists(st.integers(-2, 24), max_size=5), st.sampled_from((None, 0, 1)), st.sampled_from(OPSETS))
def test_reshapes(shape: tuple[int, ...], wanted: list[int], zero: int | None, opset: int) -> None:
    vector = np.asarray(wanted, np.int64)
    node = node_of("Reshape", 2, **({} if zero is None else {"allowzero": zero}))
    agree(node, [Known(1, shape), Known(TensorProto.INT64, vector.shape, vector)], opset)


@pytest.mark.parametrize(
    ("node", "inputs", "shape"),
    [
        (node_of("Add", 2), [Known(1, (2, 1, 4)), Known(1, (3, 1))], (2, 3, 4)),
        (node_of("MatMul", 2), [Known(1, (5, 1, 2, 3)), Known(1, (4, 3, 7))], (5, 4, 2, 7)),
        (node_of("Transpose", 1, perm=[2, 0, 1]), [Known(1, (2, 3, 4))], (4, 2, 3)),
        (node_of("Reshape", 2), [Known(1, (2, 3, 4)), Known(7, (3,), np.asarray([0, -1, 2]))], (2, 6, 2)),
        (node_of("Erf", 1), [Known(10, (2, 3))], (2, 3)),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else None,
)
def test_the_common_case_is_said(node: onnx.NodeProto, inputs: list[Known | None], shape: tuple[int, ...]) -> None:
    found = said(node, inputs, 18)
    assert found is not None and found.shape == shape and inputs[0] is not None
    assert found.elem_type == inputs[0].elem_type
    agree(node, inputs, 18)
    assert said(node, [None, *inputs[1:]], 18) is None, "of what is not known"
    assert said(node, [Known(1, None), *inputs[1:]], 18) is None
    assert said(node, inputs, 6) is None, "which broadcasts in another way"
    node.domain = "example"
    assert said(node, inputs, 18) is None, "an operator of somebody else"


@pytest.mark.parametrize("size", [0, 1, 64, 65])
def test_a_constant_is_what_it_holds(size: int) -> None:
    numbers = np.arange(size, dtype=np.int32)
    for attributes in ({"value": numpy_helper.from_array(numbers)}, {"value_ints": numbers.tolist()}):
        if not size and "value_ints" in attributes:
            continue  # (The helper does not know an empty list's type.)
        node = helper.make_node("Constant", [], ["y"], **attributes)
        found = constant_said(place_of(node, {}, {}, {"": 18}))
        assert found is not None
        assert asked(node, [], 18) == [(found.elem_type, found.shape)]
        assert (found.value is None) == (size > 64)
        if found.value is not None:
            np.testing.assert_array_equal(found.value, numbers)


def test_a_constant_that_holds_no_numbers_is_left_to_onnx() -> None:
    node = helper.make_node("Constant", [], ["y"], value_strings=[b"a"])
    assert constant_said(place_of(node, {}, {}, {"": 18})) is None


@settings(max_examples=300)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_a_view_is_read_along_its_strides_as_its_numbers_say(shape: list[int], data: st.DataObject) -> None:
    positions = np.arange(int(np.prod(shape)), dtype=np.int32)
    index = positions.reshape(shape)
    for _ in range(data.draw(st.integers(0, 4))):
        axis = data.draw(st.integers(0, index.ndim - 1))
        way = data.draw(st.sampled_from(("turn", "cut", "one", "split", "join")))
        if way == "turn":
            index = index.transpose(data.draw(st.permutations(range(index.ndim))))
        elif way == "cut":
            step = data.draw(st.sampled_from((-1, 1, 2)))
            index = index[(slice(None),) * axis + (slice(None, None, step),)]
        elif way == "one" and index.ndim > 1:
            index = index[(slice(None),) * axis + (data.draw(st.integers(0, index.shape[axis] - 1)),)]
        elif way == "split":
            index = index.reshape(*index.shape[:axis], 1, *index.shape[axis:])
        elif index.ndim > 1:
            index = index.reshape(-1, *index.shape[2:])
    assert decode(index, tuple(shape), positions) == decode(index, tuple(shape))
