"""RotaryEmbedding operators that a target does not take, in plain nodes.

Source: operator specification, RotaryEmbedding-23, and of com.microsoft's
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.RotaryEmbedding, whose positions may be
one number, from which the rows are counted.
"""

from __future__ import annotations

from functools import partial

import onnx_graphsurgeon as gs

from onnx_attn.graph.edit import Names, SiteEdit, Splice, Writer
from onnx_attn.graph.view import STANDARD, GraphView, label
from onnx_attn.operators.rotary import look_up, spell_rotary
from onnx_attn.rotary.tables import CannotSay

MICROSOFT = "com.microsoft"
LEAST_OPSET = 13
"""The first in which Split and Unsqueeze take sizes and axes as inputs."""


def is_operator(node: gs.Node) -> bool:
    return node.op == "RotaryEmbedding" and node.domain in (*STANDARD, MICROSOFT)


def write_spelled(view: GraphView, names: Names, node: gs.Node) -> SiteEdit:
    """The edit that spells an operator of the main graph. Raises CannotSay."""
    x = node.inputs[0]
    own, attrs, shapes = node.domain == MICROSOFT, node.attrs, view.shapes(x)
    cos, sin = (node.inputs[place] for place in ((2, 3) if own else (1, 2)))
    if own and (attrs.get("scale", 1.0) != 1.0 or attrs.get("is_packed_batching", 0)):
        raise CannotSay("a scale of its own, or entries of a batch behind each other")
    tables = view.shapes(cos)
    if shapes is None or tables is None or view.opset < LEAST_OPSET:
        raise CannotSay("its sizes are not known, or the opset is too low")
    width, half = shapes[0][-1], tables[0][-1]
    dim = attrs.get("rotary_embedding_dim", 0) or 2 * half
    size = width if len(shapes[0]) == 4 else width // attrs["num_heads"] if attrs.get("num_heads", 0) else dim
    if dim != 2 * half or any(shape[-1] != width for shape in shapes):
        raise CannotSay("the tables do not fit the heads")
    writer, output = Writer(names, label(node)), node.outputs[0].name
    given = node.inputs[1 if own else 3] if own or (len(node.inputs) > 3 and node.inputs[3].name) else None
    angles = [_rows(view, writer, each, given, x) for each in (cos, sin)]
    interleaved = bool(attrs.get("interleaved", 0))
    spelled = partial(spell_rotary, interleaved=interleaved, dim=dim, head_dim=size)
    if len(shapes[0]) == 4:
        spelled(writer, x.name, *angles, output=output)
    else:
        apart = writer.add("Reshape", [x.name, writer.shape(0, 0, width // size, size)], "heads")
        heads = writer.add("Transpose", [apart], "heads_turned", perm=[0, 2, 1, 3])
        turned = writer.add("Transpose", [spelled(writer, heads, *angles)], "rotated", perm=[0, 2, 1, 3])
        writer.add("Reshape", [turned, writer.shape(0, 0, width)], "rotated_joined", output=output)
    splice = Splice(view.position(node), tuple(writer.nodes), (output,))
    return SiteEdit(label(node), (splice,), tuple(writer.initializers.values()), (), (x.name,), False)


def _rows(view: GraphView, writer: Writer, table: gs.Tensor, positions: gs.Tensor | None, x: gs.Tensor) -> str:
    """`(B or 1, S, dim/2)`: the table itself, its rows at `(B, S)` positions, or those from one position on."""
    if positions is None:
        return str(table.name)
    if view.rank(positions) == 2:
        return look_up(writer, table.name, positions.name, "rotary_rows")
    if view.rank(positions) != 1:
        raise CannotSay("positions of other axes")
    axis = (view.rank(x) or 0) - 2
    length = writer.add("Shape", [x.name], "length", start=axis, end=axis + 1)
    end = writer.add("Add", [positions.name, length], "rotary_end")
    rows = writer.add("Slice", [table.name, positions.name, end, writer.shape(0)], "rotary_rows")
    return str(writer.add("Unsqueeze", [rows, writer.shape(0)], "rotary_rows"))
