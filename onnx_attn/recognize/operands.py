"""Q, K and V of a site: where their elements come from, and how many heads of which size they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.graph.view import GraphView
from onnx_attn.site import Operand
from onnx_attn.views.arrange import Move, arranged
from onnx_attn.views.axes import size_of
from onnx_attn.views.layout import REPEAT
from onnx_attn.views.linear import linear
from onnx_attn.views.movement import Step, index_map, layout_of
from onnx_attn.views.quantizer import Quantizer, read_quantizer
from onnx_attn.views.trace import Trace, trace

if TYPE_CHECKING:
    from onnx_attn.recognize.site_axes import SiteAxes


Rounded = tuple[Quantizer | float, ...]
_NOTHING: Rounded = ()


def read_operand(view: GraphView, tensor: gs.Tensor, moves: Sequence[Move] = ()) -> Operand:
    """Trace one operand, in the axes that `moves` bring what the product reads into."""
    canonical, steps = arranged(view, tensor, moves)

    def moved(found: Trace) -> Trace:
        return Trace(found.source, found.factor, (*found.steps, *steps))

    found, whole = moved(trace(view, tensor)), trace(view, tensor, through_repeats=True)
    shapes = view.shapes(found.source)
    layout = layout_of(view, shapes, found.steps) if shapes else None
    quantizer, rounded = read_quantizer(view, whole.source), _NOTHING
    if quantizer is not None:
        whole, rounded = _to_layer(view, whole)
    return Operand(canonical, tensor, found, moved(whole), layout, rounded, quantizer)


def _to_layer(view: GraphView, behind: Trace) -> tuple[Trace, Rounded]:
    """On through quantisation steps, which work on each element by itself, up to the layer; as it is where none stands there."""
    found, rounded = behind, _NOTHING
    while (quantizer := read_quantizer(view, found.source)) is not None:
        assert quantizer.source is not None
        above = trace(view, quantizer.source, through_repeats=True)
        back = view.producer(found.source)
        assert back is not None
        narrow = view.producer(back.inputs[0])
        assert narrow is not None
        pair = (Step(narrow, back.inputs[0]), Step(back, found.source))
        factor = (above.factor,) if above.factor != 1.0 else ()
        repeated = bool(rounded) and isinstance(rounded[0], Quantizer) and rounded[0].repeats(quantizer)
        rounded = (*factor, *(rounded if repeated else (quantizer, *rounded)))
        found = Trace(above.source, behind.factor, (*above.steps, *pair, *found.steps))
    return (found, rounded) if linear(view, found.source, rounded=True) is not None else (behind, _NOTHING)


def head_count(view: GraphView, axes: SiteAxes, query: Operand) -> int | None:
    """Q's heads; where no layer tells which axis they are, the last before `(S, H)` of four axes or more; None if not static."""
    if axes.heads is None:
        return view.static(query.tensor, -3) if (view.rank(query.tensor) or 0) > 3 else 1
    sizes = [size_of(axis, len(view.worlds)) for axis in axes.batch[len(axes.batch) - axes.heads :]]
    return math.prod(each[0] for each in sizes) if all(len(set(each)) == 1 for each in sizes) else None


def kv_head_count(view: GraphView, axes: SiteAxes, key: Operand) -> int | None:
    """Heads that K has of its own: those that are repeated for several heads of Q count once."""
    last = 1 if axes.heads is None else axes.heads
    rank = view.rank(key.tensor) or 0
    if rank <= 3:
        return 1
    counts = [view.static(key.tensor, axis) for axis in range(rank - 2 - last, rank - 2)]
    if None in counts:
        return None
    return math.prod(count for count in counts if count is not None) // head_copies(view, key)


def head_copies(view: GraphView, operand: Operand) -> int:
    """How often each head stands in an operand of four axes or more; where no layout tells, one copy beside the other alone."""
    shapes = view.shapes(operand.whole.source)
    if shapes is None:
        return 1
    layout = layout_of(view, shapes, operand.whole.steps)
    if layout is None:
        return _copies_in(index_map(view.worlds[0], shapes[0], operand.whole.steps))
    return math.prod(d.size for d in layout.axes[-3] if d.axis == REPEAT and d.size is not None)


def _copies_in(index: np.ndarray | None) -> int:
    """The same off the index map, where rows or heads were put in an order that is no layout."""
    if index is None or not index.size:
        return 1
    heads = index.reshape(-1, *index.shape[-3:])[0, :, 0, 0]
    copies = heads.size // np.unique(heads).size
    side_by_side = np.array_equal(heads, heads[::copies].repeat(copies))
    return copies if side_by_side else 1
