"""Q, K and V of a site: where their elements come from, and how many heads of which size they are."""

from __future__ import annotations

import math

import onnx_graphsurgeon as gs

from onnx_attn.graph.view import GraphView
from onnx_attn.site import Operand
from onnx_attn.views.layout import REPEAT
from onnx_attn.views.movement import layout_of
from onnx_attn.views.trace import trace


def read_operand(view: GraphView, tensor: gs.Tensor, transposed: bool = False) -> Operand:
    """Trace one operand. `transposed`: the product reads K as `(…, H, S)`; its layout is given as `(…, S, H)`."""
    found = trace(view, tensor)
    shapes = view.shapes(found.source)
    layout = layout_of(view, shapes, found.steps) if shapes else None
    if layout is not None and transposed:
        layout = layout.swapped()
    return Operand(tensor, found, trace(view, tensor, through_repeats=True), layout, transposed)


def head_size(view: GraphView, operand: Operand) -> int | None:
    """The static size of the operand's feature axis."""
    return view.static(operand.tensor, -2 if operand.transposed else -1)


def kv_head_count(view: GraphView, key: Operand) -> int | None:
    """Heads that K has of its own: those that are repeated for several heads of Q count once."""
    repeated, shapes = head_count(view, key), view.shapes(key.whole.source)
    if repeated is None or shapes is None or len(key.whole.steps) == len(key.trace.steps):
        return repeated
    layout = layout_of(view, shapes, key.whole.steps)
    if layout is None or len(layout.axes) < 3:
        return repeated
    copies = [digit.size for digit in layout.axes[-3] if digit.axis == REPEAT and digit.size is not None]
    return repeated // math.prod(copies)


def head_count(view: GraphView, operand: Operand) -> int | None:
    """Heads of `(B, N, S, H)` and the like; of `(B·N, S, H)` what the layout says; 1 for `(S, H)`; None if not static."""
    rank = view.rank(operand.tensor)
    if rank is None or rank < 3:
        return 1
    if rank > 3:
        return view.static(operand.tensor, -3)
    if operand.layout is None:
        return view.static(operand.tensor, 0)
    parts = [digit.size for digit in operand.layout.axes[0] if digit.size is not None]
    if len(parts) == 1:
        return parts[0]
    return 1 if not parts else None
