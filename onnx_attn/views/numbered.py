"""A program (`views.products`) run on numbers that stand for elements: which elements each element of the result is made of.

What comes out are terms: element by element, the number of the activation's element, that of the table's, and the factor.
Elements of tables that are known to be equal have one number: those of equal value where a table is stored, those that are moved
from one element where it is computed, and those of one row where rows are looked up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from onnx_attn.graph.world import Shape, World
from onnx_attn.views.movement import run
from onnx_attn.views.products import Entry, Program
from onnx_attn.views.rotated import rotated_terms
from onnx_attn.views.terms import (
    NOTHING,
    CannotRun,
    Term,
    everywhere,
    is_one,
    joined,
    only,
    product,
    same_along_last,
    spread,
)

MOST_ELEMENTS = 2**24
"""Of one tensor: what is larger is not looked into."""


@dataclass(frozen=True)
class Space:
    """The numbers of one table, from `first` on. values: one row for each, where they are stored: the values that it stands for
    in the rows of what is looked up. functions: what was applied to it."""

    first: int
    size: int
    values: np.ndarray | None = None
    functions: frozenset[str] = frozenset()

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """The values that numbers `(rows, D)` stand for, `(rows, D)`: of the first row in every row that is looked up."""
        assert self.values is not None
        if self.values.shape[1] == 1:
            return self.values[numbers - self.first, 0]
        return self.values[(numbers[0] - self.first) % len(self.values)].T


@dataclass
class Numbers:
    """Terms of a program's result, in one world. kept: of entries that were asked for. leaves: the activations' first numbers,
    by entry."""

    terms: list[Term] = field(default_factory=list)
    kept: dict[int, list[Term]] = field(default_factory=dict)
    leaves: dict[int, int] = field(default_factory=dict)
    spaces: list[Space] = field(default_factory=list)

    def spaces_of(self, numbers: np.ndarray) -> list[Space]:
        """Those that some of the numbers are of."""
        return [space for space in self.spaces if _holds(space, numbers)]

    def leaves_of(self, numbers: np.ndarray) -> set[int]:
        """The activations that elements are of, by their place among all."""
        starts = np.sort(list(self.leaves.values()))
        return set(np.unique(np.searchsorted(starts, numbers, "right")).tolist())


def run_program(program: Program, world: World, keep: Set[int] = frozenset()) -> Numbers:
    """Raises ValueError where it cannot be run at the world's sizes. keep: entries whose terms are wanted too."""
    runner = _Runner(program, world)
    order = program.order
    last = {operand: number for number in order for operand in program.entries[number].operands}
    for number in order:
        entry = program.entries[number]
        runner.made[number] = runner.run(number, entry)
        for operand in set(entry.operands):
            if last[operand] == number and operand not in keep:
                del runner.made[operand]
    runner.found.terms = runner.made[program.root]
    runner.found.kept = {number: runner.made[number] for number in order if number in keep}
    return runner.found


