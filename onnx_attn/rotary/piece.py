"""The piece of a graph that is one rotary embedding: what it starts from, what it makes, and where its tables are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.graph.view import GraphView
from onnx_attn.recognize.rotation import Kind, Rotation, rotation_of
from onnx_attn.views.arrange import real
from onnx_attn.views.numbered import Numbers, run_program
from onnx_attn.views.products import Entry, Program
from onnx_attn.views.terms import Term

Axes = Literal["heads", "tokens"]
_SIMPLE = ("leaf", "table", "move", "cast", "apply", "rows")
"""Entries that may be the activation, or a table."""


@dataclass(frozen=True)
class Table:
    """A table of cosines or sines `(B or 1, S, dim/2)` as the graph has it: `entry`, with axes of size 1 beside, and each number
    once or, `doubled`, twice."""

    entry: int
    doubled: bool


@dataclass(frozen=True)
class Place:
    """A rotary embedding by entries of a program. known: whether its tables are known to be cosines and sines, which are 1 at
    most, and are not given from outside. axes: what comes first behind the batch, in `made` and in `source`, where that
    is 4-D; a 3-D source is `(B, S, N·H)`."""

    kind: Kind
    dim: int
    axes: Axes
    made: int
    source: int
    cos: Table
    sin: Table
    known: bool


@dataclass(frozen=True)
class Piece:
    """The same, with the tensors. cos, sin: the tables' entries, with their numbers where these are stored."""

    place: Place
    made: gs.Tensor
    source: gs.Tensor
    cos: Entry
    sin: Entry

    @property
    def tables(self) -> tuple[tuple[Entry, Table], tuple[Entry, Table]]:
        return (self.cos, self.place.cos), (self.sin, self.place.sin)


def made_at(view: GraphView, piece: Piece) -> int:
    """The place in the graph of the node that makes it."""
    producer = view.producer(piece.made)
    assert producer is not None
    return view.position(producer)


def find_piece(view: GraphView, operand: gs.Tensor) -> Piece | None:
    """The rotary embedding of an operand as a piece that the operator can stand for: `(B, N, S, H)` or `(B, S, N, H)`, its first
    channels rotated in all tokens, alike in all heads, and times nothing else. The larger one where there are two: with the
    channels beside it that are not rotated."""
    program = Program(view, real(view, operand))
    if not program.has_sums or program.has_operators:
        return None
    key = ("piece", program.key())
    if key not in view.rotaries:
        view.rotaries[key] = _place(view, program)
    place: Place | None = view.rotaries[key]
    if place is None:
        return None
    entries = program.entries
    made, source = entries[place.made].tensor, entries[place.source].tensor
    assert made is not None and source is not None
    return Piece(place, made, source, entries[place.cos.entry], entries[place.sin.entry])


def _place(view: GraphView, program: Program) -> Place | None:
    """Where it is in every world."""
    made = _outer(program)
    wanted = frozenset(made) | {number for number in program.order if program.entries[number].kind in _SIMPLE}
    found: Place | None = None
    for count, world in enumerate(view.worlds):
        try:
            numbers = run_program(program, world, wanted)
        except (ValueError, LookupError):
            return None
        place = next((each for number in made if (each := _at(program, numbers, number))), None)
        if place is None or (count and place != found):
            return None
        found = place
    return found


def _outer(program: Program) -> list[int]:
    """Entries from the root up to the sum, as long as there is one way; in the type that the sum is of."""
    number, found = program.root, list[int]()
    while True:
        entry = program.entries[number]
        found = [] if entry.kind == "cast" else [*found, number]
        ways = {operand for operand in entry.operands if program.holds_sum(operand)}
        if entry.kind not in ("move", "cast", "scale", "join") or len(ways) != 1:
            return found
        number = ways.pop()


