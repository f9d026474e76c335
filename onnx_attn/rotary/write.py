"""One rotary embedding as the standard operator.

Source: operator specification, RotaryEmbedding-23. It takes x `(B, N, S, H)`, or `(B, S, N·H)` with num_heads.
"""

from __future__ import annotations

from onnx import TensorProto

from onnx_attn.graph.edit import Names, SiteEdit, Splice, Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.rotary.piece import Piece, made_at
from onnx_attn.rotary.tables import CannotSay, TableWriter

TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16)
"""In which ONNX Runtime 1.31.1 has the operator on the CPU, where it is proved."""


def write_operator(view: GraphView, names: Names, site: str, piece: Piece, tables: TableWriter) -> SiteEdit:
    """The edit that puts the operator in the place of a piece. Raises CannotSay."""
    elem_type = view.elem_type(piece.made)
    if elem_type not in TYPES:
        raise CannotSay("there is no operator of its type to prove it by")
    if TensorProto.FLOAT16 in (elem_type, view.elem_type(piece.source)) and not piece.place.known:
        raise CannotSay("its tables are given, and may be too large for what half precision rounds")
    made, writer = tables.tables(piece), Writer(names, site)
    x, source = piece.source.name, piece.source
    if view.elem_type(source) != elem_type:
        x = writer.add("Cast", [x], "rotary_wide", to=elem_type)
    _rotated(view, writer, piece, x, made.inputs)
    splice = Splice(made_at(view, piece), tuple(writer.nodes), (piece.made.name,))
    initializers = {tensor.name: tensor for tensor in (*made.initializers, *writer.initializers.values())}
    return SiteEdit(site, (made.splice, splice), tuple(initializers.values()), (), (source.name,), False)


def _rotated(view: GraphView, writer: Writer, piece: Piece, x: str, tables: tuple[str, ...]) -> None:
    """The operator, and what brings x `(B, S, N, H)` into the axes that it takes and back."""
    place, add, output = piece.place, writer.add, piece.made.name
    size = view.static(piece.made, -1)
    assert size is not None
    attributes = {"interleaved": 1} if place.kind == "interleaved" else {}
    attributes |= {"rotary_embedding_dim": place.dim} if place.dim < size else {}
    if place.axes == "heads":
        add("RotaryEmbedding", [x, *tables], "rotary", output=output, attributes=attributes)
        return
    heads = view.static(piece.made, 2)
    if heads is None:
        raise CannotSay("the number of heads varies")
    if view.rank(piece.source) == 4:
        x = add("Reshape", [x, writer.shape(0, 0, heads * size)], "rotary_joined")
    rotated = add("RotaryEmbedding", [x, *tables], "rotary", attributes={**attributes, "num_heads": heads})
    add("Reshape", [rotated, writer.shape(0, 0, heads, size)], "rotated", output=output)