class _Runner:
    def __init__(self, program: Program, world: World):
        self.program, self.world = program, world
        self.made: dict[int, list[Term]] = {}
        self.found = Numbers()
        self._next = 0
        self._next_space = 0

    def run(self, number: int, entry: Entry) -> list[Term]:
        shape = self._shape(entry) if entry.kind not in ("leaf", "table") or entry.tensor is not None else ()
        operands = [self.made[operand] for operand in entry.operands]
        if entry.kind == "leaf":
            return [self._leaf(number, shape)]
        if entry.kind == "table":
            return [self._table(entry, shape)]
        if entry.kind == "move":
            return [self._moved(entry, term) for term in operands[0]]
        if entry.kind == "cast":
            return operands[0]
        if entry.kind == "scale":
            return [Term(term.x, term.table, term.factor * np.float32(entry.factor)) for term in operands[0]]
        if entry.kind == "join":
            return joined(operands, entry.axis)
        if entry.kind == "sum":
            second = [Term(term.x, term.table, term.factor * np.float32(entry.factor)) for term in operands[1]]
            return [spread(term, shape) for term in (*operands[0], *second)]
        if entry.kind == "times":
            return [product(term, only(operands[1]), shape) for term in operands[0]]
        if entry.kind == "apply":
            return [self._applied(entry.name, only(operands[0]))]
        if entry.kind == "rows":
            return [self._rows(operands, _row_shape(entry, operands, shape))]
        return self._rotated(entry, operands, shape)

    def _shape(self, entry: Entry) -> Shape:
        shape = self.world.shape(entry.tensor.name) if entry.tensor is not None else None
        if shape is None or math.prod(shape) > MOST_ELEMENTS:
            raise CannotRun("a tensor is of unknown shape, or too large")
        return shape

    def _leaf(self, number: int, shape: Shape) -> Term:
        first, self._next = self._next, self._next + math.prod(shape)
        self.found.leaves[number] = first
        index = np.arange(first, self._next, dtype=np.int32).reshape(shape)
        return Term(index, everywhere(NOTHING, shape), everywhere(1.0, shape))

    def _table(self, entry: Entry, shape: Shape) -> Term:
        if entry.numbers is None:
            index, values = np.arange(math.prod(shape)).reshape(shape), None
        else:
            if entry.numbers.size > MOST_ELEMENTS:
                raise CannotRun("a table is too large")
            values, index = np.unique(entry.numbers, return_inverse=True)
            index = index.reshape(shape)
        space = self._space(int(index.max(initial=0)) + 1, None if values is None else values[:, None])
        return self._of_space(space, index)

    def _space(self, size: int, values: np.ndarray | None = None, functions: frozenset[str] = frozenset()) -> Space:
        space = Space(self._next_space, size, values, functions)
        self._next_space += size
        self.found.spaces.append(space)
        return space

    def _of_space(self, space: Space, index: np.ndarray) -> Term:
        numbers = (index + space.first).astype(np.int32)
        return Term(everywhere(NOTHING, index.shape), numbers, everywhere(1.0, index.shape))

    def _moved(self, entry: Entry, term: Term) -> Term:
        assert entry.step is not None
        step, world = entry.step, self.world
        return Term(*(run(step, each, world) for each in (term.x, term.table, term.factor)))

    def _applied(self, name: str, term: Term) -> Term:
        """Equal elements stay equal, and others may be told apart still."""
        numbers = term.table.copy()
        for space in self.found.spaces_of(term.table):
            if space.values is not None or not is_one(term.factor):
                raise CannotRun("the sine of what is stored or scaled")
            fresh = self._space(space.size, None, space.functions | {name})
            inside = (term.table >= space.first) & (term.table < space.first + space.size)
            numbers[inside] += fresh.first - space.first
        return Term(term.x, numbers, term.factor)

    def _rows(self, operands: Sequence[Sequence[Term]], shape: Shape) -> Term:
        """Rows of a table: two elements of one row are equal where their columns are."""
        below = only(operands[0])
        if not is_one(below.factor):
            raise CannotRun("rows of what is scaled")
        if len(operands) > 1 and not same_along_last(only(operands[1]).table):
            raise CannotRun("elements of different rows")
        rows = below.table.reshape(-1, shape[-1])
        columns, index = np.unique(rows, axis=1, return_inverse=True)
        space = self._space(math.prod(shape[:-1]) * columns.shape[1], *self._looked_up(columns))
        place = np.arange(math.prod(shape[:-1]))[:, None] * columns.shape[1] + index.reshape(1, -1)
        return self._of_space(space, place.reshape(shape))

    def _looked_up(self, columns: np.ndarray) -> tuple[np.ndarray | None, frozenset[str]]:
        """The values that each column of a table has, where they are stored, and what was applied to it."""
        spaces = self.found.spaces_of(columns)
        functions = frozenset[str]().union(*(space.functions for space in spaces))
        values = spaces[0].values if len(spaces) == 1 else None
        if values is None or values.shape[1] != 1:
            return None, functions
        return values[columns - spaces[0].first, 0].T, functions

    def _rotated(self, entry: Entry, operands: Sequence[Sequence[Term]], shape: Shape) -> list[Term]:
        assert entry.node is not None
        return rotated_terms(entry.node, only(operands[0]), only(operands[1]), only(operands[2]), shape)


def _row_shape(entry: Entry, operands: Sequence[Sequence[Term]], shape: Shape) -> Shape:
    """Of rows that are looked up; by an operator one for each token of its x `(B, N, S, H)` or `(B, S, N·H)`."""
    if entry.node is None:
        return shape
    return (shape[0], shape[-2], operands[0][0].table.shape[-1])


def _holds(space: Space, numbers: np.ndarray) -> bool:
    return bool(((numbers >= space.first) & (numbers < space.first + space.size)).any())
