"""Sums of products as they are spelled: what moves, signs, multiplies by tables and adds, from a tensor up to its sources.

A program is read once and run on numbers (`views.numbered`), so that no spelling of a sum of products is a pattern of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.domain import MICROSOFT
from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.views.folding import constant_value, is_fixed
from onnx_attn.views.movement import Step, handed_on, moves, repeats, step_key
from onnx_attn.views.trace import FLOATS, scalar_factor

MOST_ENTRIES = 256
"""Of one program: an embedding takes two dozen."""
MOST_STEPS = 96
"""One behind the other, each a few calls deep here."""
MOST_LOOKED_AT = 24
"""Nodes above a factor that are looked at to tell a table from an activation."""

Mode = Literal["outer", "summand", "inner", "table", "leaf"]
"""What is read: in front of any sum, one side of it, the activation in a product, the table in it, or where it ends."""


@dataclass(frozen=True)
class Entry:
    """One step of a program, on what the entries `operands` give.

    leaf: an activation. table: numbers that are not looked into; `numbers`: as they are stored. move: `step` applied.
    cast: to another floating-point type. scale: times `factor`. join: one behind the other along `axis`.
    times: an activation by a table. sum: with the second times `factor`. apply: Cos or Sin (`name`) of a table.
    rows: rows of a table, which of them is told when the model runs; where an operator (`node`) looks them up, one for each
    token of its x. rotary: the operator, on x, cos and sin.
    """

    kind: Literal["leaf", "table", "move", "cast", "scale", "join", "times", "sum", "apply", "rows", "rotary"]
    operands: tuple[int, ...] = ()
    tensor: gs.Tensor | None = None
    step: Step | None = None
    factor: float = 1.0
    axis: int = 0
    name: str = ""
    numbers: np.ndarray | None = None
    node: gs.Node | None = None


class Program:
    """What one tensor is made of. The last of the entries that `order` gives is the tensor itself."""

    def __init__(self, view: GraphView, tensor: gs.Tensor):
        self.view = view
        self.entries: list[Entry] = []
        self._known: dict[tuple[str, Mode], int] = {}
        self._sums: dict[int, bool] = {}
        self._products: dict[int, bool] = {}
        self._depth = 0
        self.root = self._read(tensor, "outer")

    @property
    def order(self) -> list[int]:
        """The entries that the root needs, each behind its operands."""
        found: dict[int, None] = {}

        def visit(number: int) -> None:
            if number not in found:
                for operand in self.entries[number].operands:
                    visit(operand)
                found[number] = None

        visit(self.root)
        return list(found)

    @property
    def has_sums(self) -> bool:
        return self.holds_sum(self.root)

    @property
    def has_operators(self) -> bool:
        return any(entry.kind == "rotary" for entry in self.entries)

    def holds_sum(self, number: int) -> bool:
        """Whether an entry is made of a sum."""
        if number not in self._sums:
            entry = self.entries[number]
            self._sums[number] = entry.kind in ("sum", "rotary") or any(map(self.holds_sum, entry.operands))
        return self._sums[number]

    def key(self) -> tuple[object, ...]:
        """All that decides what the program does, but for which activations it starts from."""
        order = self.order
        place = {number: position for position, number in enumerate(order)}
        return tuple(self._key(self.entries[number], place) for number in order)

    def _key(self, entry: Entry, place: dict[int, int]) -> tuple[object, ...]:
        details: tuple[object, ...] = (entry.factor, entry.axis, entry.name)
        if entry.step is not None:
            details += step_key(self.view, entry.step)
        if entry.kind == "table" and entry.tensor is not None:
            details += (entry.tensor.name,)
        shapes = self.view.shapes(entry.tensor) if entry.tensor is not None else None
        return (entry.kind, tuple(place[operand] for operand in entry.operands), shapes, *details)

    def _add(self, entry: Entry) -> int:
        self.entries.append(entry)
        return len(self.entries) - 1

    def _read(self, tensor: gs.Tensor, mode: Mode) -> int:
        key = (tensor.name, mode)
        if key not in self._known:
            self._depth += 1
            self._known[key] = self._entry(tensor, mode)
            self._depth -= 1
        return self._known[key]

    def _entry(self, tensor: gs.Tensor, mode: Mode) -> int:
        view, node = self.view, self.view.producer(tensor)
        if mode == "table" and (numbers := _numbers(view, tensor)) is not None:
            return self._add(Entry("table", tensor=tensor, numbers=numbers))
        goes_on = len(self.entries) < MOST_ENTRIES and self._depth < MOST_STEPS
        if node is not None and view.in_main_graph(node) and goes_on:
            found = self._moved(tensor, node, mode)
            if found is None:
                found = self._of_table(tensor, node) if mode == "table" else self._of_activation(tensor, node, mode)
            if found is not None:
                return found
        # One activation is one, wherever it is read.
        key: tuple[str, Mode] = (tensor.name, "table" if mode == "table" else "leaf")
        if key not in self._known:
            self._known[key] = self._add(Entry("table" if mode == "table" else "leaf", tensor=tensor))
        return self._known[key]

    def _moved(self, tensor: gs.Tensor, node: gs.Node, mode: Mode) -> int | None:
        """What leaves the elements what they are, up to their place and one factor."""
        view = self.view
        if node.domain not in STANDARD or view.shapes(tensor) is None:
            return None
        if node.op == "Cast" and {view.elem_type(node.inputs[0]), node.attrs["to"]} <= {*FLOATS}:
            return self._add(Entry("cast", (self._read(node.inputs[0], mode),), tensor))
        if (scalar := scalar_factor(view, node)) is not None:
            return self._add(Entry("scale", (self._read(scalar[0], mode),), tensor, factor=scalar[1]))
        if moves(view, node, tensor):
            return self._add(Entry("move", (self._read(handed_on(view, node), mode),), tensor, Step(node, tensor)))
        if repeats(view, node):
            return self._add(Entry("move", (self._read(node.inputs[0], mode),), tensor, Step(node, tensor)))
        if node.op == "Concat":
            parts = tuple(self._read(each, mode) for each in node.inputs)
            return self._add(Entry("join", parts, tensor, axis=node.attrs["axis"]))
        return None

    def _of_activation(self, tensor: gs.Tensor, node: gs.Node, mode: Mode) -> int | None:
        if mode == "inner":
            return None
        if node.op == "RotaryEmbedding" and node.domain in (*STANDARD, MICROSOFT):
            return self._operator(tensor, node)
        if node.domain not in STANDARD:
            return None
        if node.op == "Mul" and (pair := _with_table(self.view, node)) is not None:
            operands = self._read(pair[0], "inner"), self._read(pair[1], "table")
            return self._add(Entry("times", operands, tensor))
        if node.op in ("Add", "Sub") and mode == "outer":
            sides = tuple(self._read(each, "summand") for each in node.inputs)
            if all(self._is_product(side) for side in sides):
                return self._add(Entry("sum", sides, tensor, factor=1.0 if node.op == "Add" else -1.0))
        return None

    def _operator(self, tensor: gs.Tensor, node: gs.Node) -> int | None:
        """Inputs of the standard operator: x, cos, sin, position_ids; of ONNX Runtime's: x, position_ids, cos, sin."""
        own = node.domain == MICROSOFT
        x, cos, sin = (node.inputs[place] for place in ((0, 2, 3) if own else (0, 1, 2)))
        if self.view.shapes(tensor) is None or any(self.view.shapes(each) is None for each in (cos, sin)):
            return None
        tables = [self._read(table, "table") for table in (cos, sin)]
        if self.view.rank(cos) == 2:
            tables = [self._add(Entry("rows", (table,), x, node=node)) for table in tables]
        operands = self._read(x, "inner"), *tables
        return self._add(Entry("rotary", operands, tensor, node=node, name=repr(sorted(node.attrs.items()))))

    def _is_product(self, number: int) -> bool:
        """Whether a table has multiplied all of what an entry gives."""
        if number not in self._products:
            entry = self.entries[number]
            passes = entry.kind in ("move", "cast", "scale", "join")
            self._products[number] = all(map(self._is_product, entry.operands)) if passes else entry.kind == "times"
        return self._products[number]

    def _of_table(self, tensor: gs.Tensor, node: gs.Node) -> int | None:
        view = self.view
        if node.domain not in STANDARD or view.shapes(tensor) is None:
            return None
        if node.op in ("Cos", "Sin"):
            return self._add(Entry("apply", (self._read(node.inputs[0], "table"),), tensor, name=node.op))
        if view.shapes(node.inputs[0]) is None:
            return None
        if _picks_rows(view, node):
            return self._add(Entry("rows", (self._read(node.inputs[0], "table"),), tensor))
        rank = view.rank(tensor) or 1
        if node.op == "GatherElements" and node.attrs.get("axis", 0) % rank < rank - 1:
            operands = self._read(node.inputs[0], "table"), self._read(node.inputs[1], "table")
            return self._add(Entry("rows", operands, tensor))
        return None


