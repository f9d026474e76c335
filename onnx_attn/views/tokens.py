"""Which token each element of a tensor belongs to, found by running labels where the model runs numbers.

A token is one place of a map. Movement carries labels along; padding gives elements that belong to none; what works on each
token by itself (norms over its channels, products with weights, activation functions) leaves them. What would join elements of
different tokens is refused, so that a label that arrives is true.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.graph.world import Shape, World
from onnx_attn.views.constants import ignores_numbers
from onnx_attn.views.folding import is_fixed
from onnx_attn.views.linear import weight_tensor
from onnx_attn.views.movement import REARRANGE, Step, dropout_is_inference, permutation, run

NO_TOKEN = -1
"""The label of what belongs to no place of the map: padding, and learned rows beside it."""

_MOVES = REARRANGE | {"Split", "Slice", "Gather", "Expand", "Tile"}
_SAME = frozenset(
    "Cast Identity Dropout QuantizeLinear DequantizeLinear BatchNormalization Neg Abs Sqrt Reciprocal Exp Log Erf Gelu Relu "
    "LeakyRelu HardSigmoid HardSwish Elu Selu Softplus Sigmoid Tanh Clip".split()
)
"""Element by element, or with one number a channel: labels of the first input."""
_MEETS = frozenset("Add Sub Mul Div Pow Max Min Where PRelu".split())
"""Element by element with broadcasting: what meets has to be of one token."""
_OVER_AXES = frozenset(
    "LayerNormalization RMSNormalization SimplifiedLayerNormalization LpNormalization Softmax LogSoftmax".split()
)
_REDUCES = frozenset("ReduceMean ReduceSum ReduceSumSquare ReduceL1 ReduceL2 ReduceMax ReduceMin ReduceProd".split())
Labels = Mapping[str, np.ndarray]


class MixesTokens(ValueError):
    """A node joins elements of different tokens."""


def tokens_above(view: GraphView, node: gs.Node, output: gs.Tensor) -> list[gs.Tensor] | None:
    """The activations whose tokens those of `output` are; None where a node is not known to leave tokens apart."""
    if node.domain not in STANDARD or not view.in_main_graph(node) or view.shapes(output) is None or not node.inputs:
        return None
    if output is not node.outputs[0] and node.op != "Split":
        return None
    found = _read(view, node)
    if found is None or any(view.shapes(tensor) is None for tensor in found):
        return None
    return found


def _read(view: GraphView, node: gs.Node) -> list[gs.Tensor] | None:
    first = [node.inputs[0]]
    if node.op in _MOVES or permutation(node) is not None:
        return first if _known(view, node) else None
    if node.op in _SAME:
        return first if node.op != "Dropout" or dropout_is_inference(view, node) else None
    if node.op in _OVER_AXES:
        return first
    if node.op in _REDUCES:
        return first if reduced_axes(view.worlds[0], node) is not None else None
    if node.op == "Pad":
        return first if _mode(node) == "constant" and all(_pads(world, node) for world in view.worlds) else None
    if node.op in _MEETS:
        return [tensor for tensor in node.inputs if not _is_weight(view, tensor)] or None
    if node.op == "Concat":
        return [tensor for tensor in node.inputs if not _is_weight(view, tensor, by_size=True)] or None
    if node.op in ("MatMul", "Gemm"):
        weight = weight_tensor(view, node.inputs[1])
        plain = weight is not None and view.rank(node.inputs[1]) == 2 and not node.attrs.get("transA", 0)
        return first if plain else None
    return first if node.op == "Conv" and _is_pointwise(view, node) else None


def _is_weight(view: GraphView, tensor: gs.Tensor, by_size: bool = False) -> bool:
    """by_size: the inputs' sizes may have a say, as in zeros that are joined to a map."""
    if view.constant(tensor) is not None or is_fixed(view, tensor):
        return True
    return by_size and ignores_numbers(view, tensor)


def _known(view: GraphView, node: gs.Node) -> bool:
    """Whether every world knows what a movement is told by its further inputs, as far as it is told by them alone."""
    if node.op not in ("Slice", "Gather", "Tile"):
        return True
    return all(
        world.value(tensor.name) is not None for world in view.worlds for tensor in node.inputs[1:] if tensor.name
    )


def _is_pointwise(view: GraphView, node: gs.Node) -> bool:
    """A convolution of one pixel: a product with weights that stands channels first."""
    weights = view.shapes(node.inputs[1])
    if weights is None or weight_tensor(view, node.inputs[1]) is None or math.prod(weights[0][2:]) != 1:
        return False
    return not any(node.attrs.get("pads", ())) and set(node.attrs.get("strides", (1,))) == {1}


