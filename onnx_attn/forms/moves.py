"""Write the moves that an arranged tensor stands for."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.views.arrange import Move, reshape_target, shape_parts, unarranged


def written(writer: Writer, view: GraphView, tensor: gs.Tensor, hint: str) -> str:
    """The name of a tensor, after writing what arranges it."""
    source, moves = unarranged(view, tensor)
    return write_moves(writer, source.name, moves, hint)


def write_moves(writer: Writer, name: str, moves: Sequence[Move], hint: str, output: str | None = None) -> str:
    """Append the moves of a value; the last one makes `output` where that is given."""
    for number, move in enumerate(moves, 1):
        last = output if number == len(moves) else None
        if move.op == "Transpose":
            name = writer.add("Transpose", [name], hint, output=last, perm=move.attrs["perm"])
        elif move.op == "Expand":
            name = writer.add(
                "Expand", [name, writer.shape(*(d for d in move.after if isinstance(d, int)))], hint, output=last
            )
        else:
            name = writer.add("Reshape", [name, _target(writer, name, move)], hint, output=last)
    return name


def _target(writer: Writer, name: str, move: Move) -> str:
    target = reshape_target(move.before, move.after)
    if target is not None:
        return writer.shape(*target)
    parts = shape_parts(move)
    assert parts is not None
    shape = writer.add("Shape", [name], "shape")
    sizes = []
    for factors in parts:
        names = [_size(writer, shape, factor) for factor in factors]
        while len(names) > 1:
            names[:2] = [writer.add("Mul", names[:2], "size_product")]
        sizes.append(names[0])
    return writer.add("Concat", sizes, "sizes", axis=0)


def _size(writer: Writer, shape: str, factor: tuple[int, int] | int) -> str:
    if isinstance(factor, int):
        return writer.shape(factor)
    axis, divisor = factor
    size = writer.add("Gather", [shape, writer.shape(axis)], "size", axis=0)
    return writer.add("Div", [size, writer.shape(divisor)], "size") if divisor != 1 else size