def _at(program: Program, numbers: Numbers, made: int) -> Place | None:
    """The rotary embedding that an entry is."""
    terms = numbers.kept[made]
    shape = terms[0].x.shape
    if len(shape) != 4 or 0 in shape:
        return None
    rows = [Term(*(each.reshape(-1, shape[-1]) for each in (term.x, term.table, term.factor))) for term in terms]
    rotation = rotation_of(numbers, rows)
    if rotation is None or rotation.first or rotation.factor != 1.0 or rotation.x.size != terms[0].x.size:
        return None
    axes = _axes(rotation, shape)
    if axes is None:
        return None
    source = _source(program, numbers, rotation.x.reshape(shape), axes)
    tables = [_table(program, numbers, _by_token(each, shape, axes), rotation) for each in (rotation.cos, rotation.sin)]
    cos, sin = tables
    if source is None or cos is None or sin is None:
        return None
    spaces = [space for table in (rotation.cos, rotation.sin) for space in numbers.spaces_of(table)]
    known = all(space.functions or space.values is not None for space in spaces)
    return Place(rotation.kind, rotation.dim, axes, made, source, cos, sin, known)


def _axes(rotation: Rotation, shape: Sequence[int]) -> Axes | None:
    """Which of the two middle axes is that of heads: tables are the same along it. Of two that may be, the longer."""
    same: list[Axes] = []
    for axis, name in ((1, "heads"), (2, "tokens")):
        tables = [each.reshape(*shape[:3], -1) for each in (rotation.cos, rotation.sin)]
        if all((table == np.take(table, [0], axis)).all() for table in tables):
            same.append(name)  # type: ignore[arg-type]
    if len(same) == 2:
        return "heads" if shape[1] >= shape[2] else "tokens"
    return same[0] if same else None


def _by_token(table: np.ndarray, shape: Sequence[int], axes: Axes) -> np.ndarray:
    """A table's numbers as `(B, S, dim/2)`."""
    wide = table.reshape(*shape[:3], -1)
    return wide[:, 0] if axes == "heads" else wide[:, :, 0]


def _source(program: Program, numbers: Numbers, x: np.ndarray, axes: Axes) -> int | None:
    """The entry that holds what is rotated, in the same axes; of `(B, S, N, H)` rather `(B, S, N·H)`, as the operator has it."""
    joined = [x.reshape(*x.shape[:2], -1)] if axes == "tokens" else []
    for wanted in (*joined, x):
        for number in reversed(program.order):
            terms = numbers.kept.get(number, [])
            holds = (
                program.entries[number].kind in ("leaf", "move", "cast") and len(terms) == 1 and terms[0].is_activation
            )
            if holds and np.array_equal(terms[0].x, wanted):
                return number
    return None


def _table(program: Program, numbers: Numbers, wanted: np.ndarray, rotation: Rotation) -> Table | None:
    """The entry that holds `(B, S, dim/2)` of a table, the nearest to the product that has each number once, or twice."""
    found: list[Table] = []
    for number in reversed(program.order):
        terms = numbers.kept.get(number, [])
        if len(terms) != 1 or not terms[0].is_table or program.entries[number].tensor is None:
            continue
        table = _without_ones(terms[0].table, wanted.shape[1])
        if table is None or table.shape[0] not in (1, wanted.shape[0]) or table.shape[1] != wanted.shape[1]:
            continue
        doubled = table.shape[2] == rotation.dim
        if doubled:
            table = table[..., 0::2] if rotation.kind == "interleaved" else table[..., : rotation.dim // 2]
        if table.shape[2] == wanted.shape[2] and (table == wanted).all():
            found.append(Table(number, doubled))

    def distance(table: Table) -> tuple[bool, bool]:
        """Halved already, and without an axis of heads."""
        return table.doubled, numbers.kept[table.entry][0].table.ndim != 3

    return min(found, key=distance, default=None)


def _without_ones(table: np.ndarray, length: int) -> np.ndarray | None:
    """As `(B or 1, S, C)`, where that takes nothing but axes of size 1."""
    *front, channels = table.shape
    sizes = [size for size in front if size != 1]
    if len(sizes) == 1 and sizes[0] == length:
        sizes = [1, length]
    elif not sizes and length == 1:
        sizes = [1, 1]
    elif len(sizes) == 1 and length == 1:
        sizes = [sizes[0], 1]
    return table.reshape(*sizes, channels) if len(sizes) == 2 else None