def carried(world: World, step: Step, labels: Labels) -> np.ndarray:
    """The labels of a step's output from those of what it reads; inputs without labels are weights, or are left aside."""
    node, shape = step.node, world.shape(step.output.name)
    assert shape is not None
    if node.op in _MEETS:
        return _met([labels[tensor.name] for tensor in node.inputs if tensor.name in labels], shape)
    if node.op == "Concat":
        return _joined(world, node, labels)
    index = labels[node.inputs[0].name]
    if node.op in REARRANGE and permutation(node) is None and node.op != "Transpose":
        return _reshaped(index, shape)
    if node.op in _MOVES or permutation(node) is not None:
        return run(step, index, world)
    if node.op in _SAME:
        return index
    if node.op == "Pad":
        return _padded(world, node, index)
    if node.op in _OVER_AXES:
        last = node.op not in ("LpNormalization", "Softmax", "LogSoftmax")
        axis = node.attrs.get("axis", -1) % index.ndim
        one_along(index, tuple(range(axis, index.ndim)) if last else (axis,))
        return index
    if node.op in _REDUCES:
        return one_along(index, reduced_axes(world, node) or tuple(range(index.ndim))).reshape(shape)
    return np.broadcast_to(one_along(index, (1 if node.op == "Conv" else index.ndim - 1,)), shape)


def bare(index: np.ndarray) -> np.ndarray:
    """Labels with what is spread over an axis there once. Channels are: that a map has many of them costs nothing."""
    return index[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in index.strides)]


def one_along(index: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """The labels with these axes of size 1, along which they have to be the same."""
    along = {axis % index.ndim for axis in axes}
    first = index[tuple(slice(0, 1) if axis in along else slice(None) for axis in range(index.ndim))]
    if not (bare(index) == bare(first)).all():
        raise MixesTokens
    return first


def _met(met: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
    if any(not (bare(met[0]) == bare(each)).all() for each in met[1:]):
        raise MixesTokens
    return np.broadcast_to(met[0] if len(met) == 1 else np.broadcast_arrays(*met)[0], shape)


def _reshaped(index: np.ndarray, shape: Shape) -> np.ndarray:
    if not _spread(index) or shape[-1:] != index.shape[-1:]:
        return index.reshape(shape)
    return np.broadcast_to(index[..., :1].reshape((*shape[:-1], 1)), shape)


def _spread(index: np.ndarray) -> bool:
    """Whether one label stands for the whole of the last axis."""
    return index.ndim > 1 and index.strides[-1] == 0


def _joined(world: World, node: gs.Node, labels: Labels) -> np.ndarray:
    parts = []
    for tensor in node.inputs:
        shape = world.shape(tensor.name)
        if tensor.name not in labels and shape is None:
            raise MixesTokens
        none = np.broadcast_to(np.int32(NO_TOKEN), shape or ())
        parts.append(labels.get(tensor.name, none))
    axis = node.attrs["axis"] % parts[0].ndim
    if axis == parts[0].ndim - 1 or not all(map(_spread, parts)):
        return np.concatenate(parts, axis)
    joined = np.concatenate([part[..., :1] for part in parts], axis)
    return np.broadcast_to(joined, (*joined.shape[:-1], parts[0].shape[-1]))


def _mode(node: gs.Node) -> str:
    mode = node.attrs.get("mode", "constant")
    return mode.decode() if isinstance(mode, bytes) else str(mode)


def _pads(world: World, node: gs.Node) -> list[tuple[int, int]] | None:
    """How much each axis gets in front and behind; less than nothing cuts.

    Source: onnx operator specification: begins, then ends; from opset 18 on only of `axes`, if these are given.
    """
    shape = world.shape(node.inputs[0].name)
    value = world.value(node.inputs[1].name) if len(node.inputs) > 1 else np.asarray(node.attrs.get("pads", ()))
    if shape is None or value is None or value.size % 2 or not value.size:
        return None
    axes: Sequence[int] = range(len(shape))
    if len(node.inputs) > 3 and node.inputs[3].name:
        given = world.value(node.inputs[3].name)
        if given is None:
            return None
        axes = [int(axis) % len(shape) for axis in given]
    count = value.size // 2
    pads = [(0, 0)] * len(shape)
    for place, axis in enumerate(axes):
        pads[axis] = (int(value[place]), int(value[count + place]))
    return pads


def _padded(world: World, node: gs.Node, index: np.ndarray) -> np.ndarray:
    pads = _pads(world, node)
    assert pads is not None
    cut = tuple(slice(max(-a, 0), size - max(-b, 0)) for size, (a, b) in zip(index.shape, pads, strict=True))
    index, wider = index[cut], [(max(a, 0), max(b, 0)) for a, b in pads]
    thin = _spread(index) and wider[-1] == (0, 0)
    found = np.pad(index[..., :1] if thin else index, wider, constant_values=NO_TOKEN)
    return np.broadcast_to(found, (*found.shape[:-1], index.shape[-1])) if thin else found


def reduced_axes(world: World, node: gs.Node) -> tuple[int, ...] | None:
    """The axes that a Reduce node runs over; none stands for all of them, and None for what a world does not know and for other
    nodes."""
    if node.op not in _REDUCES:
        return None
    if len(node.inputs) > 1 and node.inputs[1].name:
        given = world.value(node.inputs[1].name)
        return None if given is None else tuple(int(axis) for axis in given.reshape(-1))
    return tuple(node.attrs.get("axes", ()))