def _numbers(view: GraphView, tensor: gs.Tensor) -> np.ndarray | None:
    """Those of a table that no input decides."""
    value = constant_value(view, tensor) if is_fixed(view, tensor) else None
    return value if value is not None and view.shapes(tensor) is not None else None


def _picks_rows(view: GraphView, node: gs.Node) -> bool:
    """Whether a node takes rows out of a table, whichever they are: channels stay side by side on the last axis."""
    rank = view.rank(node.inputs[0]) or 0
    if node.op == "Gather":
        return rank > 1 and node.attrs.get("axis", 0) % rank < rank - 1
    if node.op != "Slice":
        return False
    axes = view.constant(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3].name else None
    return axes is not None and all(axis % rank < rank - 1 for axis in axes.tolist())


def _with_table(view: GraphView, node: gs.Node) -> tuple[gs.Tensor, gs.Tensor] | None:
    """A product as activation and table: the table is stored, looked up or an angle's sine or cosine; or it is smaller."""
    left, right = node.inputs
    shape = view.shapes(node.outputs[0])
    if shape is None or view.shapes(left) is None or view.shapes(right) is None:
        return None
    known = [_is_table(view, each) for each in (left, right)]
    if known[0] == known[1]:
        if known[0] or (view.shapes(left) == shape) == (view.shapes(right) == shape):
            return None
        known[0] = view.shapes(right) == shape
    x, table = (right, left) if known[0] else (left, right)
    return (x, table) if view.shapes(x) == shape else None


def _is_table(view: GraphView, tensor: gs.Tensor) -> bool:
    for above in _chain(view, tensor):
        node = view.producer(above)
        if is_fixed(view, above) or (node is not None and node.op in ("Cos", "Sin") and node.domain in STANDARD):
            return True
        if node is not None and node.op in ("Gather", "GatherElements") and is_fixed(view, node.inputs[0]):
            return True
    return False


def _chain(view: GraphView, tensor: gs.Tensor) -> Iterator[gs.Tensor]:
    """A tensor and those that it is moved and scaled from."""
    for _ in range(MOST_LOOKED_AT):
        yield tensor
        node = view.producer(tensor)
        if node is None or not view.in_main_graph(node) or node.domain not in STANDARD:
            return
        if (scalar := scalar_factor(view, node)) is not None:
            tensor = scalar[0]
        elif node.op in ("Cast", "Concat", "Slice", "Split") or moves(view, node, tensor) or repeats(view, node):
            tensor = node.inputs[0]
        else:
            return
