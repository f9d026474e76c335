"""A site from its parts: Q, K, V, masks and the result, each in the axes in which sites are written.

    query (batch…, N, S, H)    key (batch…, N, L, H)    value (batch…, N, L, Hv)    masks over (batch…, N, S, L)

What the graph has in other axes is arranged: by moves that stand in no graph until a form writes them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper

from onnx_attn.graph.view import GraphView, label
from onnx_attn.recognize.dependence import depends_on
from onnx_attn.recognize.normaliser import Normaliser
from onnx_attn.recognize.operands import head_count, kv_head_count, read_operand
from onnx_attn.recognize.probabilities import Product
from onnx_attn.recognize.projection import read_projection
from onnx_attn.recognize.result import Stop
from onnx_attn.recognize.scores import Scores
from onnx_attn.recognize.site_axes import SiteAxes, present, read_axes
from onnx_attn.recognize.triangle import by_position
from onnx_attn.site import AttentionSite, Operand, ScoreTerm
from onnx_attn.views.arrange import Move, arranged, moves_between, repeated, sayable
from onnx_attn.views.axes import Atom, Axis, Frame, frame_of, leaves
from onnx_attn.views.contraction import Labels
from onnx_attn.views.trace import FLOATS


def assemble(view: GraphView, softmax: Normaliser, scores: Scores, below: Product) -> AttentionSite | Stop:
    """The site of a softmax between its two products, or why it is none that can be written."""
    read = read_axes(view, softmax, scores, below)
    if isinstance(read, Stop):
        return read
    axes = _with_axes_of_values(view, read)
    features = _fresh(view, axes.product.left, axes.product.left_axes, axes.product.summed)
    value_features = _fresh(
        view,
        axes.values.right,
        axes.values.right_axes,
        tuple(name for name in axes.values.right_axes if name not in axes.values.left_axes),
    )
    width: Axis = tuple(atom for name in axes.product.summed for atom in features[name])
    value_width: Axis = tuple(atom for axis in value_features.values() for atom in axis)
    query = _operand(view, axes, axes.product.left, axes.product.left_axes, axes.scores | features, (axes.rows, width))
    key = _operand(view, axes, axes.product.right, axes.product.right_axes, axes.scores | features, (axes.keys, width))
    value = _operand(
        view,
        axes,
        axes.values.right,
        axes.values.right_axes,
        axes.probabilities | value_features,
        (axes.keys, value_width),
    )
    result = _result_moves(view, axes, axes.probabilities | value_features, value_width)
    if query is None or key is None or value is None or result is None:
        return Stop("shape-unknown", scores.product.node, "its axes cannot be brought into order")
    terms = _terms(view, read)
    if isinstance(terms, Stop):
        return terms
    return _site(view, softmax, scores, below, read, (query, key, value), terms, result)


def _with_axes_of_values(view: GraphView, axes: SiteAxes) -> SiteAxes:
    """Batch axes over which the probabilities are of size 1, and the values are not: they stand where the site has none yet."""
    shared = tuple(name for name in axes.values.right_axes if axes.probabilities.get(name) == ())
    found = {
        name: axis for name, axis in _fresh(view, axes.values.right, axes.values.right_axes, shared).items() if axis
    }
    batch = [*axes.batch]
    for axis in found.values():
        if () in batch:
            batch[batch.index(())] = axis
        else:
            batch.insert(0, axis)
    return replace(axes, batch=tuple(batch), probabilities=axes.probabilities | found)


def _fresh(view: GraphView, tensor: gs.Tensor, labels: Labels, wanted: Labels) -> dict[Hashable, Axis]:
    """Axes of their own for some labels of a tensor."""
    shapes = view.shapes(tensor)
    assert shapes is not None
    return {name: axis for name, axis in zip(labels, frame_of(shapes), strict=True) if name in wanted}


def _operand(
    view: GraphView,
    axes: SiteAxes,
    tensor: gs.Tensor,
    labels: Labels,
    known: Mapping[Hashable, Axis],
    last: tuple[Axis, Axis],
) -> Operand | None:
    """An operand with its batch axes in the site's order and `last` behind them; None if it has others."""
    frame = tuple(leaves(known.get(name, ())) for name in labels)
    own = present(view, tensor, frame)
    frame = tuple(axis if {*axis} <= own else () for axis in frame)
    return _arrange(view, tensor, frame, (*(_held(axis, own) for axis in axes.batch), *last))


