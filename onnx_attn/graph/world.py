"""What-if worlds: the graph's shapes, and its small values, at concrete sizes.

A dynamic dimension has no number, so nothing that is computed from it can be checked. A world gives every dynamic
dimension of the inputs one, and carries types, shapes and small constant values through the graph, node by node, with
onnx's own shape inference and reference operators. What holds in two worlds whose numbers share no factor holds by
the graph's structure and not by chance; a model without dynamic dimensions needs one world only.

Chosen against one call of `onnx.shape_inference.infer_shapes(data_prop=True)`: that stops at the first Mod,
ConstantOfShape or Where in a shape computation, which TorchScript exports are full of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_attn.graph.slim import SMALL

Shape = tuple[int, ...]


@dataclass(eq=False, slots=True)
class Known:
    """What a world knows of one tensor: element type, shape (None: unknown rank or size) and, if small, its value. Nobody changes
    one. (Not frozen: thousands are made, and a frozen one takes three times as long to make.)"""

    elem_type: int
    shape: Shape | None
    value: np.ndarray | None = None
    _key: tuple[Any, ...] | None = field(default=None, init=False, repr=False)
    _tensor: onnx.TensorProto | None = field(default=None, init=False, repr=False)

    @property
    def key(self) -> tuple[Any, ...]:
        """All that is known, to be looked up by."""
        if self._key is None:
            self._key = (self.elem_type, self.shape, None if self.value is None else self.value.tobytes())
        return self._key

    @property
    def tensor(self) -> onnx.TensorProto | None:
        """The value as onnx takes it."""
        if self._tensor is None and self.value is not None:
            self._tensor = numpy_helper.from_array(self.value)
        return self._tensor


@dataclass
class World:
    """Shapes and small values of every tensor at the sizes `sizes` of the dynamic dimensions.

    failures: nodes that cannot run at these sizes, as far as shapes can tell.
    kept_axes: Reshapes that keep the size of their first axis; of two assignments that work, the one that the exporter
        had in mind keeps more.
    """

    sizes: dict[str, int]
    known: dict[str, Known] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    kept_axes: int = 0

    def shape(self, name: str) -> Shape | None:
        entry = self.known.get(name)
        return entry.shape if entry else None

    def elem_type(self, name: str) -> int:
        entry = self.known.get(name)
        return entry.elem_type if entry else 0

    def value(self, name: str) -> np.ndarray | None:
        entry = self.known.get(name)
        return entry.value if entry else None


def overridable(proto: onnx.ModelProto) -> set[str]:
    """Initializers that are only the defaults of inputs (from IR version 4 on): the caller may give other values."""
    if proto.ir_version < 4:
        return set()
    return {value.name for value in proto.graph.input} & {tensor.name for tensor in proto.graph.initializer}


def input_shape(value: onnx.ValueInfoProto, sizes: dict[str, int]) -> Shape | None:
    """The shape that a graph input (or annotated value) has under `sizes`; None where a dimension has no number."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    shape = []
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        size = dim.dim_value if is_static(dim) else sizes.get(symbol(value.name, axis, dim))
        if size is None:
            return None
        shape.append(size)
    return tuple(shape)


def is_static(dim: onnx.TensorShapeProto.Dimension) -> bool:
    """Whether a dimension has a number. −1, which some exporters write for a size that varies, is none."""
    return dim.HasField("dim_value") and dim.dim_value >= 0


def symbol(name: str, axis: int, dim: onnx.TensorShapeProto.Dimension) -> str:
    """A dynamic dimension's name; unnamed ones are called `input:axis`, so that no two are taken for equal."""
    return dim.dim_param or f"{name}:{axis}"


def common(entries: Sequence[Known]) -> Known | None:
    """What is known of a name in whichever body it is read."""
    first = entries[0]
    if len(entries) == 1:
        return first
    if any((other.elem_type, other.shape) != (first.elem_type, first.shape) for other in entries):
        return None
    values = [other.value for other in entries if other.value is not None]
    same = not values or (len(values) == len(entries) and all(np.array_equal(values[0], value) for value in values))
    return first if same else Known(first.elem_type, first.shape)


def decided(condition: Known | None, results: dict[str, list[Known | None]]) -> Sequence[Known | None]:
    """What an If gives: of the branch that is decided already, or what both branches have in common."""
    first, second = results.get("then_branch", []), results.get("else_branch", [])
    if condition is not None and condition.value is not None and condition.value.size == 1:
        return first if condition.value.item() else second
    pairs = zip(first, second, strict=False)
    return [
        Known(a.elem_type, a.shape) if a and b and (a.elem_type, a.shape) == (b.elem_type, b.shape) else None
        for a, b in pairs
    ]


def stored_value(tensor: onnx.TensorProto, fixed: bool = True) -> Known:
    """What is known of an initializer: its value too, if it is small and nobody can replace it."""
    value = numpy_helper.to_array(tensor) if fixed and math.prod(tensor.dims) <= SMALL else None
    return Known(tensor.data_type, tuple(tensor.dims), value)


def known_of(proto: onnx.TypeProto | None) -> Known | None:
    """A tensor's type, and its shape if every dimension has a number; None of what is no tensor."""
    if proto is None or not proto.HasField("tensor_type"):
        return None
    tensor = proto.tensor_type
    if not tensor.HasField("shape"):
        return Known(tensor.elem_type, None)
    dims = tensor.shape.dim
    shape = tuple([dim.dim_value for dim in dims])
    if min(shape, default=1) > 0 or all(map(is_static, dims)):  # A dimension without a number reads as 0.
        return Known(tensor.elem_type, shape)
    return Known(tensor.elem_type, None)
