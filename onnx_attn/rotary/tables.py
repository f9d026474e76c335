"""Tables of cosines and sines as the standard operator reads them: `(B, S, dim/2)`, or rows and positions.

Tables that are the same for all entries of a batch are repeated; where their numbers are stored, they are looked up at the same
positions by all, which moves fewer bytes (two blocks of Llama, batch 8, TensorRT for RTX 1.7.1: 162.2 MB and not 163.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from onnx_attn.graph.edit import Names, Splice, Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.graph.world import Shape
from onnx_attn.rotary.piece import Piece, Table, made_at
from onnx_attn.views.products import Entry


class CannotSay(Exception):
    """The operator cannot be written for this piece."""


@dataclass(frozen=True)
class Tables:
    """inputs: cos, sin, and positions where rows are looked up. splice: what makes them, once for all that read them."""

    inputs: tuple[str, ...]
    splice: Splice
    initializers: tuple[onnx.TensorProto, ...]


class TableWriter:
    """Writes the tables of all pieces of a model, each once: layers share theirs."""

    def __init__(self, view: GraphView, names: Names):
        self.view, self.names = view, names
        self._written: dict[tuple[object, ...], Tables] = {}

    def tables(self, piece: Piece) -> Tables:
        """Raises CannotSay."""
        place, view = piece.place, self.view
        names = tuple(entry.tensor.name for entry, _ in piece.tables if entry.tensor is not None)
        shapes = view.shapes(piece.made) or ()
        batch = tuple(shape[0] for shape in shapes)
        doubled = (place.cos.doubled, place.sin.doubled)
        key = (names, doubled, place.kind, place.dim, place.axes, batch, view.elem_type(piece.made))
        if key not in self._written:
            self._written[key] = _Written(view, Writer(self.names, "rotary"), piece).tables()
        return self._written[key]


class _Written:
    def __init__(self, view: GraphView, writer: Writer, piece: Piece):
        self.view, self.writer, self.piece = view, writer, piece
        self.elem_type = view.elem_type(piece.made)
        shapes = view.shapes(piece.made)
        assert shapes is not None
        self.batch = tuple(shape[0] for shape in shapes)
        self.sequence_axis = 2 if piece.place.axes == "heads" else 1
        self.length = tuple(shape[self.sequence_axis] for shape in shapes)

    def tables(self) -> Tables:
        inputs = self._stored() or [self._computed(entry, table) for entry, table in self.piece.tables]
        splice = Splice(made_at(self.view, self.piece), tuple(self.writer.nodes), ())
        return Tables(tuple(inputs), splice, tuple(self.writer.initializers.values()))

    def _stored(self) -> list[str]:
        """Tables whose numbers are known; none where they are not."""
        if any(entry.numbers is None for entry, _ in self.piece.tables) or len(set(self.length)) > 1:
            return []
        stored = [self._numbers(entry, table) for entry, table in self.piece.tables]
        if all(numbers.shape[0] == 1 for numbers in stored) and set(self.batch) != {1}:
            rows = [self.writer.constant(numbers[0], "rotary_table") for numbers in stored]
            return [*rows, self._positions()]
        return [self.writer.constant(numbers, "rotary_table") for numbers in stored]

    def _numbers(self, entry: Entry, table: Table) -> np.ndarray:
        """`(B or 1, S, dim/2)`, in the type in which the model multiplies."""
        assert entry.numbers is not None
        numbers, place = entry.numbers.reshape(-1, self.length[0], entry.numbers.shape[-1]), self.piece.place
        if table.doubled:
            numbers = numbers[..., 0::2] if place.kind == "interleaved" else numbers[..., : place.dim // 2]
        if (numbers == numbers[:1]).all():  # Of one length each entry of the batch may have its own, or all the same.
            numbers = numbers[:1]
        return np.ascontiguousarray(numbers).astype(helper.tensor_dtype_to_np_dtype(self.elem_type))

    def _positions(self) -> str:
        """0, 1, … for each entry of the batch."""
        row = np.arange(self.length[0])[None]
        if len(set(self.batch)) == 1:
            return self.writer.constant(np.repeat(row, self.batch[0], 0), "positions")
        sizes = self.writer.add("Concat", [self._batch(), self.writer.shape(1)], "positions_shape", axis=0)
        return str(self.writer.add("Expand", [self.writer.constant(row, "positions"), sizes], "positions"))

    def _batch(self) -> str:
        return str(self.writer.add("Shape", [self.piece.source.name], "batch", start=0, end=1))

    def _computed(self, entry: Entry, table: Table) -> str:
        """In three axes, cut in half and repeated over the batch, as far as that is needed."""
        add, tensor, place = self.writer.add, entry.tensor, self.piece.place
        assert tensor is not None
        shapes = self.view.shapes(tensor)
        assert shapes is not None
        name = self._in_three_axes(tensor, shapes)
        if table.doubled:
            end, step = (place.dim, 2) if place.kind == "interleaved" else (place.dim // 2, 1)
            bounds = [self.writer.shape(0), self.writer.shape(end), self.writer.shape(-1), self.writer.shape(step)]
            name = add("Slice", [name, *bounds], "rotary_half")
        if self.view.elem_type(tensor) != self.elem_type:
            name = add("Cast", [name], "rotary_typed", to=self.elem_type)
        alone = all(math.prod(shape[:-1]) == length for shape, length in zip(shapes, self.length, strict=True))
        if not alone or set(self.batch) == {1}:
            return name
        if len(set(self.batch)) == 1:
            return str(add("Expand", [name, self.writer.shape(self.batch[0], 1, 1)], "rotary_tables"))
        sizes = add("Concat", [self._batch(), self.writer.shape(1, 1)], "batch_sizes", axis=0)
        return str(add("Expand", [name, sizes], "rotary_tables"))

    def _in_three_axes(self, tensor: gs.Tensor, shapes: tuple[Shape, ...]) -> str:
        """`(B or 1, S, C)` of what has an axis of heads beside, or none of the batch."""
        rank = len(shapes[0])
        if rank == 2:
            return str(self.writer.add("Unsqueeze", [tensor.name, self.writer.shape(0)], "rotary_table"))
        if rank == 3 and all(shape[1] == length for shape, length in zip(shapes, self.length, strict=True)):
            return str(tensor.name)
        heads = 3 - self.sequence_axis
        if rank != 4 or any(shape[heads] != 1 for shape in shapes):
            raise CannotSay("the tables have other axes")
        return str(self.writer.add("Squeeze", [tensor.name, self.writer.shape(heads)], "rotary_table"))
