"""Movement that is not in the graph: how a tensor would have to be reshaped and transposed to be read in other axes.

An arranged tensor has a name, shapes and a type, so that whatever reads tensors reads it too, and it is written into the
model only where a form asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.graph.view import GraphView
from onnx_attn.graph.world import Known, Shape
from onnx_attn.views.axes import Atom, Axis, Frame, size_of
from onnx_attn.views.movement import Step

Dim = int | tuple[int | str, ...]
"""A static size, or a product of one number and names that stand for sizes."""


@dataclass(eq=False)
class Move:
    """A Reshape, a Transpose or an Expand that stands in no graph; read like a node.

    before, after: the sizes in front of a Reshape and behind it; after: of an Expand, what is repeated, and 1 elsewhere.
    shapes: of the result, one a world.
    """

    op: str
    shapes: tuple[Shape, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    before: tuple[Dim, ...] = ()
    after: tuple[Dim, ...] = ()
    name: str = ""
    domain: str = ""
    inputs: list[gs.Tensor] = field(default_factory=list)
    outputs: list[gs.Tensor] = field(default_factory=list)


def moves_between(before: Frame, after: Frame, worlds: int) -> list[Move] | None:
    """The moves that turn a tensor with axes `before` into one with axes `after`; None where they do not hold the same pieces.

    At most three: apart into pieces, into another order, together. Axes of size 1 are put where they are wanted.
    """
    source = [atom for axis in before for atom in axis]
    wanted = [atom for axis in after for atom in axis]
    if {id(atom) for atom in source} != {id(atom) for atom in wanted} or len(source) != len(wanted):
        return None
    if source == wanted:
        return [] if _sizes(before, worlds) == _sizes(after, worlds) else [_reshape(before, after, worlds)]
    order = _whole_axes(before, after)
    if order is not None:
        return [_transpose(after, order, worlds)]
    found: list[Move] = []
    apart: Frame = tuple((atom,) for atom in source)
    if _sizes(apart, worlds) != _sizes(before, worlds):
        found.append(_reshape(before, apart, worlds))
    turned: Frame = tuple((atom,) for atom in wanted)
    found.append(_transpose(turned, [source.index(atom) for atom in wanted], worlds))
    if _sizes(turned, worlds) != _sizes(after, worlds):
        found.append(_reshape(turned, after, worlds))
    return found


def repeated(frame: Frame, missing: Axis, worlds: int) -> tuple[Frame, list[Move]] | None:
    """A tensor's axes with those that it broadcasts over in front, and the moves that repeat it along them; None if their
    sizes vary."""
    if any(len(set(atom.sizes)) > 1 for atom in missing):
        return None
    apart: Frame = (*(() for _ in missing), *frame)
    wide: Frame = (*((atom,) for atom in missing), *frame)
    sizes: tuple[Dim, ...] = (*(atom.sizes[0] for atom in missing), *(1 for _ in frame))
    return wide, [_reshape(frame, apart, worlds), Move("Expand", _shapes(wide, worlds), {}, after=sizes)]


def _whole_axes(before: Frame, after: Frame) -> list[int] | None:
    """The permutation, where no axis has to be taken apart."""
    if sorted(map(_identity, before)) != sorted(map(_identity, after)):
        return None
    left = list(range(len(before)))
    order = []
    for axis in after:
        position = next(p for p in left if _identity(before[p]) == _identity(axis))
        left.remove(position)
        order.append(position)
    return order


def _identity(axis: Axis) -> tuple[int, ...]:
    return tuple(id(atom) for atom in axis)


def _sizes(frame: Frame, worlds: int) -> tuple[tuple[int, ...], ...]:
    return tuple(size_of(axis, worlds) for axis in frame)


def _shapes(frame: Frame, worlds: int) -> tuple[Shape, ...]:
    return tuple(zip(*_sizes(frame, worlds), strict=True)) if frame else ((),) * worlds


def _reshape(before: Frame, after: Frame, worlds: int) -> Move:
    return Move("Reshape", _shapes(after, worlds), {}, dims_of(before), dims_of(after))


def _transpose(after: Frame, order: Sequence[int], worlds: int) -> Move:
    return Move("Transpose", _shapes(after, worlds), {"perm": list(order)})


def dims_of(frame: Frame) -> tuple[Dim, ...]:
    return tuple(_dim(axis) for axis in frame)


def _dim(axis: Axis) -> Dim:
    number, names = 1, []
    for atom in axis:
        if len(set(atom.sizes)) == 1:
            number *= atom.sizes[0]
        else:
            names.append(_token(atom))
    if not names:
        return number
    return (*([number] if number != 1 else []), *sorted(names))


def _token(atom: Atom) -> str:
    return f"atom{id(atom)}"


def arranged(view: GraphView, tensor: gs.Tensor, moves: Sequence[Move]) -> tuple[gs.Tensor, tuple[Step, ...]]:
    """The tensor behind these moves, and the moves as steps; the tensor itself where there are none."""
    steps: list[Step] = []
    elem_type = view.elem_type(tensor)
    for move in moves:
        name = f"{tensor.name} arranged {len(view.arranged)}"
        result = gs.Variable(name)
        for world, shape in zip(view.worlds, move.shapes, strict=True):
            world.known[name] = Known(elem_type, shape)
        # Lists of its own: graphsurgeon would count the move among the readers of the graph.
        move.inputs, move.outputs = [tensor], [result]
        view.arranged[name] = move
        steps.append(Step(move, result))
        tensor = result
    return tensor, tuple(steps)


def unarranged(view: GraphView, tensor: gs.Tensor) -> tuple[gs.Tensor, list[Move]]:
    """The tensor of the graph that an arranged one is made of, and the moves that make it, in order."""
    moves: list[Move] = []
    while (move := view.arranged.get(tensor.name)) is not None:
        moves.append(move)
        tensor = move.inputs[0]
    return tensor, moves[::-1]


def real(view: GraphView, tensor: gs.Tensor) -> gs.Tensor:
    return unarranged(view, tensor)[0]


def rearranged(view: GraphView, value: np.ndarray, tensor: gs.Tensor) -> np.ndarray:
    """The numbers of an arranged tensor from those of the real one."""
    return moved(value, unarranged(view, tensor)[1])


def moved(value: np.ndarray, moves: Sequence[Move], world: int = 0) -> np.ndarray:
    """What moves make of numbers, at one world's sizes."""
    for move in moves:
        if move.op == "Transpose":
            value = value.transpose(move.attrs["perm"])
        elif move.op == "Expand":
            value = np.broadcast_to(value, move.shapes[world])
        else:
            value = value.reshape(move.shapes[world])
    return value


