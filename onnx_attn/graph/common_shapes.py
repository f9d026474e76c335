"""Types and shapes that the commonest operators make, without asking onnx's inference.

Two of three nodes of an exported transformer are of these, and to ask takes ten times as long as to say: node, types and values
go there as bytes. Only what the operator specification says in one line is said here; of whatever is out of the ordinary (types
that differ, a broadcast that fails, a reshape of nothing) onnx is asked as of all other operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_attn.graph.place import Place
from onnx_attn.graph.slim import SMALL
from onnx_attn.graph.world import Known, Shape

BROADCAST_OPSET = 7
"""From which on elementwise operators broadcast as numpy does, and the others here read as they do today."""

_COMPUTED = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE})
"""The types that all of them take at every opset; onnx's inference refuses what an operator does not take."""
_MOVED = _COMPUTED | {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}

_CONSTANT_TYPES = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
"""Constant's attributes that hold numbers, and the types that they stand for."""


def shape_said(place: Place, inputs: Sequence[Known | None], opset: int) -> Known | None:
    """The type and shape of a node's only result; None where onnx is to be asked. opset: of the standard's domain."""
    read = _READERS.get(place.node.op_type)
    if read is None or place.domain != "" or opset < BROADCAST_OPSET or len(place.outputs) != 1:
        return None
    known = [entry for entry in inputs if entry is not None and entry.shape is not None]
    if len(known) != len(place.inputs) or not known:
        return None
    elem_type = known[0].elem_type
    if elem_type not in (_MOVED if read in (_transpose, _reshape) else _COMPUTED):
        return None
    shape = read(place.node, known)
    return None if shape is None else Known(elem_type, shape)


def constant_said(place: Place) -> Known | None:
    """What a Constant node holds: its numbers too, if they are few. None of another node, and of what is no tensor of numbers."""
    node = place.node
    if node.op_type != "Constant" or place.domain != "" or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name in _CONSTANT_TYPES:
        array = np.asarray(helper.get_attribute_value(attribute), _CONSTANT_TYPES[attribute.name])
        elem_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        return Known(elem_type, array.shape, array if array.size <= SMALL else None)
    if attribute.name != "value" or not attribute.t.data_type:
        return None
    shape = tuple(attribute.t.dims)
    few = math.prod(shape) <= SMALL
    return Known(attribute.t.data_type, shape, numpy_helper.to_array(attribute.t) if few else None)


def _elementwise(node: onnx.NodeProto, inputs: Sequence[Known]) -> Shape | None:
    """Source: the specification's multidirectional broadcasting."""
    first = inputs[0]
    assert first.shape is not None
    if node.attribute or any(other.elem_type != first.elem_type for other in inputs):
        return None
    if all(other.shape == first.shape for other in inputs):
        return first.shape
    return _broadcast([other.shape or () for other in inputs])


def _matmul(node: onnx.NodeProto, inputs: Sequence[Known]) -> Shape | None:
    a, b = inputs[0].shape or (), inputs[1].shape or ()
    if inputs[0].elem_type != inputs[1].elem_type or len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
        return None
    leading = _broadcast([a[:-2], b[:-2]])
    return None if leading is None else (*leading, a[-2], b[-1])


def _transpose(node: onnx.NodeProto, inputs: Sequence[Known]) -> Shape | None:
    shape = inputs[0].shape or ()
    perm = list(node.attribute[0].ints) if len(node.attribute) == 1 else []
    return tuple([shape[axis] for axis in perm]) if sorted(perm) == list(range(len(shape))) else None


def _reshape(node: onnx.NodeProto, inputs: Sequence[Known]) -> Shape | None:
    """Of what has elements: 0 stands for the size that is there, one −1 for what is left."""
    before, asked = inputs[0].shape or (), inputs[1].value
    if asked is None or asked.ndim != 1 or 0 in before or node.attribute:
        return None
    shape = asked.tolist()
    if len(shape) > len(before) and 0 in shape[len(before) :]:
        return None
    shape = [size or before[axis] for axis, size in enumerate(shape)]
    if min(shape, default=1) < -1 or shape.count(-1) > 1:
        return None
    if -1 in shape:
        left, rest = divmod(math.prod(before), -math.prod(shape))
        if rest:
            return None
        shape[shape.index(-1)] = left
    return tuple(shape)


def _broadcast(shapes: Sequence[Shape]) -> Shape | None:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        return None


_READERS: dict[str, Callable[[onnx.NodeProto, Sequence[Known]], Shape | None]] = {
    **dict.fromkeys("Add Sub Mul Div".split(), _elementwise),
    **dict.fromkeys("Sqrt Erf Tanh Sigmoid Neg Relu Reciprocal Identity Sin Cos Exp Log Abs".split(), _elementwise),
    "MatMul": _matmul,
    "Transpose": _transpose,
    "Reshape": _reshape,
}
