"""One node of ONNX Runtime's own operators, to be said in plain nodes: its inputs, what is known of them, and a writer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import called
from onnx_attn.graph.world import Known, Shape


class NotSpelled(ValueError):
    """What the node does is not said in plain nodes; the text says what it is about."""


class ContradictionError(ValueError):
    """The sizes of the inputs do not fit together."""


@dataclass(frozen=True)
class Call:
    """A node to spell, and where to.

    known: of each input what every world knows of it; None for one that is missing or unknown.
    opset: of the standard operators that it is spelled in, 13 or later.
    """

    writer: Writer
    node: onnx.NodeProto
    known: Sequence[tuple[Known, ...] | None]
    opset: int

    @cached_property
    def attributes(self) -> dict[str, Any]:
        return {each.name: helper.get_attribute_value(each) for each in self.node.attribute}

    @property
    def name(self) -> str:
        """What the node that it becomes is called."""
        return called(self.node)

    def attribute(self, name: str, default: Any) -> Any:
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def input(self, place: int) -> str:
        """The name of an input; "" where there is none."""
        return self.node.input[place] if place < len(self.node.input) else ""

    def needed(self, place: int, what: str) -> str:
        name = self.input(place)
        if not name:
            raise NotSpelled(f"without {what}")
        return name

    def output(self, place: int) -> str:
        return self.node.output[place] if place < len(self.node.output) else ""

    def shapes(self, place: int) -> tuple[Shape, ...] | None:
        """Of an input, in every world."""
        entries = self.known[place] if place < len(self.known) else None
        shapes = [each.shape for each in entries or ()]
        return tuple(shape for shape in shapes if shape is not None) if shapes and None not in shapes else None

    def rank(self, place: int) -> int:
        shapes = self.shapes(place)
        if shapes is None:
            raise NotSpelled(f"the shape of '{self.input(place)}' is not known")
        return len(shapes[0])

    def size(self, place: int, axis: int) -> int | None:
        """Of one axis of an input, where it does not vary."""
        sizes = {shape[axis] for shape in self.shapes(place) or ()}
        return sizes.pop() if len(sizes) == 1 else None

    def elem_type(self, place: int) -> int:
        entries = self.known[place] if place < len(self.known) else None
        if not entries:
            raise NotSpelled(f"the type of '{self.input(place)}' is not known")
        return entries[0].elem_type

    @property
    def float_type(self) -> int:
        """The type that the node computes in: that of its first input of floats."""
        types = [entries[0].elem_type for entries in self.known if entries]
        found = next((each for each in types if each in FLOATING), None)
        if found is None:
            raise NotSpelled("the type that it computes in is not known")
        return found

    def value(self, place: int) -> np.ndarray | None:
        """Of an input that is the same small constant in every world."""
        entries = self.known[place] if place < len(self.known) else None
        values = [each.value for each in entries or () if each.value is not None]
        same = values and len(values) == len(entries or ()) and all(np.array_equal(each, values[0]) for each in values)
        return values[0] if same else None

    # The nodes that are written, in the order that reads like the formula.

    def op(self, op: str, *inputs: str, hint: str = "", output: str = "", name: str | None = None, **attrs: Any) -> str:
        made: str = self.writer.add(op, inputs, hint or op.lower(), output=output or None, name=name, attributes=attrs)
        return made

    def last(self, op: str, *inputs: str, place: int = 0, **attrs: Any) -> str:
        """The node that makes an output of the original, under its name."""
        return self.op(op, *inputs, output=self.output(place), name=self.name if place == 0 else None, **attrs)

    def split(self, name: str, sizes: Sequence[int], axis: int, hint: str) -> list[str]:
        made: list[str] = self.writer.add(
            "Split", [name, self.ints(*sizes)], hint, outputs=len(sizes), attributes={"axis": axis}
        )
        return made

    def ints(self, *numbers: int) -> str:
        return self.writer.shape(*numbers)

    def number(self, number: float, elem_type: int) -> str:
        """A scalar of this type; one beyond it is its last finite one."""
        dtype = helper.tensor_dtype_to_np_dtype(elem_type)
        if elem_type in FLOATING:
            limits = ml_dtypes.finfo(dtype)
            number = min(max(number, float(limits.min)), float(limits.max))
        return self.writer.constant(np.asarray(number, dtype), "number")

    def reshape(self, name: str, *dims: int, hint: str = "reshaped", output: str = "") -> str:
        return self.op("Reshape", name, self.ints(*dims), hint=hint, output=output)

    def turn(self, name: str, *perm: int, hint: str = "turned", output: str = "") -> str:
        return self.op("Transpose", name, hint=hint, output=output, perm=list(perm))

    def unsqueeze(self, name: str, *axes: int) -> str:
        return self.op("Unsqueeze", name, self.ints(*axes), hint="unsqueezed")

    def length(self, name: str, axis: int) -> str:
        """The size of one axis as a vector of one element."""
        if self.opset >= 15:
            return self.op("Shape", name, hint="length", start=axis, end=axis + 1)
        return self.op("Gather", self.op("Shape", name), self.ints(axis), hint="length", axis=0)

    def arange(self, count: str) -> str:
        """0, 1, … as many as a vector of one element says, int64."""
        zero, one = (self.writer.constant(np.asarray(number, np.int64), "number") for number in (0, 1))
        return self.op("Range", zero, self.op("Squeeze", count, self.ints(0)), one, hint="range")


FLOATING = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE)
"""The types that are computed in."""

Spell = Callable[[Call], None]
"""Writes the plain nodes of a call. Raises NotSpelled, and then what was written is of no use."""
