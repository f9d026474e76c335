"""A mask that is causality itself: a lower triangle of ones, as long as the queries and as wide as the keys.

That is how the normalised primitives spell it where lengths vary (forms/body.py). It is read off the nodes and not off numbers:
two sizes at which a mask is a triangle are no proof for a third.
"""

from __future__ import annotations

import math

import onnx_graphsurgeon as gs

from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.site import ScoreTerm
from onnx_attn.views.arrange import unarranged
from onnx_attn.views.trace import scalar_factor
from onnx_attn.views.uniform import uniform


def by_position(
    view: GraphView, terms: tuple[ScoreTerm, ...], query: gs.Tensor, key: gs.Tensor
) -> tuple[ScoreTerm, ...]:
    """The terms with `causal` in place of a choice by such a triangle. query `(…, Sq, H)`, key `(…, Sk, H)`."""
    return tuple(ScoreTerm("causal") if _is_causal(view, term, query, key) else term for term in terms)


def _is_causal(view: GraphView, term: ScoreTerm, query: gs.Tensor, key: gs.Tensor) -> bool:
    if term.kind != "where" or term.fill != -math.inf or not term.keep_when or term.mask is None:
        return False
    cast = made_by(view, term.mask, "Cast")
    lower = made_by(view, cast.inputs[0], "Trilu") if cast is not None else None
    if lower is None or lower.attrs.get("upper", 1) or len(lower.inputs) != 1:
        return False
    ones = made_by(view, lower.inputs[0], "Expand")
    if ones is None or uniform(view, ones.inputs[0]) != 1.0:
        return False
    sizes = made_by(view, ones.inputs[1], "Concat")
    if sizes is None or len(sizes.inputs) != 2:
        return False
    of = [_length_of(view, size) for size in sizes.inputs]
    return all(name in _names(view, operand) for name, operand in zip(of, (query, key), strict=True))


def _names(view: GraphView, operand: gs.Tensor) -> set[str]:
    """The operand, and what it is before factors, and before it is turned and turned back."""
    tensor, moves = unarranged(view, operand)
    names: set[str] = set()
    if [move.op for move in moves] == ["Transpose"]:
        turned, back = made_by(view, tensor, "Transpose"), moves[0].attrs["perm"]
        if turned is None or [turned.attrs["perm"][axis] for axis in back] != sorted(back):
            return names
        tensor, moves = turned.inputs[0], []
    while not moves:
        names.add(tensor.name)
        node = view.producer(tensor)
        factor = scalar_factor(view, node) if node is not None else None
        if factor is None:
            break
        tensor = factor[0]
    return names


def _length_of(view: GraphView, size: gs.Tensor) -> str | None:
    """The tensor whose last axis but one has this size."""
    shape = made_by(view, size, "Shape")
    if shape is None or (shape.attrs.get("start"), shape.attrs.get("end")) != (-2, -1):
        return None
    return shape.inputs[0].name


def made_by(view: GraphView, tensor: gs.Tensor, op: str) -> gs.Node | None:
    """The node that makes a tensor, if it is this operator of the standard."""
    node = view.producer(tensor)
    return node if node is not None and node.op == op and node.domain in STANDARD else None
