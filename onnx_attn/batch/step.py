"""One node at several batch sizes: what a rule asks of it, and what it changes about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnx_attn.batch.place import FREE, SIZED, Batch, Blocked, Place
from onnx_attn.batch.reading import Reading
from onnx_attn.graph.edit import Writer
from onnx_attn.graph.world import Known, Shape


class Step:
    """A node of the original, with the inputs that it will have and the nodes that will stand before it.

    choice: which reading to take where a rule has several, counted in a circle; it leaves in `choices` how many there are.
    """

    def __init__(self, reading: Reading, node: onnx.NodeProto, choice: int = 0):
        self.reading, self.node = reading, node
        self.inputs = list(node.input)
        self.attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        self.writer = Writer(reading.names, self.label)
        self.choice, self.choices = choice, 1
        self.instead: onnx.NodeProto | None = None
        """Another node that makes the output."""

    @property
    def label(self) -> str:
        return self.node.name or next((name for name in self.node.output if name), self.node.op_type)

    @property
    def changed(self) -> bool:
        return self.instead is not None or self.inputs != list(self.node.input)

    def written(self) -> onnx.NodeProto:
        """The node as it will be."""
        if self.instead is not None:
            return self.instead
        if not self.changed:
            return self.node
        node = onnx.NodeProto()
        node.CopyFrom(self.node)
        del node.input[:]
        node.input.extend(self.inputs)
        return node

    def has(self, position: int) -> bool:
        return position < len(self.inputs) and bool(self.inputs[position])

    def place(self, position: int) -> Place:
        return self.reading.place(self.inputs[position]) if self.has(position) else FREE

    def batch(self, position: int) -> Batch | None:
        place = self.place(position)
        return place if isinstance(place, Batch) else None

    def first(self, position: int = 0) -> Batch:
        """The batch of an operand that has to have one."""
        found = self.batch(position)
        if found is None:
            raise Blocked(f"'{self.inputs[position]}' has no batch while another operand has")
        return found

    def require_free(self, *positions: int) -> None:
        """Operands that all entries share. A number that follows from the batch's size is none, unless nothing of it does."""
        for position in positions:
            if self.has(position) and self.place(position) is not FREE:
                what = "follows from the batch" if self.batch(position) else "follows from the batch's size"
                raise Blocked(f"'{self.inputs[position]}', which all entries share, {what}")

    def require_free_from(self, position: int) -> None:
        self.require_free(*range(position, len(self.inputs)))

    def shapes(self, position: int) -> list[Shape]:
        """One a trial."""
        return self.reading.shapes(self.inputs[position])

    def baked(self, position: int) -> list[Shape]:
        """The shapes at the baked batch, one a world."""
        return self.reading.per_world(self.shapes(position))

    def shape(self, position: int) -> Shape:
        """The shape in the first world at the baked batch."""
        return self.shapes(position)[0]

    def rank(self, position: int) -> int:
        return len(self.shape(position))

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def axis(self, default: int, rank: int | None = None) -> int:
        """The attribute `axis`, counted from the front."""
        return int(self.attribute("axis", default)) % max(1, self.rank(0) if rank is None else rank)

    def numbers(self, position: int, name: str = "") -> list[int] | None:
        """Whole numbers that an input gives, or before it became one an attribute; None if neither does."""
        if name and name in self.attributes:
            return [int(number) for number in self.attributes[name]]
        if not self.has(position):
            return None
        value = self.reading.value(self.inputs[position])
        if value is None:
            raise Blocked(f"'{self.inputs[position]}' is not the same at every batch size, or not known")
        return [int(number) for number in value.reshape(-1)]

    def add(self, op: str, inputs: Sequence[str], hint: str, place: Place, **attributes: Any) -> str:
        """A new node before this one."""
        name: str = self.writer.add(op, inputs, hint, **attributes)
        results = self.reading.infer(self.writer.nodes[-1])
        self.reading.note(name, place, [found[0] if found else None for found in results])
        return name

    def constant(self, numbers: Sequence[int] | np.ndarray) -> str:
        array = np.asarray(numbers, np.int64) if not isinstance(numbers, np.ndarray) else numbers
        name = self.writer.constant(array, "shape")
        tensor = self.writer.initializers[name]
        self.reading.note(name, FREE, [Known(tensor.data_type, array.shape, array)] * len(self.reading.trials))
        return name

    def size(self, factor: int) -> str:
        """`factor` times the batch, as a vector of one number."""
        vector = self.reading.vector()
        return vector if factor == 1 else self.add("Mul", [vector, self.constant([factor])], "size", SIZED)

    def sizes(self, numbers: Sequence[int], axis: int, factor: int) -> str:
        """A vector of sizes with `factor` times the batch at `axis`, and these numbers at all other places."""
        before, after = list(numbers[:axis]), list(numbers[axis + 1 :])
        parts = [self.constant(part) for part in (before,) if part] + [self.size(factor)]
        parts += [self.constant(after)] if after else []
        return parts[0] if len(parts) == 1 else self.add("Concat", parts, "sizes", SIZED, axis=0)

    def works(self, inputs: Sequence[str], place: Batch) -> bool:
        """Whether the node with these inputs gives the batch at this place, whatever its size."""
        node = onnx.NodeProto()
        node.CopyFrom(self.node)
        del node.input[:]
        node.input.extend(inputs)
        try:
            results = self.reading.infer(node)
        except Blocked:
            return False
        shapes = [found[0].shape if found and found[0] is not None else None for found in results]
        if any(shape is None for shape in shapes):
            return False
        made = [shape for shape in shapes if shape is not None]
        before = [world.shape(self.node.output[0]) for world in self.reading.view.worlds]
        same = all(old == new for old, new in zip(before, made, strict=False))
        return same and self.reading.fits(place, made)