def _held(axis: Axis, own: set[Atom]) -> Axis:
    """What a tensor has of an axis: all of it, the heads that others share, or nothing."""
    return tuple(atom for atom in axis if atom in own)


def _arrange(view: GraphView, tensor: gs.Tensor, frame: Frame, wanted: Frame) -> Operand | None:
    moves = _moves(view, frame, wanted)
    return read_operand(view, tensor, moves) if moves is not None else None


def _moves(view: GraphView, frame: Frame, wanted: Frame) -> list[Move] | None:
    moves = moves_between(frame, wanted, len(view.worlds))
    return moves if moves is not None and all(sayable(move) for move in moves) else None


def _result_moves(view: GraphView, axes: SiteAxes, known: Mapping[Hashable, Axis], width: Axis) -> list[Move] | None:
    """From `(batch…, N, S, Hv)` to the axes that the graph's own P·V has."""
    frame = tuple(leaves(known.get(name, ())) for name in axes.values.result_axes)
    return _moves(view, (*axes.batch, axes.rows, width), frame)


def _terms(view: GraphView, axes: SiteAxes) -> tuple[ScoreTerm, ...] | Stop:
    found = []
    elem_type = view.elem_type(axes.product.result)
    for number, (term, at) in enumerate(axes.terms):
        if term.kind == "cast":
            elem_type = term.dtype
        if term.mask is None:
            found.append(_said_exactly(term, elem_type) if term.kind == "scale" else term)
            continue
        if depends_on(view, term.mask, axes.product.node):
            later = {other.kind for other, _ in axes.terms[number + 1 :]}
            if (
                term.kind in ("add", "subtract")
                and later <= _SHIFTED
                and not {*axes.keys} & present(view, term.mask, at)
            ):
                continue  # Of each row the same number: the softmax does not see it.
            return Stop("scores-changed", axes.product.node, f"'{term.mask.name}' is made from the scores themselves")
        mask = _mask(view, axes, term.mask, at)
        if mask is None:
            return Stop("mask-shape", axes.product.node, f"'{term.mask.name}' {_PART} of the scores")
        found.append(replace(term, mask=mask))
    return tuple(found)


_PART = "has no shape that is known, or in part an axis"
_SHIFTED = {"add", "subtract", "scale", "cast"}
"""Terms that leave a shift of a whole row one."""


def _cleared(view: GraphView, axes: SiteAxes) -> ScoreTerm | Stop | None:
    if axes.cleared is None:
        return None
    term, at = axes.cleared
    assert term.mask is not None
    if depends_on(view, term.mask, axes.product.node):
        return Stop("probabilities-changed", axes.values.node, f"'{term.mask.name}' is made from the scores themselves")
    mask = _mask(view, axes, term.mask, at)
    if mask is None:
        return Stop("mask-shape", axes.values.node, f"'{term.mask.name}' {_PART} of the probabilities")
    return replace(term, mask=mask)


def _said_exactly(term: ScoreTerm, elem_type: int) -> ScoreTerm:
    """A factor that its type holds as a divisor only is one: the graph divides by it."""
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    divisor = float(np.asarray(1 / term.fill, dtype)) if term.fill else 0.0
    exact = float(np.asarray(term.fill, dtype)) == term.fill
    if exact or abs(divisor * term.fill - 1) > 1e-12:
        return term
    return replace(term, fill=divisor, keep_when=False)