def sayable(move: Move) -> bool:
    """Whether a Reshape can be written: it leaves one size to be found out at most, or each is one of an axis that holds it
    alone."""
    return move.op != "Reshape" or reshape_target(move.before, move.after) is not None or shape_parts(move) is not None


def reshape_target(before: Sequence[Dim], after: Sequence[Dim]) -> list[int] | None:
    """The shape operand that turns sizes `before` into `after`, or None if Reshape cannot say it."""
    target: list[int] = []
    for position, dim in enumerate(after):
        if isinstance(dim, int):
            target.append(dim)
        elif position < len(before) and before[position] == dim:
            target.append(0)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 else None


def shape_parts(move: Move) -> list[list[tuple[int, int] | int]] | None:
    """The factors of each size behind a Reshape: numbers, and `(axis, divisor)` for the size of an axis before it, divided.
    None if a size stands in no axis by itself."""
    alone: dict[str, tuple[int, int]] = {}
    for axis, dim in enumerate(move.before):
        names = [part for part in dim if isinstance(part, str)] if not isinstance(dim, int) else []
        if len(names) == 1:
            alone[names[0]] = (axis, dim[0] if isinstance(dim[0], int) else 1)  # type: ignore[index]
    parts: list[list[tuple[int, int] | int]] = []
    for dim in move.after:
        factors = (dim,) if isinstance(dim, int) else dim
        if any(isinstance(factor, str) and factor not in alone for factor in factors):
            return None
        parts.append([factor if isinstance(factor, int) else alone[factor] for factor in factors])
    return parts
