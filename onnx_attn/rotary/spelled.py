"""RotaryEmbedding operators that a target does not take, in plain nodes.

Source: operator specification, RotaryEmbedding-23, and of com.microsoft's
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.RotaryEmbedding, whose positions may be
one number, from which the rows are counted.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.domain import MICROSOFT
from onnx_attn.graph.edit import Names, SiteEdit, Splice, Writer
from onnx_attn.graph.opset import LEAST_OPSET
from onnx_attn.graph.view import STANDARD, GraphView, label
from onnx_attn.operators.rotary import look_up, spell_rotary
from onnx_attn.rotary.tables import CannotSay
from onnx_attn.targets.reading import TYPES
from onnx_attn.targets.rotary import STANDARD as ONNX
from onnx_attn.targets.rotary import RotaryFacts
from onnx_attn.views.folding import constant_value


def is_operator(node: gs.Node) -> bool:
    return node.op == "RotaryEmbedding" and node.domain in (*STANDARD, MICROSOFT)


def facts_of(view: GraphView, node: gs.Node) -> RotaryFacts:
    """What decides whether a runtime takes an operator."""
    own = node.domain == MICROSOFT
    positions = _positions(node)
    place = {None: "none", 1: "start"}.get(view.rank(positions) if positions is not None else None, "each")
    x, cos = view.shapes(node.inputs[0]), view.shapes(node.inputs[2 if own else 1])
    one = x is not None and cos is not None and place == "none" and cos[0][0] == 1 != x[0][0]
    return RotaryFacts(
        domain=MICROSOFT if own else ONNX,
        opset=view.opset,
        dtype=TYPES.get(view.elem_type(node.inputs[0]), ""),
        rank=view.rank(node.inputs[0]) or 0,
        counted=bool(node.attrs.get("num_heads", 0)),
        positions=place,
        tables="one" if one else "each",
        interleaved=bool(node.attrs.get("interleaved", 0)),
        partial=bool(node.attrs.get("rotary_embedding_dim", 0)),
    )


def _positions(node: gs.Node) -> gs.Tensor | None:
    place = 1 if node.domain == MICROSOFT else 3
    return node.inputs[place] if len(node.inputs) > place and node.inputs[place].name else None


def write_spelled(view: GraphView, names: Names, node: gs.Node) -> SiteEdit:
    """The edit that spells an operator of the main graph. Raises CannotSay."""
    x = node.inputs[0]
    own, attrs, shapes = node.domain == MICROSOFT, node.attrs, view.shapes(x)
    cos, sin = (node.inputs[place] for place in ((2, 3) if own else (1, 2)))
    if own and (attrs.get("scale", 1.0) != 1.0 or attrs.get("is_packed_batching", 0)):
        raise CannotSay("a scale of its own, or entries of a batch behind each other")
    if attrs.get("interleaved", 0) not in (0, 1):
        raise CannotSay("interleaved is neither 0 nor 1")
    tables = view.shapes(cos)
    if not shapes or not tables or not shapes[0] or not tables[0] or view.opset < LEAST_OPSET:
        raise CannotSay("its sizes are not known, or the opset is too low")
    width, half = shapes[0][-1], tables[0][-1]
    dim = attrs.get("rotary_embedding_dim", 0) or 2 * half
    size = width if len(shapes[0]) == 4 else width // attrs["num_heads"] if attrs.get("num_heads", 0) else dim
    if dim != 2 * half or any(shape[-1] != width for shape in shapes):
        raise CannotSay("the tables do not fit the heads")
    writer, output = Writer(names, label(node)), node.outputs[0].name
    angles = [_rows(view, writer, each, _positions(node), x) for each in (cos, sin)]
    interleaved = bool(attrs.get("interleaved", 0))
    spelled = partial(spell_rotary, interleaved=interleaved, dim=dim, head_dim=size)
    if len(shapes[0]) == 4:
        spelled(writer, x.name, *angles, output=output)
    else:
        apart = writer.add("Reshape", [x.name, writer.shape(0, 0, width // size, size)], "heads")
        rotated = spelled(writer, apart, *angles, heads_axis=2)
        writer.add("Reshape", [rotated, writer.shape(0, 0, width)], "rotated_joined", output=output)
    splice = Splice(view.position(node), tuple(writer.nodes), (output,))
    return SiteEdit(label(node), (splice,), tuple(writer.initializers.values()), (), (x.name,), False)


def _places(view: GraphView, positions: gs.Tensor) -> np.ndarray | None:
    """Positions `(S,)` that all entries of the batch have in every world; None where they are not known, or differ."""
    known = [world.value(positions.name) for world in view.worlds]
    rows = [row for value in known if value is not None and value.ndim == 2 for row in value]
    if not rows or any(value is None or value.ndim != 2 for value in known):
        return None
    return rows[0] if all(np.array_equal(row, rows[0]) for row in rows[1:]) else None


def _rows(view: GraphView, writer: Writer, table: gs.Tensor, positions: gs.Tensor | None, x: gs.Tensor) -> str:
    """`(B or 1, S, dim/2)`: the table itself, its rows at `(B, S)` positions, or those from one position on; stored where
    they are known and the same for all entries of the batch."""
    if positions is None:
        return str(table.name)
    places = _places(view, positions)
    if places is not None and view.is_weight(table):
        numbers = constant_value(view, table)
        if numbers is not None and places.size and -len(numbers) <= places.min() and places.max() < len(numbers):
            return writer.constant(numbers[places][None], "rotary_rows")
    if view.rank(positions) == 2:
        return look_up(writer, table.name, positions.name, "rotary_rows")
    if view.rank(positions) != 1:
        raise CannotSay("positions of other axes")
    axis = (view.rank(x) or 0) - 2
    length = view.static(x, axis)
    if length is not None:
        rows = writer.constant(np.arange(length), "tokens")
    else:
        zero, one = (writer.constant(np.asarray(number, np.int64), f"{number}") for number in (0, 1))
        size = writer.add("Squeeze", [writer.add("Shape", [x.name], "length", start=axis, end=axis + 1)], "length")
        rows = writer.add("Range", [zero, size, one], "tokens")
    rows = writer.add("Add", [rows, positions.name], "rotary_positions")
    return look_up(
        writer, table.name, writer.add("Unsqueeze", [rows, writer.shape(0)], "rotary_positions"), "rotary_rows"
    )