def _mask(view: GraphView, axes: SiteAxes, mask: gs.Tensor, at: Frame) -> gs.Tensor | None:
    """The mask over the axes of the site's scores; itself, where it broadcasts over them as it stands. One that has an axis of
    theirs in part, such as a bias by height on queries that are height and width, is repeated along the rest. None where that
    cannot be, or the mask would have to be moved and its shape is not known."""
    rank = view.rank(mask)
    last = (*axes.batch, axes.rows, axes.keys)
    if rank is None:  # It may be of any shape that broadcasts over the scores as the graph has them.
        return mask if len(at) <= len(last) and _bare(at) == _bare(last) else None
    own = present(view, mask, at)
    frame = tuple(tuple(atom for atom in axis if atom in own) for axis in at[len(at) - rank :])
    missing = tuple(atom for axis in last for atom in axis if {*axis} & own and atom not in own)
    moves: list[Move] = []
    if missing:
        spread = repeated(frame, missing, len(view.worlds))
        if spread is None:
            return None
        frame, moves = spread
        own = own | {*missing}
    wanted = tuple(_held(axis, own) for axis in last)
    bare = _bare(wanted)
    if _bare(frame) == bare and rank <= len(wanted):
        return mask
    found = _moves(view, frame, bare)
    return arranged(view, mask, [*moves, *found])[0] if found is not None else None


def _bare(frame: Frame) -> Frame:
    """Without the leading axes of size 1, which broadcasting adds."""
    first = next((place for place, axis in enumerate(frame) if axis), len(frame))
    return frame[first:]


def _site(
    view: GraphView,
    softmax: Normaliser,
    scores: Scores,
    below: Product,
    axes: SiteAxes,
    operands: tuple[Operand, Operand, Operand],
    terms: tuple[ScoreTerm, ...],
    result: list[Move],
) -> AttentionSite | Stop:
    query, key, value = operands
    scale = query.whole.factor * key.whole.factor * scores.scale
    if not math.isfinite(scale):
        return Stop("scale-not-constant", scores.product.node, "it is not a finite number")
    cleared = _cleared(view, axes)
    if isinstance(cleared, Stop):
        return cleared
    if not _typed_alike(view, operands):
        return Stop("type-not-supported", scores.product.node)
    sizes = [view.static(operand.tensor, -1) for operand in (key, value)]
    if None in sizes and len({view.static(operand.tensor, -3) for operand in operands}) > 1:
        return Stop("shape-unknown", scores.product.node, "heads of a size that varies are shared")
    return AttentionSite(
        name=label(softmax.node),
        node=softmax.node,
        product=scores.product.node,
        query=query,
        key=key,
        value=value,
        scale=scale,
        scores_scale=scores.scale,
        terms=by_position(view, terms, query.tensor, key.tensor),
        probabilities_dtypes=below.dtypes,
        guard=below.guard,
        output=below.output or axes.values.result,
        value_product=below.node,
        result=tuple(result),
        heads=head_count(view, axes, query),
        kv_heads=kv_head_count(view, axes, key),
        head_dim=view.static(query.tensor, -1),
        value_dim=view.static(value.tensor, -1),
        projection=read_projection(view, query, key, value),
        turned=_turned(view, softmax, below),
        anchor="" if softmax.in_one_node else label(below.node),
        overflows=softmax.overflows,
        notes=below.notes,
        cleared=cleared,
        quantized=below.quantized,
    )


def _typed_alike(view: GraphView, operands: tuple[Operand, Operand, Operand]) -> bool:
    """V may have a type of its own: half-precision exports with a float32 mask compute softmax and P·V in float32."""
    types = [view.elem_type(operand.tensor) for operand in operands]
    return types[0] == types[1] and set(types) <= set(FLOATS)


def _turned(view: GraphView, softmax: Normaliser, below: Product) -> bool:
    last = (view.rank(softmax.scores) or 0) - 1
    return last not in softmax.axes or below.swapped or any(step.node.op == "Transpose" for step in below.steps)
